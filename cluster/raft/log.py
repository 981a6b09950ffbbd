"""A group's log as the core sees it: what the store holds, and on top of it the entries that were
appended in memory and not yet handed to the store.

    first_index ......... store.last_index | unstable ......... last_index
                  ^applied   ^durable_index          ^commit_index may be anywhere <= last_index

Invariants: applied_index <= min(commit_index, durable_index); a durable claim never covers an entry
that was truncated after it was written (the ABA of bug class 21: claims are cut back on
truncation).
"""

from __future__ import annotations

from typing import Protocol

from cluster.raft.messages import Entry


class LogReader(Protocol):
    """The reading half of cluster.interfaces.LogStore; see there."""

    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    def term(self, index: int) -> int: ...
    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]: ...


class Log:
    def __init__(self, store: LogReader, *, commit_index: int, applied_index: int) -> None:
        self.store = store
        self.unstable: list[Entry] = []
        self.unstable_first = store.last_index + 1  # index of unstable[0], or where it would be
        self.last_index = store.last_index
        self.durable_index = store.last_index
        self.commit_index = max(commit_index, applied_index)
        self.applied_index = applied_index
        self._claims: list[
            list[int]
        ] = []  # [number, last_index] of writes on their way to the disk
        assert applied_index <= store.last_index, f"applied {applied_index} > {store.last_index}"
        assert self.commit_index <= store.last_index or not store.last_index, (
            f"commit {self.commit_index} beyond last {store.last_index}"
        )

    @property
    def first_index(self) -> int:
        return self.store.first_index

    @property
    def last_term(self) -> int:
        return self.term(self.last_index)

    def term(self, index: int) -> int:
        """Raises Compacted below first_index - 1 and IndexError above last_index."""
        at = index - self.unstable_first
        if at >= 0:
            return self.unstable[at].term
        return self.store.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Is there an entry (index, term), or is that the compaction point?"""
        if index > self.last_index or index < self.first_index - 1:
            return False
        return self.term(index) == term

    def is_up_to_date(self, *, last_log_index: int, last_log_term: int) -> bool:
        """Raft §5.4.1: may a candidate with this log win our vote?"""
        mine = self.last_term
        return last_log_term > mine or (last_log_term == mine and last_log_index >= self.last_index)

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """[low, high], at least one, as many as fit bytes_max. Raises Compacted."""
        if low >= self.unstable_first:
            return _fit(
                self.unstable[low - self.unstable_first : high + 1 - self.unstable_first], bytes_max
            )
        stored_high = min(high, self.unstable_first - 1)
        found = list(self.store.entries(low, stored_high, bytes_max))
        if high > stored_high and found[-1].index == stored_high:
            room = bytes_max - sum(len(e.data) for e in found)
            for entry in self.unstable[: high - stored_high]:
                room -= len(entry.data)
                if room < 0:
                    break
                found.append(entry)
        return found

    def append(self, entries: list[Entry]) -> None:
        """Contiguous entries from any index > commit_index on; whatever stood there is
        discarded."""
        first = entries[0].index
        assert first > self.commit_index, f"truncating committed: {first} <= {self.commit_index}"
        assert first <= self.last_index + 1, f"gap: {first} after {self.last_index}"
        if first <= self.last_index:
            self._truncate(first)
        self.unstable.extend(entries)
        self.last_index = entries[-1].index

    def _truncate(self, first: int) -> None:
        if first >= self.unstable_first:
            del self.unstable[first - self.unstable_first :]
        else:
            self.unstable.clear()
            self.unstable_first = first
        self.last_index = first - 1
        self.durable_index = min(self.durable_index, first - 1)
        for claim in self._claims:
            claim[1] = min(claim[1], first - 1)

    def find_conflict(self, entries: list[Entry]) -> int:
        """Position in `entries` of the first one that is not in the log; len(entries) if all
        are."""
        for at, entry in enumerate(entries):
            if not self.matches(entry.index, entry.term):
                return at
        return len(entries)

    def find_last_at_most(self, index: int, term: int) -> tuple[int, int]:
        """(i, its term): the largest i <= index with term(i) <= term; i may be the compaction
        point. (0, 0) if none. Skips a whole diverging term in one round trip (Raft §5.3)."""
        index = min(index, self.last_index)
        while index >= self.first_index - 1 and index > 0:
            found = self.term(index)
            if found <= term:
                return index, found
            index -= 1
        return 0, 0

    def hand_over(self, number: int) -> list[Entry]:
        """The unstable entries, now the store's; `number` names the write in `synced`."""
        handed, self.unstable = self.unstable, []
        self.unstable_first += len(handed)
        if handed:
            self._claims.append([number, handed[-1].index])
        return handed

    def synced(self, number: int) -> None:
        """Writes up to `number` are on disk."""
        while self._claims and self._claims[0][0] <= number:
            self.durable_index = max(self.durable_index, self._claims.pop(0)[1])

    def applicable(self, handed_index: int, bytes_max: int) -> list[Entry]:
        """Committed and durable entries after handed_index."""
        high = min(self.commit_index, self.durable_index)
        if high <= handed_index:
            return []
        return self.entries(handed_index + 1, high, bytes_max)

    def reset_to(self, index: int) -> None:
        """A checkpoint of `index` replaced everything (the store has switched already)."""
        assert self.store.last_index == index, f"store at {self.store.last_index}, not {index}"
        self.unstable.clear()
        self.unstable_first = index + 1
        self._claims.clear()
        self.last_index = self.commit_index = self.applied_index = self.durable_index = index


def _fit(entries: list[Entry], bytes_max: int) -> list[Entry]:
    room = bytes_max
    for at, entry in enumerate(entries):
        room -= len(entry.data)
        if room < 0:
            return entries[: max(at, 1)]
    return entries
