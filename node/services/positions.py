"""Commit and GetPositions: how far a stream subscription is, kept by the partitions themselves."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.controller.model import Subscription, SubscriptionKind, Topic
from node.ingest import NUMBER_MAX
from node.partition.commands import (
    POSITION_METADATA_BYTES_MAX,
    CommitPositions,
    PositionCommit,
    PositionCommitted,
    PositionsCommitted,
)
from node.partitions import LocalPartition
from node.services.call import Call, Deadline
from node.services.catalog_access import CatalogAccess
from node.services.errors import Refused, bad_request, of_reply
from node.services.fan_out import ask_all
from node.services.places import Operation, Places, propose
from quorumq.channel import Kind, method
from quorumq.v1 import messaging_pb2 as pb

POSITIONS_MAX = 10_000

# Operations of one partition. `subscription` is the identity there, `topic` is not looked at.
_COMMIT = method("partition.commit_positions", Kind.UNARY, pb.CommitRequest, pb.CommitResponse)
_GET = method("partition.get_position", Kind.UNARY, pb.GetPositionsRequest, pb.PartitionPosition)


class Positions:
    """One per node."""

    def __init__(self, *, places: Places, access: CatalogAccess) -> None:
        self._places = places
        self._access = access
        self._commit = Operation(_COMMIT, _commit_here, changes=True)
        self._get = Operation(_GET, _get_here)
        places.offer(self._commit)
        places.offer(self._get)

    async def commit(self, request: pb.CommitRequest, call: Call) -> pb.CommitResponse:
        """Raises Refused for what is wrong with the whole request; what is wrong with one partition
        is in its result."""
        deadline = Deadline.of(call)
        if not 1 <= len(request.positions) <= POSITIONS_MAX:
            raise bad_request(
                "positions", f"{len(request.positions)} given, 1 to {POSITIONS_MAX} can be"
            )
        for number, position in enumerate(request.positions):
            _check(f"positions[{number}]", position)
        _check_once("positions", (position.partition for position in request.positions))
        topic_id = request.topic_id if request.HasField("topic_id") else None
        topic = await self._places.topic(request.topic, topic_id, deadline)
        subscription = await self._subscription(topic, request.subscription, deadline)

        async def commit(position: pb.CommitPosition) -> pb.CommitResult:
            group_id = self._places.group_id(topic, position.partition)
            asked = pb.CommitRequest(
                subscription=subscription.subscription_id, positions=[position]
            )
            answer = await self._places.ask(group_id, self._commit, asked, deadline)
            return answer.results[0]

        answers = await ask_all(request.positions, commit)
        return pb.CommitResponse(
            results=[
                pb.CommitResult(partition=position.partition, error=answer.error)
                if isinstance(answer, Refused)
                else answer
                for position, answer in zip(request.positions, answers, strict=True)
            ]
        )

    async def get_positions(
        self, request: pb.GetPositionsRequest, call: Call
    ) -> pb.GetPositionsResponse:
        """The same. Positions come by partition."""
        deadline = Deadline.of(call)
        _check_once("partitions", request.partitions)
        topic_id = request.topic_id if request.HasField("topic_id") else None
        topic = await self._places.topic(request.topic, topic_id, deadline)
        subscription = await self._subscription(topic, request.subscription, deadline)
        asked = pb.GetPositionsRequest(subscription=subscription.subscription_id)

        async def get(partition: int) -> pb.PartitionPosition:
            group_id = self._places.group_id(topic, partition)
            return await self._places.ask(group_id, self._get, asked, deadline)

        partitions = sorted(request.partitions) or range(topic.partitions)
        answers = await ask_all(partitions, get)
        return pb.GetPositionsResponse(
            positions=[
                pb.PartitionPosition(partition=partition, error=answer.error)
                if isinstance(answer, Refused)
                else answer
                for partition, answer in zip(partitions, answers, strict=True)
            ]
        )

    async def _subscription(self, topic: Topic, name: str, deadline: Deadline) -> Subscription:
        """Of kind STREAM. Raises Refused."""
        found = self._places.catalog.subscription_by_name(topic.number, name)
        if found is None:  # it may have been created through another node a moment ago
            _, found = await self._access.subscription(topic.name, name, None, deadline)
        if found.kind is not SubscriptionKind.STREAM:
            raise bad_request(
                "subscription", f"{name} is of kind QUEUE: only a STREAM has positions"
            )
        return found


async def _commit_here(local: LocalPartition, request: pb.CommitRequest) -> pb.CommitResponse:
    """May be repeated: the last position stays the last."""
    commits = tuple(
        PositionCommit(
            subscription_id=request.subscription,
            position=commit.position,
            generation=commit.generation if commit.HasField("generation") else None,
            metadata=commit.metadata,
        )
        for commit in request.positions
    )
    reply = await propose(local, CommitPositions(local.replica.stamp(), commits))
    assert isinstance(reply, PositionsCommitted), f"{reply}"
    return pb.CommitResponse(
        results=[
            pb.CommitResult(partition=local.partition, position=result.position)
            if isinstance(result, PositionCommitted)
            else pb.CommitResult(partition=local.partition, error=of_reply(result).error)
            for result in reply.results
        ]
    )


async def _get_here(local: LocalPartition, request: pb.GetPositionsRequest) -> pb.PartitionPosition:
    await local.group.read_index()
    machine = local.replica.machine
    answer = pb.PartitionPosition(partition=local.partition, end_offset=machine.next_offset)
    known = machine.positions.get(request.subscription)
    if known is not None:
        answer.position, answer.generation = known.position, known.generation
        answer.metadata = known.metadata
    return answer


def _check(field: str, position: pb.CommitPosition) -> None:
    if position.position > NUMBER_MAX:
        raise bad_request(f"{field}.position", f"{position.position} is above 2^53-1")
    if position.HasField("generation") and position.generation > NUMBER_MAX:
        raise bad_request(f"{field}.generation", f"{position.generation} is above 2^53-1")
    size = len(position.metadata.encode())
    if size > POSITION_METADATA_BYTES_MAX:
        raise bad_request(
            f"{field}.metadata", f"has {size} bytes, {POSITION_METADATA_BYTES_MAX} are allowed"
        )


def _check_once(field: str, partitions: Iterable[int]) -> None:
    seen: dict[int, None] = {}
    for number, partition in enumerate(partitions):
        if partition in seen:
            raise bad_request(f"{field}[{number}]", f"partition {partition} is named twice")
        seen[partition] = None
