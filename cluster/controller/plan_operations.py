"""How far each running operation is, and the step that ends it. Pure.

The work itself comes of the wishes (plan.py); this only compares and tells. Progress is counted in
replicas or groups: `steps_total` is what was seen at the beginning, or more if it grew since.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.controller import commands as c
from cluster.controller.catalog import Catalog
from cluster.controller.model import (
    CONTROLLER_GROUP_ID,
    Group,
    MemberState,
    Operation,
    OperationKind,
    OperationState,
)
from cluster.controller.placement import rebalance_moves

Alive = frozenset[int]
_Judge = Callable[[Catalog, Alive, Operation], list[c.Command]]


def plan_operations(catalog: Catalog, alive: Alive) -> list[c.Command]:
    """Updates and ends of running operations, and removals of nodes that are empty by now."""
    commands: list[c.Command] = []
    for operation in catalog.running_operations():
        judge = _JUDGES.get(operation.kind)
        if judge is not None:
            commands += judge(catalog, alive, operation)
    return commands


def _add_node(catalog: Catalog, alive: Alive, operation: Operation) -> list[c.Command]:
    member = catalog.member(operation.node_id)
    if member is None:
        return [_failed(operation, "NODE_NOT_FOUND", "the node was removed")]
    controller = catalog.group(CONTROLLER_GROUP_ID)
    assert controller is not None, "a founded cluster has its controller group"
    if member.controller_replica_id not in controller.reality.members():
        return _progress(operation, left=1, text="joining the controller group")
    if operation.node_id not in alive:
        return _progress(operation, left=1, text="nothing is heard of the node")
    if member.state != MemberState.ACTIVE:
        return [_failed(operation, "OPERATION_CONFLICT", "the node is drained")]
    moving = [g for g in catalog.unsettled_groups() if g.group_id != CONTROLLER_GROUP_ID]
    left = len(moving) + _unbalanced(catalog, alive)
    if left:
        return _progress(operation, left=left, text=f"{left} replicas to move")
    return [_succeeded(operation)]


def _drain_node(catalog: Catalog, alive: Alive, operation: Operation) -> list[c.Command]:
    member = catalog.member(operation.node_id)
    if member is None:
        return [_failed(operation, "NODE_NOT_FOUND", "the node was removed")]
    if member.state == MemberState.DRAINED:
        return [_succeeded(operation)]
    if member.state == MemberState.ACTIVE:
        return [_failed(operation, "OPERATION_CONFLICT", "the node was made active")]
    return _emptying(catalog, alive, operation)


def _remove_node(catalog: Catalog, alive: Alive, operation: Operation) -> list[c.Command]:
    member = catalog.member(operation.node_id)
    if member is not None and member.incarnation == operation.incarnation:
        if member.state == MemberState.DRAINED:
            return [c.RemoveMember(node_id=member.node_id, incarnation=member.incarnation)]
        if member.state == MemberState.ACTIVE:
            return [_failed(operation, "OPERATION_CONFLICT", "the node was made active")]
        return _emptying(catalog, alive, operation)
    homeless = [
        group
        for group in _partitions_on(catalog, operation.node_id)
        if any(
            replica.node_id == operation.node_id
            and not catalog.is_current(replica.node_id, replica.incarnation)
            for replica in group.replicas
        )
    ]
    if homeless:
        return _progress_of(catalog, alive, operation, homeless)
    return [_succeeded(operation)]


def _move_replica(catalog: Catalog, alive: Alive, operation: Operation) -> list[c.Command]:
    topic = catalog.topic(operation.topic)
    if topic is None:
        return [_failed(operation, "TOPIC_NOT_FOUND", "the topic was deleted")]
    group = catalog.group(topic.group_ids[operation.partition])
    assert group is not None, f"topic {topic.name} lacks partition {operation.partition}"
    if operation.to_node_id not in group.desired_nodes():
        return [_failed(operation, "OPERATION_CONFLICT", "the replica was wished elsewhere since")]
    if group.is_settled():
        return [_succeeded(operation)]
    return _progress(operation, left=1, text="the new replica catches up")


def _alter_replication(catalog: Catalog, alive: Alive, operation: Operation) -> list[c.Command]:
    topic = catalog.topic(operation.topic)
    if topic is None:
        return [_failed(operation, "TOPIC_NOT_FOUND", "the topic was deleted")]
    left = 0
    for group_id in topic.group_ids:
        group = catalog.group(group_id)
        assert group is not None, f"topic {topic.name} lacks group {group_id}"
        done = len(group.desired) == topic.replication_factor and group.is_settled()
        left += not done
    if left:
        return _progress(operation, left=left, text=f"{left} partitions to change")
    return [_succeeded(operation)]


_JUDGES: dict[OperationKind, _Judge] = {
    OperationKind.ADD_NODE: _add_node,
    OperationKind.DRAIN_NODE: _drain_node,
    OperationKind.REMOVE_NODE: _remove_node,
    OperationKind.MOVE_REPLICA: _move_replica,
    OperationKind.ALTER_REPLICATION: _alter_replication,
}


def _emptying(catalog: Catalog, alive: Alive, operation: Operation) -> list[c.Command]:
    return _progress_of(catalog, alive, operation, _partitions_on(catalog, operation.node_id))


def _progress_of(
    catalog: Catalog, alive: Alive, operation: Operation, groups: list[Group]
) -> list[c.Command]:
    """`groups` still have a replica on the operation's node. Says so when it cannot go on."""
    homes = [m.node_id for m in catalog.members() if m.state == MemberState.ACTIVE]
    stuck = 0
    for group in groups:
        nodes = group.desired_nodes()
        free = any(node_id in alive and node_id not in nodes for node_id in homes)
        stuck += operation.node_id in nodes and not free
    text = f"{len(groups)} replicas to move"
    if stuck:
        text += f"; {stuck} of them have no other live active node to go to: add nodes"
    return _progress(operation, left=len(groups), text=text)


def _partitions_on(catalog: Catalog, node_id: int) -> list[Group]:
    return [g for g in catalog.groups_on(node_id) if g.group_id != CONTROLLER_GROUP_ID]


def _unbalanced(catalog: Catalog, alive: Alive) -> int:
    """About how many replicas still have to be moved for an even load; 0 = none can."""
    members = catalog.members()
    active = [m.node_id for m in members if m.state == MemberState.ACTIVE and m.node_id in alive]
    groups = {
        group.group_id: group.desired_nodes()
        for group in catalog.groups()
        if group.group_id != CONTROLLER_GROUP_ID
    }
    zones = {member.node_id: member.zone for member in members}
    if not active or not rebalance_moves(groups, eligible=active, zones=zones, moves_max=1):
        return 0
    loads = [catalog.replica_count_on(node_id) for node_id in active]
    even = sum(loads) // len(loads)
    return max(1, sum(max(0, even - load) for load in loads))


def _progress(operation: Operation, *, left: int, text: str) -> list[c.Command]:
    total = max(operation.steps_total, operation.steps_done + left)
    done = total - left
    if (operation.steps_done, operation.steps_total, operation.progress) == (done, total, text):
        return []
    return [
        c.UpdateOperation(
            operation_id=operation.operation_id,
            steps_done=done,
            steps_total=total,
            progress=text,
        )
    ]


def _succeeded(operation: Operation) -> c.Command:
    return c.FinishOperation(operation_id=operation.operation_id, state=OperationState.SUCCEEDED)


def _failed(operation: Operation, reason: str, message: str) -> c.Command:
    return c.FinishOperation(
        operation_id=operation.operation_id,
        state=OperationState.FAILED,
        reason=reason,
        message=message,
    )
