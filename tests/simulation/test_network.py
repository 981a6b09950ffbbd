"""What the simulated network adds to a real one: faults on request, and the same run for a seed.
That it otherwise behaves as the real transport does is for tests/conformance/test_transport.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from cluster.identity import Identity
from cluster.interfaces import (
    CatchUpChunk,
    CatchUpRequest,
    CheckpointMeta,
    Envelope,
    Peer,
    PeerError,
)
from cluster.raft.configuration import Configuration
from cluster.raft.messages import AppendEntries
from tests.simulation.loop import run_simulation
from tests.simulation.network import NetworkFaults, SimNetwork, SimTransport


class Ear:
    """A Receiver that keeps a log of all it hears, with times."""

    def __init__(self, log: list[str], node_id: int) -> None:
        self.log = log
        self.node_id = node_id
        self.numbers: list[int] = []
        self.served = 0

    def note(self, what: str) -> None:
        self.log.append(f"{asyncio.get_running_loop().time():.6f} {self.node_id}: {what}")

    def receive(self, peer: Peer, envelope: Envelope) -> None:
        for _, message in envelope.messages:
            assert isinstance(message, AppendEntries)
            self.numbers.append(message.prev_log_index)
            self.note(f"{message.prev_log_index} from {peer.node_id}")

    def peer_connected(self, node_id: int) -> None:
        self.note(f"connected {node_id}")

    def peer_lost(self, node_id: int) -> None:
        self.note(f"lost {node_id}")

    async def call(self, node_id: int, method: str, request: bytes) -> bytes:
        self.served += 1
        return request

    async def catch_up(self, request: CatchUpRequest) -> AsyncIterator[CatchUpChunk]:
        yield CatchUpChunk(meta=CheckpointMeta(1, 1, Configuration.of([1]), 1))
        for number in range(20):
            yield CatchUpChunk(segments=[(bytes([number]), b"state")])
        yield CatchUpChunk(done=True)


class Cluster:
    def __init__(self, randomness: random.Random, faults: NetworkFaults | None = None) -> None:
        self.network = SimNetwork(randomness, faults)
        self.log: list[str] = []
        self.ears: dict[int, Ear] = {}
        self.nodes: dict[int, SimTransport] = {}

    def start(self, node_id: int, boot_id: str = "boot-1") -> None:
        identity = Identity(node_id=node_id, incarnation="i", boot_id=boot_id, cluster_id="c")
        ear = self.ears[node_id] = Ear(self.log, node_id)
        self.nodes[node_id] = self.network.attach(
            identity, ear, f"node-{node_id}:1", on_failure=self._failed
        )
        for other in self.nodes.values():
            for peer_id in self.nodes:
                if peer_id != other.node_id:
                    other.set_peer(peer_id, f"node-{peer_id}:1")

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.close()

    def send(self, sender: int, recipient: int, number: int) -> None:
        append = AppendEntries(sender, recipient, 1, number, 1, 0)
        self.nodes[sender].send(recipient, Envelope(None, [(1, append)]))

    def _failed(self, name: str, error: BaseException) -> None:
        raise AssertionError(f"{name} failed") from error


@contextlib.asynccontextmanager
async def cluster_of(
    size: int, randomness: random.Random, faults: NetworkFaults | None = None
) -> AsyncIterator[Cluster]:
    cluster = Cluster(randomness, faults)
    for node_id in range(1, size + 1):
        cluster.start(node_id)
    await asyncio.sleep(1.0)
    assert len(cluster.log) == size * (size - 1), "not everyone is connected"
    try:
        yield cluster
    finally:
        await cluster.close()


async def stormy(randomness: random.Random) -> list[str]:
    """Three nodes talk for a minute while everything that can happen to a network happens."""
    faults = NetworkFaults(
        delay_ms_max=50,
        loss=0.05,
        duplicate=0.05,
        reorder=0.1,
        stream_break=0.01,
        catch_up_break=0.05,
        call_loss=0.1,
    )
    async with cluster_of(3, randomness, faults) as cluster:
        for number in range(2000):
            cluster.send(randomness.randint(1, 3), randomness.randint(1, 3), number)
            await asyncio.sleep(0.03)
            if number % 200 == 50:
                cluster.network.isolate(randomness.randint(1, 3), [1, 2, 3])
            if number % 200 == 150:
                cluster.network.heal()
            if number % 500 == 499:
                await cluster.nodes[2].close()
                cluster.start(2, f"boot-{number}")
            if number % 100 == 0:
                with contextlib.suppress(PeerError):
                    await cluster.nodes[1].call(3, "x", b"", timeout_ms=100)
        return cluster.log


def test_a_storm_repeats_itself_with_its_seed() -> None:
    first = run_simulation(stormy, 5)
    assert run_simulation(stormy, 5) == first
    assert run_simulation(stormy, 6) != first
    assert len(first) > 500
    assert any("lost" in line for line in first)


def test_a_one_way_block_stops_one_way_only() -> None:
    async def main(randomness: random.Random) -> None:
        faults = NetworkFaults(keepalive_ms=1e9)
        async with cluster_of(2, randomness, faults) as cluster:
            cluster.network.block(1, 2)
            cluster.send(1, 2, 1)
            cluster.send(2, 1, 2)
            await asyncio.sleep(60)
            assert (cluster.ears[1].numbers, cluster.ears[2].numbers) == ([2], [])
            assert not any("lost" in line for line in cluster.log)

    run_simulation(main, 1)


def test_a_short_block_delays_and_a_long_one_breaks_both_directions() -> None:
    async def main(randomness: random.Random) -> None:
        async with cluster_of(2, randomness, NetworkFaults(keepalive_ms=2000)) as cluster:
            cluster.network.block(1, 2)
            for number in range(5):
                cluster.send(1, 2, number)
            await asyncio.sleep(1)
            cluster.network.heal()
            await asyncio.sleep(1)
            assert cluster.ears[2].numbers == [0, 1, 2, 3, 4]
            cluster.log.clear()
            cluster.network.block(1, 2)
            cluster.send(1, 2, 5)
            await asyncio.sleep(3)
            assert sorted(line.split(" ", 1)[1] for line in cluster.log) == [
                "1: lost 2",
                "2: lost 1",
            ]
            cluster.log.clear()
            cluster.network.heal()
            await asyncio.sleep(0.5)
            heard = sorted(line.split(" ", 1)[1] for line in cluster.log)
            assert heard == ["1: connected 2", "2: connected 1"]

    run_simulation(main, 1)


@pytest.mark.parametrize(
    ("faults", "check"),
    [
        (NetworkFaults(loss=0.3), lambda heard: len(heard) < 900 and heard == sorted(heard)),
        (NetworkFaults(duplicate=0.3), lambda heard: len(heard) > 1100),
        (
            NetworkFaults(reorder=0.3, delay_ms_max=20),
            lambda heard: len(heard) == 1000 and heard != sorted(heard),
        ),
        (NetworkFaults(delay_ms_max=100), lambda heard: heard == list(range(1000))),
    ],
    ids=["loss", "duplicate", "reorder", "delay"],
)
def test_each_fault_does_what_it_says(faults: NetworkFaults, check: object) -> None:
    async def main(randomness: random.Random) -> list[int]:
        async with cluster_of(2, randomness, faults) as cluster:
            for number in range(1000):
                cluster.send(1, 2, number)
                await asyncio.sleep(0.001)
            await asyncio.sleep(1)
            return cluster.ears[2].numbers

    assert callable(check)
    assert check(run_simulation(main, 3))


def test_a_lost_answer_leaves_the_call_carried_out() -> None:
    async def main(randomness: random.Random) -> None:
        async with cluster_of(2, randomness) as cluster:
            cluster.network.faults.call_loss = 1.0
            for _ in range(40):
                with pytest.raises(PeerError, match="TIMEOUT"):
                    await cluster.nodes[1].call(2, "x", b"", timeout_ms=50)
            assert 5 < cluster.ears[2].served < 35

    run_simulation(main, 1)


def test_a_catch_up_breaks_midway_by_chance_and_by_a_block() -> None:
    async def main(randomness: random.Random) -> None:
        async with cluster_of(2, randomness) as cluster:
            request = CatchUpRequest(1, 1, 2, 0, 0)
            cluster.network.faults.catch_up_break = 0.1
            sizes = []
            for _ in range(30):
                sizes.append(0)
                with contextlib.suppress(PeerError):
                    async for _ in cluster.nodes[2].fetch_catch_up(1, request):
                        sizes[-1] += 1
            assert min(sizes) < 10
            assert max(sizes) > 15
            cluster.network.faults.catch_up_break = 0.0
            chunks = cluster.nodes[2].fetch_catch_up(1, request)
            await anext(chunks)
            cluster.network.block(1, 2)
            with pytest.raises(PeerError, match="UNREACHABLE"):
                await anext(chunks)

    run_simulation(main, 1)


def test_nothing_of_a_crashed_node_arrives_after_its_end() -> None:
    async def main(randomness: random.Random) -> None:
        faults = NetworkFaults(delay_ms_min=10, delay_ms_max=20)
        async with cluster_of(2, randomness, faults) as cluster:
            cluster.send(1, 2, 1)
            cluster.nodes[1].crash()
            cluster.send(2, 1, 2)
            await asyncio.sleep(1)
            assert cluster.ears[1].numbers == cluster.ears[2].numbers == []
            assert cluster.log[-1].endswith("2: lost 1")

    run_simulation(main, 1)
