"""Frames over one TCP connection between two nodes: 4 bytes of length, little-endian, then as many
bytes. Both ends; what the frames say is transport.py's and peer_server.py's.

Why not gRPC between nodes: a message of grpc.aio costs its sender about 150 us and its receiver
100 us, and each acknowledgement waits for four of them; a frame costs about 15 us (measured on two
cores: 0.03 ms there and back, 0.21 with gRPC). Clients are served by gRPC.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from cluster.interfaces import PeerError

FRAME_BYTES_MAX = 256 << 20
_HEADER_BYTES = 4
_JOINED_BYTES_MAX = 16 << 10  # below it copying a frame is cheaper than a second buffer
_QUEUED_BYTES_MAX = 4 << 20  # received and not taken: beyond it nothing more is read
# A peer that fell silent without a word (power, network): unanswered bytes are given up after this,
# and an idle connection is asked each second. Without both, TCP goes on for minutes.
_SILENCE_MS = 2_000

Sink = Callable[[bytes], None]


class Frames(asyncio.Protocol):
    """What comes in is queued for `receive`; or handed to `sink`, if set, within the event loop's
    callback. A sink that raises ends the connection; its error is what `why_lost` tells.

    `on_lost` is called once, when the connection is over, whoever ended it."""

    def __init__(self, *, connected: Callable[[Frames], None] | None = None) -> None:
        self.sink: Sink | None = None
        self.on_lost: Callable[[], None] | None = None
        self.lost = False
        self.why_lost: BaseException | None = None
        self.heard = 0  # frames that came
        self._connected = connected
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._wanted = 0  # bytes that the buffer must hold before looking at it again
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._reading_paused = False
        self._writing_paused = False
        self._woken: asyncio.Future[None] | None = None

    # --- sending ---------------------------------------------------------------------------------

    def send(self, *parts: bytes) -> None:
        """One frame, made of the parts. Never blocks; dropped when the connection is over."""
        transport = self._transport
        if self.lost or transport is None:
            return
        size = sum(map(len, parts))
        assert size <= FRAME_BYTES_MAX, f"a frame of {size} bytes"
        header = size.to_bytes(_HEADER_BYTES, "little")
        if size <= _JOINED_BYTES_MAX:
            transport.write(b"".join((header, *parts)))
        else:
            transport.writelines((header, *parts))

    @property
    def unsent_bytes(self) -> int:
        """Handed over by `send` and not taken by the network yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    async def drained(self) -> None:
        """Returns when little is unsent. Raises ConnectionError when the connection is over."""
        while self._writing_paused and not self.lost:
            await self._news()
        self._check()

    def close(self) -> None:
        """What was sent still leaves."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- receiving -------------------------------------------------------------------------------

    async def receive(self) -> bytes:
        """The next frame. Raises ConnectionError when the connection is over and all is taken. For
        one task at a time."""
        while not self._queue:
            self._check()
            await self._news()
        frame = self._queue.popleft()
        self._queued_bytes -= len(frame)
        if self._reading_paused and self._queued_bytes <= _QUEUED_BYTES_MAX and not self.lost:
            self._reading_paused = False
            assert self._transport is not None
            self._transport.resume_reading()
        return frame

    def _take(self, frame: bytes) -> None:
        self.heard += 1
        if self.sink is not None:
            self.sink(frame)
            return
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._queued_bytes > _QUEUED_BYTES_MAX and not self._reading_paused:
            self._reading_paused = True
            assert self._transport is not None
            self._transport.pause_reading()
        self._wake()

    def _check(self) -> None:
        if self.lost:
            raise ConnectionError(str(self.why_lost or "the peer closed the connection"))

    async def _news(self) -> None:
        assert self._woken is None, "two tasks wait at one connection"
        self._woken = asyncio.get_running_loop().create_future()
        try:
            await self._woken
        finally:
            self._woken = None

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        _keep_alive(transport.get_extra_info("socket"))
        if self._connected is not None:
            self._connected(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.why_lost = self.why_lost or error
        self._buffer.clear()
        self._wake()
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        try:
            at = self._split(data)
        except Exception as error:  # the sink's; told by why_lost
            self.why_lost = error
            self.abort()
            return
        if at < len(data):
            self._buffer += data[at:] if at else data

    def _split(self, data: bytes) -> int:
        """Hand over the whole frames; where the rest begins."""
        at, end = 0, len(data)
        while not self.lost:
            begin = at + _HEADER_BYTES
            size = int.from_bytes(data[at:begin], "little") if begin <= end else 0
            if size > FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {size} bytes")
            self._wanted = _HEADER_BYTES + size
            if begin + size > end:
                break
            at = begin + size
            self._take(data[begin:at])
        return at

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake()


async def connect(endpoint: str, *, timeout_s: float) -> Frames:
    """Raises PeerError UNREACHABLE."""
    host, port = address_of(endpoint)
    try:
        async with asyncio.timeout(timeout_s):
            _, frames = await asyncio.get_running_loop().create_connection(Frames, host, port)
    except TimeoutError:
        raise PeerError("UNREACHABLE", f"{endpoint} did not take the connection") from None
    except OSError as error:
        raise PeerError("UNREACHABLE", f"{endpoint}: {error.strerror or error}") from None
    return frames


def address_of(endpoint: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def _keep_alive(sock: socket.socket) -> None:
    """The event loop sets TCP_NODELAY itself."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
