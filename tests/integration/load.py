"""Work for a cluster, and the account of what became of every record of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from cluster.tasks import TaskGroup
from node.local_cluster import LocalCluster
from quorumq import Client
from quorumq.v1 import messaging_pb2
from tests.integration.stubs import TIMEOUT_S, Stored, Stubs, batch, read_all

PARTITIONS = 6
WITHIN_S = 40.0  # no step of any test takes longer
_BURST = 8
_BATCH_BYTES = 128  # a burst is several batches: requests are pipelined, and repeated ones overlap
_PAUSE_S = 0.05  # of a worker between bursts: nodes that start want their share of the processors
PROGRESS = 10 * _BURST  # far more than a partition can have in flight: the last ones are new


class Place(NamedTuple):
    """Where an acknowledgement says that a record is."""

    partition: int
    offset: int


class Load(ABC):
    """Workers that each have a key and a partition and send the numbers from 0 on, a burst at a
    time, the next soon after this one is acknowledged. Every acknowledgement is kept. A record that
    fails ends the load and the test.

        async with ClientLoad(client, "t") as load:
            ...
            await load.progress()
        await load.check(cluster)
    """

    def __init__(self, topic: str, *, workers: int) -> None:
        self.topic = topic
        self.sent: Counter[bytes] = Counter()
        self.acknowledged: dict[bytes, list[Place]] = {}
        self._workers = workers
        self._tasks = TaskGroup(f"load on {topic}")
        self._stopping = False
        self._news = asyncio.Condition()
        self._counts = dict.fromkeys(range(min(workers, PARTITIONS)), 0)
        self._heard: dict[int, float] = {}  # last acknowledgement by partition, the loop's time
        self._silences: dict[int, float] = {}

    @abstractmethod
    async def send(self, key: bytes, partition: int, values: Sequence[bytes]) -> list[Place]:
        """Store them in order; returns when all are acknowledged."""

    @property
    def count(self) -> int:
        """Records acknowledged."""
        return sum(map(len, self.acknowledged.values()))

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self.listen()
        for number in range(self._workers):
            self._tasks.start(self._work(number), name=f"worker {number}")
        await self.progress()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        async with asyncio.timeout(WITHIN_S):
            await self._tasks.__aexit__(kind, error, traceback)

    async def _work(self, number: int) -> None:
        key, partition = b"worker-%d" % number, number % PARTITIONS
        loop = asyncio.get_running_loop()
        acknowledged = self.acknowledged[key] = []
        while not self._stopping:
            first = self.sent[key]
            self.sent[key] += _BURST
            values = [b"%d" % value for value in range(first, first + _BURST)]
            acknowledged += await self.send(key, partition, values)
            now = loop.time()
            silence = now - self._heard[partition]
            self._silences[partition] = max(self._silences[partition], silence)
            self._heard[partition] = now
            self._counts[partition] += len(values)
            async with self._news:
                self._news.notify_all()
            await asyncio.sleep(_PAUSE_S)

    async def progress(self, count: int = PROGRESS) -> None:
        """Until every partition has acknowledged so many more records."""
        wanted = {partition: n + count for partition, n in self._counts.items()}
        async with asyncio.timeout(WITHIN_S), self._news:
            await self._news.wait_for(
                lambda: all(self._counts[partition] >= n for partition, n in wanted.items())
            )

    def listen(self) -> None:
        """Measure silences from now on."""
        now = asyncio.get_running_loop().time()
        self._heard = dict.fromkeys(self._counts, now)
        self._silences = dict.fromkeys(self._counts, 0.0)

    def longest_silence_ms(self) -> int:
        """Between two acknowledgements of one partition, of the worst partition."""
        return round(1000 * max(self._silences.values()))

    async def check(self, cluster: LocalCluster) -> None:
        """After the end: every node that runs has each record once, in its worker's order, where
        its acknowledgement said."""
        for node_id in cluster.running:
            stored = await read_all(cluster.nodes[node_id].client_endpoint, self.topic)
            try:
                check_account(stored, sent=self.sent, acknowledged=self.acknowledged)
            except AssertionError as error:
                error.add_note(f"read from node {node_id}")
                raise


class ClientLoad(Load):
    """Through one idempotent producer of the Python client. Makes its topic."""

    def __init__(self, client: Client, topic: str, *, workers: int = 2 * PARTITIONS) -> None:
        super().__init__(topic, workers=workers)
        self._client = client
        self._producer = client.producer(topic, batch_bytes_max=_BATCH_BYTES)

    async def __aenter__(self) -> Self:
        await self._client.admin.create_topic(self.topic, partitions=PARTITIONS)
        await self._producer.start()
        return await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(kind, error, traceback)
        finally:
            self._producer.abort()

    async def send(self, key: bytes, partition: int, values: Sequence[bytes]) -> list[Place]:
        sends = [self._producer.send(value, key=key, partition=partition) for value in values]
        stored = [await sent for sent in sends]
        return [Place(metadata.partition, metadata.offset) for metadata in stored]


class StubLoad(Load):
    """Through generated stubs, one unary call at a time and worker, each with a producer identity.
    `choose` gives the stubs for the next call. The topic is there already."""

    def __init__(self, choose: Callable[[], Stubs], topic: str) -> None:
        super().__init__(topic, workers=PARTITIONS)
        self._choose = choose
        self._identities: dict[bytes, messaging_pb2.OpenProducerResponse] = {}

    async def send(self, key: bytes, partition: int, values: Sequence[bytes]) -> list[Place]:
        opened = self._identities.get(key)
        if opened is None:
            request = messaging_pb2.OpenProducerRequest(topics=[self.topic])
            opened = await self._choose().messaging.OpenProducer(request, timeout=TIMEOUT_S)
            self._identities[key] = opened
        request = messaging_pb2.ProduceRequest(
            topic=self.topic,
            partition=partition,
            batch=batch(*values, key=key),
            producer=messaging_pb2.ProducerIdentity(
                producer_id=opened.producer_id, epoch=opened.epoch, base_sequence=int(values[0])
            ),
        )
        stored = await self._choose().messaging.Produce(request, timeout=TIMEOUT_S)
        return [Place(stored.partition, stored.base_offset + i) for i in range(len(values))]


async def leader_of(client: Client, topic: str, partition: int = 0) -> int:
    """Its node id, as the node asked knows it."""
    metadata = await client.admin.metadata(topic)
    return metadata.topics[0].partitions[partition].leader.node_id


def check_account(
    stored: Mapping[int, Sequence[Stored]],
    *,
    sent: Mapping[bytes, int],
    acknowledged: Mapping[bytes, Sequence[Place]],
) -> None:
    """Values of each key are 0, 1, 2, ... in order of offset, at least those acknowledged, at most
    those sent; acknowledgements tell the truth about where they are."""
    places: dict[bytes, list[tuple[bytes, Place]]] = {}
    for partition, records in stored.items():
        offsets = [record.offset for record in records]
        assert offsets == list(range(len(offsets))), f"partition {partition}: offsets with gaps"
        for offset, key, value in records:
            places.setdefault(key, []).append((value, Place(partition, offset)))
    assert places.keys() <= sent.keys(), "keys that nobody sent"
    for key, told in acknowledged.items():
        found = places.get(key, [])
        values = [int(value) for value, _ in found]
        lost = sorted(set(range(len(told))) - set(values))
        twice = [value for value, count in Counter(values).items() if count > 1]
        assert not lost, f"{key!r}: {len(lost)} acknowledged records lost: {lost[:5]} ..."
        assert not twice, f"{key!r}: {len(twice)} records stored twice: {twice[:5]} ..."
        assert values == sorted(values), f"{key!r}: out of order"
        assert len(values) <= sent[key], f"{key!r}: more than was sent"
        wrong = [n for n, place in enumerate(told) if found[n][1] != place]
        assert not wrong, f"{key!r}: {len(wrong)} records are not where was told: {wrong[:5]} ..."
