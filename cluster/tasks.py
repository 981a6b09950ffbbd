"""The owner of tasks: a group whose children are kept, joined and cancelled in creation order.

asyncio.TaskGroup keeps its children in a set and cancels them in the set's order, which differs
from run to run (task hashes are addresses): a simulation with one seed would not repeat itself.
This is the only file that creates tasks: every task has a group, every exception a reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

FailureReader = Callable[[str, BaseException], None]


class TaskGroup:
    """Owns tasks until they end. Two ways of use, by who reads an exception:

    Without `on_failure` (a scope): the first failure cancels the siblings and the body of
    `async with`, and is raised at the join. Later failures become notes on it.

    With `on_failure` (a long-lived owner, nobody at the join): it is called at once with the task's
    name and each exception; the other children go on, and what to stop is the reader's decision.

    A cancelled child is no failure. One event loop only; not for use from another thread.
    """

    def __init__(self, name: str, *, on_failure: FailureReader | None = None) -> None:
        self.name = name
        self._on_failure = on_failure
        self._children: dict[asyncio.Task[Any], None] = {}  # creation order
        self._failure: BaseException | None = None
        self._closed = False  # no new children
        self._cancelling = False
        self._idle: asyncio.Future[None] | None = None  # the joiner waits on it
        self._body: asyncio.Task[Any] | None = None
        self._body_cancelled = False

    def __len__(self) -> int:
        return len(self._children)

    @property
    def task_names(self) -> list[str]:
        """Of the children that have not ended, in creation order."""
        return [task.get_name() for task in self._children]

    def start(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `coro` as a child. Raises RuntimeError once the group is closing."""
        if self._closed or self._cancelling:
            coro.close()
            raise RuntimeError(f"task group {self.name} is closing: {name} not started")
        loop = asyncio.get_running_loop()
        task = loop.create_task(coro, name=f"{self.name}/{name}")
        self._children[task] = None
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """Ask every child to stop, oldest first; no new ones from here on."""
        self._cancelling = True
        for task in list(self._children):
            task.cancel()

    async def join(self) -> None:
        """Wait until every child has ended, then raise the first failure, if nobody read it.
        Children may still be started meanwhile. A cancelled join cancels the children, waits for
        them, and is cancelled then."""
        await self._drain()
        self._closed = True
        self._raise_failure()

    async def cancel_and_wait(self) -> None:
        """Cancel all children and wait for their end. Raises the first failure as `join` does."""
        assert asyncio.current_task() not in self._children, f"{self.name} would wait for itself"
        self.cancel()
        await self.join()

    async def __aenter__(self) -> Self:
        assert self._body is None, f"task group {self.name} entered twice"
        self._body = asyncio.current_task()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        body, self._body = self._body, None
        assert body is not None
        cancelled_by_us = False
        if self._body_cancelled:
            # The cancellation a failed child asked for is used up here; one that came from outside
            # as well still counts and must not be swallowed (same rule as asyncio.TaskGroup).
            cancelled_by_us = body.uncancel() == 0
        if kind is not None:
            self.cancel()
        await self._drain()
        self._closed = True
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            if not cancelled_by_us:
                self._note_unraised(error)
                return
            self._raise_failure()
        if kind is None:
            self._raise_failure()
        else:
            self._note_unraised(error)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._children[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(task.get_name(), error)
        if not self._children and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _failed(self, name: str, error: BaseException) -> None:
        if self._on_failure is not None:
            self._on_failure(name, error)
            return
        if self._failure is not None:
            self._failure.add_note(f"then {name} failed: {error!r}")
            return
        error.add_note(f"in task {name}")
        self._failure = error
        self.cancel()
        if self._body is not None and not self._body.done() and not self._body_cancelled:
            self._body_cancelled = True
            self._body.cancel()

    async def _drain(self) -> None:
        """Returns when there are no children. Cancelled meanwhile: passes it on to the children,
        and raises it when they have ended."""
        cancelled: asyncio.CancelledError | None = None
        while self._children:
            self._idle = asyncio.get_running_loop().create_future()
            try:
                await self._idle
            except asyncio.CancelledError as error:
                cancelled = error
                self.cancel()
            finally:
                self._idle = None
        if cancelled is not None:
            self._note_unraised(cancelled)
            raise cancelled

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _note_unraised(self, carrier: BaseException | None) -> None:
        """Another exception leaves the group: our failure travels on it instead of vanishing."""
        failure, self._failure = self._failure, None
        if failure is not None and carrier is not None and failure is not carrier:
            carrier.add_note(f"task group {self.name} had failed before: {failure!r}")
