"""The cluster that is measured: real node processes started for it, or one that is there already.

The processes are started and ended through `python -m node.local_cluster --control`, which speaks
JSON lines: this package knows the public contract and that protocol, and nothing of the broker.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

_LINE_BYTES_MAX = 1 << 20


class ClusterFailed(Exception):
    """The launcher could not do it; the message has what the nodes logged last."""


class Cluster(Protocol):
    @property
    def servers(self) -> str: ...
    @property
    def pids(self) -> dict[int, int]:
        """Process ids of the nodes, by node id; empty when they cannot be known."""

    async def kill(self, node_id: int) -> None: ...
    async def start(self, node_id: int) -> None:
        """Returns before the node is ready."""

    async def ready(self, node_id: int) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class LaunchedCluster:
    """Three nodes with a temporary folder each, gone at the end, also when this process is killed:
    the launcher ends with its standard input."""

    def __init__(self, *, nodes: int = 3, settings: Mapping[str, str] | None = None) -> None:
        self._nodes = nodes
        self._settings = dict(settings or {})
        self._process: asyncio.subprocess.Process | None = None
        self._status: dict[str, Any] = {}

    @property
    def servers(self) -> str:
        return str(self._status["servers"])

    @property
    def pids(self) -> dict[int, int]:
        return {int(i): node["pid"] for i, node in self._status["nodes"].items()}

    async def kill(self, node_id: int) -> None:
        await self._ask(f"kill {node_id}")

    async def start(self, node_id: int) -> None:
        await self._ask(f"start {node_id}")
        self._status = await self._ask("status")  # the process id is a new one

    async def ready(self, node_id: int) -> None:
        await self._ask(f"ready {node_id}")

    async def __aenter__(self) -> Self:
        arguments = ["-m", "node.local_cluster", "--control", "--nodes", str(self._nodes)]
        for name, value in self._settings.items():
            arguments += ["--set", f"{name}={value}"]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
            start_new_session=True,  # Ctrl-C is for us: we then close its standard input
        )
        self._status = await self._answer()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()

    async def _ask(self, command: str) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise ClusterFailed(f"the launcher ended, exit code {await self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise ClusterFailed(answer["error"])
        return answer


class ExternalCluster:
    """A cluster that somebody else runs: nothing can be killed, and nodes' CPU not be seen."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.pids: dict[int, int] = {}

    async def kill(self, node_id: int) -> None:
        raise ClusterFailed(f"node {node_id} of an external cluster is not ours to kill")

    async def start(self, node_id: int) -> None:
        raise ClusterFailed(f"node {node_id} of an external cluster is not ours to start")

    async def ready(self, node_id: int) -> None:
        raise ClusterFailed(f"node {node_id} of an external cluster is not ours to watch")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None
