"""unary: 64 plain generated stubs over one connection to each node, one 100 B record a call, no
partition given: whichever node is asked forwards what it does not lead."""

from __future__ import annotations

import asyncio
import os
from time import perf_counter

import grpc
import grpc.aio

from bench.latencies import Latencies
from bench.setup import Result, Setup
from quorumq.v1 import messaging_pb2, messaging_pb2_grpc, records_pb2

STUBS = 64
PARTITIONS = 6


async def run(setup: Setup) -> Result:
    async with setup.client() as client:
        await client.admin.create_topic(
            "bench-unary", partitions=PARTITIONS, replication_factor=setup.replication_factor
        )
    channels = [grpc.aio.insecure_channel(server) for server in setup.cluster.servers.split(",")]
    try:
        stubs = [
            messaging_pb2_grpc.MessagingServiceStub(channels[i % len(channels)])
            for i in range(STUBS)
        ]
        await _all(stubs, setup.warmup_s)
        async with setup.measured() as usage:
            began = perf_counter()
            latencies, failures = await _all(stubs, setup.seconds)
            seconds = perf_counter() - began
    finally:
        for channel in channels:
            await channel.close()
    return Result(
        seconds,
        {"records_per_s": round(len(latencies) / seconds), **latencies.figures(), **usage},
        {
            "stubs": STUBS,
            "partitions": PARTITIONS,
            "replication_factor": setup.replication_factor,
            "record_bytes": 100,
        },
        failures,
    )


async def _all(
    stubs: list[messaging_pb2_grpc.MessagingServiceStub], seconds: float
) -> tuple[Latencies, int]:
    latencies = Latencies()
    end = perf_counter() + seconds
    failures = await asyncio.gather(*(_calls(stub, end, latencies) for stub in stubs))
    return latencies, sum(failures)


async def _calls(
    stub: messaging_pb2_grpc.MessagingServiceStub, end: float, latencies: Latencies
) -> int:
    """Back to back until `end`; how many failed."""
    record = records_pb2.Record(value=os.urandom(100))
    request = messaging_pb2.ProduceRequest(
        topic="bench-unary",
        batch=records_pb2.RecordBatch(
            record_count=1, records=records_pb2.RecordList(records=[record])
        ),
    )
    failures = 0
    intended = perf_counter()
    while intended < end:
        try:
            await stub.Produce(request, timeout=10)
        except grpc.aio.AioRpcError:
            failures += 1
            intended = perf_counter()
            continue
        answered = perf_counter()
        latencies.add(answered - intended)
        intended = answered
    return failures
