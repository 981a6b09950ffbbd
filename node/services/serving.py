"""Handlers of services as handlers of a grpc.aio server: codecs, statuses, and how many calls there
may be at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from node.metrics import NodeCounters
from node.services.errors import Refused, reason_of, refused_of, status_of
from quorumq.channel import CallFailed, Kind, Method
from quorumq.grpc_channel import MESSAGE_BYTES_MAX
from quorumq.in_process import Handler

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # a port in use is an error
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 3),
)

_QUIET_S = 0.05

_Context = grpc.aio.ServicerContext[Any, Any]


class Serving:
    """Wraps handlers, each call counted; above `calls_max` calls are refused with THROTTLED."""

    def __init__(self, counters: NodeCounters, *, calls_max: int) -> None:
        self._counters = counters
        self._calls_max = calls_max
        self._begun = 0

    def generic_handlers(self, handlers: Mapping[str, Handler]) -> list[grpc.GenericRpcHandler]:
        """One of each service in `handlers`, which are by path."""
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for path, handler in handlers.items():
            _, service, name = path.split("/")
            services.setdefault(service, {})[name] = self._method_handler(handler)
        return [
            grpc.method_handlers_generic_handler(service, methods)
            for service, methods in services.items()
        ]

    def _method_handler(self, handler: Handler) -> grpc.RpcMethodHandler[Any, Any]:
        method: Method[Any, Any] = handler.method
        codecs = (method.decode_request, method.encode_response)
        match method.kind:
            case Kind.UNARY:
                return grpc.unary_unary_rpc_method_handler(self._unary(handler.function), *codecs)
            case Kind.SERVER_STREAM:
                behaviour = self._server_stream(handler.function)
                return grpc.unary_stream_rpc_method_handler(behaviour, *codecs)
            case Kind.BIDI_STREAM:
                return grpc.stream_stream_rpc_method_handler(self._bidi(handler.function), *codecs)

    def _unary(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def behaviour(request: Any, context: _Context) -> Any:
            self._enter()
            try:
                self._check_room()
                return await function(request, context)
            except Exception as failure:  # becomes the call's status; bugs are logged there
                await self._abort(context, failure)
            finally:
                self._counters.calls_now -= 1

        return behaviour

    def _server_stream(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def behaviour(request: Any, context: _Context) -> AsyncIterator[Any]:
            self._enter()
            try:
                self._check_room()
                async with aclosing(function(request, context)) as responses:
                    async for response in responses:
                        yield response
            except Exception as failure:
                await self._abort(context, failure)
            finally:
                self._counters.calls_now -= 1

        return behaviour

    def _bidi(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def behaviour(requests: AsyncIterator[Any], context: _Context) -> None:
            self._enter()
            try:
                self._check_room()
                await function(requests, context)
            except Exception as failure:
                await self._abort(context, failure)
            finally:
                self._counters.calls_now -= 1

        return behaviour

    async def fall_quiet(self, *, within_s: float) -> None:
        """Returns when no call has begun for a moment, or the time is up. A gRPC server that is
        stopped cancels the calls that it has not looked at yet: their callers would not know that
        nothing was done."""
        loop = asyncio.get_running_loop()
        until, seen = loop.time() + within_s, -1
        while seen != self._begun and loop.time() < until:
            seen = self._begun
            await asyncio.sleep(_QUIET_S)

    def _enter(self) -> None:
        self._begun += 1
        self._counters.calls_now += 1

    def _check_room(self) -> None:
        if self._counters.calls_now > self._calls_max:
            self._counters.throttled_requests += 1
            raise Refused("THROTTLED", f"{self._calls_max} calls already", retry_after_ms=1_000)

    async def _abort(self, context: _Context, failure: Exception) -> None:
        if not isinstance(failure, CallFailed):
            refused = refused_of(failure)
            self._counters.count_error(reason_of(refused.error))
            failure = status_of(refused)
        assert isinstance(failure, CallFailed)
        await context.abort(failure.code, failure.details, failure.trailers)
