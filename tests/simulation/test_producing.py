"""Produce through the services of whole simulated clusters: any node, any fault."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from node.partition.commands import PRODUCER_WINDOW_BATCHES
from node.services.items import Item
from quorumq import methods
from quorumq.channel import CallFailed
from quorumq.errors import from_status
from quorumq.produce_link import ProduceLink
from quorumq.v1 import errors_pb2, messaging_pb2, records_pb2
from tests.simulation.cluster import SimCluster
from tests.simulation.loop import run_simulation
from tests.simulation.network import NetworkFaults

Story = Callable[[SimCluster], Awaitable[None]]


def play(story: Story, *, seed: int = 1, partitions: int = 1, nodes: int = 3) -> None:
    async def whole(random: Random) -> None:
        cluster = SimCluster(random, nodes=nodes)
        await cluster.start()
        await cluster.create_topic("default/t", partitions=partitions)
        await story(cluster)
        await cluster.close()

    run_simulation(whole, seed=seed)


def batch(*values: bytes, key: bytes | None = None, dedup_id: str = "") -> records_pb2.RecordBatch:
    records = [records_pb2.Record(key=key, value=v, dedup_id=dedup_id) for v in values]
    return records_pb2.RecordBatch(
        record_count=len(values), records=records_pb2.RecordList(records=records)
    )


async def produce(
    cluster: SimCluster, node_id: int, timeout_s: float = 10.0, **fields: object
) -> messaging_pb2.ProduceResponse:
    request = messaging_pb2.ProduceRequest(topic="t", **fields)  # type: ignore[arg-type]
    channel = cluster.clients.channel(cluster.nodes[node_id].client_endpoint)
    try:
        return await channel.unary(methods.PRODUCE, request, timeout_s=timeout_s)
    except CallFailed as failure:
        raise from_status(failure.code, failure.details, failure.trailers) from failure


async def stored(cluster: SimCluster, group_id: int) -> list[bytes]:
    """The values, as a leader reads them."""
    await cluster.until(lambda: cluster.leader(group_id), "a leader")
    local = cluster.leader(group_id)
    assert local is not None
    values: list[bytes] = []
    while True:
        found = local.replica.read(len(values), bytes_max=1 << 30)
        if not found:
            return values
        for one in found:
            parsed = records_pb2.RecordBatch.FromString(one.batch)
            values += [record.value for record in parsed.records.records]


def test_any_node_takes_a_batch() -> None:
    async def story(cluster: SimCluster) -> None:
        for node_id in cluster.nodes:
            answer = await produce(cluster, node_id, batch=batch(b"%d" % node_id), partition=0)
            assert (answer.base_offset, answer.record_count) == (node_id - 1, 1)
        assert await stored(cluster, 2) == [b"1", b"2", b"3"]

    play(story)


class StreamWriter:
    """An idempotent client that pipelines through one node and repeats, in order and unchanged,
    what it has no answer to. The smallest thing that keeps the contract's promise."""

    def __init__(self, cluster: SimCluster, node_id: int, producer_id: int) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.producer_id = producer_id
        self.offsets: dict[int, int] = {}

    async def write(self, count: int) -> None:
        while len(self.offsets) < count:
            if not self.cluster.nodes[self.node_id].is_up:
                await asyncio.sleep(0.05)
                continue
            channel = self.cluster.clients.channel(self.cluster.nodes[self.node_id].client_endpoint)
            link: ProduceLink[
                messaging_pb2.ProduceStreamRequest, messaging_pb2.ProduceStreamResponse
            ] = ProduceLink(
                channel,
                methods.PRODUCE_STREAM,
                attach_id=self._attach_id,
                id_of=lambda response: response.produced.request_id,
            )
            await self._send_all(link, count)
            await link.close()
            await channel.close()

    async def _send_all(
        self,
        link: ProduceLink[messaging_pb2.ProduceStreamRequest, messaging_pb2.ProduceStreamResponse],
        count: int,
    ) -> None:
        done = asyncio.Event()
        open_now: set[int] = set()

        def answered(number: int, result: object) -> None:
            open_now.discard(number)
            if isinstance(result, messaging_pb2.ProduceStreamResponse):
                error = result.produced.error
                if result.produced.HasField("error"):
                    assert error.retriable or error.reason == errors_pb2.REASON_SEQUENCE_GAP, error
                    done.set()
                else:
                    self.offsets[number] = result.produced.base_offset
            if not link.alive or not open_now:
                done.set()

        for number in range(count):
            if number in self.offsets:
                continue
            while open_now and number - min(open_now) >= PRODUCER_WINDOW_BATCHES:
                await asyncio.sleep(0.002)  # a repeat of the oldest one must still be remembered
                if done.is_set():
                    return
            request = messaging_pb2.ProduceRequest(
                topic="t", partition=0, batch=batch(b"%d:%d" % (self.producer_id, number))
            )
            request.producer.producer_id = self.producer_id
            request.producer.epoch = 1
            request.producer.base_sequence = number
            open_now.add(number)
            try:
                link.send(
                    messaging_pb2.ProduceStreamRequest(produce=request),
                    lambda result, number=number: answered(number, result),
                )
            except Exception:
                break
            await asyncio.sleep(0.002)
            if done.is_set():
                return
        await done.wait()

    @staticmethod
    def _attach_id(
        request: messaging_pb2.ProduceStreamRequest, number: int
    ) -> messaging_pb2.ProduceStreamRequest:
        request.produce.request_id = number
        return request


