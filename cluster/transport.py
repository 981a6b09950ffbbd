"""The sending half of the transport: cluster.interfaces.Transport over grpc.aio.

One client stream a peer carries our envelopes (the peer's come back on a stream of its own, see
peer_service.py). What is queued while a write is under way leaves as one message.

A stream that breaks, and a queue that overflows, lose what they held: the receiver is told by
`peer_lost`, and by `peer_connected` when the next stream is up. In between, `send` drops. Nothing
is kept for later: Raft sends again, and fresher.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Iterable

import grpc
from google.protobuf.message import DecodeError

from cluster.interfaces import CatchUpChunk, CatchUpRequest, Envelope, PeerError, Receiver
from cluster.peer_service import (
    CALL_METHOD,
    CATCH_UP_METHOD,
    ERROR_TRAILER,
    PEER_OPTIONS,
    STREAM_METHOD,
    Identity,
)
from cluster.tasks import FailureReader, TaskGroup
from cluster.v1 import peer_pb2 as pb
from cluster.wire import decode_chunk, encode_catch_up_request, encode_envelope

logger = logging.getLogger(__name__)

QUEUE_BYTES_MAX = 64 << 20  # a peer; above what Raft keeps in flight, else every burst is a break
QUEUE_ENVELOPES_MAX = 10_000
MESSAGE_BYTES_MAX = 4 << 20  # joined envelopes; a single larger one still goes, alone
ACCEPT_TIMEOUT_S = 5.0
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.02, 0.2
REFUSED_BACKOFF_S = 1.0

CHANNEL_OPTIONS = (
    *PEER_OPTIONS,
    # gRPC's own pause between attempts at a connection, and how long one attempt may take: what
    # decides how soon a peer that is back is reached.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 400),
    # Connections are not shared with other channels: a catch-up does not hold up the stream, and
    # a channel to a new peer at an old address does not inherit its pauses.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)

_CODES = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "TIMEOUT",
    grpc.StatusCode.UNAVAILABLE: "UNREACHABLE",
    grpc.StatusCode.CANCELLED: "UNREACHABLE",
    grpc.StatusCode.UNIMPLEMENTED: "NOT_FOUND",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "TOO_LARGE",
}


class GrpcTransport:
    """Implements cluster.interfaces.Transport. `on_failure` hears of a task that died of a bug.

    Streams begin once `identity.cluster_id` is known; calls work before. `close` within the loop
    that it was made in."""

    def __init__(
        self,
        receiver: Receiver,
        identity: Identity,
        randomness: random.Random,
        *,
        on_failure: FailureReader,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        queue_envelopes_max: int = QUEUE_ENVELOPES_MAX,
    ) -> None:
        self.receiver = receiver
        self.identity = identity
        self.randomness = randomness
        self.queue_bytes_max = queue_bytes_max
        self.queue_envelopes_max = queue_envelopes_max
        self.tasks = TaskGroup("transport", on_failure=on_failure)
        self._links: dict[int, _PeerLink] = {}
        self._retired: list[grpc.aio.Channel] = []
        self.closed = False

    def set_peer(self, node_id: int, endpoint: str | None) -> None:
        """A changed endpoint ends the old stream, as a break does."""
        link = self._links.get(node_id)
        if self.closed or (link is not None and link.endpoint == endpoint):
            return
        if link is not None:
            del self._links[node_id]
            link.stop()
            self._retired.append(link.channel)
            self.tasks.start(self._close_retired(), name=f"retire-{node_id}")
        if endpoint is not None:
            self._links[node_id] = _PeerLink(self, node_id, endpoint)

    def send(self, node_id: int, envelope: Envelope) -> None:
        """Drops it when there is no stream to the node."""
        link = self._links.get(node_id)
        if link is not None and link.connected:
            link.send(encode_envelope(envelope))

    async def call(
        self, node_id: int, method: str, request: bytes, *, timeout_ms: int, endpoint: str = ""
    ) -> bytes:
        """Raises PeerError. Fails at once when the peer is known to be unreachable."""
        link = self._links.get(node_id)
        if not endpoint and link is not None:
            return await self._call(link.channel, node_id, method, request, timeout_ms)
        if not endpoint:
            raise PeerError("UNREACHABLE", f"nobody told where node {node_id} is")
        async with _channel(endpoint) as channel:
            return await self._call(channel, node_id, method, request, timeout_ms)

    async def fetch_catch_up(
        self, node_id: int, request: CatchUpRequest
    ) -> AsyncIterator[CatchUpChunk]:
        """Raises PeerError, also midway. Over a connection of its own; read no faster than the
        caller takes chunks. Close it (contextlib.aclosing) when leaving early."""
        link = self._links.get(node_id)
        if link is None:
            raise PeerError("UNREACHABLE", f"nobody told where node {node_id} is")
        async with _channel(link.endpoint) as channel:
            rpc: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
            rpc = channel.unary_stream(CATCH_UP_METHOD)
            call = rpc(encode_catch_up_request(request), metadata=self.identity.metadata(node_id))
            try:
                async for response in call:
                    chunk = decode_chunk(response)
                    yield chunk
                    if chunk.done:
                        return
            except grpc.aio.AioRpcError as error:
                raise _peer_error(error) from error
            except ValueError as error:
                raise PeerError("CORRUPT", f"node {node_id}: {error}") from error
            finally:
                call.cancel()
        raise PeerError("UNREACHABLE", f"node {node_id} ended the catch-up before it was done")

    def trouble(self, node_id: int) -> PeerError | None:
        """Why there is no stream to a known node; None while there is one, or none was tried."""
        link = self._links.get(node_id)
        return link.trouble if link is not None and not link.connected else None

    async def close(self) -> None:
        """Ends streams, calls and channels. No callback comes after it. Idempotent."""
        self.closed = True
        await self.tasks.cancel_and_wait()
        self._retired += [link.channel for link in self._links.values()]
        self._links.clear()
        await self._close_retired()

    async def _close_retired(self) -> None:
        while self._retired:
            channel = self._retired[0]  # stays there until it is closed: this may be cancelled
            await channel.close()
            if channel in self._retired:
                self._retired.remove(channel)

    async def _call(
        self, channel: grpc.aio.Channel, node_id: int, method: str, body: bytes, timeout_ms: int
    ) -> bytes:
        rpc: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CALL_METHOD)
        request = pb.CallRequest(method=method, body=body).SerializeToString()
        try:
            answer = await rpc(
                request, metadata=self.identity.metadata(node_id), timeout=timeout_ms / 1000
            )
            response = pb.CallResponse.FromString(answer)
        except grpc.aio.AioRpcError as error:
            raise _peer_error(error) from error
        except DecodeError as error:
            raise PeerError("CORRUPT", f"node {node_id}: {error}") from error
        if response.error_code:
            raise PeerError(response.error_code, response.error_message)
        return response.body


class _PeerLink:
    """The stream to one peer and the queue before it. `connected` says whether `send` may be
    called; it turns false at once when the stream breaks or the queue overflows, and the receiver
    hears of it soon after."""

    def __init__(self, transport: GrpcTransport, node_id: int, endpoint: str) -> None:
        self.node_id = node_id
        self.endpoint = endpoint
        self.connected = False
        self.trouble: PeerError | None = None  # why the latest attempt did not get a stream
        self.channel = _channel(endpoint)
        self._transport = transport
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._overflowed = False
        self._call: grpc.aio.StreamUnaryCall[bytes, bytes] | None = None
        self._woken: asyncio.Future[None] | None = None  # the idle writer waits on it
        self._task = transport.tasks.start(self._run(), name=f"link-{node_id}")

    def send(self, encoded: bytes) -> None:
        self._queue.append(encoded)
        self._queued_bytes += len(encoded)
        if (
            self._queued_bytes > self._transport.queue_bytes_max
            or len(self._queue) > self._transport.queue_envelopes_max
        ):
            self._overflow()
        self._wake()

    def stop(self) -> None:
        self.connected = False
        self._task.cancel()

    async def _run(self) -> None:
        await self._transport.identity.has_cluster.wait()
        pause_s = BACKOFF_S_MIN
        while True:
            trouble = await self._stream()
            if trouble is None:
                pause_s = BACKOFF_S_MIN
            elif trouble.code in ("UNREACHABLE", "CLOSED"):
                pause_s = min(2 * pause_s, BACKOFF_S_MAX)
            else:
                pause_s = REFUSED_BACKOFF_S
            self._note(trouble)
            await asyncio.sleep(pause_s * self._transport.randomness.uniform(0.5, 1.0))

    async def _stream(self) -> PeerError | None:
        """One stream from its opening to its end. None if it was up, else what kept it down."""
        metadata = self._transport.identity.metadata(self.node_id)
        rpc: grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
        rpc = self.channel.stream_unary(STREAM_METHOD)
        call = rpc(metadata=metadata, wait_for_ready=True)
        call.add_done_callback(lambda _: self._wake())
        try:
            try:
                async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                    greeting = await call.initial_metadata()
                    if "quorumq-node-id" not in dict(greeting):  # refused, by the status alone
                        trailers = await call.trailing_metadata()
                        return _refusal(await call.code(), await call.details(), trailers)
            except TimeoutError:
                return PeerError("UNREACHABLE", f"{self.endpoint} did not accept the stream")
            self._call = call
            await self._use(call)
            return None
        finally:
            call.cancel()

    async def _use(self, call: grpc.aio.StreamUnaryCall[bytes, bytes]) -> None:
        """Writes until the stream breaks. The receiver hears of the begin and of the end."""
        receiver = self._transport.receiver
        self.connected, self._overflowed = True, False
        try:
            receiver.peer_connected(self.node_id)
            await self._write(call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # it broke under a write; why makes no difference
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._overflowed or (task is not None and task.cancelling()):
                raise
        finally:
            self.connected, self._call = False, None
            self._queue.clear()
            self._queued_bytes = 0
            if not self._transport.closed:
                receiver.peer_lost(self.node_id)

    async def _write(self, call: grpc.aio.StreamUnaryCall[bytes, bytes]) -> None:
        loop = asyncio.get_running_loop()
        while self.connected and not call.done():
            if self._queue:
                await call.write(self._take())
                continue
            self._woken = loop.create_future()
            try:
                await self._woken
            finally:
                self._woken = None

    def _take(self) -> bytes:
        """What is queued, joined, up to MESSAGE_BYTES_MAX; at least one envelope."""
        queue = self._queue
        first = queue.popleft()
        size = len(first)
        if queue and size + len(queue[0]) <= MESSAGE_BYTES_MAX:
            parts = [first]
            while queue and size + len(queue[0]) <= MESSAGE_BYTES_MAX:
                size += len(queue[0])
                parts.append(queue.popleft())
            first = b"".join(parts)
        self._queued_bytes -= size
        return first

    def _overflow(self) -> None:
        """The peer takes less than we send. Break with it: Raft then probes instead of pouring."""
        logger.warning(
            "node %d: %d envelopes, %d bytes wait: dropped",
            self.node_id,
            len(self._queue),
            self._queued_bytes,
        )
        self.connected, self._overflowed = False, True
        self._queue.clear()
        self._queued_bytes = 0
        if self._call is not None:
            self._call.cancel()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def _note(self, trouble: PeerError | None) -> None:
        """Says once, not at every attempt, why there is no stream."""
        known, self.trouble = self.trouble, trouble
        if trouble is not None and (known is None or known.code != trouble.code):
            logger.warning("node %d at %s: %s", self.node_id, self.endpoint, trouble)


def _channel(endpoint: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)


def _peer_error(error: grpc.aio.AioRpcError) -> PeerError:
    return _refusal(error.code(), error.details(), error.trailing_metadata())


def _refusal(
    status: grpc.StatusCode, details: str | None, trailers: Iterable[tuple[str, str | bytes]]
) -> PeerError:
    for key, value in trailers or ():
        if key == ERROR_TRAILER:
            return PeerError(str(value), details or "")
    return PeerError(_CODES.get(status, "INTERNAL"), f"{status.name}: {details}")
