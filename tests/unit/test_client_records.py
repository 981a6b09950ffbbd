"""Headers and their types; requests built by hand are what the generated messages would be."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorumq import wire
from quorumq.errors import Corrupt, FeatureNotEnabled
from quorumq.records import (
    Header,
    HeaderValue,
    decoded_header,
    deflated,
    encoded_header,
    inflated,
    records_of,
)
from quorumq.v1 import messaging_pb2, records_pb2

NUMBERS = st.integers(0, 2**53 - 1)
BODIES = st.binary(max_size=300)


# -------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("text", records_pb2.HEADER_TYPE_STRING),
        (-(2**63), records_pb2.HEADER_TYPE_INT64),
        (2.5, records_pb2.HEADER_TYPE_DOUBLE),
        (True, records_pb2.HEADER_TYPE_BOOL),
        (b"\0\1", records_pb2.HEADER_TYPE_BYTES),
    ],
)
def test_a_headers_type_follows_from_its_value(value: HeaderValue, kind: int) -> None:
    assert decoded_header(encoded_header(("name", value))) == Header("name", value, kind)


def test_a_headers_type_can_be_given() -> None:
    time = Header("at", 1_700_000_000_000, records_pb2.HEADER_TYPE_TIMESTAMP_MS)
    assert decoded_header(encoded_header(time)) == time
    null = Header("null", None, records_pb2.HEADER_TYPE_STRING)
    assert decoded_header(encoded_header(null)) == null
    raw = Header("raw", struct.pack(">q", 7), records_pb2.HEADER_TYPE_INT64)
    assert decoded_header(encoded_header(raw)).value == 7


@pytest.mark.parametrize("header", [Header("n", 1.5, records_pb2.HEADER_TYPE_INT64), ("n", [1])])
def test_a_value_of_another_type(header: Header) -> None:
    with pytest.raises(TypeError):
        encoded_header(header)


@pytest.mark.parametrize("name", ["", "x" * 201, "é" * 101, "quorumq-attempts"])
def test_a_name_out_of_bounds(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 200 bytes"):
        encoded_header((name, b""))


def test_bytes_that_do_not_fit_their_type_are_given_as_they_are() -> None:
    for kind in (records_pb2.HEADER_TYPE_INT64, records_pb2.HEADER_TYPE_STRING):
        bent = records_pb2.Header(name="n", value=b"\xff\xff", type=kind)
        assert decoded_header(bent).value == b"\xff\xff"


# ------------------------------------------------------------------------------------ by hand


@given(NUMBERS)
def test_varint(number: int) -> None:
    encoded = messaging_pb2.ProduceRequest(request_id=number).SerializeToString()
    assert wire.varint(number) == (encoded[1:] if number else b"\0")


@given(st.lists(st.tuples(st.none() | BODIES, BODIES), min_size=1, max_size=5), NUMBERS)
def test_a_request_is_what_the_generated_messages_would_be(
    records: list[tuple[bytes | None, bytes]], number: int
) -> None:
    parts = []
    for key, value in records:
        if key is None:
            parts += [wire.plain_head(len(value)), value]
        else:
            before_key, before_value = wire.keyed_heads(len(key), len(value))
            parts += [before_key, key, before_value, value]
    features = number % 8
    body = wire.record_batch(b"".join(parts), count=len(records), features=features)
    head = wire.request_head("topic", "id", 300)
    identity = (number, 7, number)
    request = wire.with_request_id(wire.produce_request(head, body, identity), number + 1)
    batch = records_pb2.RecordBatch(record_count=len(records), features=features)
    batch.records.SetInParent()
    for key, value in records:
        batch.records.records.add(key=key, value=value)
    expected = messaging_pb2.ProduceRequest(
        topic="topic",
        topic_id="id",
        partition=300,
        batch=batch,
        request_id=number + 1,
        producer=messaging_pb2.ProducerIdentity(producer_id=number, epoch=7, base_sequence=number),
    )
    assert messaging_pb2.ProduceStreamRequest.FromString(request).produce == expected


@given(st.binary(min_size=1))
def test_a_compressed_batch(plain: bytes) -> None:
    record = records_pb2.Record(value=plain)
    records = wire.framed_record(record.SerializeToString())
    body = wire.compressed_batch(
        deflated(records),
        count=1,
        features=2,
        codec=records_pb2.CODEC_ZSTD,
        uncompressed_bytes=len(records),
    )
    batch = records_pb2.RecordBatch.FromString(body)
    assert (batch.record_count, batch.features) == (1, 2)
    assert list(records_of(batch)) == [record]


def test_a_batch_never_inflates_beyond_what_it_says() -> None:
    bomb = deflated(bytes(10_000_000))
    for said in (0, 100, 20_000_000):
        with pytest.raises(Corrupt):
            inflated(bomb, uncompressed_bytes=said)
    with pytest.raises(FeatureNotEnabled):
        records_of(records_pb2.RecordBatch(compressed=b"x"))


def test_heads_that_are_kept_stay_few() -> None:
    for size in range(70_000):
        wire.plain_head(size)
        wire.keyed_heads(size, 1)
    assert len(wire.plain_head(3)) == 4
    assert wire.keyed_heads(1, 1) == (b"\x0a\x06\x0a\x01", b"\x12\x01")
