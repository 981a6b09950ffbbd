"""One node process on this machine: its ports, its folder, its signals, its log file."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a node that is killed is no news here

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from node import config
from node.cli.serve import PARENT_VARIABLE

SERVICE = "quorumq.v1.MessagingService"  # its health = sees a controller's leader, holds no drain
_LAST_LINES = 12
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10_000


class NodeEnded(Exception):
    """The process ended while something was expected of it."""


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on, outside the range of which the kernel gives ports
    to connections: a node that is down for a while finds its port free when it comes back."""
    try:
        highest = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError):
        highest = 32_768
    candidates = (
        range(_LOWEST_PORT, highest)
        if highest > _LOWEST_PORT + 1_000
        else range(_LOWEST_PORT, 65_536)
    )
    ports: list[int] = []
    source = random.SystemRandom()
    for _ in range(100 * count):
        port = source.choice(candidates)
        if port not in ports and _is_free(port):
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"found no {count} free ports between {candidates[0]} and {candidates[-1]}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class LocalNode:
    """Defined by its settings, then started and ended any number of times."""

    def __init__(
        self,
        *,
        node_id: int,
        base_dir: Path,
        settings: Mapping[str, object],
        environment: Mapping[str, str],
    ) -> None:
        self.node_id = node_id
        self.data_dir = base_dir / f"node-{node_id}"
        self.log_path = base_dir / f"node-{node_id}.log"
        self.settings = dict(settings)
        self.environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_began = 0  # of the present run

    @property
    def client_endpoint(self) -> str:
        return str(self.settings["listen"])

    @property
    def peer_endpoint(self) -> str:
        return str(self.settings["peer_listen"])

    @property
    def metrics_endpoint(self) -> str:
        return str(self.settings["metrics_listen"])

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the present or the last run."""
        assert self._process is not None, f"node {self.node_id} was never started"
        return self._process.pid

    def command_line(self) -> list[str]:
        settings = {"node_id": self.node_id, "data_dir": self.data_dir, **self.settings}
        flags = [f"{config.flag_of(name)}={value}" for name, value in settings.items()]
        return [sys.executable, "-m", "node", "serve", *flags]

    def start(self) -> None:
        """Returns at once; see `wait_ready`."""
        assert not self.is_running, f"node {self.node_id} runs already"
        environment = {**os.environ, **self.environment, PARENT_VARIABLE: str(os.getpid())}
        with self.log_path.open("ab") as log:
            self._log_began = log.tell()
            self._process = subprocess.Popen(
                self.command_line(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the launcher, which then ends its nodes
            )

    def kill(self) -> None:
        """SIGKILL, if it runs; returns when the process is gone."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    async def stop(self, *, timeout_s: float) -> int:
        """SIGTERM, then the exit code. Raises TimeoutError when it had to be killed."""
        self.terminate()
        return await self.wait_ended(timeout_s=timeout_s)

    async def wait_ended(self, *, timeout_s: float) -> int:
        """The exit code (-N = killed by signal N). Raises TimeoutError when it had to be killed."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ended()
        except TimeoutError:
            self.kill()
            raise TimeoutError(
                f"node {self.node_id} did not end in {timeout_s} s\n{self.last_words()}"
            ) from None

    async def _ended(self) -> int:
        assert self._process is not None, f"node {self.node_id} was never started"
        code = self._process.poll()
        if code is None:
            descriptor = os.pidfd_open(self._process.pid)  # readable once the process has ended
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            code = self._process.wait()
        return code

    async def wait_ready(self) -> None:
        """Until its health says that it serves. Raises NodeEnded if the process ends instead."""
        assert self._process is not None, f"node {self.node_id} was never started"
        if not self.is_running:
            raise self._unexpected_end()
        options = (("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 50))
        descriptor = os.pidfd_open(self._process.pid)
        loop = asyncio.get_running_loop()
        try:
            async with grpc.aio.insecure_channel(self.client_endpoint, options=options) as channel:
                while not await self._watch_health(channel, descriptor):
                    pass
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def _watch_health(self, channel: grpc.aio.Channel, descriptor: int) -> bool:
        """True once it serves; False when the connection broke first."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        call = watch(request, wait_for_ready=True)
        asyncio.get_running_loop().add_reader(descriptor, call.cancel)
        try:
            async for answer in call:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return True
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.is_running or (task is not None and task.cancelling()):
                raise  # somebody cancelled us, not the end of the process the call
            raise self._unexpected_end() from None
        finally:
            call.cancel()
        return False

    def _unexpected_end(self) -> NodeEnded:
        code = self._process.poll() if self._process else None
        return NodeEnded(f"node {self.node_id} ended with exit code {code}")

    def last_words(self) -> str:
        """The last lines of its log of the present run."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_began)
                lines = log.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
        except OSError as error:
            lines = [str(error)]
        return "\n".join([f"--- node {self.node_id}, {self.log_path}", *lines])
