"""Read where something goes away: nodes, replicas, topics, records; and what is refused at once."""

from __future__ import annotations

import asyncio

import pytest

from cluster.controller import commands as c
from quorumq import methods
from quorumq.channel import CallFailed
from quorumq.errors import from_status
from quorumq.v1 import admin_pb2
from tests.simulation.admin_bed import ask
from tests.simulation.cluster import SimCluster
from tests.simulation.damage import all_stored, damage_entry, entry_of
from tests.simulation.reading_bed import (
    Follower,
    Writer,
    all_came,
    at,
    batch_of,
    following,
    group_of,
    next_of,
    open_read,
    play,
    read,
    record,
    records_of,
    statuses,
    store,
    store_values,
    values,
)


def test_a_silent_stream_has_a_heartbeat_every_15_s() -> None:
    async def story(cluster: SimCluster) -> None:
        loop = asyncio.get_running_loop()
        for node_id in (1, 4):
            stream = open_read(cluster, node_id, follow=True)
            begun_at = loop.time()
            for number in (1, 2):
                heartbeat = await next_of(stream, "heartbeat")
                assert loop.time() - begun_at == pytest.approx(15 * number, abs=0.1)
                assert heartbeat.sent_at_ms == pytest.approx(cluster.clock.wall_ms(), abs=100)
            stream.cancel()

    play(story, nodes=4)


def test_a_node_that_drains_says_go_away_and_takes_no_more_streams() -> None:
    async def story(cluster: SimCluster) -> None:
        reading = [
            asyncio.ensure_future(read(cluster, 1, follow=True)),
            asyncio.ensure_future(read(cluster, 1, partitions=[at(0)], follow=True)),
        ]
        await asyncio.sleep(1.0)
        cluster.nodes[1].front.start_draining()
        for responses in await asyncio.gather(*reading):
            assert [r.WhichOneof("event") for r in responses] == ["go_away"]
        with pytest.raises(CallFailed) as caught:
            await read(cluster, 1)
        error = from_status(caught.value.code, caught.value.details, caught.value.trailers)
        assert (error.reason, error.retriable) == ("NODE_DRAINING", True)

    play(story)


def test_a_relay_goes_on_elsewhere_when_its_node_stops() -> None:
    async def story(cluster: SimCluster) -> None:
        follower, writer = Follower(cluster, 4, 1), Writer(cluster, 0)
        async with following(follower):
            for node_id in (1, 2, 3):
                await writer.write(10)
                await cluster.nodes[node_id].stop()
                await writer.write(10)
                cluster.nodes[node_id].start()
            await all_came(follower, writer)
        assert follower.streams == 1

    play(story, nodes=4)


def test_a_replica_that_moves_away_takes_no_reader_with_it() -> None:
    async def story(cluster: SimCluster) -> None:
        follower, writer = Follower(cluster, 2, 1), Writer(cluster, 0)
        async with following(follower):
            await writer.write(20)
            move = admin_pb2.MoveReplicaRequest(
                topic="t", partition=0, from_node_id=2, to_node_id=4
            )
            await ask(cluster, 1, methods.MOVE_REPLICA, move)
            await writer.write(40)
            moved = cluster.nodes[2].broker
            assert moved is not None
            await cluster.until(lambda: moved.partitions.get(group_of(cluster)) is None, "a move")
            await writer.write(20)
            await all_came(follower, writer)
        assert follower.streams == 1

    play(story, nodes=4)


@pytest.mark.parametrize("again", [False, True])
def test_a_topic_that_is_deleted_ends_its_readers(again: bool) -> None:
    async def story(cluster: SimCluster) -> None:
        for partition in range(2):
            await store_values(cluster, 3, partition=partition)
        reading = [asyncio.ensure_future(read(cluster, n, follow=True)) for n in cluster.nodes]
        await asyncio.sleep(2.0)
        controller = cluster.brokers()[0].controller
        topic = controller.catalog.topic_by_name("default/t")
        assert topic is not None
        await controller.propose(c.DeleteTopic(topic_id=topic.topic_id))
        if again:
            await cluster.create_topic("default/t", partitions=1)
        for responses in await asyncio.gather(*reading):
            assert sorted(partition for partition, _ in statuses(responses)) == [0, 1]
            # Whoever looks between the two sees that there is none.
            allowed = {"TOPIC_NOT_FOUND", "TOPIC_REPLACED"} if again else {"TOPIC_NOT_FOUND"}
            assert {reason for _, reason in statuses(responses)} <= allowed
            assert len(values(responses)) == 3

    play(story, nodes=4, partitions=2)


