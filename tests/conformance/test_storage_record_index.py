"""RecordIndex over both engines."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cluster.interfaces import CorruptRow
from node.storage import keys
from node.storage.record_index import RecordIndex, RecordRow
from tests.conformance.storage_rigs import RIGS, Rig

GROUP = 7


@pytest.fixture(params=RIGS, ids=lambda rig: rig.name)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made: Rig = request.param(tmp_path)
    yield made
    made.close()


def row(base_offset: int, count: int = 1, time_ms: int = 0, columns: bytes = b"") -> RecordRow:
    return RecordRow(base_offset, base_offset + 1, count, time_ms, -5, 2**40, columns)


def put(rig: Rig, index: RecordIndex, rows: list[RecordRow]) -> None:
    batch = rig.engine.new_batch()
    for each in rows:
        index.put(batch, each)
    rig.engine.write(batch)


def test_an_empty_index(rig: Rig) -> None:
    index = RecordIndex(rig.engine, GROUP)
    assert (index.first(), index.last(), index.find(0), index.find_by_time(0)) == (None,) * 4
    assert list(index.rows(0)) == []


def test_a_row_comes_back_as_it_was_put_once_its_batch_is_written(rig: Rig) -> None:
    index = RecordIndex(rig.engine, GROUP)
    rows = [row(0, 7, 1, b"columns"), row(7, 2**32 - 1, 2**50), row(2**40, 3, 2**50, b"\0" * 5000)]
    batch = rig.engine.new_batch()
    for each in rows:
        index.put(batch, each)
    assert index.first() is None
    rig.engine.write(batch)
    assert list(index.rows(0)) == rows
    assert (index.first(), index.last()) == (rows[0], rows[-1])


def test_find_gives_the_row_of_an_offset_or_the_next_one(rig: Rig) -> None:
    index = RecordIndex(rig.engine, GROUP)
    rows = [row(10, 5), row(15, 1), row(20, 10)]
    put(rig, index, rows)
    # A neighbour's rows are none of ours.
    put(rig, RecordIndex(rig.engine, GROUP - 1), [row(100)])
    put(rig, RecordIndex(rig.engine, GROUP + 1), [row(0)])
    expected = {0: 10, 10: 10, 14: 10, 15: 15, 16: 20, 20: 20, 29: 20, 30: None, 100: None}
    for offset, base in expected.items():
        found = index.find(offset)
        assert (found.base_offset if found else None) == base, offset
        assert [r.base_offset for r in index.rows(offset)] == [
            r.base_offset for r in rows if base is not None and r.base_offset >= base
        ]


@pytest.mark.parametrize("seed", range(5))
def test_find_by_time_agrees_with_a_search_in_a_list(rig: Rig, seed: int) -> None:
    random = Random(seed)
    index = RecordIndex(rig.engine, GROUP)
    rows, offset, time_ms = [], random.randint(0, 2**45), 1000
    for _ in range(200):
        offset += random.choice((0, 0, 1, 50, 10**6))  # gaps: records that are gone
        time_ms += random.choice((0, 0, 1, 3, 1000))  # equal times: one clock, many batches
        count = random.randint(1, 100)
        rows.append(row(offset, count, time_ms))
        offset += count
    put(rig, index, rows)
    for time in [0, *(r.append_time_ms + d for r in rows for d in (-1, 0, 1))]:
        expected = next((r for r in rows if r.append_time_ms >= time), None)
        assert index.find_by_time(time) == expected
    bases = [r.base_offset for r in rows]
    for _ in range(200):
        wanted = random.randint(rows[0].base_offset - 5, offset + 5)
        at = bisect_right(bases, wanted) - 1
        if at < 0 or rows[at].next_offset <= wanted:
            at += 1
        assert index.find(wanted) == (rows[at] if at < len(rows) else None)


def test_rows_are_deleted_one_by_one_and_below_and_from_an_offset(rig: Rig) -> None:
    index = RecordIndex(rig.engine, GROUP)
    other = RecordIndex(rig.engine, GROUP + 1)
    put(rig, index, [row(n * 10, 10) for n in range(10)])
    put(rig, other, [row(0)])
    batch = rig.engine.new_batch()
    index.delete_below(batch, 20)
    index.delete(batch, 40)
    index.delete_from(batch, 80)
    rig.engine.write(batch)
    assert [r.base_offset for r in index.rows(0)] == [20, 30, 50, 60, 70]
    batch = rig.engine.new_batch()
    index.drop(batch)
    rig.engine.write(batch)
    assert index.first() is None
    assert other.first() == row(0)


def test_rows_are_a_view_that_later_writes_do_not_change(rig: Rig) -> None:
    index = RecordIndex(rig.engine, GROUP)
    put(rig, index, [row(n) for n in range(10)])
    rows = index.rows(0)
    assert next(rows) == row(0)
    batch = rig.engine.new_batch()
    index.drop(batch)
    rig.engine.write(batch)
    assert list(rows) == [row(n) for n in range(1, 10)]


def test_a_snapshot_serves_the_rows_of_its_moment(rig: Rig) -> None:
    index = RecordIndex(rig.engine, GROUP)
    put(rig, index, [row(0, 5), row(5, 5)])
    snapshot = rig.engine.snapshot()
    batch = rig.engine.new_batch()
    index.drop(batch)
    rig.engine.write(batch)
    assert index.find(7, snapshot) == row(5, 5)
    assert index.find(7) is None
    snapshot.close()


@pytest.mark.parametrize("value", [b"", b"\x01short", b"\x09" + b"\0" * 36])
def test_a_row_of_an_unknown_form_is_refused(rig: Rig, value: bytes) -> None:
    index = RecordIndex(rig.engine, GROUP)
    batch = rig.engine.new_batch()
    batch.put(keys.index_key(keys.group_key(GROUP, keys.RECORD), 3), value)
    rig.engine.write(batch)
    with pytest.raises(CorruptRow, match="3"):
        index.find(0)
