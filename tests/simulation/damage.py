"""Bits that change on a simulated node's disk while it is down."""

from __future__ import annotations

from node.partitions import LocalPartition
from node.storage import keys
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.reading_bed import group_of


def replica_of(node: SimNode, group_id: int) -> LocalPartition:
    assert node.broker is not None
    local = node.broker.partitions.get(group_id)
    assert local is not None, f"node {node.node_id} has no replica of group {group_id}"
    return local


async def all_stored(cluster: SimCluster, node: SimNode, count: int) -> None:
    """Until the node's replica of the first partition of topic t has so many records."""
    local = replica_of(node, group_of(cluster))
    await cluster.until(lambda: local.replica.machine.next_offset == count, "all records")


def entry_of(node: SimNode, group_id: int, offset: int) -> int:
    """Index of the entry that holds the record. It lies below the log's tail: damage in the tail is
    found when the log is opened, and another story."""
    local = replica_of(node, group_id)
    row = local.replica.find(offset)
    assert row is not None, f"record {offset} is not there"
    assert row.entry_index < local.log.first_index, f"record {offset} lies in the tail"
    return row.entry_index


async def damage_entry(node: SimNode, group_id: int, index: int) -> None:
    """Crash the node, flip a bit of the entry's body, start it again."""
    (key,) = _rows(node, group_id, index)
    await node.crash()
    node.engine.flip_bit(key, -1)
    node.start()


async def lose_entry(node: SimNode, group_id: int, index: int) -> None:
    (key,) = _rows(node, group_id, index)
    await node.crash()
    batch = node.engine.new_batch()
    batch.delete(key)
    node.engine.write(batch)
    await node.engine.sync()
    node.start()


def _rows(node: SimNode, group_id: int, index: int) -> list[bytes]:
    entries = keys.group_key(group_id, keys.ENTRY)
    rows = node.engine.scan(entries, keys.prefix_end(entries))
    return [key for key, _ in rows if key.endswith(index.to_bytes(8, "big"))]
