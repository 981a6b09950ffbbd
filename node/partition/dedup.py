"""Ids of stateless callers: a second record with the same id is not stored (contract "dedup_id").

The window is bounded by count and, if the topic says so, by age in log time. Ids are numbered as
they come and kept in blocks of 1024: a full block never changes, so a checkpoint writes the blocks
that grew and deletes those that were left behind; how much of the oldest block has been left is one
number in the core segment.

Rejected: an ordered dict alone, of which the next checkpoint would have to write everything when
its oldest entry is dropped.
"""

from __future__ import annotations

import struct
from array import array
from functools import partial

from node.partition.commands import Appended, DedupOverflow, Reason, Refused, Settings
from node.partition.state import FORMAT_VERSION, FrozenSegment, UnknownFormat, check_version

_PREFIX = b"dedup/"
_BLOCK_IDS = 1_024
_COUNT = struct.Struct("<I")

# How many ids one command drops at most, so that a window made smaller costs no long pause.
_DROPPED_AT_ONCE_MAX = 64


class _Block:
    """Columns of up to 1024 ids, in order of their numbers. Only grows."""

    __slots__ = ("append_times_ms", "ids", "log_times_ms", "offsets")

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self.offsets = array("Q")
        self.append_times_ms = array("Q")
        self.log_times_ms = array("Q")

    def copy(self) -> _Block:
        copy = _Block()
        copy.ids = self.ids.copy()
        copy.offsets = self.offsets[:]
        copy.append_times_ms = self.append_times_ms[:]
        copy.log_times_ms = self.log_times_ms[:]
        return copy


