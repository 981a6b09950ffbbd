"""Commands <-> the bytes of log entries (proto/node/v1/command.proto): the only file knowing both.

The body of an append is the last field of its command, and the first five bytes say where that
field begins. So decoding parses the header alone, and the body stays where it is: for the machine
it is a view, for a reader one slice. What is written is nevertheless one valid protobuf message.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from google.protobuf.message import DecodeError

from node.partition.commands import (
    MACHINE_VERSION,
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

_HEADER_TAG = 0x0D  # field 1, fixed32
_HEADER = struct.Struct("<BI")
_BATCH_TAG = 0x7A  # field 15, length-delimited
_BATCH_HEAD_BYTES = 6  # the tag and a length of always five bytes


class UnknownCommand(ValueError):
    """An entry's bytes are no command that this code knows: a newer version wrote them, which
    machine_version should have prevented, or they are damaged. The replica stops."""


def encode(command: Command) -> bytes:
    """The bytes of a COMMAND entry."""
    if type(command) is Append:
        return encode_append(command)
    message = pb.Command(
        log_time_ms=command.stamp.log_time_ms, wall_time_ms=command.stamp.wall_time_ms
    )
    _ENCODERS[type(command)](message, command)
    header = message.SerializeToString()
    return _HEADER.pack(_HEADER_TAG, _HEADER.size + len(header)) + header


def encode_append(append: Append) -> bytes:
    """The same for an append, the frequent case. Copies the batch once, into the entry."""
    stamp = append.stamp
    message = pb.Command(log_time_ms=stamp.log_time_ms, wall_time_ms=stamp.wall_time_ms)
    body = message.append
    body.record_count = append.record_count
    if append.features:
        body.features = append.features
    if append.producer is not None:
        body.producer_id = append.producer.producer_id
        body.producer_epoch = append.producer.epoch
        body.base_sequence = append.producer.base_sequence
    if append.producer_state:
        body.producer_state = append.producer_state
    if append.dedup_id:
        body.dedup_id = append.dedup_id
    if append.expected_next_offset is not None:
        body.expected_next_offset = append.expected_next_offset
    if append.created_count:
        body.created_count = append.created_count
        body.created_min_ms = append.created_min_ms
        body.created_max_ms = append.created_max_ms
    if append.columns:
        body.columns = append.columns
    header = message.SerializeToString()
    return b"".join(
        (
            _HEADER.pack(_HEADER_TAG, _HEADER.size + len(header)),
            header,
            _batch_head(len(append.batch)),
            append.batch,
        )
    )


def decode(data: bytes) -> Command:
    """What an entry says. The batch of an append is a view of `data`. Raises UnknownCommand."""
    header_bytes = _header_bytes(data)
    try:
        message = pb.Command.FromString(data[_HEADER.size : header_bytes])
    except DecodeError as error:
        raise UnknownCommand(f"not a command: {error}") from error
    if message.machine_version > MACHINE_VERSION:
        raise UnknownCommand(f"a command for machine_version {message.machine_version}")
    stamp = Stamp(message.log_time_ms, message.wall_time_ms)
    kind = message.WhichOneof("kind")
    if kind == "append":
        batch = memoryview(data)[header_bytes + _BATCH_HEAD_BYTES :]
        if header_bytes + _BATCH_HEAD_BYTES > len(data):
            raise UnknownCommand("an append without batch")
        return _decode_append(message.append, stamp, batch)
    if kind is None or header_bytes != len(data):
        raise UnknownCommand(f"a command of unknown kind, {len(data)} bytes")
    return _DECODERS[kind](message, stamp)


def batch_of(data: bytes) -> bytes:
    """The batch of an append's entry as it came from the producer, without decoding anything else.
    Raises UnknownCommand when the entry holds none."""
    at = _header_bytes(data) + _BATCH_HEAD_BYTES
    if at > len(data):
        raise UnknownCommand("a command without batch")
    return data[at:]


def _header_bytes(data: bytes) -> int:
    """Where the header ends. The rest is guarded by the entry's CRC, not checked again."""
    try:
        tag, header_bytes = _HEADER.unpack_from(data)
    except struct.error as error:
        raise UnknownCommand(f"not a command: {len(data)} bytes") from error
    if tag != _HEADER_TAG or not _HEADER.size <= header_bytes <= len(data):
        raise UnknownCommand(f"not a command: {len(data)} bytes that begin {data[:5].hex()}")
    return int(header_bytes)


def _batch_head(batch_bytes: int) -> bytes:
    """Field 15's tag and length. The length is a varint padded to five bytes, which every protobuf
    parser reads, so that the batch's place follows from header_bytes alone."""
    low = [batch_bytes >> shift & 0x7F | 0x80 for shift in (0, 7, 14, 21)]
    return bytes((_BATCH_TAG, *low, batch_bytes >> 28))


