"""The newest entries of a log, in memory: what a leader sends and a replica applies was appended a
moment ago and is not read back from the disk.

Memory is bounded over all logs of a node by one TailBudget. An entry is let go only when it can be
read from the engine: those of the batch being filled stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.interfaces import WriteBatch
from cluster.raft.messages import Entry

# What an Entry and its four objects take beside its data.
ENTRY_OVERHEAD_BYTES = 200


class TailBudget:
    """`bytes_max` for all caches together. When it is exceeded, the logs that have not grown for
    the longest time lose their cached entries first, down to three quarters of the budget. What may
    not be let go yet can exceed it."""

    def __init__(self, bytes_max: int = 32 << 20) -> None:
        assert bytes_max > 0, f"bytes_max {bytes_max}"
        self.bytes_max = bytes_max
        self.bytes = 0
        self._caches: dict[TailCache, None] = {}  # the least recently grown first

    def grew(self, cache: TailCache, size: int) -> None:
        self.bytes += size
        self._caches.pop(cache, None)
        self._caches[cache] = None
        if self.bytes > self.bytes_max:
            self._shrink()

    def shrank(self, size: int) -> None:
        self.bytes -= size

    def forget(self, cache: TailCache) -> None:
        self._caches.pop(cache, None)

    def _shrink(self) -> None:
        goal = self.bytes_max * 3 // 4
        for cache in list(self._caches):
            if self.bytes <= goal:
                return
            cache.evict(self.bytes - goal)
            if not cache.bytes:
                del self._caches[cache]


class TailCache:
    """Entries [first_index, next_index), the end of one log. first_index = next_index when empty.

    `append` takes for granted that the batch of an earlier `append` was written before another
    batch comes: one batch a turn, and the turn ends with its write."""

    def __init__(self, budget: TailBudget, next_index: int) -> None:
        self.first_index = next_index
        self.bytes = 0
        self._entries: list[Entry] = []
        self._budget = budget
        self._batch: WriteBatch | None = None  # the one that holds what comes next
        self._unwritten_from = next_index

    @property
    def next_index(self) -> int:
        return self.first_index + len(self._entries)

    def append(self, batch: WriteBatch, entries: Sequence[Entry]) -> None:
        """Discards everything from entries[0].index on first."""
        first = entries[0].index
        self.truncate(first)
        assert first == self.next_index, f"cache ends at {self.next_index}, got {first}"
        if batch is not self._batch:
            self._batch = batch
            self._unwritten_from = first
        self._unwritten_from = min(self._unwritten_from, first)
        self._entries.extend(entries)
        size = _size(entries)
        self.bytes += size
        self._budget.grew(self, size)

    def get(self, index: int) -> Entry | None:
        at = index - self.first_index
        return self._entries[at] if 0 <= at < len(self._entries) else None

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """first_index <= low. As many of [low, high] as fit, maybe none."""
        assert low >= self.first_index, f"{low} is below the cache's {self.first_index}"
        found = self._entries[low - self.first_index : high + 1 - self.first_index]
        room = bytes_max
        for at, entry in enumerate(found):
            room -= len(entry.data)
            if room < 0:
                return found[:at]
        return found

    def truncate(self, index: int) -> None:
        """The log now ends before `index`."""
        if index < self.first_index:
            self.restart(index)
            return
        at = index - self.first_index
        if at < len(self._entries):
            self._drop(at, len(self._entries))

    def drop_below(self, index: int) -> None:
        """Let go of entries below `index`, as far as they can be read back from the engine."""
        self._drop_first(max(0, min(index, self._unwritten_from) - self.first_index))

    def evict(self, size: int) -> None:
        """Let go of about `size` bytes, the oldest entries first, as far as they can be read back
        from the engine."""
        count = freed = 0
        evictable = self._unwritten_from - self.first_index
        for entry in self._entries[:evictable]:
            if freed >= size:
                break
            freed += len(entry.data) + ENTRY_OVERHEAD_BYTES
            count += 1
        self._drop_first(count)

    def restart(self, next_index: int) -> None:
        """Forget everything; the log ends before `next_index`."""
        self._drop(0, len(self._entries))
        self.first_index = self._unwritten_from = next_index
        self._budget.forget(self)

    def _drop_first(self, count: int) -> None:
        self._drop(0, count)
        self.first_index += count

    def _drop(self, begin: int, end: int) -> None:
        size = _size(self._entries[begin:end])
        del self._entries[begin:end]
        self.bytes -= size
        self._budget.shrank(size)


def _size(entries: Sequence[Entry]) -> int:
    return sum([len(entry.data) for entry in entries]) + len(entries) * ENTRY_OVERHEAD_BYTES
