"""backlog: 1 GB is stored, then one reads it slowly from the start while another produces: what a
node needs in memory. The largest that was seen counts, storing included."""

from __future__ import annotations

import asyncio
from time import perf_counter

from bench.filling import fill
from bench.load import SteadyLoad, latencies_of
from bench.setup import Result, Setup, metered
from quorumq import Reader

TOPIC = "bench-backlog"
PARTITIONS = 6
RECORDS = 1_000_000
RECORD_BYTES = 1_000
READ_BYTES_A_SECOND = 5_000_000
PRODUCED_A_SECOND = 2_000


async def run(setup: Setup) -> Result:
    records = round(RECORDS * setup.scale)
    async with setup.client() as client:
        await client.admin.create_topic(
            TOPIC, partitions=PARTITIONS, replication_factor=setup.replication_factor
        )
        async with metered(setup.cluster) as storing:
            began = perf_counter()
            await fill(
                client,
                TOPIC,
                records=records,
                record_bytes=RECORD_BYTES,
                batch_bytes_max=256 << 10,
            )
            stored_s = perf_counter() - began
        async with client.producer(TOPIC) as producer, client.reader(TOPIC) as reader:
            load = SteadyLoad(
                producer,
                partitions=PARTITIONS,
                interval_s=1 / PRODUCED_A_SECOND,
                record_bytes=RECORD_BYTES,
            )
            async with load.running():
                await _read_slowly(reader, setup.warmup_s)
                async with setup.measured() as usage:
                    began = perf_counter()
                    read = await _read_slowly(reader, setup.seconds)
                    seconds = perf_counter() - began
    figures = {
        **latencies_of(load.samples).figures(),
        "stored_mb_per_s": round(records * RECORD_BYTES / stored_s / 1e6, 1),
        "read_mb_per_s": round(read * RECORD_BYTES / seconds / 1e6, 1),
        **usage,
        "storing_rss_mb": storing.get("rss_mb"),
        "reading_rss_mb": usage.get("rss_mb"),
    }
    if "rss_mb" in usage:
        figures["rss_mb"] = max(storing["rss_mb"], usage["rss_mb"])
    return Result(
        seconds,
        figures,
        {
            "stored_mb": round(records * RECORD_BYTES / 1e6),
            "record_bytes": RECORD_BYTES,
            "partitions": PARTITIONS,
            "replication_factor": setup.replication_factor,
            "read_bytes_a_second": READ_BYTES_A_SECOND,
            "produced_records_a_second": PRODUCED_A_SECOND,
        },
        load.failures,
    )


async def _read_slowly(reader: Reader, seconds: float) -> int:
    """How many records were read; fewer than the pace allows only if they came slower."""
    began = perf_counter()
    count = 0
    try:
        async with asyncio.timeout(seconds):
            async for batch in reader.batches():
                count += len(batch)
                due = began + count * RECORD_BYTES / READ_BYTES_A_SECOND
                await asyncio.sleep(max(0.0, due - perf_counter()))
    except TimeoutError:
        pass
    return count
