"""The sending half of the transport: cluster.interfaces.Transport over frames (frames.py).

One connection a peer carries our envelopes (the peer's come back on one of its own, see
peer_server.py). A stream that breaks, and one that gets too far behind, lose what they held: the
receiver is told by `peer_lost`, and by `peer_connected` when the next stream is up. In between,
`send` drops. Nothing is kept for later: Raft sends again, and fresher.

Calls take a connection each and give it back; a call that is left closes it, which cancels it. The
stream to a peer is the one that watches whether the peer lives: when it breaks, all others to that
peer are closed with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator

from cluster.frames import Frames, address_of, connect
from cluster.identity import Identity, answer_of
from cluster.interfaces import CatchUpChunk, CatchUpRequest, Envelope, PeerError, Receiver
from cluster.lookups import Lookups
from cluster.tasks import FailureReader, TaskGroup
from cluster.v1 import peer_pb2 as pb
from cluster.wire import decode_chunk, encode_catch_up_request, encode_envelopes

logger = logging.getLogger(__name__)

QUEUE_BYTES_MAX = 64 << 20  # a peer; above what Raft keeps in flight, else every burst is a break
IDLE_CALL_CONNECTIONS_MAX = 4  # a peer; those of more calls at a time are closed after them
STREAM_CONNECT_TIMEOUT_S = 0.5  # and at once again: TCP sends a lost first packet after 1 s
CONNECT_TIMEOUT_S = 3.0
ACCEPT_TIMEOUT_S = 5.0
CHUNK_TIMEOUT_S = 30.0
CATCH_UP_QUEUE_BYTES_MAX = 4 << 20
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.02, 0.2
REFUSED_BACKOFF_S = 1.0
# A stream is asked for a sign of life so often, and given up when none came for so long.
SIGN_S, SILENCE_S = 0.5, 2.0


class TcpTransport:
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
    ) -> None:
        self.receiver = receiver
        self.identity = identity
        self.randomness = randomness
        self.queue_bytes_max = queue_bytes_max
        self.tasks = TaskGroup("transport", on_failure=on_failure)
        self._lookups = Lookups(self.tasks)
        self._links: dict[int, _PeerLink] = {}
        self.closed = False

    def set_peer(self, node_id: int, endpoint: str | None) -> None:
        """A changed endpoint ends the old stream, as a break does."""
        link = self._links.get(node_id)
        if self.closed or (link is not None and link.endpoint == endpoint):
            return
        if link is not None:
            del self._links[node_id]
            link.stop()
        if endpoint is not None:
            self._links[node_id] = _PeerLink(self, node_id, endpoint)

    def send(self, node_id: int, envelope: Envelope) -> None:
        """Drops it when there is no stream to the node."""
        link = self._links.get(node_id)
        if link is not None and link.connected:
            for encoded in encode_envelopes(envelope):
                link.send(encoded)

    def unsent_bytes(self, node_id: int) -> int:
        link = self._links.get(node_id)
        return 0 if link is None else link.unsent_bytes

    async def call(
        self, node_id: int, method: str, request: bytes, *, timeout_ms: int, endpoint: str = ""
    ) -> bytes:
        """Raises PeerError. Fails at once when the peer refuses connections."""
        link = None if endpoint else self._link(node_id)
        body = pb.CallRequest(method=method, body=request).SerializeToString()
        told = self.identity.cluster_id
        frames = None if link is None else link.idle_call_connection(told)
        answer = None
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                if link is None:
                    frames = await self.connect(endpoint, node_id, pb.PURPOSE_CALL)
                elif frames is None:
                    frames = await link.connect(pb.PURPOSE_CALL)
                frames.send(body)
                answer = await frames.receive()
        except TimeoutError:
            raise PeerError("TIMEOUT", f"node {node_id} did not answer {method}") from None
        except ConnectionError as error:
            raise PeerError("UNREACHABLE", f"node {node_id}: {error}") from None
        finally:
            if frames is not None and (
                answer is None or link is None or not link.keep(frames, told)
            ):
                frames.abort()
        return answer_of(answer)

    async def fetch_catch_up(
        self, node_id: int, request: CatchUpRequest
    ) -> AsyncIterator[CatchUpChunk]:
        """Raises PeerError, also midway. Over a connection of its own; read no faster than the
        caller takes chunks. Close it (contextlib.aclosing) when leaving early."""
        frames = await self._link(node_id).connect(pb.PURPOSE_CATCH_UP)
        frames.queued_bytes_max = CATCH_UP_QUEUE_BYTES_MAX
        try:
            frames.send(encode_catch_up_request(request))
            while True:
                async with asyncio.timeout(CHUNK_TIMEOUT_S):
                    frame = await frames.receive()
                chunk = decode_chunk(answer_of(frame))
                yield chunk
                if chunk.done:
                    return
        except TimeoutError:
            raise PeerError("TIMEOUT", f"node {node_id} sends no more of the catch-up") from None
        except ConnectionError as error:
            raise PeerError("UNREACHABLE", f"node {node_id}: {error}") from error
        except ValueError as error:
            raise PeerError("CORRUPT", f"node {node_id}: {error}") from error
        finally:
            frames.abort()

    async def open_service(self, node_id: int) -> Frames:
        """A connection on which the node serves a method: its path comes next. Raises PeerError."""
        return await self._link(node_id).open(pb.PURPOSE_SERVICE)

    def trouble(self, node_id: int) -> PeerError | None:
        """Why there is no stream to a known node; None while there is one, or none was tried."""
        link = self._links.get(node_id)
        return link.trouble if link is not None and not link.connected else None

    async def close(self) -> None:
        """Ends streams, calls and connections. No callback comes after it. Idempotent."""
        self.closed = True
        for link in self._links.values():
            link.stop()
        self._links.clear()
        await self.tasks.cancel_and_wait()

    async def connect(self, endpoint: str, node_id: int, purpose: pb.Purpose) -> Frames:
        """A connection that has said hello. Raises PeerError UNREACHABLE."""
        is_stream = purpose == pb.PURPOSE_STREAM
        timeout_s = STREAM_CONNECT_TIMEOUT_S if is_stream else CONNECT_TIMEOUT_S
        try:
            host, port = address_of(endpoint)
        except ValueError as error:
            raise PeerError("UNREACHABLE", f"{endpoint!r} is no address: {error}") from None
        addresses = await self._lookups.addresses(host)
        frames = await connect(addresses, port, timeout_s=timeout_s)
        if self.closed:
            frames.abort()
            raise PeerError("UNREACHABLE", "this node is closing")
        if is_stream or purpose == pb.PURPOSE_CALL:
            frames.give_up_unread()
        frames.send(self.identity.hello(node_id, purpose))
        return frames

    def _link(self, node_id: int) -> _PeerLink:
        """Raises PeerError."""
        link = self._links.get(node_id)
        if link is None:
            raise PeerError("UNREACHABLE", f"nobody told where node {node_id} is")
        return link


class _PeerLink:
    """The stream to one peer, and the connections of calls to it that are idle. `connected` says
    whether `send` may be called; it turns false at once when the stream breaks or gets too far
    behind, and the receiver hears of it soon after."""

    def __init__(self, transport: TcpTransport, node_id: int, endpoint: str) -> None:
        self.node_id = node_id
        self.endpoint = endpoint
        self.connected = False
        self.trouble: PeerError | None = None  # why the latest attempt did not get a stream
        self._transport = transport
        self._stopped = False
        self._frames: Frames | None = None
        self._connections: dict[Frames, None] = {}  # all to the peer
        self._idle: dict[Frames, str] = {}  # of calls, and the cluster id that was told
        self._task = transport.tasks.start(self._run(), name=f"link-{node_id}")

    def send(self, encoded: bytes) -> None:
        frames = self._frames
        if frames is None or not self.connected:
            return  # it overflowed with what was sent just before
        if frames.unsent_bytes + len(encoded) > self._transport.queue_bytes_max:
            self._overflow(frames)
        else:
            frames.send(encoded)

    @property
    def unsent_bytes(self) -> int:
        return 0 if self._frames is None else self._frames.unsent_bytes

    def stop(self) -> None:
        self.connected = False
        self._stopped = True
        self._task.cancel()
        self._abort_all()

    async def connect(self, purpose: pb.Purpose) -> Frames:
        """A connection that has said hello, closed with the others to the peer. Raises PeerError
        UNREACHABLE."""
        frames = await self._transport.connect(self.endpoint, self.node_id, purpose)
        if self._stopped or frames.lost:
            frames.abort()
            raise PeerError("UNREACHABLE", f"node {self.node_id} is not spoken to any more")
        self._connections[frames] = None
        frames.on_lost = lambda: self._forget(frames)
        return frames

    async def open(self, purpose: pb.Purpose) -> Frames:
        """The same when the peer has accepted it. Raises PeerError."""
        frames = await self.connect(purpose)
        accepted = False
        try:
            async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                answer_of(await frames.receive())
            accepted = True
        except TimeoutError:
            raise PeerError("UNREACHABLE", f"{self.endpoint} does not answer") from None
        except ConnectionError as error:
            raise PeerError("UNREACHABLE", f"{self.endpoint}: {error}") from None
        finally:
            if not accepted:
                frames.abort()
        return frames

    def _forget(self, frames: Frames) -> None:
        self._connections.pop(frames, None)
        self._idle.pop(frames, None)

    def _abort_all(self) -> None:
        for frames in list(self._connections):
            frames.abort()

    # --- connections of calls --------------------------------------------------------------------

    def idle_call_connection(self, told: str) -> Frames | None:
        """One on which this node said that it is of the cluster `told`."""
        while self._idle:
            frames, cluster_id = self._idle.popitem()
            if not frames.lost and cluster_id == told:
                return frames
            frames.abort()
        return None

    def keep(self, frames: Frames, told: str) -> bool:
        """For the next call. False if it is not kept."""
        if self._stopped or frames.lost or len(self._idle) >= IDLE_CALL_CONNECTIONS_MAX:
            return False
        self._idle[frames] = told
        return True

    # --- the stream ------------------------------------------------------------------------------

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
        try:
            frames = await self.open(pb.PURPOSE_STREAM)
        except PeerError as error:
            return error
        try:
            await self._use(frames)
        finally:
            frames.abort()
        return None

    async def _use(self, frames: Frames) -> None:
        """Returns when the stream breaks. The receiver hears of the begin and of the end."""
        receiver = self._transport.receiver
        self._frames, self.connected = frames, True
        try:
            receiver.peer_connected(self.node_id)
            await self._watch(frames)
        finally:
            self._frames, self.connected = None, False
            self._abort_all()
            if not self._transport.closed:
                receiver.peer_lost(self.node_id)

    async def _watch(self, frames: Frames) -> None:
        """Returns when the connection is over, refused, or the peer was silent for SILENCE_S: said
        nothing, and took nothing in. The answers come behind all that was sent before, which may
        take long on a slow network; and that a kernel takes in a little more tells nothing for long
        of a process that hangs."""
        silent_s, taken_bytes = 0.0, 0
        while silent_s < SILENCE_S and self.connected:
            frames.send(b"")
            try:
                async with asyncio.timeout(SIGN_S):
                    while True:
                        answer_of(await frames.receive())
                        silent_s = 0.0
            except TimeoutError:
                waiting = frames.unsent_bytes + frames.unacknowledged_bytes()
                taken_before, taken_bytes = taken_bytes, frames.sent_bytes - waiting
                is_taking = waiting > 0 and taken_bytes > taken_before
                silent_s = 0.0 if is_taking else silent_s + SIGN_S
            except (ConnectionError, PeerError):
                return

    def _overflow(self, frames: Frames) -> None:
        """The peer takes less than we send. Break with it: Raft then probes instead of pouring."""
        logger.warning("node %d: %d bytes wait: dropped", self.node_id, frames.unsent_bytes)
        self.connected = False
        frames.abort()

    def _note(self, trouble: PeerError | None) -> None:
        """Says once, not at every attempt, why there is no stream."""
        known, self.trouble = self.trouble, trouble
        if trouble is not None and (known is None or known.code != trouble.code):
            logger.warning("node %d at %s: %s", self.node_id, self.endpoint, trouble)
