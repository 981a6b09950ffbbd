"""Everything at once, at random, on virtual time: what idempotent producers sent is stored once and
in order, and what is stored is read once and in order."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

import quorumq
from tests.client_bed.model import Refused
from tests.client_bed.worlds import Bed, in_process

PARTITIONS = 4
KEYS = [b"key %d" % number for number in range(13)]
RECORDS = 1500
TROUBLES = 25


async def _trouble(bed: Bed, rng: Random) -> None:
    """One thing goes wrong, and is mended a little later."""
    faults, node, other = bed.cluster.faults, rng.randrange(3), rng.randrange(3)
    endpoint = bed.world.endpoint(node)
    kind = rng.choice(["move", "kill", "lose", "refuse", "hang", "drain", "leaderless"])
    length_s = rng.choice([0.05, 0.5, 3.0])
    if kind == "move":
        bed.cluster.move_leader("t", rng.randrange(PARTITIONS), endpoint)
    elif kind == "kill":
        await bed.kill(node, new_leader=rng.choice([None, (node + 1) % 3]))
        await asyncio.sleep(length_s)
        await bed.restart(node)
        bed.elect(other)
    elif kind == "lose":
        faults.lose_answers += rng.randrange(1, 4)
    elif kind == "refuse":
        for _ in range(rng.randrange(1, 6)):
            reason = rng.choice(["THROTTLED", "NO_LEADER", "DISK_FULL", "OUTCOME_UNKNOWN"])
            known = reason != "OUTCOME_UNKNOWN"
            after = rng.choice([None, 20, 200]) if reason == "THROTTLED" else None
            faults.refuse.append(
                Refused(reason, retriable=True, outcome_known=known, retry_after_ms=after)
            )
    elif kind == "leaderless":
        bed.cluster.move_leader("t", rng.randrange(PARTITIONS), None)
        await asyncio.sleep(length_s)
        bed.elect(other)
    else:
        ill = faults.hang if kind == "hang" else faults.draining
        ill.append(endpoint)
        bed.cluster.changed()
        if rng.random() < 0.5:
            for number in range(PARTITIONS):
                if bed.cluster.topics["t"].partitions[number].leader == endpoint:
                    bed.cluster.move_leader("t", number, bed.world.endpoint((node + 1) % 3))
        await asyncio.sleep(length_s)
        ill.remove(endpoint)
        bed.cluster.changed()


async def _send(producer: quorumq.Producer, rng: Random) -> list[quorumq.RecordFuture]:
    """Does not wait for what becomes of them."""
    futures = []
    for number in range(RECORDS):
        body = b"%d" % number
        futures.append(producer.send(body, key=rng.choice(KEYS)))
        if rng.random() < 0.05:
            await asyncio.sleep(rng.uniform(0.0, 0.5))
    return futures


async def _read(reader: quorumq.Reader, count: int) -> list[quorumq.Record]:
    return [await anext(reader) for _ in range(count)]


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_doubled_or_out_of_order(seed: int) -> None:
    async def story(bed: Bed) -> None:
        rng = bed.rng
        topic = bed.cluster.create("t", PARTITIONS)
        client = await bed.client()
        producer = await client.producer("t", batch_bytes_max=rng.choice([40, 400])).start()
        reader = client.reader("t")
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(_send(producer, rng))
            reading = tasks.create_task(_read(reader, RECORDS))
            for _ in range(TROUBLES):
                await asyncio.sleep(rng.uniform(0.0, 1.0))
                await _trouble(bed, rng)
            bed.elect(0)
        await producer.close()  # raises if any failed

        stored = {
            (partition.number, offset): record
            for partition in topic.partitions
            for offset, record in partition.records()
        }
        assert len(stored) == RECORDS
        for number, future in enumerate(sending.result()):
            metadata = future.result()
            assert stored[metadata.partition, metadata.offset].value == b"%d" % number
        for key in KEYS:  # in order of `send`
            values = [int(record.value) for record in stored.values() if record.key == key]
            assert values == sorted(values)
        read = reading.result()
        assert {(r.partition, r.offset): r.value for r in read} == {
            place: record.value for place, record in stored.items()
        }
        for number in range(PARTITIONS):
            offsets = [record.offset for record in read if record.partition == number]
            assert offsets == list(range(len(offsets)))

    in_process(story, seed, latency_s=lambda rng: rng.choice([0.0, 0.001, 0.02]))


@pytest.mark.parametrize("seed", range(12))
def test_what_is_told_of_records_given_up_is_true(seed: int) -> None:
    async def story(bed: Bed) -> None:
        rng = bed.rng
        topic = bed.cluster.create("t", PARTITIONS)
        client = await bed.client()
        producer = await client.producer(
            "t", batch_bytes_max=100, in_flight_max=8, delivery_timeout_ms=1500
        ).start()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(_send(producer, rng))
            for _ in range(TROUBLES):
                await asyncio.sleep(rng.uniform(0.0, 1.0))
                await _trouble(bed, rng)
            bed.elect(0)
        await asyncio.sleep(rng.choice([0.0, 5.0]))
        producer.abort()
        await asyncio.sleep(30.0)  # what nodes still hold lands, or is dropped

        stored = [int(value) for partition in topic.partitions for value in partition.values()]
        assert len(stored) == len(set(stored))
        for number, future in enumerate(sending.result()):
            error = future.exception()
            if error is None:
                assert number in stored
            elif error.outcome_known:
                assert number not in stored

    in_process(story, seed, latency_s=lambda rng: rng.choice([0.0, 0.001, 0.02]))
