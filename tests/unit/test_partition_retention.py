"""Retention finds what is due by a bounded search, and finds what a look at every batch finds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from node.partition.retention import BatchPlace, first_offset_by_bytes, first_offset_by_time

SIZES = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 100), st.integers(0, 3)), max_size=40
)  # records, bytes, milliseconds since the batch before


class Rows:
    def __init__(self, sizes: list[tuple[int, int, int]]) -> None:
        self.batches: list[BatchPlace] = []
        self.next_offset = self.bytes = time_ms = 0
        for count, size, elapsed_ms in sizes:
            time_ms += elapsed_ms
            place = BatchPlace(self.next_offset, self.next_offset + count, self.bytes, time_ms)
            self.batches.append(place)
            self.next_offset += count
            self.bytes += size
        self.reads = 0

    def find(self, offset: int) -> BatchPlace | None:
        self.reads += 1
        return next((b for b in self.batches if b.next_offset > offset), None)


@given(SIZES, st.data())
@settings(max_examples=500, deadline=None)
def test_by_bytes(sizes: list[tuple[int, int, int]], data: st.DataObject) -> None:
    rows = Rows(sizes)
    first_offset = data.draw(st.integers(0, rows.next_offset))
    bytes_max = data.draw(st.integers(0, rows.bytes + 10))
    found = first_offset_by_bytes(
        rows.find,
        first_offset=first_offset,
        next_offset=rows.next_offset,
        stored_bytes_ever=rows.bytes,
        bytes_max=bytes_max,
    )
    live = [b for b in rows.batches if b.next_offset > first_offset]
    kept = [b for b in live if rows.bytes - b.start_bytes <= bytes_max] or live[-1:]
    assert found == (max(first_offset, kept[0].base_offset) if kept else first_offset)


@given(SIZES, st.data())
@settings(max_examples=500, deadline=None)
def test_by_time(sizes: list[tuple[int, int, int]], data: st.DataObject) -> None:
    rows = Rows(sizes)
    first_offset = data.draw(st.integers(0, rows.next_offset))
    time_ms = data.draw(st.integers(0, 130))
    found = first_offset_by_time(
        rows.find,
        first_offset=first_offset,
        next_offset=rows.next_offset,
        append_time_ms_min=time_ms,
    )
    kept = [b for b in rows.batches if b.next_offset > first_offset and b.append_time_ms >= time_ms]
    assert found == (max(first_offset, kept[0].base_offset) if kept else rows.next_offset)


def test_nothing_due_costs_one_read_and_much_due_some_dozen() -> None:
    rows = Rows([(3, 10, 1)] * 5_000)
    arguments = {"first_offset": 0, "next_offset": 15_000, "stored_bytes_ever": 50_000}
    assert first_offset_by_bytes(rows.find, **arguments, bytes_max=50_000) == 0
    assert rows.reads == 1
    rows.reads = 0
    assert first_offset_by_bytes(rows.find, **arguments, bytes_max=10) == 14_997
    assert rows.reads < 40
