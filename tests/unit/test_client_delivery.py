"""A producer in trouble: order and exactly once through changes of leader, lost answers, refusals
and silence."""

from __future__ import annotations

import asyncio

import pytest

import quorumq
from quorumq import errors
from tests.client_bed.model import Refused, Topic
from tests.client_bed.worlds import Bed, Run, both_worlds, in_process


async def _started(
    bed: Bed, partitions: int = 1, **options: object
) -> tuple[Topic, quorumq.Producer]:
    topic = bed.cluster.create("t", partitions)
    client = await bed.client()
    return topic, await client.producer("t", **options).start()  # type: ignore[arg-type]


def _now() -> float:
    return asyncio.get_running_loop().time()


# ---------------------------------------------------------------------------- leaders, lost answers


@both_worlds
def test_a_lost_answer_is_asked_for_again_and_nothing_is_stored_twice(run: Run) -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed)
        bed.cluster.faults.lose_answers = 2
        metadata = await producer.send_and_wait(b"once")
        assert (metadata.offset, metadata.duplicate) == (0, True)
        assert bed.cluster.faults.produced == 3
        assert topic.partitions[0].values() == [b"once"]
        assert not (await producer.send_and_wait(b"next")).duplicate

    run(story)


@both_worlds
def test_order_is_kept_through_changes_of_leader(run: Run) -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, partitions=2, batch_bytes_max=50)
        for number in range(200):
            producer.send(b"%d" % number, partition=number % 2)
            if number % 20 == 0:
                bed.cluster.move_leader("t", number // 20 % 2, bed.world.endpoint(number // 20 % 3))
            if number == 100:
                await bed.kill(1, new_leader=2)
            await producer.ready()
        await producer.close()
        for number in range(2):
            assert topic.partitions[number].values() == [b"%d" % n for n in range(number, 200, 2)]

    run(story)


def test_a_killed_leader_delays_what_it_leads_for_no_longer_than_the_election() -> None:
    async def story(bed: Bed) -> None:
        _, producer = await _started(bed)
        await producer.send_and_wait(b"")
        future = producer.send(b"")
        await bed.kill(0)
        await asyncio.sleep(1.0)
        bed.elect(1)
        begin = _now()
        await future
        assert _now() - begin < 0.01  # another node held it meanwhile

    in_process(story)


def test_one_partition_without_leader_does_not_hold_up_the_others() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, partitions=3, batch_bytes_max=20, in_flight_max=4)
        bed.cluster.move_leader("t", 0, None)
        stuck = [producer.send(bytes(10), partition=0) for _ in range(20)]
        others = [producer.send(bytes(10), partition=1 + n % 2) for n in range(20)]
        begin = _now()
        for future in others:
            await future
        assert _now() - begin < 0.1
        assert not any(future.done() for future in stuck)
        bed.elect(0)
        await producer.close()
        assert [partition.next_offset for partition in topic.partitions] == [20, 10, 10]

    in_process(story)


def test_a_leader_that_hangs_is_left_when_there_is_a_newer_one() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed)
        await producer.send_and_wait(b"before")
        bed.cluster.faults.hang.append(bed.world.endpoint(0))
        future = producer.send(b"held by the hanging node")
        await asyncio.sleep(0.5)
        bed.cluster.move_leader("t", 0, bed.world.endpoint(1))
        begin = _now()
        await future
        assert _now() - begin < 4.0
        bed.cluster.faults.hang.clear()  # the old copy lands, and is known
        bed.cluster.changed()
        await producer.send_and_wait(b"after")
        assert topic.partitions[0].values() == [b"before", b"held by the hanging node", b"after"]

    in_process(story)


def test_a_leader_that_hangs_alone_is_given_up_before_the_delivery_timeout() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed)
        await producer.send_and_wait(b"before")
        bed.cluster.faults.hang.append(bed.world.endpoint(0))
        assert (await producer.send_and_wait(b"through another node")).offset == 1
        assert 15.0 < _now() < 20.0
        assert topic.partitions[0].values() == [b"before", b"through another node"]

    in_process(story)


# -------------------------------------------------------------------------------------- refusals


def test_throttled_is_retried_when_the_node_said() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, linger_ms=0)
        await producer.send_and_wait(b"")
        bed.cluster.faults.refuse.append(Refused("THROTTLED", retriable=True, retry_after_ms=700))
        begin = _now()
        first, second = producer.send(b"1"), producer.send(b"2")
        assert (await first).offset == 1
        assert 0.7 <= _now() - begin < 0.71
        assert (await second).offset == 2
        assert bed.cluster.faults.produced == 3
        assert topic.partitions[0].next_offset == 3

    in_process(story)


