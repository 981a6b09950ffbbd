"""The receiving half of the transport: what other nodes' connections ask for.

    identity = Identity(node_id=3, incarnation=..., boot_id=..., cluster_id="" until it is known)
    server = PeerServer(receiver, identity, on_failure=...)
    await server.listen("0.0.0.0:9500")
    ...
    await server.close()

The frames are those of proto/cluster/v1/peer.proto; cluster/wire.py decodes what is in them, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import NoReturn

from google.protobuf.message import DecodeError

from cluster.frames import Frames, address_of
from cluster.identity import GOOD, OPEN_METHODS_PREFIX, Identity, decode_hello, refusal
from cluster.interfaces import CatchUpChunk, Peer, PeerError, Receiver
from cluster.tasks import FailureReader, TaskGroup
from cluster.v1 import peer_pb2 as pb
from cluster.wire import decode_catch_up_request, decode_stream_request, encode_chunk

logger = logging.getLogger(__name__)

# More are closed at once, or refused.
STRANGERS_MAX = 100  # connections that have not said hello
SERVICES_MAX = 1_000  # connections for services
HELLO_TIMEOUT_S = 5.0
PART_S = 1.0  # for the peer to read the last answer
_BACKLOG = 128

ServicesFunction = Callable[[Frames], Awaitable[None]]


class PeerServer:
    """At most one stream a peer: a newer one supersedes what is left of the older, so that nothing
    of a node's former run, or from before a break, is heard after what came later.

    `on_failure` hears of a connection's task that died of a bug."""

    def __init__(
        self, receiver: Receiver, identity: Identity, *, on_failure: FailureReader
    ) -> None:
        self._receiver = receiver
        self._identity = identity
        self._on_failure = on_failure
        self._tasks = TaskGroup("peer server", on_failure=on_failure)
        self._connections: dict[Frames, None] = {}
        self._strangers: dict[Frames, None] = {}
        self._of_peer: dict[int, dict[Frames, None]] = {}  # catch-ups and services
        self._services_now = 0
        self._streams: dict[int, Frames] = {}  # by peer
        self._server: asyncio.Server | None = None
        # Serves a connection that asks for a service, hello said; may raise PeerError.
        self.services: ServicesFunction | None = None
        self._closed = False

    async def listen(self, endpoint: str) -> int:
        """The port. Raises OSError when the address cannot be had."""
        host, port = address_of(endpoint)
        loop = asyncio.get_running_loop()

        def new_connection() -> Frames:
            return Frames(connected=self._connected)

        if host == "::":  # everywhere: asyncio would leave IPv4 out
            dual = socket.has_dualstack_ipv6()
            sock = socket.create_server(
                (host, port), family=socket.AF_INET6, dualstack_ipv6=dual, backlog=_BACKLOG
            )
            self._server = await loop.create_server(new_connection, sock=sock, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(new_connection, host, port, backlog=_BACKLOG)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """End all connections and accept no more. What was received was handed over. Idempotent."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for frames in self._connections:
            frames.abort()
        await self._tasks.cancel_and_wait()

    def _connected(self, frames: Frames) -> None:
        if self._closed or len(self._strangers) >= STRANGERS_MAX:
            frames.abort()
            return
        self._connections[frames] = self._strangers[frames] = None
        task = self._tasks.start(self._serve(frames), name="connection")

        def lost() -> None:
            self._connections.pop(frames, None)
            self._strangers.pop(frames, None)
            task.cancel()

        frames.on_lost = lost

    async def _serve(self, frames: Frames) -> None:
        """One connection, until it is lost (which cancels this) or has what it asked for."""
        try:
            await self._do(await self._greeted(frames), frames)
        except PeerError as error:
            frames.send(refusal(error))
        except ConnectionError:
            pass
        except ValueError as error:
            logger.error("a peer sent what is no message: %s", error)
            frames.send(refusal(PeerError("CORRUPT", str(error))))
        except Exception as error:  # a bug of what was asked for; not worth the node
            logger.exception("a peer's request failed")
            frames.send(refusal(PeerError("INTERNAL", repr(error))))
        await frames.part(within_s=PART_S)

    async def _greeted(self, frames: Frames) -> pb.Hello:
        """Raises PeerError, ValueError, ConnectionError."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                return decode_hello(await frames.receive())
        except TimeoutError:
            raise PeerError("TIMEOUT", "no hello") from None
        finally:
            self._strangers.pop(frames, None)

    async def _do(self, hello: pb.Hello, frames: Frames) -> None:
        """Raises PeerError, ValueError, ConnectionError."""
        match hello.purpose:
            case pb.PURPOSE_STREAM:
                frames.give_up_unread()
                await self._stream(self._identity.admit(hello), frames)
            case pb.PURPOSE_CALL:
                frames.give_up_unread()
                await self._calls(hello, frames)
            case pb.PURPOSE_CATCH_UP:
                with self._while_alive(self._identity.admit(hello), frames):
                    await self._catch_up(frames)
            case pb.PURPOSE_SERVICE if self.services is not None:
                with self._while_alive(self._identity.admit(hello), frames):
                    await self._serve_service(self.services, frames)
            case _:
                raise PeerError("NOT_FOUND", f"purpose {hello.purpose} is not served here")

    @contextlib.contextmanager
    def _while_alive(self, peer: Peer, frames: Frames) -> Iterator[None]:
        """The connection may stand still for long, and says nothing of whether the peer lives: it
        ends with the peer's stream."""
        others = self._of_peer.setdefault(peer.node_id, {})
        others[frames] = None
        try:
            yield
        finally:
            others.pop(frames, None)

    def _stream_lost(self, node_id: int) -> None:
        for frames in list(self._of_peer.pop(node_id, ())):
            frames.abort()

    async def _serve_service(self, services: ServicesFunction, frames: Frames) -> None:
        if self._services_now >= SERVICES_MAX:
            raise PeerError("RESOURCE_EXHAUSTED", f"{SERVICES_MAX} services are served already")
        self._services_now += 1
        try:
            frames.send(GOOD)
            await services(frames)
        finally:
            self._services_now -= 1

    # --- streams ---------------------------------------------------------------------------------

    async def _stream(self, peer: Peer, frames: Frames) -> NoReturn:
        """Raises PeerError CLOSED when a newer stream of the peer is there, ValueError."""
        if (older := self._streams.get(peer.node_id)) is not None:
            older.sink = None
            older.send(refusal(PeerError("CLOSED", "superseded by a newer stream")))
            older.close()
            self._stream_lost(peer.node_id)
        self._streams[peer.node_id] = frames
        receive = self._receiver.receive

        def take(frame: bytes) -> None:
            if not frame:
                frames.send(GOOD)
                return
            try:
                envelopes = decode_stream_request(frame)
            except ValueError as error:
                logger.error("node %d sent what is no message: %s", peer.node_id, error)
                raise
            try:
                for envelope in envelopes:
                    receive(peer, envelope)
            except Exception as error:
                self._on_failure(f"stream of node {peer.node_id}", error)
                raise

        try:
            frames.send(GOOD)
            frames.sink = take
            while True:
                await frames.receive()  # nothing comes here: it ends with the connection
        finally:
            if self._streams.get(peer.node_id) is frames:
                del self._streams[peer.node_id]
                self._stream_lost(peer.node_id)

    # --- calls -----------------------------------------------------------------------------------

    async def _calls(self, hello: pb.Hello, frames: Frames) -> NoReturn:
        """One after another. Raises ValueError."""
        while True:
            try:
                call = pb.CallRequest.FromString(await frames.receive())
            except DecodeError as error:
                raise ValueError(f"no call: {error}") from error
            try:
                is_open = call.method.startswith(OPEN_METHODS_PREFIX)
                peer = self._identity.admit(hello, is_open=is_open)
                body = await self._receiver.call(peer.node_id, call.method, call.body)
            except PeerError as error:
                frames.send(refusal(error))
            else:
                frames.send(GOOD, body)

    # --- catch-ups -------------------------------------------------------------------------------

    async def _catch_up(self, frames: Frames) -> None:
        """Raises PeerError, ValueError."""
        wanted = decode_catch_up_request(await frames.receive())
        # The receiver's iterator holds an engine snapshot: it is closed when the peer goes away.
        async with closing(self._receiver.catch_up(wanted)) as chunks:
            async for chunk in chunks:
                frames.send(GOOD, encode_chunk(chunk))
                await frames.drained()


@contextlib.asynccontextmanager
async def closing(
    chunks: AsyncIterator[CatchUpChunk],
) -> AsyncIterator[AsyncIterator[CatchUpChunk]]:
    """Closes a generator on the way out; other iterators have nothing to close."""
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
