"""The scenarios and what is asked of them: the one table that the figures are held against.

The limits are for three nodes and the client on the same two cores, with the default sizes and
times. A figure below its limit is a reason to find out why, not a failed run.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_RELATIONS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Target:
    """`figure` is a name of the JSON line; `relation` is "<=" or ">="."""

    figure: str
    relation: str
    limit: float

    def __str__(self) -> str:
        return f"{self.relation} {self.limit:g}"

    def holds(self, value: float) -> bool:
        return bool(_RELATIONS[self.relation](value, self.limit))


@dataclass(frozen=True, slots=True)
class Scenario:
    meaning: str
    targets: tuple[Target, ...]


SCENARIOS: Mapping[str, Scenario] = {
    "latency": Scenario(
        "one durable produce at a time, 100 B",
        (Target("p50_ms", "<=", 1.5), Target("p99_ms", "<=", 6)),
    ),
    "produce": Scenario(
        "one producer, 100 B records, 6 partitions",
        (Target("records_per_s", ">=", 100_000),),
    ),
    "produce-1k": Scenario("the same, 1 KiB", (Target("mb_per_s", ">=", 40),)),
    "unary": Scenario(
        "64 plain stubs, one record a call, through any node",
        (Target("records_per_s", ">=", 2_500),),
    ),
    "failover": Scenario(
        "leader killed: time to the partition's next acknowledgement",
        (Target("p50_ms", "<=", 1_000), Target("p99_ms", "<=", 2_500)),
    ),
    "transfer": Scenario("leaderships handed over under load", (Target("p99_ms", "<=", 150),)),
    "idle": Scenario(
        "300 partitions, no traffic",
        (Target("cpu_percent", "<=", 10), Target("rss_mb", "<=", 250)),
    ),
    "restart": Scenario(
        "a node with 1,000,000 records is killed and started",
        (Target("max_ms", "<=", 3_000),),
    ),
    "backlog": Scenario(
        "1 GB stored, read slowly from the start while producing",
        (Target("rss_mb", "<=", 400),),
    ),
}


def judge(scenario: str, figures: Mapping[str, Any], failures: int) -> bool | None:
    """Whether all limits are kept and nothing failed; None when a figure that is asked for could
    not be measured (the processes of somebody else's cluster)."""
    if failures:
        return False
    targets = SCENARIOS[scenario].targets
    if any(target.figure not in figures for target in targets):
        return None
    return all(target.holds(figures[target.figure]) for target in targets)
