"""Watches the disk's room and speed for the node (house §4.15).

Below `disk_free_bytes_min` the node takes no appends and hands its leaderships over, once; it goes
on reading and following, so that it leaves no group without a quorum. When there is room again it
takes appends. A disk whose flushes are slow for long makes the node hand over too: it can follow
well enough, but everyone would wait for it as a leader. As long as either is so, the others are
told to give it no leaderships.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_SLOW_AGAIN_S = 60.0  # between two hand-overs for slowness
_HYSTERESIS = 1.1  # room must exceed the minimum by this much to count as enough again
_SLOW_FLUSHES_MIN = 5  # with a slow mean each: one that hung for long says nothing of the next


class Disk(Protocol):
    """What is asked of the data folder and its engine."""

    def disk_free_bytes(self) -> int: ...
    def flush_mean_ms(self) -> tuple[int, float]:
        """(flushes so far, moving average of the last ones)."""

    def restore_ballast(self) -> None:
        """There is room again for what a full node needs to start."""


class DiskWatch:
    """`full` is for the services to look at."""

    def __init__(
        self,
        disk: Disk,
        *,
        disk_free_bytes_min: int,
        flush_slow_ms: int,
        hand_over: Callable[[], Awaitable[None]],
        set_reluctant: Callable[[bool], None],
    ) -> None:
        self._disk = disk
        self._free_min = disk_free_bytes_min
        self._flush_slow_ms = flush_slow_ms
        self._hand_over = hand_over
        self._set_reluctant = set_reluctant
        self._fast_until = 0  # how many flushes there were when the mean was not slow
        self._slow_until = 0.0
        self.full = False
        self.free_bytes = disk.disk_free_bytes()

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_INTERVAL_S)

    async def look(self) -> None:
        self.free_bytes = self._disk.disk_free_bytes()
        if not self.full and self.free_bytes < self._free_min:
            self.full = True
            self._set_reluctant(True)
            logger.error(
                "disk room: %d bytes are free, at least %d are needed: no appends here",
                self.free_bytes,
                self._free_min,
            )
            await self._hand_over()
        elif self.full and self.free_bytes >= self._free_min * _HYSTERESIS:
            self.full = False
            logger.warning("disk room: %d bytes are free again", self.free_bytes)
            self._disk.restore_ballast()
        await self._look_at_speed()
        self._set_reluctant(self.full or self._is_slow())

    async def _look_at_speed(self) -> None:
        flushes, mean_ms = self._disk.flush_mean_ms()
        now = asyncio.get_running_loop().time()
        if mean_ms < self._flush_slow_ms or self._is_slow():
            self._fast_until = flushes
        if flushes - self._fast_until < _SLOW_FLUSHES_MIN:
            return
        self._slow_until = now + _SLOW_AGAIN_S
        self._set_reluctant(True)
        logger.warning("the disk takes %.0f ms to flush: leaderships are handed over", mean_ms)
        await self._hand_over()

    def _is_slow(self) -> bool:
        """It was found slow lately."""
        return asyncio.get_running_loop().time() < self._slow_until
