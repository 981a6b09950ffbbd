"""Generated stubs and nothing else: what a program in any language has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio

from quorumq.v1 import admin_pb2_grpc, messaging_pb2, messaging_pb2_grpc, records_pb2

SERVICE_CONFIG = Path(__file__).resolve().parents[2] / "proto/quorumq/v1/service_config.json"
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Stubs:
    channel: grpc.aio.Channel
    messaging: Any  # the generated stubs are not typed
    admin: Any


@asynccontextmanager
async def stubs(*endpoints: str, service_config: bool = False) -> AsyncIterator[Stubs]:
    """Of one node, or of several as one name with several addresses. `service_config`: with the
    retry policy that comes with the protos."""
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if service_config:
        options.append(("grpc.service_config", SERVICE_CONFIG.read_text()))
    target = endpoints[0] if len(endpoints) == 1 else "ipv4:" + ",".join(endpoints)
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield Stubs(
            channel,
            messaging_pb2_grpc.MessagingServiceStub(channel),
            admin_pb2_grpc.AdminServiceStub(channel),
        )


def batch(*values: bytes, key: bytes | None = None) -> records_pb2.RecordBatch:
    records = [records_pb2.Record(key=key, value=value) for value in values]
    return records_pb2.RecordBatch(
        record_count=len(values), records=records_pb2.RecordList(records=records)
    )


class Stored(NamedTuple):
    offset: int
    key: bytes
    value: bytes


async def read_all(endpoint: str, topic: str) -> dict[int, list[Stored]]:
    """All records by partition, from this node: from its own replicas where it has them."""
    stored: dict[int, list[Stored]] = {}
    async with stubs(endpoint) as node:
        request = messaging_pb2.ReadRequest(topic=topic)
        async for response in node.messaging.Read(request, timeout=TIMEOUT_S):
            match response.WhichOneof("event"):
                case "delivery":
                    delivery = response.delivery
                    stored.setdefault(delivery.partition, []).extend(_records(delivery))
                case "status":
                    assert not response.status.HasField("error"), response.status
                case "go_away":
                    raise AssertionError(f"{endpoint} goes away")
    return stored


def _records(delivery: messaging_pb2.Delivery) -> Sequence[Stored]:
    sent = delivery.batch
    deltas = sent.offset_deltas or range(len(sent.records.records))
    return [
        Stored(delivery.base_offset + delta, record.key, record.value)
        for delta, record in zip(deltas, sent.records.records, strict=True)
    ]
