"""What a reader has running: one Read stream to each leader of its partitions, begun anew where it
stood whenever one breaks, and a bounded buffer of what came.

Where reading goes on is kept as an offset for each partition from the beginning (the reader asks
for offsets before it starts), so a broken stream can neither skip nor repeat a record.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from quorumq import methods
from quorumq.channel import CallFailed, ResponseStream
from quorumq.connection import CONNECT_TIMEOUT_S, Connection, Node, TopicRoute, backoff_s
from quorumq.errors import (
    Closed,
    ConnectionLost,
    Corrupt,
    FeatureNotEnabled,
    QuorumqError,
    Unreachable,
    from_message,
    from_status,
)
from quorumq.records import ReadBatch
from quorumq.tasks import Tasks
from quorumq.v1 import messaging_pb2, records_pb2

BUFFERED_BYTES_MAX = 8 * 1024 * 1024
SILENCE_S_MAX = 45.0  # nodes say something every 15 s
LEFT_NODE_AVOIDED_S = 5.0


@dataclass(slots=True)
class FetchPosition:
    """`next_offset`: what to ask for next; all below is in the buffer or was taken from it.
    `until`: the first offset that is not wanted; None = go on for ever."""

    next_offset: int
    until: int | None
    ended: bool = False


Event = ReadBatch | QuorumqError | int  # a partition's number: it has ended


class Fetcher:
    """Streams of one reader. `positions` by partition."""

    def __init__(
        self,
        connection: Connection,
        route: TopicRoute,
        positions: dict[int, FetchPosition],
        *,
        follow: bool,
        max_message_bytes: int,
        timeout_s: float,
    ) -> None:
        self._connection = connection
        self._route = route
        self._positions = positions
        self._follow = follow
        self._max_message_bytes = max_message_bytes
        self._timeout_s = timeout_s
        self._events: deque[tuple[Event, int]] = deque()  # with their bytes
        self._buffered_bytes = 0
        self._changed: list[asyncio.Future[None]] = []
        self._failing_since: float | None = None
        self._failures = 0
        self._closed = False
        self._tasks = Tasks(self._task_failed)

    def start(self) -> None:
        self._assign([number for number, at in self._positions.items() if not at.ended])

    async def next_event(self) -> Event | None:
        """None: all partitions have ended and nothing is left. Raises Closed after `close`."""
        while not self._events:
            if self._closed:
                raise Closed(f"the reader of {self._route.name} is closed")
            if all(at.ended for at in self._positions.values()):
                return None
            await self._change()
        event, size = self._events.popleft()
        self._buffered_bytes -= size
        self._tell()
        return event

    def next_offset(self, partition: int) -> int:
        return self._positions[partition].next_offset

    async def close(self) -> None:
        self._closed = True
        self._tell()
        await self._tasks.close()

    # ------------------------------------------------------------------------------------- streams

    def _assign(self, partitions: Sequence[int]) -> None:
        """One stream to each node that leads some of them."""
        now = asyncio.get_running_loop().time()
        by_node: dict[str, list[int]] = {}
        for partition in partitions:
            node = self._connection.leader_node(self._route, partition)
            if node is None or not node.usable(now):
                node = self._connection.pick()
            by_node.setdefault(node.endpoint, []).append(partition)
        for endpoint, numbers in by_node.items():
            stream = self._stream_to(self._connection.node(endpoint), numbers)
            self._tasks.start(stream, name=f"read of {self._route.name} at {endpoint}")

    async def _stream_to(self, node: Node, partitions: Sequence[int]) -> None:
        """Read these until they have ended, or the stream has; then hand over what is left."""
        left = list(partitions)
        try:
            await node.channel.ready(CONNECT_TIMEOUT_S)
            stream = node.channel.server_stream(methods.READ, self._request(partitions))
            try:
                await self._take_all(node, stream)
            finally:
                stream.cancel()
            left = self._unfinished(partitions)
            if left:
                raise ConnectionLost(f"{node.endpoint} ended the stream")
        except CallFailed as failure:
            error = from_status(failure.code, failure.details, failure.trailers)
            left = self._unfinished(partitions)
            await self._stream_failed(node, left, error)
        except QuorumqError as error:
            await self._stream_failed(node, left, error)
        if left := self._unfinished(left):
            self._assign(left)

    async def _stream_failed(self, node: Node, left: Sequence[int], error: QuorumqError) -> None:
        """Wait as long as there is reason to; or end the partitions if there is no hope."""
        loop = asyncio.get_running_loop()
        if not (error.retriable or not error.outcome_known):
            for partition in left:
                self._positions[partition].ended = True
            self._put(error, 0)
            return
        if isinstance(error, ConnectionLost | Unreachable) or error.reason == "NODE_DRAINING":
            node.failed()
        self._failures += 1
        now = loop.time()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > self._timeout_s:
            self._failing_since = None  # tell once in a while, and go on trying
            self._put(error, 0)
        self._connection.refresh_soon(self._route)
        wait_s = backoff_s(self._failures, self._connection.rng)
        if error.retry_after_ms is not None:
            wait_s = max(wait_s, error.retry_after_ms / 1000)
        await asyncio.sleep(wait_s)

    async def _take_all(
        self, node: Node, stream: ResponseStream[messaging_pb2.ReadResponse]
    ) -> None:
        iterator = aiter(stream)
        while True:
            while self._buffered_bytes > BUFFERED_BYTES_MAX:
                await self._change()  # the transport's flow control holds the node back
            try:
                async with asyncio.timeout(SILENCE_S_MAX):
                    response = await anext(iterator)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise ConnectionLost(
                    f"{node.endpoint} was silent for {SILENCE_S_MAX:g} s"
                ) from None
            self._failures = 0
            self._failing_since = None
            node.succeeded()
            if response.WhichOneof("event") == "go_away":
                node.avoid(LEFT_NODE_AVOIDED_S)
                raise ConnectionLost(f"{node.endpoint} goes away")
            self._take(response)

    # -------------------------------------------------------------------------------------- events

    def _take(self, response: messaging_pb2.ReadResponse) -> None:
        kind = response.WhichOneof("event")
        if kind == "delivery":
            self._take_delivery(response.delivery)
        elif kind == "end_of_partition":
            end = response.end_of_partition
            at = self._positions[end.partition]
            at.next_offset = max(at.next_offset, end.next_offset)
            self._end(end.partition)
        elif kind == "status":
            self._take_status(response.status)

    def _take_delivery(self, delivery: messaging_pb2.Delivery) -> None:
        at = self._positions[delivery.partition]
        if delivery.next_offset <= at.next_offset or at.ended:
            return
        batch = ReadBatch(self._route.name, delivery)
        if delivery.base_offset < at.next_offset or (
            at.until is not None and delivery.next_offset > at.until
        ):
            try:
                batch.cut(at.next_offset, at.until)
            except (Corrupt, FeatureNotEnabled) as error:  # of this batch: it is skipped
                at.next_offset = delivery.next_offset
                self._put(error, 0)
                return
        at.next_offset = batch.next_offset
        self._put(batch, delivery.ByteSize())

    def _take_status(self, status: messaging_pb2.PartitionStatus) -> None:
        """Trouble that passes is waited for; a record that cannot be had is told and skipped."""
        if not status.HasField("error") or status.error.retriable:
            return
        at = self._positions[status.partition]
        error = from_message(status.error)
        where = f"partition {status.partition}"
        if status.HasField("offset"):
            where += f", offset {status.offset}"
        error.message = f"{where}: {error.message}"
        if status.HasField("next_offset"):
            at.next_offset = max(at.next_offset, status.next_offset)
        else:
            at.ended = True
        self._put(error, 0)

    def _end(self, partition: int) -> None:
        at = self._positions[partition]
        if not at.ended:
            at.ended = True
            self._put(partition, 0)

    def _unfinished(self, partitions: Sequence[int]) -> list[int]:
        """Also ends those that have reached `until` without having been told so."""
        for partition in partitions:
            at = self._positions[partition]
            if at.until is not None and at.next_offset >= at.until:
                self._end(partition)
        return [partition for partition in partitions if not self._positions[partition].ended]

    def _request(self, partitions: Sequence[int]) -> messaging_pb2.ReadRequest:
        return messaging_pb2.ReadRequest(
            topic=self._route.name,
            topic_id=self._route.topic_id,
            partitions=[
                messaging_pb2.ReadPartition(
                    partition=partition,
                    offset=self._positions[partition].next_offset,
                    until_offset=self._positions[partition].until,
                )
                for partition in partitions
            ],
            max_message_bytes=self._max_message_bytes,
            follow=self._follow,
            accept_codecs=[records_pb2.CODEC_ZSTD],
        )

    def _put(self, event: Event, size: int) -> None:
        self._events.append((event, size))
        self._buffered_bytes += size
        self._tell()

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        await waiter

    def _tell(self) -> None:
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _task_failed(self, name: str, error: BaseException) -> None:
        """A bug of ours: nothing more comes of those partitions, and the reader must hear of it."""
        for at in self._positions.values():
            at.ended = True
        self._put(QuorumqError(f"{name} failed: {error!r}", reason="INTERNAL"), 0)
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"{name} failed", "exception": error}
        )
