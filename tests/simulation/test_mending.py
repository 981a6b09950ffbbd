"""A damaged entry is had from another replica; the story of none that has it is in
test_services_reading_trouble.py (rule R14, house §4.3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from quorumq import methods
from quorumq.v1 import admin_pb2
from tests.simulation.admin_bed import ask
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.damage import all_stored, damage_entry, entry_of, lose_entry, replica_of
from tests.simulation.reading_bed import (
    Writer,
    at,
    group_of,
    play,
    read,
    statuses,
    values,
)

Harm = Callable[[SimNode, int, int], Awaitable[None]]
HARMS = pytest.mark.parametrize("harm", [damage_entry, lose_entry])


async def harmed(cluster: SimCluster, node: SimNode, harm: Harm) -> Writer:
    """Record 20 of 200 is harmed on this node."""
    writer = Writer(cluster, 0)
    await writer.write(200)
    group_id = group_of(cluster)
    await all_stored(cluster, node, 200)
    await harm(node, group_id, entry_of(node, group_id, 20))
    await cluster.until(lambda: len(cluster.replicas(group_id)) == 3, "its replica")
    return writer


@HARMS
def test_a_reader_sees_nothing_of_a_damaged_entry(harm: Harm) -> None:
    async def story(cluster: SimCluster) -> None:
        node = cluster.nodes[2]
        writer = await harmed(cluster, node, harm)
        responses = await read(cluster, 2, partitions=[at(0, until_offset=100)])
        assert values(responses) == writer.stored[:100]
        assert statuses(responses) == []
        assert is_whole(node, writer)

    play(story)


@HARMS
def test_a_record_asked_for_alone_is_mended(harm: Harm) -> None:
    async def story(cluster: SimCluster) -> None:
        node = cluster.nodes[3]
        writer = await harmed(cluster, node, harm)
        await lead(cluster, node)
        request = admin_pb2.GetRecordRequest(topic="t", offset=20)
        answer = await ask(cluster, 1, methods.GET_RECORD, request)
        assert answer.record.value == writer.stored[20]
        assert is_whole(node, writer)

    play(story)


@HARMS
def test_a_replica_catches_up_from_one_that_is_damaged(harm: Harm) -> None:
    """Else the others could never be filled again as long as the damaged one leads."""

    async def story(cluster: SimCluster) -> None:
        node, wiped = cluster.nodes[1], cluster.nodes[2]
        writer = await harmed(cluster, node, harm)
        await lead(cluster, node)
        await wiped.crash(wipe=True)
        wiped.start()

        def is_filled() -> bool:
            if wiped.broker is None:
                return False
            local = wiped.broker.partitions.get(group_of(cluster))
            return local is not None and local.replica.machine.next_offset == 200

        await cluster.until(is_filled, "a new replica with all records")
        assert is_whole(wiped, writer)
        assert is_whole(node, writer)

    play(story)


async def lead(cluster: SimCluster, node: SimNode) -> None:
    """Until the node's replica leads."""
    mine = replica_of(node, group_of(cluster))

    def leads() -> bool:
        leader = cluster.leader(group_of(cluster))
        if leader is not None and leader is not mine and not leader.group.core.transferee:
            leader.group.transfer_leadership(mine.group.replica_id)
        return leader is mine

    await cluster.until(leads, "the damaged one to lead")


def is_whole(node: SimNode, writer: Writer) -> bool:
    """Whether record 20 lies on this node's disk as it was written."""
    stored = replica_of(node, group_of(node.cluster)).replica.read(20, bytes_max=0)
    return writer.stored[20] in stored[0].batch
