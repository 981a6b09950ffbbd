"""A Channel straight to handlers in the same process: no gRPC, no sockets, no threads, and on
virtual time when the loop is. Messages still travel as bytes, so that a node's own twins of the
public messages meet what clients really send.

    network = InProcessNetwork()
    server = network.serve("node-1:9000", handlers)
    await quorumq.connect("node-1:9000", channels=network.channel)

A handler is what a grpc.aio server calls, `call` being an InProcessCall here and a ServicerContext
there:

    unary           async def produce(request, call) -> response
    server stream   async def read(request, call) -> AsyncIterator[response]      (a generator)
    bidi stream     async def consume(requests, call) -> AsyncIterator[response]  (a generator), or
                    a coroutine that answers by `await call.write(response)`
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Self

import grpc

from quorumq.channel import CallFailed, Kind, Method, Q, R, RequestStream, ResponseStream
from quorumq.errors import Metadata
from quorumq.tasks import Tasks

_PIPE_MESSAGES_MAX = 64  # then `write` waits, as a transport's flow control does

StatusOf = Callable[[Exception], CallFailed]


@dataclass(frozen=True, slots=True)
class Handler:
    """What answers one method. `function` is of the shape that the method's kind asks for."""

    method: Method[Any, Any]
    function: Callable[..., Any]


class InProcessCall:
    """What a handler may ask and do: the part of grpc.aio.ServicerContext that services need."""

    def __init__(self, deadline: float | None, answers: _Pipe, method: Method[Any, Any]) -> None:
        self._deadline = deadline
        self._answers = answers
        self._method = method

    def time_remaining(self) -> float | None:
        """Seconds; None = no deadline."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    def invocation_metadata(self) -> Metadata:
        return ()

    def peer(self) -> str:
        return "in-process"

    async def write(self, response: Any) -> None:
        await self._answers.put(self._method.encode_response(response))

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        raise CallFailed(code, details, trailing_metadata)


class InProcessNetwork:
    """Servers by endpoint. `latency_s`: how long a message takes to or from an endpoint, asked for
    each message; messages of one stream never overtake each other."""

    def __init__(self, latency_s: Callable[[str], float] = lambda _endpoint: 0.0) -> None:
        self.latency_s = latency_s
        self._servers: dict[str, InProcessServer] = {}

    def serve(
        self, endpoint: str, handlers: Mapping[str, Handler], *, status_of: StatusOf | None = None
    ) -> InProcessServer:
        """Serve there, in place of what served there before."""
        server = InProcessServer(handlers, status_of or _unknown)
        self._servers[endpoint] = server
        return server

    def channel(self, endpoint: str) -> InProcessChannel:
        return InProcessChannel(self, endpoint)

    def server(self, endpoint: str) -> InProcessServer | None:
        """What can be reached there now."""
        server = self._servers.get(endpoint)
        return server if server is not None and server.reachable else None


class InProcessServer:
    """Handlers and the calls at work on them. `reachable`: whether new calls get in."""

    def __init__(self, handlers: Mapping[str, Handler], status_of: StatusOf) -> None:
        self.handlers = handlers
        self.reachable = True
        self._status_of = status_of
        self._calls: dict[_Call, None] = {}
        self._tasks = Tasks(self._failed)

    def cut(self) -> None:
        """Break all connections, as a crash does, and let no new ones in until `mend`."""
        self.reachable = False
        for call in list(self._calls):
            call.break_off(CallFailed(grpc.StatusCode.UNAVAILABLE, "connection reset"))

    def mend(self) -> None:
        self.reachable = True

    async def stop(self) -> None:
        """`cut`, and wait for the handlers' end."""
        self.cut()
        await self._tasks.close()

    def start(self, call: _Call, deadline: float | None) -> None:
        self._calls[call] = None
        call.task = self._tasks.start(self._run(call, deadline), name=call.method.path)

    async def _run(self, call: _Call, deadline: float | None) -> None:
        try:
            await self._answer(call, deadline)
        except CallFailed as failure:
            call.answers.fail(failure)
        except Exception as error:
            call.answers.fail(self._status_of(error))
        else:
            call.answers.end()
        finally:
            self._calls.pop(call, None)
            call.answers.fail(CallFailed(grpc.StatusCode.CANCELLED, "the handler was cancelled"))

    async def _answer(self, call: _Call, deadline: float | None) -> None:
        handler = self.handlers.get(call.method.path)
        if handler is None:
            raise CallFailed(grpc.StatusCode.UNIMPLEMENTED, f"no method {call.method.path}")
        method = handler.method
        context = InProcessCall(deadline, call.answers, method)
        if method.kind is Kind.BIDI_STREAM:
            result = handler.function(_Requests(call.requests, method), context)
        else:
            first = await call.requests.take()
            assert first is not None, f"{method.path} without a request"
            request = method.decode_request(first)
            result = handler.function(request, context)
        if method.kind is Kind.UNARY:
            await context.write(await result)
        elif hasattr(result, "__aiter__"):
            async with aclosing(result):
                async for response in result:
                    await context.write(response)
        else:
            await result

    def _failed(self, name: str, error: BaseException) -> None:
        raise AssertionError(f"the task of {name} reads its own exceptions") from error


