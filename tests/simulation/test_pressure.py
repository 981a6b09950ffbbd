"""Rule R19 on replicas that follow: a node whose disk is behind takes no entries, from a leader nor
from a checkpoint, until it has caught up; the others go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

from tests.simulation.cluster import SimCluster
from tests.simulation.damage import replica_of
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import (
    Writer,
    agreed,
    check_exactly_once,
    first_group,
    with_topic,
)


async def following(cluster: SimCluster, group_id: int) -> int:
    """A node that follows the group."""
    await cluster.until(lambda: cluster.leader(group_id), "a leader")
    leader = cluster.leader(group_id)
    return next(n for n in cluster.nodes if replica_of(cluster.nodes[n], group_id) is not leader)


def test_r19_a_follower_under_pressure_takes_no_entries() -> None:
    async def story(random: Random) -> None:
        cluster, group_id = await with_topic(random)
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
        cluster, group_id = await with_topic(random)
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


@pytest.mark.parametrize("seed", range(3))
def test_r19_many_groups_do_not_flood_a_node_that_was_away(seed: int) -> None:
    """What they have for it together is far more than may be on the way at a time."""

    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        host = replace(cluster.options.host, posted_bytes_max=2_000)
        cluster.options = replace(cluster.options, host=host)
        await cluster.start()
        await cluster.create_topic("default/t", partitions=6)
        first = first_group(cluster, "default/t")
        writers = {first + i: Writer(cluster, first + i, 1) for i in range(6)}
        away = 1
        cluster.network.isolate(away, cluster.nodes)
        for writer in writers.values():
            await writer.write(60)
        cluster.network.heal()
        sent_most = 0
        while any(not is_level(cluster, group_id) for group_id in writers):
            hosts = [broker.host for broker in cluster.brokers() if broker.host.node_id != away]
            sent_most = max(sent_most, *(h.transport.unsent_bytes(away) for h in hosts))
            await asyncio.sleep(0.0005)
        assert sent_most < 4 * 2_000, "entries, and what is around them"
        for group_id, writer in writers.items():
            await agreed(cluster, group_id)
            check_exactly_once(cluster, group_id, [writer])
        await cluster.close()

    run_simulation(story, seed=seed)


def is_level(cluster: SimCluster, group_id: int) -> bool:
    replicas = cluster.replicas(group_id)
    return len(replicas) == 3 and len({local.group.applied_index for local in replicas}) == 1


def test_r19_a_catch_up_waits_for_the_disk_of_its_reader() -> None:
    async def story(random: Random) -> None:
        cluster, group_id = await with_topic(random)
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
