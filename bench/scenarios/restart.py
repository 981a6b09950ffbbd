"""restart: a node that holds 1,000,000 records of 100 B in batches of at most 100 is killed and
started at once: how long from the kill until its health says that it serves and it answered, for
every partition, a Produce and a Read. Each node in turn, after all replicas are in sync again."""

from __future__ import annotations

import asyncio
from time import perf_counter

import grpc
import grpc.aio

from bench.cluster import Cluster
from bench.filling import fill
from bench.health import whole
from bench.latencies import Latencies
from bench.setup import Result, Setup, metered
from quorumq import Client
from quorumq.v1 import messaging_pb2, messaging_pb2_grpc, records_pb2

TOPIC = "bench-restart"
PARTITIONS = 6
RECORDS = 1_000_000
RECORD_BYTES = 100
KILLS = 5
_FRAME_BYTES = 4  # a record's tags and lengths
_BATCH_RECORDS = 100
_TIMEOUT_S = 60.0


async def run(setup: Setup) -> Result:
    kills = setup.kills or KILLS
    records = round(RECORDS * setup.scale)
    latencies, ready, began = Latencies(), Latencies(), perf_counter()
    async with setup.client() as client:
        await client.admin.create_topic(
            TOPIC, partitions=PARTITIONS, replication_factor=setup.replication_factor
        )
        await fill(
            client,
            TOPIC,
            records=records,
            record_bytes=RECORD_BYTES,
            batch_bytes_max=_BATCH_RECORDS * (RECORD_BYTES + _FRAME_BYTES),
        )
        told = await client.admin.describe_topic(TOPIC)
        endpoints = await _endpoints(client)
        for number in range(kills):
            await whole(client, TOPIC)
            node_id = sorted(endpoints)[number % len(endpoints)]
            ready_s, serving_s = await _restart(setup, node_id, endpoints[node_id])
            ready.add(ready_s)
            latencies.add(serving_s)
        await whole(client, TOPIC)
    return Result(
        perf_counter() - began,
        {
            **latencies.figures(),
            "ready_p50_ms": ready.figures()["p50_ms"],
            "rss_mb": await _rss_mb(setup.cluster),
        },
        {
            "kills": kills,
            "records": records,
            "record_bytes": RECORD_BYTES,
            "entries": sum(partition.commit_index for partition in told.partitions),
            "partitions": PARTITIONS,
            "replication_factor": setup.replication_factor,
        },
    )


async def _endpoints(client: Client) -> dict[int, str]:
    return {node.node_id: node.client_endpoint for node in (await client.admin.metadata()).nodes}


async def _restart(setup: Setup, node_id: int, endpoint: str) -> tuple[float, float]:
    """Seconds until it said that it serves, and until it did."""
    began = perf_counter()
    await setup.cluster.kill(node_id)
    await setup.cluster.start(node_id)
    async with setup.profiled(node_id):
        await setup.cluster.ready(node_id)
        ready_s = perf_counter() - began
        await _serves(endpoint)
        return ready_s, perf_counter() - began


async def _serves(endpoint: str) -> None:
    """A connection of its own: one that was there before would wait its time to connect again."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(endpoint, options=options) as channel:
        stub = messaging_pb2_grpc.MessagingServiceStub(channel)
        async with asyncio.TaskGroup() as tasks:
            for partition in range(PARTITIONS):
                tasks.create_task(_answers(stub, partition))


async def _answers(stub: messaging_pb2_grpc.MessagingServiceStub, partition: int) -> None:
    record = records_pb2.Record(value=b"stored after a restart")
    batch = records_pb2.RecordBatch(
        record_count=1, records=records_pb2.RecordList(records=[record])
    )
    produce = messaging_pb2.ProduceRequest(topic=TOPIC, partition=partition, batch=batch)
    stored = await stub.Produce(produce, timeout=_TIMEOUT_S)
    where = messaging_pb2.ReadPartition(partition=partition, offset=stored.base_offset)
    read = messaging_pb2.ReadRequest(topic=TOPIC, partitions=[where], max_records=1, follow=True)
    async for _ in stub.Read(read, timeout=_TIMEOUT_S):
        pass


async def _rss_mb(cluster: Cluster) -> float:
    """Of the largest node."""
    async with metered(cluster) as usage:
        pass
    return float(usage["rss_mb"])
