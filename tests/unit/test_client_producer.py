"""The producer: what becomes a batch, when it is sent, and what a program is told."""

from __future__ import annotations

import asyncio

import pytest

import quorumq
from quorumq import errors
from quorumq.partitioner import full_slot_map, partition_of
from quorumq.v1 import records_pb2
from tests.client_bed.model import Partition, Topic
from tests.client_bed.worlds import Bed, Run, both_worlds, in_process


def _sizes(partition: Partition) -> list[int]:
    return [stored.batch.record_count for stored in partition.batches]


async def _started(
    bed: Bed, partitions: int = 1, **options: object
) -> tuple[Topic, quorumq.Producer]:
    topic = bed.cluster.create("t", partitions)
    client = await bed.client()
    return topic, await client.producer("t", **options).start()  # type: ignore[arg-type]


@both_worlds
def test_what_is_sent_is_stored_where_its_metadata_says(run: Run) -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, partitions=3)
        async with producer:
            metadata = await producer.send_and_wait(b"value", key=b"key")
        assert metadata == quorumq.RecordMetadata(
            "t", metadata.partition, 0, bed.cluster.now_ms, duplicate=False
        )
        [(offset, record)] = topic.partitions[metadata.partition].records()
        assert (offset, record.key, record.value) == (0, b"key", b"value")

    run(story)


@both_worlds
def test_many_records_through_many_batches(run: Run) -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, partitions=3, batch_bytes_max=2000)
        async with producer:
            futures = [producer.send(b"%d" % n, key=b"%d" % (n % 7)) for n in range(5000)]
        stored = {
            (partition.number, offset): record.value
            for partition in topic.partitions
            for offset, record in partition.records()
        }
        assert len(stored) == 5000
        for number, future in enumerate(futures):
            metadata = future.result()
            assert stored[metadata.partition, metadata.offset] == b"%d" % number

    run(story)


# ------------------------------------------------------------------------------------ batching


def test_records_wait_for_others_as_long_as_the_linger() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, linger_ms=20)
        producer.send(b"first")
        await asyncio.sleep(0.010)
        producer.send(b"second")
        await asyncio.sleep(0.009)
        assert bed.cluster.faults.produced == 0
        await asyncio.sleep(0.002)
        assert _sizes(topic.partitions[0]) == [2]
        producer.send(b"third")
        await asyncio.sleep(0.021)
        assert _sizes(topic.partitions[0]) == [2, 1]

    in_process(story)


def test_a_full_batch_goes_at_once() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, linger_ms=60_000, batch_bytes_max=1000)
        for _ in range(100):
            producer.send(bytes(100))  # 104 bytes in the batch
        await asyncio.sleep(0.001)
        assert _sizes(topic.partitions[0]) == [9] * 11
        assert (
            max(len(s.batch.records.SerializeToString()) for s in topic.partitions[0].batches)
            <= 1000
        )
        await producer.flush()
        assert _sizes(topic.partitions[0]) == [9] * 11 + [1]

    in_process(story)


def test_a_batch_has_at_most_100_000_records() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, batch_bytes_max=400_000)
        for _ in range(60_000):
            producer.send(None)  # 2 bytes each
        for _ in range(50_000):
            producer.send(b"")  # 4 bytes each
        await producer.flush()
        assert _sizes(topic.partitions[0]) == [100_000, 10_000]
        with pytest.raises(ValueError, match="400000"):
            (await bed.client()).producer("t", batch_bytes_max=400_001)

    in_process(story)


def test_a_record_above_the_batch_size_makes_a_batch_of_its_own() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, batch_bytes_max=100)
        for size in (10, 500, 10, 10):
            producer.send(bytes(size))
        await producer.flush()
        assert _sizes(topic.partitions[0]) == [1, 1, 2]

    in_process(story)


def test_a_record_above_the_topics_limit_is_refused_alone() -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1, record_bytes_max=1000)
        client = await bed.client()
        async with client.producer("t") as producer:
            before = producer.send(b"before")
            with pytest.raises(errors.RecordTooLarge, match="takes 1000"):
                producer.send(bytes(1000))  # 3 bytes more as a record
            with pytest.raises(errors.RecordTooLarge):
                producer.send(bytes(1000), headers=[("name", "value")])
            await producer.send_and_wait(bytes(997))
            assert before.done()
        assert [len(value) for value in topic.partitions[0].values()] == [6, 997]

    in_process(story)


def test_batches_are_pipelined_within_the_window() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, batch_bytes_max=20, in_flight_max=8, linger_ms=0)
        await producer.send_and_wait(b"connects")
        for number in range(20):
            producer.send(b"%015d" % number)
        arrived: list[int] = []
        for _ in range(3):  # round trips of 0.2 s
            await asyncio.sleep(0.15)
            arrived.append(bed.cluster.faults.produced)
            await asyncio.sleep(0.05)
        assert arrived == [9, 17, 21]
        await producer.flush()
        assert topic.partitions[0].values()[1:] == [b"%015d" % number for number in range(20)]

    in_process(story, latency_s=lambda _rng: 0.1)


