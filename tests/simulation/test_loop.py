"""The virtual-time loop keeps its promises (house rule 19: everything runs under the simulator)."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.tasks import TaskGroup
from tests.simulation.loop import (
    Deadlock,
    Livelock,
    SimClock,
    SimulationError,
    TimeLimit,
    VirtualTimeLoop,
    run_simulation,
)


async def busy(seed_random: random.Random) -> str:
    """Twenty tasks that sleep, wake each other and get cancelled; returns what happened when."""
    loop = asyncio.get_running_loop()
    trace: list[str] = []
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def worker(name: str) -> None:
        try:
            while True:
                await asyncio.sleep(seed_random.random())
                await queue.put(seed_random.randrange(1000))
                trace.append(f"{loop.time():.6f} {name}")
        finally:
            trace.append(f"{name} cancelled")

    async def reader() -> None:
        while True:
            trace.append(f"{loop.time():.6f} got {await queue.get()}")

    group = TaskGroup("busy")
    for number in range(20):
        group.start(worker(f"worker-{number}"), name=f"worker-{number}")
    group.start(reader(), name="reader")
    await asyncio.sleep(30)
    await group.cancel_and_wait()
    return "\n".join(trace)


def test_the_same_seed_gives_the_same_trace() -> None:
    first, second = run_simulation(busy, 7), run_simulation(busy, 7)
    assert first == second
    assert len(first.splitlines()) > 1000
    assert run_simulation(busy, 8) != first


def test_the_trace_does_not_depend_on_the_process() -> None:
    """Hash seeds and addresses differ between processes; the trace must not."""
    program = (
        "import hashlib; from tests.simulation.loop import run_simulation;"
        "from tests.simulation.test_loop import busy;"
        "print(hashlib.sha256(run_simulation(busy, 7).encode()).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == 64


def test_an_hour_of_timers_takes_less_than_a_second() -> None:
    async def main(_: random.Random) -> float:
        loop = asyncio.get_running_loop()

        async def ticker() -> None:
            for _ in range(3600):
                await asyncio.sleep(1)

        async with TaskGroup("hour") as group:
            for number in range(5):
                group.start(ticker(), name=f"ticker-{number}")
        return loop.time()

    began = time.perf_counter()
    assert run_simulation(main, 1) == 3600.0
    assert time.perf_counter() - began < 1.0


def test_equal_times_run_in_the_order_they_were_asked_for() -> None:
    async def main(_: random.Random) -> list[int]:
        loop, ran = asyncio.get_running_loop(), list[int]()
        for number in range(50):
            loop.call_at(5.0, ran.append, number)
        await asyncio.sleep(6)
        return ran

    assert run_simulation(main, 1) == list(range(50))


def test_waiting_for_ever_is_a_deadlock_that_names_the_waiter() -> None:
    async def main(_: random.Random) -> None:
        async with TaskGroup("stuck") as group:
            group.start(asyncio.Event().wait(), name="waiter")

    with pytest.raises(Deadlock, match="stuck/waiter"):
        run_simulation(main, 1)


def test_a_cancelled_timer_does_not_hide_a_deadlock_or_move_time() -> None:
    async def main(_: random.Random) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(100, print).cancel()
        await loop.create_future()

    with pytest.raises(Deadlock, match=r"t=0\.0"):
        run_simulation(main, 1)


def test_spinning_without_time_is_a_livelock() -> None:
    async def main(_: random.Random) -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        run_simulation(main, 1)


def test_virtual_time_is_limited() -> None:
    async def main(_: random.Random) -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(1)

    with pytest.raises(TimeLimit):
        run_simulation(main, 1, until_s=60)


def test_a_leaked_task_is_an_error() -> None:
    async def main(_: random.Random) -> None:
        asyncio.get_running_loop().create_task(asyncio.sleep(1000), name="leaked")

    with pytest.raises(SimulationError, match="leaked"):
        run_simulation(main, 1)


def test_an_unread_exception_is_an_error() -> None:
    async def main(_: random.Random) -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    with pytest.raises(SimulationError, match="ZeroDivisionError"):
        run_simulation(main, 1)


def test_threadsafe_calls_work_in_the_loop_thread_and_threads_are_refused() -> None:
    async def main(_: random.Random) -> list[int]:
        loop, ran = asyncio.get_running_loop(), list[int]()
        loop.call_soon_threadsafe(ran.append, 1)
        await asyncio.sleep(0)
        with pytest.raises(SimulationError):
            await loop.run_in_executor(None, ran.append, 2)
        return ran

    assert run_simulation(main, 1) == [1]


def test_timeouts_follow_virtual_time() -> None:
    async def main(_: random.Random) -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(12.5):
                await loop.create_future()
        return loop.time()

    assert run_simulation(main, 1) == 12.5


def test_the_clock_is_virtual_and_only_its_wall_can_be_moved() -> None:
    async def main(_: random.Random) -> tuple[int, int]:
        clock = SimClock(wall_ms_at_start=5_000)
        await asyncio.sleep(2)
        clock.wall_offset_ms -= 6_000
        return clock.wall_ms(), clock.monotonic_ms()

    assert run_simulation(main, 1) == (1_000, 2_000)


def test_main_errors_come_out_and_the_collector_is_left_as_it_was() -> None:
    async def main(_: random.Random) -> None:
        raise KeyError("mine")

    assert gc.isenabled()
    with pytest.raises(KeyError, match="mine"):
        run_simulation(main, 1)
    assert gc.isenabled()


def test_hops_are_fast_enough_for_long_runs() -> None:
    loop = VirtualTimeLoop()

    async def hop() -> None:
        for _ in range(100_000):
            await asyncio.sleep(0)

    began = time.perf_counter()
    loop.run(hop())
    rate = loop.hops / (time.perf_counter() - began)
    assert rate > 50_000, f"{rate:.0f} hops/s"
