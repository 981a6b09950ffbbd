"""Storing what a scenario is to find there."""

from __future__ import annotations

import os

from bench.cluster import ClusterFailed
from quorumq import Client

_SENDS_A_TURN = 256  # then the loop gets to run


async def fill(
    client: Client, topic: str, *, records: int, record_bytes: int, batch_bytes_max: int
) -> None:
    """As fast as it goes. Raises the first record's failure."""
    body = os.urandom(record_bytes)
    async with client.producer(topic, batch_bytes_max=batch_bytes_max) as producer:
        for first in range(0, records, _SENDS_A_TURN):
            for _ in range(min(_SENDS_A_TURN, records - first)):
                producer.send(body)
            await producer.ready()
    stored = await client.admin.describe_topic(topic)
    count = sum(partition.record_count for partition in stored.partitions)
    if count != records:
        raise ClusterFailed(f"{count} records are stored, not {records}")
