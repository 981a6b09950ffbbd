"""One group's Raft log in the node's engine, and with it the messages themselves: the log is the
message log (house §4.1).

    history, with holes | tail: contiguous, served by index | staged entries of a catch-up
       generation g-1   |            generation g           |       generation g+1
                         ^first_index            last_index^

A catch-up writes what it receives under the next generation, where nothing reads it, over as many
batches as it takes. `switch` then makes it the log by writing one small row that says which
generation serves which indexes: before that row the old log is whole, after it the new one is.

An entry is stored as it travels (cluster/entry_codec.py). Its CRC covers its place too. At open
every entry of the tail is read and checked: a hole or a wrong CRC there means that durable data is
gone (rule R14).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cluster.entry_codec import HEADER_BYTES, decode_entry, encode_entry
from cluster.interfaces import (
    CheckpointMeta,
    CorruptEntry,
    CorruptRow,
    Engine,
    EngineReader,
    WriteBatch,
)
from cluster.raft.configuration import Configuration
from cluster.raft.errors import Compacted
from cluster.raft.messages import Entry, EntryKind, HardState
from node.storage import keys, log_meta
from node.storage.log_meta import LogMeta, Segment
from node.storage.log_sizes import LogSizes
from node.storage.tail_cache import TailBudget, TailCache
from node.storage.term_runs import TermRuns

# A range tombstone is looked at by every later read near it: not for a handful of keys.
_POINT_DELETES_MAX = 64
_STORED_OVERHEAD_BYTES = 40  # an entry's key and header


class RaftLog:
    """cluster.interfaces.LogStore. Used from one thread.

    A batch given to `append` is written before `append` is called with another one (one batch a
    turn): that is when entries may leave the memory that `budget` bounds.
    """

    def __init__(self, engine: Engine, group_id: int, budget: TailBudget | None = None) -> None:
        """Reads and checks what the engine holds of this log. Raises CorruptEntry."""
        self.group_id = group_id
        self._engine = engine
        self._meta_key = keys.group_key(group_id, keys.LOG_META)
        self._last_index_key = keys.group_key(group_id, keys.LAST_INDEX)
        self._sizes_key = keys.group_key(group_id, keys.LOG_SIZES)
        self._hard_state_key = keys.group_key(group_id, keys.HARD_STATE)
        self._configuration_prefix = keys.group_key(group_id, keys.CONFIGURATION)
        self._snapshot_meta = (b"", LogMeta())  # the one decoded last, and its row
        self._cache = TailCache(budget if budget is not None else TailBudget(), 1)
        self._meta = LogMeta()
        self._last_index = 0
        self._hard_state = HardState()
        self._configurations = [self._meta.base]
        self._terms = TermRuns()
        self._sizes = LogSizes(1)
        self._staged_index = self._staged_bytes = 0
        self.deleted_bytes = 0  # since it was opened, or since node/storage/reclaim.py set it
        self._set_prefixes()
        try:
            self._load()
        except (ValueError, CorruptRow) as error:
            raise CorruptEntry(f"the log of group {group_id} is damaged: {error}") from error

    @property
    def first_index(self) -> int:
        return self._meta.first_index

    @property
    def last_index(self) -> int:
        return self._last_index

    @property
    def hard_state(self) -> HardState:
        return self._hard_state

    @property
    def configurations(self) -> Sequence[tuple[int, Configuration]]:
        return self._configurations

    @property
    def staged_index(self) -> int:
        return self._staged_index

    @property
    def log_bytes(self) -> int:
        """What history and tail take, about; staged entries not counted."""
        return self._sizes.bytes

    @property
    def cache_bytes(self) -> int:
        """Memory of the newest entries; see TailBudget."""
        return self._cache.bytes

    # Reading

    def term(self, index: int) -> int:
        first = self._meta.first_index
        if index < first:
            if index == first - 1:
                return self._meta.base_term
            raise Compacted(f"term of {index}: group {self.group_id} begins at {first}")
        if index > self._last_index:
            raise IndexError(f"term of {index}: group {self.group_id} ends at {self._last_index}")
        return self._terms.at(index)

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        if low < self._meta.first_index:
            raise Compacted(f"{low}: group {self.group_id} begins at {self._meta.first_index}")
        if not low <= high <= self._last_index:
            raise IndexError(f"[{low}, {high}]: group {self.group_id} ends at {self._last_index}")
        cached_from = self._cache.first_index
        if low >= cached_from:
            return self._cache.entries(low, high, bytes_max) or [self._cached(low)]
        stored_high = min(high, cached_from - 1)
        found = self._read(low, stored_high, bytes_max)
        if high > stored_high and found[-1].index == stored_high:
            room = bytes_max - sum([len(entry.data) for entry in found])
            found += self._cache.entries(stored_high + 1, high, room)
        return found

    def entry(self, index: int, reader: EngineReader | None = None) -> Entry | None:
        if reader is not None:
            return self._stored(reader, self._meta_in(reader), index)
        in_tail = self._meta.first_index <= index <= self._last_index
        if in_tail and (cached := self._cache.get(index)) is not None:
            return cached
        found = self._stored(self._engine, self._meta, index)
        if found is None and in_tail:
            raise CorruptEntry(f"entry {index} of group {self.group_id} is missing", index=index)
        return found

    def tail_start(self, bytes_max: int) -> int:
        return max(self._meta.first_index, self._sizes.start_of_last(bytes_max))

    def bytes_below(self, index: int) -> int:
        return self._sizes.below(index)

    # Writing

    def append(self, batch: WriteBatch, entries: Sequence[Entry]) -> None:
        first, last = entries[0].index, entries[-1].index
        assert self._meta.first_index <= first <= self._last_index + 1, (
            f"group {self.group_id}: append of {first} to"
            f" [{self._meta.first_index}, {self._last_index}]"
        )
        if first <= self._last_index:
            self._truncate(batch, first, last)
        put, prefix, index = batch.put, self._tail_prefix, first
        for entry in entries:
            assert entry.index == index, f"entry {entry.index} where {index} belongs"
            put(prefix + index.to_bytes(8, "big"), encode_entry(entry))
            if entry.kind is EntryKind.CONFIGURATION:
                self._append_configuration(batch, entry)
            self._terms.append(index, entry.term)
            index += 1
        put(self._last_index_key, log_meta.encode_last_index(last))
        self._last_index = last
        self._sizes.add(last, _stored_bytes(entries))
        self._cache.append(batch, entries)

    def put_hard_state(self, batch: WriteBatch, hard_state: HardState) -> None:
        if hard_state != self._hard_state:
            batch.put(self._hard_state_key, log_meta.encode_hard_state(hard_state))
            self._hard_state = hard_state

    def found(self, batch: WriteBatch, configuration: Configuration) -> None:
        """The configuration that a founding replica starts with, as if it stood at index 0."""
        assert self._last_index == 0, f"group {self.group_id} has a log up to {self._last_index}"
        self._put_meta(batch, replace(self._meta, base=(0, configuration)))
        self._configurations = [(0, configuration)]

    def compact(self, batch: WriteBatch, index: int) -> None:
        meta = self._meta
        assert meta.first_index - 1 <= index <= self._last_index, (
            f"group {self.group_id}: compact to {index} of [{meta.first_index}, {self._last_index}]"
        )
        if index < meta.first_index:
            return
        base_term = self.term(index)
        below = [found for found in self._configurations if found[0] <= index]
        for folded, _ in below:
            batch.delete(keys.index_key(self._configuration_prefix, folded))
        self._configurations = [below[-1], *self._configurations[len(below) :]]
        self._terms.drop_below(index + 1)
        self._cache.drop_below(index + 1)
        self._put_meta(
            batch, replace(meta, first_index=index + 1, base_term=base_term, base=below[-1])
        )
        self._put_sizes(batch)
        if 0 < self._staged_index <= index:
            self._drop_staged(batch)  # an abandoned catch-up: the log itself went past it

    def delete_history(self, batch: WriteBatch, below: int) -> None:
        below = min(below, self._meta.first_index)
        if below <= self._sizes.low:
            return
        self._delete_entries(batch, self._sizes.low, below - 1)
        held = self._sizes.bytes
        self._sizes.delete_below(below)
        self.deleted_bytes += held - self._sizes.bytes
        self._put_sizes(batch)
        ends = [segment.first_index for segment in self._meta.segments[1:]]
        empty = sum(end <= below for end in ends)  # segments that end below it
        if empty:
            kept = self._meta.segments[empty:]
            kept = (replace(kept[0], first_index=1), *kept[1:])
            self._put_meta(batch, replace(self._meta, segments=kept))

    def delete_entries(self, batch: WriteBatch, first: int, last: int) -> None:
        """Make a hole of [first, last] in the history: none of them holds a live record."""
        assert last < self._meta.first_index, f"{last} is in the tail of group {self.group_id}"
        first = max(first, self._sizes.low)
        if first <= last:
            self._delete_entries(batch, first, last)
            held = self._sizes.bytes
            self._sizes.delete(first, last)
            self.deleted_bytes += held - self._sizes.bytes
            self._put_sizes(batch)

    def repair(self, batch: WriteBatch, entry: Entry) -> None:
        assert entry.is_intact(), f"entry {entry.index} is not intact itself"
        assert entry.index <= self._last_index, f"entry {entry.index} is not in the log"
        if entry.index < self._sizes.low:
            return  # deleted meanwhile
        prefix = keys.entry_prefix(self.group_id, self._meta.generation_of(entry.index))
        batch.put(keys.index_key(prefix, entry.index), encode_entry(entry))

    # Catching up

    def stage(self, batch: WriteBatch, entries: Sequence[Entry]) -> None:
        for entry in entries:
            batch.put(keys.index_key(self._staged_prefix, entry.index), encode_entry(entry))
            self._staged_index = max(self._staged_index, entry.index)
        self._staged_bytes += _stored_bytes(entries)

    def switch(self, batch: WriteBatch, meta: CheckpointMeta, applied_index: int) -> None:
        assert applied_index < meta.index, f"checkpoint {meta.index} is not above {applied_index}"
        assert applied_index <= self._last_index, f"applied {applied_index} > {self._last_index}"
        old, above = self._meta, applied_index + 1
        for segment in old.segments:
            self._delete_range(batch, segment.generation, above, None)
        staged = old.generation + 1
        self._delete_range(batch, staged, 0, above)
        self._delete_range(batch, staged, meta.index + 1, None)
        batch.delete_range(self._configuration_prefix, keys.prefix_end(self._configuration_prefix))
        kept = tuple(segment for segment in old.segments if segment.first_index < above)
        segments = (*kept, Segment(staged, above if kept else 1))
        sizes, staged_bytes = self._sizes, self._staged_bytes
        sizes.truncate(above)
        hard_state = self._hard_state
        base = (meta.index, meta.configuration)
        self._reset(LogMeta(meta.index + 1, meta.term, base, segments))
        self._hard_state = hard_state
        self._sizes = sizes
        self._sizes.add(meta.index, staged_bytes)
        self._put_meta(batch, self._meta)
        self._put_sizes(batch)
        batch.put(self._last_index_key, log_meta.encode_last_index(meta.index))

    def drop(self, batch: WriteBatch) -> None:
        for kind in (keys.ENTRY, keys.CONFIGURATION):
            prefix = keys.group_key(self.group_id, kind)
            batch.delete_range(prefix, keys.prefix_end(prefix))
        for key in (self._meta_key, self._last_index_key, self._sizes_key, self._hard_state_key):
            batch.delete(key)
        self._reset(LogMeta())

    # Below: one job each

    def _reset(self, meta: LogMeta) -> None:
        """An empty tail after the compaction point of `meta`."""
        self._meta = meta
        self._last_index = meta.first_index - 1
        self._hard_state = HardState()
        self._configurations = [meta.base]
        self._terms = TermRuns()
        self._sizes = LogSizes(meta.first_index)
        self._staged_index = self._staged_bytes = 0
        self._cache.restart(meta.first_index)
        self._set_prefixes()

    def _set_prefixes(self) -> None:
        generation = self._meta.generation
        self._tail_prefix = keys.entry_prefix(self.group_id, generation)
        self._staged_prefix = keys.entry_prefix(self.group_id, generation + 1)

    def _load(self) -> None:
        engine = self._engine
        if (row := engine.get(self._meta_key)) is not None:
            self._reset(LogMeta.decode(row))
        if (row := engine.get(self._hard_state_key)) is not None:
            self._hard_state = log_meta.decode_hard_state(row)
        if (row := engine.get(self._sizes_key)) is not None:
            self._sizes = LogSizes.decode(row)
        if (row := engine.get(self._last_index_key)) is not None:
            self._last_index = log_meta.decode_last_index(row)
        prefix = self._configuration_prefix
        for key, row in engine.scan(prefix, keys.prefix_end(prefix)):
            index = int.from_bytes(key[-8:], "big")
            self._configurations.append((index, Configuration.decode(log_meta.unseal(row))))
        self._load_tail()
        self._cache.restart(self._last_index + 1)
        for key, row in engine.scan(self._staged_prefix, keys.prefix_end(self._staged_prefix)):
            self._staged_index = int.from_bytes(key[-8:], "big")
            self._staged_bytes += len(row) + len(key)

    def _load_tail(self) -> None:
        """Check every entry from first_index on; ValueError at a hole or a wrong CRC."""
        expected = self._meta.first_index
        prefix = self._tail_prefix
        rows = self._engine.scan(keys.index_key(prefix, expected), keys.prefix_end(prefix))
        for key, row in rows:
            index = int.from_bytes(key[-8:], "big")
            if index != expected:
                raise ValueError(f"entry {expected} is missing, the next one is {index}")
            entry = decode_entry(index, row)
            if not entry.is_intact():
                raise ValueError(f"the CRC of entry {index} is wrong")
            self._terms.append(index, entry.term)
            self._sizes.add(index, len(row) - HEADER_BYTES + _STORED_OVERHEAD_BYTES)
            expected += 1
        if expected != self._last_index + 1:
            raise ValueError(f"entries end at {expected - 1}, and {self._last_index} was the last")

    def _read(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """[low, high] of the tail from the engine, at least one entry."""
        found: list[Entry] = []
        room, expected = bytes_max, low
        try:
            for key, row in self._tail_rows(low, high):
                index = int.from_bytes(key[-8:], "big")
                entry = self._checked(index, row)
                if index != expected:
                    break
                room -= len(entry.data)
                if room < 0 and found:
                    return found
                found.append(entry)
                expected += 1
        except CorruptRow as error:
            raise CorruptEntry(
                f"entry {expected} of group {self.group_id}: {error}", index=expected
            ) from error
        if expected <= high:
            raise CorruptEntry(
                f"entry {expected} of group {self.group_id} is missing", index=expected
            )
        return found

    def _tail_rows(self, low: int, high: int) -> Iterator[tuple[bytes, bytes]]:
        prefix = self._tail_prefix
        return self._engine.scan(keys.index_key(prefix, low), keys.index_key(prefix, high + 1))

    def _stored(self, reader: EngineReader, meta: LogMeta, index: int) -> Entry | None:
        prefix = keys.entry_prefix(self.group_id, meta.generation_of(index))
        try:
            row = reader.get(keys.index_key(prefix, index))
        except CorruptRow as error:
            raise CorruptEntry(
                f"entry {index} of group {self.group_id}: {error}", index=index
            ) from error
        return None if row is None else self._checked(index, row)

    def _checked(self, index: int, row: bytes) -> Entry:
        try:
            entry = decode_entry(index, row)
        except ValueError as error:
            raise CorruptEntry(f"group {self.group_id}: {error}", index=index) from error
        if not entry.is_intact():
            raise CorruptEntry(
                f"the CRC of entry {index} of group {self.group_id} is wrong", index=index
            )
        return entry

    def _meta_in(self, reader: EngineReader) -> LogMeta:
        row = reader.get(self._meta_key)
        if row is None:
            return LogMeta()
        if row != self._snapshot_meta[0]:
            self._snapshot_meta = (row, LogMeta.decode(row))
        return self._snapshot_meta[1]

    def _cached(self, index: int) -> Entry:
        entry = self._cache.get(index)
        assert entry is not None, f"entry {index} is not cached"
        return entry

    def _append_configuration(self, batch: WriteBatch, entry: Entry) -> None:
        configuration = Configuration.decode(entry.data)
        key = keys.index_key(self._configuration_prefix, entry.index)
        batch.put(key, log_meta.seal(entry.data))
        self._configurations = [*self._configurations, (entry.index, configuration)]

    def _truncate(self, batch: WriteBatch, first: int, overwritten_to: int) -> None:
        """Discard everything from `first` on; what is overwritten need not be deleted."""
        below = max(first, overwritten_to + 1)
        if below <= self._last_index:
            self._delete_entries(batch, below, self._last_index)
        for index, _ in self._configurations:
            if index >= first:
                batch.delete(keys.index_key(self._configuration_prefix, index))
        self._configurations = [found for found in self._configurations if found[0] < first]
        self._terms.truncate(first)
        self._sizes.truncate(first)

    def _delete_entries(self, batch: WriteBatch, first: int, last: int) -> None:
        segments = self._meta.segments
        for at, segment in enumerate(segments):
            end = segments[at + 1].first_index - 1 if at + 1 < len(segments) else last
            low, high = max(first, segment.first_index), min(last, end)
            if high - low >= _POINT_DELETES_MAX:
                self._delete_range(batch, segment.generation, low, high + 1)
                continue
            prefix = keys.entry_prefix(self.group_id, segment.generation)
            for index in range(low, high + 1):
                batch.delete(keys.index_key(prefix, index))

    def _delete_range(self, batch: WriteBatch, generation: int, low: int, end: int | None) -> None:
        """low <= index < end; None: to the end of the generation."""
        prefix = keys.entry_prefix(self.group_id, generation)
        stop = keys.prefix_end(prefix) if end is None else keys.index_key(prefix, end)
        batch.delete_range(keys.index_key(prefix, low), stop)

    def _drop_staged(self, batch: WriteBatch) -> None:
        self._delete_range(batch, self._meta.generation + 1, 0, None)
        self._staged_index = self._staged_bytes = 0

    def _put_meta(self, batch: WriteBatch, meta: LogMeta) -> None:
        self._meta = meta
        self._set_prefixes()
        batch.put(self._meta_key, meta.encode())

    def _put_sizes(self, batch: WriteBatch) -> None:
        batch.put(self._sizes_key, self._sizes.encode(self._meta.first_index))


def _stored_bytes(entries: Sequence[Entry]) -> int:
    return sum([len(entry.data) for entry in entries]) + len(entries) * _STORED_OVERHEAD_BYTES
