"""A Channel to another node's services over frames (cluster/frames.py), and how such calls are
served. One connection a stream: TCP's flow control is the stream's own.

Only what nodes send on to each other goes here; clients are served over gRPC (serving.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Generic, Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2  # type: ignore[import-untyped]

from cluster.frames import Frames
from cluster.identity import GOOD, answer_of
from cluster.interfaces import PeerError
from cluster.transport import TcpTransport
from quorumq.channel import CallFailed, Channel, Kind, Method, Q, R, RequestStream, ResponseStream
from quorumq.in_process import Handler, StatusOf

NodeChannels = Callable[[int], Channel]  # by node id

_REQUEST, _NO_MORE_REQUESTS = b"\0", b"\1"
_NO_MORE_RESPONSES, _FAILED = b"\2", b"\3"
_DETAILS = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class PeerChannel:
    """quorumq.channel.Channel; streams only."""

    def __init__(self, transport: TcpTransport, node_id: int) -> None:
        self._transport = transport
        self._node_id = node_id
        self._streams: dict[PeerStream[Any, Any], None] = {}
        self._connected: Frames | None = None  # for the next stream

    @property
    def endpoint(self) -> str:
        return f"node {self._node_id}"

    async def ready(self, timeout_s: float) -> None:
        self._disconnect()
        try:
            async with asyncio.timeout(timeout_s):
                self._connected = await self._transport.open_service(self._node_id)
        except PeerError as error:
            raise _failure(error) from None
        except TimeoutError:
            raise _failure(PeerError("TIMEOUT", f"{self.endpoint} does not answer")) from None

    async def unary(self, method: Method[Q, R], request: Q, *, timeout_s: float) -> R:
        raise NotImplementedError("small requests between nodes are peers' calls")

    def server_stream(self, method: Method[Q, R], request: Q) -> ResponseStream[R]:
        return self._stream(method, request)

    def bidi_stream(self, method: Method[Q, R]) -> RequestStream[Q, R]:
        return self._stream(method, None)

    def _stream(self, method: Method[Q, R], request: Q | None) -> PeerStream[Q, R]:
        frames, self._connected = self._connected, None
        stream = PeerStream(self._transport, self._node_id, method, request, frames, self._ended)
        self._streams[stream] = None
        return stream

    async def close(self) -> None:
        self._disconnect()
        for stream in list(self._streams):
            stream.cancel()

    def _ended(self, stream: PeerStream[Any, Any]) -> None:
        self._streams.pop(stream, None)

    def _disconnect(self) -> None:
        frames, self._connected = self._connected, None
        if frames is not None:
            frames.abort()


class PeerStream(Generic[Q, R]):
    """One writer and one reader at a time. Connects when it is first used, if `frames` is None.
    `ended` is told when it is over."""

    def __init__(
        self,
        transport: TcpTransport,
        node_id: int,
        method: Method[Q, R],
        request: Q | None,
        frames: Frames | None,
        ended: Callable[[PeerStream[Any, Any]], None],
    ) -> None:
        self._transport = transport
        self._node_id = node_id
        self._method = method
        self._request = request  # of a server stream
        self._ended = ended
        self._frames: Frames | None = None
        self._opening = asyncio.Lock()
        self._cancelled = False
        if frames is not None:
            self._begin(frames)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        frames = self._frames or await self._open()
        try:
            frame = await frames.receive()
            if frame[:1] == GOOD:
                return self._method.decode_response(frame[1:])
            if frame[:1] == _FAILED:
                self._end()
                raise _decode_status(frame[1:])
            if frame != _NO_MORE_RESPONSES:
                answer_of(frame)
        except PeerError as error:
            self._end()
            raise _failure(error) from None
        except ConnectionError as error:
            raise self._broken(str(error)) from None
        except DecodeError as error:
            self._end()
            raise CallFailed(grpc.StatusCode.INTERNAL, f"no response: {error}") from None
        self._end()
        raise StopAsyncIteration

    async def write(self, request: Q) -> None:
        frames = self._frames or await self._open()
        frames.send(_REQUEST, self._method.encode_request(request))
        try:
            await frames.drained()
        except ConnectionError as error:
            raise self._broken(str(error)) from None

    async def done_writing(self) -> None:
        frames = self._frames or await self._open()
        frames.send(_NO_MORE_REQUESTS)

    def cancel(self) -> None:
        self._cancelled = True
        self._end()

    async def _open(self) -> Frames:
        """Raises CallFailed."""
        async with self._opening:
            if self._frames is None:
                try:
                    self._begin(await self._transport.open_service(self._node_id))
                except PeerError as error:
                    self._end()
                    raise _failure(error) from None
            assert self._frames is not None
            if self._cancelled:
                raise self._broken("cancelled")
            return self._frames

    def _begin(self, frames: Frames) -> None:
        self._frames = frames
        frames.send(self._method.path.encode())
        if self._request is not None:
            frames.send(_REQUEST, self._method.encode_request(self._request))

    def _end(self) -> None:
        self._ended(self)
        if self._frames is not None:
            self._frames.abort()

    def _broken(self, why: str) -> CallFailed:
        self._end()
        if self._cancelled:
            return CallFailed(grpc.StatusCode.CANCELLED, "the stream was cancelled")
        return CallFailed(grpc.StatusCode.UNAVAILABLE, f"node {self._node_id}: {why}")


class PeerServices:
    """What cluster.peer_server.PeerServer calls for connections that ask for a service."""

    def __init__(self, handlers: Mapping[str, Handler], *, status_of: StatusOf) -> None:
        self._handlers = handlers
        self._status_of = status_of

    async def __call__(self, frames: Frames) -> None:
        """Raises PeerError, ConnectionError."""
        path = (await frames.receive()).decode(errors="replace")
        handler = self._handlers.get(path)
        if handler is None or handler.method.kind is Kind.UNARY:
            raise PeerError("UNIMPLEMENTED", f"no stream {path}")
        call = PeerCall(frames, handler.method)
        requests = _requests(frames, handler.method)
        try:
            if handler.method.kind is Kind.BIDI_STREAM:
                await handler.function(requests, call)
            else:
                async for request in requests:
                    async with aclosing(handler.function(request, call)) as responses:
                        async for response in responses:
                            await call.write(response)
                    break
        except (ConnectionError, PeerError):
            raise
        except Exception as error:  # becomes the stream's end; bugs are logged by status_of
            frames.send(_FAILED, _encode_status(self._status_of(error)))
        else:
            frames.send(_NO_MORE_RESPONSES)


class PeerCall:
    """node.services.producing.StreamCall."""

    def __init__(self, frames: Frames, method: Method[Any, Any]) -> None:
        self._frames = frames
        self._method = method

    def time_remaining(self) -> float | None:
        return None

    async def write(self, response: Any) -> None:
        self._frames.send(GOOD, self._method.encode_response(response))
        await self._frames.drained()


async def _requests(frames: Frames, method: Method[Any, Any]) -> AsyncIterator[Any]:
    while (frame := await frames.receive()) != _NO_MORE_REQUESTS:
        if frame[:1] != _REQUEST:
            raise PeerError("CORRUPT", f"a request that begins with {frame[:1]!r}")
        try:
            request = method.decode_request(frame[1:])
        except DecodeError as error:
            raise PeerError("CORRUPT", f"no {method.path} request: {error}") from error
        yield request


def _encode_status(failure: CallFailed) -> bytes:
    for name, value in failure.trailers:
        if name == _DETAILS and isinstance(value, bytes):
            return value
    status = status_pb2.Status(code=failure.code.value[0], message=failure.details)
    encoded: bytes = status.SerializeToString()
    return encoded


def _decode_status(encoded: bytes) -> CallFailed:
    try:
        status = status_pb2.Status.FromString(encoded)
    except DecodeError as error:
        return CallFailed(grpc.StatusCode.INTERNAL, f"no status: {error}")
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return CallFailed(code, status.message, ((_DETAILS, encoded),))


def _failure(error: PeerError) -> CallFailed:
    """The peer's word as the status that gRPC would have."""
    if error.code in grpc.StatusCode.__members__:
        return CallFailed(grpc.StatusCode[error.code], error.message)
    if error.code in ("UNREACHABLE", "NOT_FOUND", "CLOSED", "TIMEOUT"):
        return CallFailed(grpc.StatusCode.UNAVAILABLE, str(error))
    return CallFailed(grpc.StatusCode.INTERNAL, str(error))
