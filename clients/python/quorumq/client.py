"""The client: one connection to a cluster, and what is opened on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Self

from quorumq.admin import Admin
from quorumq.channel import Channel, ChannelFactory
from quorumq.connection import Connection
from quorumq.errors import QuorumqError, Unavailable
from quorumq.producer import BATCH_BYTES_MAX, BUFFER_BYTES_MAX, Producer
from quorumq.reader import MAX_MESSAGE_BYTES, Reader, Start


class Client:
    """From `connect`. Closing it closes all that was opened with it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.admin = Admin(connection)
        self._producers: list[Producer] = []
        self._readers: list[Reader] = []

    def producer(
        self,
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
    ) -> Producer:
        """A producer to one topic, to be started: `async with client.producer("t") as producer`.

        `name`: survives this process. Opening it again continues it and stops the older process.
        `idempotent`: False = nothing is sent twice, and a record whose connection broke fails with
        OutcomeUnknown. `linger_ms`: how long a record may wait for others. `in_flight_max`: batches
        of the topic sent and not answered, 1 to 64. `buffer_bytes_max`: records sent and not
        acknowledged; then `send` raises BufferFull. `compression`: None or "zstd".
        `open_timeout_ms`: how long starting it may take before an error is raised."""
        producer = Producer(
            self.connection,
            topic,
            name=name,
            idempotent=idempotent,
            linger_ms=linger_ms,
            batch_bytes_max=batch_bytes_max,
            in_flight_max=in_flight_max,
            buffer_bytes_max=buffer_bytes_max,
            compression=compression,
            delivery_timeout_ms=delivery_timeout_ms,
            open_timeout_ms=open_timeout_ms,
        )
        self._producers = [other for other in self._producers if not other.closed]
        self._producers.append(producer)
        return producer

    def reader(
        self,
        topic: str,
        *,
        start: Start | Mapping[int, Start] = "earliest",
        partitions: Sequence[int] | None = None,
        follow: bool = True,
        max_records: int | None = None,
        by_created: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        timeout_ms: int = 30_000,
    ) -> Reader:
        """A reader of partitions of one topic: `async for record in client.reader("t")`.

        `start`: "earliest", "latest", an offset, or a Time, for all partitions or for each.
        `partitions`: None = all. `follow`: False = end at the end as it is when reading begins.
        `by_created`: search a Time by the records' own timestamps. `timeout_ms`: how long to try to
        reach a node before an error is raised."""
        reader = Reader(
            self.connection,
            topic,
            start=start,
            partitions=partitions,
            follow=follow,
            max_records=max_records,
            by_created=by_created,
            max_message_bytes=max_message_bytes,
            timeout_ms=timeout_ms,
        )
        self._readers = [other for other in self._readers if not other.closed]
        self._readers.append(reader)
        return reader

    async def close(self) -> None:
        """Flush and close the producers, close the readers and all connections. Raises the first
        error of a producer, as its `close` does, after everything is closed."""
        failed: QuorumqError | None = None
        try:
            for producer in self._producers:
                try:
                    await producer.close()
                except QuorumqError as error:
                    failed = failed or error
        finally:
            await self._end()
        if failed is not None:
            raise failed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """`close`; when the block raised, producers are aborted, not flushed, and the block's error
        is the only one."""
        if kind is None:
            await self.close()
        else:
            await self._end()

    async def _end(self) -> None:
        for producer in self._producers:
            producer.abort()
        for reader in self._readers:
            await reader.close()
        await self.connection.close()


async def connect(
    servers: str | Sequence[str],
    *,
    timeout_ms: int = 10_000,
    channels: ChannelFactory | None = None,
    rng: Random | None = None,
) -> Client:
    """A client of the cluster that `servers` ("host:port,host:port" or a list) belong to. One that
    can be reached is enough; the others are learned. Raises Unavailable when none answers within
    `timeout_ms`.

    `channels` makes the channel to an endpoint, by default over gRPC; `rng` decides what is left
    to chance: a simulation gives both."""
    given = servers.split(",") if isinstance(servers, str) else servers
    endpoints = [server.strip() for server in given if server.strip()]
    if not endpoints:
        raise ValueError("connect needs at least one host:port")
    connection = Connection(endpoints, channels=channels or _grpc, rng=rng or Random())
    try:
        await connection.metadata([], timeout_s=timeout_ms / 1000)
    except BaseException as error:
        await asyncio.shield(connection.close())
        if not isinstance(error, QuorumqError) or not (error.retriable or not error.outcome_known):
            raise
        asked = ", ".join(endpoints)
        raise Unavailable(f"none of {asked} answered within {timeout_ms} ms: {error}") from None
    return Client(connection)


def _grpc(endpoint: str) -> Channel:
    from quorumq.grpc_channel import GrpcChannel

    return GrpcChannel(endpoint)
