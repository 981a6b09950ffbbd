"""Latencies, in milliseconds, and what is said of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter


class Latencies:
    """Every one is kept: a run has some hundred thousands at most."""

    def __init__(self) -> None:
        self._ms: list[float] = []

    def __len__(self) -> int:
        return len(self._ms)

    def add(self, seconds: float) -> None:
        self._ms.append(seconds * 1000)

    def clear(self) -> None:
        """What was measured while warming up."""
        self._ms.clear()

    def figures(self) -> dict[str, float]:
        """p50_ms, p99_ms, max_ms; nothing when there is none."""
        if not self._ms:
            return {}
        ordered = sorted(self._ms)
        return {
            "p50_ms": round(percentile(ordered, 50), 3),
            "p99_ms": round(percentile(ordered, 99), 3),
            "max_ms": round(ordered[-1], 3),
        }


async def back_to_back(call: Callable[[], Awaitable[object]], seconds: float) -> Latencies:
    """One call at a time. The intended time of each is the moment the one before was answered."""
    latencies = Latencies()
    intended = perf_counter()
    end = intended + seconds
    while intended < end:
        await call()
        answered = perf_counter()
        latencies.add(answered - intended)
        intended = answered
    return latencies


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest rank: the smallest value that at least `percent` of all are not above."""
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, int(rank) - 1)]
