"""The twins of public messages: the same bytes, whoever reads them (house §4.11)."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from node.v1 import wire_pb2 as wire
from quorumq.v1 import errors_pb2, messaging_pb2, records_pb2

WHOLE_TWINS = (
    "ProducerIdentity",
    "ProduceRequest",
    "ProduceResult",
    "ProduceResponse",
    "ProduceStreamRequest",
    "ProduceStreamResponse",
    "DeliveryRange",
    "Delivery",
    "PartitionStatus",
    "Heartbeat",
    "EndOfPartition",
    "GoAway",
    "ReadResponse",
)
# Twin -> the public message, and the fields it leaves out on purpose.
PARTLY_TWINS: dict[str, tuple[type[Message], tuple[int, ...]]] = {
    "OpaqueRecordList": (records_pb2.RecordList, ()),
    "OpaqueRecordBatch": (records_pb2.RecordBatch, ()),
    "MergedRecordBatch": (records_pb2.RecordBatch, ()),
    "MergedRecordList": (records_pb2.RecordList, ()),
    "MergedRecords": (records_pb2.Record, (7, 8, 9, 10, 11, 12)),
    "MergedHeaders": (records_pb2.Header, ()),
}
TWINS = [
    *((name, messaging_pb2.DESCRIPTOR.message_types_by_name[name], ()) for name in WHOLE_TWINS),
    *((name, public.DESCRIPTOR, left_out) for name, (public, left_out) in PARTLY_TWINS.items()),
]

VARINT = (
    FieldDescriptor.TYPE_BOOL,
    FieldDescriptor.TYPE_ENUM,
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
)
DELIMITED = (
    FieldDescriptor.TYPE_BYTES,
    FieldDescriptor.TYPE_MESSAGE,
    FieldDescriptor.TYPE_STRING,
)


def wire_form(field: FieldDescriptor) -> str:
    if field.type in VARINT:
        return "varint"
    return "delimited" if field.type in DELIMITED else f"type {field.type}"


@pytest.mark.parametrize(("name", "public", "left_out"), TWINS)
def test_a_twin_has_the_numbers_and_wire_forms_of_the_public_message(
    name: str, public: Descriptor, left_out: tuple[int, ...]
) -> None:
    twin: Descriptor = wire.DESCRIPTOR.message_types_by_name[name]
    expected = {f.number: (f.name, wire_form(f)) for f in public.fields if f.number not in left_out}
    assert {f.number: (f.name, wire_form(f)) for f in twin.fields} == expected


def test_every_message_of_the_wire_file_is_a_twin() -> None:
    assert sorted(wire.DESCRIPTOR.message_types_by_name) == sorted(name for name, *_ in TWINS)


def through(message: Message, twin: type[Message]) -> Message:
    """Read and written by the twin, read again."""
    carried = twin.FromString(message.SerializeToString()).SerializeToString()
    return type(message).FromString(carried)


def batch() -> records_pb2.RecordBatch:
    made = records_pb2.RecordBatch(record_count=2, features=2, producer_state=b"s")
    made.key_hashes.extend((0, 4_000_000_000))
    record = made.records.records.add(key=b"", value=b"v", timestamp_ms=5, subject="a.b")
    record.headers.add(name="n", value=b"", type=records_pb2.HEADER_TYPE_BOOL)
    made.records.records.add(ttl_ms=9)
    return made


def test_a_request_passes_a_node_unchanged() -> None:
    request = messaging_pb2.ProduceRequest(
        topic="t", topic_id="id", partition=0, batch=batch(), expected_next_offset=0, request_id=9
    )
    request.producer.producer_id = 2**53 - 1
    carried = wire.ProduceRequest.FromString(request.SerializeToString())
    assert records_pb2.RecordBatch.FromString(carried.batch) == batch()
    assert through(request, wire.ProduceRequest) == request


def test_a_delivery_made_of_stored_bytes_is_a_public_one() -> None:
    stored = batch().SerializeToString()
    response = wire.ReadResponse()
    response.delivery.batch = stored
    response.delivery.next_offset = 12
    response.delivery.ranges.add(first=3, last=4)
    public = messaging_pb2.ReadResponse.FromString(response.SerializeToString())
    assert public.delivery.batch == batch()
    assert public.delivery.next_offset == 12
    assert through(public, wire.ReadResponse) == public


def test_an_answer_carries_the_public_error() -> None:
    response = wire.ProduceResponse(request_id=1, expected_sequence=0)
    response.error.reason = errors_pb2.REASON_SEQUENCE_GAP
    response.results.add(offset=3, error=errors_pb2.Error(message="m"))
    public = messaging_pb2.ProduceResponse.FromString(response.SerializeToString())
    assert public.error.reason == errors_pb2.REASON_SEQUENCE_GAP
    assert public.HasField("expected_sequence")
    assert public.results[0].error.message == "m"


def test_records_cut_apart_and_put_together_are_the_same() -> None:
    assert through(batch(), wire.OpaqueRecordBatch) == batch()
