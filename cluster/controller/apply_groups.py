"""Replica sets: what is wished, what is real, and when a replica may be dropped. Pure.

A wish changes here and is numbered by `generation`; the group's own leader makes it real by Raft
configuration changes (partition_driver.py) and reports. A replica that is no longer wished is
dropped, and its data deleted, only by a report that (a) knows the present wish and (b) does not
contain it. The leader confirms its leadership after it has seen that wish and before it reports,
and asks here for the wish before each change; so no leader can still be adding what was dropped:
it would have had to ask before the wish changed, and then its own addition is in the report; or a
newer leader asked after it, and was told of the new wish.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.controller.commands import (
    ConfirmDeleted,
    Done,
    GroupWish,
    Reason,
    Refused,
    Reply,
    ReportConfiguration,
    SetDesiredReplicas,
)
from cluster.controller.model import (
    CONTROLLER_GROUP_ID,
    REPLICAS_MAX,
    REPLICATION_FACTOR_MAX,
    Group,
    MemberState,
    Reality,
    Replica,
    Tombstone,
)
from cluster.controller.tables import Tables


def set_desired_replicas(tables: Tables, command: SetDesiredReplicas) -> Reply:
    group = tables.group(command.group_id)
    if group is None:
        return _refused(Reason.GROUP_NOT_FOUND, f"no group {command.group_id}")
    if command.generation not in (0, group.generation):
        if _nodes_of(group) == (command.node_ids, command.learner_node_ids):
            return wish(group)
        return _refused(Reason.STALE, f"group {group.group_id} is at generation {group.generation}")
    wrong = _wrong_in(tables, group, command)
    if wrong is not None:
        return wrong
    group = _with_wish(tables, group, command.node_ids, command.learner_node_ids)
    return wish(group)


def report_configuration(tables: Tables, command: ReportConfiguration) -> Reply:
    group = tables.group(command.group_id)
    if group is None:
        return _refused(Reason.GROUP_NOT_FOUND, f"no group {command.group_id}")
    if not command.voters:
        return _refused(Reason.BAD_REQUEST, "a configuration has voters")
    if command.index < group.reality.index:
        return wish(group)  # an older leader's report, overtaken
    reality = Reality(
        index=command.index,
        term=command.term,
        generation=max(command.generation, group.reality.generation),
        voters=command.voters,
        voters_outgoing=command.voters_outgoing,
        learners=command.learners,
    )
    if _same_but_for_place(reality, group.reality):
        return wish(group)
    group = replace(group, reality=reality)
    tables.put_group(group)
    if command.generation == group.generation:
        drop_unneeded(tables, group)
    return wish(group)


def confirm_deleted(tables: Tables, command: ConfirmDeleted) -> Reply:
    for replica_id in sorted(set(command.replica_ids)):
        tombstone = tables.tombstone(replica_id)
        if tombstone is not None and tombstone.incarnation == command.incarnation:
            tables.drop_tombstone(replica_id)
    return Done()


def wish(group: Group) -> GroupWish:
    return GroupWish(
        group_id=group.group_id,
        generation=group.generation,
        desired=group.desired,
        desired_learners=group.desired_learners,
    )


def new_replica(tables: Tables, node_id: int) -> Replica:
    member = tables.member(node_id)
    assert member is not None, f"replica for node {node_id}, which is no member"
    return Replica(
        replica_id=tables.take_number("next_replica_id"),
        node_id=node_id,
        incarnation=member.incarnation,
    )


def replace_gone_replicas(tables: Tables, node_id: int, incarnation: str) -> dict[int, int]:
    """Every wished replica on the node that is not of this incarnation gets a successor that is, in
    the same place. Answers {replica_id: its successor's}."""
    replaced: dict[int, int] = {}
    for group in tables.groups_on(node_id):
        wished = (*group.desired, *group.desired_learners)
        gone = [
            replica
            for replica in group.replicas
            if replica.node_id == node_id
            and replica.incarnation != incarnation
            and replica.replica_id in wished
        ]
        assert len(gone) <= 1, f"group {group.group_id} wishes two replicas on node {node_id}"
        if not gone:
            continue
        old = gone[0].replica_id
        new = tables.take_number("next_replica_id")
        replaced[old] = new
        successor = Replica(replica_id=new, node_id=node_id, incarnation=incarnation)
        tables.put_group(
            replace(
                group,
                generation=group.generation + 1,
                desired=tuple(new if r == old else r for r in group.desired),
                desired_learners=tuple(new if r == old else r for r in group.desired_learners),
                replicas=(*group.replicas, successor),
            )
        )
    return replaced


def drop_unneeded(tables: Tables, group: Group) -> None:
    """Drop replicas that are neither wished nor real. Only after a report that knew the wish."""
    dropped = group.unneeded()
    if not dropped:
        return
    kept = tuple(replica for replica in group.replicas if replica not in dropped)
    tables.put_group(replace(group, replicas=kept))
    for replica in dropped:
        bury_replica(tables, group.group_id, replica)


def bury_replica(tables: Tables, group_id: int, replica: Replica) -> None:
    """Leave a tombstone, unless nobody is left who could have anything to delete."""
    if not tables.is_current(replica.node_id, replica.incarnation):
        return
    tables.put_tombstone(
        Tombstone(
            replica_id=replica.replica_id,
            group_id=group_id,
            node_id=replica.node_id,
            incarnation=replica.incarnation,
        )
    )


def _with_wish(
    tables: Tables, group: Group, node_ids: tuple[int, ...], learner_node_ids: tuple[int, ...]
) -> Group:
    """Put the wish; replicas that exist on the nodes, leaving ones too, are taken as they are."""
    current = {
        replica.node_id: replica.replica_id
        for replica in group.replicas
        if replica.replica_id in (*group.desired, *group.desired_learners)
        or tables.is_current(replica.node_id, replica.incarnation)
    }
    added: list[Replica] = []
    ids: list[int] = []
    for node_id in (*node_ids, *learner_node_ids):
        if node_id not in current:
            replica = new_replica(tables, node_id)
            added.append(replica)
            current[node_id] = replica.replica_id
        ids.append(current[node_id])
    desired, learners = tuple(ids[: len(node_ids)]), tuple(ids[len(node_ids) :])
    if (desired, learners) == (group.desired, group.desired_learners):
        return group
    group = replace(
        group,
        generation=group.generation + 1,
        desired=desired,
        desired_learners=learners,
        replicas=(*group.replicas, *added),
    )
    tables.put_group(group)
    return group


def _wrong_in(tables: Tables, group: Group, command: SetDesiredReplicas) -> Refused | None:
    voters, learners = command.node_ids, command.learner_node_ids
    everyone = (*voters, *learners)
    if not voters or len(voters) > REPLICATION_FACTOR_MAX or len(set(everyone)) != len(everyone):
        return _refused(Reason.BAD_REQUEST, f"bad replica set {voters}, learners {learners}")
    if group.group_id != CONTROLLER_GROUP_ID and learners:
        return _refused(Reason.BAD_REQUEST, "only the controller has wished learners")
    if group.group_id == CONTROLLER_GROUP_ID:
        members = [member.node_id for member in tables.members()]
        if sorted(everyone) != members:
            return _refused(Reason.STALE, f"every member takes part in the controller: {members}")
    before = (*group.desired_nodes(), *(group.node_of(r) for r in group.desired_learners))
    added = [node_id for node_id in everyone if node_id not in before]
    for node_id in added:
        member = tables.member(node_id)
        if member is None:
            return _refused(Reason.STALE, f"node {node_id} is no member")
        if group.group_id != CONTROLLER_GROUP_ID and member.state != MemberState.ACTIVE:
            return _refused(Reason.STALE, f"node {node_id} is {member.state.name}")
    if tables.replica_count + len(added) > REPLICAS_MAX:
        return _refused(Reason.QUOTA, f"{REPLICAS_MAX} replicas already")
    return None


def _nodes_of(group: Group) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return group.desired_nodes(), tuple(group.node_of(r) for r in group.desired_learners)


def _same_but_for_place(new: Reality, old: Reality) -> bool:
    return replace(new, index=old.index, term=old.term) == old


def _refused(reason: Reason, message: str) -> Refused:
    return Refused(reason=reason, message=message)
