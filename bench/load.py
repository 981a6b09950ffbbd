"""Work at a steady pace, whatever the answers do: who waits for answers measures only the times
that were good enough to send in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import NamedTuple

from bench.latencies import Latencies
from quorumq import Producer, RecordFuture


class Sample(NamedTuple):
    """A record that was acknowledged. Seconds of the load's clock."""

    partition: int
    intended: float
    answered: float


class SteadyLoad:
    """A record every `interval_s`, to the partitions in turn. Latencies count from the moment a
    record should have been sent."""

    def __init__(
        self,
        producer: Producer,
        *,
        partitions: int,
        interval_s: float,
        record_bytes: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.samples: list[Sample] = []
        self.failures = 0
        self._producer = producer
        self._partitions = partitions
        self._interval_s = interval_s
        self._body = os.urandom(record_bytes)
        self._clock = clock
        self._stopped = False
        self._waiting = 0  # for their acknowledgements
        self._all_answered = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the block runs; returns when all is acknowledged or has failed."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send())
            try:
                yield
            finally:
                self._stopped = True

    async def _send(self) -> None:
        began = self._clock()
        number = 0
        while True:
            intended = began + number * self._interval_s
            await asyncio.sleep(max(0.0, intended - self._clock()))
            if self._stopped:
                break
            partition = number % self._partitions
            future = self._producer.send(self._body, partition=partition)
            future.add_done_callback(partial(self._answered, partition, intended))
            self._waiting += 1
            number += 1
        while self._waiting:
            self._all_answered.clear()
            await self._all_answered.wait()

    def _answered(self, partition: int, intended: float, future: RecordFuture) -> None:
        if future.exception() is None:
            self.samples.append(Sample(partition, intended, self._clock()))
        else:
            self.failures += 1
        self._waiting -= 1
        if not self._waiting:
            self._all_answered.set()


def latencies_of(samples: Iterable[Sample]) -> Latencies:
    latencies = Latencies()
    for sample in samples:
        latencies.add(sample.answered - sample.intended)
    return latencies
