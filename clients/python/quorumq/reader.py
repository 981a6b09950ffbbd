"""The reader: records of partitions in order, from where one likes, across every change of leader.

Within a partition records come in order of offset, each once. Between partitions there is no order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self

from quorumq import methods
from quorumq.connection import Connection, TopicRoute
from quorumq.errors import Closed, OffsetOutOfRange, PartitionNotFound, QuorumqError, from_message
from quorumq.fetching import Fetcher, FetchPosition
from quorumq.records import ReadBatch, Record
from quorumq.v1 import admin_pb2, messaging_pb2

MAX_MESSAGE_BYTES = 4 * 1024 * 1024


class Time(NamedTuple):
    """The first record of this time or later: milliseconds since 1970-01-01 UTC."""

    ms: int


Start = Literal["earliest", "latest"] | int | Time


class Reader:
    """From `Client.reader`. Iterate over it for records, or over `batches()` for speed; one at a
    time. `async with`, or `close` it.

    An error raised while iterating does not end the reader: iterating again goes on behind it, for
    what can still be read. RecordTooLarge and Corrupt are about one record, which is skipped.
    """

    def __init__(
        self,
        connection: Connection,
        topic: str,
        *,
        start: Start | Mapping[int, Start] = "earliest",
        partitions: Sequence[int] | None = None,
        follow: bool = True,
        max_records: int | None = None,
        by_created: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        timeout_ms: int = 30_000,
    ) -> None:
        self.topic = topic
        self.closed = False
        self._connection = connection
        given = list(start.values()) if isinstance(start, Mapping) else [start]
        if any(isinstance(at, int) and at < 0 for at in given):
            raise ValueError(f"offsets begin at 0: start={start!r}")
        self._start = start
        self._wanted = partitions
        self._follow = follow
        self._left = max_records
        self._by_created = by_created
        self._max_message_bytes = max_message_bytes
        self._timeout_s = timeout_ms / 1000
        self._route: TopicRoute | None = None
        self._fetcher: Fetcher | None = None
        self._positions: dict[int, int] = {}
        self._batch: ReadBatch | None = None  # being handed out record by record
        self._records: list[Record] = []
        self._index = 0

    async def start(self) -> Self:
        """Find out where to begin and, without `follow`, where to end. Iterating does it if need
        be. Returns itself. Raises TopicNotFound, PartitionNotFound, OffsetOutOfRange (without
        `follow`; with it, iterating does), Unavailable. "earliest" with `follow` asks no leader:
        what a replica has is read while there is none, and positions are 0 until then."""
        if self._fetcher is not None or self.closed:
            return self
        route = await self._connection.topic(self.topic, timeout_s=self._timeout_s)
        wanted = list(range(route.partition_count)) if self._wanted is None else self._wanted
        starts = self._start if isinstance(self._start, Mapping) else {}
        common: Start = "earliest" if isinstance(self._start, Mapping) else self._start
        for partition in [*wanted, *starts]:
            if not 0 <= partition < route.partition_count:
                raise PartitionNotFound(f"topic {self.topic} has no partition {partition}")
        begin_at = {p: starts.get(p, common) for p in wanted}
        if self._follow:  # from 0 on a node gives what is not trimmed
            begin_at = {p: 0 if at == "earliest" else at for p, at in begin_at.items()}
        begins = await self._offsets(route, begin_at)
        ends: dict[int, int] = {}
        if not self._follow:
            ends = await self._offsets(route, dict.fromkeys(wanted, "latest"))
            for partition, end in ends.items():
                if begins[partition] > end:
                    raise OffsetOutOfRange(
                        f"partition {partition}: start is {begins[partition]}, the end {end}"
                    )
        self._route = route
        self._positions = dict(begins)
        self._fetcher = Fetcher(
            self._connection,
            route,
            {p: _fetch_position(begins[p], ends.get(p)) for p in wanted},
            follow=self._follow,
            max_message_bytes=self._max_message_bytes,
            timeout_s=self._timeout_s,
        )
        self._fetcher.start()
        return self

    def position(self, partition: int) -> int:
        """The offset to read next: behind the last record that was handed out. Raises KeyError
        for a partition that is not read, or before `start`."""
        if self._batch is not None and self._batch.partition == partition:
            return self._records[self._index].offset
        return self._positions[partition]

    @property
    def positions(self) -> dict[int, int]:
        """`position` of every partition read."""
        return {partition: self.position(partition) for partition in self._positions}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        while self._batch is None:
            batch = await self._next_batch()
            if batch is None:
                raise StopAsyncIteration
            self._records = batch.records()
            self._index = 0
            if self._records:
                self._batch = batch
        record = self._records[self._index]
        self._index += 1
        if self._left is not None:
            self._left -= 1
        if self._index == len(self._records):
            self._batch = None
        if self._left == 0:
            self._stop_behind(record)
        return record

    async def batches(self) -> AsyncIterator[ReadBatch]:
        """The same in pieces, as they were stored or sent. With `max_records`, ends at or behind
        it: pieces are not cut."""
        while (batch := await self._next_batch()) is not None:
            if self._left is not None:
                self._left = max(0, self._left - len(batch))
            yield batch

    async def commit(
        self,
        subscription: str,
        positions: Mapping[int, int] | None = None,
        *,
        metadata: str = "",
    ) -> None:
        """Store positions of a stream subscription: the next offsets to read, by default this
        reader's `positions`. Each partition stands for itself; raises the first error."""
        await self.start()
        assert self._route is not None
        chosen = self.positions if positions is None else positions
        await commit(
            self._connection,
            self._route,
            subscription,
            chosen,
            metadata=metadata,
            timeout_s=self._timeout_s,
        )

    async def close(self) -> None:
        """Stop reading. Iterating raises Closed from here on."""
        self.closed = True
        if self._fetcher is not None:
            await self._fetcher.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _next_batch(self) -> ReadBatch | None:
        """None at the end. Moves the position behind the batch."""
        if self._left == 0:
            return None
        if self.closed:
            raise Closed(f"the reader of {self.topic} is closed")
        if self._fetcher is None:
            await self.start()
        fetcher = self._fetcher
        assert fetcher is not None
        while True:
            event = await fetcher.next_event()
            if event is None:
                return None
            if isinstance(event, QuorumqError):
                raise event
            if isinstance(event, ReadBatch):
                self._positions[event.partition] = event.next_offset
                return event
            self._positions[event] = fetcher.next_offset(event)

    def _stop_behind(self, record: Record) -> None:
        """max_records is reached: the position is behind the last record, not behind its batch."""
        if self._batch is not None:
            self._positions[record.partition] = self._records[self._index].offset
            self._batch = None

    async def _offsets(self, route: TopicRoute, starts: Mapping[int, Start]) -> dict[int, int]:
        """By partition. Offsets given are taken as they are: a node tells when they are beyond the
        end."""
        asked = [(p, start) for p, start in starts.items() if not isinstance(start, int)]
        found = {p: start for p, start in starts.items() if isinstance(start, int)}
        if asked:
            request = admin_pb2.ListOffsetsRequest(
                topic=self.topic,
                topic_id=route.topic_id,
                queries=[offset_query(partition, start) for partition, start in asked],
            )
            if self._by_created:
                request.by = messaging_pb2.TIME_BY_CREATED
            response = await self._connection.call(
                methods.LIST_OFFSETS, request, timeout_s=self._timeout_s
            )
            for result in response.results:
                if result.HasField("error"):
                    raise from_message(result.error)
                found[result.partition] = result.offset
        return {partition: found[partition] for partition in starts}


