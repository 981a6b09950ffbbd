"""The load of the benchmarks: steady whatever the answers do, so that an outage shows as long as it
was."""

from __future__ import annotations

import asyncio

import pytest

from bench.load import Sample, SteadyLoad, latencies_of
from bench.scenarios.transfer import Transfer, around
from quorumq import Producer
from tests.client_bed.worlds import Bed, in_process

_INTERVAL_S = 0.01


def _load(producer: Producer, partitions: int) -> SteadyLoad:
    return SteadyLoad(
        producer,
        partitions=partitions,
        interval_s=_INTERVAL_S,
        record_bytes=100,
        clock=asyncio.get_running_loop().time,
    )


def test_records_go_to_the_partitions_in_turn_at_their_pace() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("t", 3)
        client = await bed.client()
        async with client.producer("t", linger_ms=0) as producer:
            load = _load(producer, 3)
            async with load.running():
                await asyncio.sleep(0.295)
        assert [sample.partition for sample in load.samples] == [0, 1, 2] * 10
        times = [sample.intended for sample in load.samples]
        assert times == pytest.approx([times[0] + _INTERVAL_S * n for n in range(30)])
        assert load.failures == 0

    in_process(story)


def test_an_outage_shows_in_every_record_that_should_have_been_sent_meanwhile() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("t", 1)
        client = await bed.client()
        async with client.producer("t", linger_ms=0) as producer:
            load = _load(producer, 1)
            async with load.running():
                await asyncio.sleep(0.095)
                bed.cluster.move_leader("t", 0, None)
                await asyncio.sleep(1.0)
                bed.cluster.move_leader("t", 0, bed.cluster.endpoints[1])
        late = [s for s in load.samples if s.answered - s.intended > 5 * _INTERVAL_S]
        assert len(late) >= 90  # of the 100 of that second
        figures = latencies_of(load.samples).figures()
        assert figures["max_ms"] >= 950
        assert load.failures == 0

    in_process(story)


def test_records_that_fail_are_counted_and_do_not_end_the_load() -> None:
    async def story(bed: Bed) -> None:
        bed.cluster.create("t", 1)
        client = await bed.client()
        producer = client.producer("t", linger_ms=0, delivery_timeout_ms=100)
        await producer.start()
        load = _load(producer, 1)
        async with load.running():
            bed.cluster.move_leader("t", 0, None)
            await asyncio.sleep(0.3)
            bed.cluster.move_leader("t", 0, bed.cluster.endpoints[1])
        assert load.failures >= 10
        producer.abort()

    in_process(story)


def test_around_a_transfer_are_its_records_under_way_meanwhile_or_soon_after() -> None:
    transfers = [Transfer(0, 10.0, 10.2), Transfer(1, 20.0, 20.1), Transfer(0, 20.0, 20.1)]
    inside = [
        Sample(0, 9.9, 10.0),  # answered just then
        Sample(0, 10.1, 10.4),
        Sample(0, 10.29, 10.5),  # sent soon after
        Sample(0, 9.0, 30.0),  # under way during both: counted once
        Sample(1, 20.05, 20.06),
    ]
    outside = [
        Sample(0, 9.8, 9.99),
        Sample(0, 10.31, 10.4),
        Sample(1, 10.1, 10.2),  # another partition's transfer
        Sample(2, 10.1, 10.2),
    ]
    assert list(around(transfers, [*inside, *outside])) == inside
