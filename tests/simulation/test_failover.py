"""How long partitions are without a leader when a node ends: virtual time, so figures are exact."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from cluster.group import Group
from cluster.raft.messages import AppendEntriesReply
from cluster.tasks import TaskGroup
from tests.simulation.cluster import SimCluster
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import Writer

PARTITIONS = 100


async def led_by(cluster: SimCluster, groups: tuple[int, ...]) -> dict[int, int]:
    """The node that leads each group; waits until each is led."""
    await cluster.until(lambda: all(cluster.leader(g) for g in groups), "leaders of all groups")
    found = {}
    for group_id in groups:
        local = cluster.leader(group_id)
        assert local is not None
        found[group_id] = cluster.brokers()[0].host.peers.node_of(local.group.replica_id)
    return found


async def time_without_leader(cluster: SimCluster, *, vanish: bool, busy: bool) -> float:
    """Seconds until all of a lost node's groups are led by others. `busy`: all of them are being
    written to, so that their replicas are not equally far."""
    await cluster.create_topic("default/t", partitions=PARTITIONS)
    row = cluster.brokers()[0].controller.catalog.topic_by_name("default/t")
    assert row is not None
    leaders = await led_by(cluster, row.group_ids)
    victim = cluster.random.choice(sorted(set(leaders.values())))
    lost = [group_id for group_id, node_id in leaders.items() if node_id == victim]
    assert len(lost) > PARTITIONS // 6, f"{len(lost)} led by node {victim}"
    await asyncio.sleep(5.0)  # the groups have stopped their clocks by now
    async with TaskGroup("writers") as tasks:
        if busy:
            for number, group_id in enumerate(lost, start=1):
                writer = Writer(cluster, group_id, number)
                tasks.start(writer.write(1_000_000), name=f"writer-{number}")
            await asyncio.sleep(cluster.random.uniform(0.1, 0.2))
        if vanish:
            cluster.network.isolate(victim, cluster.nodes)
        else:
            await cluster.nodes[victim].crash()
        begun = asyncio.get_running_loop().time()
        others = [broker for broker in cluster.brokers() if broker.me.node_id != victim]
        found = [broker.partitions.get(group_id) for group_id in lost for broker in others]
        replicas = [local for local in found if local is not None]

        def led_again() -> bool:
            return sum(local.group.is_leader for local in replicas) == len(lost)

        await cluster.until(led_again, "new leaders")
        tasks.cancel()
    return asyncio.get_running_loop().time() - begun


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_node_is_replaced_at_once(seed: int, *, busy: bool) -> None:
    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        await cluster.start()
        took = await time_without_leader(cluster, vanish=False, busy=busy)
        assert took < 0.7, f"a group was without a leader for {took:.3f} s"
        await cluster.close()

    run_simulation(story, seed=seed)


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_node_that_falls_silent_is_replaced_after_an_election_timeout(
    seed: int, *, busy: bool
) -> None:
    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        await cluster.start()
        took = await time_without_leader(cluster, vanish=True, busy=busy)
        assert took < 1.2, f"a group was without a leader for {took:.3f} s"
        cluster.network.heal()
        await cluster.close()

    run_simulation(story, seed=seed)


def test_a_reluctant_node_is_given_no_leadership() -> None:
    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        await cluster.start()
        await cluster.create_topic("default/t", partitions=30)
        row = cluster.brokers()[0].controller.catalog.topic_by_name("default/t")
        assert row is not None
        leaders = await led_by(cluster, row.group_ids)
        victim, unwilling, willing = random.sample(sorted(cluster.nodes), 3)
        lost = [group_id for group_id, node_id in leaders.items() if node_id == victim]
        broker = cluster.nodes[unwilling].broker
        assert broker is not None
        broker.host.set_reluctant(True)
        await asyncio.sleep(0.05)  # the others hear of it
        await cluster.nodes[victim].stop()
        leaders = await led_by(cluster, row.group_ids)
        assert {leaders[group_id] for group_id in lost} == {willing}
        cluster.nodes[victim].start()
        await asyncio.sleep(60.0)  # many rounds of balancing
        before = [group_id for group_id, node_id in leaders.items() if node_id == unwilling]
        now = await led_by(cluster, row.group_ids)
        assert {g for g, node_id in now.items() if node_id == unwilling} <= set(before)
        await cluster.close()

    run_simulation(story, seed=5)


@pytest.mark.parametrize("seed", range(3))
def test_reluctant_nodes_lead_when_nobody_else_can(seed: int) -> None:
    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        await cluster.start()
        await cluster.create_topic("default/t", partitions=30)
        row = cluster.brokers()[0].controller.catalog.topic_by_name("default/t")
        assert row is not None
        leaders = await led_by(cluster, row.group_ids)
        victim, *others = random.sample(sorted(cluster.nodes), 3)
        for node_id in others:
            broker = cluster.nodes[node_id].broker
            assert broker is not None
            broker.host.set_reluctant(True)
        await asyncio.sleep(0.2)
        await cluster.nodes[victim].crash()
        begun = asyncio.get_running_loop().time()
        leaders = await led_by(cluster, row.group_ids)
        took = asyncio.get_running_loop().time() - begun
        assert set(leaders.values()) <= set(others)
        assert took < 0.7, f"a group was without a leader for {took:.3f} s"
        await cluster.close()

    run_simulation(story, seed=seed)


def test_a_reluctant_replica_leaves_the_first_word_to_the_others() -> None:
    """Also where no node is lost and only this group's leader is not heard any more."""

    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        await cluster.start()
        await cluster.create_topic("default/t", partitions=20)
        row = cluster.brokers()[0].controller.catalog.topic_by_name("default/t")
        assert row is not None
        leaders = await led_by(cluster, row.group_ids)
        unwilling = random.choice(sorted(cluster.nodes))
        broker = cluster.nodes[unwilling].broker
        assert broker is not None
        broker.host.set_reluctant(True)
        moved = [group_id for group_id, node_id in leaders.items() if node_id != unwilling]
        for group_id in moved:
            local = cluster.leader(group_id)
            assert local is not None
            local.group.step(_of_a_newer_term(local.group))
        await cluster.until(
            lambda: all(cluster.leader(g) is not None for g in row.group_ids), "leaders again"
        )
        leaders = await led_by(cluster, row.group_ids)
        assert unwilling not in {leaders[group_id] for group_id in moved}
        await cluster.close()

    run_simulation(story, seed=5)


def _of_a_newer_term(group: Group) -> AppendEntriesReply:
    """What makes a leader step down and go on as a follower like all others."""
    other = next(voter for voter in group.configuration.voters if voter != group.replica_id)
    return AppendEntriesReply(other, group.replica_id, group.term + 1, False, 0)
