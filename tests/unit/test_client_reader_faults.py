"""A reader in trouble: no record is left out or given twice, and what cannot be read is told."""

from __future__ import annotations

import asyncio

import pytest

import quorumq
from quorumq import errors
from quorumq.v1 import messaging_pb2
from tests.client_bed.model import Refused, Topic
from tests.client_bed.worlds import Bed, Run, both_worlds, in_process


async def _filled(
    bed: Bed, counts: list[int], *, batch_bytes_max: int = 1000
) -> tuple[Topic, quorumq.Client]:
    topic = bed.cluster.create("t", len(counts))
    client = await bed.client()
    async with client.producer("t", batch_bytes_max=batch_bytes_max) as producer:
        for partition, count in enumerate(counts):
            for number in range(count):
                producer.send(b"%d" % number, partition=partition)
    return topic, client


def _now() -> float:
    return asyncio.get_running_loop().time()


@both_worlds
def test_broken_connections_leave_no_trace(run: Run) -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [300, 300, 300], batch_bytes_max=60)
        read: dict[int, list[int]] = {0: [], 1: [], 2: []}
        victim = 0
        async with client.reader("t") as reader:
            for count in range(900):
                record = await anext(reader)
                read[record.partition].append(record.offset)
                if count % 150 == 75:
                    await bed.kill(victim, new_leader=(victim + 1) % 3)
                    await bed.restart(victim)
                    victim = (victim + 1) % 3
        assert read == {partition: list(range(300)) for partition in range(3)}

    run(story)


def test_a_node_that_goes_away_is_left_before_it_is_gone() -> None:
    async def story(bed: Bed) -> None:
        topic, client = await _filled(bed, [10])
        async with client.reader("t") as reader, client.producer("t") as producer:
            for _ in range(10):
                await anext(reader)
            reads = bed.cluster.faults.reads
            bed.cluster.faults.draining.append(bed.world.endpoint(0))
            bed.cluster.move_leader("t", 0, bed.world.endpoint(1))
            await producer.send_and_wait(b"10")
            begin = _now()
            assert (await anext(reader)).offset == 10
            assert _now() - begin < 0.2
            assert bed.cluster.faults.reads == reads + 1
            await asyncio.sleep(10.0)  # nobody goes back to it
            assert bed.cluster.faults.reads == reads + 1
        assert topic.partitions[0].next_offset == 11

    in_process(story)


def test_a_node_that_falls_silent_is_left() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [10])
        async with client.reader("t") as reader, client.producer("t") as producer:
            for _ in range(10):
                await anext(reader)
            bed.cluster.faults.hang.append(bed.world.endpoint(0))
            bed.cluster.move_leader("t", 0, bed.world.endpoint(1))
            await producer.send_and_wait(b"10")
            assert (await anext(reader)).offset == 10
            assert 44.0 < _now() < 60.0  # nodes say something every 15 s

    in_process(story)


def test_when_no_node_answers_it_is_told_and_reading_goes_on_once_they_do() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [10])
        reader = client.reader("t", start=5, timeout_ms=3000)
        assert (await anext(reader)).offset == 5
        for number in range(3):
            await bed.kill(number)
        for offset in range(6, 10):  # had arrived
            assert (await anext(reader)).offset == offset
        begin = _now()
        for _ in range(2):
            with pytest.raises(errors.QuorumqError) as caught:
                await anext(reader)
            assert caught.value.reason in ("UNREACHABLE", "CONNECTION_LOST")
        assert 6.0 <= _now() - begin < 12.0
        for number in range(3):
            await bed.restart(number)
        bed.elect(2)
        async with client.producer("t") as producer:
            await producer.send_and_wait(b"10")
        assert (await anext(reader)).offset == 10

    in_process(story)


# -------------------------------------------------------------------------- trouble of partitions


def test_a_record_that_cannot_be_had_is_told_and_skipped() -> None:
    async def story(bed: Bed) -> None:
        topic, client = await _filled(bed, [10])
        topic.partitions[0].trim(0, gone=[0])
        bed.cluster.faults.statuses.append(
            messaging_pb2.PartitionStatus(
                partition=0,
                offset=0,
                next_offset=1,
                error=Refused("RECORD_TOO_LARGE", "9 MB").error,
            )
        )
        reader = client.reader("t", follow=False)
        with pytest.raises(errors.RecordTooLarge, match="partition 0, offset 0: 9 MB"):
            await anext(reader)
        assert [record.offset async for record in reader] == list(range(1, 10))

    in_process(story)


def test_a_partition_beyond_hope_ends_alone() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [10, 0, 0, 10])  # node 0 leads the first and the last
        bed.cluster.faults.statuses.append(
            messaging_pb2.PartitionStatus(partition=3, error=Refused("CORRUPT", "bad disk").error)
        )
        reader = client.reader("t", partitions=[0, 3], follow=False)
        with pytest.raises(errors.Corrupt, match="partition 3: bad disk"):
            await anext(reader)
        read = [(record.partition, record.offset) async for record in reader]
        assert read == [(0, offset) for offset in range(10)]

    in_process(story)


def test_trouble_that_passes_is_waited_for() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [10])
        for error in (Refused("NO_LEADER", retriable=True).error, None):
            bed.cluster.faults.statuses.append(
                messaging_pb2.PartitionStatus(partition=0, error=error)
            )
        reader = client.reader("t", follow=False)
        assert len([record async for record in reader]) == 10

    in_process(story)


def test_a_topic_that_was_replaced_ends_the_reader_and_a_new_one_works() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [10])
        reader = client.reader("t")
        for _ in range(10):
            await anext(reader)
        del bed.cluster.topics["t"]
        bed.cluster.create("t", 2)
        await bed.kill(0, new_leader=1)  # its stream breaks; another one is refused
        with pytest.raises(errors.TopicReplaced):
            await anext(reader)
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
        async with client.producer("t") as producer:
            await producer.send_and_wait(b"new", partition=1)
        assert (await anext(client.reader("t"))).value == b"new"

    in_process(story)


def test_a_reader_that_is_not_read_holds_the_nodes_back() -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1)
        client = await bed.client()
        async with client.producer("t") as producer:
            for _ in range(250):
                await producer.send_and_wait(bytes(200_000))
        async with client.reader("t") as reader:
            await anext(reader)
            await asyncio.sleep(60.0)
            # 8 MiB in the reader, and what the transport has room for.
            assert bed.cluster.faults.deliveries < 150
            for _ in range(249):
                await anext(reader)
        assert topic.partitions[0].next_offset == 250

    in_process(story)
