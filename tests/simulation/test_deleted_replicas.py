"""What was deleted stays deleted, and nothing of it stays on a disk, whenever a node crashes."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from cluster.controller import commands as c
from cluster.controller.model import CONTROLLER_GROUP_ID
from node.storage import keys
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import Writer


def stored_groups(node: SimNode) -> set[int]:
    """Groups of which the node's disk holds more than the memory of a replica that was."""
    identity = keys.IDENTITY[0]
    _, end = keys.group_bounds(2**63)
    return {
        int.from_bytes(key[:8], "big")
        for key, _ in node.engine.scan(b"", end)
        if key[8] != identity
    }


def held_groups(node: SimNode) -> set[int]:
    assert node.broker is not None
    return {CONTROLLER_GROUP_ID, *(p.group_id for p in node.broker.partitions.all())}


async def all_confirmed(cluster: SimCluster) -> None:
    """Every node knows the catalog as it is, and it waits for no deletion any more."""

    def done() -> bool:
        brokers = cluster.brokers()
        if not any(broker.controller_machine.is_leader for broker in brokers):
            return False
        catalogs = [broker.controller.catalog for broker in brokers]
        return len({catalog.version for catalog in catalogs}) == 1 and not any(
            catalog.tombstones_on(broker.me.node_id, broker.me.incarnation)
            for catalog, broker in zip(catalogs, brokers, strict=True)
        )

    await cluster.until(done, "the end of all deletions")


@pytest.mark.parametrize("seed", range(12))
def test_a_crash_brings_nothing_back_of_what_was_confirmed_deleted(seed: int) -> None:
    """The disk is slow: a deletion is told to be done long before it would be durable by itself."""

    async def story(random: Random) -> None:
        slow = [0.0]
        cluster = SimCluster(random, sync_delay_s=lambda: random.uniform(0.0, 0.002) + slow[0])
        await cluster.start()
        for topic in ("a", "b"):
            await cluster.create_topic(f"default/{topic}", partitions=3)
        catalog = cluster.brokers()[0].controller.catalog
        deleted, kept = catalog.topic_by_name("default/a"), catalog.topic_by_name("default/b")
        assert deleted is not None
        assert kept is not None
        for number, group_id in enumerate(deleted.group_ids + kept.group_ids, start=1):
            await Writer(cluster, group_id, number).write(5)
        slow[0] = 0.15  # below an election timeout, or nobody would lead
        broker = random.choice(cluster.brokers())
        await broker.controller.propose(c.DeleteTopic(topic_id=deleted.topic_id))
        for _ in range(3):
            await asyncio.sleep(random.uniform(0.0, 1.0))
            node = random.choice(list(cluster.nodes.values()))
            await node.crash()
            node.start()
        slow[0] = 0.0
        await all_confirmed(cluster)
        for node in cluster.nodes.values():
            assert held_groups(node) == {CONTROLLER_GROUP_ID, *kept.group_ids}
            assert stored_groups(node) == held_groups(node)
        await cluster.close()

    run_simulation(story, seed=seed)