def test_a_record_damaged_everywhere_ends_its_partition_behind_all_that_is_good() -> None:
    async def story(cluster: SimCluster) -> None:
        writer = Writer(cluster, 0)
        await writer.write(200)  # what is damaged lies below the log's tail, so it is found late
        await store_values(cluster, 3, partition=1)
        group_id = group_of(cluster)
        for node in cluster.nodes.values():
            await all_stored(cluster, node, 200)
            await damage_entry(node, group_id, entry_of(node, group_id, 20))
            await cluster.until(lambda: len(cluster.replicas(group_id)) == 3, "its replica")
        responses = await read(cluster, 2, partitions=[at(0, until_offset=100), at(1)])
        assert values(responses) == writer.stored[:20]
        assert statuses(responses) == [(0, "CORRUPT")]
        status = next(r.status for r in responses if r.HasField("status"))
        assert (status.offset, status.HasField("next_offset")) == (20, False)
        assert len(values(responses, 1)) == 3

    play(story, partitions=2)


def test_an_isolated_node_gives_its_readers_to_the_others() -> None:
    """Clients reach it, its peers do not: what others store is read through them."""

    async def story(cluster: SimCluster) -> None:
        await store_values(cluster, 30)
        stream = open_read(cluster, 3, follow=True)
        got: list[bytes] = []
        while len(got) < 30:
            got += records_of(await next_of(stream, "delivery"))
        cluster.network.isolate(3, list(cluster.nodes))
        await asyncio.sleep(2.0)
        await store(cluster, batch_of([record(b"30")]))
        assert records_of(await next_of(stream, "delivery")) == [b"30"]
        cluster.network.heal()
        await store(cluster, batch_of([record(b"31")]))
        assert records_of(await next_of(stream, "delivery")) == [b"31"]
        stream.cancel()

    play(story)


def test_without_a_leader_what_is_left_is_read_from_the_first_offset_through_any_node() -> None:
    async def story(cluster: SimCluster) -> None:
        await store_values(cluster, 30)
        await asyncio.sleep(1.0)
        for node_id in (1, 2):
            await cluster.nodes[node_id].crash()
        for node_id in (3, 4, 5):  # of which one has a replica
            wanted = [at(0, offset=0)]
            stream = open_read(cluster, node_id, partitions=wanted, follow=True)
            got: list[bytes] = []
            while len(got) < 30:
                got += records_of(await next_of(stream, "delivery"))
            stream.cancel()
            assert got == [b"%d" % number for number in range(30)]

    play(story, nodes=5)


def test_a_reader_that_stands_still_holds_nothing_up_and_little_in_memory() -> None:
    async def story(cluster: SimCluster) -> None:
        slow = open_read(cluster, 2, follow=True)
        await store_values(cluster, 30)
        for number in range(100):
            await store(cluster, batch_of([record(b"%d" % number * 20_000)]))
        others = await read(cluster, 2)
        assert len(values(others)) == 130
        got: list[bytes] = []
        while len(got) < 130:
            got += records_of(await next_of(slow, "delivery"))
        assert got == values(others)
        slow.cancel()

    play(story)


def test_partitions_take_turns() -> None:
    """A small partition does not wait for the end of a large one."""

    async def story(cluster: SimCluster) -> None:
        for _ in range(40):
            await store(cluster, batch_of([record(b"x" * 100_000)]), partition=0)
        await store_values(cluster, 3, partition=1)
        await asyncio.sleep(1.0)  # followers have heard that it is committed
        # Both begin at once: no leader has to be asked.
        wanted = [at(0, until_offset=40), at(1, until_offset=3)]
        responses = await read(cluster, 3, partitions=wanted, follow=True)
        order = [r.delivery.partition for r in responses if r.HasField("delivery")]
        assert order.index(1) < 5

    play(story, partitions=2)


def test_refused_before_anything_is_sent() -> None:
    async def story(cluster: SimCluster) -> None:
        async def reason(**fields: object) -> str:
            with pytest.raises(CallFailed) as caught:
                await read(cluster, 2, **fields)
            failure = caught.value
            return from_status(failure.code, failure.details, failure.trailers).reason

        assert await reason(partitions=[at(1)]) == "PARTITION_NOT_FOUND"
        assert await reason(topic_id="t0-other") == "TOPIC_REPLACED"
        assert await reason(max_message_bytes=1) == "BAD_REQUEST"
        assert await reason(partitions=[at(0), at(0)]) == "BAD_REQUEST"

    play(story)
