"""Opening a producer: its identity, and what each partition knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from quorumq import methods
from quorumq.connection import Connection, TopicRoute
from quorumq.errors import ProducerFailed
from quorumq.partition_queue import PartitionQueue
from quorumq.v1.messaging_pb2 import OpenProducerRequest


class OpenedPartition(NamedTuple):
    """What a partition knew of a producer when it was opened. None = nothing stored yet; else
    `last_sequence` + 1 records of this producer are stored, the last one at `last_offset`."""

    last_sequence: int | None
    last_offset: int | None


async def open_identity(
    connection: Connection, route: TopicRoute, *, name: str | None, timeout_s: float
) -> tuple[list[PartitionQueue], Mapping[int, OpenedPartition]]:
    """Queues that go on where the producer `name` left off, or of a new producer. When it returns,
    nothing that an older process of this name has in flight can land any more."""
    opened = await connection.call(
        methods.OPEN_PRODUCER,
        OpenProducerRequest(name=name, topics=[route.name]),
        timeout_s=timeout_s,
    )
    known = {told.partition: told for told in opened.partitions}
    if sorted(known) != list(range(route.partition_count)):
        raise ProducerFailed(f"opened {sorted(known)} of {route.partition_count} partitions")
    identity = (opened.producer_id, opened.epoch)
    queues = []
    partitions: dict[int, OpenedPartition] = {}
    for number in range(route.partition_count):
        told = known[number]
        stored = told.HasField("last_sequence")
        partitions[number] = OpenedPartition(
            told.last_sequence if stored else None,
            told.last_offset if told.HasField("last_offset") else None,
        )
        queues.append(
            PartitionQueue(
                route.name,
                route.topic_id,
                number,
                identity=identity,
                next_sequence=told.last_sequence + 1 if stored else 0,
                repeatable=True,
            )
        )
    return queues, partitions


def without_identity(route: TopicRoute) -> list[PartitionQueue]:
    """Queues of a producer that never sends anything twice."""
    return [
        PartitionQueue(
            route.name, route.topic_id, number, identity=None, next_sequence=0, repeatable=False
        )
        for number in range(route.partition_count)
    ]
