"""The library's owner of tasks: children in creation order, every exception with a reader.

The nodes have a larger one (they also need scopes); this library must not import from them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

FailureReader = Callable[[str, BaseException], None]


class Tasks:
    """Owns tasks until they end. `on_failure` is told the name and exception of each child that
    failed; the others go on. Cancelled children are no failures. One event loop only.

    asyncio.TaskGroup cancels in the order of a set, which differs from run to run: a simulation
    would not repeat itself.
    """

    def __init__(self, on_failure: FailureReader) -> None:
        self._on_failure = on_failure
        self._children: dict[asyncio.Task[Any], None] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._children)

    def start(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `coro` as a child. Raises RuntimeError after `close` has begun."""
        if self._closed:
            coro.close()
            raise RuntimeError(f"closed: {name} not started")
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._children[task] = None
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel all children, oldest first, and wait for their end. Called by a child, it does not
        wait for that child."""
        self._closed = True
        for task in list(self._children):
            if task is not asyncio.current_task():
                task.cancel()
        for task in list(self._children):
            if task is not asyncio.current_task() and not task.done():
                await asyncio.wait([task])

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._children[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(task.get_name(), error)
