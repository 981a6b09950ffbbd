"""Rule R12 and house §4.14 on whole nodes: who may found a cluster, and that nobody passes for what
it was before."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from cluster.interfaces import Envelope, Peer
from cluster.raft.messages import AppendEntriesReply, RequestVote
from tests.simulation.cluster import SimCluster
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import Writer, agreed, check_exactly_once, with_topic


def members_of(cluster: SimCluster) -> list[int]:
    return [len(broker.controller.catalog.members()) for broker in cluster.brokers()]


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_r12_a_cluster_is_founded_only_when_every_initial_node_has_answered(missing: int) -> None:
    """Two of three would be a majority, but the third may belong to a cluster already."""

    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        for node in cluster.nodes.values():
            if node.node_id != missing:
                node.start()
        await asyncio.sleep(120.0)
        assert members_of(cluster) == [0, 0]
        assert not any(node.cluster_id for node in cluster.nodes.values())
        cluster.nodes[missing].start()
        await cluster.until(lambda: members_of(cluster) == [3, 3, 3], "a founded cluster")
        assert len({node.cluster_id for node in cluster.nodes.values()}) == 1
        await cluster.close()

    run_simulation(story, seed=missing)


@pytest.mark.parametrize("wiped", [1, 2])
def test_r12_a_wiped_node_never_founds_a_second_cluster(wiped: int) -> None:
    """Bug class 16 (rabbitmq-server#15725), the founder itself included; and if the others can not
    be asked, it waits."""

    async def story(random: Random) -> None:
        cluster = SimCluster(random)
        await cluster.start()
        cluster_id = cluster.nodes[wiped].cluster_id
        others = [node for node in cluster.nodes.values() if node.node_id != wiped]
        await cluster.nodes[wiped].crash(wipe=True)
        for node in others:
            await node.crash()
        cluster.nodes[wiped].start()
        await asyncio.sleep(60.0)
        assert not cluster.nodes[wiped].cluster_id, "alone it can not know"
        for node in others:
            node.start()
        await cluster.until(lambda: cluster.nodes[wiped].cluster_id, "the wiped node to join")
        assert cluster.nodes[wiped].cluster_id == cluster_id
        await cluster.close()

    run_simulation(story, seed=wiped)


def test_r12_a_node_is_not_heard_as_a_replica_that_is_not_on_it() -> None:
    """Messages for or from a replica that is not where it should be are dropped: a wiped node can
    neither vote nor acknowledge as its former self."""

    async def story(random: Random) -> None:
        cluster, group_id = await with_topic(random)
        await cluster.until(lambda: cluster.leader(group_id), "a leader")
        leader = cluster.leader(group_id)
        assert leader is not None
        broker = next(b for b in cluster.brokers() if b.partitions.get(group_id) is leader)
        group, peers = leader.group, broker.host.peers
        me = group.replica_id
        one, other = (v for v in group.configuration.voters if v != me)
        liar = Peer(peers.node_of(other), "i.9", "i.9.1")
        ahead = group.last_index + 1
        for message in (
            AppendEntriesReply(one, me, group.term, True, ahead),  # from a replica elsewhere
            RequestVote(one, me, group.term + 9, ahead, 99, True),
            RequestVote(other, me + 1_000, group.term + 9, ahead, 99, True),  # for one that was
        ):
            before = (group.term, group.match_index(one), group.leader_replica)
            broker.receive(liar, Envelope(None, [(group_id, message)]))
            assert (group.term, group.match_index(one), group.leader_replica) == before
        await cluster.close()

    run_simulation(story, seed=5)


def test_r12_an_emptied_node_is_added_as_a_new_incarnation() -> None:
    """Dissertation §11.2: a server that lost its disk may not come back under its identity."""

    async def story(random: Random) -> None:
        cluster, group_id = await with_topic(random)
        writer = Writer(cluster, group_id, 1)
        await writer.write(20)
        former = {local.group.replica_id for local in cluster.replicas(group_id)}
        await cluster.nodes[2].crash(wipe=True)
        cluster.nodes[2].start()
        await cluster.until(lambda: len(cluster.replicas(group_id)) == 3, "three replicas")
        await agreed(cluster, group_id)
        present = {local.group.replica_id for local in cluster.replicas(group_id)}
        assert len(former & present) == 2
        assert max(present) > max(former), "replica ids are never given out again"
        row = cluster.brokers()[0].controller.catalog.member(2)
        assert row is not None
        assert row.incarnation == cluster.nodes[2].incarnation == "i2.2"
        check_exactly_once(cluster, group_id, [writer])
        await cluster.close()

    run_simulation(story, seed=2)
