"""Worlds for the same stories: in one process on virtual time, real gRPC on loopback, and the
streams that nodes open to each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from random import Random
from typing import Any, Protocol

import grpc
import grpc.aio
import pytest

import quorumq
from cluster.identity import Identity
from cluster.peer_server import PeerServer
from cluster.transport import TcpTransport
from node.services.peer_channel import PeerChannel, PeerServices
from quorumq.channel import CallFailed, Channel, Kind
from quorumq.grpc_channel import GrpcChannel
from quorumq.in_process import Handler, InProcessNetwork, InProcessServer
from tests.client_bed.cluster import LoseConnection, ModelCluster, ModelNode
from tests.client_bed.model import Refused
from tests.conformance.transport_worlds import Listener
from tests.simulation.loop import run_simulation


class World(Protocol):
    """Servers by number."""

    async def serve(self, number: int, handlers: Mapping[str, Handler]) -> None: ...
    async def cut(self, number: int) -> None:
        """As if the process was killed."""

    def endpoint(self, number: int) -> str: ...
    def channel(self, endpoint: str) -> Channel: ...
    async def close(self) -> None: ...


class InProcessWorld:
    def __init__(self, latency_s: Callable[[str], float] = lambda _endpoint: 0.0) -> None:
        self.network = InProcessNetwork(latency_s)
        self._servers: dict[int, InProcessServer] = {}

    async def serve(self, number: int, handlers: Mapping[str, Handler]) -> None:
        server = self.network.serve(self.endpoint(number), handlers, status_of=status_of)
        self._servers[number] = server

    async def cut(self, number: int) -> None:
        await self._servers[number].stop()

    def endpoint(self, number: int) -> str:
        return f"node-{number}:9000"

    def channel(self, endpoint: str) -> Channel:
        return self.network.channel(endpoint)

    async def close(self) -> None:
        for server in self._servers.values():
            await server.stop()


class GrpcWorld:
    def __init__(self) -> None:
        self._servers: dict[int, grpc.aio.Server] = {}
        self._ports: dict[int, int] = {}

    async def serve(self, number: int, handlers: Mapping[str, Handler]) -> None:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        server.add_generic_rpc_handlers((_GrpcHandlers(handlers),))
        address = f"127.0.0.1:{self._ports.get(number, 0)}"
        self._ports[number] = server.add_insecure_port(address)
        await server.start()
        self._servers[number] = server

    async def cut(self, number: int) -> None:
        await self._servers.pop(number).stop(None)

    def endpoint(self, number: int) -> str:
        return f"127.0.0.1:{self._ports[number]}"

    def channel(self, endpoint: str) -> Channel:
        return GrpcChannel(endpoint)

    async def close(self) -> None:
        for number in list(self._servers):
            await self.cut(number)


class PeerWorld:
    """As one node reaches others: streams only."""

    def __init__(self) -> None:
        self._servers: dict[int, PeerServer] = {}
        self._ports: dict[int, int] = {}
        self._failures: list[str] = []
        me = self._identity(100)
        self._transport = TcpTransport(Listener(), me, Random(1), on_failure=self._failed)

    async def serve(self, number: int, handlers: Mapping[str, Handler]) -> None:
        server = self._servers[number] = PeerServer(
            Listener(), self._identity(number + 1), on_failure=self._failed
        )
        server.services = PeerServices(handlers, status_of=status_of)
        self._ports[number] = await server.listen(f"127.0.0.1:{self._ports.get(number, 0)}")
        self._transport.set_peer(number + 1, self.endpoint(number))

    async def cut(self, number: int) -> None:
        await self._servers.pop(number).close()

    def endpoint(self, number: int) -> str:
        return f"127.0.0.1:{self._ports[number]}"

    def channel(self, endpoint: str) -> Channel:
        numbers = {self.endpoint(number): number for number in self._ports}
        return PeerChannel(self._transport, numbers[endpoint] + 1)

    async def close(self) -> None:
        await self._transport.close()
        for number in list(self._servers):
            await self.cut(number)
        assert not self._failures

    def _identity(self, node_id: int) -> Identity:
        return Identity(node_id=node_id, incarnation="i", boot_id="b", cluster_id="c")

    def _failed(self, name: str, error: BaseException) -> None:
        self._failures.append(f"{name}: {error!r}")


class _GrpcHandlers(grpc.GenericRpcHandler):
    """Handlers as a grpc.aio server wants them, failures as statuses."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        handler = self._handlers.get(handler_call_details.method)
        if handler is None:
            return None
        method, function = handler.method, handler.function
        if method.kind is Kind.UNARY:
            make, behaviour = grpc.unary_unary_rpc_method_handler, _answering(function)
        elif method.kind is Kind.SERVER_STREAM:
            make, behaviour = grpc.unary_stream_rpc_method_handler, _generating(function)
        else:
            make, behaviour = grpc.stream_stream_rpc_method_handler, _answering(function)
        return make(
            behaviour,
            request_deserializer=method.decode_request,
            response_serializer=method.encode_response,
        )


