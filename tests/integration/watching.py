"""Waiting for what nodes do by themselves. They announce none of it, so it is asked for again and
again; every wait is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from quorumq import Client
from quorumq.v1 import admin_pb2
from tests.integration.load import WITHIN_S

_ASK_EVERY_S = 0.1


async def until_none(
    missing: Callable[[], Awaitable[object]], *, within_s: float = WITHIN_S
) -> None:
    """Until what is missing is nothing."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while lack := await missing():
        assert loop.time() < deadline, f"after {within_s} s: {lack}"
        await asyncio.sleep(_ASK_EVERY_S)


async def in_sync(client: Client, topic: str) -> None:
    """Until all replicas that the topic should have lack nothing."""

    async def lacking() -> list[str]:
        told = await client.admin.describe_topic(topic)
        wanted = told.topic.config.replication_factor
        return [
            f"partition {partition.partition}: {partition}"
            for partition in told.partitions
            if len(partition.replicas) != wanted
            or not all(replica.in_sync for replica in partition.replicas)
        ]

    await until_none(lacking)


async def nodes(client: Client) -> dict[int, admin_pb2.NodeInfo]:
    return {node.node_id: node for node in (await client.admin.get_cluster()).nodes}


async def ended(client: Client, operation: admin_pb2.Operation) -> list[admin_pb2.Operation]:
    """All news of it, as one who watches sees them; the last one is how it ended."""
    async with asyncio.timeout(WITHIN_S):
        return [news async for news in client.admin.watch_operation(operation.operation_id)]
