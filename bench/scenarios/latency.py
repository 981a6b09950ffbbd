"""latency: one durable produce at a time, 100 B, one partition, back to back. A record's intended
send time is the moment the one before was answered."""

from __future__ import annotations

import asyncio
import os

from bench.latencies import Latencies
from bench.setup import Result, Setup, metered
from quorumq import Producer


async def run(setup: Setup) -> Result:
    body = os.urandom(100)
    async with setup.client() as client:
        await client.admin.create_topic(
            "bench-latency", partitions=1, replication_factor=setup.replication_factor
        )
        async with client.producer("bench-latency", linger_ms=0) as producer:
            await _one_at_a_time(producer, body, setup.warmup_s)
            loop = asyncio.get_running_loop()
            began = loop.time()
            async with metered(setup.cluster) as usage:
                latencies = await _one_at_a_time(producer, body, setup.seconds)
            seconds = loop.time() - began
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


async def _one_at_a_time(producer: Producer, body: bytes, seconds: float) -> Latencies:
    loop = asyncio.get_running_loop()
    latencies = Latencies()
    intended = loop.time()
    end = intended + seconds
    while intended < end:
        await producer.send_and_wait(body)
        answered = loop.time()
        latencies.add(answered - intended)
        intended = answered
    return latencies
