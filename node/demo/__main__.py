"""`make demo`: runs for about a minute, and exits with 0 only if every record was read exactly as
it was published."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, field

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a killed node is no news here

import uvloop
from rich.console import Console

from cluster.tasks import TaskGroup
from node.demo.display import Display, Figures, result_table
from node.demo.follow import Follower, OffsetsWrong
from node.demo.outage import Acknowledgements
from node.demo.publish import PRODUCERS, Published, publish
from node.demo.source import Source, SourceTooSmall, read_standard_library
from node.demo.verify import Verdict, compare
from node.local_cluster import LocalCluster
from node.local_node import NodeEnded
from quorumq import Client, connect
from quorumq.errors import QuorumqError

TOPIC = "standard-library"
PARTITIONS = 6
REPLICATION_FACTOR = 3
_DEADLINE_S = 240.0
_RECOVERY_S = 60.0
_READ_S = 60.0
_IN_SYNC_S = 60.0
_DESCRIBE_EVERY_S = 0.2


class DemoFailed(Exception):
    """Something did not happen in its time."""


@dataclass(slots=True)
class Demo:
    """One run. `phase` is for the display."""

    cluster: LocalCluster
    client: Client
    source: Source
    display: Display
    phase: str = "publishing"
    killed_node: int = 0
    killed_partitions: list[int] = field(default_factory=list)
    published_s: float = 0.0

    async def run(self) -> tuple[Verdict, Acknowledgements, int]:
        """The verdict, latencies, and how many replicas are in sync at the end. Raises
        DemoFailed, OffsetsWrong, QuorumqError."""
        loop = asyncio.get_running_loop()
        published = Published(half=self.source.records // 2)
        acknowledgements = Acknowledgements()
        began = loop.time()
        async with self.client.reader(TOPIC, start="earliest") as reader:
            follower = Follower(reader)
            async with TaskGroup("demo") as background:
                background.start(follower.run(), name="follower")
                background.start(self._show(published, follower, began), name="display")
                async with TaskGroup("publishing") as publishing:
                    for share in range(PRODUCERS):
                        publishing.start(
                            publish(
                                self.client,
                                TOPIC,
                                self.source,
                                share,
                                published,
                                acknowledgements,
                            ),
                            name=f"producer-{share}",
                        )
                    publishing.start(self._outage(published, acknowledgements), name="outage")
                self.published_s = loop.time() - began
                self.phase = "reading to the end"
                ends = await self.client.admin.list_offsets(
                    TOPIC, dict.fromkeys(range(PARTITIONS), "latest")
                )
                follower.read_up_to({number: end.offset for number, end in ends.items()})
                await _within(
                    _READ_S, follower.reached.wait(), "the follower did not get to the end"
                )
                self.phase = "waiting for the restarted node"
                in_sync = await self._in_sync_replicas()
                background.cancel()
        return compare(self.source, follower.values), acknowledgements, in_sync

    async def _show(self, published: Published, follower: Follower, began: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            seconds = self.published_s or loop.time() - began
            self.display.show(
                Figures(
                    published.sent,
                    published.acknowledged,
                    follower.count,
                    published.acknowledged / seconds if seconds else 0.0,
                    self.phase,
                )
            )
            await asyncio.sleep(self.display.every_s)

    async def _outage(self, published: Published, acknowledgements: Acknowledgements) -> None:
        """Half-way: kill whoever leads most partitions; start it again once they all have another
        leader."""
        await published.half_way.wait()
        topic = (await self.client.admin.metadata(TOPIC)).topics[0]
        led: dict[int, list[int]] = {node_id: [] for node_id in self.cluster.nodes}
        for partition in topic.partitions:
            if partition.HasField("leader"):
                led[partition.leader.node_id].append(partition.partition)
        self.killed_node = max(led, key=lambda node_id: len(led[node_id]))
        self.killed_partitions = led[self.killed_node]
        if not self.killed_partitions:
            raise DemoFailed("no partition has a leader to kill")
        self.cluster.kill(self.killed_node)
        acknowledgements.killed(self.killed_partitions, now=asyncio.get_running_loop().time())
        self.phase = f"node {self.killed_node} is dead"
        self.display.say(
            f"killed node {self.killed_node} (SIGKILL), leader of partitions"
            f" {', '.join(map(str, self.killed_partitions))}"
        )
        await _within(
            _RECOVERY_S,
            acknowledgements.recovered.wait(),
            f"partitions {self.killed_partitions} found no new leader",
        )
        await self.cluster.restart(self.killed_node)
        self.display.say(f"restarted node {self.killed_node}")
        self.phase = f"node {self.killed_node} is back"

    async def _in_sync_replicas(self) -> int:
        """How many lack nothing, once all do or the time is up."""
        deadline = asyncio.get_running_loop().time() + _IN_SYNC_S
        while True:
            topic = await self.client.admin.describe_topic(TOPIC)
            count = sum(r.in_sync for p in topic.partitions for r in p.replicas)
            if count >= PARTITIONS * REPLICATION_FACTOR:
                return count
            if asyncio.get_running_loop().time() > deadline:
                return count
            await asyncio.sleep(_DESCRIBE_EVERY_S)  # nodes announce no such thing: ask again


async def _within(seconds: float, wait: object, otherwise: str) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wait  # type: ignore[misc]
    except TimeoutError:
        raise DemoFailed(f"{otherwise} within {seconds:.0f} s") from None


async def run(console: Console) -> bool:
    """True if all is as it must be."""
    console.print("Reading the Python standard library ...")
    source = read_standard_library()
    console.print(
        f"{source.records:,} lines of {len(source.modules):,} modules,"
        f" {source.bytes / 1e6:.1f} MB, in {source.root}",
        highlight=False,
        soft_wrap=True,
    )
    cluster = LocalCluster(3)
    console.print(f"Starting three nodes in {cluster.base_dir} ...", highlight=False)
    try:
        async with asyncio.timeout(_DEADLINE_S), cluster, await connect(cluster.servers) as client:
            await client.admin.create_topic(
                TOPIC, partitions=PARTITIONS, replication_factor=REPLICATION_FACTOR
            )
            console.print(f"Publishing to {PARTITIONS} partitions x {REPLICATION_FACTOR} replicas:")
            with Display(console, source.records) as display:
                demo = Demo(cluster, client, source, display)
                verdict, acknowledgements, in_sync = await demo.run()
    except BaseException:
        cluster.keep_files = True
        raise
    console.print(result_table(_rows(demo, verdict, acknowledgements, in_sync)))
    return all_is_good(verdict, in_sync=in_sync)


def all_is_good(verdict: Verdict, *, in_sync: int) -> bool:
    """What the exit status says. `in_sync`: replicas that lack nothing at the end."""
    return verdict.is_good and in_sync == PARTITIONS * REPLICATION_FACTOR


def _rows(
    demo: Demo, verdict: Verdict, acknowledgements: Acknowledgements, in_sync: int
) -> list[tuple[str, str, bool | None]]:
    source, seconds = demo.source, demo.published_s
    replicas = PARTITIONS * REPLICATION_FACTOR
    killed = f"node {demo.killed_node}, {len(demo.killed_partitions)} partitions"
    return [
        ("records", f"{source.records:,}", verdict.read == source.records),
        ("bytes", f"{source.bytes:,}", None),
        ("time", f"{seconds:.1f} s", None),
        ("rate", f"{source.records / seconds:,.0f} records/s", None),
        ("latency p50", f"{acknowledgements.percentile_ms(50):.1f} ms", None),
        ("latency p99", f"{acknowledgements.percentile_ms(99):.1f} ms", None),
        ("leader killed", killed, None),
        ("time without an ack after the kill", f"{acknowledgements.longest_gap_ms():.0f} ms", None),
        ("lost", f"{verdict.lost:,}", verdict.lost == 0),
        ("duplicated", f"{verdict.duplicated:,}", verdict.duplicated == 0),
        ("out of order per key", f"{verdict.out_of_order:,}", verdict.out_of_order == 0),
        ("replicas in sync at the end", f"{in_sync} of {replicas}", in_sync == replicas),
        ("content hash of the source", verdict.source_hash[:16], None),
        (
            "content hash of what was read",
            verdict.read_hash[:16],
            verdict.read_hash == verdict.source_hash,
        ),
    ]


def main() -> int:
    console = Console()
    try:
        good = uvloop.run(run(console))
    except KeyboardInterrupt:
        return 130
    except TimeoutError:
        return _failed(console, f"not done within {_DEADLINE_S:.0f} s")
    except (DemoFailed, NodeEnded, OffsetsWrong, QuorumqError, SourceTooSmall, OSError) as error:
        return _failed(console, str(error), notes=getattr(error, "__notes__", ()))
    return 0 if good else 1


def _failed(console: Console, message: str, notes: object = ()) -> int:
    console.print(f"demo failed: {message}", style="red", highlight=False, markup=False)
    for note in notes if isinstance(notes, list) else ():
        console.print(note, highlight=False, markup=False)
    return 1


if __name__ == "__main__":
    sys.exit(main())
