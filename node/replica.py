"""One replica of a partition: the machine between the log, the record index and the services.

Fulfils cluster.interfaces.Machine. The machine itself is pure (node/partition); here its commands
are decoded, its effects become rows of the record index, and what only a leader knows (time, what
is due) becomes commands for it to propose. Rows are seen by readers once the turn's batch is
written; everybody who is told something here runs later than that.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cluster.interfaces import (
    CheckpointMeta,
    Clock,
    CorruptEntry,
    CorruptRow,
    EngineReader,
    FrozenState,
    LogStore,
    WriteBatch,
)
from cluster.raft.messages import Entry, EntryKind
from node import codec
from node.metrics import NodeCounters
from node.partition.commands import (
    EXPIRE_PRODUCERS_MAX,
    PRODUCERS_MAX,
    Configure,
    DropPositions,
    ExpireProducers,
    RecordsAppended,
    Settings,
    Stamp,
    Trim,
    Trimmed,
)
from node.partition.machine import PartitionMachine
from node.partition.retention import BatchPlace, first_offset_by_bytes, first_offset_by_time
from node.partition.state import FrozenPartition
from node.storage import keys
from node.storage.record_index import RecordIndex, RecordRow, decode_row

_COMMAND = EntryKind.COMMAND

# What a row's opaque columns begin with: bytes stored before the batch, its bytes, its features.
_ROW_HEAD = struct.Struct("<QIQ")

# With nearly as many producers as there may be, those idle for this long have to go.
_PRESSED_EXPIRY_MS = 3_600_000
_PRESSED_COUNT = PRODUCERS_MAX * 9 // 10
_BUCKETS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """Records as they lie in the log. The offset of record i is row.base_offset + i."""

    row: RecordRow
    batch: bytes


@dataclass(frozen=True, slots=True)
class CreatedSearch:
    """`row` may hold the record, or is None: then the search goes on at `resume_offset`, None when
    there is nothing to search any more."""

    row: RecordRow | None
    resume_offset: int | None


class PartitionReplica:
    """Used from the event loop only. `machine` is for reading; it changes through `apply` alone.

    `clock_offset_ms()`: this node's wall clock minus the median of the voters', 0 when not known.
    `listeners` are called after offsets moved or leadership changed; they may only wake tasks."""

    def __init__(
        self,
        *,
        group_id: int,
        reader: EngineReader,
        log: LogStore,
        clock: Clock,
        clock_offset_ms: Callable[[], int],
        clock_skew_ms_max: int,
        counters: NodeCounters,
    ) -> None:
        self.group_id = group_id
        self.machine = PartitionMachine()
        self.index = RecordIndex(reader, group_id)
        self.listeners: list[Callable[[], None]] = []
        self.leader_term = 0
        self._counters = counters
        self._log = log
        self._clock = clock
        self._clock_offset_ms = clock_offset_ms
        self._clock_skew_ms_max = clock_skew_ms_max
        self._live_index = 1
        self._log_time_base_ms = 0
        self._monotonic_base_ms = 0
        self._stamped_wall_ms = 0
        self._expiry_round = _Round()
        self._drop_round = _Round()

    # --- cluster.interfaces.Machine --------------------------------------------------------------

    def apply(self, entries: Sequence[Entry], batch: WriteBatch) -> list[object]:
        """Raises codec.UnknownCommand: the replica must stop."""
        machine, replies = self.machine, list[object]()
        moved = False
        for entry in entries:
            if entry.kind != _COMMAND:
                machine.skip(entry.index)
                replies.append(None)
                continue
            command = codec.decode(entry.data)
            first_offset = machine.first_offset
            reply, effects = machine.apply(entry.index, entry.term, command)
            replies.append(reply)
            for effect in effects:
                moved = True
                if type(effect) is RecordsAppended:
                    self.index.put(batch, _row(effect))
                elif type(effect) is Trimmed:
                    self._trimmed(effect.first_offset, batch)
                    if self.leader_term:
                        trimmed = effect.first_offset - first_offset
                        self._counters.trimmed_records += trimmed
        if moved:
            self._tell()
        return replies

    def freeze(self) -> FrozenState:
        frozen = self.machine.freeze()
        return _Frozen(frozen, self.live_index())

    def live_index(self) -> int:
        machine = self.machine
        if machine.first_offset == machine.next_offset:
            self._live_index = machine.applied_index + 1
            return self._live_index
        # Where a row is not written yet, or can not be read, the former bound still holds.
        with contextlib.suppress(CorruptRow):
            row = self.index.find(machine.first_offset)
            if row is not None and row.base_offset <= machine.first_offset:
                self._live_index = row.entry_index
        return self._live_index

    def history(self, reader: EngineReader, above: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Rows of untrimmed records whose entry is above `above`, as the reader sees them."""
        first = self._first_row_above(reader, above)
        if first is None:
            return
        prefix = keys.group_key(self.group_id, keys.RECORD)
        begin = prefix + first.base_offset.to_bytes(8, "big")
        for key, value in reader.scan(begin, keys.prefix_end(prefix)):
            yield decode_row(key, value).entry_index, key, value

    def restore(self, meta: CheckpointMeta | None, segments: Iterable[tuple[bytes, bytes]]) -> None:
        """Rows of later entries may be there already: those were committed, and are written again
        as they are when their entries are applied."""
        if meta is None:
            self.machine = PartitionMachine()
        else:
            self.machine = PartitionMachine.restored(meta.index, segments)
            self._live_index = meta.live_index
        self._tell()

    def leadership_changed(self, *, term: int, is_leader: bool) -> None:
        if is_leader:
            self._log_time_base_ms = self.machine.log_time_ms
            self._monotonic_base_ms = self._clock.monotonic_ms()
            self._stamped_wall_ms = self.machine.wall_time_ms
            self._counters.elections_won += 1
        else:
            self._counters.elections_lost += 1
        self.leader_term = term if is_leader else 0
        self._tell()

    # --- what the leader adds --------------------------------------------------------------------

    def stamp(self) -> Stamp:
        """The times for a command proposed now (house rule "Time"). Neither ever falls, nor lies
        before what is applied. Only while leading."""
        assert self.leader_term, f"partition group {self.group_id} stamps without leading"
        elapsed_ms = self._clock.monotonic_ms() - self._monotonic_base_ms
        wall_ms = self._clock.wall_ms()
        offset_ms = self._clock_offset_ms()
        if abs(offset_ms) > self._clock_skew_ms_max:
            wall_ms -= offset_ms
            self._counters.skewed_stamps += 1
        if wall_ms > self._stamped_wall_ms:
            self._stamped_wall_ms = wall_ms
        return Stamp(self._log_time_base_ms + elapsed_ms, self._stamped_wall_ms)

    def due_trim(self, *, retention_ms: int, retention_bytes: int) -> Trim | None:
        """What retention wants gone now; 0 = no limit. Some dozen reads of the index at most."""
        machine, stamp = self.machine, self.stamp()
        first_offset = machine.first_offset
        if retention_ms > 0:
            first_offset = first_offset_by_time(
                self._place,
                first_offset=first_offset,
                next_offset=machine.next_offset,
                append_time_ms_min=stamp.wall_time_ms - retention_ms,
            )
        if retention_bytes > 0:
            first_offset = first_offset_by_bytes(
                self._place,
                first_offset=first_offset,
                next_offset=machine.next_offset,
                stored_bytes_ever=machine.stored_bytes_ever,
                bytes_max=retention_bytes,
            )
        return Trim(stamp, first_offset) if first_offset > machine.first_offset else None

    def due_expiry(self) -> ExpireProducers | None:
        """Producers to forget. Looks at a sixteenth of them each time: call it again and again."""
        producers, stamp = self.machine.producers, self.stamp()
        expiry_ms = self.machine.settings.producer_expiry_ms
        if producers.count > _PRESSED_COUNT:
            expiry_ms = min(expiry_ms, _PRESSED_EXPIRY_MS)
        due: list[int] = []
        for bucket in self._expiry_round.next(producers.bucket_count):
            due += producers.idle_in(bucket, stamp.log_time_ms - expiry_ms)
        if not due:
            return None
        return ExpireProducers(stamp, tuple(due[:EXPIRE_PRODUCERS_MAX]), expiry_ms)

    def due_drop(self, is_deleted: Callable[[str], bool]) -> DropPositions | None:
        """Positions of deleted subscriptions: what was no place for when they were deleted, or was
        committed through a node that had not heard of it. Looks at a quarter each time."""
        positions = self.machine.positions
        due: list[str] = []
        for bucket in self._drop_round.next(positions.bucket_count):
            due += filter(is_deleted, positions.ids_in(bucket))
        return DropPositions(self.stamp(), tuple(due)) if due else None

    def due_configure(self, settings: Settings) -> Configure | None:
        """The command that brings the topic's settings here, if they are newer."""
        if settings.version <= self.machine.settings.version:
            return None
        return Configure(self.stamp(), settings)

    # --- reading ---------------------------------------------------------------------------------

    def read(
        self, offset: int, *, bytes_max: int, end_offset: int | None = None
    ) -> list[StoredBatch]:
        """Applied batches from the one that holds `offset` (else the next one) on, as long as they
        have at most `bytes_max` together, the first in any case. None begins at or beyond
        `end_offset` or the next offset. The first may begin below `offset`: the caller cuts it.
        Raises CorruptEntry, CorruptRow."""
        end = self.machine.next_offset
        if end_offset is not None:
            end = min(end, end_offset)
        offset = max(offset, self.machine.first_offset)
        found: list[StoredBatch] = []
        size = 0
        for row in self.index.rows(offset) if offset < end else ():
            size += row_bytes(row)
            if row.base_offset >= end or (found and size > bytes_max):
                break
            found.append(StoredBatch(row, self._batch(row)))
        return found

    def find(self, offset: int) -> RecordRow | None:
        """The row that holds the offset, None if the record is trimmed or not there yet."""
        if not self.machine.first_offset <= offset < self.machine.next_offset:
            return None
        row = self.index.find(offset)
        return row if row is not None and row.base_offset <= offset else None

    def offset_appended_at(self, time_ms: int) -> int:
        """The first offset appended at that time or later, the next offset if there is none."""
        row = self.index.find_by_time(time_ms)
        found = self.machine.next_offset if row is None else row.base_offset
        return min(max(found, self.machine.first_offset), self.machine.next_offset)

    def search_created(
        self, time_ms: int, *, from_offset: int, rows_max: int = 1_000
    ) -> CreatedSearch:
        """The first batch at or after from_offset that has a record created at that time or later.
        Looks at `rows_max` rows and tells where to go on, so that the loop can breathe."""
        offset = max(from_offset, self.machine.first_offset)
        for seen, row in enumerate(self.index.rows(offset), 1):
            if row.base_offset >= self.machine.next_offset:
                break
            if row.created_max_ms >= time_ms:
                return CreatedSearch(row, row.next_offset)
            if seen == rows_max:
                return CreatedSearch(None, row.next_offset)
        return CreatedSearch(None, None)

    def stored_bytes(self) -> int:
        """Of the batches that hold untrimmed records."""
        if self.machine.first_offset == self.machine.next_offset:
            return 0
        place = self._place(self.machine.first_offset)
        return self.machine.stored_bytes_ever - place.start_bytes if place is not None else 0

    def _batch(self, row: RecordRow) -> bytes:
        entry = self._log.entry(row.entry_index)
        if entry is None:
            raise CorruptEntry(
                f"group {self.group_id}: live entry {row.entry_index} is not stored",
                index=row.entry_index,
            )
        return codec.batch_of(entry.data)

    def _place(self, offset: int) -> BatchPlace | None:
        row = self.index.find(offset)
        if row is None or row.base_offset >= self.machine.next_offset:
            return None
        start_bytes = _ROW_HEAD.unpack_from(row.columns)[0]
        return BatchPlace(row.base_offset, row.next_offset, start_bytes, row.append_time_ms)

    # --- trimming --------------------------------------------------------------------------------

    def _trimmed(self, first_offset: int, batch: WriteBatch) -> None:
        """Rows go at once; entries go once a durable checkpoint calls them trimmed (house §4.3)."""
        self.index.delete_below(batch, self._first_row_offset(first_offset))

    def _first_row_offset(self, first_offset: int) -> int:
        """Base offset of the row that holds first_offset, or a lower bound of it while the row is
        in a batch that is not written yet."""
        row = self.index.find(first_offset)
        if row is not None and row.base_offset <= first_offset:
            return row.base_offset
        return first_offset if first_offset == self.machine.next_offset else 0

    def _first_row_above(self, reader: EngineReader, above: int) -> RecordRow | None:
        """The first row with an untrimmed record whose entry is above `above`: a binary search."""
        low, high = self.machine.first_offset, self.machine.next_offset
        while low < high:
            middle = (low + high) // 2
            row = self.index.find(middle, reader)
            if row is None or row.entry_index > above:
                high = middle
            else:
                low = row.next_offset
        return self.index.find(low, reader)

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()


