"""What a ReadRequest is refused for before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.controller.model import Topic
from node.services.errors import Refused
from node.services.offsets import check_queries
from node.services.reading_request import MESSAGE_BYTES, Taken, check_limits, check_partitions
from quorumq.v1 import admin_pb2 as admin
from quorumq.v1 import messaging_pb2 as pb
from quorumq.v1 import records_pb2

TOPIC = Topic(
    number=1,
    topic_id="t1-0",
    name="default/t",
    partitions=3,
    replication_factor=1,
    settings=b"",
    settings_version=1,
    created_at_ms=0,
    group_ids=(2, 3, 4),
)
TOO_LARGE = 2**53


def violated(refused: Refused) -> list[str]:
    return [violation.field for violation in refused.error.field_violations]


def test_defaults() -> None:
    assert check_limits(pb.ReadRequest()) == Taken(MESSAGE_BYTES, accepts_zstd=False)
    assert [w.partition for w in check_partitions(pb.ReadRequest(), TOPIC)] == [0, 1, 2]


def test_what_a_reader_takes() -> None:
    request = pb.ReadRequest(max_message_bytes=65_536, accept_codecs=[records_pb2.CODEC_ZSTD])
    assert check_limits(request) == Taken(65_536, accepts_zstd=True)
    assert check_limits(pb.ReadRequest(max_message_bytes=67_108_864)).message_bytes_max == 1 << 26


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_message_bytes": 65_535}, "max_message_bytes"),
        ({"max_message_bytes": 67_108_865}, "max_message_bytes"),
        ({"max_records": TOO_LARGE}, "max_records"),
        ({"max_bytes": TOO_LARGE}, "max_bytes"),
        ({"accept_codecs": [1, 0]}, "accept_codecs[1]"),
    ],
)
def test_limits_out_of_range(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as caught:
        check_limits(pb.ReadRequest(**fields))
    assert (caught.value.reason, violated(caught.value)) == ("BAD_REQUEST", [field])


@pytest.mark.parametrize(
    ("fields", "feature"), [({"accept_codecs": [7]}, "codec_7"), ({"by": 9}, "time_by_9")]
)
def test_values_that_are_not_known_here_are_refused_by_name(
    fields: dict[str, Any], feature: str
) -> None:
    with pytest.raises(Refused) as caught:
        check_limits(pb.ReadRequest(**fields))
    assert caught.value.reason == "FEATURE_NOT_ENABLED"
    assert caught.value.error.metadata["feature"] == feature


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"partition": 0}, "partition"),
        ({"partition": 1, "earliest": False}, "earliest"),
        ({"partition": 1, "latest": False}, "latest"),
        ({"partition": 1, "time_ms": -1}, "time_ms"),
        ({"partition": 1, "time_ms": TOO_LARGE}, "time_ms"),
        ({"partition": 1, "offset": TOO_LARGE}, "offset"),
        ({"partition": 1, "until_offset": TOO_LARGE}, "until_offset"),
        ({"partition": 1, "offset": 5, "until_offset": 4}, "until_offset"),
    ],
)
def test_partitions_that_make_no_sense(fields: dict[str, Any], field: str) -> None:
    request = pb.ReadRequest(partitions=[pb.ReadPartition(partition=0), pb.ReadPartition(**fields)])
    with pytest.raises(Refused) as caught:
        check_partitions(request, TOPIC)
    assert caught.value.reason == "BAD_REQUEST"
    assert violated(caught.value) == [f"partitions[1].{field}"]


def test_a_partition_that_is_not_there() -> None:
    request = pb.ReadRequest(partitions=[pb.ReadPartition(partition=3)])
    with pytest.raises(Refused) as caught:
        check_partitions(request, TOPIC)
    assert caught.value.reason == "PARTITION_NOT_FOUND"
    assert violated(caught.value) == ["partitions[0].partition"]


def test_every_start_that_makes_sense() -> None:
    starts: list[dict[str, Any]] = [
        {"offset": 5, "until_offset": 5},
        {"time_ms": 0},
        {"latest": True, "until_offset": 0},
    ]
    wanted = [pb.ReadPartition(partition=n, **fields) for n, fields in enumerate(starts)]
    assert check_partitions(pb.ReadRequest(partitions=wanted), TOPIC) == wanted


@pytest.mark.parametrize("at", [{"earliest": False}, {"latest": False}, {"time_ms": -1}])
def test_offset_queries_that_make_no_sense(at: dict[str, Any]) -> None:
    queries = [admin.OffsetQuery(partition=0), admin.OffsetQuery(partition=1, **at)]
    with pytest.raises(Refused) as caught:
        check_queries(queries, pb.TIME_BY_APPENDED)
    assert violated(caught.value) == [f"queries[1].{next(iter(at))}"]