async def check_all_once_in_order(
    cluster: SimCluster, writers: list[StreamWriter], count: int
) -> None:
    values = await stored(cluster, 2)
    for writer in writers:
        mine = [b"%d:%d" % (writer.producer_id, n) for n in range(count)]
        wanted = set(mine)
        assert [value for value in values if value in wanted] == mine
        assert [values[writer.offsets[n]] for n in range(count)] == mine
    assert len(values) == count * len(writers)


@pytest.mark.parametrize("seed", range(6))
def test_streams_through_any_node_keep_order_while_nodes_crash(seed: int) -> None:
    async def story(cluster: SimCluster) -> None:
        writers = [StreamWriter(cluster, n, 100 + n) for n in cluster.nodes]
        tasks = [asyncio.ensure_future(writer.write(300)) for writer in writers]
        for _ in range(4):
            await asyncio.sleep(cluster.random.uniform(0.1, 1.5))
            node = cluster.nodes[cluster.random.randrange(1, 4)]
            if cluster.random.random() < 0.5:
                await node.crash()
            else:
                await node.stop()
            await asyncio.sleep(cluster.random.uniform(0.0, 2.0))
            node.start()
        await asyncio.wait_for(asyncio.gather(*tasks), 300)
        await check_all_once_in_order(cluster, writers, 300)

    play(story, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_streams_through_any_node_keep_order_over_a_bad_network(seed: int) -> None:
    async def story(cluster: SimCluster) -> None:
        cluster.network.faults = NetworkFaults(
            delay_ms_max=30, loss=0.05, duplicate=0.05, reorder=0.1, stream_break=0.01
        )
        writers = [StreamWriter(cluster, n, 100 + n) for n in cluster.nodes]
        tasks = [asyncio.ensure_future(writer.write(200)) for writer in writers]
        for _ in range(4):
            await asyncio.sleep(cluster.random.uniform(0.3, 1.5))
            cluster.network.isolate(cluster.random.randrange(1, 4), cluster.nodes)
            await asyncio.sleep(cluster.random.uniform(0.5, 3.0))
            cluster.network.heal()
        await asyncio.wait_for(asyncio.gather(*tasks), 300)
        cluster.network.faults = NetworkFaults()
        await check_all_once_in_order(cluster, writers, 200)

    play(story, seed=seed)


def test_nothing_of_an_answered_request_waits_for_the_garbage_collector() -> None:
    async def story(cluster: SimCluster) -> None:
        await produce(cluster, 1, batch=batch(b"first"), partition=0)
        gc.collect()
        gc.disable()
        try:
            for node_id in cluster.nodes:
                await produce(cluster, node_id, batch=batch(b"x"), partition=0)
            await StreamWriter(cluster, 1, 101).write(5)
            await asyncio.sleep(1.0)
            assert [one for one in gc.get_objects() if type(one) is Item] == []
        finally:
            gc.enable()

    play(story)
