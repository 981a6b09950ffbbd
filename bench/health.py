"""Waiting until a cluster lacks nothing: what is measured next is not to show what went before."""

from __future__ import annotations

import asyncio

from bench.cluster import ClusterFailed
from quorumq import Client, QuorumqError
from quorumq.v1 import admin_pb2

WITHIN_S = 120.0
_ASK_EVERY_S = 0.1  # nobody announces it


async def whole(client: Client, topic: str, *, within_s: float = WITHIN_S) -> None:
    """Until every partition has a leader and every replica of `topic` is a voter that has all that
    is committed. Raises ClusterFailed."""
    lacking = "no answer yet"
    try:
        async with asyncio.timeout(within_s):
            while lacking:
                try:
                    lacking = await _lacking(client, topic)
                except QuorumqError as error:
                    if not error.retriable:
                        raise
                    lacking = str(error)
                if lacking:
                    await asyncio.sleep(_ASK_EVERY_S)
    except TimeoutError:
        raise ClusterFailed(f"not whole within {within_s:g} s: {lacking}") from None


async def _lacking(client: Client, topic: str) -> str:
    """ "" = nothing."""
    counts = (await client.admin.get_cluster()).counts
    if counts.leaderless_partitions or counts.under_replicated_partitions:
        return (
            f"{counts.leaderless_partitions} partitions without a leader,"
            f" {counts.under_replicated_partitions} without all their replicas"
        )
    told = await client.admin.describe_topic(topic)
    wanted = told.topic.config.replication_factor
    behind = [
        str(partition.partition)
        for partition in told.partitions
        if sum(_has_all(replica) for replica in partition.replicas) < wanted
    ]
    return f"partitions {', '.join(behind)} of {topic} not in sync" if behind else ""


def _has_all(replica: admin_pb2.ReplicaInfo) -> bool:
    return replica.alive and replica.in_sync and replica.role == admin_pb2.REPLICA_ROLE_VOTER
