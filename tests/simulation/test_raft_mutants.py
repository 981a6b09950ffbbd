"""The invariants and stories are worth something: every deliberate mistake is noticed."""

from __future__ import annotations

import pytest

from tests.scenarios.runner import record
from tests.scenarios.test_scenarios import STORIES
from tests.simulation.raft_mutants import MUTANTS, Mutant
from tests.simulation.raft_replica import RaftCode
from tests.simulation.raft_search import run

SEEDS_MAX = 300


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_noticed(mutant: Mutant) -> None:
    code = mutant.load()
    try:
        assert _changes_story(code, mutant.story) if mutant.story else _breaks_invariant(code)
    finally:
        mutant.unload()


def _changes_story(code: RaftCode, name: str) -> bool:
    path = next(p for p in STORIES if p.stem == name)
    try:
        return record(path, code) != path.read_text(encoding="utf-8")
    except Exception:  # a mutant may fail in any way
        return True


def _breaks_invariant(code: RaftCode) -> bool:
    for seed in range(SEEDS_MAX):
        try:
            run(code, seed)
        except AssertionError:
            return True
    return False
