"""Partitions of a Read that this node has no replica of, from a node that has."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

from node.services.errors import reason_of
from node.services.methods import FORWARDED_READ
from node.services.reading_local import TURN_BYTES, Cursor
from node.v1 import wire_pb2 as wire
from quorumq.channel import CallFailed, Channel, ResponseStream
from quorumq.v1 import messaging_pb2 as pb

logger = logging.getLogger(__name__)

CONNECT_S = 2.0
SILENCE_S_MAX = 45.0  # nodes say something every 15 s
_BUFFERED_BYTES_MAX = 1 << 20


class RelaySource:
    """`ready(self)` is called when there is something to take, `heard` with each cursor that the
    node serves, `give_back` with those that it does not (any more), after all that came of them was
    taken."""

    def __init__(
        self,
        cursors: Iterable[Cursor],
        *,
        ready: Callable[[RelaySource], None],
        heard: Callable[[Cursor], None],
        give_back: Callable[[list[Cursor]], None],
    ) -> None:
        self._cursors = {cursor.partition: cursor for cursor in cursors}
        self._ready = ready
        self._heard = heard
        self._give_back = give_back
        self._buffer: deque[wire.ReadResponse] = deque()
        self._buffered_bytes = 0
        self._taken = asyncio.Event()

    @property
    def has_more(self) -> bool:
        return bool(self._buffer)

    def take(self) -> list[wire.ReadResponse]:
        """About TURN_BYTES, or what there is."""
        responses: list[wire.ReadResponse] = []
        size = 0
        while self._buffer and size < TURN_BYTES:
            response = self._buffer.popleft()
            size += _batch_bytes(response)
            responses.append(response)
        self._buffered_bytes -= size
        self._taken.set()
        return responses

    async def run(self, channel: Channel, request: pb.ReadRequest) -> None:
        """As long as the stream lasts, then all cursors are given back."""
        try:
            await channel.ready(CONNECT_S)
            stream = channel.server_stream(FORWARDED_READ, request)
            try:
                await self._receive_all(stream)
            finally:
                stream.cancel()
        except CallFailed as failure:
            logger.info("reading from %s: %s", channel.endpoint, failure)
        except TimeoutError:
            logger.warning("reading from %s: silent for %g s", channel.endpoint, SILENCE_S_MAX)
        await self._all_taken()
        self._give_back(list(self._cursors.values()))

    async def _receive_all(self, stream: ResponseStream[wire.ReadResponse]) -> None:
        responses = aiter(stream)
        while True:
            while self._buffered_bytes > _BUFFERED_BYTES_MAX:
                await self._some_taken()  # meanwhile flow control holds the node back
            try:
                async with asyncio.timeout(SILENCE_S_MAX):
                    response = await anext(responses)
            except StopAsyncIteration:
                return
            match response.WhichOneof("event"):
                case "delivery":
                    self._received(response, response.delivery.partition)
                case "end_of_partition":
                    self._received(response, response.end_of_partition.partition)
                case "status" if reason_of(response.status.error) == "NOT_LEADER":
                    await self._refused(response.status.partition)
                case "status":
                    self._received(response, response.status.partition)
                case "heartbeat":
                    for cursor in self._cursors.values():
                        self._heard(cursor)
                case "go_away":
                    return

    def _received(self, response: wire.ReadResponse, partition: int) -> None:
        cursor = self._cursors.get(partition)
        if cursor is None:
            return
        self._heard(cursor)
        self._buffer.append(response)
        self._buffered_bytes += _batch_bytes(response)
        self._ready(self)

    async def _refused(self, partition: int) -> None:
        cursor = self._cursors.pop(partition, None)
        if cursor is not None:
            await self._all_taken()
            self._give_back([cursor])

    async def _some_taken(self) -> None:
        self._taken.clear()
        await self._taken.wait()

    async def _all_taken(self) -> None:
        while self._buffer:
            await self._some_taken()


def _batch_bytes(response: wire.ReadResponse) -> int:
    return len(response.delivery.batch)
