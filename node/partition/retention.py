"""Which records are too old or too many. Decided by the leader, carried out by a Trim command.

Records go by whole batches, and the last batch stays however large it is. The work is bounded: a
binary search over the rows of the record index, which is given as a function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class BatchPlace(NamedTuple):
    """A batch of records: its offsets, and how many bytes the partition had stored before it. Both
    rise from batch to batch; append times never fall."""

    base_offset: int
    next_offset: int
    start_bytes: int
    append_time_ms: int


# The batch that holds the offset, else the next one after it, None beyond the last.
FindBatch = Callable[[int], BatchPlace | None]


def first_offset_by_bytes(
    find: FindBatch, *, first_offset: int, next_offset: int, stored_bytes_ever: int, bytes_max: int
) -> int:
    """The lowest first_offset with which at most `bytes_max` stay."""
    start_bytes_min = stored_bytes_ever - bytes_max
    return _first_kept(
        find,
        first_offset=first_offset,
        next_offset=next_offset,
        is_kept=lambda batch: batch.start_bytes >= start_bytes_min,
        keep_last=True,
    )


def first_offset_by_time(
    find: FindBatch, *, first_offset: int, next_offset: int, append_time_ms_min: int
) -> int:
    """The lowest first_offset with which only records appended at that time or later stay."""
    return _first_kept(
        find,
        first_offset=first_offset,
        next_offset=next_offset,
        is_kept=lambda batch: batch.append_time_ms >= append_time_ms_min,
        keep_last=False,
    )


def _first_kept(
    find: FindBatch,
    *,
    first_offset: int,
    next_offset: int,
    is_kept: Callable[[BatchPlace], bool],
    keep_last: bool,
) -> int:
    """Once a batch is kept, all later ones are. Looks first where the answer mostly is: nothing is
    due, or only a little more than last time."""
    low, step = first_offset, 1
    found = next_offset
    last_base = first_offset
    high = next_offset
    while low < high:
        probe = min(low + step - 1, high - 1) if found == next_offset else (low + high) // 2
        batch = find(probe)
        if batch is None or batch.base_offset >= high:
            high = probe
            continue
        if is_kept(batch):
            found = high = max(batch.base_offset, first_offset)
        else:
            last_base = max(last_base, batch.base_offset)
            low, step = batch.next_offset, step * 2
    if found == next_offset and keep_last:
        return max(last_base, first_offset)
    return found
