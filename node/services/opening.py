"""OpenProducer: an identity, and its epoch made real in every partition before the answer."""

from __future__ import annotations

import asyncio

from cluster.controller import commands as c
from cluster.controller.access import ControllerAccess, ProducerIds
from cluster.controller.model import Topic, is_topic_name
from cluster.tasks import TaskGroup
from node.metrics import NodeCounters
from node.partition.commands import OpenProducer, ProducerOpened
from node.partitions import LocalPartition
from node.services.call import Call, Deadline
from node.services.errors import Refused, bad_request
from node.services.places import Operation, Places, propose
from quorumq.channel import Kind, method
from quorumq.v1 import messaging_pb2 as pb

TOPICS_MAX = 100
_AT_ONCE = 64  # partitions asked at a time

_OPEN = method("partition.open_producer", Kind.UNARY, pb.ProducerIdentity, pb.ProducerPartition)


class Opening:
    def __init__(
        self,
        *,
        places: Places,
        controller: ControllerAccess,
        producer_ids: ProducerIds,
        counters: NodeCounters,
    ) -> None:
        self._places = places
        self._controller = controller
        self._producer_ids = producer_ids
        self._counters = counters
        self._open = Operation(_OPEN, _open_in_partition, changes=True)
        places.offer(self._open)

    async def open_producer(
        self, request: pb.OpenProducerRequest, call: Call
    ) -> pb.OpenProducerResponse:
        """Raises Refused. A nameless identity is new, so there is nothing older to fence, and no
        partition is asked."""
        deadline = Deadline.of(call)
        if not 1 <= len(request.topics) <= TOPICS_MAX:
            raise bad_request("topics", f"{len(request.topics)} given, 1 to {TOPICS_MAX} can be")
        topics = [await self._places.topic(name, None, deadline) for name in request.topics]
        topics = list({topic.number: topic for topic in topics}.values())
        named = request.HasField("name")
        if named:
            producer_id, epoch = await self._named(request.name, deadline)
        else:
            producer_id, epoch = await self._producer_ids.next(), 1
        response = pb.OpenProducerResponse(producer_id=producer_id, epoch=epoch)
        for topic in topics:
            for partition in range(topic.partitions):
                response.partitions.add(
                    topic=topic.name, topic_id=topic.topic_id, partition=partition
                )
        if named:
            await self._fence(response, topics, deadline)
        self._counters.producers_opened += 1
        return response

    async def _named(self, name: str, deadline: Deadline) -> tuple[int, int]:
        full = name if "/" in name else f"default/{name}"
        if not is_topic_name(full):
            raise Refused("BAD_NAME", f"{name!r} is no producer name: [namespace/]name")
        reply = await self._controller.propose(
            c.OpenNamedProducer(name=full), timeout_ms=max(1, int(deadline.left_s() * 1000))
        )
        if isinstance(reply, c.Refused):
            raise Refused("QUOTA" if reply.reason == c.Reason.QUOTA else "BAD_NAME", reply.message)
        assert isinstance(reply, c.NamedProducerOpened), f"{reply!r}"
        return reply.producer_id, reply.epoch

    async def _fence(
        self, response: pb.OpenProducerResponse, topics: list[Topic], deadline: Deadline
    ) -> None:
        by_name = {topic.name: topic for topic in topics}
        room = asyncio.Semaphore(_AT_ONCE)
        identity = pb.ProducerIdentity(producer_id=response.producer_id, epoch=response.epoch)

        async def fence(row: pb.ProducerPartition) -> None:
            group_id = by_name[row.topic].group_ids[row.partition]
            async with room:
                row.MergeFrom(await self._places.ask(group_id, self._open, identity, deadline))

        async with TaskGroup("open producer") as tasks:
            for row in response.partitions:
                tasks.start(fence(row), name=f"fence {row.topic}/{row.partition}")


async def _open_in_partition(
    local: LocalPartition, request: pb.ProducerIdentity
) -> pb.ProducerPartition:
    stamp = local.replica.stamp()
    reply = await propose(local, OpenProducer(stamp, request.producer_id, request.epoch))
    assert isinstance(reply, ProducerOpened), f"{reply!r}"
    return pb.ProducerPartition(
        partition=local.partition,
        last_sequence=reply.last_sequence,
        last_offset=reply.last_offset,
        producer_state=reply.producer_state,
    )
