"""For stories about Read: a topic of a simulated cluster, written and read through any node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import grpc
import zstandard

from cluster.tasks import TaskGroup
from quorumq import methods
from quorumq.channel import CallFailed, ResponseStream
from quorumq.v1 import errors_pb2, messaging_pb2, records_pb2
from tests.simulation.admin_bed import ask
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.loop import run_simulation

Story = Callable[[SimCluster], Awaitable[None]]
Response = messaging_pb2.ReadResponse


def play(
    story: Story, *, seed: int = 1, nodes: int = 3, partitions: int = 1, copies: int = 3
) -> None:
    """The topic is `t`; partition p has its replicas on `copies` nodes from node p + 1 on."""

    async def whole(random: Random) -> None:
        cluster = SimCluster(random, nodes=nodes)
        await cluster.start()
        await cluster.create_topic("default/t", partitions=partitions, replication_factor=copies)
        await story(cluster)
        await cluster.close()

    run_simulation(whole, seed=seed)


def group_of(cluster: SimCluster, partition: int = 0) -> int:
    """A node that has just started knows of no topic yet: the first one that does is asked."""
    catalogs = [broker.controller.catalog for broker in cluster.brokers()]
    topics = [catalog.topic_by_name("default/t") for catalog in catalogs]
    return next(topic.group_ids[partition] for topic in topics if topic is not None)


def leading_node(cluster: SimCluster, partition: int = 0) -> SimNode:
    """Where it is led now, or was going to be."""
    group_id = group_of(cluster, partition)
    leader = cluster.leader(group_id)
    for node in cluster.nodes.values():
        if node.broker is not None and node.broker.partitions.get(group_id) is leader is not None:
            return node
    return next(node for node in cluster.nodes.values() if node.is_up)


def at(partition: int, **fields: Any) -> messaging_pb2.ReadPartition:
    return messaging_pb2.ReadPartition(partition=partition, **fields)


def record(value: bytes, **fields: Any) -> records_pb2.Record:
    return records_pb2.Record(value=value, **fields)


def batch_of(
    records: Sequence[records_pb2.Record], *, compressed: bool = False
) -> records_pb2.RecordBatch:
    body = records_pb2.RecordList(records=records)
    if not compressed:
        return records_pb2.RecordBatch(record_count=len(records), records=body)
    text = body.SerializeToString()
    return records_pb2.RecordBatch(
        record_count=len(records),
        compressed=zstandard.compress(text),
        codec=records_pb2.CODEC_ZSTD,
        uncompressed_bytes=len(text),
    )


async def store(
    cluster: SimCluster, batch: records_pb2.RecordBatch, *, partition: int = 0, node_id: int = 1
) -> messaging_pb2.ProduceResponse:
    request = messaging_pb2.ProduceRequest(topic="t", partition=partition, batch=batch)
    return await ask(cluster, node_id, methods.PRODUCE, request)


async def store_values(cluster: SimCluster, count: int, *, partition: int = 0) -> None:
    """In batches of three records, numbered."""
    for number in range(0, count, 3):
        records = [record(b"%d" % n) for n in range(number, min(number + 3, count))]
        await store(cluster, batch_of(records), partition=partition)


class Writer:
    """Idempotent, through whichever node is up: repeats a batch until it is answered."""

    def __init__(self, cluster: SimCluster, partition: int) -> None:
        self.cluster = cluster
        self.partition = partition
        self.stored: list[bytes] = []

    async def write(self, count: int) -> None:
        """So many records more."""
        for sequence in range(len(self.stored), len(self.stored) + count):
            value = b"%d.%d" % (self.partition, sequence)
            await self._store(value, sequence)
            self.stored.append(value)

    async def _store(self, value: bytes, sequence: int) -> None:
        request = messaging_pb2.ProduceRequest(
            topic="t", partition=self.partition, batch=batch_of([record(value)])
        )
        request.producer.producer_id = self.partition + 1
        request.producer.epoch = 1
        request.producer.base_sequence = sequence
        while True:
            node = next(node for node in self.cluster.nodes.values() if node.is_up)
            channel = self.cluster.clients.channel(node.client_endpoint)
            try:
                await channel.unary(methods.PRODUCE, request, timeout_s=5.0)
            except CallFailed:
                await asyncio.sleep(0.05)
            else:
                return


def open_read(cluster: SimCluster, node_id: int, **fields: Any) -> ResponseStream[Response]:
    channel = cluster.clients.channel(cluster.nodes[node_id].client_endpoint)
    return channel.server_stream(methods.READ, messaging_pb2.ReadRequest(topic="t", **fields))


async def read(cluster: SimCluster, node_id: int, **fields: Any) -> list[Response]:
    """All responses until the stream ends."""
    return [response async for response in open_read(cluster, node_id, **fields)]


async def read_error(cluster: SimCluster, node_id: int, **fields: Any) -> CallFailed:
    """How a stream ends that is refused before anything is sent."""
    try:
        responses = await read(cluster, node_id, **fields)
    except CallFailed as failure:
        return failure
    raise AssertionError(f"not refused: {responses}")


async def next_of(stream: ResponseStream[Response], event: str, *, within_s: float = 60) -> Any:
    """The next event of that kind; others are passed over."""
    async with asyncio.timeout(within_s):
        async for response in stream:
            if response.WhichOneof("event") == event:
                return getattr(response, event)
    raise AssertionError(f"the stream ended without {event}")


def deliveries(responses: Sequence[Response], partition: int = 0) -> list[messaging_pb2.Delivery]:
    found = [r.delivery for r in responses if r.HasField("delivery")]
    return [delivery for delivery in found if delivery.partition == partition]


def statuses(responses: Sequence[Response]) -> list[tuple[int, str]]:
    """(partition, reason) in order."""
    return [
        (r.status.partition, errors_pb2.Reason.Name(r.status.error.reason).removeprefix("REASON_"))
        for r in responses
        if r.HasField("status")
    ]


def ends(responses: Sequence[Response]) -> dict[int, int]:
    """Where partitions ended."""
    found = [r.end_of_partition for r in responses if r.HasField("end_of_partition")]
    assert len({end.partition for end in found}) == len(found), f"told twice: {found}"
    return {end.partition: end.next_offset for end in found}


def values(responses: Sequence[Response], partition: int = 0) -> list[bytes]:
    found: list[bytes] = []
    for delivery in deliveries(responses, partition):
        found += records_of(delivery)
    return found


def records_of(delivery: messaging_pb2.Delivery) -> list[bytes]:
    """The values, having checked that the delivery says of them what is so."""
    batch = delivery.batch
    if batch.compressed:
        text = zstandard.decompress(batch.compressed, max_output_size=batch.uncompressed_bytes)
        records = records_pb2.RecordList.FromString(text).records
    else:
        records = batch.records.records
    assert len(records) == batch.record_count == delivery.next_offset - delivery.base_offset
    return [one.value for one in records]


class Follower:
    """Reads partitions for ever through one node, where it stood whenever the stream broke. Every
    record must come once and in order."""

    def __init__(self, cluster: SimCluster, node_id: int, partitions: int) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.got: dict[int, list[bytes]] = {number: [] for number in range(partitions)}
        self.streams = 0

    async def follow(self) -> None:
        while True:
            wanted = [at(partition, offset=len(got)) for partition, got in self.got.items()]
            self.streams += 1
            try:
                async for response in open_read(
                    self.cluster, self.node_id, partitions=wanted, follow=True
                ):
                    self._take(response)
            except CallFailed as failure:
                if failure.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)

    def _take(self, response: Response) -> None:
        kind = response.WhichOneof("event")
        if kind == "delivery":
            got = self.got[response.delivery.partition]
            assert response.delivery.base_offset == len(got), (
                f"{response.delivery} after {len(got)}"
            )
            got += records_of(response.delivery)
        else:
            assert kind in ("heartbeat", "status", "go_away"), f"{response}"
            assert kind != "status" or response.status.error.retriable, f"{response}"


@asynccontextmanager
async def following(*followers: Follower) -> AsyncIterator[None]:
    """They follow meanwhile; what one of them objects to ends the story."""
    async with TaskGroup("followers") as tasks:
        for follower in followers:
            tasks.start(follower.follow(), name=f"node {follower.node_id}")
        yield
        tasks.cancel()


async def all_came(follower: Follower, writer: Writer) -> None:
    """Everything that was stored has come, or will soon, and nothing else."""
    got = follower.got[writer.partition]
    where = f"partition {writer.partition} through node {follower.node_id}"
    await follower.cluster.until(lambda: len(got) >= len(writer.stored), f"all of {where}")
    assert got == writer.stored, where
