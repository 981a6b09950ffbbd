"""Rules R1, R13 and R14 on whole nodes: what is answered is on disks, and a disk that fails, or
gives back something else than it was given, takes its node out of every decision."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from cluster.interfaces import CorruptEntry, StorageError
from node import codec
from node.partition.commands import Append, Appended
from node.storage import keys
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import Writer, agreed, check_exactly_once, stored, with_topic


@pytest.mark.parametrize("seed", range(5))
def test_r1_a_power_cut_at_the_moment_of_an_answer_loses_nothing(seed: int) -> None:
    """Bug classes 1 and 2: every disk forgets what it had not synced when the answer came."""

    async def story(random: Random) -> None:
        cluster, group_id = await with_topic(random)
        for number in range(4):
            await cluster.until(lambda: cluster.leader(group_id), "a leader")
            leader = cluster.leader(group_id)
            assert leader is not None
            body = b"%d" % number
            command = Append(leader.replica.stamp(), body, 1, None)
            reply = await leader.group.propose(codec.encode_append(command))
            assert isinstance(reply, Appended)
            for node in cluster.nodes.values():
                await node.crash()
            for node in cluster.nodes.values():
                node.start()
            await cluster.until(lambda: cluster.leader(group_id), "a leader after the power cut")
            assert (reply.base_offset, body) in stored(cluster, group_id)
        await cluster.close()

    run_simulation(story, seed=seed)


async def failure_of(cluster: SimCluster) -> BaseException:
    """The first failure that a node reports; it counts as expected."""
    await cluster.until(lambda: cluster.failures, "a node that fails")
    _, error = cluster.failures[0]
    cluster.failures.clear()
    return error


@pytest.mark.parametrize("fault", ["sync", "write"])
@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_r13_after_a_disk_error_a_node_stops_and_answers_for_nothing(
    fault: str, victim: str
) -> None:
    """Bug class 14: a retried fsync "succeeds" though pages were dropped. So nothing is retried,
    all replicas of the node stop, the others go on, and it comes back with what its disk has."""

    async def story(random: Random) -> None:
        cluster, group_id = await with_topic(random)
        await cluster.until(lambda: cluster.leader(group_id), "a leader")
        node = one_node(cluster, group_id, leads=victim == "leader")
        broker, before = node.broker, node.engine.syncs
        assert broker is not None
        writer = Writer(cluster, group_id, 1)
        writing = asyncio.ensure_future(writer.write(60))
        if fault == "sync":
            node.engine.fail_next_sync()
        else:
            node.engine.fail_next_write()
        assert isinstance(await failure_of(cluster), StorageError)
        assert all(group.failure is not None for group in broker.host.groups.values())
        await asyncio.sleep(5.0)
        assert node.engine.syncs - before <= 1, "no sync after the one that failed"
        await node.crash()
        node.start()
        await writing
        await agreed(cluster, group_id)
        check_exactly_once(cluster, group_id, [writer])
        await cluster.close()

    run_simulation(story, seed=13)


def one_node(cluster: SimCluster, group_id: int, *, leads: bool) -> SimNode:
    """The node that leads the group, or one that does not."""
    leader = cluster.leader(group_id)
    return next(
        node
        for node in cluster.nodes.values()
        if node.broker is not None and (node.broker.partitions.get(group_id) is leader) == leads
    )


@pytest.mark.parametrize("seed", range(3))
def test_r14_a_flipped_bit_in_the_synced_log_makes_a_node_start_anew_and_never_with_less(
    seed: int,
) -> None:
    """Bug classes 9 and 12: a damaged log must not vote or acknowledge as if it were shorter. It is
    noticed before the replica exists; node/server.py then sets the folder aside, which is a wipe,
    and the node gets everything again under other replica ids (rule R12)."""

    async def story(random: Random) -> None:
        cluster, group_id = await with_topic(random)
        writer = Writer(cluster, group_id, 1)
        await writer.write(30)
        replicas = cluster.replicas(group_id)
        await cluster.until(
            lambda: len({local.group.applied_index for local in replicas}) == 1, "equal replicas"
        )
        node = random.choice(list(cluster.nodes.values()))
        assert node.broker is not None
        group = node.broker.host.groups[group_id]
        former = group.replica_id
        index = random.randint(group.log.first_index, group.log.last_index)
        await node.crash()
        entry_key = keys.index_key(keys.entry_prefix(group_id, 0), index)
        node.engine.flip_bit(entry_key, random.randrange(1 << 16))
        node.start()
        assert isinstance(await failure_of(cluster), CorruptEntry)
        assert group_id not in node.broker.host.groups, "no replica with the shorter log"
        await node.crash(wipe=True)
        node.start()
        await cluster.until(lambda: three_voters(cluster, group_id), "three voters again")
        await agreed(cluster, group_id)
        check_exactly_once(cluster, group_id, [writer])
        leader = cluster.leader(group_id)
        assert leader is not None
        assert former not in leader.group.configuration.members()
        await cluster.close()

    run_simulation(story, seed=seed)


def three_voters(cluster: SimCluster, group_id: int) -> bool:
    here = {local.group.replica_id for local in cluster.replicas(group_id)}
    return len(here) == 3 and all(
        local.group.configuration.members() == tuple(sorted(here))
        and len(local.group.configuration.voters) == 3
        for local in cluster.replicas(group_id)
    )
