"""One seed of random schedules, whole: a storm, then the calm. As a program, any number of them:

    python -m tests.simulation.raft_search 0 10000 [--steps 1500] [--mutant NAME]

ends at the first seed that breaks an invariant, and prints its last events. A seed replays exactly
as long as the code and the simulation are the same.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.simulation.raft_calm import calm
from tests.simulation.raft_cluster import Cluster
from tests.simulation.raft_mutants import MUTANTS
from tests.simulation.raft_replica import REAL, RaftCode

STEPS = 1500
TRACE = 25


def run(code: RaftCode, seed: int, *, steps: int = STEPS) -> Cluster:
    """An AssertionError tells the seed and the last events."""
    cluster = Cluster(code, seed)
    try:
        cluster.storm(steps)
        calm(cluster)
    except Exception as error:
        raise AssertionError(
            f"seed {seed}: {type(error).__name__}: {error}\n  "
            + "\n  ".join(cluster.trace[-TRACE:])
        ) from error
    return cluster


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--mutant", choices=sorted(m.name for m in MUTANTS))
    arguments = parser.parse_args()
    code = REAL
    if arguments.mutant:
        code = next(m for m in MUTANTS if m.name == arguments.mutant).load()
    facts: Counter[str] = Counter()
    for seed in range(arguments.first, arguments.end):
        try:
            facts.update(run(code, seed, steps=arguments.steps).invariants.facts)
        except AssertionError as failure:
            print(failure)
            return 1
    print(f"{arguments.end - arguments.first} seeds: {dict(facts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
