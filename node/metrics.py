"""What a node counts while it works: plain numbers, cheap enough for every request.

Whoever does the work increments; node/exposition.py reads when somebody asks. An increment is one
attribute store, an observation one bisection over a dozen bounds, both far below a microsecond.
Only the event loop writes, except a flush histogram, which the storage writer alone writes: readers
may see a count without its sum, which is no matter for a graph.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

LATENCY_BOUNDS_MS = (0.5, 1, 2, 3, 5, 8, 12, 20, 35, 60, 100, 200, 500, 1_000, 2_500, 10_000)
FLUSH_BOUNDS_MS = (0.1, 0.2, 0.4, 0.7, 1, 2, 4, 8, 15, 30, 60, 125, 250, 500, 1_000, 2_500)


class Histogram:
    """Counts by upper bound; `counts` has one more for what is above the last one."""

    __slots__ = ("bounds", "counts", "max", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        self.max = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        if value > self.max:
            self.max = value

    @property
    def count(self) -> int:
        return sum(self.counts)


class NodeCounters:
    """One for each node. Everything rises for ever unless it says "now"; units in the names.

    `errors` counts answers by reason of errors.proto (without REASON_): bounded by that list."""

    __slots__ = (
        "calls_now",
        "dedup_id_hits",
        "elections_lost",
        "elections_won",
        "errors",
        "forwarded_requests",
        "held_requests",
        "leaders_handed_over",
        "produce_bytes",
        "produce_ms",
        "produce_records",
        "produce_requests",
        "producer_duplicates",
        "producers_opened",
        "read_bytes",
        "read_records",
        "read_streams_now",
        "skewed_stamps",
        "throttled_requests",
        "trimmed_records",
    )

    def __init__(self) -> None:
        # --- produced, counted where the leader is
        self.produce_requests = 0
        self.produce_records = 0
        self.produce_bytes = 0
        self.produce_ms = Histogram(LATENCY_BOUNDS_MS)  # from the request's arrival to its answer
        self.producer_duplicates = 0  # batches found stored already, by producer sequence
        self.dedup_id_hits = 0  # records found stored already, by dedup_id
        self.producers_opened = 0
        # --- read
        self.read_records = 0
        self.read_bytes = 0
        self.read_streams_now = 0
        # --- requests of any kind
        self.calls_now = 0
        self.forwarded_requests = 0  # sent on to the node that leads
        self.held_requests = 0  # waited for a leader
        self.throttled_requests = 0
        self.errors: dict[str, int] = {}
        # --- groups
        self.elections_won = 0
        self.elections_lost = 0  # leaderships that ended here
        self.leaders_handed_over = 0
        self.trimmed_records = 0
        self.skewed_stamps = 0  # stamped with the median, this node's clock being off

    def count_error(self, reason: str) -> None:
        self.errors[reason] = self.errors.get(reason, 0) + 1
