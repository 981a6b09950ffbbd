"""Taking a batch apart: by partition, by dedup id, or to what a reader takes (contract "Records").

The records stay opaque bytes. A batch that needs no cut is never rebuilt.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from node.ingest import FEATURES, BatchLimits, BatchRefused, Ingested, inflate, ingest
from node.partition.commands import Reason
from node.v1 import wire_pb2 as wire

# Tag and length around a record, and its key hash and offset delta: at most so many bytes.
_RECORD_OVERHEAD_BYTES = 16


@dataclass(frozen=True, slots=True)
class Share:
    """What of a request goes to one partition. `places`: where its records stood in the request."""

    partition: int
    batch: bytes
    places: Sequence[int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Records `first` to `last` of a batch, counted from 0. `batch` None: this one record is larger
    than the reader takes."""

    first: int
    last: int
    batch: bytes | None


def split_by_partition(
    batch: bytes,
    *,
    hash_slots: int,
    partition_of_slot: Callable[[int], int],
    keyless_partition: int,
    inflated_bytes_max: int,
) -> list[Share]:
    """Where the records of a request without partition belong: by key, else by dedup_id, else
    `keyless_partition`, which the caller draws once a request. Shares come in order of partition,
    each keeps the request's order. Raises BatchRefused when the batch cannot be parsed."""
    opened = _open(batch, inflated_bytes_max)
    places: dict[int, list[int]] = {}
    for place, record in enumerate(opened.records.records):
        try:
            fields = wire.MergedRecords.FromString(record)
        except DecodeError as error:
            raise BatchRefused(Reason.MALFORMED_BATCH, f"record {place}: {error}") from error
        if fields.HasField("key"):
            partition = partition_of_slot(zlib.crc32(fields.key) % hash_slots)
        elif fields.dedup_id:
            partition = partition_of_slot(zlib.crc32(fields.dedup_id[-1].encode()) % hash_slots)
        else:
            partition = keyless_partition
        places.setdefault(partition, []).append(place)
    if len(places) <= 1:
        whole = next(iter(places), keyless_partition)
        return [Share(whole, batch, range(opened.record_count))]
    return [Share(p, _select(opened, places[p]), places[p]) for p in sorted(places)]


def split_by_dedup_id(
    ingested: Ingested, limits: BatchLimits, *, has_producer: bool
) -> list[Ingested]:
    """Each record with a dedup id becomes a command of its own; runs of others stay together. The
    parts are in order; a producer's base_sequence goes on by each part's record_count. Parts are
    ingested anew: 10 µs each, and what is known of them is exact."""
    ids = ingested.dedup_ids
    if ingested.record_count == 1 or not any(ids):
        return [ingested]
    opened = _open(ingested.batch, limits.batch_bytes_max)
    parts: list[Ingested] = []
    first = 0
    for place in range(ingested.record_count):
        is_last = place + 1 == ingested.record_count
        if not is_last and not ids[place] and not ids[place + 1]:
            continue
        part = _select(opened, range(first, place + 1))
        parts.append(ingest(part, limits, has_producer=has_producer))
        first = place + 1
    return parts


def cut(batch: bytes, *, first: int, last: int, inflated_bytes_max: int) -> bytes:
    """The batch of records `first` to `last`, counted from 0, both included; its base offset is
    that of the first one. Not compressed."""
    return _select(_open(batch, inflated_bytes_max), range(first, last + 1))


def plain(batch: bytes, inflated_bytes_max: int) -> bytes:
    """The batch for a reader that cannot inflate it; what is not compressed is returned as is."""
    opened = wire.OpaqueRecordBatch.FromString(batch)
    if not opened.HasField("compressed"):
        return batch
    opened = _open(batch, inflated_bytes_max)
    return _select(opened, range(opened.record_count))


def is_compressed(batch: bytes) -> bool:
    """Whether the batch has a compressed body."""
    return wire.OpaqueRecordBatch.FromString(batch).HasField("compressed")


def pieces(
    batch: bytes, *, first: int, last: int, bytes_max: int, inflated_bytes_max: int
) -> list[Piece]:
    """Records `first` to `last` in batches of at most `bytes_max`, as few as possible."""
    opened = _open(batch, inflated_bytes_max)
    records = opened.records.records
    overhead = len(opened.producer_state) + 64
    found: list[Piece] = []
    start, size = first, overhead
    for place in range(first, last + 1):
        record_bytes = len(records[place]) + _RECORD_OVERHEAD_BYTES
        if overhead + record_bytes > bytes_max:
            if start < place:
                found.append(Piece(start, place - 1, _select(opened, range(start, place))))
            found.append(Piece(place, place, None))
            start, size = place + 1, overhead
        elif size + record_bytes > bytes_max:
            found.append(Piece(start, place - 1, _select(opened, range(start, place))))
            start, size = place, overhead + record_bytes
        else:
            size += record_bytes
    if start <= last:
        found.append(Piece(start, last, _select(opened, range(start, last + 1))))
    return found


def first_created(
    batch: bytes, time_ms: int, *, append_time_ms: int, inflated_bytes_max: int
) -> int | None:
    """Place of the first record created at `time_ms` or later, None if there is none. A record
    without timestamp was created when it was appended."""
    for place, record in enumerate(_open(batch, inflated_bytes_max).records.records):
        timestamps = wire.MergedRecords.FromString(record).timestamp_ms
        if (timestamps[-1] if timestamps else append_time_ms) >= time_ms:
            return place
    return None


def _open(batch: bytes, inflated_bytes_max: int) -> wire.OpaqueRecordBatch:
    """The batch with its records apart; a compressed body becomes a plain one."""
    try:
        opened = wire.OpaqueRecordBatch.FromString(batch)
        if opened.HasField("compressed"):
            body = inflate(opened.compressed, opened.uncompressed_bytes, inflated_bytes_max)
            opened.records.MergeFromString(body)
            opened.codec = opened.uncompressed_bytes = 0
            opened.features &= ~FEATURES["compression"]
    except DecodeError as error:
        raise BatchRefused(Reason.MALFORMED_BATCH, f"cannot be parsed: {error}") from error
    if len(opened.records.records) != opened.record_count:
        raise BatchRefused(
            Reason.MALFORMED_BATCH,
            f"record_count is {opened.record_count}, there are {len(opened.records.records)}",
        )
    return opened


def _select(opened: wire.OpaqueRecordBatch, places: Sequence[int]) -> bytes:
    """A batch of these records. Columns that there are are kept, offset deltas start at 0."""
    records = opened.records.records
    selected = wire.OpaqueRecordBatch(
        format=opened.format,
        record_count=len(places),
        features=opened.features,
        records=wire.OpaqueRecordList(records=[records[place] for place in places]),
        producer_state=opened.producer_state,
    )
    if opened.key_hashes:
        selected.key_hashes.extend(opened.key_hashes[place] for place in places)
    if opened.offset_deltas:
        base = opened.offset_deltas[places[0]]
        selected.offset_deltas.extend(opened.offset_deltas[place] - base for place in places)
    return selected.SerializeToString()
