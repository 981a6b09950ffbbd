"""Finding nodes: several servers, dead ones, learned ones; closing the client."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

import quorumq
from quorumq import errors
from tests.client_bed.worlds import Bed, Run, both_worlds, in_process


def _now() -> float:
    return asyncio.get_running_loop().time()


# -------------------------------------------------------------------------------------- connect


@both_worlds
def test_one_server_that_answers_is_enough_and_the_others_are_learned(run: Run) -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 3)
        dead, alive = bed.world.endpoint(0), bed.world.endpoint(1)
        await bed.kill(0, new_leader=2)
        for servers in (f"{dead},{alive}", f" {alive} , {dead},", alive):
            client = await bed.client(servers=servers)
            async with client.producer("t") as producer:
                for partition in range(3):
                    await producer.send_and_wait(b"", partition=partition)
        assert [partition.next_offset for partition in topic.partitions] == [3, 3, 3]

    run(story)


@both_worlds
def test_when_no_server_answers_it_is_told_in_time_and_by_name(run: Run) -> None:
    async def story(bed: Bed) -> None:
        for number in range(3):
            await bed.kill(number)
        begin = _now()
        with pytest.raises(
            errors.Unavailable, match=r"none of .*answered within 1000 ms"
        ) as caught:
            await quorumq.connect(
                bed.cluster.endpoints, channels=bed.world.channel, timeout_ms=1000, rng=bed.rng
            )
        assert _now() - begin <= 1.2
        for endpoint in bed.cluster.endpoints:
            assert endpoint in str(caught.value)
        assert caught.value.retriable

    run(story)


def test_servers_that_hang_are_told_in_time_too() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.faults.hang += bed.cluster.endpoints
        with pytest.raises(errors.Unavailable, match="answered within 5000 ms"):
            await quorumq.connect(
                bed.cluster.endpoints, channels=bed.world.channel, timeout_ms=5000, rng=bed.rng
            )
        assert _now() <= 5.0

    in_process(story)


def test_a_server_that_hangs_costs_a_moment_only() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.faults.hang.append(bed.world.endpoint(0))
        for seed in range(5):
            begin = _now()
            client = await quorumq.connect(
                bed.cluster.endpoints, channels=bed.world.channel, rng=Random(seed)
            )
            assert _now() - begin < 2.0
            await client.close()

    in_process(story)


async def test_connecting_to_nothing() -> None:
    for servers in ("", " , ", []):
        with pytest.raises(ValueError, match="host:port"):
            await quorumq.connect(servers)


# ------------------------------------------------------------------------------------- following


def test_calls_go_to_another_node_when_one_dies() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("t", 1)
        client = await bed.client()
        for number in range(3):
            await bed.kill(number, new_leader=(number + 1) % 3)
            assert (await client.admin.metadata("t")).topics[0].topic_id == "topic-1"
            await bed.restart(number)

    in_process(story)


def test_a_call_that_no_node_takes_fails_when_its_time_is_over() -> None:
    async def story(bed: Bed) -> None:
        client = await bed.client()
        for number in range(3):
            await bed.kill(number)
        client.admin.timeout_ms = 3000
        with pytest.raises(errors.Unreachable):
            await client.admin.metadata()
        assert _now() <= 3.0

    in_process(story)


def test_who_cannot_be_repeated_is_not() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("t", 1)
        client = await bed.client()
        bed.cluster.faults.lose_calls = 1
        with pytest.raises(errors.ConnectionLost) as caught:
            await client.admin.delete_topic("t")
        assert not caught.value.outcome_known
        bed.cluster.faults.lose_calls = 1
        await client.admin.create_topic("t")  # may be repeated
        assert list(bed.cluster.topics) == ["t"]

    in_process(story)


def test_producers_go_straight_to_a_new_leader() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("t", 1)
        client = await bed.client()
        async with client.producer("t") as producer:
            await producer.send_and_wait(b"")
            bed.cluster.move_leader("t", 0, bed.world.endpoint(2))
            await producer.send_and_wait(b"")  # forwarded; its answer says who leads
            await producer.send_and_wait(b"")
            forwarded = bed.cluster.faults.forwarded
            for _ in range(5):
                await producer.send_and_wait(b"")
            assert bed.cluster.faults.forwarded == forwarded == 1

    in_process(story)


# ----------------------------------------------------------------------------------------- close


def test_closing_flushes_producers_and_ends_readers() -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1)
        async with await bed.client() as client:
            producer = await client.producer("t", linger_ms=60_000).start()
            reader = await client.reader("t").start()
            future = producer.send(b"")
        assert future.result().offset == 0
        assert topic.partitions[0].next_offset == 1
        assert producer.closed
        for waiting in (anext(reader), client.admin.metadata(), client.producer("t").start()):
            with pytest.raises(errors.Closed):
                await waiting

    in_process(story)


def test_closing_tells_the_first_failure_after_flushing_all() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("dead", 1)
        alive = bed.cluster.create("alive", 1)
        client = await bed.client()
        bad = await client.producer("dead", delivery_timeout_ms=1000).start()
        good = await client.producer("alive", linger_ms=60_000).start()
        bed.cluster.move_leader("dead", 0, None)
        bad.send(b"")
        good.send(b"")
        with pytest.raises(errors.DeliveryTimeout):
            await client.close()
        assert alive.partitions[0].next_offset == 1

    in_process(story)


def test_a_block_that_raises_aborts_and_its_error_is_the_one_to_see() -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1)
        client = await bed.client()
        producer = await client.producer("t").start()
        future = producer.send(b"")
        with pytest.raises(KeyError):
            await _fail_inside(client)
        assert isinstance(future.exception(), errors.NotSent)
        assert topic.partitions[0].next_offset == 0

    async def _fail_inside(client: quorumq.Client) -> None:
        async with client:
            raise KeyError("the program's own")

    in_process(story)
