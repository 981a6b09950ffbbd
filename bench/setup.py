"""What a scenario is given, and what it gives back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.cluster import Cluster
from bench.profiler import Profiler
from bench.usage import CLIENT, UsageMeter
from quorumq import Client, connect

_SAMPLE_S = 0.5


@dataclass(slots=True, kw_only=True)
class Setup:
    """`seconds` are measured after `warmup_s`. `kills`: how often a scenario that ends nodes does
    so, None = as often as it thinks right. `scale`: share of what a scenario stores first. The
    clock of every scenario is time.perf_counter: uvloop's own has milliseconds."""

    cluster: Cluster
    seconds: float
    warmup_s: float
    kills: int | None = None
    scale: float = 1.0
    replication_factor: int = 3
    profiler: Profiler | None = None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with await connect(self.cluster.servers) as client:
            yield client

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[dict[str, Any]]:
        """What the scenario is about happens in this block: the processes are measured, and the
        busiest leader and the client are profiled if that was asked for. The dict has the figures
        after it. No node may end meanwhile."""
        async with AsyncExitStack() as stack:
            if self.profiler is not None:
                leader = await self._busiest_leader()
                await stack.enter_async_context(self.profiled(leader))
            yield await stack.enter_async_context(metered(self.cluster))

    @asynccontextmanager
    async def profiled(self, node_id: int) -> AsyncIterator[None]:
        """This node, as it runs now, and the client; nothing unless profiles were asked for."""
        if self.profiler is None:
            yield
            return
        pids = {f"node-{node_id}": self.cluster.pids[node_id], CLIENT: self.profiler.client_pid}
        async with self.profiler.recording(pids):
            yield

    async def _busiest_leader(self) -> int:
        """That of most partitions; the controller's leader when there are none."""
        async with self.client() as client:
            names = [topic.name for topic in await client.admin.list_topics()]
            metadata = await client.admin.metadata(*names)
        leaderships = Counter(
            partition.leader.node_id
            for topic in metadata.topics
            for partition in topic.partitions
            if partition.HasField("leader")
        )
        return max(
            sorted(leaderships), key=leaderships.__getitem__, default=metadata.controller.node_id
        )


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
    usages, others_cpu_percent = meter.end()
    nodes = [usage for name, usage in usages.items() if name != CLIENT]
    if nodes:
        # Of the busiest and of the largest node: the limits are limits of a node.
        figures["cpu_percent"] = max(usage.cpu_percent for usage in nodes)
        figures["rss_mb"] = max(usage.rss_mb for usage in nodes)
    figures["processes"] = {
        name: {"cpu_percent": usage.cpu_percent, "rss_mb": usage.rss_mb}
        for name, usage in usages.items()
    }
    figures["others_cpu_percent"] = others_cpu_percent
