"""A cluster of real node processes on this machine, for the demo, the tests and for trying out.

    async with LocalCluster() as cluster:          # three nodes in a temporary folder
        client = await connect(cluster.servers)
        cluster.kill(2)
        await cluster.restart(2)

Processes end with the one that started them, even when that is killed: each node asks the kernel
for it (node/cli/serve.py). Start a cluster from a thread that lives as long as the cluster, then.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from node.local_node import LocalNode, NodeEnded, free_ports

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


class LocalCluster:
    """Node ids are 1, 2, 3, ... `settings` are those of node/config.py for all nodes, `zones` by
    node id. Without `base_dir` everything is in a temporary folder that is deleted at the end; a
    folder that is given is kept. Not safe for use from several tasks at once."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        base_dir: Path | None = None,
        settings: Mapping[str, object] | None = None,
        zones: Mapping[int, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # Set it before the end to look at what a temporary cluster left behind.
        self.keep_files = base_dir is not None or bool(os.environ.get("QUORUMQ_KEEP_FILES"))
        self.base_dir = base_dir or Path(tempfile.mkdtemp(prefix="quorumq-"))
        self.base_dir.mkdir(parents=True, exist_ok=True)
        self._settings = dict(settings or {})
        self._zones = dict(zones or {})
        self._last_id = nodes
        self._environment = dict(environment or {})
        self.nodes: dict[int, LocalNode] = {}
        ports = free_ports(3 * nodes)
        for node_id in range(1, nodes + 1):
            self._define(node_id, ports[3 * node_id - 3 : 3 * node_id])
        self._tell_peers()

    def _define(self, node_id: int, ports: Sequence[int]) -> LocalNode:
        client, peer, metrics = ports
        settings = {
            "listen": f"127.0.0.1:{client}",
            "peer_listen": f"127.0.0.1:{peer}",
            "metrics_listen": f"127.0.0.1:{metrics}",
            "zone": self._zones.get(node_id, ""),
            **self._settings,
        }
        node = LocalNode(
            node_id=node_id,
            base_dir=self.base_dir,
            settings={name: value for name, value in settings.items() if value != ""},
            environment=self._environment,
        )
        self.nodes[node_id] = node
        return node

    def _tell_peers(self) -> None:
        """When they start next: a node that begins anew finds its cluster through those there are
        now."""
        peers = ",".join(f"{i}={node.peer_endpoint}" for i, node in self.nodes.items())
        for node in self.nodes.values():
            node.settings["peers"] = peers

    @property
    def servers(self) -> str:
        """For `connect` and `--server`."""
        return ",".join(node.client_endpoint for node in self.nodes.values())

    @property
    def running(self) -> list[int]:
        return [node_id for node_id, node in self.nodes.items() if node.is_running]

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for node in self.nodes.values():
                error.add_note(node.last_words())
        await self.close()

    async def start(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start all nodes that do not run and wait until they are ready. Raises NodeEnded and
        TimeoutError, with what the nodes logged last."""
        for node in self.nodes.values():
            if not node.is_running:
                node.start()
        await self.wait_ready(timeout_s=timeout_s)

    async def wait_ready(
        self, node_ids: Iterable[int] | None = None, *, timeout_s: float = READY_TIMEOUT_S
    ) -> None:
        """Until these nodes (None = all that run) say that they see a controller's leader and hold
        no drain."""
        waiting = list(self.running if node_ids is None else node_ids)
        try:
            async with asyncio.timeout(timeout_s):
                for node_id in waiting:
                    await self.nodes[node_id].wait_ready()
        except (TimeoutError, NodeEnded) as error:
            words = "\n".join(self.nodes[node_id].last_words() for node_id in waiting)
            raise type(error)(f"{error or 'not ready in time'}\n{words}") from error

    def kill(self, node_id: int) -> None:
        """SIGKILL; returns when the process is gone."""
        self.nodes[node_id].kill()

    def pause(self, node_id: int) -> None:
        """SIGSTOP."""
        self.nodes[node_id].pause()

    def resume(self, node_id: int) -> None:
        """SIGCONT."""
        self.nodes[node_id].resume()

    async def stop_node(self, node_id: int, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, then the exit code of the graceful end. Raises TimeoutError, and has killed the
        process then."""
        return await self.nodes[node_id].stop(timeout_s=timeout_s)

    async def restart(
        self, node_id: int, *, wait: bool = True, timeout_s: float = READY_TIMEOUT_S
    ) -> None:
        """Start a node that does not run."""
        self.nodes[node_id].start()
        if wait:
            await self.wait_ready([node_id], timeout_s=timeout_s)

    def wipe(self, node_id: int) -> None:
        """Delete the data folder of a node that does not run."""
        node = self.nodes[node_id]
        assert not node.is_running, f"node {node_id} runs"
        shutil.rmtree(node.data_dir, ignore_errors=False)

    def remove(self, node_id: int) -> None:
        """The machine is gone for good: kill the process, delete its folder, know it no more. The
        cluster is not told."""
        self.nodes[node_id].kill()
        self.wipe(node_id)
        del self.nodes[node_id]
        self._tell_peers()

    async def add_node(
        self, *, zone: str = "", wait: bool = True, timeout_s: float = READY_TIMEOUT_S
    ) -> int:
        """Start one more node, which joins through those there are. Returns its id."""
        self._last_id = node_id = self._last_id + 1
        self._zones[node_id] = zone
        node = self._define(node_id, free_ports(3))
        self._tell_peers()
        node.start()
        if wait:
            await self.wait_ready([node_id], timeout_s=timeout_s)
        return node_id

    async def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> dict[int, int]:
        """SIGTERM to all at once, then their exit codes. Raises TimeoutError."""
        running = [self.nodes[node_id] for node_id in self.running]
        for node in running:
            node.terminate()
        return {node.node_id: await node.wait_ended(timeout_s=timeout_s) for node in running}

    async def close(self) -> None:
        """Kill what still runs; delete the folder unless its files are to be kept."""
        for node in self.nodes.values():
            node.kill()
        if not self.keep_files:
            await asyncio.to_thread(shutil.rmtree, self.base_dir, ignore_errors=True)


def main() -> None:
    from node.cli.local import command

    command()


if __name__ == "__main__":
    main()
