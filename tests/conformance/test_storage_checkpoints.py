"""CheckpointStore over both engines: cluster.interfaces.SnapshotStore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cluster.interfaces import CheckpointMeta
from cluster.raft.configuration import Configuration
from node.storage import keys
from node.storage.checkpoints import CheckpointStore, CorruptCheckpoint
from tests.conformance.storage_rigs import RIGS, Rig

GROUP = 7
ONE = CheckpointMeta(10, 1, Configuration.of([1, 2, 3], [4]), 3)
TWO = CheckpointMeta(20, 2, Configuration.of([1, 2]).joint_to([2, 3]), 12)


@pytest.fixture(params=RIGS, ids=lambda rig: rig.name)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made: Rig = request.param(tmp_path)
    yield made
    made.close()


def put(
    rig: Rig, store: CheckpointStore, meta: CheckpointMeta, changed: dict[bytes, bytes | None]
) -> None:
    batch = rig.engine.new_batch()
    store.put(batch, meta, changed.items())
    rig.engine.write(batch)


def both(rig: Rig, store: CheckpointStore) -> Iterator[CheckpointStore]:
    """The store, and what is found when it is opened again."""
    yield store
    yield CheckpointStore(rig.engine, GROUP)


def test_there_is_none_at_first(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    assert store.meta() is None
    assert list(store.segments()) == []


def test_a_checkpoint_is_its_meta_and_its_segments_in_order_of_names(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    segments = {b"b": b"2", b"a": b"1", b"": b"", b"a\0": b"\0", b"a\xff": b"x" * 5000}
    put(rig, store, ONE, {**segments})
    for each in both(rig, store):
        assert each.meta() == ONE
        assert list(each.segments()) == sorted(segments.items())


def test_unchanged_segments_stay_and_changed_ones_leave_nothing_behind(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    put(rig, store, ONE, {b"a": b"1", b"b": b"1", b"c": b"1"})
    put(rig, store, TWO, {b"b": b"2", b"c": None, b"d": b"2", b"never": None})
    for each in both(rig, store):
        assert each.meta() == TWO
        assert list(each.segments()) == [(b"a", b"1"), (b"b", b"2"), (b"d", b"2")]
    rows = list(rig.engine.scan(*keys.group_bounds(GROUP)))
    assert len(rows) == 1 + 3


def test_replace_leaves_only_what_it_was_given(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    put(rig, store, ONE, {b"a": b"1", b"b": b"1"})
    batch = rig.engine.new_batch()
    store.stage(batch, [(b"s", b"staged"), (b"t", b"staged"), (b"t", None)])
    rig.engine.write(batch)
    batch = rig.engine.new_batch()
    store.replace(batch, TWO, [(b"b", b"2"), (b"z", b"2")])
    rig.engine.write(batch)
    for each in both(rig, store):
        assert list(each.segments()) == [(b"b", b"2"), (b"s", b"staged"), (b"z", b"2")]


def test_staged_segments_count_when_they_are_put_and_not_before(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    put(rig, store, ONE, {b"a": b"1", b"b": b"1"})
    for changed in ((b"a", b"2"), (b"b", None), (b"c", b"2")):
        batch = rig.engine.new_batch()
        store.stage(batch, [changed])
        rig.engine.write(batch)
        for each in both(rig, store):
            assert list(each.segments()) == [(b"a", b"1"), (b"b", b"1")]
    put(rig, store, TWO, {b"d": b"2"})
    for each in both(rig, store):
        assert list(each.segments()) == [(b"a", b"2"), (b"c", b"2"), (b"d", b"2")]


@pytest.mark.parametrize("seed", range(10))
async def test_R10_a_crash_while_it_is_written_leaves_the_checkpoint_before(
    rig: Rig, seed: int
) -> None:
    random = Random(seed)
    store = CheckpointStore(rig.engine, GROUP)
    put(rig, store, ONE, {b"a": b"1", b"b": b"1"})
    await rig.sync()
    for name in (b"a", b"leftover", b"c"):
        batch = rig.engine.new_batch()
        store.stage(batch, [(name, b"2")])
        rig.engine.write(batch)
    put(rig, store, TWO, {})
    rig.crash(random)
    store = CheckpointStore(rig.engine, GROUP)
    if store.meta() == ONE:
        assert list(store.segments()) == [(b"a", b"1"), (b"b", b"1")]
        put(rig, store, TWO, {b"b": b"3"})
        assert list(store.segments()) == [(b"a", b"1"), (b"b", b"3")]
    else:
        expected = [(b"a", b"2"), (b"b", b"1"), (b"c", b"2"), (b"leftover", b"2")]
        assert list(store.segments()) == expected
    rows = list(rig.engine.scan(*keys.group_bounds(GROUP)))
    assert len(rows) == 1 + len(list(store.segments()))


def test_abandoned_segments_are_deleted(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    put(rig, store, ONE, {b"a": b"1"})
    batch = rig.engine.new_batch()
    store.stage(batch, [(b"a", None), (b"b", b"2")])
    rig.engine.write(batch)
    batch = rig.engine.new_batch()
    store.abandon(batch)
    rig.engine.write(batch)
    put(rig, store, TWO, {})
    for each in both(rig, store):
        assert list(each.segments()) == [(b"a", b"1")]


def test_a_snapshot_serves_the_checkpoint_of_its_moment(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    put(rig, store, ONE, {b"a": b"1", b"b": b"1"})
    snapshot = rig.engine.snapshot()
    put(rig, store, TWO, {b"a": b"2", b"b": None})
    assert store.meta(snapshot) == ONE
    assert list(store.segments(snapshot)) == [(b"a", b"1"), (b"b", b"1")]
    assert store.meta() == TWO
    snapshot.close()


def test_drop_leaves_nothing(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    neighbour = CheckpointStore(rig.engine, GROUP + 1)
    put(rig, store, ONE, {b"a": b"1"})
    put(rig, neighbour, ONE, {b"a": b"1"})
    batch = rig.engine.new_batch()
    store.stage(batch, [(b"b", b"1")])
    store.drop(batch)
    rig.engine.write(batch)
    for each in both(rig, store):
        assert each.meta() is None
    assert list(rig.engine.scan(*keys.group_bounds(GROUP))) == []
    assert list(neighbour.segments()) == [(b"a", b"1")]


def test_every_flipped_bit_is_noticed(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    put(rig, store, ONE, {b"a": b"12345", b"b": b"1"})
    for key, row in list(rig.engine.scan(*keys.group_bounds(GROUP))):
        for bit in range(8 * len(row)):
            changed = bytearray(row)
            changed[bit // 8] ^= 1 << bit % 8
            batch = rig.engine.new_batch()
            batch.put(key, bytes(changed))
            rig.engine.write(batch)
            with pytest.raises(CorruptCheckpoint):
                list(CheckpointStore(rig.engine, GROUP).segments())
        batch = rig.engine.new_batch()
        batch.put(key, row)
        rig.engine.write(batch)
    assert len(list(CheckpointStore(rig.engine, GROUP).segments())) == 2


def test_a_missing_segment_is_noticed(rig: Rig) -> None:
    store = CheckpointStore(rig.engine, GROUP)
    put(rig, store, ONE, {b"a": b"1", b"b": b"1"})
    batch = rig.engine.new_batch()
    batch.delete(keys.segment_key(keys.group_key(GROUP, keys.CHECKPOINT_SEGMENT), 1, b"b"))
    rig.engine.write(batch)
    with pytest.raises(CorruptCheckpoint, match="missing"):
        list(store.segments())
