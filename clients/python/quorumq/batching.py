"""A batch that is being filled, sent and answered, and the future of each record in it.

A record's future is no asyncio.Future: those cost 180 ns to make, as much to resolve, and most are
never looked at one by one. It is a view of its batch, which is resolved once for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from quorumq import wire
from quorumq.errors import QuorumqError, from_message
from quorumq.records import RecordMetadata, deflated
from quorumq.v1 import messaging_pb2, records_pb2

if TYPE_CHECKING:
    from quorumq.partition_queue import PartitionQueue

RECORDS_MAX = 100_000  # in a batch, by the contract


class BatchState(Enum):
    """OPEN -> SEALED -> SENT <-> WAITING; each of them -> DONE."""

    OPEN = "open"  # takes records
    SEALED = "sealed"  # full, never sent
    SENT = "sent"  # on a link, unanswered
    WAITING = "waiting"  # was sent, is to be sent again
    DONE = "done"  # stored or given up


class Batch:
    """Records of one partition, in order, stored as one or not at all."""

    __slots__ = (
        "append_time_ms",
        "attempt",
        "base_offset",
        "base_sequence",
        "body",
        "count",
        "created_at",
        "duplicate",
        "error",
        "error_read",
        "features",
        "gave_up",
        "in_doubt",
        "is_open",
        "parts",
        "queue",
        "refusals",
        "results",
        "sent_at",
        "size",
        "state",
        "waiters",
    )

    def __init__(self, queue: PartitionQueue, created_at: float) -> None:
        self.queue = queue
        self.created_at = created_at  # loop time of its first record
        self.parts: list[bytes] = []  # of the serialised RecordList
        self.count = 0
        self.size = 0  # bytes in `parts`; records of nothing count a little more
        self.features = 0
        self.state = BatchState.OPEN
        self.is_open = True  # state is OPEN, for the hot path
        self.body = b""  # the serialised RecordBatch, once sealed
        self.base_sequence = -1  # given when first sent, never another one while in doubt
        self.attempt = 0  # of sending; tells late answers from the awaited one
        self.sent_at = 0.0
        self.in_doubt = False  # some attempt may have stored it, or may yet
        self.refusals = 0  # for backoff
        self.gave_up = False  # its records were told DeliveryTimeout, but it must still be stored
        self.base_offset = -1
        self.append_time_ms = 0
        self.duplicate = False
        self.results: Sequence[messaging_pb2.ProduceResult] = ()
        self.error: QuorumqError | None = None
        self.error_read = False
        self.waiters: list[Callable[[], object]] = []

    @property
    def resolved(self) -> bool:
        """Whether its records' futures are done."""
        return self.state is BatchState.DONE or self.gave_up

    def seal(self, *, compress: bool) -> None:
        """Take no more records; build the RecordBatch."""
        assert self.state is BatchState.OPEN, f"seal a batch in {self.state}"
        assert self.count, "seal an empty batch"
        self.state = BatchState.SEALED
        self.is_open = False
        records = b"".join(self.parts)
        self.parts = []
        assert len(records) <= self.size, f"{len(records)} bytes, {self.size} counted"
        if compress:
            compressed = deflated(records)
            if len(compressed) < len(records):
                self.body = wire.compressed_batch(
                    compressed,
                    count=self.count,
                    features=self.features | 1 << records_pb2.FEATURE_COMPRESSION,
                    codec=records_pb2.CODEC_ZSTD,
                    uncompressed_bytes=len(records),
                )
                return
        self.body = wire.record_batch(records, count=self.count, features=self.features)

    async def wait(self) -> None:
        """Until it is resolved. Each waiter has a future of its own: cancelling one is nothing to
        the others."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self.waiters.append(wake)
        await waiter

    def stored(self, answer: messaging_pb2.ProduceResponse) -> None:
        self.base_offset = answer.base_offset
        self.append_time_ms = answer.append_time_ms
        self.duplicate = answer.duplicate
        self.results = answer.results
        self._done()

    def failed(self, error: QuorumqError) -> None:
        if not self.gave_up:
            self.error = error
        self._done()

    def give_up(self, error: QuorumqError) -> None:
        """Tell its records, though the batch itself stays to be sent."""
        self.error = error
        self.gave_up = True
        self._tell()

    def outcome(self, index: int) -> RecordMetadata:
        """Of one record. Raises why it failed."""
        if self.error is not None:
            self.error_read = True
            raise self.error.with_traceback(None)
        assert self.state is BatchState.DONE
        queue = self.queue
        if self.results:
            result = self.results[index]
            if result.HasField("error"):
                self.error_read = True
                raise from_message(result.error)
            return RecordMetadata(
                queue.topic,
                result.partition,
                result.offset,
                result.append_time_ms,
                result.duplicate,
            )
        return RecordMetadata(
            queue.topic,
            queue.partition,
            self.base_offset + index,
            self.append_time_ms,
            self.duplicate,
        )

    def first_error(self) -> QuorumqError | None:
        """Of the batch or of any of its records."""
        if self.error is not None:
            return self.error
        failed = (result.error for result in self.results if result.HasField("error"))
        first = next(failed, None)
        return None if first is None else from_message(first)

    def _done(self) -> None:
        self.state = BatchState.DONE
        self.is_open = False
        self.body = b""
        self.parts = []
        if not self.gave_up:
            self._tell()

    def _tell(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter()


class RecordFuture:
    """Of one record: await it, or ask `done()` and `result()`. Cancelling who waits for it stops
    neither the record nor others who wait. Failures nobody looks at are raised by `flush`."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        batch = self._batch
        if not batch.resolved:
            yield from batch.wait().__await__()
        return batch.outcome(self._index)

    def done(self) -> bool:
        """Stored or failed."""
        return self._batch.resolved

    def result(self) -> RecordMetadata:
        """Raises why it failed, or asyncio.InvalidStateError while it is not done."""
        if not self._batch.resolved:
            raise asyncio.InvalidStateError("the record is not yet acknowledged")
        return self._batch.outcome(self._index)

    def exception(self) -> QuorumqError | None:
        """Why it failed; None = it is stored. Raises InvalidStateError while it is not done."""
        try:
            self.result()
        except QuorumqError as error:
            return error
        return None

    def add_done_callback(self, callback: Callable[[RecordFuture], object]) -> None:
        """Call it from the loop when done, soon if it is done."""
        loop = asyncio.get_running_loop()
        if self._batch.resolved:
            loop.call_soon(callback, self)
        else:
            self._batch.waiters.append(lambda: loop.call_soon(callback, self))
