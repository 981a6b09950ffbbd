"""A pipelined ProduceStream to one node: requests out in order, each answer to its request.

Generic over the messages, so that a node forwards to a leader with the same class and its own
opaque twins: it tells how a request gets its id and how an answer tells it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic

from quorumq.channel import CallFailed, Channel, Method, Q, R, RequestStream
from quorumq.errors import ConnectionLost, QuorumqError, ResourceExhausted, Unreachable, from_status
from quorumq.tasks import Tasks

Done = Callable[[R | QuorumqError], None]

OUTSTANDING_MAX = 1024


class ProduceLink(Generic[Q, R]):
    """Connects at once and lives until its stream ends, for whatever reason; then it fails all that
    is outstanding, in the order it was sent, and is of no more use: make another one.

    `attach_id(request, id)` returns the request that carries the id (it may change the one given);
    ids are this link's own. `id_of` reads it from an answer. `on_end` is told once, after the
    outstanding requests were, why the link ended.
    """

    def __init__(
        self,
        channel: Channel,
        method: Method[Q, R],
        *,
        attach_id: Callable[[Q, int], Q],
        id_of: Callable[[R], int],
        on_end: Callable[[QuorumqError], None] = lambda _error: None,
        connect_timeout_s: float = 2.0,
        outstanding_max: int = OUTSTANDING_MAX,
    ) -> None:
        self._channel = channel
        self._method = method
        self._attach_id = attach_id
        self._id_of = id_of
        self._on_end = on_end
        self._connect_timeout_s = connect_timeout_s
        self._outstanding_max = outstanding_max
        self._last_id = 0
        self._pending: dict[int, Done[R]] = {}  # in order of sending
        self._unwritten: deque[tuple[int, Q]] = deque()
        self._written_id = 0  # ids above were certainly not sent
        self._wake: asyncio.Future[None] | None = None
        self._stream: RequestStream[Q, R] | None = None
        self._ended: QuorumqError | None = None
        self._tasks = Tasks(self._task_failed)
        self._tasks.start(self._write(), name=f"produce link to {channel.endpoint}")

    @property
    def endpoint(self) -> str:
        return self._channel.endpoint

    @property
    def alive(self) -> bool:
        return self._ended is None

    @property
    def outstanding(self) -> int:
        return len(self._pending)

    def send(self, request: Q, done: Done[R]) -> None:
        """Send after all that was sent before. `done` is called once, from the loop and never from
        in here: with the answer, or with ConnectionLost when the outcome is unknown, or Unreachable
        when the request was certainly not sent. Raises ResourceExhausted above outstanding_max, and
        Unreachable when the link has ended."""
        if self._ended is not None:
            raise Unreachable(f"the link to {self.endpoint} has ended: {self._ended.message}")
        if len(self._pending) >= self._outstanding_max:
            raise ResourceExhausted(
                f"{len(self._pending)} requests outstanding at {self.endpoint}",
                reason="WINDOW_EXCEEDED",
            )
        self._last_id += 1
        self._pending[self._last_id] = done
        self._unwritten.append((self._last_id, self._attach_id(request, self._last_id)))
        self._wake_writer()

    async def request(self, request: Q) -> R:
        """The same as a coroutine. Raises what `done` would get."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()

        def done(result: R | QuorumqError) -> None:
            if answer.done():
                return  # nobody waits any more
            if isinstance(result, QuorumqError):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        self.send(request, done)
        return await answer

    def break_off(self, why: str) -> None:
        """End it now, for a reason of the owner's; nothing if it has ended. `done`s are called from
        in here."""
        if self._stream is not None:
            self._stream.cancel()
        self._end(ConnectionLost(why))

    async def close(self) -> None:
        """`break_off`, and wait for its tasks."""
        self.break_off("the link was closed")
        await self._tasks.close()

    def _wake_writer(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _write(self) -> None:
        """Connect, then write what is there, in order."""
        try:
            await self._channel.ready(self._connect_timeout_s)
            if self._ended is not None:
                return
            stream = self._stream = self._channel.bidi_stream(self._method)
            self._tasks.start(self._read(stream), name=f"answers of {self.endpoint}")
            loop = asyncio.get_running_loop()
            while self._ended is None:
                if not self._unwritten:
                    self._wake = loop.create_future()
                    await self._wake
                    continue
                await stream.write(self._next())
        except CallFailed as failure:
            self._end(from_status(failure.code, failure.details, failure.trailers))

    def _next(self) -> Q:
        """Not a local of `_write`: that would keep the last request alive while nothing comes."""
        self._written_id, request = self._unwritten.popleft()
        return request

    async def _read(self, stream: RequestStream[Q, R]) -> None:
        try:
            async for response in stream:
                if not self._answered(response):
                    stream.cancel()
                    self._end(ConnectionLost(f"{self.endpoint} answered what was not asked"))
                    return
            self._end(ConnectionLost(f"{self.endpoint} ended the stream"))
        except CallFailed as failure:
            self._end(from_status(failure.code, failure.details, failure.trailers))

    def _answered(self, response: R) -> bool:
        """False if nobody asked for it."""
        done = self._pending.pop(self._id_of(response), None)
        if done is not None:
            done(response)
        return done is not None

    def _end(self, cause: QuorumqError) -> None:
        if self._ended is not None:
            return
        self._ended = cause
        pending, self._pending = self._pending, {}
        self._unwritten.clear()
        self._wake_writer()
        lost = f"the connection to {self.endpoint} broke: {cause.message}"
        for request_id, done in pending.items():
            if request_id <= self._written_id:
                done(ConnectionLost(lost))
            else:
                done(Unreachable(lost))
        self._on_end(cause)

    def _task_failed(self, name: str, error: BaseException) -> None:
        """A bug, of ours or in a `done`: the link cannot go on, and it must be heard of."""
        if self._stream is not None:
            self._stream.cancel()
        self._end(ConnectionLost(f"{name} failed: {error!r}"))
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"{name} failed", "exception": error}
        )
