"""The partition's machine: offsets, clocks, compare and append, trim, positions, settings."""

from __future__ import annotations

import pytest

from node.partition.commands import (
    MACHINE_VERSION,
    POSITIONS_MAX,
    Append,
    Appended,
    Command,
    CommitPositions,
    Configure,
    Configured,
    DropPositions,
    Effect,
    MachineVersionSet,
    PositionCommit,
    PositionCommitted,
    PositionsCommitted,
    PositionsDropped,
    ProducerSequence,
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
from node.partition.machine import PartitionMachine

NOW = Stamp(10, 1_000)


def apply(machine: PartitionMachine, command: Command) -> Reply:
    return machine.apply(machine.applied_index + 1, 1, command)[0]


def effects(machine: PartitionMachine, command: Command) -> tuple[Effect, ...]:
    return machine.apply(machine.applied_index + 1, 1, command)[1]


def append(machine: PartitionMachine, count: int = 1, stamp: Stamp = NOW) -> Appended:
    reply = apply(machine, Append(stamp, b"batch", count))
    assert isinstance(reply, Appended)
    return reply


def test_offsets_are_dense_and_refusals_use_none() -> None:
    """Bug class 38: one offset, one record."""
    machine = PartitionMachine()
    assert append(machine, 3).base_offset == 0
    refused = apply(machine, Append(NOW, b"b", 2, ProducerSequence(7, 1, 5)))
    assert isinstance(refused, Refused)
    assert append(machine, 2).base_offset == 3
    assert machine.next_offset == 5


def test_the_effect_says_what_the_record_index_keeps() -> None:
    machine = PartitionMachine()
    append(machine, 4)
    command = Append(
        NOW,
        b"xyz",
        2,
        created_count=2,
        created_min_ms=7,
        created_max_ms=9,
        features=2,
        columns=b"c",
    )
    assert effects(machine, command) == (
        RecordsAppended(
            index=2,
            base_offset=4,
            record_count=2,
            append_time_ms=1_000,
            created_min_ms=7,
            created_max_ms=9,
            start_bytes=5,
            batch_bytes=3,
            features=2,
            columns=b"c",
        ),
    )


@pytest.mark.parametrize(
    ("created_count", "expected"), [(0, (1_000, 1_000)), (1, (700, 1_000)), (2, (700, 900))]
)
def test_records_without_timestamp_were_created_when_appended(
    created_count: int, expected: tuple[int, int]
) -> None:
    machine = PartitionMachine()
    command = Append(
        NOW, b"", 2, created_count=created_count, created_min_ms=700, created_max_ms=900
    )
    (effect,) = effects(machine, command)
    assert isinstance(effect, RecordsAppended)
    assert (effect.created_min_ms, effect.created_max_ms) == expected


def test_neither_clock_falls() -> None:
    machine = PartitionMachine()
    assert append(machine, stamp=Stamp(100, 5_000)).append_time_ms == 5_000
    assert append(machine, stamp=Stamp(90, 4_000)).append_time_ms == 5_000
    assert (machine.log_time_ms, machine.wall_time_ms) == (100, 5_000)
    assert append(machine, stamp=Stamp(101, 5_001)).append_time_ms == 5_001


def test_compare_and_append() -> None:
    machine = PartitionMachine()
    append(machine, 3)
    refused = apply(machine, Append(NOW, b"b", 1, expected_next_offset=2))
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.EXPECTED_OFFSET
    assert refused.details == {"next_offset": "3"}
    reply = apply(machine, Append(NOW, b"b", 1, expected_next_offset=3))
    assert reply == Appended(3, 1, 1_000)


def test_r18_a_repeated_compare_and_append_gets_its_first_answer() -> None:
    """The first try moved the next offset; that must not make the repeat a failure."""
    machine = PartitionMachine()
    command = Append(NOW, b"b", 2, ProducerSequence(7, 1, 0), expected_next_offset=0)
    assert apply(machine, command) == Appended(0, 2, 1_000)
    assert apply(machine, command) == Appended(0, 2, 1_000, duplicate=True)


def test_trim_goes_forward_and_never_beyond_what_there_is() -> None:
    machine = PartitionMachine()
    append(machine, 10)
    assert effects(machine, Trim(NOW, 4)) == (Trimmed(4),)
    assert effects(machine, Trim(NOW, 3)) == ()
    assert apply(machine, Trim(NOW, 3)) == Trimmed(4)
    assert apply(machine, Trim(NOW, 99)) == Trimmed(10)
    assert append(machine).base_offset == 10


def test_positions_are_committed_each_on_its_own() -> None:
    machine = PartitionMachine()
    append(machine, 5)
    reply = apply(
        machine,
        CommitPositions(
            NOW,
            (
                PositionCommit("a", 5, metadata="m"),
                PositionCommit("b", 6),
                PositionCommit("c", 1, generation=3),
                PositionCommit("d", 2, generation=0),
            ),
        ),
    )
    assert isinstance(reply, PositionsCommitted)
    a, b, c, d = reply.results
    assert a == PositionCommitted(5)
    assert isinstance(b, Refused)
    assert (b.reason, b.details) == (Reason.OFFSET_OUT_OF_RANGE, {"latest": "5"})
    assert isinstance(c, Refused)
    assert c.reason is Reason.STALE_GENERATION
    assert d == PositionCommitted(2)
    stored = machine.positions.get("a")
    assert stored is not None
    assert (stored.position, stored.metadata, stored.log_time_ms) == (5, "m", 10)
    assert machine.positions.get("b") is None
    assert machine.positions.get("c") is None


def test_a_position_may_go_back_and_be_dropped() -> None:
    machine = PartitionMachine()
    append(machine, 5)
    for position in (4, 1):
        apply(machine, CommitPositions(NOW, (PositionCommit("a", position),)))
    stored = machine.positions.get("a")
    assert stored is not None
    assert stored.position == 1
    assert apply(machine, DropPositions(NOW, ("a", "unknown"))) == PositionsDropped(1)
    assert machine.positions.get("a") is None
    assert machine.positions.count == 0


def test_positions_are_bounded_and_the_bound_is_named() -> None:
    machine = PartitionMachine()
    commits = tuple(PositionCommit(f"s{n}", 0) for n in range(POSITIONS_MAX + 1))
    reply = apply(machine, CommitPositions(NOW, commits))
    assert isinstance(reply, PositionsCommitted)
    last = reply.results[-1]
    assert isinstance(last, Refused)
    assert (last.reason, last.details) == (Reason.QUOTA, {"limit": "positions_per_partition"})
    again = apply(machine, CommitPositions(NOW, (PositionCommit("s0", 0),)))
    assert again == PositionsCommitted((PositionCommitted(0),))


def test_settings_hold_from_the_newest_version_whatever_the_order() -> None:
    machine = PartitionMachine()
    newer, older = Settings(5, dedup_window_count=1), Settings(4, dedup_window_count=2)
    assert apply(machine, Configure(NOW, newer)) == Configured(newer)
    assert apply(machine, Configure(NOW, older)) == Configured(newer)
    assert machine.settings == newer


def test_machine_version_never_falls_and_an_unknown_one_stops_the_replica() -> None:
    machine = PartitionMachine()
    assert apply(machine, SetMachineVersion(NOW, MACHINE_VERSION)) == MachineVersionSet(
        MACHINE_VERSION
    )
    assert apply(machine, SetMachineVersion(NOW, 0)) == MachineVersionSet(MACHINE_VERSION)
    with pytest.raises(AssertionError, match="machine_version"):
        apply(machine, SetMachineVersion(NOW, MACHINE_VERSION + 1))


def test_r15_an_entry_is_never_applied_twice() -> None:
    machine = PartitionMachine()
    machine.apply(4, 1, Append(NOW, b"", 1))
    with pytest.raises(AssertionError, match="entry 4 after 4"):
        machine.apply(4, 1, Append(NOW, b"", 1))
    with pytest.raises(AssertionError, match="entry 3 after 4"):
        machine.skip(3)