class InProcessChannel:
    def __init__(self, network: InProcessNetwork, endpoint: str) -> None:
        self._network = network
        self._endpoint = endpoint
        self._calls: dict[_Call, None] = {}
        self._closed = False

    @property
    def endpoint(self) -> str:
        return self._endpoint

    async def ready(self, timeout_s: float) -> None:
        await asyncio.sleep(2 * self._network.latency_s(self._endpoint))  # one round trip
        if self._network.server(self._endpoint) is None:
            raise self._no_connection()

    async def unary(self, method: Method[Q, R], request: Q, *, timeout_s: float) -> R:
        call = self._begin(method, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await call.requests.put(method.encode_request(request))
                call.requests.end()
                answer = await call.answers.take()
        except TimeoutError:
            raise CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        finally:
            call.cancel()
            self._calls.pop(call, None)
        if answer is None:
            raise CallFailed(grpc.StatusCode.INTERNAL, "the handler gave no answer")
        return method.decode_response(answer)

    def server_stream(self, method: Method[Q, R], request: Q) -> ResponseStream[R]:
        call = self._begin(method, None)
        call.requests.put_nowait(method.encode_request(request))
        call.requests.end()
        return _Stream(call, method, self._calls)

    def bidi_stream(self, method: Method[Q, R]) -> RequestStream[Q, R]:
        return _Stream(self._begin(method, None), method, self._calls)

    async def close(self) -> None:
        self._closed = True
        for call in list(self._calls):
            call.cancel()

    def _begin(self, method: Method[Any, Any], timeout_s: float | None) -> _Call:
        latency_s = self._network.latency_s
        call = _Call(method, lambda: latency_s(self._endpoint))
        server = self._network.server(self._endpoint)
        if self._closed:
            call.break_off(CallFailed(grpc.StatusCode.CANCELLED, "the channel is closed"))
        elif server is None:
            call.break_off(self._no_connection())
        else:
            now = asyncio.get_running_loop().time()
            server.start(call, None if timeout_s is None else now + timeout_s)
            self._calls[call] = None
        return call

    def _no_connection(self) -> CallFailed:
        return CallFailed(grpc.StatusCode.UNAVAILABLE, f"no connection to {self._endpoint}")


class _Call:
    """Both directions of one call, as both ends see them."""

    def __init__(self, method: Method[Any, Any], latency_s: Callable[[], float]) -> None:
        self.method = method
        self.requests = _Pipe(latency_s)
        self.answers = _Pipe(latency_s)
        self.task: asyncio.Task[Any] | None = None

    def cancel(self) -> None:
        self.break_off(CallFailed(grpc.StatusCode.CANCELLED, "the call was cancelled"))

    def break_off(self, failure: CallFailed) -> None:
        """What is under way is lost; both ends learn at once."""
        self.requests.lose(failure)
        self.answers.lose(failure)
        if self.task is not None:
            self.task.cancel()


class _Stream(Generic[Q, R]):
    def __init__(self, call: _Call, method: Method[Q, R], calls: dict[_Call, None]) -> None:
        self._call = call
        self._method = method
        self._calls = calls

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        try:
            answer = await self._call.answers.take()
        except CallFailed:
            self._calls.pop(self._call, None)
            raise
        if answer is None:
            self._calls.pop(self._call, None)
            raise StopAsyncIteration
        return self._method.decode_response(answer)

    async def write(self, request: Q) -> None:
        await self._call.requests.put(self._method.encode_request(request))

    async def done_writing(self) -> None:
        self._call.requests.end()

    def cancel(self) -> None:
        self._call.cancel()
        self._calls.pop(self._call, None)


class _Pipe:
    """One direction of a call: bytes in order, each a latency after it was put."""

    def __init__(self, latency_s: Callable[[], float]) -> None:
        self._latency_s = latency_s
        self._messages: deque[tuple[float, bytes]] = deque()
        self._last_at = 0.0
        self._ended = False
        self._failure: CallFailed | None = None
        self._changed: list[asyncio.Future[None]] = []  # who waits for what is in it to change

    async def put(self, message: bytes) -> None:
        while len(self._messages) >= _PIPE_MESSAGES_MAX and self._failure is None:
            await self._change()
        self.put_nowait(message)
        await asyncio.sleep(0)  # a real write gives others a turn

    def put_nowait(self, message: bytes) -> None:
        if self._failure is not None:
            raise _again(self._failure)
        if self._ended:
            raise CallFailed(grpc.StatusCode.CANCELLED, "written after the end")
        now = asyncio.get_running_loop().time()
        self._last_at = max(self._last_at, now + self._latency_s())
        self._messages.append((self._last_at, message))
        self._tell()

    def end(self) -> None:
        """No more will come; what was put still arrives."""
        self._ended = True
        self._tell()

    def fail(self, failure: CallFailed) -> None:
        """Like `end`, but then the reader gets `failure`. The first end counts."""
        if not self._ended and self._failure is None:
            self._failure = failure
            self._tell()

    def lose(self, failure: CallFailed) -> None:
        """The same at once, and what has not arrived yet never does."""
        if self._ended and not self._messages:
            return
        self._messages.clear()
        self._failure = self._failure or failure
        self._tell()

    async def take(self) -> bytes | None:
        """The next message; None after the end."""
        loop = asyncio.get_running_loop()
        while True:
            while self._messages:
                wait_s = self._messages[0][0] - loop.time()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                    continue  # it may have been lost meanwhile
                message = self._messages.popleft()[1]
                self._tell()
                return message
            if self._failure is not None:
                raise _again(self._failure)
            if self._ended:
                return None
            await self._change()

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        await waiter

    def _tell(self) -> None:
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Requests(Generic[Q]):
    """What a handler iterates over. No generator: one left half-way is finalised by the garbage
    collector, at a moment that differs from run to run."""

    def __init__(self, requests: _Pipe, method: Method[Q, Any]) -> None:
        self._requests = requests
        self._method = method

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Q:
        request = await self._requests.take()
        if request is None:
            raise StopAsyncIteration
        return self._method.decode_request(request)


def _again(failure: CallFailed) -> CallFailed:
    """A fresh exception each time: one that is raised twice collects both tracebacks."""
    return CallFailed(failure.code, failure.details, failure.trailers)


def _unknown(error: Exception) -> CallFailed:
    return CallFailed(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")
