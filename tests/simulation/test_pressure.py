"""Rule R19 on replicas that follow: a node whose disk is behind takes no entries, from a leader nor
from a checkpoint, until it has caught up; the others go on."""

from __future__ import annotations

import asyncio
from random import Random

from tests.simulation.cluster import SimCluster
from tests.simulation.damage import replica_of
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import Writer, agreed, check_exactly_once, first_group


async def following(cluster: SimCluster, group_id: int) -> int:
    """A node that follows the group."""
    await cluster.until(lambda: cluster.leader(group_id), "a leader")
    leader = cluster.leader(group_id)
    return next(n for n in cluster.nodes if replica_of(cluster.nodes[n], group_id) is not leader)


def test_r19_a_follower_under_pressure_takes_no_entries() -> None:
    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        await cluster.start()
        await cluster.create_topic("default/t", partitions=1)
        group_id = first_group(cluster, "default/t")
        writer = Writer(cluster, group_id, 1)
        await writer.write(5)
        await agreed(cluster, group_id)
        node = cluster.nodes[await following(cluster, group_id)]
        following_group = replica_of(node, group_id).group
        last, term = following_group.last_index, following_group.term
        node.engine.pressure = 1.0
        more = Writer(cluster, group_id, 2)
        await more.write(30)
        await asyncio.sleep(5.0)
        assert following_group.last_index == last
        assert following_group.term == term, "it hears its leader all the same"
        node.engine.pressure = 0.0
        await agreed(cluster, group_id)
        check_exactly_once(cluster, group_id, [writer, more])
        await cluster.close()

    run_simulation(story, seed=1)


def test_r19_nothing_commits_while_two_of_three_are_under_pressure() -> None:
    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        await cluster.start()
        await cluster.create_topic("default/t", partitions=1)
        group_id = first_group(cluster, "default/t")
        await Writer(cluster, group_id, 1).write(5)
        for node in cluster.nodes.values():
            node.engine.pressure = 1.0
        writer = Writer(cluster, group_id, 2)
        writing = asyncio.ensure_future(writer.write(3))
        await asyncio.sleep(10.0)
        assert writer.acked == []
        for node in cluster.nodes.values():
            node.engine.pressure = 0.0
        await writing
        await agreed(cluster, group_id)
        await cluster.close()

    run_simulation(story, seed=2)


def test_r19_a_catch_up_waits_for_the_disk_of_its_reader() -> None:
    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        await cluster.start()
        await cluster.create_topic("default/t", partitions=1)
        group_id = first_group(cluster, "default/t")
        await Writer(cluster, group_id, 1).write(5)
        node = cluster.nodes[await following(cluster, group_id)]
        await node.crash()
        await Writer(cluster, group_id, 2).write(250)
        node.start()
        node.engine.pressure = 1.0
        await cluster.until(lambda: len(cluster.replicas(group_id)) == 3, "its replica")
        before = replica_of(node, group_id).group.checkpoint_index
        await asyncio.sleep(10.0)
        assert replica_of(node, group_id).log.staged_index == 0
        assert replica_of(node, group_id).group.checkpoint_index == before
        node.engine.pressure = 0.0
        await agreed(cluster, group_id)
        await cluster.close()

    run_simulation(story, seed=3)
