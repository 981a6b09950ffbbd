"""Streams to the other nodes, to send on what they lead: one pipelined stream a node, made when it
is first needed and again when it broke."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.tasks import TaskGroup
from node.services.methods import FORWARDED_PRODUCE
from node.services.peer_channel import NodeChannels
from node.v1 import wire_pb2 as wire
from quorumq.channel import Channel
from quorumq.errors import QuorumqError
from quorumq.produce_link import OUTSTANDING_MAX, ProduceLink

Answered = Callable[[wire.ProduceStreamResponse | QuorumqError], None]

_RETRY_S = 0.1  # between two attempts to connect to the same node


class Link:
    """To one node, as long as its stream lives."""

    def __init__(self, channel: Channel, on_end: Callable[[], None]) -> None:
        self._channel = channel
        self._link = ProduceLink(
            channel,
            FORWARDED_PRODUCE,
            attach_id=_attach_id,
            id_of=lambda response: response.produced.request_id,
            on_end=lambda _error: on_end(),
        )

    @property
    def is_full(self) -> bool:
        return self._link.outstanding >= OUTSTANDING_MAX

    def send(self, request: wire.ProduceRequest, answered: Answered) -> None:
        self._link.send(wire.ProduceStreamRequest(produce=request), answered)

    async def close(self) -> None:
        await self._link.close()
        await self._channel.close()


class Links:
    def __init__(self, *, channels: NodeChannels, tasks: TaskGroup) -> None:
        self._channels = channels
        self._tasks = tasks
        self._links: dict[int, Link] = {}
        self._not_before: dict[int, float] = {}

    def to(self, node_id: int) -> Link | None:
        """None while the node cannot be reached: try again in a moment."""
        link = self._links.get(node_id)
        if link is not None:
            return link
        if asyncio.get_running_loop().time() < self._not_before.get(node_id, 0.0):
            return None
        link = Link(self._channels(node_id), lambda: self._ended(node_id))
        self._links[node_id] = link
        return link

    async def close(self) -> None:
        while self._links:
            _, link = self._links.popitem()
            await link.close()

    def _ended(self, node_id: int) -> None:
        link = self._links.pop(node_id, None)
        if link is not None:
            self._not_before[node_id] = asyncio.get_running_loop().time() + _RETRY_S
            self._tasks.start(link.close(), name=f"close link to node {node_id}")


def _attach_id(request: wire.ProduceStreamRequest, request_id: int) -> wire.ProduceStreamRequest:
    request.produce.request_id = request_id
    return request
