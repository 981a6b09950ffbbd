"""What was trimmed leaves the logs of all replicas, written to or not; what is kept for replicas
that are behind is bounded (house §4.3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import pytest

from cluster.host_options import HostOptions
from node import codec
from node.broker import BrokerOptions
from node.partition.commands import Trim
from tests.simulation.cluster import SimCluster
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import Writer, agreed, first_group

KIB = 1 << 10
TAIL_BYTES = 20 * KIB
TRIMMED_BYTES = 8 * KIB
ENTRY_BYTES = 100  # at most, of the small records that writers write

Story = Callable[[SimCluster, int, Writer], Awaitable[None]]


def play(story: Story, *, seed: int) -> None:
    """One partition, with checkpoints due by what they let go of alone."""

    async def whole(random: Random) -> None:
        cluster = SimCluster(random)
        cluster.options = BrokerOptions(
            raft=cluster.options.raft,
            host=HostOptions(tail_bytes_max=TAIL_BYTES, trimmed_bytes_max=TRIMMED_BYTES),
        )
        await cluster.start()
        await cluster.create_topic("default/t", partitions=1)
        group_id = first_group(cluster, "default/t")
        await story(cluster, group_id, Writer(cluster, group_id, 1))
        await cluster.close()

    run_simulation(whole, seed=seed)


async def trim(cluster: SimCluster, group_id: int, first_offset: int) -> None:
    leader = cluster.leader(group_id)
    assert leader is not None
    await leader.group.propose(codec.encode(Trim(leader.replica.stamp(), first_offset)))


def log_bytes(cluster: SimCluster, group_id: int) -> list[int]:
    return [local.log.log_bytes for local in cluster.replicas(group_id)]


@pytest.mark.parametrize("seed", range(3))
def test_an_idle_partition_keeps_nothing_of_what_was_trimmed(seed: int) -> None:
    async def story(cluster: SimCluster, group_id: int, writer: Writer) -> None:
        await writer.write(500)
        assert min(log_bytes(cluster, group_id)) > 500 * ENTRY_BYTES // 2
        await trim(cluster, group_id, 490)
        await cluster.until(
            lambda: max(log_bytes(cluster, group_id)) < 20 * ENTRY_BYTES, "short logs"
        )
        for node in cluster.nodes.values():
            await node.crash()
            node.start()
        await cluster.until(lambda: cluster.leader(group_id), "a leader")
        await Writer(cluster, group_id, 2).write(10)
        await agreed(cluster, group_id)
        leader = cluster.leader(group_id)
        assert leader is not None
        stored = leader.replica.read(0, bytes_max=1 << 20)
        assert [found.row.base_offset for found in stored] == list(range(490, 510))

    play(story, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_busy_partition_keeps_a_bounded_tail(seed: int) -> None:
    async def story(cluster: SimCluster, group_id: int, writer: Writer) -> None:
        highest = 0
        for number in range(1, 60):
            await Writer(cluster, group_id, number).write(50)
            await trim(cluster, group_id, number * 50 - 10)
            highest = max(highest, *log_bytes(cluster, group_id))
        # Beside tail and threshold: what is appended while a sweep goes round once.
        assert highest < 60 * 50 * ENTRY_BYTES // 3, f"{highest} bytes at most"
        await agreed(cluster, group_id)

    play(story, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_replica_that_missed_more_than_the_tail_catches_up(seed: int) -> None:
    async def story(cluster: SimCluster, group_id: int, writer: Writer) -> None:
        await writer.write(10)
        await cluster.nodes[2].crash()
        for number in range(1, 20):
            await Writer(cluster, group_id, 1 + number).write(50)
            await trim(cluster, group_id, number * 50)
        await cluster.until(
            lambda: all(local.log.first_index > 500 for local in cluster.replicas(group_id)),
            "a log without what the replica lacks",
        )
        cluster.nodes[2].start()
        await agreed(cluster, group_id)

    play(story, seed=seed)
