"""What a scenario is given, and what it gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.cluster import Cluster
from bench.usage import UsageMeter
from quorumq import Client, connect

_SAMPLE_S = 0.5


@dataclass(slots=True)
class Setup:
    """`seconds` are measured after `warmup_s`. `kills`: how often a scenario that ends nodes does
    so."""

    cluster: Cluster
    seconds: float
    warmup_s: float
    kills: int
    replication_factor: int = 3

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with await connect(self.cluster.servers) as client:
            yield client


@dataclass(slots=True)
class Result:
    """`figures` go into the line as they are; `failures` must be 0, or the run fails."""

    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    failures: int = 0


@asynccontextmanager
async def metered(cluster: Cluster) -> AsyncIterator[dict[str, Any]]:
    """Measures the processes while the block runs; the dict has the figures after it."""
    meter = UsageMeter(cluster.pids)
    figures: dict[str, Any] = {}
    loop = asyncio.get_running_loop()
    meter.begin()

    timers: list[asyncio.TimerHandle] = []

    def sample() -> None:
        meter.sample()
        timers[:] = [loop.call_later(_SAMPLE_S, sample)]

    sample()
    try:
        yield figures
    finally:
        timers[0].cancel()
    usages = meter.end()
    nodes = [usage for name, usage in usages.items() if name.startswith("node-")]
    if nodes:
        # Of the busiest and of the largest node: the limits are limits of a node.
        figures["cpu_percent"] = max(usage.cpu_percent for usage in nodes)
        figures["rss_mb"] = max(usage.rss_mb for usage in nodes)
    figures["processes"] = {
        name: {"cpu_percent": usage.cpu_percent, "rss_mb": usage.rss_mb}
        for name, usage in usages.items()
    }