async def commit(
    connection: Connection,
    route: TopicRoute,
    subscription: str,
    positions: Mapping[int, int],
    *,
    metadata: str,
    timeout_s: float,
) -> None:
    """Store positions of a stream subscription. Raises the first partition's error."""
    request = messaging_pb2.CommitRequest(
        topic=route.name,
        topic_id=route.topic_id,
        subscription=subscription,
        positions=[
            messaging_pb2.CommitPosition(partition=p, position=at, metadata=metadata)
            for p, at in positions.items()
        ],
    )
    response = await connection.call(methods.COMMIT, request, timeout_s=timeout_s)
    for result in response.results:
        if result.HasField("error"):
            raise from_message(result.error)


def offset_query(partition: int, start: Start) -> admin_pb2.OffsetQuery:
    if isinstance(start, Time):
        return admin_pb2.OffsetQuery(partition=partition, time_ms=start.ms)
    if start == "earliest":
        return admin_pb2.OffsetQuery(partition=partition, earliest=True)
    if start == "latest":
        return admin_pb2.OffsetQuery(partition=partition, latest=True)
    raise ValueError(f"start is 'earliest', 'latest', an offset or a Time, not {start!r}")


def _fetch_position(begin: int, end: int | None) -> FetchPosition:
    return FetchPosition(begin, end, ended=begin == end)
