"""RaftLog over both engines: cluster.interfaces.LogStore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cluster.interfaces import CheckpointMeta
from cluster.raft.configuration import Configuration
from cluster.raft.errors import Compacted
from cluster.raft.messages import HardState
from node.storage import keys
from node.storage.raft_log import RaftLog
from node.storage.tail_cache import TailBudget
from tests.conformance.log_bed import (
    BIG,
    GROUP,
    TINY,
    append,
    compact,
    configuration_entry,
    contents,
    entry_key,
    opened,
)
from tests.conformance.storage_rigs import RIGS, MemoryRig, Rig, command, commands


@pytest.fixture(params=RIGS, ids=lambda rig: rig.name)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made: Rig = request.param(tmp_path)
    yield made
    made.close()


def test_an_empty_log(rig: Rig) -> None:
    log = opened(rig)
    assert (log.first_index, log.last_index, log.term(0), log.staged_index) == (1, 0, 0, 0)
    assert list(log.configurations) == [(0, Configuration())]
    assert log.hard_state == HardState()
    assert log.entry(1) is None
    with pytest.raises(IndexError):
        log.term(1)
    with pytest.raises(IndexError):
        log.entries(1, 1, BIG)


def test_appended_entries_are_read_before_their_batch_is_written(rig: Rig) -> None:
    log = RaftLog(rig.engine, GROUP, TailBudget(TINY))
    batch = rig.engine.new_batch()
    log.append(batch, commands(1, 5))
    log.append(batch, commands(6, 9))
    assert log.entries(1, 9, BIG) == commands(1, 9)
    assert rig.engine.get(entry_key(1)) is None
    rig.engine.write(batch)
    append(rig, log, commands(10, 10))
    assert log.entries(1, 10, BIG) == commands(1, 10)
    assert contents(opened(rig)) == contents(log)


def test_R2_writing_an_index_discards_everything_from_it_on(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 200))
    append(rig, log, commands(50, 51, term=2))
    assert log.last_index == 51
    assert log.entries(1, 51, BIG) == commands(1, 49) + commands(50, 51, term=2)
    assert log.entry(52) is None
    assert contents(opened(rig)) == contents(log)
    append(rig, log, commands(40, 60, term=3))
    assert log.entries(1, 60, BIG) == commands(1, 39) + commands(40, 60, term=3)
    assert contents(opened(rig)) == contents(log)


def test_R2_entries_hard_state_and_truncation_are_one_batch(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 9))
    before = contents(log)
    batch = rig.engine.new_batch()
    log.append(batch, commands(5, 5, term=2))
    log.put_hard_state(batch, HardState(2, 1, 4))
    assert contents(opened(rig)) == before
    rig.engine.write(batch)
    assert contents(opened(rig)) == contents(log)
    assert opened(rig).hard_state == HardState(2, 1, 4)


def test_last_index_and_term_are_those_after_a_truncation(rig: Rig) -> None:
    """Bug class 20: a stale end of the log after its tail was overwritten by a shorter one."""
    log = opened(rig)
    append(rig, log, commands(1, 9, term=1))
    batch = rig.engine.new_batch()
    log.append(batch, commands(10, 12, term=1))
    log.append(batch, commands(4, 5, term=2))
    assert (log.last_index, log.term(5), log.term(3)) == (5, 2, 1)
    rig.engine.write(batch)
    append(rig, log, commands(6, 6, term=3))
    for each in (log, opened(rig)):
        assert (each.last_index, each.term(6), each.term(5), each.term(3)) == (6, 3, 2, 1)
        with pytest.raises(IndexError):
            each.term(7)


@pytest.mark.parametrize("budget_bytes", [TINY, 2000, BIG])
def test_reads_stop_at_bytes_max_wherever_entries_lie(rig: Rig, budget_bytes: int) -> None:
    log = RaftLog(rig.engine, GROUP, TailBudget(budget_bytes))
    entries = [command(index, data=b"x" * 100) for index in range(1, 31)]
    for at in range(0, 30, 3):
        append(rig, log, entries[at : at + 3])
    for low in (1, 5, 20, 28, 29, 30):
        assert log.entries(low, 30, BIG) == entries[low - 1 :]
        assert log.entries(low, 30, 0) == entries[low - 1 : low]
        assert log.entries(low, low, 0) == entries[low - 1 : low]
        assert log.entries(low, 30, 250) == entries[low - 1 : low + 1]
        assert log.entries(low, 30, 1000) == entries[low - 1 : low + 9]


def test_memory_is_bounded_over_all_logs_and_nothing_is_lost(rig: Rig) -> None:
    budget = TailBudget(50_000)
    logs = [RaftLog(rig.engine, group, budget) for group in (1, 2, 3)]
    entries = [command(index, data=b"x" * 1000) for index in range(1, 201)]
    for at in range(200):
        for log in logs[: 1 + at % 3]:
            batch = rig.engine.new_batch()
            log.append(batch, [entries[log.last_index]])
            rig.engine.write(batch)
            assert budget.bytes <= 50_000
            assert budget.bytes == sum(each.cache_bytes for each in logs)
    for log in logs:
        assert log.entries(1, log.last_index, BIG) == entries[: log.last_index]


def test_compaction_keeps_history_and_serves_the_tail_only(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 5) + commands(6, 10, term=2))
    compact(rig, log, 7)
    assert (log.first_index, log.last_index, log.term(7), log.term(8)) == (8, 10, 2, 2)
    with pytest.raises(Compacted):
        log.term(6)
    with pytest.raises(Compacted):
        log.entries(7, 10, BIG)
    assert [log.entry(index) for index in (1, 7)] == [command(1), command(7, 2)]
    assert contents(opened(rig)) == contents(log)
    compact(rig, log, 10)
    assert (log.first_index, log.last_index, log.term(10)) == (11, 10, 2)
    append(rig, log, commands(11, 11, term=3))
    assert contents(opened(rig)) == contents(log)


@pytest.mark.parametrize("count", [10, 300])
def test_history_is_deleted_below_an_index_and_never_the_tail(rig: Rig, count: int) -> None:
    log = opened(rig)
    append(rig, log, commands(1, count))
    compact(rig, log, count - 2)
    full = log.log_bytes
    for below, kept_from in ((count // 2, count // 2), (3, count // 2), (BIG, count - 1)):
        batch = rig.engine.new_batch()
        log.delete_history(batch, below)
        rig.engine.write(batch)
        assert log.entry(kept_from - 1) is None
        assert log.entry(kept_from) == command(kept_from)
        assert log.entries(count - 1, count, BIG) == commands(count - 1, count)
        assert contents(opened(rig)) == contents(log)
        assert opened(rig).log_bytes == log.log_bytes
    assert log.log_bytes < full / 3


def test_history_may_have_holes_and_the_tail_may_not(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 300))
    compact(rig, log, 290)
    batch = rig.engine.new_batch()
    log.delete_entries(batch, 5, 250)
    log.delete_entries(batch, 252, 252)
    rig.engine.write(batch)
    for each in (log, opened(rig)):
        stored = [index for index in range(1, 301) if each.entry(index) is not None]
        assert stored == [1, 2, 3, 4, 251, *range(253, 301)]
    assert opened(rig).log_bytes == pytest.approx(log.log_bytes, rel=0.05)
    batch = rig.engine.new_batch()
    with pytest.raises(AssertionError):
        log.delete_entries(batch, 285, 291)


def test_configurations_are_known_at_open_and_follow_truncation_and_compaction(rig: Rig) -> None:
    """Rule R8: adopted on append, taken back by truncation, kept across restarts."""
    base, one, two = (Configuration.of(range(1, n)) for n in (2, 3, 4))
    log = opened(rig)
    batch = rig.engine.new_batch()
    log.found(batch, base)
    rig.engine.write(batch)
    assert list(opened(rig).configurations) == [(0, base)]
    append(rig, log, [command(1), configuration_entry(2, 1, one), command(3)])
    append(rig, log, [configuration_entry(4, 1, two)])
    expected = [(0, base), (2, one), (4, two)]
    assert list(log.configurations) == list(opened(rig).configurations) == expected
    append(rig, log, [command(3, 2), command(4, 2)])
    assert list(log.configurations) == list(opened(rig).configurations) == [(0, base), (2, one)]
    compact(rig, log, 1)
    assert list(log.configurations) == list(opened(rig).configurations) == [(0, base), (2, one)]
    compact(rig, log, 3)
    assert list(log.configurations) == list(opened(rig).configurations) == [(2, one)]


def test_staged_entries_are_no_part_of_the_log_until_the_switch(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 10))
    batch = rig.engine.new_batch()
    log.stage(batch, [command(7, 2), command(12, 2), command(15, 3)])
    rig.engine.write(batch)
    assert log.staged_index == opened(rig).staged_index == 15
    assert log.entries(1, 10, BIG) == commands(1, 10)
    assert (log.entry(12), log.last_index) == (None, 10)
    append(rig, log, commands(9, 9, term=4))
    assert contents(opened(rig)) == contents(log)


@pytest.mark.parametrize("compacted_to", [0, 3])
def test_the_switch_keeps_own_applied_entries_and_takes_staged_ones(
    rig: Rig, compacted_to: int
) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 10))
    compact(rig, log, compacted_to)
    after = Configuration.of([1, 2])
    batch = rig.engine.new_batch()
    log.put_hard_state(batch, HardState(3, 2, 6))
    # 5 is ours already, 21 is beyond the checkpoint: both came from another sender.
    log.stage(batch, [command(i, 2) for i in (5, 8, 12, 20, 21)])
    rig.engine.write(batch)
    before = contents(opened(rig))
    batch = rig.engine.new_batch()
    log.switch(batch, CheckpointMeta(20, 2, after, 0), 6)
    assert contents(opened(rig)) == before
    rig.engine.write(batch)
    for each in (log, opened(rig)):
        assert (each.first_index, each.last_index, each.term(20)) == (21, 20, 2)
        assert list(each.configurations) == [(20, after)]
        assert (each.staged_index, each.hard_state) == (0, HardState(3, 2, 6))
        stored = {i: e.term for i in range(1, 30) if (e := each.entry(i)) is not None}
        assert stored == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 8: 2, 12: 2, 20: 2}
    for index in (5, 21):
        assert rig.engine.get(entry_key(index, generation=1)) is None, "it would lie there for ever"
    append(rig, log, commands(21, 25, term=5))
    assert contents(opened(rig)) == contents(log)


def test_history_of_several_switches_is_deleted_from_its_generations(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 10))
    applied = 8
    for round_ in range(1, 4):
        batch = rig.engine.new_batch()
        log.stage(batch, [command(100 * round_ + i, round_ + 1) for i in range(0, 50, 5)])
        rig.engine.write(batch)
        batch = rig.engine.new_batch()
        checkpoint = CheckpointMeta(100 * round_ + 60, round_ + 1, Configuration.of([1]), 0)
        log.switch(batch, checkpoint, applied)
        rig.engine.write(batch)
        append(rig, log, commands(100 * round_ + 61, 100 * round_ + 70, term=round_ + 1))
        applied = 100 * round_ + 65
    assert log.entry(110) == command(110, 2)
    assert log.entry(165) == command(165, 2)
    assert log.entry(166) is None
    assert log.entry(315) == command(315, 4)
    for below in (9, 150, 205, 361):
        batch = rig.engine.new_batch()
        log.delete_history(batch, below)
        rig.engine.write(batch)
        for each in (log, opened(rig)):
            stored = [i for i in range(1, 371) if each.entry(i) is not None]
            assert stored
            assert stored[0] >= below
            assert stored[-1] == 370
    everything = rig.engine.scan(*keys.group_bounds(GROUP))
    entries = [key for key, _ in everything if key[8:9] == keys.ENTRY]
    assert len(entries) == 10


def test_an_abandoned_catch_up_is_dropped_once_the_log_went_past_it(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 5))
    batch = rig.engine.new_batch()
    log.stage(batch, commands(8, 20))
    rig.engine.write(batch)
    append(rig, log, commands(6, 30))
    compact(rig, log, 19)
    assert log.staged_index == opened(rig).staged_index == 20
    compact(rig, log, 25)
    assert log.staged_index == opened(rig).staged_index == 0
    assert rig.engine.get(entry_key(8, generation=1)) is None


@pytest.mark.parametrize("seed", range(12))
async def test_R10_a_crash_during_a_catch_up_leaves_the_old_log_or_the_new_one(
    rig: Rig, seed: int
) -> None:
    random = Random(seed)
    log = opened(rig)
    append(rig, log, commands(1, 10))
    await rig.sync()
    old = contents(log)[:4]
    for low in range(7, 40, 4):
        batch = rig.engine.new_batch()
        log.stage(batch, commands(low, low + 3, term=2))
        rig.engine.write(batch)
        if random.random() < 0.2:
            await rig.sync()
    batch = rig.engine.new_batch()
    log.switch(batch, CheckpointMeta(42, 2, Configuration.of([1]), 0), 6)
    rig.engine.write(batch)
    new = contents(log)[:4]
    rig.crash(random)
    log = opened(rig)
    assert contents(log)[:4] in (old, new)
    if log.last_index == 10:  # it resumes from where it was
        staged = log.staged_index or 6
        batch = rig.engine.new_batch()
        log.stage(batch, commands(staged + 1, 42, term=2))
        log.switch(batch, CheckpointMeta(42, 2, Configuration.of([1]), 0), 6)
        rig.engine.write(batch)
    assert contents(opened(rig))[:4] == new
    expected = commands(1, 6) + commands(7, 42, term=2)
    assert [log.entry(index) for index in range(1, 43)] == expected


def test_a_snapshot_serves_the_log_of_its_moment(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 20))
    compact(rig, log, 10)
    snapshot = rig.engine.snapshot()
    batch = rig.engine.new_batch()
    log.stage(batch, commands(16, 40, term=2))
    log.switch(batch, CheckpointMeta(40, 2, Configuration.of([1]), 0), 15)
    log.delete_history(batch, 18)
    rig.engine.write(batch)
    assert [log.entry(i, snapshot) for i in range(1, 21)] == commands(1, 20)
    assert log.entry(21, snapshot) is None
    assert log.entry(20) == command(20, 2)
    assert log.entry(15) is None
    snapshot.close()


def test_drop_leaves_nothing_of_the_group_and_all_of_its_neighbours(rig: Rig) -> None:
    logs = {group: RaftLog(rig.engine, group) for group in (GROUP - 1, GROUP, GROUP + 1)}
    for log in logs.values():
        batch = rig.engine.new_batch()
        log.append(batch, [*commands(1, 9), configuration_entry(10, 1, Configuration.of([1]))])
        log.put_hard_state(batch, HardState(1, 1, 1))
        rig.engine.write(batch)
        batch = rig.engine.new_batch()
        log.compact(batch, 3)
        log.stage(batch, commands(20, 22))
        rig.engine.write(batch)
    neighbours = [contents(logs[GROUP - 1]), contents(logs[GROUP + 1])]
    batch = rig.engine.new_batch()
    logs[GROUP].drop(batch)
    rig.engine.write(batch)
    assert list(rig.engine.scan(*keys.group_bounds(GROUP))) == []
    assert contents(logs[GROUP]) == contents(opened(rig))
    assert opened(rig).last_index == 0
    reopened = [contents(RaftLog(rig.engine, group)) for group in (GROUP - 1, GROUP + 1)]
    assert reopened == neighbours


def test_an_append_that_leaves_a_gap_or_touches_what_is_compacted_is_a_bug(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 5))
    compact(rig, log, 3)
    for entries in (commands(7, 7), commands(3, 3), [command(6), command(8)]):
        with pytest.raises(AssertionError):
            log.append(rig.engine.new_batch(), entries)


def test_hard_state_is_put_only_when_it_changed(rig: Rig) -> None:
    log = opened(rig)
    batch = rig.engine.new_batch()
    log.put_hard_state(batch, HardState(2, 1, 0))
    rig.engine.write(batch)
    if isinstance(rig, MemoryRig):
        batch = rig.engine.new_batch()
        log.put_hard_state(batch, HardState(2, 1, 0))
        assert batch.writes == []  # type: ignore[attr-defined]
    assert opened(rig).hard_state == HardState(2, 1, 0)
