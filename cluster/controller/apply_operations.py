"""Operations: what takes its time, can be watched, and survives changes of leader. Pure.

An operation is a note about a wish; the wish itself stands in the member or the group. The
reconciler works from the wishes, and tells here how far it is.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.controller.apply_groups import set_desired_replicas
from cluster.controller.apply_members import remove_member, set_member_state
from cluster.controller.commands import (
    Done,
    FinishOperation,
    OperationStarted,
    Reason,
    Refused,
    RemoveMember,
    Reply,
    SetDesiredReplicas,
    SetMemberState,
    StartOperation,
    UpdateOperation,
)
from cluster.controller.model import (
    MESSAGE_CHARS_MAX,
    OPERATION_KEPT_MS,
    OPERATIONS_MAX,
    RUNNING_OPERATIONS_MAX,
    MemberState,
    Operation,
    OperationKind,
    OperationState,
    Topic,
    identity,
)
from cluster.controller.tables import Tables

_EMPTYING = (OperationKind.DRAIN_NODE, OperationKind.REMOVE_NODE)


def start_operation(tables: Tables, command: StartOperation) -> Reply:
    for running in tables.running_operations():
        if _is_same(tables, running, command):
            return OperationStarted(operation_id=running.operation_id, already_running=True)
    refused = _refuse_room(tables)
    if refused is not None:
        return refused
    if command.kind in _EMPTYING:
        return _start_emptying(tables, command)
    if command.kind == OperationKind.MOVE_REPLICA:
        return _start_move(tables, command)
    topic = tables.topic_by_id(command.topic_id)
    if command.topic_id and topic is None:
        return _refused(Reason.TOPIC_NOT_FOUND, f"no topic {command.topic_id}")
    if command.kind == OperationKind.ADD_NODE and tables.member(command.node_id) is None:
        return _refused(Reason.NODE_NOT_FOUND, f"no node {command.node_id}")
    return _started(_put(tables, command, topic))


def update_operation(tables: Tables, command: UpdateOperation) -> Reply:
    operation = tables.operation(command.operation_id)
    if operation is None:
        return _refused(Reason.OPERATION_NOT_FOUND, f"no operation {command.operation_id}")
    if operation.state != OperationState.RUNNING:
        return Done()
    updated = replace(
        operation,
        steps_done=command.steps_done,
        steps_total=command.steps_total,
        progress=command.progress[:MESSAGE_CHARS_MAX],
    )
    if updated != operation:
        tables.put_operation(replace(updated, version=operation.version + 1))
    return Done()


def finish_operation(tables: Tables, command: FinishOperation) -> Reply:
    operation = tables.operation(command.operation_id)
    if operation is None:
        return _refused(Reason.OPERATION_NOT_FOUND, f"no operation {command.operation_id}")
    if command.state == OperationState.RUNNING:
        return _refused(Reason.BAD_REQUEST, "RUNNING is no end")
    if operation.state == command.state:
        return Done()
    if operation.state != OperationState.RUNNING:
        return _refused(
            Reason.OPERATION_CONFLICT,
            f"operation {operation.operation_id} has ended as {operation.state.name}",
        )
    _end(tables, operation, command.state, reason=command.reason, message=command.message)
    if command.state == OperationState.CANCELLED and operation.kind in _EMPTYING:
        member = tables.member(operation.node_id)
        if member is not None and member.state != MemberState.ACTIVE:
            tables.put_member(replace(member, state=MemberState.ACTIVE))
    return Done()


def start_replication_change(tables: Tables, topic: Topic) -> OperationStarted | Refused:
    """Part of AlterTopic. A running change of the topic is ended: the new factor replaces it."""
    refused = _refuse_room(tables)
    if refused is not None:
        return refused
    for running in tables.running_operations():
        if running.kind == OperationKind.ALTER_REPLICATION and running.topic == topic.number:
            _end(tables, running, OperationState.CANCELLED, message="altered again")
    command = StartOperation(kind=OperationKind.ALTER_REPLICATION, topic_id=topic.topic_id)
    return _started(_put(tables, command, topic))


def _start_emptying(tables: Tables, command: StartOperation) -> Reply:
    member = tables.member(command.node_id)
    if member is None:
        return _refused(Reason.NODE_NOT_FOUND, f"no node {command.node_id}")
    removes = command.kind == OperationKind.REMOVE_NODE
    overtaken = [
        running
        for running in tables.running_operations()
        if running.kind in _EMPTYING and running.node_id == member.node_id
    ]
    if overtaken and not removes:
        # A removal overtakes a drain; a drain of what is being removed makes no sense.
        return _refused(
            Reason.OPERATION_CONFLICT, f"{overtaken[0].operation_id} removes node {member.node_id}"
        )
    if removes and command.force:
        done: Reply = remove_member(tables, RemoveMember(node_id=member.node_id, force=True))
    elif member.state == MemberState.DRAINED:
        done = Done()
    else:
        done = set_member_state(
            tables, SetMemberState(node_id=member.node_id, state=MemberState.DRAINING)
        )
    if isinstance(done, Refused):
        return done
    for running in overtaken:
        _end(tables, running, OperationState.CANCELLED, message="overtaken by a removal")
    operation = _put(tables, command, None, incarnation=member.incarnation)
    if not removes and member.state == MemberState.DRAINED:
        _end(tables, operation, OperationState.SUCCEEDED)
    return _started(operation)


def _start_move(tables: Tables, command: StartOperation) -> Reply:
    topic = tables.topic_by_id(command.topic_id)
    if topic is None:
        return _refused(Reason.TOPIC_NOT_FOUND, f"no topic {command.topic_id}")
    group = tables.group_of(command.topic_id, command.partition)
    if group is None:
        return _refused(Reason.PARTITION_NOT_FOUND, f"{topic.name} has no {command.partition}")
    nodes = group.desired_nodes()
    if command.node_id not in nodes or command.to_node_id in nodes:
        return _refused(
            Reason.BAD_REQUEST,
            f"replicas are on {nodes}: none to move from {command.node_id} to {command.to_node_id}",
        )
    target = tables.member(command.to_node_id)
    if target is None:
        return _refused(Reason.NODE_NOT_FOUND, f"no node {command.to_node_id}")
    if target.state != MemberState.ACTIVE:
        return _refused(Reason.OPERATION_CONFLICT, f"node {target.node_id} is not active")
    moved = tuple(command.to_node_id if n == command.node_id else n for n in nodes)
    done = set_desired_replicas(
        tables, SetDesiredReplicas(group_id=group.group_id, generation=0, node_ids=moved)
    )
    if isinstance(done, Refused):
        return done
    return _started(_put(tables, replace(command, steps_total=1), topic))


def _put(
    tables: Tables, command: StartOperation, topic: Topic | None, *, incarnation: str = ""
) -> Operation:
    operations = tables.operations()
    if len(operations) >= OPERATIONS_MAX:
        oldest = _oldest_forgettable(tables, operations)
        assert oldest is not None, "no room for an operation: to be refused before"
        tables.drop_operation(oldest.number)
    number = tables.take_number("next_operation")
    operation = Operation(
        number=number,
        operation_id=identity("o", cluster_id=tables.cluster_id, number=number),
        kind=command.kind,
        state=OperationState.RUNNING,
        version=1,
        started_at_ms=tables.counters.wall_ms,
        node_id=command.node_id,
        incarnation=incarnation,
        to_node_id=command.to_node_id,
        topic=topic.number if topic else 0,
        topic_name=topic.name if topic else "",
        partition=command.partition,
        steps_total=command.steps_total,
    )
    tables.put_operation(operation)
    return operation


def _end(
    tables: Tables,
    operation: Operation,
    state: OperationState,
    *,
    reason: str = "",
    message: str = "",
) -> None:
    tables.put_operation(
        replace(
            operation,
            state=state,
            version=operation.version + 1,
            ended_at_ms=tables.counters.wall_ms,
            steps_done=(
                operation.steps_total if state == OperationState.SUCCEEDED else operation.steps_done
            ),
            reason=reason[:MESSAGE_CHARS_MAX],
            message=message[:MESSAGE_CHARS_MAX],
        )
    )


def _refuse_room(tables: Tables) -> Refused | None:
    operations = tables.operations()
    running = sum(row.state == OperationState.RUNNING for row in operations)
    if running >= RUNNING_OPERATIONS_MAX:
        return _refused(Reason.QUOTA, f"{RUNNING_OPERATIONS_MAX} operations are running")
    if len(operations) >= OPERATIONS_MAX and _oldest_forgettable(tables, operations) is None:
        return _refused(Reason.QUOTA, f"{OPERATIONS_MAX} operations are kept for a day")
    return None


def _oldest_forgettable(tables: Tables, operations: list[Operation]) -> Operation | None:
    before = tables.counters.wall_ms - OPERATION_KEPT_MS
    for row in operations:
        if row.state != OperationState.RUNNING and row.ended_at_ms <= before:
            return row
    return None


def _is_same(tables: Tables, running: Operation, command: StartOperation) -> bool:
    topic = tables.topic_by_id(command.topic_id)
    if command.kind in _EMPTYING:
        # A forced removal must not be answered by the patient one that it is to overtake.
        forced = command.force and tables.member(command.node_id) is not None
        return (running.kind, running.node_id) == (command.kind, command.node_id) and not forced
    return (
        running.kind,
        running.node_id,
        running.to_node_id,
        running.topic,
        running.partition,
    ) == (
        command.kind,
        command.node_id,
        command.to_node_id,
        topic.number if topic else 0,
        command.partition,
    )


def _started(operation: Operation) -> OperationStarted:
    return OperationStarted(operation_id=operation.operation_id, already_running=False)


def _refused(reason: Reason, message: str) -> Refused:
    return Refused(reason=reason, message=message)
