"""Followers, and so their readers, are never far behind a commit; a busy partition pays nothing."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from tests.simulation.cluster import SimCluster
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import Writer, with_topic

HOP_MS_MAX = 1.0  # of the simulated network


async def with_leader(random: Random) -> tuple[SimCluster, int]:
    cluster, group_id = await with_topic(random)
    await cluster.until(lambda: cluster.leader(group_id), "a leader")
    await asyncio.sleep(5.0)
    return cluster, group_id


@pytest.mark.parametrize("seed", range(3))
def test_a_record_of_a_quiet_partition_is_soon_at_all_replicas(seed: int) -> None:
    async def story(random: Random) -> None:
        cluster, group_id = await with_leader(random)
        for number in range(1, 4):
            await Writer(cluster, group_id, number).write(1)
            leader = cluster.leader(group_id)
            assert leader is not None
            committed = leader.group.applied_index
            await asyncio.sleep((5.0 + 3 * HOP_MS_MAX) / 1000)  # heartbeats come every 100 ms
            applied = [local.group.applied_index for local in cluster.replicas(group_id)]
            assert applied == [committed] * 3
            await asyncio.sleep(random.uniform(0.2, 0.4))
        await cluster.close()

    run_simulation(story, seed=seed)


def test_a_busy_partition_announces_nothing() -> None:
    async def story(random: Random) -> None:
        cluster, group_id = await with_leader(random)
        began, delivered = asyncio.get_running_loop().time(), cluster.network.delivered
        await Writer(cluster, group_id, 1).write(200)
        seconds = asyncio.get_running_loop().time() - began
        assert seconds / 200 < 0.005, "the writer is busy"
        messages = cluster.network.delivered - delivered
        # Two appends and two answers a record, and beats between three nodes ten times a second.
        assert messages < 4 * 200 + 6 * (seconds * 10 + 2) * 2
        await cluster.close()

    run_simulation(story, seed=1)