# -------------------------------------------------------------------------------- partitioning


def test_keys_decide_the_partition_as_every_client_does() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, partitions=5)
        slot_map = full_slot_map([], hash_slots=5 * 64, partitions=5)
        async with producer:
            for number in range(100):
                producer.send(b"", key=b"%d" % number)
                producer.send(b"", key=b"%d" % number, headers=[("name", 1)])
        for partition in topic.partitions:
            for _, record in partition.records():
                assert partition_of(record.key, slot_map) == partition.number

    in_process(story)


def test_a_partition_given_wins() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, partitions=3)
        async with producer:
            for number in range(3):
                producer.send(b"plain", partition=number)
                producer.send(b"keyed", key=b"key", partition=number)
                producer.send(b"full", partition=number, timestamp_ms=1)
            with pytest.raises(errors.PartitionNotFound):
                producer.send(b"", partition=3)
        for partition in topic.partitions:
            assert partition.values() == [b"plain", b"keyed", b"full"]

    in_process(story)


def test_records_without_key_fill_batches_of_one_partition_after_the_other() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, partitions=3, batch_bytes_max=1000)
        async with producer:
            for _ in range(90):
                producer.send(bytes(100))
        assert [_sizes(partition) for partition in topic.partitions].count([9, 9, 9]) >= 2
        assert min(sum(_sizes(partition)) for partition in topic.partitions) >= 27

    in_process(story)


# -------------------------------------------------------------------- what a record can hold


def test_null_and_empty_differ_and_headers_and_times_survive() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed)
        client = await bed.client()
        headers = [("text", "x"), ("number", -1), ("flag", True), ("raw", b"\0"), ("null", None)]
        async with producer:
            producer.send(None, key=b"tombstone")
            producer.send(b"", key=b"")
            producer.send(None)
            producer.send(b"all", headers=headers, timestamp_ms=42)
            producer.send(bytearray(b"copied"), key=memoryview(b"key"))
        read = [record async for record in client.reader("t", follow=False)]
        assert [(record.key, record.value) for record in read] == [
            (b"tombstone", None),
            (b"", b""),
            (None, None),
            (None, b"all"),
            (b"key", b"copied"),
        ]
        assert [(h.name, h.value) for h in read[3].headers] == headers
        assert read[3].timestamp_ms == 42
        assert read[0].timestamp_ms == read[0].append_time_ms == bed.cluster.now_ms
        assert topic.partitions[0].next_offset == 5

    in_process(story)


def test_what_cannot_be_a_record_is_refused_at_once() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed)
        with pytest.raises(TypeError):
            producer.send("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            producer.send(b"", key="text")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="reserved"):
            producer.send(b"", headers=[("quorumq-dead-letter-reason", b"")])
        with pytest.raises(errors.InvalidRequest):
            producer.send(b"", dedup_id="x" * 201)
        await producer.close()
        assert topic.partitions[0].next_offset == 0

    in_process(story)


def test_zstd_on_request_where_it_is_worth_it() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, compression="zstd")
        client = await bed.client()
        noise = bed.rng.randbytes(1000)
        for value in (b"same " * 1000, noise):
            await producer.send_and_wait(value)
        squeezed, plain = (stored.batch for stored in topic.partitions[0].batches)
        assert squeezed.codec == records_pb2.CODEC_ZSTD
        assert squeezed.features == 1 << records_pb2.FEATURE_COMPRESSION
        assert len(squeezed.compressed) < 200 < 5000 < squeezed.uncompressed_bytes
        assert plain.WhichOneof("body") == "records"
        read = [record.value async for record in client.reader("t", follow=False)]
        assert read == [b"same " * 1000, noise]

    in_process(story)


def test_a_dedup_id_is_stored_once_whoever_sends_it() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed)
        client = await bed.client()
        first = producer.send(b"a", dedup_id="id 1")
        other = producer.send(b"b", dedup_id="id 2")
        again = producer.send(b"a", dedup_id="id 1")
        await producer.flush()
        assert first.result().offset == again.result().offset == 0
        assert (first.result().duplicate, again.result().duplicate) == (False, True)
        assert other.result().offset == 1
        bed.cluster.faults.lose_answers = 1
        async with client.producer("t") as second:
            repeated = await second.send_and_wait(b"b", dedup_id="id 2")
        assert (repeated.offset, repeated.duplicate) == (1, True)
        assert topic.partitions[0].values() == [b"a", b"b"]

    in_process(story)


def test_options_that_make_no_sense() -> None:
    async def story(bed: Bed) -> None:
        client = await bed.client()
        for options in (
            {"compression": "gzip"},
            {"in_flight_max": 0},
            {"in_flight_max": 65},
            {"name": "n", "idempotent": False},
            {"batch_bytes_max": 0},
            {"batch_bytes_max": 2000, "buffer_bytes_max": 1000},
        ):
            with pytest.raises(ValueError):  # noqa: PT011
                client.producer("t", **options)  # type: ignore[arg-type]

    in_process(story)
