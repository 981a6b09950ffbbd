"""Rule R10 on whole nodes: a replica that fell behind the others' logs is brought up to date by
a checkpoint, whatever happens to the fetch; and how many are fetched at a time is bounded (R19)."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from cluster.interfaces import CatchUpRequest, PeerError
from cluster.snapshot import CatchUpServer
from tests.simulation.cluster import SimCluster
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import Writer, agreed, first_group

BEHIND = 250  # records; the logs keep about 100 for laggards in these clusters


async def one_behind(random: Random) -> tuple[SimCluster, int]:
    """A cluster whose node 3 was down while BEHIND records were written to the only group of a
    topic, until no log serves it any more."""
    cluster = SimCluster(random)
    await cluster.start()
    await cluster.create_topic("default/t", partitions=1)
    group_id = first_group(cluster, "default/t")
    await Writer(cluster, group_id, 1).write(5)
    stopped_at = max(local.group.last_index for local in cluster.replicas(group_id))
    await cluster.nodes[3].crash()
    await Writer(cluster, group_id, 2).write(BEHIND)
    first = [local.group.log.first_index for local in cluster.replicas(group_id)]
    assert min(first) > stopped_at + 1, f"logs from {first} still serve {stopped_at}"
    return cluster, group_id


def caught_up(cluster: SimCluster, group_id: int) -> bool:
    broker = cluster.nodes[3].broker
    local = broker.partitions.get(group_id) if broker is not None else None
    return local is not None and local.group.checkpoint_index > 5


@pytest.mark.parametrize("seed", range(4))
def test_r10_a_broken_catch_up_goes_on_until_it_is_done(seed: int) -> None:
    """Bug class 32: snapshots that break must neither wedge the replica nor leave half of one."""

    async def story(random: Random) -> None:
        cluster, group_id = await one_behind(random)
        cluster.network.faults.catch_up_break = 0.4
        cluster.nodes[3].start()
        await cluster.until(lambda: caught_up(cluster, group_id), "a catch-up")
        cluster.network.faults.catch_up_break = 0.0
        await agreed(cluster, group_id)
        await cluster.close()

    run_simulation(story, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_r10_a_crash_during_a_catch_up_leaves_the_old_replica_or_the_new_one(seed: int) -> None:
    """Bug class 18: a crash in the middle of an installation, at either end."""

    async def story(random: Random) -> None:
        cluster, group_id = await one_behind(random)
        for _ in range(4):
            cluster.nodes[3].start()
            await asyncio.sleep(random.uniform(0.05, 0.8))
            if random.random() < 0.4:
                other = cluster.nodes[random.choice((1, 2))]
                await other.crash()
                other.start()
            await cluster.nodes[3].crash()
        cluster.nodes[3].start()
        await agreed(cluster, group_id)
        await cluster.close()

    run_simulation(story, seed=seed)


def test_r10_catch_ups_served_at_a_time_are_bounded() -> None:
    """The one that finds no place is told BUSY and tries again (rule R19)."""

    async def story(random: Random) -> None:
        cluster, group_id = await one_behind(random)
        local = cluster.leader(group_id)
        assert local is not None
        group = local.group
        (host,) = [b.host for b in cluster.brokers() if b.partitions.get(group_id) is local]
        server = CatchUpServer(group.engine, served_max=1, chunk_bytes=100, mend=host.mend)
        request = CatchUpRequest(
            group_id=group_id,
            from_replica=group.replica_id,
            to_replica=99,
            applied_index=0,
            staged_index=0,
        )
        first = server.serve(group, request)
        await anext(first)
        with pytest.raises(PeerError, match="BUSY"):
            await anext(server.serve(group, request))
        async for _ in first:
            pass
        await anext(server.serve(group, request))
        await cluster.close()

    run_simulation(story, seed=1)
