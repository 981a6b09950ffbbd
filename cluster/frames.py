"""Frames over one TCP connection between two nodes: 4 bytes of length, little-endian, then as many
bytes. Both ends; what the frames say is transport.py's and peer_server.py's.

Why not gRPC between nodes: each acknowledgement waits for four messages, and one there and one back
take 0.21 to 0.30 ms over a stream of grpc.aio, 0.03 ms as frames (measured on two cores). Clients
are served by gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import sys
import termios
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from cluster.interfaces import PeerError

FRAME_BYTES_MAX = 256 << 20
_HEADER_BYTES = 4
_JOINED_BYTES_MAX = 16 << 10  # below it copying a frame is cheaper than a second buffer
_QUEUED_BYTES_MAX = 256 << 10
# How long the peer's kernel may leave bytes unanswered, or the peer unread: a slow reader is not a
# dead one. Connections that are always read are given up sooner, see `give_up_unread`.
_UNREAD_MS, _SILENCE_MS = 300_000, 2_000

Sink = Callable[[bytes], None]


class Frames(asyncio.Protocol):
    """What comes in is queued for `receive`; or handed to `sink`, if set, within the event loop's
    callback. A sink that raises ends the connection; its error is what `why_lost` tells. When
    `queued_bytes_max` are received and not taken, nothing more is read.

    `on_lost` is called once, when the connection is over, whoever ended it. One task may wait in
    `receive` and another one in `drained`."""

    def __init__(self, *, connected: Callable[[Frames], None] | None = None) -> None:
        self.sink: Sink | None = None
        self.on_lost: Callable[[], None] | None = None
        self.lost = False
        self.why_lost: BaseException | None = None
        self.queued_bytes_max = _QUEUED_BYTES_MAX
        self.sent_bytes = 0
        self._connected = connected
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._wanted = 0  # bytes that the buffer must hold before looking at it again
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._reading_paused = False
        self._writing_paused = False
        self._receiver: asyncio.Future[None] | None = None  # the task that waits for a frame
        self._sender: asyncio.Future[None] | None = None  # the one that waits for room

    # --- sending ---------------------------------------------------------------------------------

    def send(self, *parts: bytes) -> None:
        """One frame, made of the parts. Never blocks; dropped when the connection is over."""
        transport = self._transport
        if self.lost or transport is None:
            return
        size = sum(map(len, parts))
        assert size <= FRAME_BYTES_MAX, f"a frame of {size} bytes"
        self.sent_bytes += _HEADER_BYTES + size
        header = size.to_bytes(_HEADER_BYTES, "little")
        if size <= _JOINED_BYTES_MAX:
            transport.write(b"".join((header, *parts)))
        else:
            transport.writelines((header, *parts))

    @property
    def unsent_bytes(self) -> int:
        """Handed over by `send` and not taken by the network yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def unacknowledged_bytes(self) -> int:
        """Taken by this machine's network and not yet by the peer's; 0 where nobody can tell."""
        if self.lost or self._transport is None:
            return 0
        descriptor = self._transport.get_extra_info("socket").fileno()
        try:
            answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(answer, sys.byteorder)

    async def drained(self) -> None:
        """Returns when little is unsent. Raises ConnectionError when the connection is over."""
        while self._writing_paused and not self.lost:
            assert self._sender is None, "two tasks wait for room"
            self._sender = asyncio.get_running_loop().create_future()
            try:
                await self._sender
            finally:
                self._sender = None
        self._check()

    def give_up_unread(self) -> None:
        """The peer reads this connection at all times: one that does not is gone."""
        self._set_unread_ms(_SILENCE_MS)

    async def part(self, *, within_s: float) -> None:
        """Close when the peer has read what was sent and closed, or the time is over. To close with
        unread bytes would be a reset, which may overtake what was sent."""
        if self.lost or self._transport is None:
            return
        self.sink = _discard
        self._queue.clear()
        self._queued_bytes = 0
        self._resume_reading()
        self._transport.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.lost:
                    await self._news()
        self.close()

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
        if self._queued_bytes <= self.queued_bytes_max:
            self._resume_reading()
        return frame

    def _resume_reading(self) -> None:
        if self._reading_paused and not self.lost:
            self._reading_paused = False
            assert self._transport is not None
            self._transport.resume_reading()

    def _take(self, frame: bytes) -> None:
        if self.sink is not None:
            self.sink(frame)
            return
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._queued_bytes > self.queued_bytes_max and not self._reading_paused:
            self._reading_paused = True
            assert self._transport is not None
            self._transport.pause_reading()
        _wake(self._receiver)

    def _check(self) -> None:
        if self.lost:
            raise ConnectionError(str(self.why_lost or "the peer closed the connection"))

    async def _news(self) -> None:
        assert self._receiver is None, "two tasks wait for a frame"
        self._receiver = asyncio.get_running_loop().create_future()
        try:
            await self._receiver
        finally:
            self._receiver = None

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._keep_alive()
        if self._connected is not None:
            self._connected(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.why_lost = self.why_lost or error
        self._buffer.clear()
        _wake(self._receiver)
        _wake(self._sender)
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
        _wake(self._sender)

    # --- the socket ------------------------------------------------------------------------------

    def _keep_alive(self) -> None:
        """Dead peers of idle connections are found out. The loop sets TCP_NODELAY itself."""
        self._set(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            self._set(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
            self._set(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            self._set(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
        self._set_unread_ms(_UNREAD_MS)

    def _set_unread_ms(self, ms: int) -> None:
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self._set(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ms)

    def _set(self, level: int, option: int, value: int) -> None:
        if not self.lost and self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(level, option, value)


async def connect(addresses: Sequence[str], port: int, *, timeout_s: float) -> Frames:
    """To the first of the addresses that takes the connection; `timeout_s` for each. Raises
    PeerError UNREACHABLE."""
    loop = asyncio.get_running_loop()
    trouble = "no address"
    for address in addresses:
        try:
            async with asyncio.timeout(timeout_s):
                _, frames = await loop.create_connection(Frames, address, port)
            return frames
        except TimeoutError:
            trouble = f"{address}:{port} did not take the connection"
        except (OSError, OverflowError) as error:
            trouble = f"{address}:{port}: {error}"
    raise PeerError("UNREACHABLE", trouble)


def address_of(endpoint: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`. Raises ValueError."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def _discard(_frame: bytes) -> None: ...


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
