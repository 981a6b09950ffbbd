"""A producer's identity: names that survive the process, fencing, and when it no longer works."""

from __future__ import annotations

import asyncio

import pytest

from quorumq import errors
from tests.client_bed.worlds import Bed, Run, both_worlds, in_process


@both_worlds
def test_a_named_producer_goes_on_where_it_left_off(run: Run) -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 2)
        client = await bed.client()
        async with client.producer("t", name="importer") as first:
            assert first.opened == {0: (None, None), 1: (None, None)}
            for number in range(3):
                await first.send_and_wait(b"%d" % number, partition=1)
        async with client.producer("t", name="importer") as second:
            assert second.opened == {0: (None, None), 1: (2, 2)}
            await second.send_and_wait(b"3", partition=1)
        assert topic.partitions[1].values() == [b"0", b"1", b"2", b"3"]
        assert len(topic.partitions[1].producers) == 1

    run(story)


def test_producers_without_name_have_nothing_to_do_with_each_other() -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1)
        client = await bed.client()
        async with client.producer("t") as first, client.producer("t") as second:
            await first.send_and_wait(b"1")
            await second.send_and_wait(b"2")
        assert len(topic.partitions[0].producers) == 2

    in_process(story)


def test_the_older_process_of_a_name_is_fenced() -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1)
        client = await bed.client()
        older = await client.producer("t", name="n").start()
        await older.send_and_wait(b"older")
        newer = await client.producer("t", name="n").start()
        with pytest.raises(errors.ProducerFenced):
            await older.send_and_wait(b"too late")
        for again in (older.send_and_wait(b""), older.ready()):
            with pytest.raises(errors.ProducerFenced):
                await again
        assert older.closed
        await older.close()
        await newer.send_and_wait(b"newer")
        assert topic.partitions[0].values() == [b"older", b"newer"]

    in_process(story)


def test_what_the_older_process_has_in_flight_is_counted_or_refused() -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1)
        client = await bed.client()
        older = await client.producer("t", name="n").start()
        bed.cluster.faults.hang.append(bed.world.endpoint(0))
        in_flight = older.send(b"older")
        await asyncio.sleep(0.1)
        newer = await client.producer("t", name="n").start()
        assert newer.opened[0].last_sequence is None
        bed.cluster.faults.hang.clear()
        bed.cluster.changed()
        with pytest.raises(errors.ProducerFenced):
            await in_flight
        await newer.send_and_wait(b"newer")
        assert topic.partitions[0].values() == [b"newer"]

    in_process(story)


def test_a_producer_the_partition_forgot_stops() -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1)
        client = await bed.client()
        producer = await client.producer("t", batch_bytes_max=20).start()
        await producer.send_and_wait(b"before")
        topic.partitions[0].producers.clear()
        lost, behind = producer.send(bytes(15)), producer.send(bytes(15))
        with pytest.raises(errors.ProducerExpired) as caught:
            await lost
        assert caught.value.outcome_known
        assert isinstance(behind.exception(), errors.OutcomeUnknown | errors.NotSent)
        with pytest.raises(errors.ProducerExpired):
            producer.send(b"")
        async with client.producer("t") as another:
            await another.send_and_wait(b"after")
        assert topic.partitions[0].values() == [b"before", b"after"]

    in_process(story)


@pytest.mark.parametrize(
    "shift", [-1, 1], ids=["lost what it acknowledged", "has what is not ours"]
)
def test_a_partition_that_disagrees_about_the_sequence_stops_the_producer(shift: int) -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1)
        client = await bed.client()
        producer = await client.producer("t").start()
        for _ in range(3):
            await producer.send_and_wait(b"")
        [known] = topic.partitions[0].producers.values()
        known.next_sequence += shift
        with pytest.raises(errors.SequenceGap) as caught:
            await producer.send_and_wait(b"")
        assert caught.value.expected_sequence == 3 + shift
        with pytest.raises(errors.SequenceGap):
            producer.send(b"")
        assert topic.partitions[0].next_offset == 3

    in_process(story)


def test_a_topic_that_was_replaced_stops_its_producers_and_new_ones_work() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("t", 1)
        client = await bed.client()
        producer = await client.producer("t").start()
        await producer.send_and_wait(b"to the old one")
        del bed.cluster.topics["t"]
        replacement = bed.cluster.create("t", 4)
        with pytest.raises(errors.TopicReplaced):
            await producer.send_and_wait(b"to whom?")
        with pytest.raises(errors.ProducerFailed, match="TOPIC_REPLACED"):
            producer.send(b"")
        async with client.producer("t") as another:
            await another.send_and_wait(b"to the new one", partition=3)
        assert replacement.partitions[3].values() == [b"to the new one"]

    in_process(story)


def test_a_topic_that_was_deleted() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("t", 1)
        client = await bed.client()
        producer = await client.producer("t").start()
        del bed.cluster.topics["t"]
        with pytest.raises(errors.TopicNotFound):
            await producer.send_and_wait(b"")
        with pytest.raises(errors.TopicNotFound):
            await client.producer("t").start()

    in_process(story)
