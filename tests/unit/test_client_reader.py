"""The reader: where it begins and ends, what it gives, and where it stands."""

from __future__ import annotations

import asyncio

import pytest

import quorumq
from quorumq import errors
from quorumq.v1 import admin_pb2, records_pb2
from tests.client_bed.model import Topic
from tests.client_bed.worlds import Bed, Run, both_worlds, in_process


async def _filled(
    bed: Bed, counts: list[int], *, compression: str | None = None, batch: int = 10
) -> tuple[Topic, quorumq.Client]:
    """A topic with so many records by partition, `batch` in each batch, a second between them."""
    topic = bed.cluster.create("t", len(counts))
    client = await bed.client()
    async with client.producer("t", compression=compression) as producer:
        for partition, count in enumerate(counts):
            for number in range(count):
                producer.send(b"%d" % number, key=b"k", partition=partition)
                if number % batch == batch - 1:
                    await producer.flush()
                    bed.cluster.now_ms += 1000
    return topic, client


def _values(records: list[quorumq.Record]) -> list[int]:
    return [int(record.value or b"") for record in records]


async def _read(client: quorumq.Client, **options: object) -> list[quorumq.Record]:
    reader = client.reader("t", follow=False, **options)  # type: ignore[arg-type]
    async with reader:
        return [record async for record in reader]


async def _read_into(offsets: list[int], reader: quorumq.Reader) -> None:
    async for record in reader:
        offsets.append(record.offset)


@both_worlds
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_all_that_is_there_each_once_in_order(run: Run, compression: str | None) -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [95, 0, 40], compression=compression)
        read = await _read(client)
        assert _values([r for r in read if r.partition == 0]) == list(range(95))
        assert _values([r for r in read if r.partition == 2]) == list(range(40))
        assert [r.offset for r in read if r.partition == 0] == list(range(95))
        assert len(read) == 135
        assert read[0].key == b"k"
        assert read[0].topic == "t"

    run(story)


@both_worlds
def test_following_gives_what_is_stored_later(run: Run) -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [3, 3])
        async with client.reader("t") as reader, client.producer("t") as producer:
            first = [await anext(reader) for _ in range(6)]
            assert len(first) == 6
            for number in range(10):
                await producer.send_and_wait(b"%d" % number, partition=number % 2)
                assert int((await anext(reader)).value or b"") == number

    run(story)


# --------------------------------------------------------------------------- beginning and end


def test_where_to_begin() -> None:
    async def story(bed: Bed) -> None:
        begin_ms = bed.cluster.now_ms
        topic, client = await _filled(bed, [30, 30])
        one = {"partitions": [0]}
        assert _values(await _read(client, start="earliest", **one)) == list(range(30))
        assert _values(await _read(client, start="latest", **one)) == []
        assert _values(await _read(client, start=13, **one)) == list(range(13, 30))
        assert _values(await _read(client, start=30, **one)) == []
        second_batch = quorumq.Time(begin_ms + 500)
        assert _values(await _read(client, start=second_batch, **one)) == list(range(10, 30))
        never = quorumq.Time(begin_ms + 10**9)
        assert _values(await _read(client, start=never, **one)) == []
        by_partition = await _read(client, start={0: 28, 1: "latest"})
        assert [(r.partition, r.offset) for r in by_partition] == [(0, 28), (0, 29)]
        others_from_the_beginning = await _read(client, start={1: 29})
        assert len(others_from_the_beginning) == 31
        topic.partitions[0].trim(20)
        assert _values(await _read(client, start=13, **one)) == list(range(20, 30))

    in_process(story)


def test_the_end_is_the_one_when_reading_began() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [10])
        async with client.reader("t", follow=False) as reader, client.producer("t") as producer:
            await producer.send_and_wait(b"10")
            assert _values([record async for record in reader]) == list(range(10))
            assert reader.positions == {0: 10}

    in_process(story)


def test_a_count_ends_it_inside_a_batch() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [30])
        reader = client.reader("t", max_records=13)
        assert _values([record async for record in reader]) == list(range(13))
        assert reader.position(0) == 13
        assert [record async for record in reader] == []
        rest = client.reader("t", start=reader.positions, follow=False)
        assert _values([record async for record in rest]) == list(range(13, 30))

    in_process(story)


def test_what_does_not_exist() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [10])
        with pytest.raises(errors.TopicNotFound):
            await anext(client.reader("nothing"))
        for options in ({"partitions": [1]}, {"start": {1: 0}}, {"partitions": [-1]}):
            with pytest.raises(errors.PartitionNotFound):
                await anext(client.reader("t", **options))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="begin at 0"):
            client.reader("t", start=-1)
        with pytest.raises(ValueError, match="begin at 0"):
            client.reader("t", start={0: -1})
        with pytest.raises(ValueError, match="'earliest'"):
            await anext(client.reader("t", start="first"))  # type: ignore[arg-type]

    in_process(story)


@pytest.mark.parametrize("follow", [True, False])
def test_an_offset_beyond_the_end(follow: bool) -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [10, 10])
        reader = client.reader("t", start={0: 11}, follow=follow)
        with pytest.raises(errors.OffsetOutOfRange):
            async for _ in reader:
                pass
        if follow:  # the other partition goes on
            assert (await anext(reader)).partition == 1

    in_process(story)


