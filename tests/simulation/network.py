"""The network of a simulated cluster: cluster.interfaces.Transport within one process, on the
virtual-time loop, with every fault that a seed asks for.

    network = SimNetwork(random, NetworkFaults(delay_ms_max=20))
    transport = network.attach(identity, receiver, "a:1", on_failure=fail)
    network.block(1, 2)              one way; `partition`, `isolate` and `heal` build on it
    transport.crash()                its peers' streams break; attach again with a new boot id

A stream behaves as TCP does: what meets a blocked way waits and arrives after the healing, unless
the block outlasts `keepalive_ms`: then streams in both directions break (keepalive needs answers).
`loss`, `duplicate` and `reorder` go beyond TCP, because Raft must stand them too.
Every message passes through cluster/wire.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.identity import OPEN_METHODS_PREFIX, Identity, may_talk
from cluster.interfaces import CatchUpChunk, CatchUpRequest, Envelope, PeerError, Receiver
from cluster.peer_server import closing
from cluster.tasks import FailureReader, TaskGroup
from cluster.transport import QUEUE_BYTES_MAX
from cluster.wire import (
    decode_catch_up_request,
    decode_chunk,
    decode_stream_request,
    encode_catch_up_request,
    encode_chunk,
    encode_envelopes,
)

T = TypeVar("T")


@dataclass(slots=True)
class NetworkFaults:
    """May be changed while the network runs. Chances are 0..1: `loss`, `duplicate`, `reorder` and
    `stream_break` an envelope, `catch_up_break` a chunk, `call_loss` a call (half of these lose
    the answer to a call that was carried out). Times in virtual milliseconds."""

    delay_ms_min: float = 0.1
    delay_ms_max: float = 1.0
    bytes_per_ms: float = 100_000.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    stream_break: float = 0.0
    catch_up_break: float = 0.0
    call_loss: float = 0.0
    keepalive_ms: float = 2_000.0
    reconnect_ms_max: float = 200.0


class SimNetwork:
    """All ways between all nodes. `delivered` counts envelopes handed to receivers."""

    def __init__(self, randomness: random.Random, faults: NetworkFaults | None = None) -> None:
        self.random = randomness
        self.faults = faults if faults is not None else NetworkFaults()
        self.delivered = 0
        self._listening: dict[str, SimTransport] = {}
        self._blocked: dict[tuple[int, int], int] = {}  # way -> number of the block
        self._blocks = 0
        self._waiters: list[asyncio.Future[None]] = []  # for any way to open
        self._streams: dict[_Stream, None] = {}

    def attach(
        self,
        identity: Identity,
        receiver: Receiver,
        endpoint: str,
        *,
        on_failure: FailureReader,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
    ) -> SimTransport:
        """A node comes up at `endpoint`."""
        assert endpoint not in self._listening, f"{endpoint} is in use"
        transport = SimTransport(
            self,
            identity,
            receiver,
            endpoint,
            on_failure=on_failure,
            queue_bytes_max=queue_bytes_max,
        )
        self._listening[endpoint] = transport
        return transport

    def block(self, sender: int, recipient: int) -> None:
        """Nothing gets from the one node to the other."""
        if (sender, recipient) in self._blocked:
            return
        self._blocks += 1
        self._blocked[sender, recipient] = self._blocks
        asyncio.get_running_loop().call_later(
            self.faults.keepalive_ms / 1000, self._silence, sender, recipient, self._blocks
        )

    def unblock(self, sender: int, recipient: int) -> None:
        if self._blocked.pop((sender, recipient), None) is None:
            return
        for stream in list(self._streams):
            if stream.way == (sender, recipient) and not stream.recipient.closed:
                stream.resume()
        self._reset_closed()
        self._wake()

    def partition(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Both ways between every node of the one side and every node of the other."""
        others = list(other)
        for left in one:
            for right in others:
                self.block(left, right)
                self.block(right, left)

    def isolate(self, node_id: int, among: Iterable[int]) -> None:
        self.partition([node_id], [other for other in among if other != node_id])

    def heal(self) -> None:
        for way in list(self._blocked):
            self.unblock(*way)

    def is_blocked(self, sender: int, recipient: int) -> bool:
        return (sender, recipient) in self._blocked

    def break_streams(self, sender: int, recipient: int) -> None:
        """As a reset connection: what is on the way is lost, the sender is told."""
        for stream in list(self._streams):
            if stream.way == (sender, recipient):
                stream.end()

    def listener(self, endpoint: str) -> SimTransport | None:
        return self._listening.get(endpoint)

    def chance(self, probability: float) -> bool:
        return probability > 0.0 and self.random.random() < probability

    def delay_s(self, size: int = 0) -> float:
        faults = self.faults
        delay_ms = self.random.uniform(faults.delay_ms_min, faults.delay_ms_max)
        return (delay_ms + size / faults.bytes_per_ms) / 1000

    async def cross(self, sender: SimTransport, recipient: SimTransport, size: int = 0) -> None:
        """One way of a call. A blocked way holds it up; a long block or a crash breaks it."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self.faults.keepalive_ms / 1000
        await asyncio.sleep(self.delay_s(size))
        while self.is_blocked(sender.node_id, recipient.node_id):
            waiter = loop.create_future()
            self._waiters.append(waiter)
            try:
                async with asyncio.timeout_at(give_up):
                    await waiter
            except TimeoutError:
                raise PeerError("UNREACHABLE", f"node {recipient.node_id} is silent") from None
        if sender.closed or recipient.closed:
            raise PeerError("UNREACHABLE", "the connection broke")

    def add_stream(self, stream: _Stream) -> None:
        self._streams[stream] = None

    def drop_stream(self, stream: _Stream) -> None:
        self._streams.pop(stream, None)

    def forget(self, transport: SimTransport) -> None:
        """The node is down. Its peers notice at once (a closed socket) where no way is blocked."""
        del self._listening[transport.endpoint]
        for stream in list(self._streams):
            if stream.sender is transport:
                stream.end()
        self._reset_closed()
        self._wake()

    def _reset_closed(self) -> None:
        for stream in list(self._streams):
            sender, recipient = stream.way
            blocked = self.is_blocked(sender, recipient) or self.is_blocked(recipient, sender)
            if stream.recipient.closed and not blocked:
                stream.end()

    def _silence(self, sender: int, recipient: int, block: int) -> None:
        if self._blocked.get((sender, recipient)) != block:
            return
        for stream in list(self._streams):
            if stream.way in ((sender, recipient), (recipient, sender)):
                stream.end()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Stream:
    """An accepted stream: in order, until it ends."""

    def __init__(self, network: SimNetwork, sender: SimTransport, recipient: SimTransport) -> None:
        self.sender = sender
        self.recipient = recipient
        self.way = (sender.node_id, recipient.node_id)
        self.ended = asyncio.get_running_loop().create_future()
        self._network = network
        self._peer = sender.identity.peer
        self._last_at = 0.0  # when the latest envelope arrives
        self.bytes_in_flight = 0
        self._held: list[bytes] = []  # arrived at a block
        network.add_stream(self)

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def send(self, encoded: bytes) -> None:
        network, faults = self._network, self._network.faults
        sender = self.sender
        if self.bytes_in_flight + len(encoded) > sender.queue_bytes_max:
            self.end()  # the rule of cluster/transport.py: an overflow is a break
            return
        if network.chance(faults.stream_break):
            self.end()
            return
        if network.chance(faults.loss):
            return
        copies = 2 if network.chance(faults.duplicate) else 1
        for _ in range(copies):
            self._launch(encoded, in_order=not network.chance(faults.reorder))

    def resume(self) -> None:
        """The block is gone: what waited is sent again."""
        held, self._held = self._held, []
        for encoded in held:
            self._land(len(encoded))
            self._launch(encoded, in_order=True)

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
            self._held.clear()
            self._network.drop_stream(self)
            self.recipient.stream_ended(self)

    def _launch(self, encoded: bytes, *, in_order: bool) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + self._network.delay_s(len(encoded))
        if in_order:
            at = self._last_at = max(at, self._last_at)
        else:
            at += self._network.delay_s() * 3
        self.bytes_in_flight += len(encoded)
        loop.call_at(at, self._arrive, encoded)

    def _arrive(self, encoded: bytes) -> None:
        if not self.alive or self.recipient.closed:
            return
        if self._held or self._network.is_blocked(*self.way):
            self._held.append(encoded)
            return
        self._land(len(encoded))
        for envelope in decode_stream_request(encoded):
            self._network.delivered += 1
            self.recipient.receiver.receive(self._peer, envelope)

    def _land(self, size: int) -> None:
        self.bytes_in_flight -= size


class SimTransport:
    """Implements cluster.interfaces.Transport: one run of one node. What TcpTransport and
    PeerServer do together."""

    def __init__(
        self,
        network: SimNetwork,
        identity: Identity,
        receiver: Receiver,
        endpoint: str,
        *,
        on_failure: FailureReader,
        queue_bytes_max: int,
    ) -> None:
        self.identity = identity
        self.node_id = identity.node_id
        self.receiver = receiver
        self.endpoint = endpoint
        self.closed = False
        self.queue_bytes_max = queue_bytes_max
        self._network = network
        self._tasks = TaskGroup(f"transport-{identity.node_id}", on_failure=on_failure)
        self._endpoints: dict[int, str] = {}
        self._links: dict[int, asyncio.Task[None]] = {}
        self._outgoing: dict[int, _Stream] = {}
        self._incoming: dict[int, _Stream] = {}

    def set_peer(self, node_id: int, endpoint: str | None) -> None:
        if self.closed or self._endpoints.get(node_id) == endpoint:
            return
        if (link := self._links.pop(node_id, None)) is not None:
            link.cancel()
        self._endpoints.pop(node_id, None)
        if endpoint is not None:
            self._endpoints[node_id] = endpoint
            self._links[node_id] = self._tasks.start(
                self._link(node_id, endpoint), name=f"link-{node_id}"
            )

    def send(self, node_id: int, envelope: Envelope) -> None:
        stream = self._outgoing.get(node_id)
        if stream is not None and stream.alive:
            for encoded in encode_envelopes(envelope):
                if stream.alive:
                    stream.send(encoded)

    def unsent_bytes(self, node_id: int) -> int:
        stream = self._outgoing.get(node_id)
        return 0 if stream is None else stream.bytes_in_flight

    async def call(
        self, node_id: int, method: str, request: bytes, *, timeout_ms: int, endpoint: str = ""
    ) -> bytes:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                target = await self._reach(node_id, endpoint)
                return await self._ask(target, node_id, method, request)
        except TimeoutError:
            raise PeerError("TIMEOUT", f"no answer within {timeout_ms} ms") from None

    async def fetch_catch_up(
        self, node_id: int, request: CatchUpRequest
    ) -> AsyncIterator[CatchUpChunk]:
        network = self._network
        target = await self._reach(node_id, "")
        await network.cross(self, target)
        target.admit(self.identity, node_id)
        wanted = decode_catch_up_request(encode_catch_up_request(request))
        async with closing(target.receiver.catch_up(wanted)) as chunks:
            while (chunk := await self._served(target, _next(chunks), "catch-up")) is not None:
                if isinstance(chunk, PeerError):
                    raise chunk
                encoded = encode_chunk(chunk)
                if network.chance(network.faults.catch_up_break):
                    raise PeerError("UNREACHABLE", "the catch-up broke")
                await network.cross(target, self, len(encoded))
                yield decode_chunk(encoded)
                if chunk.done:
                    return
        raise PeerError("UNREACHABLE", f"node {node_id} ended the catch-up before it was done")

    def crash(self) -> None:
        """The process is gone, at once: no callback after it. Its peers' streams break."""
        if not self.closed:
            self.closed = True
            self._network.forget(self)
            self._tasks.cancel()

    async def close(self) -> None:
        self.crash()
        await self._tasks.cancel_and_wait()

    def accept(self, stream: _Stream) -> None:
        if (older := self._incoming.get(stream.sender.node_id)) is not None:
            older.end()
        self._incoming[stream.sender.node_id] = stream

    def stream_ended(self, stream: _Stream) -> None:
        if self._incoming.get(stream.sender.node_id) is stream:
            del self._incoming[stream.sender.node_id]

    def admit(self, caller: Identity, to_node_id: int, *, is_open: bool = False) -> None:
        """The rules of cluster/peer_service.py."""
        mine = self.identity
        theirs = caller.cluster_id
        if not may_talk(mine.cluster_id, theirs, is_open=is_open):
            raise PeerError("WRONG_CLUSTER", f"{mine.cluster_id!r} here, {theirs!r} there")
        if to_node_id not in (0, mine.node_id):
            raise PeerError("WRONG_NODE", f"this is node {mine.node_id}, not node {to_node_id}")

    async def serve(self, caller: int, method: str, request: bytes) -> bytes | PeerError:
        try:
            return await self.receiver.call(caller, method, request)
        except PeerError as error:
            return PeerError(error.code, error.message)

    async def _link(self, node_id: int, endpoint: str) -> None:
        await self.identity.has_cluster.wait()
        while True:
            stream = await self._connect(node_id, endpoint)
            if stream is not None:
                await self._use(stream, node_id)
            pause_ms = self._network.random.uniform(1.0, self._network.faults.reconnect_ms_max)
            await asyncio.sleep(pause_ms / 1000)

    async def _connect(self, node_id: int, endpoint: str) -> _Stream | None:
        try:
            target = self._network.listener(endpoint)
            if target is None or target is self:
                return None
            await self._network.cross(self, target)
            target.admit(self.identity, node_id)
            stream = _Stream(self._network, self, target)
            target.accept(stream)
        except PeerError:
            return None
        try:
            await self._network.cross(target, self)
        except PeerError:
            stream.end()
        except asyncio.CancelledError:
            stream.end()
            raise
        return stream if stream.alive else None

    async def _use(self, stream: _Stream, node_id: int) -> None:
        self._outgoing[node_id] = stream
        try:
            self.receiver.peer_connected(node_id)
            await stream.ended
        finally:
            del self._outgoing[node_id]
            stream.end()
            if not self.closed:
                self.receiver.peer_lost(node_id)

    async def _reach(self, node_id: int, endpoint: str) -> SimTransport:
        target = self._network.listener(endpoint or self._endpoints.get(node_id, ""))
        if target is None:
            await asyncio.sleep(self._network.delay_s())
            raise PeerError("UNREACHABLE", f"nobody listens for node {node_id}")
        return target

    async def _ask(self, target: SimTransport, node_id: int, method: str, request: bytes) -> bytes:
        network = self._network
        lost = network.chance(network.faults.call_loss)
        if lost and network.chance(0.5):
            await asyncio.get_running_loop().create_future()  # until the caller's timeout
        await network.cross(self, target, len(request))
        target.admit(self.identity, node_id, is_open=method.startswith(OPEN_METHODS_PREFIX))
        answer = await self._served(target, target.serve(self.node_id, method, request), method)
        if lost:
            await asyncio.get_running_loop().create_future()
        await network.cross(target, self, len(answer) if isinstance(answer, bytes) else 0)
        if isinstance(answer, PeerError):
            raise answer
        return answer

    async def _served(self, target: SimTransport, work: Coroutine[Any, Any, T], name: str) -> T:
        """The peer's own code runs in the peer's own task: it ends when the peer crashes, and when
        we go away, as gRPC does it. Its bugs are the peer's failures."""
        if target.closed:
            work.close()
            raise PeerError("UNREACHABLE", f"node {target.node_id} is gone")
        served = target._tasks.start(work, name=f"serve-{name}")
        try:
            await asyncio.wait([served])
        finally:
            served.cancel()
        if served.cancelled() or served.exception() is not None:
            raise PeerError("UNREACHABLE", f"node {target.node_id} went away")
        return served.result()


async def _next(chunks: AsyncIterator[CatchUpChunk]) -> CatchUpChunk | PeerError | None:
    """None at the end."""
    try:
        return await anext(chunks, None)
    except PeerError as error:
        return error
