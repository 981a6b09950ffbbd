"""Records as a program sees them: headers, what a reader gets, and what a batch holds."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, cast

import zstandard

from quorumq.errors import Corrupt, FeatureNotEnabled
from quorumq.v1 import messaging_pb2, records_pb2

HeaderValue = bytes | str | bool | int | float | None


class Header(NamedTuple):
    """One header. Order and duplicates are kept. `type` is a quorumq.v1.HeaderType; without one it
    follows from the value's Python type, and bytes and null are BYTES."""

    name: str
    value: HeaderValue
    type: int = records_pb2.HEADER_TYPE_UNSPECIFIED


class Record(NamedTuple):
    """What a reader gets. `timestamp_ms`: when the producer created it, if it said so, else when
    the partition stored it, which is always in `append_time_ms`."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    timestamp_ms: int
    append_time_ms: int


class RecordMetadata(NamedTuple):
    """Where a record is stored. `duplicate`: it was stored before, by an earlier attempt."""

    topic: str
    partition: int
    offset: int
    append_time_ms: int
    duplicate: bool


class ReadBatch:
    """Records of one partition that were stored together, as they arrived, cut to those asked for.

    `next_offset`: where to read on after this batch. `values()` is the cheap way in."""

    __slots__ = ("_delivery", "_kept", "append_time_ms", "next_offset", "partition", "topic")

    def __init__(self, topic: str, delivery: messaging_pb2.Delivery) -> None:
        self.topic = topic
        self.partition = delivery.partition
        self.next_offset = delivery.next_offset
        self.append_time_ms = delivery.append_time_ms
        self._delivery = delivery
        self._kept: tuple[Sequence[records_pb2.Record], Sequence[int]] | None = None

    def cut(self, first: int, end: int | None) -> None:
        """Leave out what is below `first`, or at or above `end`: a node may send a whole batch when
        a reader begins or ends inside it."""
        records, offsets = self._all()
        low, high = bisect_left(offsets, first), len(offsets)
        if end is not None:
            high = bisect_left(offsets, end)
            self.next_offset = min(self.next_offset, max(end, first))
        self._kept = (records[low:high], offsets[low:high])

    def __len__(self) -> int:
        return len(self._all()[0])

    @property
    def offsets(self) -> Sequence[int]:
        """Every record's offset, rising, with gaps where records are gone."""
        return self._all()[1]

    def values(self) -> list[bytes | None]:
        """Every record's value."""
        return [
            value if (value := record.value) or record.HasField("value") else None
            for record in self._all()[0]
        ]

    def records(self) -> list[Record]:
        topic, partition, appended = self.topic, self.partition, self.append_time_ms
        return [
            record_of(
                record, topic=topic, partition=partition, offset=offset, append_time_ms=appended
            )
            for record, offset in zip(*self._all(), strict=True)
        ]

    def _all(self) -> tuple[Sequence[records_pb2.Record], Sequence[int]]:
        if self._kept is None:
            batch = self._delivery.batch
            records = records_of(batch)
            base, deltas = self._delivery.base_offset, batch.offset_deltas
            if not len(records) == batch.record_count == (len(deltas) or len(records)):
                raise Corrupt(
                    f"partition {self.partition}, offset {base}: {batch.record_count} records "
                    f"said, {len(records)} there, {len(deltas)} offsets"
                )
            if deltas:
                self._kept = (records, [base + delta for delta in deltas])
            else:
                self._kept = (records, range(base, base + len(records)))
        return self._kept


def record_of(
    record: records_pb2.Record, *, topic: str, partition: int, offset: int, append_time_ms: int
) -> Record:
    """A record as a program sees it. A field that is false may also be absent, the others are
    there: asking only about the former saves a third."""
    key: bytes | None = record.key
    value: bytes | None = record.value
    created = record.timestamp_ms
    if not key and not record.HasField("key"):
        key = None
    if not value and not record.HasField("value"):
        value = None
    if not created and not record.HasField("timestamp_ms"):
        created = append_time_ms
    headers = tuple(map(decoded_header, record.headers)) if record.headers else ()
    return _new(Record, (topic, partition, offset, key, value, headers, created, append_time_ms))


_new = tuple.__new__  # a third of the time of Record(...)


