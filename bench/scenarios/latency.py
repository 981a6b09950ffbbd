"""latency: one durable produce at a time, 100 B, one partition, back to back. A record's intended
send time is the moment the one before was answered."""

from __future__ import annotations

import os
from time import perf_counter

from bench.latencies import back_to_back
from bench.setup import Result, Setup


async def run(setup: Setup) -> Result:
    body = os.urandom(100)
    async with setup.client() as client:
        await client.admin.create_topic(
            "bench-latency", partitions=1, replication_factor=setup.replication_factor
        )
        async with client.producer("bench-latency", linger_ms=0) as producer:
            await back_to_back(lambda: producer.send_and_wait(body), setup.warmup_s)
            async with setup.measured() as usage:
                began = perf_counter()
                latencies = await back_to_back(lambda: producer.send_and_wait(body), setup.seconds)
                seconds = perf_counter() - began
    return Result(
        seconds,
        {"records_per_s": round(len(latencies) / seconds), **latencies.figures(), **usage},
        {
            "partitions": 1,
            "replication_factor": setup.replication_factor,
            "record_bytes": len(body),
            "linger_ms": 0,
        },
    )
