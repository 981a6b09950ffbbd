"""Damage in the stored Raft log is noticed, over both engines (rule R14)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.interfaces import CorruptEntry
from cluster.raft.configuration import Configuration
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
from tests.conformance.storage_rigs import RIGS, Rig, command, commands


@pytest.fixture(params=RIGS, ids=lambda rig: rig.name)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made: Rig = request.param(tmp_path)
    yield made
    made.close()


def damaged(rig: Rig, key: bytes, bit: int) -> None:
    row = rig.engine.get(key)
    assert row is not None
    changed = bytearray(row)
    changed[bit // 8 % len(changed)] ^= 1 << bit % 8
    batch = rig.engine.new_batch()
    batch.put(key, bytes(changed))
    rig.engine.write(batch)


@pytest.mark.parametrize("bit", [0, 9, 40, 13 * 8, 20 * 8 + 3])
def test_R14_a_flipped_bit_in_the_tail_is_noticed_at_open_and_on_every_read(
    rig: Rig, bit: int
) -> None:
    log = RaftLog(rig.engine, GROUP, TailBudget(TINY))
    append(rig, log, commands(1, 10))
    append(rig, log, commands(11, 11))
    damaged(rig, entry_key(4), bit)
    with pytest.raises(CorruptEntry, match="4"):
        log.entries(1, 11, BIG)
    with pytest.raises(CorruptEntry, match="4"):
        log.entry(4)
    assert log.entries(5, 11, BIG) == commands(5, 11)
    with pytest.raises(CorruptEntry, match="4"):
        opened(rig)
    batch = rig.engine.new_batch()
    log.repair(batch, command(4))
    rig.engine.write(batch)
    assert opened(rig).entries(1, 11, BIG) == commands(1, 11)


def test_R14_a_flipped_bit_in_the_history_is_found_by_its_reader(rig: Rig) -> None:
    log = RaftLog(rig.engine, GROUP, TailBudget(TINY))
    append(rig, log, commands(1, 10))
    append(rig, log, commands(11, 11))
    compact(rig, log, 8)
    damaged(rig, entry_key(4), 150)
    reopened = opened(rig)
    with pytest.raises(CorruptEntry):
        reopened.entry(4)
    snapshot = rig.engine.snapshot()
    with pytest.raises(CorruptEntry) as caught:
        reopened.entry(4, snapshot)
    assert caught.value.index == 4
    snapshot.close()


def test_a_repair_brings_nothing_back_that_was_deleted_meanwhile(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 10))
    compact(rig, log, 8)
    batch = rig.engine.new_batch()
    log.delete_history(batch, 5)
    log.repair(batch, command(4))
    log.repair(batch, command(5))
    rig.engine.write(batch)
    assert log.entry(4) is None
    assert opened(rig).entry(4) is None
    assert log.entry(5) == command(5)


@pytest.mark.parametrize("missing", [1, 5, 10])
def test_R14_a_hole_in_the_tail_is_noticed_at_open(rig: Rig, missing: int) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 10))
    batch = rig.engine.new_batch()
    batch.delete(entry_key(missing))
    rig.engine.write(batch)
    with pytest.raises(CorruptEntry):
        opened(rig)


def test_R14_two_entries_that_changed_places_are_noticed(rig: Rig) -> None:
    log = opened(rig)
    append(rig, log, commands(1, 10))
    rows = [rig.engine.get(entry_key(index)) for index in (4, 5)]
    batch = rig.engine.new_batch()
    for index, row in zip((5, 4), rows, strict=True):
        assert row is not None
        batch.put(entry_key(index), row)
    rig.engine.write(batch)
    with pytest.raises(CorruptEntry):
        opened(rig)


@pytest.mark.parametrize("kind", [keys.LOG_META, keys.LAST_INDEX, keys.HARD_STATE])
def test_R14_a_flipped_bit_in_a_small_row_is_noticed_at_open(rig: Rig, kind: bytes) -> None:
    log = opened(rig)
    append(rig, log, [*commands(1, 9), configuration_entry(10, 1, Configuration.of([1]))])
    batch = rig.engine.new_batch()
    log.compact(batch, 3)
    log.put_hard_state(batch, HardState(1, 2, 3))
    rig.engine.write(batch)
    key = keys.group_key(GROUP, kind)
    row = rig.engine.get(key)
    assert row is not None
    for bit in range(8 * len(row)):
        damaged(rig, key, bit)
        with pytest.raises(CorruptEntry):
            opened(rig)
        damaged(rig, key, bit)
    assert contents(opened(rig)) == contents(log)
