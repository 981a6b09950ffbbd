"""What a node takes from a producer, and what it refuses by name (contract "Records", "Errors")."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from node.ingest import (
    FEATURES,
    HEADERS_MAX,
    NUMBER_MAX,
    RECORDS_MAX,
    BatchLimits,
    BatchRefused,
    Ingested,
    ingest,
)
from node.partition.commands import ProducerSequence, Reason, Stamp
from quorumq.v1 import errors_pb2, records_pb2
from quorumq.v1.records_pb2 import Record, RecordBatch, RecordList

LIMITS = BatchLimits()


def batch_of(*records: Record, **fields: object) -> RecordBatch:
    made = RecordBatch(record_count=len(records), records=RecordList(records=records))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def compressed(*records: Record, **fields: object) -> RecordBatch:
    body = RecordList(records=records).SerializeToString()
    made = RecordBatch(
        record_count=len(records),
        compressed=zstandard.compress(body),
        codec=records_pb2.CODEC_ZSTD,
        uncompressed_bytes=len(body),
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def take(
    batch: RecordBatch, limits: BatchLimits = LIMITS, *, has_producer: bool = True
) -> Ingested:
    return ingest(batch.SerializeToString(), limits, has_producer=has_producer)


def refused(
    batch: RecordBatch, limits: BatchLimits = LIMITS, *, has_producer: bool = True
) -> BatchRefused:
    with pytest.raises(BatchRefused) as caught:
        take(batch, limits, has_producer=has_producer)
    return caught.value


def headers(*names: str) -> Record:
    return Record(headers=[records_pb2.Header(name=name) for name in names])


def test_a_plain_batch_is_stored_as_the_bytes_it_came_as() -> None:
    batch = batch_of(Record(key=b"k", value=b"v", timestamp_ms=9), Record(), headers("traceparent"))
    taken = take(batch)
    assert taken.batch == batch.SerializeToString()
    assert (taken.record_count, taken.features) == (3, 0)
    assert (taken.created_count, taken.created_min_ms, taken.created_max_ms) == (1, 9, 9)


def test_the_command_says_what_the_record_index_needs() -> None:
    batch = batch_of(Record(timestamp_ms=9), Record(timestamp_ms=5), producer_state=b"s")
    producer = ProducerSequence(7, 1, 0)
    append = take(batch).append(Stamp(1, 2), producer, 4)
    assert (append.record_count, append.producer, append.expected_next_offset) == (2, producer, 4)
    assert (append.created_count, append.created_min_ms, append.created_max_ms) == (2, 5, 9)
    assert append.producer_state == b"s"
    assert append.features == FEATURES["producer_state"]
    assert append.batch == batch.SerializeToString()


def test_a_subject_is_taken_and_noted() -> None:
    assert take(batch_of(Record(subject="a.b"), Record())).features == FEATURES["subject"]


def test_dedup_ids_are_found_per_record() -> None:
    taken = take(batch_of(Record(dedup_id="a"), Record(), Record(dedup_id="c")))
    assert taken.dedup_ids == [b"a", b"", b"c"]
    assert taken.features == FEATURES["dedup_id"]


@pytest.mark.parametrize(
    ("record", "feature"),
    [
        (Record(priority=0), "priority"),
        (Record(deliver_at_ms=0), "delay"),
        (Record(delay_ms=1), "delay"),
        (Record(expires_at_ms=1), "ttl"),
        (Record(ttl_ms=1), "ttl"),
        (Record(fairness_key="f"), "fairness"),
    ],
)
def test_what_is_not_delivered_yet_is_refused_by_name(record: Record, feature: str) -> None:
    for make in (batch_of, compressed):
        error = refused(make(Record(value=b"plain"), record))
        assert (error.reason, error.details) == (Reason.FEATURE_NOT_ENABLED, {"feature": feature})


@pytest.mark.parametrize("name", ["priority", "delay", "ttl", "fairness", "transaction"])
def test_a_declared_feature_that_is_not_delivered_is_refused(name: str) -> None:
    error = refused(batch_of(Record(), features=FEATURES[name]))
    assert (error.reason, error.details) == (Reason.FEATURE_NOT_ENABLED, {"feature": name})


def test_a_declared_feature_that_no_record_needs_is_allowed() -> None:
    assert take(batch_of(Record(), features=FEATURES["subject"])).features == FEATURES["subject"]


@pytest.mark.parametrize("bits", [1, 1 << 10, 1 << 52])
def test_an_unknown_feature_bit_is_refused(bits: int) -> None:
    error = refused(batch_of(Record(), features=bits))
    assert error.reason is Reason.FEATURE_NOT_ENABLED
    assert error.details == {"feature": f"bit_{bits.bit_length() - 1}"}


@pytest.mark.parametrize("name", ["subject", "dedup_id", "producer_state", "compression"])
def test_a_feature_above_the_topics_level_is_refused(name: str) -> None:
    limits = BatchLimits(features=LIMITS.features & ~FEATURES[name])
    batch = {
        "subject": batch_of(Record(subject="s")),
        "dedup_id": batch_of(Record(dedup_id="d")),
        "producer_state": batch_of(Record(), producer_state=b"s"),
        "compression": compressed(Record()),
    }[name]
    assert refused(batch, limits).details == {"feature": name}


UNKNOWN_FIELD = b"\xfa\x01\x01x"  # field 31, one byte


def with_raw_body(record_list: bytes, count: int = 1) -> bytes:
    length = bytearray()
    size = len(record_list)
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return RecordBatch(record_count=count).SerializeToString() + b"\x22" + length + record_list


@pytest.mark.parametrize(
    ("where", "data"),
    [
        ("of the batch", batch_of(Record()).SerializeToString() + UNKNOWN_FIELD),
        ("of the record list", with_raw_body(b"\x0a\x00" + UNKNOWN_FIELD)),
        ("of a record", with_raw_body(b"\x0a\x04" + UNKNOWN_FIELD)),
        ("of a header", with_raw_body(b"\x0a\x09\x22\x07\x0a\x01n" + UNKNOWN_FIELD)),
    ],
)
def test_an_unknown_field_is_refused_wherever_it_is(where: str, data: bytes) -> None:
    with pytest.raises(BatchRefused, match=where) as caught:
        ingest(data, LIMITS, has_producer=False)
    assert caught.value.reason is Reason.FEATURE_NOT_ENABLED
    assert caught.value.details == {"feature": "field_31"}


def test_another_format_and_another_codec_are_refused_by_name() -> None:
    assert refused(batch_of(Record(), format=1)).details == {"feature": "format_1"}
    assert refused(compressed(Record(), codec=2)).details == {"feature": "codec_2"}
    assert refused(compressed(Record(), codec=0)).reason is Reason.FEATURE_NOT_ENABLED


@pytest.mark.parametrize(
    "batch", [RecordBatch(), RecordBatch(record_count=1), batch_of(), batch_of(record_count=0)]
)
def test_an_empty_batch_is_refused(batch: RecordBatch) -> None:
    assert refused(batch).reason is Reason.EMPTY_BATCH


def test_what_contradicts_itself_is_refused() -> None:
    record = Record(value=b"v")
    made: list[Callable[[], RecordBatch]] = [
        lambda: batch_of(record, record_count=2),
        lambda: batch_of(record, record, record_count=1),
        lambda: batch_of(record, codec=records_pb2.CODEC_ZSTD),
        lambda: batch_of(record, uncompressed_bytes=9),
        lambda: batch_of(record, producer_state=bytes(257)),
        lambda: batch_of(Record(timestamp_ms=-1)),
        lambda: batch_of(Record(timestamp_ms=NUMBER_MAX + 1)),
        lambda: batch_of(Record(subject="s" * 1_001)),
        lambda: batch_of(Record(dedup_id="ä" * 101)),
        lambda: compressed(record, record_count=2),
        lambda: compressed(record, uncompressed_bytes=1),
        lambda: compressed(record, compressed=b"not zstd"),
        lambda: compressed(record, compressed=b""),
    ]
    for make in made:
        error = refused(make())
        assert error.reason is Reason.MALFORMED_BATCH, (make(), error)


def test_key_hashes_are_none_or_one_a_record() -> None:
    batch = batch_of(Record(), Record())
    batch.key_hashes.extend((1, 2))
    assert take(batch).record_count == 2
    batch.key_hashes.append(3)
    assert refused(batch).reason is Reason.MALFORMED_BATCH


def test_offset_deltas_are_for_nodes_only() -> None:
    batch = batch_of(Record())
    batch.offset_deltas.append(0)
    assert refused(batch).reason is Reason.MALFORMED_BATCH


def test_a_producer_state_needs_a_producer() -> None:
    error = refused(batch_of(Record(), producer_state=b"s"), has_producer=False)
    assert error.reason is Reason.BAD_REQUEST


def test_limits_are_exact() -> None:
    record = Record(value=bytes(100))
    size, body = record.ByteSize(), 3 * record.ByteSize()
    batch = batch_of(record, record, record)
    batch.key_hashes.extend((1, 2, 3))  # not part of what is limited
    assert take(batch, BatchLimits(size, body)).record_count == 3
    assert refused(batch, BatchLimits(size - 1, body)).reason is Reason.RECORD_TOO_LARGE
    assert refused(batch, BatchLimits(size, body - 1)).reason is Reason.BATCH_TOO_LARGE
    packed = compressed(record, record, record)
    assert take(packed, BatchLimits(size, body)).record_count == 3
    assert refused(packed, BatchLimits(size - 1, body)).reason is Reason.RECORD_TOO_LARGE
    assert refused(packed, BatchLimits(size, body - 1)).reason is Reason.BATCH_TOO_LARGE


def test_the_number_of_records_is_bounded() -> None:
    records = [Record()] * RECORDS_MAX
    assert take(batch_of(*records)).record_count == RECORDS_MAX
    assert refused(batch_of(*records, Record())).reason is Reason.BATCH_TOO_LARGE


def test_a_compressed_batch_is_checked_as_if_it_were_not() -> None:
    taken = take(compressed(Record(key=b"k", timestamp_ms=3), Record(subject="s")))
    assert taken.features == FEATURES["compression"] | FEATURES["subject"]
    assert (taken.created_count, taken.created_min_ms) == (1, 3)
    assert refused(compressed(headers("quorumq-x"))).reason is Reason.MALFORMED_BATCH


def test_a_frame_inflates_to_what_was_announced_or_not_at_all() -> None:
    """The bound holds before a byte is inflated, also for a frame that tells no size, or a false
    one; what follows the frame is refused too."""
    bomb = zstandard.compress(bytes(50_000_000))
    for announced in (100, LIMITS.batch_bytes_max):
        batch = RecordBatch(
            record_count=1,
            compressed=bomb,
            codec=records_pb2.CODEC_ZSTD,
            uncompressed_bytes=announced,
        )
        assert refused(batch).reason is Reason.MALFORMED_BATCH
    batch.uncompressed_bytes = 50_000_000
    assert refused(batch).reason is Reason.BATCH_TOO_LARGE
    body = RecordList(records=[Record(value=b"v" * 100)]).SerializeToString()
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(body)
    assert take(compressed(Record(value=b"v" * 100), compressed=silent)).record_count == 1
    error = refused(compressed(Record(value=b"v" * 99), compressed=silent))
    assert error.reason is Reason.MALFORMED_BATCH
    trailing = compressed(Record(value=b"v" * 100), compressed=silent + silent)
    assert refused(trailing).reason is Reason.MALFORMED_BATCH


def test_the_brokers_headers_are_refused_from_producers() -> None:
    for make in (batch_of, compressed):
        error = refused(make(headers("ok"), headers("ok", "quorumq-dead-letter-reason")))
        assert error.reason is Reason.MALFORMED_BATCH
        assert "quorumq-dead-letter-reason" in error.message
    text = Record(value=b"quorumq-", headers=[records_pb2.Header(name="x", value=b"quorumq-a")])
    assert take(batch_of(text)).record_count == 1


def test_header_rules() -> None:
    assert take(batch_of(headers("n" * 200, "ä" * 100))).record_count == 1
    for record in (headers(""), headers("a", "", "b"), headers("n" * 201), headers("ä" * 101)):
        assert refused(batch_of(Record(), record)).reason is Reason.MALFORMED_BATCH
    batch = batch_of(headers("n"))
    batch.records.records[0].headers[0].type = 7  # type: ignore[assignment]
    assert refused(batch).details == {"feature": "header_type_7"}


def test_the_number_of_headers_counts_for_each_record() -> None:
    most = headers(*["n"] * HEADERS_MAX)
    assert take(batch_of(most, most)).record_count == 2
    error = refused(batch_of(most, headers(*["n"] * (HEADERS_MAX + 1))))
    assert error.reason is Reason.MALFORMED_BATCH


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(BatchRefused) as caught:
        ingest(with_raw_body(b"\x0a\x05\x2a\x03a\xffb"), LIMITS, has_producer=False)
    assert caught.value.reason is Reason.MALFORMED_BATCH


def test_every_reason_is_in_the_public_table() -> None:
    public = errors_pb2.Reason.keys()
    assert [r for r in Reason if f"REASON_{r}" not in public] == []


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_taken_or_refused_by_type(data: bytes) -> None:
    try:
        taken = ingest(data, LIMITS, has_producer=True)
    except BatchRefused:
        return
    assert len(RecordBatch.FromString(data).records.records) == taken.record_count


RECORDS = st.builds(
    Record,
    key=st.none() | st.binary(max_size=8),
    value=st.none() | st.binary(max_size=8),
    timestamp_ms=st.none() | st.integers(0, NUMBER_MAX),
    headers=st.lists(
        st.builds(
            records_pb2.Header,
            name=st.text(min_size=1, max_size=5),
            value=st.none() | st.binary(max_size=4),
        ),
        max_size=3,
    ),
    subject=st.text(max_size=4),
    dedup_id=st.text(max_size=3),
    priority=st.none() | st.none() | st.integers(0, 9),
    fairness_key=st.sampled_from(["", "", "", "f"]),
)


@given(st.lists(RECORDS, min_size=1, max_size=6), st.booleans())
@settings(max_examples=500, deadline=None)
def test_the_merged_view_sees_what_a_look_at_each_record_sees(
    records: list[Record], is_compressed: bool
) -> None:
    batch = compressed(*records) if is_compressed else batch_of(*records)
    if any(r.HasField("priority") or r.fairness_key for r in records):
        assert refused(batch).reason is Reason.FEATURE_NOT_ENABLED
        return
    taken = take(batch)
    assert bool(taken.features & FEATURES["subject"]) == any(r.subject for r in records)
    assert bool(taken.features & FEATURES["dedup_id"]) == any(r.dedup_id for r in records)
    ids = [r.dedup_id.encode() for r in records]
    assert list(taken.dedup_ids) == (ids if any(ids) else [])
    created = [r.timestamp_ms for r in records if r.HasField("timestamp_ms")]
    assert taken.created_count == len(created)
    if created:
        assert (taken.created_min_ms, taken.created_max_ms) == (min(created), max(created))
