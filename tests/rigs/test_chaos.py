"""Random faults on a real three-process cluster under load: nothing lost, repeated or reordered."""

from __future__ import annotations

import asyncio
import os
from random import Random

import pytest

from node.local_cluster import LocalCluster
from quorumq import connect
from tests.rigs.chaos import FAULTS, PARTITIONS, Traffic

SECONDS = int(os.environ.get("QUORUMQ_RIG_SECONDS", "150"))
SEED = int(os.environ.get("QUORUMQ_RIG_SEED", "1"))


@pytest.mark.timeout(SECONDS + 300)
async def test_kills_stops_and_pauses_lose_repeat_and_reorder_nothing() -> None:
    random = Random(SEED)
    loop = asyncio.get_running_loop()
    async with (
        LocalCluster() as cluster,
        await connect(cluster.servers) as client,
        await connect(cluster.servers) as other,
    ):
        await client.admin.create_topic("chaos", partitions=PARTITIONS)
        traffic = Traffic(client, other, "chaos")
        end = loop.time() + SECONDS
        while loop.time() < end:
            await asyncio.sleep(random.uniform(0.5, 3.0))
            fault = random.choice(FAULTS)
            node_id = random.choice(sorted(cluster.nodes))
            print(f"seed {SEED}: {fault.__name__} {node_id}, {len(traffic.history.acked)} acked")
            await fault(cluster, node_id, random)
        await traffic.finish(within_s=120.0)
    traffic.history.check()