def records_of(batch: records_pb2.RecordBatch) -> Sequence[records_pb2.Record]:
    if batch.WhichOneof("body") != "compressed":
        return batch.records.records
    if batch.codec != records_pb2.CODEC_ZSTD:
        raise FeatureNotEnabled(f"a batch is compressed by codec {batch.codec}")
    return records_pb2.RecordList.FromString(
        inflated(batch.compressed, uncompressed_bytes=batch.uncompressed_bytes)
    ).records


def deflated(plain: bytes) -> bytes:
    """One zstd frame. Level 1: the broker's disks and network are to win, not its clients lose."""
    return zstandard.ZstdCompressor(level=1).compress(plain)


def inflated(compressed: bytes, *, uncompressed_bytes: int) -> bytes:
    """Never more than it says it is. Raises Corrupt."""
    try:
        plain = zstandard.ZstdDecompressor().decompress(
            compressed, max_output_size=uncompressed_bytes
        )
    except zstandard.ZstdError as error:
        raise Corrupt(f"a batch that cannot be inflated: {error}") from None
    if len(plain) != uncompressed_bytes:
        raise Corrupt(f"a batch of {uncompressed_bytes} bytes inflates to {len(plain)}")
    return plain


def encoded_header(header: Header | tuple[str, HeaderValue]) -> records_pb2.Header:
    """Raises TypeError for a value that no type fits, ValueError for a name out of bounds."""
    name, value = header[0], header[1]
    kind = header.type if isinstance(header, Header) else records_pb2.HEADER_TYPE_UNSPECIFIED
    if not 1 <= len(name.encode()) <= 200 or name.startswith("quorumq-"):
        raise ValueError(f"a header's name has 1 to 200 bytes, quorumq- is reserved: {name!r}")
    if value is None:
        return records_pb2.Header(name=name, type=_header_type(kind))
    if kind == records_pb2.HEADER_TYPE_UNSPECIFIED:
        kind = _type_of(value)
    return records_pb2.Header(name=name, value=_packed(value, kind), type=_header_type(kind))


def decoded_header(header: records_pb2.Header) -> Header:
    """Nodes check a value's length only: bytes that do not fit their type are given as they are."""
    if not header.HasField("value"):
        return Header(header.name, None, header.type)
    raw = header.value
    value: HeaderValue = raw
    try:
        if header.type == records_pb2.HEADER_TYPE_STRING:
            value = raw.decode()
        elif header.type in (records_pb2.HEADER_TYPE_INT64, records_pb2.HEADER_TYPE_TIMESTAMP_MS):
            value = int(struct.unpack(">q", raw)[0])
        elif header.type == records_pb2.HEADER_TYPE_DOUBLE:
            value = float(struct.unpack(">d", raw)[0])
        elif header.type == records_pb2.HEADER_TYPE_BOOL:
            value = bool(struct.unpack(">?", raw)[0])
    except (struct.error, UnicodeDecodeError):
        value = raw
    return Header(header.name, value, header.type)


def _header_type(kind: int) -> records_pb2.HeaderType:
    return cast(records_pb2.HeaderType, kind)  # the stubs make a class of what is an int


def _type_of(value: HeaderValue) -> int:
    if isinstance(value, str):
        return records_pb2.HEADER_TYPE_STRING
    if isinstance(value, bool):
        return records_pb2.HEADER_TYPE_BOOL
    if isinstance(value, int):
        return records_pb2.HEADER_TYPE_INT64
    if isinstance(value, float):
        return records_pb2.HEADER_TYPE_DOUBLE
    return records_pb2.HEADER_TYPE_BYTES


def _packed(value: HeaderValue, kind: int) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and kind == records_pb2.HEADER_TYPE_STRING:
        return value.encode()
    if isinstance(value, bool) and kind == records_pb2.HEADER_TYPE_BOOL:
        return struct.pack(">?", value)
    if isinstance(value, int) and kind in (
        records_pb2.HEADER_TYPE_INT64,
        records_pb2.HEADER_TYPE_TIMESTAMP_MS,
    ):
        return struct.pack(">q", value)
    if isinstance(value, float) and kind == records_pb2.HEADER_TYPE_DOUBLE:
        return struct.pack(">d", value)
    raise TypeError(f"a header value of {type(value).__name__} as {kind}")
