"""Producers: each has its share of the modules, so a key has one producer and with it one order."""

from __future__ import annotations

import asyncio

from node.demo.outage import Acknowledgements
from node.demo.source import Source
from quorumq import Client, RecordFuture

PRODUCERS = 3
_WATCH_EVERY = 64  # records: one of so many has its acknowledgement watched
_PAUSE_EVERY = 256
_BUFFER_BYTES = 1 << 20  # small, so that latency is the broker's and not that of a full buffer


class Published:
    """Progress of all producers. `acknowledged` lags by what is not watched until the flush."""

    def __init__(self, *, half: int) -> None:
        self.sent = 0
        self.acknowledged = 0
        self.half_way = asyncio.Event()
        self._half = half

    def acknowledge(self, count: int) -> None:
        self.acknowledged += count
        if self.acknowledged >= self._half:
            self.half_way.set()


async def publish(
    client: Client,
    topic: str,
    source: Source,
    share: int,
    published: Published,
    acknowledgements: Acknowledgements,
) -> None:
    """Every PRODUCERS-th module beginning with number `share`; returns when all of its lines are
    acknowledged. Raises the first failure."""
    loop = asyncio.get_running_loop()
    async with client.producer(topic, buffer_bytes_max=_BUFFER_BYTES) as producer:
        unwatched = since_pause = 0
        for name in sorted(source.modules)[share::PRODUCERS]:
            for line in source.modules[name]:
                future = producer.send(line, key=name)
                unwatched += 1
                if unwatched == _WATCH_EVERY:
                    future.add_done_callback(_Watched(loop, acknowledgements, published))
                    unwatched = 0
                since_pause += 1
                if since_pause == _PAUSE_EVERY:
                    published.sent += since_pause
                    since_pause = 0
                    await producer.ready()
        published.sent += since_pause
        await producer.flush()
        published.acknowledge(unwatched)


class _Watched:
    """Stands for the _WATCH_EVERY records up to its own."""

    __slots__ = ("_acknowledgements", "_loop", "_published", "_sent_at")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        acknowledgements: Acknowledgements,
        published: Published,
    ) -> None:
        self._loop = loop
        self._acknowledgements = acknowledgements
        self._published = published
        self._sent_at = loop.time()

    def __call__(self, future: RecordFuture) -> None:
        if future.exception() is None:  # else flush raises it
            partition = future.result().partition
            self._acknowledgements.add(partition, sent_at=self._sent_at, now=self._loop.time())
            self._published.acknowledge(_WATCH_EVERY)