class DedupWindow:
    """`first` <= numbers of remembered ids < `next`."""

    def __init__(self) -> None:
        self.first = 0
        self.next = 0
        self._numbers: dict[bytes, int] = {}
        self._blocks: dict[int, _Block] = {}
        self._dirty: dict[int, None] = {}

    @property
    def count(self) -> int:
        return self.next - self.first

    @property
    def oldest_log_time_ms(self) -> int | None:
        """When the oldest id remembered came; None without ids."""
        if self.first == self.next:
            return None
        return self._blocks[self.first // _BLOCK_IDS].log_times_ms[self.first % _BLOCK_IDS]

    def check(
        self, dedup_id: bytes, settings: Settings, log_time_ms: int
    ) -> Appended | Refused | None:
        """None: the id is new and there is room, `appended` may follow. Else the answer."""
        if settings.dedup_window_count == 0:
            return Refused(
                Reason.FEATURE_NOT_ENABLED,
                "dedup_window_count of the topic is 0",
                details={"feature": "dedup_id"},
            )
        number = self._numbers.get(dedup_id)
        if number is not None:
            block, at = self._blocks[number // _BLOCK_IDS], number % _BLOCK_IDS
            if not _is_over(block.log_times_ms[at], settings, log_time_ms):
                return Appended(block.offsets[at], 1, block.append_times_ms[at], duplicate=True)
        if settings.dedup_overflow is not DedupOverflow.REFUSE:
            return None
        self._drop(settings, log_time_ms, room=self.count)
        if self.count < settings.dedup_window_count:
            return None
        return Refused(
            Reason.DEDUP_FULL, f"{self.count} dedup ids are remembered, the topic's maximum"
        )

    def appended(
        self,
        dedup_id: bytes,
        settings: Settings,
        *,
        offset: int,
        append_time_ms: int,
        log_time_ms: int,
    ) -> None:
        """Remember an id that `check` let pass; with EVICT_OLDEST forget old ones for it."""
        is_evicting = settings.dedup_overflow is DedupOverflow.EVICT_OLDEST
        room = settings.dedup_window_count - 1 if is_evicting else self.count
        self._drop(settings, log_time_ms, room=room)
        number = self.next
        block_number = number // _BLOCK_IDS
        block = self._blocks.get(block_number)
        if block is None:
            block = self._blocks[block_number] = _Block()
        block.ids.append(dedup_id)
        block.offsets.append(offset)
        block.append_times_ms.append(append_time_ms)
        block.log_times_ms.append(log_time_ms)
        assert len(block.ids) == number % _BLOCK_IDS + 1, f"dedup block {block_number} has holes"
        self._dirty[block_number] = None
        self._numbers[dedup_id] = number
        self.next = number + 1

    def is_whole(self) -> bool:
        """Whether the restored blocks are those that the bounds speak of."""
        kept_from = self.first - self.first % _BLOCK_IDS
        return sum(len(block.ids) for block in self._blocks.values()) == self.next - kept_from

    def _drop(self, settings: Settings, log_time_ms: int, *, room: int) -> None:
        """Forget the oldest ids while they are more than `room`, or over by age."""
        for _ in range(_DROPPED_AT_ONCE_MAX):
            if self.first == self.next:
                return
            block_number, at = divmod(self.first, _BLOCK_IDS)
            block = self._blocks[block_number]
            is_over = _is_over(block.log_times_ms[at], settings, log_time_ms)
            if self.count <= room and not is_over:
                return
            dedup_id = block.ids[at]
            # An id that was over while still here may have come again under a higher number.
            if self._numbers[dedup_id] == self.first:
                del self._numbers[dedup_id]
            self.first += 1
            if at == _BLOCK_IDS - 1:
                del self._blocks[block_number]
                self._dirty[block_number] = None

    def freeze(self) -> list[FrozenSegment]:
        frozen: list[FrozenSegment] = []
        for number in self._dirty:
            name = _PREFIX + b"%016x" % number
            block = self._blocks.get(number)
            if block is None:
                frozen.append((name, None))
                continue
            still = block if len(block.ids) == _BLOCK_IDS else block.copy()
            frozen.append((name, partial(_encode, still)))
        self._dirty = {}
        return frozen

    def restore_bounds(self, first: int, next_number: int) -> None:
        """From the core segment, before any block."""
        self.first, self.next = first, next_number

    def restore(self, name: bytes, data: bytes) -> None:
        """Take in one block; blocks come in rising order."""
        number = int(name.removeprefix(_PREFIX), 16)
        block = self._blocks[number] = _decode(name, data)
        for at, dedup_id in enumerate(block.ids, number * _BLOCK_IDS):
            if at >= self.first:
                self._numbers[dedup_id] = at


def _is_over(log_time_ms: int, settings: Settings, now_ms: int) -> bool:
    window_ms = settings.dedup_window_ms
    return window_ms > 0 and now_ms - log_time_ms >= window_ms


def _encode(block: _Block) -> bytes:
    count = len(block.ids)
    return b"".join(
        (
            bytes((FORMAT_VERSION,)),
            _COUNT.pack(count),
            struct.pack(f"<{count}Q", *block.offsets),
            struct.pack(f"<{count}Q", *block.append_times_ms),
            struct.pack(f"<{count}Q", *block.log_times_ms),
            bytes(map(len, block.ids)),
            *block.ids,
        )
    )


def _decode(name: bytes, data: bytes) -> _Block:
    check_version(name, data)
    block = _Block()
    try:
        (count,) = _COUNT.unpack_from(data, 1)
        at = 1 + _COUNT.size
        for column in (block.offsets, block.append_times_ms, block.log_times_ms):
            column.extend(struct.unpack_from(f"<{count}Q", data, at))
            at += 8 * count
    except struct.error as error:
        raise UnknownFormat(f"segment {name!r} is damaged: {error}") from error
    lengths = data[at : at + count]
    at += count
    for length in lengths:
        block.ids.append(data[at : at + length])
        at += length
    if at != len(data) or len(lengths) != count:
        raise UnknownFormat(f"segment {name!r} has {len(data)} bytes instead of {at}")
    return block
