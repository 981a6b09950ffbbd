"""A Channel over grpc.aio."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, Self

import grpc
import grpc.aio

from quorumq.channel import CallFailed, Method, Q, R, RequestStream, ResponseStream
from quorumq.errors import Metadata

MESSAGE_BYTES_MAX = 20 * 1024 * 1024  # a batch of 16 MiB and what stands around it

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # Nodes allow a ping every 10 s, also without calls.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A node that comes back is to be noticed soon: gRPC's own backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),  # also bounds one attempt to connect
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Channels to one endpoint do not share a connection: closing one must not break another.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # the library retries, with the same identity
)


class GrpcChannel:
    """One connection to one `host:port`, made when first used and again when it broke."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        self._calls: dict[str, Any] = {}  # a multicallable of each path in use

    @property
    def endpoint(self) -> str:
        return self._endpoint

    async def ready(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    state = self._channel.get_state(try_to_connect=True)
                    if state == grpc.ChannelConnectivity.READY:
                        return
                    if state == grpc.ChannelConnectivity.SHUTDOWN:
                        raise CallFailed(grpc.StatusCode.CANCELLED, "the channel is closed")
                    # An attempt was refused a moment ago; gRPC makes the next one by itself. To
                    # wait for that would be to wait while others could be asked: a refusal takes
                    # so little time that nobody sees CONNECTING.
                    if state == grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise self._no_connection()
                    await self._channel.wait_for_state_change(state)
        except TimeoutError:
            raise self._no_connection() from None

    def _no_connection(self) -> CallFailed:
        return CallFailed(grpc.StatusCode.UNAVAILABLE, f"no connection to {self._endpoint}")

    async def unary(self, method: Method[Q, R], request: Q, *, timeout_s: float) -> R:
        call = self._calls.get(method.path)
        if call is None:
            call = self._calls[method.path] = self._channel.unary_unary(
                method.path,
                request_serializer=method.encode_request,
                response_deserializer=method.decode_response,
            )
        try:
            response: R = await call(request, timeout=timeout_s)
            return response
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from None
        except grpc.aio.UsageError as error:
            raise CallFailed(grpc.StatusCode.CANCELLED, str(error)) from None

    def server_stream(self, method: Method[Q, R], request: Q) -> ResponseStream[R]:
        call = self._channel.unary_stream(
            method.path,
            request_serializer=method.encode_request,
            response_deserializer=method.decode_response,
        )
        return _Responses(call(request))

    def bidi_stream(self, method: Method[Q, R]) -> RequestStream[Q, R]:
        call = self._channel.stream_stream(
            method.path,
            request_serializer=method.encode_request,
            response_deserializer=method.decode_response,
        )
        return _Requests[Q, R](call())

    async def close(self) -> None:
        await self._channel.close()


class _Responses(Generic[R]):
    def __init__(self, call: Any) -> None:
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        call = self._call
        try:
            response: R = await call.read()
            if response is not grpc.aio.EOF:
                return response
            code = await call.code()
            if code == grpc.StatusCode.OK:
                raise StopAsyncIteration
            details, trailers = await call.details(), await call.trailing_metadata()
            raise CallFailed(code, details or "", _pairs(trailers))
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from None
        except asyncio.CancelledError:
            # grpc.aio raises this too when the call itself was cancelled: tell the two apart.
            if call.cancelled() and not _task_is_cancelled():
                raise CallFailed(grpc.StatusCode.CANCELLED, "the stream was cancelled") from None
            raise

    def cancel(self) -> None:
        self._call.cancel()


class _Requests(_Responses[R], Generic[Q, R]):
    async def write(self, request: Q) -> None:
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from None
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            # The call ended between our look and the write.
            raise CallFailed(grpc.StatusCode.UNAVAILABLE, str(error)) from None
        except asyncio.CancelledError:
            if self._call.cancelled() and not _task_is_cancelled():
                raise CallFailed(grpc.StatusCode.CANCELLED, "the stream was cancelled") from None
            raise

    async def done_writing(self) -> None:
        try:
            await self._call.done_writing()
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from None


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _failure(error: grpc.aio.AioRpcError) -> CallFailed:
    return CallFailed(error.code(), error.details() or "", _pairs(error.trailing_metadata()))


def _pairs(metadata: Any) -> Metadata:
    return tuple((str(name), value) for name, value in (metadata or ()))
