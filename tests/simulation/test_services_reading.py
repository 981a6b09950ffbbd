"""Read through whole simulated clusters: any node, any start, any limit, any fault."""

from __future__ import annotations

import asyncio

import pytest

from node import codec
from node.partition.commands import Trim
from quorumq.v1 import records_pb2
from tests.simulation.cluster import SimCluster
from tests.simulation.reading_bed import (
    Follower,
    Writer,
    all_came,
    at,
    batch_of,
    deliveries,
    ends,
    following,
    group_of,
    leading_node,
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

NUMBERS = [b"%d" % number for number in range(30)]


# --- whole clusters ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_readers_through_every_node_lose_and_repeat_nothing_while_leaders_crash(seed: int) -> None:
    async def story(cluster: SimCluster) -> None:
        writers = [Writer(cluster, partition) for partition in range(2)]
        followers = [Follower(cluster, node_id, 2) for node_id in cluster.nodes]
        async with following(*followers):
            writing = [asyncio.ensure_future(writer.write(60)) for writer in writers]
            for _ in range(4):
                await asyncio.sleep(cluster.random.uniform(0.2, 1.5))
                node = leading_node(cluster, cluster.random.choice([0, 1]))
                await node.crash()
                await asyncio.sleep(cluster.random.uniform(0.0, 2.0))
                node.start()
            await asyncio.gather(*writing)
            for writer in writers:
                for follower in followers:
                    await all_came(follower, writer)

    play(story, seed=seed, partitions=2)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_goes_away_readers_and_relays_find_another_way(seed: int) -> None:
    """Nodes crash, stop in order or are cut off from their peers; each lacks some partition."""

    async def story(cluster: SimCluster) -> None:
        writers = [Writer(cluster, partition) for partition in range(3)]
        followers = [Follower(cluster, node_id, 3) for node_id in cluster.nodes]
        async with following(*followers):
            writing = [asyncio.ensure_future(writer.write(40)) for writer in writers]
            for _ in range(5):
                await asyncio.sleep(cluster.random.uniform(0.1, 1.5))
                await go_away_and_come_back(cluster, cluster.random.choice(list(cluster.nodes)))
            await asyncio.gather(*writing)
            for writer in writers:
                for follower in followers:
                    await all_came(follower, writer)

    play(story, seed=seed, nodes=4, partitions=3)


async def go_away_and_come_back(cluster: SimCluster, node_id: int) -> None:
    node, random = cluster.nodes[node_id], cluster.random
    how = random.choice(["crash", "stop", "cut off"])
    if how == "cut off":
        cluster.network.isolate(node_id, list(cluster.nodes))
        await asyncio.sleep(random.uniform(0.0, 8.0))
        cluster.network.heal()
        return
    await (node.crash() if how == "crash" else node.stop())
    await asyncio.sleep(random.uniform(0.0, 2.0))
    node.start()


def test_one_stream_survives_every_change_of_leader() -> None:
    """Of a node that has a replica, and of one that has none and relays."""

    async def story(cluster: SimCluster) -> None:
        here, elsewhere = Follower(cluster, 3, 1), Follower(cluster, 4, 1)
        writer = Writer(cluster, 0)
        async with following(here, elsewhere):
            for node_id in (1, 2, 1, 2):
                writing = asyncio.ensure_future(writer.write(15))
                await asyncio.sleep(0.1)
                await cluster.nodes[node_id].crash()
                await writing
                cluster.nodes[node_id].start()
            for follower in (here, elsewhere):
                await all_came(follower, writer)
                assert follower.streams == 1
        leader = cluster.leader(group_of(cluster))
        assert leader is not None
        assert leader.group.term > 1

    play(story, nodes=4)


def test_a_node_without_replica_reads_many_partitions_by_one_stream_a_node() -> None:
    async def story(cluster: SimCluster) -> None:
        for partition in range(4):
            await store_values(cluster, 30, partition=partition)
        for node_id in cluster.nodes:
            responses = await read(cluster, node_id)
            assert ends(responses) == dict.fromkeys(range(4), 30)
            for partition in range(4):
                assert values(responses, partition) == NUMBERS

    play(story, nodes=4, partitions=4)


def test_without_a_quorum_what_is_here_is_read_and_the_rest_is_waited_for() -> None:
    async def story(cluster: SimCluster) -> None:
        await store_values(cluster, 30)
        group_id = group_of(cluster)
        await cluster.until(
            lambda: all(r.replica.machine.next_offset == 30 for r in cluster.replicas(group_id)),
            "three equal replicas",
        )
        for node_id in (1, 2):
            await cluster.nodes[node_id].crash()
        await asyncio.sleep(3.0)
        stream = open_read(cluster, 3, follow=True)
        got: list[bytes] = []
        while len(got) < 30:
            got += records_of(await next_of(stream, "delivery"))
        assert got == NUMBERS
        trouble = await next_of(stream, "status")
        assert trouble.error.retriable
        assert not trouble.HasField("next_offset")
        for node_id in (1, 2):
            cluster.nodes[node_id].start()
        await store(cluster, batch_of([record(b"30")]))
        well = await next_of(stream, "status")
        assert not well.HasField("error")
        assert records_of(await next_of(stream, "delivery")) == [b"30"]
        stream.cancel()

    play(story)


# --- where it begins and ends --------------------------------------------------------------------


def test_without_follow_it_ends_where_the_partition_ended_when_it_was_asked() -> None:
    async def story(cluster: SimCluster) -> None:
        await store_values(cluster, 30)
        for node_id in cluster.nodes:
            responses = await read(cluster, node_id)
            assert values(responses) == NUMBERS
            assert ends(responses) == {0: 30}

    play(story)


def test_batches_that_begin_or_end_outside_are_cut() -> None:
    async def story(cluster: SimCluster) -> None:
        await store_values(cluster, 30)
        responses = await read(cluster, 2, partitions=[at(0, offset=4, until_offset=10)])
        assert values(responses) == NUMBERS[4:10]
        assert [(d.base_offset, d.next_offset) for d in deliveries(responses)] == [
            (4, 6),
            (6, 9),
            (9, 10),
        ]
        assert ends(responses) == {0: 10}
        responses = await read(cluster, 2, partitions=[at(0, offset=4)], max_records=3)
        assert values(responses) == NUMBERS[4:7]
        assert not ends(responses)

    play(story)


def test_until_an_offset_that_is_not_there_yet() -> None:
    async def story(cluster: SimCluster) -> None:
        await store_values(cluster, 6)
        wanted = [at(0, until_offset=10)]
        assert ends(await read(cluster, 1, partitions=wanted)) == {0: 6}
        reading = asyncio.ensure_future(read(cluster, 1, partitions=wanted, follow=True))
        await asyncio.sleep(1.0)
        await store_values(cluster, 30)
        responses = await reading
        assert len(values(responses)) == 10
        assert ends(responses) == {0: 10}
        assert ends(await read(cluster, 1, partitions=[at(0, offset=3, until_offset=3)])) == {0: 3}

    play(story)


def test_latest_is_what_comes_afterwards() -> None:
    async def story(cluster: SimCluster) -> None:
        await store_values(cluster, 6)
        for node_id in cluster.nodes:
            stream = open_read(
                cluster, node_id, partitions=[at(0, latest=True)], follow=True, max_records=1
            )
            await asyncio.sleep(0.5)
            stored = await store(cluster, batch_of([record(b"%d" % node_id)]))
            delivery = await next_of(stream, "delivery")
            assert delivery.base_offset == stored.base_offset
            assert records_of(delivery) == [b"%d" % node_id]

    play(story, nodes=4)


def test_by_either_time() -> None:
    async def story(cluster: SimCluster) -> None:
        stored = []
        for number in range(4):
            records = [
                record(b"%d" % n, timestamp_ms=1_000 - n) for n in (2 * number, 2 * number + 1)
            ]
            stored.append(await store(cluster, batch_of(records)))
            await asyncio.sleep(1.0)
        appended = at(0, time_ms=stored[2].append_time_ms)
        assert values(await read(cluster, 2, partitions=[appended])) == [b"4", b"5", b"6", b"7"]
        created = at(0, time_ms=1_000 - 1)
        assert len(values(await read(cluster, 2, partitions=[created], by="TIME_BY_CREATED"))) == 8
        later = at(0, time_ms=stored[3].append_time_ms + 1)
        for by in ("TIME_BY_CREATED", "TIME_BY_APPENDED"):
            assert ends(await read(cluster, 2, partitions=[later], by=by)) == {0: 8}

    play(story)


def test_an_offset_beyond_the_end_ends_that_partition_only() -> None:
    async def story(cluster: SimCluster) -> None:
        for partition in (0, 1):
            await store_values(cluster, 6, partition=partition)
        for node_id in cluster.nodes:
            wanted = [at(0, offset=7), at(1, offset=6)]
            responses = await read(cluster, node_id, partitions=wanted)
            assert statuses(responses) == [(0, "OFFSET_OUT_OF_RANGE")]
            told = next(r.status.error.metadata for r in responses if r.HasField("status"))
            assert dict(told) == {"earliest": "0", "latest": "6"}
            assert ends(responses) == {1: 6}

    play(story, nodes=4, partitions=2)


def test_what_is_trimmed_is_passed_over() -> None:
    async def story(cluster: SimCluster) -> None:
        await store_values(cluster, 30)
        local = cluster.leader(group_of(cluster))
        assert local is not None
        await local.group.propose(codec.encode(Trim(local.replica.stamp(), 7)))
        for node_id in cluster.nodes:
            assert values(await read(cluster, node_id)) == NUMBERS[7:]
            assert values(await read(cluster, node_id, partitions=[at(0, offset=2)])) == NUMBERS[7:]
            gone = [at(0, offset=2, until_offset=5)]
            assert ends(await read(cluster, node_id, partitions=gone)) == {0: 7}

    play(story)


# --- how much in a message -----------------------------------------------------------------------


def test_limits_of_bytes() -> None:
    async def story(cluster: SimCluster) -> None:
        for number in range(10):
            await store(cluster, batch_of([record(b"%d" % number * 1000)]))
        size = deliveries(await read(cluster, 1))[0].batch.ByteSize()
        for limit, count in ((1, 1), (size, 1), (3 * size, 3), (3 * size + 1, 3), (100 * size, 10)):
            responses = await read(cluster, 1, max_bytes=limit)
            assert len(deliveries(responses)) == count
            assert ends(responses) == ({0: 10} if count == 10 else {})

    play(story)


def test_large_batches_are_split_and_a_record_that_cannot_fit_is_told_and_skipped() -> None:
    async def story(cluster: SimCluster) -> None:
        sizes = [20_000, 20_000, 30_000, 100_000, 10, 60_000]
        whole = [record(bytes([number]) * size) for number, size in enumerate(sizes)]
        await store(cluster, batch_of(whole))
        for node_id in cluster.nodes:
            responses = await read(cluster, node_id, max_message_bytes=65_536)
            assert all(response.ByteSize() <= 65_536 for response in responses)
            places = [(d.base_offset, d.next_offset) for d in deliveries(responses)]
            assert places == [(0, 2), (2, 3), (4, 6)]
            assert [value[0] for value in values(responses)] == [0, 1, 2, 4, 5]
            status = next(r.status for r in responses if r.HasField("status"))
            assert statuses(responses) == [(0, "RECORD_TOO_LARGE")]
            assert (status.offset, status.next_offset) == (3, 4)
            assert ends(responses) == {0: 6}
        assert len(deliveries(await read(cluster, 1))) == 1

    play(story, nodes=4)


def test_compressed_batches_go_out_as_they_are_to_who_can_inflate_them() -> None:
    async def story(cluster: SimCluster) -> None:
        whole = batch_of([record(b"%d" % number * 10_000) for number in range(10)], compressed=True)
        await store(cluster, whole)
        for node_id in cluster.nodes:
            zstd = {"accept_codecs": [records_pb2.CODEC_ZSTD], "max_message_bytes": 65_536}
            [delivery] = deliveries(await read(cluster, node_id, **zstd))
            assert delivery.batch.compressed == whole.compressed
            plain = deliveries(await read(cluster, node_id, max_message_bytes=65_536))
            assert [(d.base_offset, d.next_offset) for d in plain] == [(0, 6), (6, 10)]
            first = deliveries(await read(cluster, node_id, **zstd, max_records=8))
            assert [(d.base_offset, d.next_offset) for d in first] == [(0, 6), (6, 8)]

    play(story, nodes=4)
