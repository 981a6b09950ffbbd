"""An asyncio event loop on virtual time: deterministic, without threads, sockets or waiting.

When nothing is ready, time jumps to the next timer. What runs when is decided by the order in which
callbacks and timers were asked for and by nothing else, so that a run repeats itself as long as the
code under test iterates over no set and takes its randomness from the seed.

    result = run_simulation(main, seed)         async def main(random: Random) -> T
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import random
import threading
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")

_DAY_S = 86_400.0
_HOPS_AT_ONE_INSTANT_MAX = 1_000_000
_HOPS_PER_COLLECTION = 200_000


class SimulationError(AssertionError):
    """The simulated program did something that would hang, leak or hide an error outside."""


class Deadlock(SimulationError):
    """Nothing is ready and no timer is set: the program would wait for ever."""


class Livelock(SimulationError):
    """Callbacks keep calling each other while time stands still."""


class TimeLimit(SimulationError):
    """Virtual time passed `until_s` before the main coroutine ended."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """`time()` starts at 0.0 and is in virtual seconds. No IO and no executor: asking for them
    raises. `call_soon_threadsafe` works from the loop's own thread only."""

    _ready: deque[asyncio.Handle]  # BaseEventLoop's

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_count = 0  # equal times run in the order they were asked for
        self._hops_here = 0
        self._hops_to_collection = _HOPS_PER_COLLECTION
        self._until = _DAY_S
        self._unread: list[dict[str, Any]] = []
        self.hops = 0  # callbacks run so far: the cheapest trace of a run
        self.set_exception_handler(lambda _loop, context: self._unread.append(context))

    def run(self, coro: Coroutine[Any, Any, T], until_s: float = _DAY_S) -> T:
        """Run to the end of `coro`. Raises what it raises, or SimulationError when it deadlocks,
        livelocks, passes `until_s`, leaves tasks behind or leaves an exception that nobody read."""
        self._until = until_s
        main = self.create_task(coro, name="main")
        try:
            result = self.run_until_complete(main)
            self._refuse_leaks()
            return result
        finally:
            self._abandon()

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, timer))
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if self._thread_id not in (None, threading.get_ident()):  # type: ignore[attr-defined]
            raise SimulationError("a thread reached into the simulation")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, *_: Any) -> Any:  # type: ignore[override]
        raise SimulationError("no threads in a simulation: await the simulated part instead")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer stays in the heap until its time; it is skipped then."""

    def _process_events(self, event_list: object) -> None:
        raise AssertionError("no selector, no events")

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector, so there is nobody to wake."""

    def _run_once(self) -> None:
        """One turn of BaseEventLoop.run_forever: what is ready now, nothing that it makes ready."""
        ready = self._ready
        if not ready:
            self._jump()
        count = len(ready)
        self.hops += count
        self._hops_here += count
        self._hops_to_collection -= count
        for _ in range(count):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()
        if self._hops_here > _HOPS_AT_ONE_INSTANT_MAX:
            raise Livelock(f"{self._hops_here} callbacks at t={self._now}: {_names(self)}")
        if self._hops_to_collection <= 0:
            # The collector runs finalizers; where it runs must not depend on the allocator.
            self._hops_to_collection = _HOPS_PER_COLLECTION
            gc.collect()

    def _jump(self) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            if self._stopping:  # type: ignore[attr-defined]
                return
            raise Deadlock(f"t={self._now}: no timer is set and these wait: {_names(self)}")
        if (when := timers[0][0]) > self._until:
            raise TimeLimit(f"not done at t={self._until}: {_names(self)}")
        if when > self._now:
            self._now = when
            self._hops_here = 0
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]
            if not timer.cancelled():
                self._ready.append(timer)

    def _refuse_leaks(self) -> None:
        if left := _names(self):
            raise SimulationError(f"tasks outlived the simulation: {left}")
        if self._unread:
            context = self._unread[0]
            error = context.get("exception")
            raise SimulationError(f"nobody read: {context['message']}: {error!r}") from error

    def _abandon(self) -> None:
        """Close what a failed run left, quietly: its own error is the one to show."""
        for task in sorted(asyncio.all_tasks(self), key=lambda task: task.get_name()):
            task.cancel()
            task.add_done_callback(_read)
        for _ in range(1000):
            if not self._ready:
                break
            self.call_soon(self.stop)
            self.run_forever()
        self.close()


def run_simulation(
    main: Callable[[random.Random], Coroutine[Any, Any, T]],
    seed: int,
    *,
    until_s: float = _DAY_S,
) -> T:
    """Run `main(Random(seed))` on a new VirtualTimeLoop and return its result. See its `run`."""
    collected = gc.isenabled()
    gc.disable()
    try:
        return VirtualTimeLoop().run(main(random.Random(seed)), until_s)
    finally:
        if collected:
            gc.enable()


class SimClock:
    """A node's clock (cluster.interfaces.Clock) on the virtual loop. The wall clock may be set and
    may drift; the monotonic one cannot be moved."""

    def __init__(self, *, wall_ms_at_start: int = 1_700_000_000_000) -> None:
        self._loop = events.get_running_loop()
        self.wall_offset_ms = wall_ms_at_start
        self.drift = 0.0  # extra wall seconds a second

    def wall_ms(self) -> int:
        return self.wall_offset_ms + int(self._loop.time() * 1000 * (1.0 + self.drift))

    def monotonic_ms(self) -> int:
        return int(self._loop.time() * 1000)


def _names(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Of the tasks that have not ended; sorted, for all_tasks() is a set."""
    return sorted(task.get_name() for task in asyncio.all_tasks(loop))


def _read(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
