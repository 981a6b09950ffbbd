"""The producer: buffer, flush, close, and the futures of its records."""

from __future__ import annotations

import asyncio

import pytest

import quorumq
from quorumq import errors
from tests.client_bed.model import Refused, Topic
from tests.client_bed.worlds import Bed, in_process


async def _started(bed: Bed, **options: object) -> tuple[Topic, quorumq.Producer]:
    topic = bed.cluster.create("t", 1)
    client = await bed.client()
    return topic, await client.producer("t", **options).start()  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- buffer


def test_a_full_buffer_refuses_and_ready_waits_for_half_of_it() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, buffer_bytes_max=1000, batch_bytes_max=100)
        bed.cluster.move_leader("t", 0, None)
        for _ in range(10):
            producer.send(bytes(100))  # 104 bytes in the buffer, which may be exceeded by the last
        with pytest.raises(errors.BufferFull) as caught:
            producer.send(b"")
        assert caught.value.retriable
        assert caught.value.outcome_known
        async with asyncio.TaskGroup() as tasks:
            room = tasks.create_task(producer.ready())
            one_more = tasks.create_task(producer.send_and_wait(b"last"))
            await asyncio.sleep(1.0)
            assert not room.done()
            assert not one_more.done()
            bed.elect(1)
        await producer.close()
        assert topic.partitions[0].next_offset == 11

    in_process(story)


def test_ready_lets_the_loop_run() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, batch_bytes_max=1000)

        async def send_without_pause() -> None:
            while topic.partitions[0].next_offset < 1000:
                producer.send(bytes(100))
                await producer.ready()

        await asyncio.wait_for(send_without_pause(), 1.0)

    in_process(story)


def test_who_waits_for_room_learns_that_the_producer_stopped() -> None:
    async def story(bed: Bed) -> None:
        _, producer = await _started(bed, buffer_bytes_max=1000, batch_bytes_max=1000)
        bed.cluster.move_leader("t", 0, None)
        producer.send(bytes(1000))
        async with asyncio.TaskGroup() as tasks:
            room = tasks.create_task(_error_of(producer.ready()))
            await asyncio.sleep(0.1)
            producer.abort()
        assert isinstance(room.result(), errors.Closed)

    in_process(story)


async def _error_of(waiting: object) -> BaseException | None:
    try:
        await waiting  # type: ignore[misc]
    except errors.QuorumqError as error:
        return error
    return None


# ------------------------------------------------------------------------------- flush and close


def test_flush_does_not_wait_for_the_linger() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, linger_ms=60_000)
        future = producer.send(b"")
        await producer.flush()
        assert future.done()
        assert asyncio.get_running_loop().time() < 1.0
        assert topic.partitions[0].next_offset == 1
        await producer.flush()  # nothing to do

    in_process(story)


def test_flush_raises_what_nobody_has_read_once() -> None:
    async def story(bed: Bed) -> None:
        _, producer = await _started(bed, idempotent=False)
        refuse = bed.cluster.faults.refuse

        refuse.append(Refused("MALFORMED_BATCH", "unread"))
        producer.send(b"")
        with pytest.raises(errors.InvalidRequest, match="unread"):
            await producer.flush()
        await producer.flush()

        refuse.append(Refused("MALFORMED_BATCH", "read"))
        future = producer.send(b"")
        with pytest.raises(errors.InvalidRequest, match="read"):
            await future
        await producer.flush()

        refuse.append(Refused("MALFORMED_BATCH", "at close"))
        producer.send(b"")
        with pytest.raises(errors.InvalidRequest, match="at close"):
            await producer.close()

    in_process(story)


def test_ids_that_were_stored_leave_room_for_failures_to_be_told() -> None:
    async def story(bed: Bed) -> None:
        _, producer = await _started(bed, idempotent=False)
        for number in range(1100):
            await producer.send_and_wait(b"", dedup_id=str(number))
        bed.cluster.faults.refuse.append(Refused("MALFORMED_BATCH", "unread"))
        producer.send(b"")
        with pytest.raises(errors.InvalidRequest, match="unread"):
            await producer.flush()

    in_process(story)


