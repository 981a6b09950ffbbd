"""Rules R17 and R18 on whole nodes: what a caller may conclude from how its proposal ended."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from cluster.group import OutcomeUnknown, ProposalLost
from cluster.raft.errors import NotLeader
from node import codec
from node.partition.commands import Append, Appended
from node.partitions import LocalPartition
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import first_group, stored


async def led(random: Random) -> tuple[SimCluster, SimNode, LocalPartition]:
    """A cluster with a topic, and the node that leads its only group."""
    cluster = SimCluster(random)
    await cluster.start()
    await cluster.create_topic("default/t", partitions=1)
    group_id = first_group(cluster, "default/t")
    await cluster.until(lambda: cluster.leader(group_id), "a leader")
    local = cluster.leader(group_id)
    assert local is not None
    node = next(
        node
        for node in cluster.nodes.values()
        if node.broker is not None and node.broker.partitions.get(group_id) is local
    )
    return cluster, node, local


def propose(local: LocalPartition, body: bytes, *, term: int = 0) -> asyncio.Future[object]:
    command = Append(local.replica.stamp(), body, 1, None)
    return local.group.propose(codec.encode_append(command), expected_term=term)


async def led_by_another(cluster: SimCluster, former: LocalPartition) -> LocalPartition:
    group_id = former.group_id
    await cluster.until(lambda: cluster.leader(group_id) not in (None, former), "another leader")
    local = cluster.leader(group_id)
    assert local is not None
    return local


def test_r17_what_was_decided_in_a_former_term_is_refused() -> None:
    """Leadership was given away and came back: what the decision saw may have changed."""

    async def story(random: Random) -> None:
        cluster, _, local = await led(random)
        term = local.group.term
        assert isinstance(await propose(local, b"a", term=term), Appended)
        me = local.group.replica_id
        local.group.transfer_leadership(
            next(v for v in local.group.configuration.voters if v != me)
        )
        other = await led_by_another(cluster, local)
        other.group.transfer_leadership(me)
        assert await led_by_another(cluster, other) is local
        with pytest.raises(NotLeader, match="decided in term"):
            propose(local, b"b", term=term)
        assert [body for _, body in stored(cluster, local.group_id)] == [b"a"]
        await cluster.close()

    run_simulation(story, seed=1)


def test_r18_a_proposal_that_another_entry_replaced_is_certainly_not_stored() -> None:
    """Raft §5.3: its place was overwritten. The caller may send it again as something new."""

    async def story(random: Random) -> None:
        cluster, node, local = await led(random)
        cluster.network.isolate(node.node_id, cluster.nodes)
        lost = propose(local, b"lost")
        successor = await led_by_another(cluster, local)
        assert isinstance(await propose(successor, b"kept"), Appended)
        assert not lost.done(), "losing leadership alone ends nothing"
        cluster.network.heal()
        with pytest.raises(ProposalLost):
            await asyncio.wait_for(lost, 30.0)
        assert [body for _, body in stored(cluster, local.group_id)] == [b"kept"]
        await cluster.close()

    run_simulation(story, seed=2)


def test_r18_a_proposal_whose_leader_was_cut_off_in_time_may_be_stored() -> None:
    """Bug class 39: a timeout is no failure. The entry reached the others, the answer did not reach
    the leader, and the next leader commits it."""

    async def story(random: Random) -> None:
        cluster, node, local = await led(random)
        for other in cluster.nodes:
            if other != node.node_id:
                cluster.network.block(other, node.node_id)
        waiting = propose(local, b"a")
        successor = await led_by_another(cluster, local)
        assert not waiting.done(), "its outcome is not known here"
        assert [body for _, body in stored(cluster, successor.group_id)] == [b"a"]
        cluster.network.heal()
        reply = await asyncio.wait_for(waiting, 30.0)
        assert isinstance(reply, Appended)
        assert reply.base_offset == 0
        await cluster.close()

    run_simulation(story, seed=3)


def test_r18_the_outcome_is_unknown_when_the_replica_stops_first() -> None:
    async def story(random: Random) -> None:
        cluster, node, local = await led(random)
        cluster.network.isolate(node.node_id, cluster.nodes)
        waiting = propose(local, b"a")
        await asyncio.sleep(0.1)
        await node.crash()
        with pytest.raises(OutcomeUnknown):
            await waiting
        await cluster.close()

    run_simulation(story, seed=4)