def row_bytes(row: RecordRow) -> int:
    """Bytes of the row's batch."""
    return int(_ROW_HEAD.unpack_from(row.columns)[1])


def row_features(row: RecordRow) -> int:
    """Feature bits of the row's batch, completed by the leader that ingested it."""
    return int(_ROW_HEAD.unpack_from(row.columns)[2])


def row_columns(row: RecordRow) -> bytes:
    """The Columns message of the row's batch, empty if no feature needed one."""
    return row.columns[_ROW_HEAD.size :]


def _row(appended: RecordsAppended) -> RecordRow:
    return RecordRow(
        appended.base_offset,
        appended.index,
        appended.record_count,
        appended.append_time_ms,
        appended.created_min_ms,
        appended.created_max_ms,
        _ROW_HEAD.pack(appended.start_bytes, appended.batch_bytes, appended.features)
        + appended.columns,
    )


class _Round:
    """The buckets of a table, some at each look, again and again."""

    def __init__(self) -> None:
        self._at = 0

    def next(self, bucket_count: int) -> list[int]:
        begin, self._at = self._at, (self._at + _BUCKETS_AT_ONCE) % bucket_count
        return [(begin + number) % bucket_count for number in range(_BUCKETS_AT_ONCE)]


class _Frozen:
    """cluster.interfaces.FrozenState."""

    def __init__(self, frozen: FrozenPartition, live_index: int) -> None:
        self.applied_index = frozen.applied_index
        self.live_index = live_index
        self._frozen = frozen

    def changed_segments(self) -> Iterator[tuple[bytes, bytes | None]]:
        return self._frozen.changed_segments()