def test_close_sends_what_is_there_and_then_takes_no_more() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, linger_ms=60_000)
        futures = [producer.send(b"%d" % number) for number in range(10)]
        await producer.close()
        assert [future.result().offset for future in futures] == list(range(10))
        assert topic.partitions[0].next_offset == 10
        assert producer.closed
        with pytest.raises(errors.Closed):
            producer.send(b"")
        with pytest.raises(errors.Closed):
            await producer.ready()
        await producer.close()

    in_process(story)


def test_nothing_is_taken_before_the_start() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("t", 1)
        client = await bed.client()
        producer = client.producer("t")
        for refused in (producer.send_and_wait(b""), producer.ready(), producer.flush()):
            with pytest.raises(errors.Closed, match="not started"):
                await refused
        assert await producer.start() is await producer.start() is producer
        producer.abort()
        with pytest.raises(errors.Closed):
            await producer.start()

    in_process(story)


def test_abort_tells_what_was_never_sent_from_what_is_in_doubt() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, in_flight_max=1)
        bed.cluster.move_leader("t", 0, None)  # requests are held
        sent = producer.send(b"sent")
        await asyncio.sleep(0.1)
        unsent = producer.send(b"unsent")
        producer.abort()
        assert isinstance(sent.exception(), errors.OutcomeUnknown)
        assert isinstance(unsent.exception(), errors.NotSent)
        assert not sent.exception().outcome_known  # type: ignore[union-attr]
        assert unsent.exception().outcome_known  # type: ignore[union-attr]
        bed.elect(0)
        await asyncio.sleep(20.0)
        assert b"unsent" not in topic.partitions[0].values()

    in_process(story)


def test_a_block_that_raises_aborts() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed)
        with pytest.raises(KeyError):
            await _send_and_fail(producer, sent := [])
        assert isinstance(sent[0].exception(), errors.NotSent)
        await asyncio.sleep(1.0)
        assert topic.partitions[0].next_offset == 0

    async def _send_and_fail(producer: quorumq.Producer, sent: list[quorumq.RecordFuture]) -> None:
        async with producer:
            sent.append(producer.send(b"never"))
            raise KeyError("the program's own")

    in_process(story)


# ------------------------------------------------------------------------------ records' futures


def test_a_future_can_be_asked_or_awaited_by_many() -> None:
    async def story(bed: Bed) -> None:
        _, producer = await _started(bed)
        future = producer.send(b"")
        assert not future.done()
        with pytest.raises(asyncio.InvalidStateError):
            future.result()
        called: list[quorumq.RecordFuture] = []
        future.add_done_callback(called.append)

        async def wait() -> quorumq.RecordMetadata:
            return await future

        async with asyncio.TaskGroup() as tasks:
            impatient = tasks.create_task(wait())
            first, second = tasks.create_task(wait()), tasks.create_task(wait())
            await asyncio.sleep(0)
            impatient.cancel()
        assert impatient.cancelled()
        assert first.result() == second.result() == future.result()
        assert future.done()
        assert future.exception() is None
        future.add_done_callback(called.append)
        await asyncio.sleep(0.001)
        assert called == [future, future]
        assert await asyncio.gather(future, future) == [future.result()] * 2

    in_process(story)


def test_failures_nobody_reads_are_no_noise() -> None:
    """The simulated loop fails the test for every exception that reaches its handler."""

    async def story(bed: Bed) -> None:
        _, producer = await _started(bed, idempotent=False)
        bed.cluster.faults.refuse += [Refused("MALFORMED_BATCH") for _ in range(10)]
        for _ in range(10):
            producer.send(b"")
            await asyncio.sleep(0.1)
        producer.abort()

    in_process(story)
