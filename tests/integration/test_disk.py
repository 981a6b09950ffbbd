"""The disk follows live data (house §4.15), and a full one refuses appends and nothing else."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import grpc
import pytest

from node.local_cluster import LocalCluster
from quorumq import Client, Producer, connect
from quorumq.v1 import messaging_pb2
from tests.integration.disks import disk_use, small_disk
from tests.integration.stubs import TIMEOUT_S, batch, read_all, stubs
from tests.integration.watching import nodes, until_none

RECORD_BYTES = 64 << 10
WRITTEN_BYTES = 400 << 20
KEPT_BYTES = 4 << 20  # 1 %
SLACK_BYTES = 128 << 20


async def fill(producer: Producer, byte_count: int) -> None:
    """With what cannot be compressed."""
    for _ in range(byte_count // RECORD_BYTES):
        producer.send(os.urandom(RECORD_BYTES), partition=0)
        await producer.ready()
    await producer.flush()


async def live(client: Client, topic: str) -> tuple[int, int]:
    """Bytes and records that are there."""
    (partition,) = (await client.admin.describe_topic(topic)).partitions
    return partition.stored_bytes, partition.record_count


async def test_the_disk_follows_live_data(topic: str) -> None:
    """400 MiB are written and 99 % of them trimmed."""
    settings = {"retention_interval_ms": 500}
    async with (
        LocalCluster(settings=settings) as cluster,
        await connect(cluster.servers) as client,
    ):
        await client.admin.create_topic(topic)
        async with client.producer(topic) as producer:
            await fill(producer, WRITTEN_BYTES)
            used = {node_id: disk_use(node.data_dir) for node_id, node in cluster.nodes.items()}
            assert min(used.values()) > WRITTEN_BYTES
            await client.admin.alter_topic(topic, retention_bytes=KEPT_BYTES)

            async def too_much() -> dict[int, int]:
                kept, _ = await live(client, topic)
                used = {n: disk_use(node.data_dir) for n, node in cluster.nodes.items()}
                bound = 2 * kept + SLACK_BYTES
                over = {n: size for n, size in used.items() if size > bound}
                return over if kept <= KEPT_BYTES else {**over, 0: kept}

            await until_none(too_much)
            kept, count = await live(client, topic)
            assert 0 < kept <= KEPT_BYTES
        async with client.reader(topic, follow=False) as reader:
            left = [record async for record in reader]
        assert len(left) == count
        assert left[-1].offset == WRITTEN_BYTES // RECORD_BYTES - 1


async def test_a_full_disk_refuses_appends_until_there_is_room(tmp_path: Path, topic: str) -> None:
    """It is read on."""
    settings = {"disk_free_bytes_min": "128MiB"}
    with small_disk(tmp_path / "disk", megabytes=256) as disk:
        async with (
            LocalCluster(1, base_dir=disk, settings=settings) as cluster,
            await connect(cluster.servers) as client,
            stubs(cluster.servers) as node,
        ):
            await client.admin.create_topic(topic)
            request = messaging_pb2.ProduceRequest(topic=topic, batch=batch(b"x"), partition=0)
            await node.messaging.Produce(request, timeout=TIMEOUT_S)
            filler = disk / "filler"
            filler.write_bytes(bytes(140 << 20))

            async def refused(*, wanted: bool) -> bool:
                return (await nodes(client))[1].disk_full != wanted

            await until_none(partial(refused, wanted=True))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await node.messaging.Produce(request, timeout=TIMEOUT_S)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert dict(caught.value.trailing_metadata())["quorumq-reason"] == "DISK_FULL"
            assert len((await read_all(cluster.servers, topic))[0]) == 1

            filler.unlink()
            await until_none(partial(refused, wanted=False))
            stored = await node.messaging.Produce(request, timeout=TIMEOUT_S)
            assert stored.base_offset == 1
