"""A node without disk room, or with a slow disk, does not lead (house §4.12, §4.15)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

from node.disk_watch import DiskWatch
from tests.simulation.loop import run_simulation

FREE_MIN = 1_000
SLOW_MS = 1_500


class FakeDisk:
    def __init__(self) -> None:
        self.free = 10 * FREE_MIN
        self.flushes = 0
        self.mean_ms = 0.0
        self.ballasts_restored = 0

    def disk_free_bytes(self) -> int:
        return self.free

    def flush_mean_ms(self) -> tuple[int, float]:
        return self.flushes, self.mean_ms

    def restore_ballast(self) -> None:
        self.ballasts_restored += 1

    def flush(self, ms: float) -> None:
        self.flushes += 1
        self.mean_ms += (ms - self.mean_ms) * (0.1 if self.flushes > 1 else 1.0)


class Bed:
    """A watch, and what it asked for."""

    def __init__(self) -> None:
        self.disk = FakeDisk()
        self.hand_overs = 0
        self.is_reluctant = False
        self.watch = DiskWatch(
            self.disk,
            disk_free_bytes_min=FREE_MIN,
            flush_slow_ms=SLOW_MS,
            hand_over=self._hand_over,
            set_reluctant=self._set_reluctant,
        )

    async def _hand_over(self) -> None:
        self.hand_overs += 1

    def _set_reluctant(self, reluctant: bool) -> None:
        self.is_reluctant = reluctant

    async def looks(self, count: int, before_each: Callable[[], Any]) -> None:
        """One a second, as `run` does."""
        for _ in range(count):
            before_each()
            await self.watch.look()
            await asyncio.sleep(1)


def test_a_full_disk_takes_no_appends_and_leads_nothing_until_there_is_room_again() -> None:
    async def story(_: Random) -> None:
        bed = Bed()
        disk, watch = bed.disk, bed.watch
        await watch.look()
        assert (watch.full, bed.is_reluctant, bed.hand_overs) == (False, False, 0)

        disk.free = FREE_MIN - 1
        await bed.looks(3, lambda: None)
        assert (watch.full, bed.is_reluctant, bed.hand_overs) == (True, True, 1)

        disk.free = FREE_MIN + 1  # not enough to count as room again
        await watch.look()
        assert watch.full

        disk.free = 2 * FREE_MIN
        await watch.look()
        assert (watch.full, bed.is_reluctant, disk.ballasts_restored) == (False, False, 1)

    run_simulation(story, 1)


def test_a_disk_that_is_slow_flush_after_flush_leads_nothing_for_a_while() -> None:
    """So slow that less than one flush ends a second."""

    async def story(_: Random) -> None:
        bed = Bed()
        await bed.looks(30, lambda: bed.disk.flush(2 * SLOW_MS))
        assert (bed.hand_overs, bed.is_reluctant) == (1, True)

        await bed.looks(60, lambda: bed.disk.flush(1))
        assert (bed.hand_overs, bed.is_reluctant) == (1, False)

    run_simulation(story, 1)


def test_one_flush_that_hung_is_no_slow_disk() -> None:
    async def story(_: Random) -> None:
        bed = Bed()
        bed.disk.flush(1)
        bed.disk.flush(12 * SLOW_MS)
        assert bed.disk.mean_ms > SLOW_MS
        await bed.looks(30, lambda: bed.disk.flush(1))
        assert (bed.hand_overs, bed.is_reluctant) == (0, False)

    run_simulation(story, 1)


def test_a_slow_disk_that_nobody_writes_to_is_not_slow_again() -> None:
    async def story(_: Random) -> None:
        bed = Bed()
        await bed.looks(10, lambda: bed.disk.flush(2 * SLOW_MS))
        assert bed.hand_overs == 1
        await bed.looks(100, lambda: None)
        assert (bed.hand_overs, bed.is_reluctant) == (1, False)

    run_simulation(story, 1)
