"""idle: 300 partitions of three replicas, stored nothing, no client connected: what it costs a node
to hold them."""

from __future__ import annotations

import asyncio
from time import perf_counter

from bench.health import whole
from bench.setup import Result, Setup

TOPIC = "bench-idle"
PARTITIONS = 300


async def run(setup: Setup) -> Result:
    partitions = max(1, round(PARTITIONS * setup.scale))
    async with setup.client() as client:
        await client.admin.create_topic(
            TOPIC, partitions=partitions, replication_factor=setup.replication_factor
        )
        await whole(client, TOPIC)
    await asyncio.sleep(setup.warmup_s)
    async with setup.measured() as usage:
        began = perf_counter()
        await asyncio.sleep(setup.seconds)
        seconds = perf_counter() - began
    config = {"partitions": partitions, "replication_factor": setup.replication_factor}
    return Result(seconds, usage, config)