# ------------------------------------------------------------------------------------- position


def test_the_position_is_behind_the_record_that_was_handed_out_last() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [25, 5])
        reader = client.reader("t", follow=False)
        with pytest.raises(KeyError):
            reader.position(0)
        await reader.start()
        assert reader.positions == {0: 0, 1: 0}
        async for record in reader:
            assert reader.position(record.partition) == record.offset + 1
        assert reader.positions == {0: 25, 1: 5}

    in_process(story)


def test_going_on_from_positions_skips_and_repeats_nothing() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [25, 17, 0])
        positions: dict[int, int] = {}
        read: list[tuple[int, int]] = []
        while len(read) < 42:
            reader = client.reader("t", start=positions, max_records=5, follow=False)
            async with reader:
                read += [(record.partition, record.offset) async for record in reader]
            positions = reader.positions
        assert sorted(read) == [(0, n) for n in range(25)] + [(1, n) for n in range(17)]

    in_process(story)


def test_positions_can_be_kept_in_a_subscription() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [25])
        reader = client.reader("t", max_records=13)
        async for _ in reader:
            pass
        with pytest.raises(errors.NotFound, match="SUBSCRIPTION_NOT_FOUND"):
            await reader.commit("audit")
        stream = admin_pb2.SUBSCRIPTION_KIND_STREAM
        await client.admin.create_subscription("t", "audit", kind=stream)
        await reader.commit("audit", metadata="half-way")
        [position] = (await client.admin.positions("t", "audit")).values()
        assert (position.position, position.metadata, position.end_offset) == (13, "half-way", 25)
        await client.admin.commit("t", "audit", {0: 7})
        assert (await client.admin.positions("t", "audit"))[0].position == 7

    in_process(story)


# -------------------------------------------------------------------------------------- batches


def test_batches_as_they_were_stored() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [25])
        reader = client.reader("t", start=13, follow=False)
        batches = [batch async for batch in reader.batches()]
        assert [len(batch) for batch in batches] == [7, 5]  # the first begins inside
        assert [batch.next_offset for batch in batches] == [20, 25]
        assert list(batches[0].offsets) == list(range(13, 20))
        assert batches[0].values() == [b"%d" % number for number in range(13, 20)]
        assert [record.offset for record in batches[1].records()] == list(range(20, 25))
        assert reader.positions == {0: 25}
        counted = client.reader("t", max_records=11)
        assert [len(batch) async for batch in counted.batches()] == [10, 10]

    in_process(story)


def test_offsets_have_gaps_where_records_are_gone() -> None:
    async def story(bed: Bed) -> None:
        topic, client = await _filled(bed, [40], compression="zstd")
        topic.partitions[0].trim(10, gone=[12, 13, 19, 25])
        expected = [n for n in range(10, 40) if n not in (12, 13, 19, 25)]
        read = await _read(client)
        assert [record.offset for record in read] == _values(read) == expected
        inside = await _read(client, start=12)
        assert [record.offset for record in inside] == expected[2:]
        reader = client.reader("t", max_records=2)
        assert [record.offset async for record in reader] == [10, 11]
        assert reader.position(0) == 14

    in_process(story)


def test_a_whole_batch_that_is_gone_is_passed_over() -> None:
    async def story(bed: Bed) -> None:
        topic, client = await _filled(bed, [30])
        topic.partitions[0].trim(0, gone=range(10, 20))
        reader = client.reader("t", follow=False)
        assert [r.offset async for r in reader] == [*range(10), *range(20, 30)]
        assert reader.position(0) == 30

    in_process(story)


def test_a_bent_batch_is_told_and_passed_over() -> None:
    async def story(bed: Bed) -> None:
        topic, client = await _filled(bed, [30], compression="zstd")
        bent = topic.partitions[0].batches[1].batch
        bent.CopyFrom(
            records_pb2.RecordBatch(
                record_count=10,
                codec=records_pb2.CODEC_ZSTD,
                compressed=b"no zstd",
                uncompressed_bytes=100,
            )
        )
        for start in (0, 15):  # the second one begins inside it
            reader = client.reader("t", start=start, follow=False)
            read: list[int] = []
            with pytest.raises(errors.Corrupt):
                await _read_into(read, reader)
            await _read_into(read, reader)
            assert read == [n for n in range(start, 30) if not 10 <= n < 20]

    in_process(story)


# ---------------------------------------------------------------------------------------- close


def test_a_closed_reader_says_so_also_to_who_is_waiting() -> None:
    async def story(bed: Bed) -> None:
        _, client = await _filled(bed, [0])
        reader = client.reader("t")

        async def wait() -> BaseException | None:
            try:
                await anext(reader)
            except errors.Closed as error:
                return error
            return None

        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait())
            await asyncio.sleep(1.0)
            await reader.close()
        assert isinstance(waiting.result(), errors.Closed)
        with pytest.raises(errors.Closed):
            await anext(reader)
        await reader.close()

    in_process(story)
