"""What a ReadRequest asks for, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.controller.model import Topic
from node.ingest import NUMBER_MAX
from node.services.errors import Refused, bad_request, not_enabled
from node.services.offsets import check_time, check_time_by
from quorumq.v1 import messaging_pb2 as pb
from quorumq.v1 import records_pb2

MESSAGE_BYTES = 3_670_016
MESSAGE_BYTES_MIN, MESSAGE_BYTES_MAX = 65_536, 67_108_864


@dataclass(frozen=True, slots=True)
class Taken:
    """What the reader takes in one message."""

    message_bytes_max: int
    accepts_zstd: bool


def check_limits(request: pb.ReadRequest) -> Taken:
    """Everything but the partitions. Raises Refused."""
    for field, value in (("max_records", request.max_records), ("max_bytes", request.max_bytes)):
        if value > NUMBER_MAX:
            raise bad_request(field, f"{value} is above 2^53-1")
    check_time_by(request.by)
    return Taken(
        message_bytes_max=check_message_bytes(request.max_message_bytes),
        accepts_zstd=accepts_zstd(request.accept_codecs),
    )


def check_message_bytes(value: int) -> int:
    """The limit that `max_message_bytes` means. Raises Refused."""
    if not value:
        return MESSAGE_BYTES
    if not MESSAGE_BYTES_MIN <= value <= MESSAGE_BYTES_MAX:
        raise bad_request(
            "max_message_bytes",
            f"{value} is not within {MESSAGE_BYTES_MIN} to {MESSAGE_BYTES_MAX}, or 0",
        )
    return value


def accepts_zstd(codecs: Iterable[int]) -> bool:
    """Raises Refused for a codec that is not known here."""
    accepted = list(codecs)
    for number, codec in enumerate(accepted):
        if codec == records_pb2.CODEC_UNSPECIFIED:
            raise bad_request(f"accept_codecs[{number}]", "must name a codec")
        if codec != records_pb2.CODEC_ZSTD:
            raise not_enabled(f"codec_{codec}")
    return bool(accepted)


def check_partitions(request: pb.ReadRequest, topic: Topic) -> list[pb.ReadPartition]:
    """What to read: each partition once, all of them if none are named. Raises Refused."""
    if not request.partitions:
        return [pb.ReadPartition(partition=partition) for partition in range(topic.partitions)]
    seen: dict[int, None] = {}
    for number, wanted in enumerate(request.partitions):
        field = f"partitions[{number}]"
        if wanted.partition >= topic.partitions:
            message = f"topic {topic.name} has partitions 0 to {topic.partitions - 1}"
            raise Refused(
                "PARTITION_NOT_FOUND",
                f"{message}, not {wanted.partition}",
                violations=[(f"{field}.partition", message)],
            )
        if wanted.partition in seen:
            raise bad_request(f"{field}.partition", f"{wanted.partition} is asked for twice")
        seen[wanted.partition] = None
        _check_range(field, wanted)
    return list(request.partitions)


def _check_range(field: str, wanted: pb.ReadPartition) -> None:
    start = wanted.WhichOneof("start")
    if start in ("earliest", "latest") and not getattr(wanted, start):
        raise bad_request(f"{field}.{start}", "can only be true")
    if start == "time_ms":
        check_time(f"{field}.time_ms", wanted.time_ms)
    if start == "offset" and wanted.offset > NUMBER_MAX:
        raise bad_request(f"{field}.offset", f"{wanted.offset} is above 2^53-1")
    if wanted.HasField("until_offset"):
        if wanted.until_offset > NUMBER_MAX:
            raise bad_request(f"{field}.until_offset", f"{wanted.until_offset} is above 2^53-1")
        if start == "offset" and wanted.until_offset < wanted.offset:
            raise bad_request(
                f"{field}.until_offset", f"{wanted.until_offset} is below offset {wanted.offset}"
            )
