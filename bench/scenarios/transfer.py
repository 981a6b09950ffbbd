"""transfer: leaderships are handed over one after the other under a steady load. What counts are
the records of the partition concerned that were under way at any moment from the request until
100 ms after its answer: how much a transfer shows from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

from bench.health import whole
from bench.latencies import Latencies
from bench.load import Sample, SteadyLoad, latencies_of
from bench.setup import Result, Setup
from quorumq import Client, QuorumqError

TOPIC = "bench-transfer"
PARTITIONS = 6
RECORD_BYTES = 100
_INTERVAL_S = 0.010 / PARTITIONS  # each partition gets a record every 10 ms
_EVERY_S = 0.5  # a transfer
_AFTER_S = 0.1


class Transfer(NamedTuple):
    """Seconds of time.perf_counter."""

    partition: int
    began: float
    ended: float


async def run(setup: Setup) -> Result:
    async with setup.client() as client:
        await client.admin.create_topic(
            TOPIC, partitions=PARTITIONS, replication_factor=setup.replication_factor
        )
        await whole(client, TOPIC)
        async with client.producer(TOPIC, linger_ms=0) as producer:
            load = SteadyLoad(
                producer,
                partitions=PARTITIONS,
                interval_s=_INTERVAL_S,
                record_bytes=RECORD_BYTES,
            )
            async with load.running():
                await asyncio.sleep(setup.warmup_s)
                async with setup.measured() as usage:
                    began = perf_counter()
                    transfers, failed = await _transfers(client, began + setup.seconds)
                    seconds = perf_counter() - began
    return Result(
        seconds,
        {
            "transfers": len(transfers),
            "transfers_failed": failed,
            **latencies_of(around(transfers, load.samples)).figures(),
            "all_p50_ms": latencies_of(load.samples).figures()["p50_ms"],
            "transfer_p50_ms": _durations(transfers).figures()["p50_ms"],
            "transfer_max_ms": _durations(transfers).figures()["max_ms"],
            **usage,
        },
        {
            "partitions": PARTITIONS,
            "replication_factor": setup.replication_factor,
            "record_bytes": RECORD_BYTES,
            "records_per_s": round(1 / _INTERVAL_S),
            "transfers_per_s": 1 / _EVERY_S,
        },
        load.failures + failed,
    )


async def _transfers(client: Client, end: float) -> tuple[list[Transfer], int]:
    """Those that were done until `end`, and how many were refused or given up."""
    done: list[Transfer] = []
    failed = 0
    intended = perf_counter()
    while intended < end:
        await asyncio.sleep(max(0.0, intended - perf_counter()))
        partition = (len(done) + failed) % PARTITIONS
        began = perf_counter()
        try:
            await client.admin.transfer_leader(TOPIC, partition)
        except QuorumqError:
            failed += 1
        else:
            done.append(Transfer(partition, began, perf_counter()))
        intended = max(intended + _EVERY_S, perf_counter())
    return done, failed


def around(transfers: Sequence[Transfer], samples: Sequence[Sample]) -> Iterator[Sample]:
    """Samples of a transfer's partition that were under way during it or soon after, each once."""
    by_partition: dict[int, list[Transfer]] = {}
    for transfer in transfers:
        by_partition.setdefault(transfer.partition, []).append(transfer)
    for sample in samples:
        if any(
            sample.answered >= transfer.began and sample.intended <= transfer.ended + _AFTER_S
            for transfer in by_partition.get(sample.partition, ())
        ):
            yield sample


def _durations(transfers: Sequence[Transfer]) -> Latencies:
    durations = Latencies()
    for transfer in transfers:
        durations.add(transfer.ended - transfer.began)
    return durations
