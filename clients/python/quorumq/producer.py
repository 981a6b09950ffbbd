"""The producer: `send` puts a record into a batch and returns its future; delivery.py does the
rest.

`send` is the hot path: a record costs a list append or two, the addition of its size and one small
object. Everything else happens once a batch (accumulator.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self
from zlib import crc32

from quorumq.accumulator import Accumulator
from quorumq.batching import RECORDS_MAX, Batch, RecordFuture
from quorumq.connection import Connection
from quorumq.delivery import Delivery
from quorumq.errors import BufferFull, Closed, InvalidRequest, ProducerFailed, QuorumqError
from quorumq.opening import OpenedPartition, open_identity, without_identity
from quorumq.partitioner import partition_of
from quorumq.records import Header, HeaderValue, RecordMetadata, encoded_header
from quorumq.v1 import records_pb2
from quorumq.wire import framed_record, keyed_heads, plain_head

BATCH_BYTES_MAX = 256 * 1024
# A record counts at least 4 bytes, and a batch holds at most 100,000 of them: with this ceiling
# nobody needs to count. A single larger record makes a batch of its own.
RECORD_BYTES_MIN = 4  # of one that is not just empty
BATCH_BYTES_CEILING = RECORD_BYTES_MIN * RECORDS_MAX
BUFFER_BYTES_MAX = 32 * 1024 * 1024
UNREAD_MAX = 1000  # failed batches kept for flush to report


class Producer:
    """Sends records to one topic. From `Client.producer`; use it as `async with`, or `start` and
    `close` it.

    Idempotent unless told otherwise: a record is stored once, however often it had to be sent, and
    the records of a partition in the order of `send`. `opened`: by partition, what was stored of
    this producer when it was started. Not for use from several event loops.
    """

    def __init__(
        self,
        connection: Connection,
        topic: str,
        *,
        name: str | None = None,
        idempotent: bool = True,
        linger_ms: float = 5.0,
        batch_bytes_max: int = BATCH_BYTES_MAX,
        in_flight_max: int = 16,
        buffer_bytes_max: int = BUFFER_BYTES_MAX,
        compression: str | None = None,
        delivery_timeout_ms: int = 120_000,
        open_timeout_ms: int = 30_000,
    ) -> None:
        if compression not in (None, "zstd"):
            raise ValueError(f"compression is None or 'zstd', not {compression!r}")
        if not 1 <= in_flight_max <= 64:
            raise ValueError(f"in_flight_max is 1 to 64, not {in_flight_max}")  # a node's window
        if name is not None and not idempotent:
            raise ValueError("a named producer is idempotent")
        if not 1 <= batch_bytes_max <= min(buffer_bytes_max, BATCH_BYTES_CEILING):
            raise ValueError(f"batch_bytes_max is 1 to {BATCH_BYTES_CEILING}, and fits the buffer")
        self.topic = topic
        self.name = name
        self.opened: Mapping[int, OpenedPartition] = {}
        self._connection = connection
        self._idempotent = idempotent
        self._linger_s = linger_ms / 1000
        self._batch_bytes_max = batch_bytes_max
        self._in_flight_max = in_flight_max
        self._buffer_bytes_max = buffer_bytes_max
        self._compress = compression == "zstd"
        self._delivery_timeout_s = delivery_timeout_ms / 1000
        self._open_timeout_s = open_timeout_ms / 1000
        self._accumulator: Accumulator | None = None
        self._delivery: Delivery | None = None
        self._refusal: QuorumqError | None = None  # why nothing is taken any more
        self._unread: list[Batch] = []  # failed since the last flush
        self._room_waiters: list[asyncio.Future[None]] = []

    # -------------------------------------------------------------------------------- lifecycle

    async def start(self) -> Self:
        """Learn where the topic is and open the identity; nothing if that was done. Returns itself.
        Raises TopicNotFound, Unavailable, InvalidRequest (a bad name), Closed."""
        if self._refusal is not None:
            raise self._no_room()
        if self._accumulator is not None:
            return self
        connection, timeout_s = self._connection, self._open_timeout_s
        route = await connection.topic(self.topic, timeout_s=timeout_s)
        if self._idempotent:
            queues, self.opened = await open_identity(
                connection, route, name=self.name, timeout_s=timeout_s
            )
        else:
            queues = without_identity(route)
        if self._refusal is not None:
            raise self._refusal  # closed meanwhile
        self._delivery = Delivery(
            connection,
            route,
            in_flight_max=self._in_flight_max,
            delivery_timeout_s=self._delivery_timeout_s,
            compress=self._compress,
            on_done=self._batch_done,
            on_fatal=self._failed,
        )
        self._accumulator = Accumulator(
            connection,
            route,
            self._delivery,
            queues,
            linger_s=self._linger_s,
            batch_bytes_max=self._batch_bytes_max,
            buffer_bytes_max=self._buffer_bytes_max,
            compress=self._compress,
        )
        return self

    @property
    def closed(self) -> bool:
        """It takes no more records: it was closed, or its identity no longer works."""
        return self._refusal is not None

    async def close(self) -> None:
        """Send what is buffered, wait until all is acknowledged or given up, and stop. Raises as
        `flush` does."""
        self._stop(Closed(f"producer of {self.topic} is closed"))
        try:
            if self._accumulator is not None:
                await self.flush()
        finally:
            self.abort()

    def abort(self) -> None:
        """Stop at once. Records that were never sent fail with NotSent, others not yet acknowledged
        with OutcomeUnknown."""
        closed = Closed(f"producer of {self.topic} is closed")
        self._stop(closed)
        if self._delivery is not None:
            self._delivery.abort(closed)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """`close`, or `abort` when the block raised."""
        if kind is None:
            await self.close()
        else:
            self.abort()

    # ---------------------------------------------------------------------------------- sending

    def send(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[Header | tuple[str, HeaderValue]] = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
        dedup_id: str | None = None,
    ) -> RecordFuture:
        """Put a record into the buffer; it is sent within `linger_ms` if the loop gets to run.
        Returns at once with the record's future.

        Where it goes: `partition` if given, else by the key, else by the dedup_id, else to whatever
        partition the records without key go to just now. `timestamp_ms` None = the time the
        partition stores it. `dedup_id`: not stored if the partition has stored this id not long
        ago, whoever sent it; such records are in no order with others.

        Raises BufferFull (await `ready()` then), RecordTooLarge, PartitionNotFound, InvalidRequest,
        Closed, or ProducerFailed once the identity no longer works. Then the record is not sent."""
        to = self._accumulator
        if to is None or to.room <= 0:
            raise self._no_room()
        if headers or timestamp_ms is not None or dedup_id is not None or type(value) is not bytes:
            return self._send_full(to, value, key, headers, partition, timestamp_ms, dedup_id)
        if key is None:
            head = plain_head(len(value))
            size = len(head) + len(value)
            if partition is None:
                batch = to.sticky
                if batch is None or not batch.is_open:
                    batch = to.next_sticky()
            else:
                queue = to.queue(partition)
                batch = queue.open or to.begin(queue)
            if size > to.record_size_max or batch.size + size > to.batch_bytes_max:
                batch = to.next_batch(batch, size, is_sticky=partition is None)
            batch.parts += (head, value)
        else:
            if type(key) is not bytes:
                return self._send_full(to, value, key, headers, partition, timestamp_ms, dedup_id)
            head, middle = keyed_heads(len(key), len(value))
            size = len(head) + len(key) + len(middle) + len(value)
            if partition is None:
                slot_map = to.slot_map
                queue = to.queues[slot_map[crc32(key) % len(slot_map)]]
            else:
                queue = to.queue(partition)
            batch = queue.open or to.begin(queue)
            if size > to.record_size_max or batch.size + size > to.batch_bytes_max:
                batch = to.next_batch(batch, size)
            batch.parts += (head, key, middle, value)
        batch.size += size
        to.room -= size
        index = batch.count
        batch.count = index + 1
        return RecordFuture(batch, index)

    async def send_and_wait(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[Header | tuple[str, HeaderValue]] = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
        dedup_id: str | None = None,
    ) -> RecordMetadata:
        """`send`, waiting for room before and for the acknowledgement after. Raises what went
        wrong."""
        while (to := self._accumulator) is not None and self._refusal is None and to.room <= 0:
            await self.ready()
        return await self.send(
            value,
            key=key,
            headers=headers,
            partition=partition,
            timestamp_ms=timestamp_ms,
            dedup_id=dedup_id,
        )

    async def ready(self) -> None:
        """Returns when at least half of the buffer is free, and lets the loop run in any case: a
        program that sends without pause awaits it every few hundred records. Raises as `send`
        does when there will be no room any more."""
        await asyncio.sleep(0)
        while True:
            to = self._accumulator
            if to is None or self._refusal is not None:
                raise self._no_room()
            if 2 * to.room >= self._buffer_bytes_max:
                return
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room_waiters.append(waiter)
            await waiter

    async def flush(self) -> None:
        """Send everything now, and wait until all that was sent before this call is acknowledged or
        given up. Raises the first error since the last flush that nobody has read from a record's
        future."""
        to = self._accumulator
        if to is None:
            raise self._no_room()
        to.send_all()
        sent = list(to.batches)
        for batch in sent:
            if not batch.resolved:
                await batch.wait()
        failed = [*self._unread, *(batch for batch in sent if batch.gave_up)]
        self._unread = []
        unread = [batch for batch in failed if not batch.error_read]
        for batch in unread:
            batch.error_read = True
        errors = [error for batch in unread if (error := batch.first_error()) is not None]
        if errors:
            raise errors[0].with_traceback(None)

    def _send_full(
        self,
        to: Accumulator,
        value: bytes | None,
        key: bytes | None,
        headers: Sequence[Header | tuple[str, HeaderValue]],
        partition: int | None,
        timestamp_ms: int | None,
        dedup_id: str | None,
    ) -> RecordFuture:
        """A record with more than key and value, or with other kinds of bytes."""
        key = _as_bytes(key)
        record = records_pb2.Record(
            key=key,
            value=_as_bytes(value),
            timestamp_ms=timestamp_ms,
            headers=[encoded_header(header) for header in headers],
            dedup_id=dedup_id or "",
        )
        is_sticky = False
        if dedup_id is not None:
            if not 1 <= len(dedup_id.encode()) <= 200:
                raise InvalidRequest(f"a dedup_id has 1 to 200 bytes: {dedup_id!r}")
            queue = to.queue_by_id(partition, key, dedup_id)
        elif partition is not None:
            queue = to.queue(partition)
        elif key is not None:
            queue = to.queues[partition_of(key, to.slot_map)]
        else:
            is_sticky = True
            sticky = to.sticky
            queue = (sticky if sticky and sticky.is_open else to.next_sticky()).queue
        framed = framed_record(record.SerializeToString())
        size = max(len(framed), RECORD_BYTES_MIN)
        batch = queue.open or to.begin(queue)
        if size > to.record_size_max or batch.size + size > to.batch_bytes_max:
            batch = to.next_batch(batch, size, is_sticky=is_sticky)
        if dedup_id is not None:
            batch.features |= 1 << records_pb2.FEATURE_DEDUP_ID
        batch.parts.append(framed)
        batch.size += size
        to.room -= size
        batch.count += 1
        return RecordFuture(batch, batch.count - 1)

    # --------------------------------------------------------------------- from the delivery

    def _batch_done(self, batch: Batch) -> None:
        to = self._accumulator
        assert to is not None
        to.done(batch)
        if len(self._unread) < UNREAD_MAX and batch.first_error() is not None:
            self._unread.append(batch)
        if self._room_waiters and 2 * to.room >= self._buffer_bytes_max:
            self._wake_room_waiters()

    def _failed(self, error: QuorumqError) -> None:
        kind = type(error) if isinstance(error, ProducerFailed) else ProducerFailed
        self._stop(kind(f"the producer of {self.topic} failed: {error}", reason=error.reason))

    def _stop(self, refusal: QuorumqError) -> None:
        """Take no more records. The first reason stays."""
        if self._refusal is None:
            self._refusal = refusal
        if self._accumulator is not None:
            self._accumulator.stop()
        self._wake_room_waiters()

    def _no_room(self) -> QuorumqError:
        if self._refusal is not None:
            return self._refusal.with_traceback(None)
        if self._accumulator is None:
            return Closed(f"producer of {self.topic} is not started")
        return BufferFull(f"{self._buffer_bytes_max} bytes wait to be acknowledged")

    def _wake_room_waiters(self) -> None:
        waiters, self._room_waiters = self._room_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _as_bytes(given: bytes | None) -> bytes | None:
    """Only bytes can be kept until they are sent without a copy."""
    if given is None or type(given) is bytes:
        return given
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    raise TypeError(f"keys and values are bytes, not {type(given).__name__}")
