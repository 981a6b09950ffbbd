"""Read: partitions of a topic, without a subscription, through any node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from node.metrics import NodeCounters
from node.services.call import Call, Deadline
from node.services.errors import Refused, reason_of
from node.services.offsets import Offsets
from node.services.peer_channel import NodeChannels
from node.services.places import Places
from node.services.reading_request import check_limits, check_partitions
from node.services.reading_session import ReadSession
from node.v1 import wire_pb2 as wire
from quorumq.channel import Channel
from quorumq.v1 import messaging_pb2 as pb


class Reading:
    """One per node. `draining`: the node goes away, streams end with a GoAway. `wall_ms`: this
    node's clock, shown in heartbeats. Above `streams_max` a Read is refused with THROTTLED."""

    def __init__(
        self,
        *,
        places: Places,
        offsets: Offsets,
        channels: NodeChannels,
        draining: asyncio.Event,
        counters: NodeCounters,
        wall_ms: Callable[[], int],
        streams_max: int = 2_000,
    ) -> None:
        self._places = places
        self._offsets = offsets
        self._new_channel = channels
        self._draining = draining
        self._counters = counters
        self._wall_ms = wall_ms
        self._streams_max = streams_max
        self._channels: dict[int, Channel] = {}  # by node id

    def read(self, request: pb.ReadRequest, call: Call) -> AsyncGenerator[wire.ReadResponse, None]:
        """Raises Refused before anything is sent. Trouble of one partition is told in a status and
        ends, at most, that partition."""
        return self._read(request, call, is_forwarded=False)

    def read_forwarded(
        self, request: pb.ReadRequest, call: Call
    ) -> AsyncGenerator[wire.ReadResponse, None]:
        """The same for another node: partitions that this node can not serve are refused one by one
        with NOT_LEADER."""
        return self._read(request, call, is_forwarded=True)

    async def close(self) -> None:
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    async def _read(
        self, request: pb.ReadRequest, call: Call, *, is_forwarded: bool
    ) -> AsyncGenerator[wire.ReadResponse, None]:
        self._refuse_if_full()
        self._counters.read_streams_now += 1
        try:
            taken = check_limits(request)
            topic_id = request.topic_id if request.HasField("topic_id") else None
            topic = await self._places.topic(request.topic, topic_id, Deadline.of(call))
            wanted = check_partitions(request, topic)
            session = ReadSession(
                places=self._places,
                offsets=self._offsets,
                channels=self._channel,
                draining=self._draining,
                counters=self._counters,
                wall_ms=self._wall_ms,
                topic=topic,
                request=request,
                taken=taken,
                is_forwarded=is_forwarded,
            )
            async with aclosing(session.responses(wanted)) as responses:
                async for response in responses:
                    if not is_forwarded and response.status.HasField("error"):
                        self._counters.count_error(reason_of(response.status.error))
                    yield response
        finally:
            self._counters.read_streams_now -= 1

    def _refuse_if_full(self) -> None:
        if self._draining.is_set():
            raise Refused("NODE_DRAINING", "the node is going away: read through another one")
        if self._counters.read_streams_now >= self._streams_max:
            self._counters.throttled_requests += 1
            raise Refused(
                "THROTTLED", f"{self._streams_max} streams are read already", retry_after_ms=1_000
            )

    def _channel(self, node_id: int) -> Channel:
        channel = self._channels.get(node_id)
        if channel is None:
            channel = self._channels[node_id] = self._new_channel(node_id)
        return channel