def test_what_was_sent_behind_a_refused_batch_comes_after_it() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, batch_bytes_max=20)
        await producer.send_and_wait(b"connected")
        bed.cluster.faults.refuse.append(Refused("DISK_FULL", retriable=True))
        for number in range(10):
            producer.send(b"%015d" % number)
        await producer.flush()
        assert topic.partitions[0].values()[1:] == [b"%015d" % number for number in range(10)]

    in_process(story, latency_s=lambda _rng: 0.05)


def test_a_draining_node_is_left_at_once() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed)
        await producer.send_and_wait(b"")
        bed.cluster.faults.draining.append(bed.world.endpoint(0))
        begin = _now()
        await producer.send_and_wait(b"")
        assert _now() - begin < 0.1
        assert topic.partitions[0].next_offset == 2

    in_process(story)


def test_a_request_in_doubt_by_the_nodes_word_is_repeated_under_its_sequence() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed)
        doubt = Refused("OUTCOME_UNKNOWN", retriable=True, outcome_known=False)
        bed.cluster.faults.refuse += [doubt, doubt]
        await producer.send_and_wait(b"once")
        assert topic.partitions[0].values() == [b"once"]

    in_process(story)


# ------------------------------------------------------------------------------ without identity


def test_without_identity_a_lost_answer_is_told_and_nothing_is_repeated() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, idempotent=False)
        bed.cluster.faults.lose_answers = 1
        with pytest.raises(errors.ConnectionLost) as caught:
            await producer.send_and_wait(b"in doubt")
        assert not caught.value.outcome_known
        assert bed.cluster.faults.produced == 1
        assert (await producer.send_and_wait(b"goes on")).offset == 1
        assert topic.partitions[0].values() == [b"in doubt", b"goes on"]

    in_process(story)


def test_without_identity_what_is_certainly_not_stored_is_repeated() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, idempotent=False)
        bed.cluster.faults.refuse.append(Refused("THROTTLED", retriable=True))
        await producer.send_and_wait(b"refused once")
        doubt = Refused("OUTCOME_UNKNOWN", retriable=False, outcome_known=False)
        bed.cluster.faults.refuse.append(doubt)
        with pytest.raises(errors.OutcomeUnknown):
            await producer.send_and_wait(b"in doubt")
        assert topic.partitions[0].values() == [b"refused once"]

    in_process(story)


# ------------------------------------------------------------------------------- delivery timeout


def test_given_up_and_certainly_not_stored_when_no_node_could_be_reached() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, delivery_timeout_ms=3000)
        await producer.send_and_wait(b"before")
        for number in range(3):
            await bed.kill(number)
        future = producer.send(b"never")
        with pytest.raises(errors.DeliveryTimeout) as caught:
            await future
        assert 3.0 <= _now() < 3.5
        assert caught.value.outcome_known
        for number in range(3):
            await bed.restart(number)
        bed.elect(0)
        assert (await producer.send_and_wait(b"after")).offset == 1  # no sequence is missing
        assert topic.partitions[0].values() == [b"before", b"after"]

    in_process(story)


def test_given_up_and_certainly_not_stored_when_it_was_always_refused() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, delivery_timeout_ms=3000)
        refused = Refused("THROTTLED", retriable=True, retry_after_ms=100)
        bed.cluster.faults.refuse += [refused] * 100
        first, second = producer.send(b"never"), producer.send(b"nor this")
        for future in (first, second):
            with pytest.raises(errors.DeliveryTimeout) as caught:
                await future
            assert caught.value.outcome_known
        bed.cluster.faults.refuse.clear()
        await producer.send_and_wait(b"after")
        assert topic.partitions[0].values() == [b"after"]

    in_process(story)


def test_given_up_in_doubt_is_still_stored_before_what_follows() -> None:
    async def story(bed: Bed) -> None:
        topic, producer = await _started(bed, delivery_timeout_ms=3000)
        bed.cluster.faults.hang += [bed.world.endpoint(number) for number in range(3)]
        late = producer.send(b"late")
        with pytest.raises(errors.DeliveryTimeout) as caught:
            await late
        assert not caught.value.outcome_known
        after = producer.send(b"after")
        bed.cluster.faults.hang.clear()
        bed.cluster.changed()
        assert (await after).offset == 1
        assert topic.partitions[0].values() == [b"late", b"after"]
        assert isinstance(late.exception(), errors.DeliveryTimeout)  # what was told stays

    in_process(story)


def test_flush_and_close_end_with_the_delivery_timeout() -> None:
    async def story(bed: Bed) -> None:
        _, producer = await _started(bed, delivery_timeout_ms=2000)
        bed.cluster.faults.hang += [bed.world.endpoint(number) for number in range(3)]
        producer.send(b"")
        with pytest.raises(errors.DeliveryTimeout):
            await producer.close()
        assert 2.0 <= _now() < 2.5

    in_process(story)