def _answering(function: Callable[..., Awaitable[Any]]) -> Any:
    async def behaviour(request: Any, call: Any) -> Any:
        try:
            return await function(request, call)
        except Exception as error:
            failure = status_of(error)
            await call.abort(failure.code, failure.details, failure.trailers)

    return behaviour


def _generating(function: Callable[..., AsyncIterator[Any]]) -> Any:
    async def behaviour(request: Any, call: Any) -> AsyncIterator[Any]:
        try:
            async for response in function(request, call):
                yield response
        except Exception as error:
            failure = status_of(error)
            await call.abort(failure.code, failure.details, failure.trailers)

    return behaviour


def status_of(error: Exception) -> CallFailed:
    """As a node's services do: the Error packed into the status, and the trailers."""
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, LoseConnection):
        return CallFailed(grpc.StatusCode.UNAVAILABLE, "connection reset")
    if isinstance(error, CallFailed):
        return error
    if not isinstance(error, Refused):
        return CallFailed(grpc.StatusCode.UNKNOWN, repr(error))
    from google.protobuf.any_pb2 import Any as PackedAny
    from google.rpc import status_pb2  # type: ignore[import-untyped]

    code = grpc.StatusCode.NOT_FOUND
    packed = PackedAny()
    packed.Pack(error.error)
    status = status_pb2.Status(code=code.value[0], message=error.error.message, details=[packed])
    return CallFailed(
        code,
        error.error.message,
        (("grpc-status-details-bin", status.SerializeToString()),),
    )


class Bed:
    """A model cluster of three nodes in a world, and clients of it."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.cluster = ModelCluster([])
        self._clients: list[quorumq.Client] = []

    async def start(self, nodes: int = 3) -> None:
        for number in range(nodes):
            await self.restart(number)

    async def restart(self, number: int) -> None:
        """The first time: start."""
        node = ModelNode(self.cluster, "")
        await self.world.serve(number, node.handlers())
        node.endpoint = self.world.endpoint(number)
        if node.endpoint not in self.cluster.endpoints:
            self.cluster.endpoints.append(node.endpoint)

    async def kill(self, number: int, *, new_leader: int | None = None) -> None:
        """Its partitions have no leader until they get one, now or by `elect`."""
        endpoint = self.world.endpoint(number)
        for topic in self.cluster.topics.values():
            for partition in topic.partitions:
                if partition.leader == endpoint:
                    self.cluster.move_leader(topic.name, partition.number, None)
        await self.world.cut(number)
        if new_leader is not None:
            self.elect(new_leader)

    def elect(self, number: int) -> None:
        """It leads what has no leader."""
        for topic in self.cluster.topics.values():
            for partition in topic.partitions:
                if partition.leader is None:
                    endpoint = self.world.endpoint(number)
                    self.cluster.move_leader(topic.name, partition.number, endpoint)

    async def client(self, *, servers: str | None = None) -> quorumq.Client:
        given = servers or ",".join(self.cluster.endpoints)
        client = await quorumq.connect(given, channels=self.world.channel, rng=self.rng)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.__aexit__(RuntimeError, None, None)
        self.cluster.faults.hang.clear()
        self.cluster.changed()
        await self.world.close()


Story = Callable[[Bed], Awaitable[None]]
Run = Callable[[Story], None]


def in_process(
    story: Story, seed: int = 1, latency_s: Callable[[Random], float] = lambda _rng: 0.0
) -> None:
    """Run a story on virtual time."""

    async def main(rng: Random) -> None:
        world = InProcessWorld(lambda _endpoint: latency_s(rng))
        await _tell(story, Bed(world, rng))

    run_simulation(main, seed)


def over_grpc(story: Story) -> None:
    """Run a story on real connections and real time."""
    asyncio.run(_tell(story, Bed(GrpcWorld(), Random(1))))


def between_nodes(story: Story) -> None:
    """Run a story of streams on what nodes speak to each other."""
    asyncio.run(_tell(story, Bed(PeerWorld(), Random(1))))


both_worlds = pytest.mark.parametrize("run", [in_process, over_grpc], ids=["in-process", "grpc"])
all_worlds = pytest.mark.parametrize(
    "run", [in_process, over_grpc, between_nodes], ids=["in-process", "grpc", "nodes"]
)


async def _tell(story: Story, bed: Bed) -> None:
    await bed.start()
    try:
        await story(bed)
    finally:
        await bed.close()
