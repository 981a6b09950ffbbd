"""Commands in log entries: what is written is read again, is protobuf, and does not change
unnoticed (house §4.4, bug class 37)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import codec
from node.partition.commands import (
    Append,
    Command,
    CommitPositions,
    Configure,
    DedupOverflow,
    DropPositions,
    ExpireProducers,
    OpenProducer,
    PositionCommit,
    ProducerSequence,
    SetMachineVersion,
    Settings,
    Stamp,
    Trim,
)
from node.v1 import command_pb2 as pb

NUMBERS = st.integers(0, 2**53 - 1)
SMALL = st.integers(0, 2**32 - 1)
STAMPS = st.builds(Stamp, NUMBERS, NUMBERS)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        Append,
        STAMPS,
        st.binary(max_size=300),
        st.integers(1, 100_000),
        st.none()
        | st.builds(
            ProducerSequence, st.integers(1, 2**53 - 1), st.integers(1, 2**32 - 1), NUMBERS
        ),
        st.binary(max_size=256),
        st.binary(max_size=200),
        st.none() | NUMBERS,
        st.just(0),
        st.just(0),
        st.just(0),
        NUMBERS,
        st.binary(max_size=50),
    ),
    st.builds(
        Append,
        STAMPS,
        st.binary(max_size=3),
        st.integers(1, 100_000),
        created_count=st.integers(1, 100_000),
        created_min_ms=NUMBERS,
        created_max_ms=NUMBERS,
    ),
    st.builds(OpenProducer, STAMPS, NUMBERS, SMALL),
    st.builds(
        CommitPositions,
        STAMPS,
        st.lists(
            st.builds(PositionCommit, st.text(), NUMBERS, st.none() | NUMBERS, st.text()),
            max_size=4,
        ).map(tuple),
    ),
    st.builds(DropPositions, STAMPS, st.lists(st.text(), max_size=3).map(tuple)),
    st.builds(Trim, STAMPS, NUMBERS),
    st.builds(ExpireProducers, STAMPS, st.lists(NUMBERS, max_size=4).map(tuple), NUMBERS),
    st.builds(
        Configure,
        STAMPS,
        st.builds(Settings, NUMBERS, SMALL, st.sampled_from(DedupOverflow), NUMBERS, NUMBERS),
    ),
    st.builds(SetMachineVersion, STAMPS, SMALL),
)

STAMP = Stamp(300, 1_760_000_000_000)
# Entries as the first release wrote them. They are in logs: they must be read for ever, and written
# the same until a machine_version says otherwise.
GOLDEN: list[tuple[Command, str]] = [
    (
        Append(
            STAMP,
            b"BATCH",
            3,
            ProducerSequence(7, 2, 40),
            b"state",
            b"",
            41,
            2,
            1_759_999_999_000,
            1_760_000_000_000,
            256,
            b"\x0a\x00",
        ),
        "0d3900000010ac02188080b3c19c3322280803108002180720022828320573746174654029480250"
        "98f8b2c19c33588080b3c19c3362020a007a85808080004241544348",
    ),
    (
        Append(STAMP, b"", 1, dedup_id=b"id"),
        "0d1700000010ac02188080b3c19c33220608013a0269647a8080808000",
    ),
    (OpenProducer(STAMP, 7, 2), "0d1500000010ac02188080b3c19c332a0408071002"),
    (
        CommitPositions(STAMP, (PositionCommit("s", 9, 0, "m"), PositionCommit("t", 0))),
        "0d2200000010ac02188080b3c19c3332110a0a0a01731009180022016d0a030a0174",
    ),
    (DropPositions(STAMP, ("s", "t")), "0d1700000010ac02188080b3c19c335a060a01730a0174"),
    (Trim(STAMP, 0), "0d1100000010ac02188080b3c19c333a00"),
    (ExpireProducers(STAMP, (1, 300), 5), "0d1800000010ac02188080b3c19c3342070a0301ac021005"),
    (
        Configure(STAMP, Settings(1, 2, DedupOverflow.REFUSE, 3, 4)),
        "0d1b00000010ac02188080b3c19c334a0a08011002180220032804",
    ),
    (SetMachineVersion(STAMP, 1), "0d1300000010ac02188080b3c19c3352020801"),
]


@given(COMMANDS)
@settings(max_examples=500, deadline=None)
def test_what_is_written_is_read_again(command: Command) -> None:
    data = codec.encode(command)
    assert codec.decode(data) == command
    message = pb.Command.FromString(data)
    assert message.log_time_ms == command.stamp.log_time_ms
    if isinstance(command, Append):
        assert message.batch == command.batch == codec.batch_of(data)
        assert message.header_bytes + 6 + len(command.batch) == len(data)
    else:
        assert message.header_bytes == len(data)
        with pytest.raises(codec.UnknownCommand):
            codec.batch_of(data)


@pytest.mark.parametrize(("command", "stored"), GOLDEN)
def test_the_format_of_version_1_is_what_it_was(command: Command, stored: str) -> None:
    assert codec.decode(bytes.fromhex(stored)) == command
    assert codec.encode(command).hex() == stored


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_152, 17_000_000])
def test_a_batch_of_any_size_is_where_the_header_says(size: int) -> None:
    batch = bytes(size)
    data = codec.encode_append(Append(STAMP, batch, 1))
    assert len(codec.batch_of(data)) == size
    assert len(pb.Command.FromString(data).batch) == size


def test_decoding_does_not_copy_the_batch() -> None:
    data = codec.encode_append(Append(STAMP, b"x" * 1_000, 1))
    decoded = codec.decode(data)
    assert isinstance(decoded, Append)
    assert isinstance(decoded.batch, memoryview)
    assert decoded.batch.obj is data


def test_a_command_of_a_newer_version_stops_the_replica() -> None:
    newer = codec.encode(Trim(STAMP, 5))
    with pytest.raises(codec.UnknownCommand, match="machine_version 2"):
        codec.decode(with_fields(newer, pb.Command(machine_version=2)))
    no_kind = pb.Command(log_time_ms=1).SerializeToString()
    with pytest.raises(codec.UnknownCommand, match="unknown kind"):
        codec.decode(b"\x0d" + (5 + len(no_kind)).to_bytes(4, "little") + no_kind)


def with_fields(data: bytes, more: pb.Command) -> bytes:
    header = data[5:] + more.SerializeToString()
    return b"\x0d" + (5 + len(header)).to_bytes(4, "little") + header


@given(st.binary(max_size=80))
@settings(max_examples=500, deadline=None)
def test_bytes_of_another_kind_are_refused_by_type(data: bytes) -> None:
    """Whatever they are: a typed error, or a command that is written the same way again."""
    for damaged in (data, b"\x0d" + len(data).to_bytes(4, "little") + data):
        try:
            command = codec.decode(damaged)
        except codec.UnknownCommand:
            continue
        assert codec.decode(codec.encode(command)) == command


@given(COMMANDS, st.data())
@settings(max_examples=200, deadline=None)
def test_a_command_cut_short_is_never_another_command(
    command: Command, data: st.DataObject
) -> None:
    whole = codec.encode(command)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        decoded = codec.decode(cut)
    except codec.UnknownCommand:
        return
    # The body is guarded by the entry's CRC; the header by its own length.
    assert isinstance(command, Append)
    assert isinstance(decoded, Append)
    assert decoded.record_count == command.record_count
