"""produce: one Python producer, `send` for each record, 100 B, linger 5 ms, batches <= 256 KiB, at
most 16 in flight, 6 partitions. What counts is acknowledged: the clock stops after the flush."""

from __future__ import annotations

import os
from time import perf_counter

from bench.latencies import Latencies
from bench.setup import Result, Setup
from quorumq import Producer, RecordFuture

PARTITIONS = 6
RECORD_BYTES = 100
_SENDS_A_TURN = 256  # then the loop gets to run
_SAMPLE_EVERY = 8  # turns: one record of so many turns has its latency taken


async def run(setup: Setup) -> Result:
    return await produce(setup, record_bytes=RECORD_BYTES)


async def produce(setup: Setup, *, record_bytes: int) -> Result:
    body = os.urandom(record_bytes)
    async with setup.client() as client:
        await client.admin.create_topic(
            "bench-produce", partitions=PARTITIONS, replication_factor=setup.replication_factor
        )
        async with client.producer(
            "bench-produce", linger_ms=5.0, batch_bytes_max=256 << 10, in_flight_max=16
        ) as producer:
            latencies = Latencies()
            await _send_for(producer, body, setup.warmup_s, latencies)
            latencies.clear()
            async with setup.measured() as usage:
                began = perf_counter()
                count = await _send_for(producer, body, setup.seconds, latencies)
                seconds = perf_counter() - began
    return Result(
        seconds,
        {
            "records_per_s": round(count / seconds),
            "mb_per_s": round(count * record_bytes / seconds / 1e6, 2),
            **latencies.figures(),
            **usage,
        },
        {
            "partitions": PARTITIONS,
            "replication_factor": setup.replication_factor,
            "record_bytes": record_bytes,
            "linger_ms": 5,
            "batch_bytes_max": 256 << 10,
            "in_flight_max": 16,
        },
    )


async def _send_for(producer: Producer, body: bytes, seconds: float, latencies: Latencies) -> int:
    """How many records were acknowledged; raises the first failure."""
    end = perf_counter() + seconds
    turns = 0
    while perf_counter() < end:
        for _ in range(_SENDS_A_TURN - 1):
            producer.send(body)
        last = producer.send(body)
        if turns % _SAMPLE_EVERY == 0:
            last.add_done_callback(_Sample(latencies))
        turns += 1
        await producer.ready()
    await producer.flush()
    return turns * _SENDS_A_TURN


class _Sample:
    """Takes a record's latency when it is acknowledged; flush raises if it failed."""

    __slots__ = ("_latencies", "_sent_at")

    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies
        self._sent_at = perf_counter()

    def __call__(self, _future: RecordFuture) -> None:
        self._latencies.add(perf_counter() - self._sent_at)
