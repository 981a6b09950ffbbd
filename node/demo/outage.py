"""What a killed leader did to the acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


class Acknowledgements:
    """Of the records that are watched, some of each batch. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self.latencies_ms: list[float] = []
        self.recovered = asyncio.Event()  # every partition that lost its leader has a new one
        self._killed_at = 0.0
        self._last: dict[int, float] = {}
        self._gaps_s: dict[int, float] = {}  # longest since the kill, by partition concerned
        self._silent: dict[int, None] = {}  # partitions concerned, until they are back

    def add(self, partition: int, *, sent_at: float, now: float) -> None:
        self.latencies_ms.append((now - sent_at) * 1000)
        if partition in self._gaps_s:
            gap = now - self._last[partition]
            self._gaps_s[partition] = max(self._gaps_s[partition], gap)
            if sent_at >= self._killed_at and partition in self._silent:
                # Not an answer of the old leader that was still on its way.
                del self._silent[partition]
                if not self._silent:
                    self.recovered.set()
        self._last[partition] = now

    def killed(self, partitions: Iterable[int], *, now: float) -> None:
        """The leader of these partitions was killed just now."""
        self._killed_at = now
        for partition in partitions:
            self._gaps_s[partition] = 0.0
            self._silent[partition] = None
            self._last[partition] = now

    def longest_gap_ms(self) -> float:
        return max(self._gaps_s.values(), default=0.0) * 1000

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
