"""For stories about AdminService: a simulated cluster, asked through any of its nodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import pytest

from quorumq import methods
from quorumq.channel import CallFailed, Method
from quorumq.errors import QuorumqError, from_status
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import messaging_pb2, records_pb2
from tests.simulation.cluster import SimCluster
from tests.simulation.loop import run_simulation

Q = TypeVar("Q")
R = TypeVar("R")

Story = Callable[[SimCluster], Awaitable[None]]


def play(story: Story, *, seed: int = 1, nodes: int = 3) -> None:
    async def whole(random: Random) -> None:
        cluster = SimCluster(random, nodes=nodes)
        await cluster.start()
        await story(cluster)
        await cluster.close()

    run_simulation(whole, seed=seed)


async def ask(
    cluster: SimCluster, node_id: int, method: Method[Q, R], request: Q, *, timeout_s: float = 10.0
) -> R:
    """Raises QuorumqError."""
    channel = cluster.clients.channel(cluster.nodes[node_id].client_endpoint)
    try:
        return await channel.unary(method, request, timeout_s=timeout_s)
    except CallFailed as failure:
        raise from_status(failure.code, failure.details, failure.trailers) from failure


async def refused(
    cluster: SimCluster, node_id: int, method: Method[Q, R], request: Q, *, timeout_s: float = 10.0
) -> QuorumqError:
    """What the request is refused with."""
    with pytest.raises(QuorumqError) as caught:
        await ask(cluster, node_id, method, request, timeout_s=timeout_s)
    return caught.value


async def create(cluster: SimCluster, node_id: int, name: str, **config: int) -> pb.TopicInfo:
    wanted = pb.TopicConfig(**config)  # type: ignore[arg-type]
    request = pb.CreateTopicRequest(name=name, config=wanted)
    return (await ask(cluster, node_id, methods.CREATE_TOPIC, request)).topic


async def produce(
    cluster: SimCluster, topic: str, partition: int, *values: bytes, **fields: object
) -> messaging_pb2.ProduceResponse:
    """One batch through node 1. `fields` are of the request; `dedup_id` is the only record's."""
    dedup_id = str(fields.pop("dedup_id", ""))
    timestamp_ms = fields.pop("timestamp_ms", None)
    records = [
        records_pb2.Record(value=value, dedup_id=dedup_id, timestamp_ms=timestamp_ms)  # type: ignore[arg-type]
        for value in values
    ]
    batch = records_pb2.RecordBatch(
        record_count=len(records), records=records_pb2.RecordList(records=records)
    )
    request = messaging_pb2.ProduceRequest(
        topic=topic,
        partition=partition,
        batch=batch,
        **fields,  # type: ignore[arg-type]
    )
    return await ask(cluster, 1, methods.PRODUCE, request)