def _decode_append(body: pb.Append, stamp: Stamp, batch: memoryview) -> Append:
    producer_id = body.producer_id
    return Append(
        stamp,
        batch,
        body.record_count,
        ProducerSequence(producer_id, body.producer_epoch, body.base_sequence)
        if producer_id
        else None,
        body.producer_state,
        body.dedup_id,
        body.expected_next_offset if body.HasField("expected_next_offset") else None,
        body.created_count,
        body.created_min_ms,
        body.created_max_ms,
        body.features,
        body.columns,
    )


def _put_open_producer(message: pb.Command, command: OpenProducer) -> None:
    message.open_producer.producer_id = command.producer_id
    message.open_producer.epoch = command.epoch


def _put_commit_positions(message: pb.Command, command: CommitPositions) -> None:
    message.commit_positions.SetInParent()
    for commit in command.commits:
        message.commit_positions.commits.add(
            subscription_id=commit.subscription_id,
            position=commit.position,
            generation=commit.generation,
            metadata=commit.metadata,
        )


def _put_drop_positions(message: pb.Command, command: DropPositions) -> None:
    message.drop_positions.SetInParent()
    message.drop_positions.subscription_ids.extend(command.subscription_ids)


def _put_trim(message: pb.Command, command: Trim) -> None:
    message.trim.SetInParent()
    message.trim.first_offset = command.first_offset


def _put_expire_producers(message: pb.Command, command: ExpireProducers) -> None:
    message.expire_producers.SetInParent()
    message.expire_producers.producer_ids.extend(command.producer_ids)
    message.expire_producers.idle_ms = command.idle_ms


def _put_configure(message: pb.Command, command: Configure) -> None:
    settings = command.settings
    message.configure.version = settings.version
    message.configure.dedup_window_count = settings.dedup_window_count
    message.configure.dedup_overflow = int(settings.dedup_overflow)  # type: ignore[assignment]
    message.configure.dedup_window_ms = settings.dedup_window_ms
    message.configure.producer_expiry_ms = settings.producer_expiry_ms


def _put_set_machine_version(message: pb.Command, command: SetMachineVersion) -> None:
    message.set_machine_version.machine_version = command.machine_version


_ENCODERS: dict[type, Callable[..., None]] = {
    OpenProducer: _put_open_producer,
    CommitPositions: _put_commit_positions,
    DropPositions: _put_drop_positions,
    Trim: _put_trim,
    ExpireProducers: _put_expire_producers,
    Configure: _put_configure,
    SetMachineVersion: _put_set_machine_version,
}


def _open_producer(message: pb.Command, stamp: Stamp) -> Command:
    return OpenProducer(stamp, message.open_producer.producer_id, message.open_producer.epoch)


def _commit_positions(message: pb.Command, stamp: Stamp) -> Command:
    return CommitPositions(
        stamp,
        tuple(
            PositionCommit(
                commit.subscription_id,
                commit.position,
                commit.generation if commit.HasField("generation") else None,
                commit.metadata,
            )
            for commit in message.commit_positions.commits
        ),
    )


def _drop_positions(message: pb.Command, stamp: Stamp) -> Command:
    return DropPositions(stamp, tuple(message.drop_positions.subscription_ids))


def _trim(message: pb.Command, stamp: Stamp) -> Command:
    return Trim(stamp, message.trim.first_offset)


def _expire_producers(message: pb.Command, stamp: Stamp) -> Command:
    body = message.expire_producers
    return ExpireProducers(stamp, tuple(body.producer_ids), body.idle_ms)


def _configure(message: pb.Command, stamp: Stamp) -> Command:
    body = message.configure
    try:
        overflow = DedupOverflow(body.dedup_overflow)
    except ValueError as error:
        raise UnknownCommand(f"dedup_overflow {body.dedup_overflow} is not known") from error
    settings = Settings(
        body.version,
        body.dedup_window_count,
        overflow,
        body.dedup_window_ms,
        body.producer_expiry_ms,
    )
    return Configure(stamp, settings)


def _set_machine_version(message: pb.Command, stamp: Stamp) -> Command:
    return SetMachineVersion(stamp, message.set_machine_version.machine_version)


_DECODERS: dict[str, Callable[[pb.Command, Stamp], Command]] = {
    "open_producer": _open_producer,
    "commit_positions": _commit_positions,
    "drop_positions": _drop_positions,
    "trim": _trim,
    "expire_producers": _expire_producers,
    "configure": _configure,
    "set_machine_version": _set_machine_version,
}
