"""Checkpoints of a partition: frozen in place, written in changed parts only, in a format that does
not change unnoticed (house §4.2, rules R10 and R15)."""

from __future__ import annotations

import pytest

from node.partition.commands import (
    Append,
    Command,
    CommitPositions,
    Configure,
    DedupOverflow,
    OpenProducer,
    PositionCommit,
    ProducerSequence,
    Settings,
    Stamp,
    Trim,
)
from node.partition.machine import PartitionMachine
from node.partition.state import UnknownFormat

# Format version 1, as written by the first release. A test that fails here is a format change: it
# needs a new version and code that still reads this one, not new bytes.
GOLDEN = {
    b"core": (
        "010100000005000000000000000200000000000000780000000000000069000000000000000e0000"
        "00000000000000000000000000000000000000000001000000000000000300000000000000e80300"
        "000260ea00000000000080ee360000000000"
    ),
    b"dedup/0000000000000000": (
        "01010000000400000000000000690000000000000078000000000000000469642d31"
    ),
    b"positions/1c": ("01030004000400000000000000000000000000000078000000000000007375626dc3a468"),
    b"producers/02": (
        "01020100000000000001000000040000000000000004000000000000007300000000000000020400"
        "00000000000000000300000000000000000000006400000000000000030000000000000001000000"
        "0300000000000000660000000000000061742033"
    ),
}


def golden_machine() -> PartitionMachine:
    machine = PartitionMachine()
    commands: list[Command] = [
        Configure(Stamp(100, 50), Settings(3, 1_000, DedupOverflow.REFUSE, 60_000, 3_600_000)),
        OpenProducer(Stamp(101, 51), 258, 1),
        Append(Stamp(110, 100), b"batch", 3, ProducerSequence(258, 1, 0), producer_state=b"at 3"),
        Append(Stamp(115, 102), b"two", 1, ProducerSequence(258, 1, 3)),
        Append(Stamp(120, 105), b"dedup!", 1, dedup_id=b"id-1"),
        CommitPositions(Stamp(120, 105), (PositionCommit("sub", 4, metadata="m\u00e4h"),)),
        Trim(Stamp(120, 105), 2),
    ]
    for index, command in enumerate(commands, 1):
        machine.apply(index, 1, command)
    return machine


def segments_of(machine: PartitionMachine) -> dict[bytes, bytes | None]:
    return dict(machine.freeze().changed_segments())


def append(machine: PartitionMachine, dedup_id: bytes) -> None:
    command = Append(Stamp(1, 1), b"b", 1, dedup_id=dedup_id)
    machine.apply(machine.applied_index + 1, 1, command)


def test_the_format_of_version_1_is_what_it_was() -> None:
    written = {n: d.hex() for n, d in segments_of(golden_machine()).items() if d is not None}
    assert written == GOLDEN


def test_version_1_is_read() -> None:
    stored = {name: bytes.fromhex(data) for name, data in GOLDEN.items()}
    machine = PartitionMachine.restored(7, stored.items())
    assert machine.applied_index == 7
    assert (machine.first_offset, machine.next_offset) == (2, 5)
    assert (machine.log_time_ms, machine.wall_time_ms) == (120, 105)
    assert machine.stored_bytes_ever == 14
    assert machine.settings == Settings(3, 1_000, DedupOverflow.REFUSE, 60_000, 3_600_000)
    producer = machine.producers.get(258)
    assert producer is not None
    assert (producer.epoch, producer.next_sequence, producer.last_offset) == (1, 4, 3)
    assert producer.state == b"at 3"
    position = machine.positions.get("sub")
    assert position is not None
    assert (position.position, position.metadata) == (4, "m\u00e4h")
    assert machine.dedup.count == 1


def test_a_checkpoint_writes_what_changed_and_deletes_what_went() -> None:
    machine = PartitionMachine()
    machine.apply(1, 1, Configure(Stamp(1, 1), Settings(1, dedup_window_count=1_000)))
    for number in range(1_500):
        append(machine, b"%d" % number)
    machine.apply(1_502, 1, OpenProducer(Stamp(1, 1), 5, 1))
    assert sorted(segments_of(machine)) == [
        b"core",
        b"dedup/0000000000000000",
        b"dedup/0000000000000001",
        b"producers/05",
    ]
    append(machine, b"1500")
    assert sorted(segments_of(machine)) == [b"core", b"dedup/0000000000000001"]
    for number in range(1_501, 2_100):
        append(machine, b"%d" % number)
    changed = segments_of(machine)
    assert sorted(changed) == [
        b"core",
        b"dedup/0000000000000000",
        b"dedup/0000000000000001",
        b"dedup/0000000000000002",
    ]
    assert changed[b"dedup/0000000000000000"] is None
    assert sorted(segments_of(machine)) == [b"core"]


def test_what_is_frozen_stays_while_the_machine_goes_on() -> None:
    machine, same = golden_machine(), golden_machine()
    frozen = machine.freeze()
    machine.apply(8, 1, Append(Stamp(200, 200), b"x", 2, ProducerSequence(258, 1, 4)))
    machine.apply(9, 1, OpenProducer(Stamp(200, 200), 514, 1))
    machine.apply(10, 1, Append(Stamp(200, 200), b"x", 1, dedup_id=b"id-2"))
    machine.apply(11, 1, CommitPositions(Stamp(200, 200), (PositionCommit("sub", 0),)))
    assert frozen.applied_index == 7
    assert dict(frozen.changed_segments()) == segments_of(same)


def test_freezing_needs_no_byte_to_be_made() -> None:
    """Each segment is made when it is asked for: the owner spreads them over many turns."""
    machine = golden_machine()
    steps = machine.freeze().changed_segments()
    assert next(steps)[0] == b"core"
    assert [name.partition(b"/")[0] for name, _ in steps] == [b"dedup", b"positions", b"producers"]


@pytest.mark.parametrize("name", [b"core", b"dedup/0000000000000000", b"positions/", b"producers/"])
def test_a_damaged_segment_is_no_state(name: bytes) -> None:
    """Bug class 10: never a state made up from what could not be read."""
    stored = {n: d for n, d in segments_of(golden_machine()).items() if d is not None}
    (full_name,) = (n for n in stored if n.startswith(name))
    for damaged in (
        stored[full_name][:-1],
        b"\x02" + stored[full_name][1:],
        b"",
        stored[full_name] + b"\x00",
    ):
        with pytest.raises(UnknownFormat):
            PartitionMachine.restored(7, {**stored, full_name: damaged}.items())


def test_a_checkpoint_of_other_parts_is_no_state() -> None:
    stored = {n: d for n, d in segments_of(golden_machine()).items() if d is not None}
    with pytest.raises(UnknownFormat, match="unknown segment"):
        PartitionMachine.restored(7, {**stored, b"leases/00": b"\x01"}.items())
    incomplete = {n: d for n, d in stored.items() if not n.startswith(b"dedup/")}
    with pytest.raises(UnknownFormat, match="dedup ids"):
        PartitionMachine.restored(7, incomplete.items())
    del stored[b"core"]
    with pytest.raises(UnknownFormat, match="without core"):
        PartitionMachine.restored(7, stored.items())
    with pytest.raises(UnknownFormat, match="without core"):
        PartitionMachine.restored(7, ())
