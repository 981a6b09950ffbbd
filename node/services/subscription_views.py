"""A subscription in one partition, as operations that run where the partition is led.

Where a subscription begins is settled when it is created: its first position is written into every
partition's log then. Were it looked up when somebody first reads, `latest` would skip what was
stored in between.
"""

from __future__ import annotations

from cluster.raft.errors import NotLeader
from node.partition import commands
from node.partitions import LocalPartition
from node.services.errors import of_reply
from node.services.places import Operation, Places, propose
from quorumq.channel import Kind, method
from quorumq.v1 import admin_pb2 as pb


class SubscriptionViews:
    """One per node. Requests name the subscription by `name`, which holds its id."""

    def __init__(self, places: Places) -> None:
        answer = pb.SubscriptionPartition
        self.begin = Operation(
            method("subscription.begin", Kind.UNARY, pb.CreateSubscriptionRequest, answer),
            _begin,
            changes=True,
        )
        self.describe = Operation(
            method("subscription.describe", Kind.UNARY, pb.DescribeSubscriptionRequest, answer),
            _describe,
        )
        self.forget = Operation(
            method("subscription.forget", Kind.UNARY, pb.DeleteSubscriptionRequest, answer),
            _forget,
            changes=True,
        )
        for operation in (self.begin, self.describe, self.forget):
            places.offer(operation)


async def _begin(
    local: LocalPartition, request: pb.CreateSubscriptionRequest
) -> pb.SubscriptionPartition:
    """A position that is there already stays."""
    await local.group.read_index()
    if local.replica.machine.positions.get(request.name) is None:
        _check_leads(local)
        position = commands.PositionCommit(request.name, _start_offset(local, request.start))
        command = commands.CommitPositions(local.replica.stamp(), (position,))
        reply = await propose(local, command)
        assert isinstance(reply, commands.PositionsCommitted), f"{reply}"
        (result,) = reply.results
        if isinstance(result, commands.Refused):
            raise of_reply(result)
    return _seen(local, request.name)


async def _describe(
    local: LocalPartition, request: pb.DescribeSubscriptionRequest
) -> pb.SubscriptionPartition:
    await local.group.read_index()
    _check_leads(local)
    return _seen(local, request.name)


async def _forget(
    local: LocalPartition, request: pb.DeleteSubscriptionRequest
) -> pb.SubscriptionPartition:
    _check_leads(local)
    await propose(local, commands.DropPositions(local.replica.stamp(), (request.name,)))
    return pb.SubscriptionPartition(partition=local.partition)


def _start_offset(local: LocalPartition, start: pb.StartPosition) -> int:
    match start.WhichOneof("at"):
        case "earliest":
            return local.replica.machine.first_offset
        case "time_ms":
            return local.replica.offset_appended_at(start.time_ms)
        case _:
            return local.replica.machine.next_offset


def _seen(local: LocalPartition, subscription_id: str) -> pb.SubscriptionPartition:
    """A partition without a position counts as read from its first record."""
    machine = local.replica.machine
    known = machine.positions.get(subscription_id)
    position = known.position if known is not None else machine.first_offset
    next_offset = max(position, machine.first_offset)
    row = local.replica.find(next_offset)
    age_ms = local.replica.stamp().wall_time_ms - row.append_time_ms if row is not None else 0
    return pb.SubscriptionPartition(
        partition=local.partition,
        ack_floor=position,
        backlog_records=machine.next_offset - next_offset,
        oldest_unsettled_ms=max(0, age_ms),
        generation=known.generation if known is not None else 0,
    )


def _check_leads(local: LocalPartition) -> None:
    """Only a leader may stamp. Raises NotLeader."""
    if not local.replica.leader_term:
        raise NotLeader("this replica does not lead", leader_id=local.group.leader_replica)
