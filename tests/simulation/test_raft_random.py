"""Random schedules over the pure core keep every invariant of raft_invariants.py, and the group
recovers from all of them. `python -m tests.simulation.raft_search` runs any number of other seeds.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.raft_replica import REAL
from tests.simulation.raft_search import run

SEEDS = [range(first, first + 50) for first in range(0, 250, 50)]


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_random_schedules_keep_the_invariants(seeds: range) -> None:
    facts: Counter[str] = Counter()
    for seed in seeds:
        facts.update(run(REAL, seed).invariants.facts)
    # A storm in which little happens would prove little.
    assert facts["leaders"] > 2 * len(seeds), facts
    assert facts["acknowledged"] > 5 * len(seeds), facts
    assert min(facts.values()) > 0, facts


def test_a_long_storm_keeps_the_invariants() -> None:
    assert run(REAL, 1, steps=20_000).invariants.facts["leaders"] > 10


def test_a_seed_replays_exactly() -> None:
    assert run(REAL, 5).trace == run(REAL, 5).trace
