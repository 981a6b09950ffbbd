"""failover: SIGKILL the leader of a partition and send it a record at once: how long until that is
acknowledged, counted from before the kill. All partitions get a record every 20 ms meanwhile. The
node is started again and all replicas are in sync before the next kill."""

from __future__ import annotations

from time import perf_counter

from bench.health import whole
from bench.latencies import Latencies
from bench.load import SteadyLoad
from bench.setup import Result, Setup
from quorumq import Client, Producer

TOPIC = "bench-failover"
PARTITIONS = 6
RECORD_BYTES = 100
KILLS = 30
_INTERVAL_S = 0.020 / PARTITIONS


async def run(setup: Setup) -> Result:
    kills = setup.kills or KILLS
    latencies, began = Latencies(), perf_counter()
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
                for number in range(kills):
                    latencies.add(await _kill(setup, client, producer, number % PARTITIONS))
                    await whole(client, TOPIC)
    return Result(
        perf_counter() - began,
        latencies.figures(),
        {
            "kills": kills,
            "partitions": PARTITIONS,
            "replication_factor": setup.replication_factor,
            "record_bytes": RECORD_BYTES,
            "records_per_s": round(1 / _INTERVAL_S),
        },
        load.failures,
    )


async def _kill(setup: Setup, client: Client, producer: Producer, partition: int) -> float:
    """Seconds without an acknowledgement of the partition. The node runs again then, and is not
    in sync yet."""
    topic = (await client.admin.metadata(TOPIC)).topics[0]
    leader = topic.partitions[partition].leader.node_id
    began = perf_counter()
    await setup.cluster.kill(leader)
    await producer.send_and_wait(b"after the kill", partition=partition)
    seconds = perf_counter() - began
    await setup.cluster.start(leader)
    await setup.cluster.ready(leader)
    return seconds
