"""What of a delivery fits into messages (contract "Records")."""

from __future__ import annotations

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from node.services.reading_local import cut_delivery
from node.services.reading_request import Taken
from node.v1 import wire_pb2 as wire
from quorumq.v1 import messaging_pb2 as pb
from quorumq.v1 import records_pb2

BASE = 1000
MESSAGE_BYTES = 65_536


def delivery_of(sizes: list[int], *, compressed: bool) -> wire.Delivery:
    body = records_pb2.RecordList(
        records=[
            records_pb2.Record(value=bytes([place % 256]) * size)
            for place, size in enumerate(sizes)
        ]
    )
    batch = records_pb2.RecordBatch(record_count=len(sizes), records=body)
    if compressed:
        text = body.SerializeToString()
        batch = records_pb2.RecordBatch(
            record_count=len(sizes),
            compressed=zstandard.compress(text),
            codec=records_pb2.CODEC_ZSTD,
            uncompressed_bytes=len(text),
        )
    return wire.Delivery(
        partition=2,
        base_offset=BASE,
        next_offset=BASE + len(sizes),
        append_time_ms=1_700_000_000_000,
        batch=batch.SerializeToString(),
        leader_epoch=2**53 - 1,
        topic_id="t123456-0123456789ab",
    )


@given(
    sizes=st.lists(
        st.sampled_from([1, 100, 20_000, 65_000, 65_500, 200_000]), min_size=1, max_size=12
    ),
    compressed=st.booleans(),
    data=st.data(),
)
def test_every_record_is_delivered_once_or_told_to_be_too_large(
    sizes: list[int], compressed: bool, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(sizes) - 1))
    end = data.draw(st.integers(first + 1, len(sizes)))
    offset = BASE + first
    delivery = delivery_of(sizes, compressed=compressed)
    for cut in cut_delivery(
        delivery, first=offset, end=BASE + end, taken=Taken(MESSAGE_BYTES, accepts_zstd=compressed)
    ):
        data_bytes = cut.SerializeToString()
        assert len(data_bytes) <= MESSAGE_BYTES
        response = pb.ReadResponse.FromString(data_bytes)
        if response.HasField("status"):
            assert response.status.offset == offset
            assert sizes[offset - BASE] > 64_000
            offset = response.status.next_offset
            continue
        assert response.delivery.base_offset == offset
        for record in response.delivery.batch.records.records:
            assert record.value == bytes([(offset - BASE) % 256]) * sizes[offset - BASE]
            offset += 1
        assert response.delivery.next_offset == offset
        assert response.delivery.topic_id == delivery.topic_id
        assert response.delivery.append_time_ms == delivery.append_time_ms
    assert offset == BASE + end


def test_a_record_too_large_says_where_reading_goes_on() -> None:
    delivery = delivery_of([10, 100_000], compressed=False)
    taken = Taken(MESSAGE_BYTES, accepts_zstd=False)
    _, told = cut_delivery(delivery, first=BASE, end=BASE + 2, taken=taken)
    assert (told.status.partition, told.status.offset, told.status.next_offset) == (
        2,
        BASE + 1,
        BASE + 2,
    )
    assert not told.status.error.retriable
