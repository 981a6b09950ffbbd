"""Taking batches apart: by partition, by dedup id, to what a reader takes (contract "Records")."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from node import batches
from node.ingest import FEATURES, BatchLimits, BatchRefused, ingest
from node.partition.commands import Reason
from quorumq.v1 import records_pb2
from quorumq.v1.records_pb2 import Record, RecordBatch, RecordList

LIMITS = BatchLimits()
BYTES_MAX = LIMITS.batch_bytes_max
PARTITIONER = Path(__file__).parents[2] / "proto/quorumq/v1/partitioner.json"


def batch_of(*records: Record, is_compressed: bool = False, has_hashes: bool = False) -> bytes:
    body = RecordList(records=records)
    made = RecordBatch(record_count=len(records), records=body)
    if is_compressed:
        text = body.SerializeToString()
        made.compressed = zstandard.compress(text)
        made.codec = records_pb2.CODEC_ZSTD
        made.uncompressed_bytes = len(text)
        made.features = FEATURES["compression"] | FEATURES["subject"]
    if has_hashes:
        made.key_hashes.extend(range(len(records)))
    return made.SerializeToString()


def values(batch: bytes) -> list[bytes]:
    opened = RecordBatch.FromString(batch)
    assert opened.record_count == len(opened.records.records)
    assert not opened.compressed
    return [record.value for record in opened.records.records]


def split(batch: bytes, partitions: int = 4, keyless: int = 0) -> list[batches.Share]:
    return batches.split_by_partition(
        batch,
        hash_slots=partitions * 64,
        partition_of_slot=lambda slot: slot % partitions,
        keyless_partition=keyless,
        inflated_bytes_max=BYTES_MAX,
    )


def test_keys_go_where_the_published_vectors_say() -> None:
    for vector in json.loads(PARTITIONER.read_text())["vectors"]:
        record = Record(key=bytes.fromhex(vector["key_hex"]))
        (share,) = split(batch_of(record), vector["partitions"])
        assert share.partition == vector["partition"], vector["key_hex"][:40]


def test_a_dedup_id_stands_in_for_a_missing_key() -> None:
    (by_key,) = split(batch_of(Record(key=b"order-17")))
    (by_id,) = split(batch_of(Record(dedup_id="order-17")))
    assert by_id.partition == by_key.partition
    (keyed,) = split(batch_of(Record(key=b"order-17", dedup_id="other")))
    assert keyed.partition == by_key.partition


def test_records_without_key_go_together_to_the_drawn_partition() -> None:
    batch = batch_of(Record(value=b"a"), Record(value=b"b"))
    assert split(batch, keyless=3) == [batches.Share(3, batch, range(2))]


@given(
    st.lists(st.none() | st.binary(max_size=3), min_size=1, max_size=12),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_split_loses_nothing_and_keeps_the_order(
    keys: list[bytes | None], is_compressed: bool, has_hashes: bool
) -> None:
    records = [Record(key=key, value=b"%d" % place) for place, key in enumerate(keys)]
    shares = split(batch_of(*records, is_compressed=is_compressed, has_hashes=has_hashes))
    assert [s.partition for s in shares] == sorted({s.partition for s in shares})
    places = [place for share in shares for place in share.places]
    assert sorted(places) == list(range(len(keys)))
    for share in shares:
        assert list(share.places) == sorted(share.places)
        ingest(share.batch, LIMITS, has_producer=False)
        if len(shares) > 1:
            assert values(share.batch) == [b"%d" % place for place in share.places]
            hashes = list(RecordBatch.FromString(share.batch).key_hashes)
            assert hashes == (list(share.places) if has_hashes else [])
        for place in share.places:
            (alone,) = split(batch_of(records[place]))
            assert alone.partition == share.partition


def test_a_batch_for_one_partition_is_not_rebuilt() -> None:
    batch = batch_of(Record(key=b"k"), Record(key=b"k"), is_compressed=True)
    (share,) = split(batch)
    assert share.batch is batch


def test_what_cannot_be_parsed_is_refused_before_it_is_split() -> None:
    wrong_count = RecordBatch(record_count=3, records=RecordList(records=[Record()]))
    bad_record = RecordBatch(record_count=1).SerializeToString() + b"\x22\x03\x0a\x01\xff"
    for data in (b"\xff", wrong_count.SerializeToString(), bad_record):
        with pytest.raises(BatchRefused) as caught:
            split(data)
        assert caught.value.reason is Reason.MALFORMED_BATCH


@pytest.mark.parametrize("is_compressed", [False, True])
def test_records_with_dedup_id_become_commands_of_their_own(is_compressed: bool) -> None:
    records = [
        Record(value=b"0", timestamp_ms=10),
        Record(value=b"1"),
        Record(value=b"2", dedup_id="x", timestamp_ms=20),
        Record(value=b"3", dedup_id="y"),
        Record(value=b"4", timestamp_ms=30),
    ]
    batch = batch_of(*records, is_compressed=is_compressed)
    whole = ingest(batch, LIMITS, has_producer=False)
    parts = batches.split_by_dedup_id(whole, LIMITS, has_producer=False)
    assert [values(part.batch) for part in parts] == [[b"0", b"1"], [b"2"], [b"3"], [b"4"]]
    assert [list(part.dedup_ids) for part in parts] == [[], [b"x"], [b"y"], []]
    assert [(p.created_count, p.created_min_ms) for p in parts] == [
        (1, 10),
        (1, 20),
        (0, 0),
        (1, 30),
    ]


def test_a_batch_without_dedup_ids_stays_whole() -> None:
    whole = ingest(batch_of(Record(), Record()), LIMITS, has_producer=False)
    assert batches.split_by_dedup_id(whole, LIMITS, has_producer=False) == [whole]


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_cut_has_the_records_asked_for(is_compressed: bool) -> None:
    records = [Record(value=b"%d" % place) for place in range(5)]
    batch = batch_of(*records, is_compressed=is_compressed, has_hashes=True)
    cut = batches.cut(batch, first=1, last=3, inflated_bytes_max=BYTES_MAX)
    assert values(cut) == [b"1", b"2", b"3"]
    assert list(RecordBatch.FromString(cut).key_hashes) == [1, 2, 3]
    assert RecordBatch.FromString(cut).features == (FEATURES["subject"] if is_compressed else 0)


def test_a_cut_of_a_batch_with_holes_keeps_their_distances() -> None:
    stored = RecordBatch.FromString(batch_of(*(Record(value=b"%d" % n) for n in range(3))))
    stored.offset_deltas.extend((0, 4, 9))
    cut = batches.cut(stored.SerializeToString(), first=1, last=2, inflated_bytes_max=BYTES_MAX)
    assert list(RecordBatch.FromString(cut).offset_deltas) == [0, 5]


def test_a_reader_that_cannot_inflate_gets_the_batch_plain() -> None:
    batch = batch_of(Record(value=b"a"))
    assert batches.plain(batch, BYTES_MAX) is batch
    packed = batch_of(Record(value=b"a"), is_compressed=True)
    assert batches.is_compressed(packed)
    assert values(batches.plain(packed, BYTES_MAX)) == [b"a"]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=20), st.data())
@settings(max_examples=300, deadline=None)
def test_pieces_fit_and_are_everything(sizes: list[int], data: st.DataObject) -> None:
    records = [Record(value=bytes((place,)) * size) for place, size in enumerate(sizes)]
    last = data.draw(st.integers(0, len(sizes) - 1))
    first = data.draw(st.integers(0, last))
    bytes_max = data.draw(st.integers(200, 1_000))
    found = batches.pieces(
        batch_of(*records, has_hashes=True),
        first=first,
        last=last,
        bytes_max=bytes_max,
        inflated_bytes_max=BYTES_MAX,
    )
    places = [place for piece in found for place in range(piece.first, piece.last + 1)]
    assert places == list(range(first, last + 1))
    for piece in found:
        if piece.batch is None:
            assert piece.first == piece.last
            assert len(batch_of(records[piece.first])) + 200 > bytes_max
        else:
            assert len(piece.batch) <= bytes_max
            expected = [record.value for record in records[piece.first : piece.last + 1]]
            assert values(piece.batch) == expected


@pytest.mark.parametrize("time_ms", [0, 5, 6, 10, 11])
def test_the_first_record_created_at_a_time(time_ms: int) -> None:
    batch = batch_of(
        Record(timestamp_ms=5), Record(timestamp_ms=3), Record(), Record(timestamp_ms=8)
    )
    # The record without timestamp was created when it was appended, at 10.
    expected = {0: 0, 5: 0, 6: 2, 10: 2, 11: None}[time_ms]
    found = batches.first_created(batch, time_ms, append_time_ms=10, inflated_bytes_max=BYTES_MAX)
    assert found == expected
