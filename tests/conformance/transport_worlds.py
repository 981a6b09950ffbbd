"""Two worlds for the transport's stories: real connections on loopback, and the simulation."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from cluster.identity import Identity
from cluster.interfaces import (
    CatchUpChunk,
    CatchUpRequest,
    Envelope,
    Peer,
    PeerError,
    Transport,
)
from cluster.peer_server import PeerServer
from cluster.tasks import TaskGroup
from cluster.transport import TcpTransport
from tests.simulation.loop import VirtualTimeLoop, run_simulation
from tests.simulation.network import SimNetwork, SimTransport

CLUSTER = "cluster-1"


class Listener:
    """A Receiver that writes down what it hears. `calls` answers calls, `chunks` catch-ups."""

    def __init__(self) -> None:
        self.received: list[tuple[Peer, Envelope]] = []
        self.events: list[str] = []
        self.calls: Callable[[int, str, bytes], Awaitable[bytes]] | None = None
        self.chunks: Callable[[CatchUpRequest], AsyncIterator[CatchUpChunk]] | None = None
        self._news = asyncio.Event()

    def receive(self, peer: Peer, envelope: Envelope) -> None:
        self.received.append((peer, envelope))
        self._news.set()

    def peer_connected(self, node_id: int) -> None:
        self.events.append(f"connected {node_id}")
        self._news.set()

    def peer_lost(self, node_id: int) -> None:
        self.events.append(f"lost {node_id}")
        self._news.set()

    async def call(self, node_id: int, method: str, request: bytes) -> bytes:
        assert self.calls is not None, "nobody is to call here"
        return await self.calls(node_id, method, request)

    def catch_up(self, request: CatchUpRequest) -> AsyncIterator[CatchUpChunk]:
        assert self.chunks is not None, "nobody is to catch up from here"
        return self.chunks(request)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._news.clear()
                await self._news.wait()


class Node:
    def __init__(self, identity: Identity, listener: Listener, transport: Transport) -> None:
        self.identity = identity
        self.listener = listener
        self.transport = transport
        self.endpoint = ""


class World(Protocol):
    async def start(
        self,
        node_id: int,
        *,
        boot_id: str = "boot-1",
        cluster_id: str = CLUSTER,
        at: str = "",
        queue_bytes_max: int = 64 << 20,
    ) -> Node:
        """A node of an empty `at` gets a new endpoint."""

    async def stop(self, node: Node) -> None:
        """As the end of its process: what it had in memory is gone."""

    async def unused_endpoint(self) -> str: ...

    async def silence(self, node: Node, seen_from: Node) -> str:
        """An endpoint of the node for `seen_from`, and from `mute` on no byte passes it."""

    def mute(self, node: Node, seen_from: Node) -> None: ...
    def unmute(self, node: Node, seen_from: Node) -> None: ...

    def work_done(self) -> float:
        """What the process did so far, in units of which an idle second may cost 1.0."""


Story = Callable[[World], Awaitable[None]]


def run_on_tcp(story: Story) -> None:
    async def main() -> None:
        world = TcpWorld()
        try:
            await story(world)
        finally:
            await world.close()
        assert not world.failures, world.failures
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        names = sorted(task.get_name() for task in left)
        assert not names, f"tasks outlived their owners: {names}"

    asyncio.run(main())


def run_on_simulation(story: Story) -> None:
    async def main(randomness: random.Random) -> None:
        world = SimWorld(randomness)
        try:
            await story(world)
        finally:
            await world.close()
        assert not world.failures, world.failures

    run_simulation(main, 11)


class TcpWorld:
    def __init__(self) -> None:
        self.failures: list[str] = []
        self._running: dict[Node, PeerServer] = {}
        self._proxies: dict[tuple[int, int], Proxy] = {}

    async def start(
        self,
        node_id: int,
        *,
        boot_id: str = "boot-1",
        cluster_id: str = CLUSTER,
        at: str = "",
        queue_bytes_max: int = 64 << 20,
    ) -> Node:
        identity = Identity(
            node_id=node_id, incarnation=f"inc-{node_id}", boot_id=boot_id, cluster_id=cluster_id
        )
        listener = Listener()

        def failed(name: str, error: BaseException) -> None:
            self.failures.append(f"{name}: {error!r}")

        transport = TcpTransport(
            listener,
            identity,
            random.Random(node_id),
            on_failure=failed,
            queue_bytes_max=queue_bytes_max,
        )
        node = Node(identity, listener, transport)
        server = self._running[node] = PeerServer(listener, identity, on_failure=failed)
        node.endpoint = f"127.0.0.1:{await server.listen(at or '127.0.0.1:0')}"
        return node

    async def stop(self, node: Node) -> None:
        server = self._running.pop(node)
        assert isinstance(node.transport, TcpTransport)
        await node.transport.close()
        await server.close()

    async def unused_endpoint(self) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{probe.getsockname()[1]}"

    async def silence(self, node: Node, seen_from: Node) -> str:
        proxy = Proxy(node.endpoint)
        self._proxies[node.identity.node_id, seen_from.identity.node_id] = proxy
        return await proxy.start()

    def mute(self, node: Node, seen_from: Node) -> None:
        self._proxies[node.identity.node_id, seen_from.identity.node_id].open.clear()

    def unmute(self, node: Node, seen_from: Node) -> None:
        self._proxies[node.identity.node_id, seen_from.identity.node_id].open.set()

    def work_done(self) -> float:
        return time.process_time() / 0.05

    async def close(self) -> None:
        for node in list(self._running):
            await self.stop(node)
        for proxy in self._proxies.values():
            await proxy.close()


class Proxy:
    """Passes bytes both ways while `open` is set; else keeps the connection and passes nothing, as
    a network does that drops every packet."""

    def __init__(self, target: str) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self._target = target
        self._tasks = TaskGroup("proxy", on_failure=lambda _name, _error: None)
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._tasks.cancel_and_wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.start(self._serve(reader, writer), name="connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.split(":")
        with contextlib.closing(writer):
            await self.open.wait()
            onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
            with contextlib.closing(onward_writer):
                async with TaskGroup("pumps") as pumps:
                    pumps.start(self._pump(reader, onward_writer), name="there")
                    pumps.start(self._pump(onward_reader, writer), name="back")

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self.open.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side closed: close the other


class SimWorld:
    def __init__(self, randomness: random.Random) -> None:
        self.failures: list[str] = []
        self._network = SimNetwork(randomness)
        self._running: dict[Node, SimTransport] = {}
        self._endpoints = 0

    async def start(
        self,
        node_id: int,
        *,
        boot_id: str = "boot-1",
        cluster_id: str = CLUSTER,
        at: str = "",
        queue_bytes_max: int = 64 << 20,
    ) -> Node:
        identity = Identity(
            node_id=node_id, incarnation=f"inc-{node_id}", boot_id=boot_id, cluster_id=cluster_id
        )
        listener = Listener()
        transport = self._network.attach(
            identity,
            listener,
            at or await self.unused_endpoint(),
            on_failure=lambda name, error: self.failures.append(f"{name}: {error!r}"),
            queue_bytes_max=queue_bytes_max,
        )
        node = Node(identity, listener, transport)
        node.endpoint = transport.endpoint
        self._running[node] = transport
        return node

    async def stop(self, node: Node) -> None:
        await self._running.pop(node).close()

    async def unused_endpoint(self) -> str:
        self._endpoints += 1
        return f"simulated:{self._endpoints}"

    async def silence(self, node: Node, seen_from: Node) -> str:
        return node.endpoint

    def mute(self, node: Node, seen_from: Node) -> None:
        self._network.partition([node.identity.node_id], [seen_from.identity.node_id])

    def unmute(self, node: Node, seen_from: Node) -> None:
        self._network.heal()

    def work_done(self) -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        return loop.hops / 10

    async def close(self) -> None:
        for node in list(self._running):
            await self.stop(node)


async def introduce(one: Node, other: Node) -> None:
    """Both know each other, and both streams are up."""
    for node, peer in ((one, other), (other, one)):
        node.transport.set_peer(peer.identity.node_id, peer.endpoint)
    for node, peer in ((one, other), (other, one)):
        await node.listener.until(
            lambda node=node, peer=peer: (  # type: ignore[misc]
                f"connected {peer.identity.node_id}" in node.listener.events
            )
        )


async def refused(asked: Awaitable[object]) -> str:
    """The code of the PeerError that `asked` must raise."""
    try:
        answer = await asked
    except PeerError as error:
        return error.code
    raise AssertionError(f"not refused: {answer!r}")
