"""The partition's state machine: one command after the other, deterministic, no IO (house §4.2).

Equal entries in equal order give equal state, replies and effects on every replica. A command that
cannot be carried out is answered with `Refused` and changes nothing but the clocks. A failed assert
is our own bug and stops the replica.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from node.partition.commands import (
    EXPIRE_PRODUCERS_MAX,
    MACHINE_VERSION,
    MACHINE_VERSION_MIN,
    Append,
    Appended,
    Command,
    CommitPositions,
    Configure,
    Configured,
    DedupOverflow,
    DropPositions,
    Effect,
    ExpireProducers,
    MachineVersionSet,
    OpenProducer,
    PositionsCommitted,
    PositionsDropped,
    ProducersExpired,
    Reason,
    RecordsAppended,
    Refused,
    Reply,
    SetMachineVersion,
    Settings,
    Stamp,
    Trim,
    Trimmed,
)
from node.partition.dedup import DedupWindow
from node.partition.positions import Positions
from node.partition.producers import Producers
from node.partition.state import (
    FORMAT_VERSION,
    FrozenPartition,
    FrozenSegment,
    UnknownFormat,
    check_version,
)

_CORE = b"core"
# format; machine_version; next and first offset; log and wall time; bytes stored ever; highest
# expired producer id; first and next dedup number; the settings in their order
_CORE_LAYOUT = struct.Struct("<BIQQQQQQQQQIBQQ")

Outcome = tuple[Reply, tuple[Effect, ...]]


class PartitionMachine:
    """Records are offsets first_offset <= offset < next_offset. `log_time_ms` and `wall_time_ms`
    never fall. `stored_bytes_ever` counts the batches of all records, trimmed ones included."""

    def __init__(self) -> None:
        self.applied_index = 0
        self.machine_version = MACHINE_VERSION_MIN
        self.next_offset = 0
        self.first_offset = 0
        self.log_time_ms = 0
        self.wall_time_ms = 0
        self.stored_bytes_ever = 0
        self.settings = Settings()
        self.producers = Producers()
        self.dedup = DedupWindow()
        self.positions = Positions()

    def apply(self, index: int, term: int, command: Command) -> Outcome:
        """Carry out the command of the entry at `index`. `term` is the entry's: nothing depends on
        it yet, it is part of what a command may ever depend on."""
        self.skip(index)
        self._advance_clocks(command.stamp)
        if type(command) is Append:
            return self._append(index, command)
        return self._apply_other(command)

    def skip(self, index: int) -> None:
        """An entry that holds no command was applied."""
        assert index > self.applied_index, f"entry {index} after {self.applied_index}"
        self.applied_index = index

    def _apply_other(self, command: Command) -> Outcome:
        match command:
            case OpenProducer():
                reply: Reply = self.producers.open(
                    command.producer_id, command.epoch, self.log_time_ms
                )
            case CommitPositions():
                reply = self._commit_positions(command)
            case DropPositions():
                reply = PositionsDropped(self.positions.drop(command.subscription_ids))
            case Trim():
                return self._trim(command)
            case ExpireProducers():
                reply = self._expire_producers(command)
            case Configure():
                if command.settings.version > self.settings.version:
                    self.settings = command.settings
                reply = Configured(self.settings)
            case SetMachineVersion():
                reply = self._set_machine_version(command)
            case _:
                raise AssertionError(f"no command: {command}")
        return reply, ()

    def _advance_clocks(self, stamp: Stamp) -> None:
        if stamp.log_time_ms > self.log_time_ms:
            self.log_time_ms = stamp.log_time_ms
        if stamp.wall_time_ms > self.wall_time_ms:
            self.wall_time_ms = stamp.wall_time_ms

    def _append(self, index: int, append: Append) -> Outcome:
        """Repeats are answered before expected_next_offset is looked at: the first try of the very
        same request may be what moved it."""
        answer = self._check_append(append)
        if answer is not None:
            return answer, ()
        count, base_offset, now_ms = append.record_count, self.next_offset, self.wall_time_ms
        start_bytes = self.stored_bytes_ever
        if append.producer is not None:
            self.producers.appended(
                append.producer,
                record_count=count,
                base_offset=base_offset,
                append_time_ms=now_ms,
                log_time_ms=self.log_time_ms,
                producer_state=append.producer_state,
            )
        if append.dedup_id:
            self.dedup.appended(
                append.dedup_id,
                self.settings,
                offset=base_offset,
                append_time_ms=now_ms,
                log_time_ms=self.log_time_ms,
            )
        self.next_offset = base_offset + count
        self.stored_bytes_ever = start_bytes + len(append.batch)
        created_min_ms, created_max_ms = _created_range(append, now_ms)
        effect = RecordsAppended(
            index,
            base_offset,
            count,
            now_ms,
            created_min_ms,
            created_max_ms,
            start_bytes,
            len(append.batch),
            append.features,
            append.columns,
        )
        return Appended(base_offset, count, now_ms), (effect,)

    def _check_append(self, append: Append) -> Appended | Refused | None:
        count = append.record_count
        assert count > 0, "an append without records"
        if append.producer is not None:
            answer = self.producers.check(append.producer, count)
            if answer is not None:
                return answer
        if append.dedup_id:
            assert count == 1, f"a dedup id for {count} records"
            answer = self.dedup.check(append.dedup_id, self.settings, self.log_time_ms)
            if answer is not None:
                return answer
        expected = append.expected_next_offset
        if expected is not None and expected != self.next_offset:
            return Refused(
                Reason.EXPECTED_OFFSET,
                f"expected next offset {expected}, it is {self.next_offset}",
                details={"next_offset": str(self.next_offset)},
            )
        return None

    def _commit_positions(self, command: CommitPositions) -> PositionsCommitted:
        return PositionsCommitted(
            tuple(
                self.positions.commit(
                    commit, next_offset=self.next_offset, log_time_ms=self.log_time_ms
                )
                for commit in command.commits
            )
        )

    def _trim(self, command: Trim) -> Outcome:
        first_offset = min(command.first_offset, self.next_offset)
        if first_offset <= self.first_offset:
            return Trimmed(self.first_offset), ()
        self.first_offset = first_offset
        trimmed = Trimmed(first_offset)
        return trimmed, (trimmed,)

    def _expire_producers(self, command: ExpireProducers) -> ProducersExpired:
        ids = command.producer_ids
        assert len(ids) <= EXPIRE_PRODUCERS_MAX, f"{len(ids)} producers to expire at once"
        return ProducersExpired(
            self.producers.expire(ids, idle_ms=command.idle_ms, log_time_ms=self.log_time_ms)
        )

    def _set_machine_version(self, command: SetMachineVersion) -> MachineVersionSet:
        version = command.machine_version
        assert version <= MACHINE_VERSION, f"machine_version {version} is not known to this code"
        self.machine_version = max(self.machine_version, version)
        return MachineVersionSet(self.machine_version)

    def freeze(self) -> FrozenPartition:
        """What changed since the freeze or restore before, at this applied index."""
        core = self._encode_core()
        segments: list[FrozenSegment] = [(_CORE, lambda: core)]
        segments += self.dedup.freeze()
        segments += self.positions.freeze()
        segments += self.producers.freeze()
        return FrozenPartition(self.applied_index, segments)

    @classmethod
    def restored(
        cls, applied_index: int, segments: Iterable[tuple[bytes, bytes]]
    ) -> PartitionMachine:
        """The machine that a checkpoint at `applied_index` is of. Raises UnknownFormat."""
        machine = cls()
        machine.applied_index = applied_index
        # `core` comes first: it says which dedup ids of the oldest block are still remembered.
        segments = sorted(segments)
        if not segments or segments[0][0] != _CORE:
            raise UnknownFormat("a checkpoint without core segment")
        machine._decode_core(segments[0][1])
        for name, data in segments[1:]:
            table = name.partition(b"/")[0]
            if table == b"dedup":
                machine.dedup.restore(name, data)
            elif table == b"positions":
                machine.positions.restore(name, data)
            elif table == b"producers":
                machine.producers.restore(name, data)
            else:
                raise UnknownFormat(f"unknown segment {name!r}")
        if not machine.dedup.is_whole():
            raise UnknownFormat("a checkpoint that lacks dedup ids")
        return machine

    def _encode_core(self) -> bytes:
        settings = self.settings
        return _CORE_LAYOUT.pack(
            FORMAT_VERSION,
            self.machine_version,
            self.next_offset,
            self.first_offset,
            self.log_time_ms,
            self.wall_time_ms,
            self.stored_bytes_ever,
            self.producers.highest_expired_id,
            self.dedup.first,
            self.dedup.next,
            settings.version,
            settings.dedup_window_count,
            settings.dedup_overflow,
            settings.dedup_window_ms,
            settings.producer_expiry_ms,
        )

    def _decode_core(self, data: bytes) -> None:
        check_version(_CORE, data)
        if len(data) != _CORE_LAYOUT.size:
            raise UnknownFormat(f"core segment has {len(data)} bytes, not {_CORE_LAYOUT.size}")
        (
            _,
            self.machine_version,
            self.next_offset,
            self.first_offset,
            self.log_time_ms,
            self.wall_time_ms,
            self.stored_bytes_ever,
            self.producers.highest_expired_id,
            dedup_first,
            dedup_next,
            version,
            count,
            overflow,
            window_ms,
            expiry_ms,
        ) = _CORE_LAYOUT.unpack(data)
        if self.machine_version > MACHINE_VERSION:
            raise UnknownFormat(f"machine_version {self.machine_version} is not known to this code")
        self.dedup.restore_bounds(dedup_first, dedup_next)
        self.settings = Settings(version, count, DedupOverflow(overflow), window_ms, expiry_ms)


def _created_range(append: Append, append_time_ms: int) -> tuple[int, int]:
    """A record without a timestamp counts as created when it was appended."""
    if append.created_count == append.record_count:
        return append.created_min_ms, append.created_max_ms
    if append.created_count == 0:
        return append_time_ms, append_time_ms
    return min(append.created_min_ms, append_time_ms), max(append.created_max_ms, append_time_ms)
