"""Producers and a reader that know what they did, and a hand that breaks nodes under them."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from functools import partial
from random import Random

from node.local_cluster import LocalCluster
from quorumq import Client, Producer, RecordFuture

PARTITIONS = 6
STOP_TIMEOUT_S = 30.0

Place = tuple[int, int]  # partition, offset


@dataclass
class History:
    """What was sent, where it was acknowledged to be, and what a follower of the log saw."""

    sent: list[bytes] = field(default_factory=list)
    acked: dict[bytes, Place] = field(default_factory=dict)
    read: dict[Place, list[bytes]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def note(self, value: bytes, future: RecordFuture) -> None:
        error = future.exception()
        if error is not None:
            self.failures.append(f"{value!r}: {error}")
            return
        where = future.result()
        self.acked[value] = (where.partition, where.offset)

    def check(self) -> None:
        """All that was sent is there, once, where it was said to be, in each producer's order."""
        assert not self.failures, self.failures[:5]
        assert set(self.acked) == set(self.sent), "not all was acknowledged"
        twice = [place for place, values in self.read.items() if len(values) > 1]
        assert not twice, f"read twice: {twice[:5]}"
        found = {values[0]: place for place, values in self.read.items()}
        assert len(found) == len(self.read), "a value is stored at two offsets"
        lost = [value for value in self.acked if value not in found]
        assert not lost, f"{len(lost)} acknowledged records are lost: {lost[:5]}"
        moved = [value for value, place in self.acked.items() if found[value] != place]
        assert not moved, f"not where they were acknowledged to be: {moved[:5]}"
        assert len(found) == len(self.acked), "there is more than was sent"
        last: dict[tuple[int, bytes], int] = {}
        for (partition, _offset), values in sorted(self.read.items()):
            producer, number = values[0].split(b":")
            assert last.get((partition, producer), -1) < int(number), f"{values[0]!r} out of order"
            last[partition, producer] = int(number)


class Traffic:
    """Idempotent producers and a follower of all partitions, until `finish`."""

    def __init__(self, client: Client, reading: Client, topic: str) -> None:
        self.history = History()
        self._client = client
        self._reading = reading
        self._topic = topic
        self._stopping = False
        self._goal = 0
        self._caught_up = asyncio.Event()
        self._tasks = [asyncio.ensure_future(self._produce(number)) for number in range(3)]
        self._reader = asyncio.ensure_future(self._read())

    async def finish(self, *, within_s: float) -> None:
        """Stop producing, wait for every acknowledgement and until the follower has seen all."""
        self._stopping = True
        history = self.history
        async with asyncio.timeout(within_s):
            await asyncio.gather(*self._tasks)
            self._goal = len(history.acked)
            if len(history.read) < self._goal:
                await asyncio.wait(
                    [self._reader, asyncio.ensure_future(self._caught_up.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _produce(self, number: int) -> None:
        async with self._client.producer(self._topic, linger_ms=2) as producer:
            count = 0
            while not self._stopping:
                for _ in range(20):
                    self._send(producer, b"%d:%d" % (number, count), count % PARTITIONS)
                    count += 1
                await asyncio.sleep(0.01)
                await producer.ready()
            await producer.flush()

    def _send(self, producer: Producer, value: bytes, partition: int) -> None:
        self.history.sent.append(value)
        future = producer.send(value, partition=partition)
        future.add_done_callback(partial(self.history.note, value))

    async def _read(self) -> None:
        async for record in self._reading.reader(self._topic, start="earliest"):
            assert record.value is not None
            place = (record.partition, record.offset)
            self.history.read.setdefault(place, []).append(record.value)
            if self._goal and len(self.history.read) >= self._goal:
                self._caught_up.set()


async def kill(cluster: LocalCluster, node_id: int, random: Random) -> None:
    cluster.kill(node_id)
    await asyncio.sleep(random.uniform(0.0, 3.0))
    await cluster.restart(node_id)


async def stop(cluster: LocalCluster, node_id: int, _random: Random) -> None:
    code = await cluster.nodes[node_id].stop(timeout_s=STOP_TIMEOUT_S)
    assert code == 0, f"node {node_id} ended with {code}"
    await cluster.restart(node_id)


async def pause(cluster: LocalCluster, node_id: int, random: Random) -> None:
    pid = cluster.nodes[node_id].pid
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(random.uniform(0.2, 5.0))
    os.kill(pid, signal.SIGCONT)


async def kill_all(cluster: LocalCluster, _node_id: int, _random: Random) -> None:
    for node_id in cluster.nodes:
        cluster.kill(node_id)
    await asyncio.gather(*(cluster.restart(node_id) for node_id in cluster.nodes))


FAULTS = (kill, kill, stop, pause, kill_all)
