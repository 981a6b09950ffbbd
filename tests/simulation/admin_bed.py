"""For stories about AdminService: a simulated cluster, asked through any of its nodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import pytest

from quorumq.channel import CallFailed, Method
from quorumq.errors import QuorumqError, from_status
from tests.simulation.cluster import SimCluster
from tests.simulation.loop import run_simulation

Q = TypeVar("Q")
R = TypeVar("R")

Story = Callable[[SimCluster], Awaitable[None]]


def play(story: Story, *, seed: int = 1, nodes: int = 3) -> None:
    async def whole(random: Random) -> None:
        cluster = SimCluster(random, nodes=nodes)
        await cluster.start()
        await story(cluster)
        await cluster.close()

    run_simulation(whole, seed=seed)


async def ask(
    cluster: SimCluster, node_id: int, method: Method[Q, R], request: Q, *, timeout_s: float = 10.0
) -> R:
    """Raises QuorumqError."""
    channel = cluster.clients.channel(cluster.nodes[node_id].client_endpoint)
    try:
        return await channel.unary(method, request, timeout_s=timeout_s)
    except CallFailed as failure:
        raise from_status(failure.code, failure.details, failure.trailers) from failure


async def refused(
    cluster: SimCluster, node_id: int, method: Method[Q, R], request: Q, *, timeout_s: float = 10.0
) -> QuorumqError:
    """What the request is refused with."""
    with pytest.raises(QuorumqError) as caught:
        await ask(cluster, node_id, method, request, timeout_s=timeout_s)
    return caught.value
