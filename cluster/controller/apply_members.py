"""Members: founding, joining, coming back without data, draining, leaving. Pure."""

from __future__ import annotations

from dataclasses import replace

from cluster.controller.apply_groups import replace_gone_replicas
from cluster.controller.commands import (
    Announcement,
    Done,
    Found,
    Founded,
    MemberRegistered,
    Reason,
    Refused,
    RegisterMember,
    RemoveMember,
    Reply,
    SetFeatureLevel,
    SetMachineVersion,
    SetMemberState,
)
from cluster.controller.model import (
    CONTROLLER_GROUP_ID,
    ENDPOINT_CHARS_MAX,
    GONE_MEMBERS_MAX,
    MACHINE_VERSION,
    MEMBERS_MAX,
    NODE_ID_MAX,
    ZONE_CHARS_MAX,
    GoneMember,
    Group,
    Member,
    MemberState,
    Reality,
    Replica,
)
from cluster.controller.tables import Tables

_MOVES: dict[MemberState, tuple[MemberState, ...]] = {
    MemberState.ACTIVE: (MemberState.DRAINING,),
    MemberState.DRAINING: (MemberState.DRAINED, MemberState.ACTIVE),
    MemberState.DRAINED: (MemberState.ACTIVE, MemberState.DRAINING),
}


def found(tables: Tables, command: Found) -> Reply:
    if tables.cluster_id:
        if tables.cluster_id == command.cluster_id:
            return Founded(cluster_id=command.cluster_id)
        return _refused(Reason.OPERATION_CONFLICT, f"founded as {tables.cluster_id} already")
    node_ids = [announcement.node_id for announcement in command.members]
    if not command.cluster_id or not node_ids or len(node_ids) > MEMBERS_MAX:
        return _refused(Reason.BAD_REQUEST, "a cluster needs an id and 1 to 64 members")
    if node_ids != sorted(set(node_ids)):
        return _refused(Reason.BAD_REQUEST, f"node ids not rising: {node_ids}")
    for announcement in command.members:
        wrong = _wrong_in(announcement)
        if wrong:
            return _refused(Reason.BAD_REQUEST, wrong)
    tables.put_counters(cluster_id=command.cluster_id, feature_level=command.feature_level)
    first = tables.take_number("next_replica_id", len(node_ids))
    assert first == 1, f"replica ids given before the founding: {first}"
    replicas = []
    for replica_id, announcement in enumerate(command.members, start=1):
        tables.put_member(_member(tables, announcement, replica_id, MemberState.ACTIVE))
        replicas.append(_replica(replica_id, announcement))
    voters = tuple(range(1, len(node_ids) + 1))
    tables.put_group(
        Group(
            group_id=CONTROLLER_GROUP_ID,
            topic=0,
            partition=0,
            generation=1,
            founding=voters,
            desired=voters,
            desired_learners=(),
            replicas=tuple(replicas),
            reality=Reality(voters=voters),
        )
    )
    return Founded(cluster_id=command.cluster_id)


def register_member(tables: Tables, command: RegisterMember) -> Reply:
    announced = command.member
    wrong = _wrong_in(announced)
    if wrong:
        return _refused(Reason.BAD_REQUEST, wrong)
    if tables.is_gone(announced.node_id, announced.incarnation):
        return _refused(
            Reason.MEMBER_GONE,
            f"node {announced.node_id} incarnation {announced.incarnation} was removed or replaced",
        )
    in_force = tables.counters.machine_version
    if not announced.machine_version_min <= in_force <= announced.machine_version_max:
        return _refused(Reason.BAD_REQUEST, f"cannot run machine version {in_force}, now in force")
    old = tables.member(announced.node_id)
    if old is None:
        if len(tables.members()) >= MEMBERS_MAX:
            return _refused(Reason.QUOTA, f"{MEMBERS_MAX} members already")
        return _join(tables, announced)
    if old.incarnation != announced.incarnation:
        return _come_back(tables, old, announced)
    member = _member(tables, announced, old.controller_replica_id, old.state)
    member = replace(member, joined_at_ms=old.joined_at_ms)
    if member != old:
        tables.put_member(member)
    return _registered(tables, member, joined=False)


def set_member_state(tables: Tables, command: SetMemberState) -> Reply:
    member = tables.member(command.node_id)
    if member is None:
        return _refused(Reason.NODE_NOT_FOUND, f"no node {command.node_id}")
    if member.state == command.state:
        return Done()
    if command.state not in _MOVES[member.state]:
        return _refused(
            Reason.OPERATION_CONFLICT,
            f"node {member.node_id} is {member.state.name}, not to become {command.state.name}",
        )
    if command.state == MemberState.DRAINED and holds_partitions(tables, member.node_id):
        return _refused(Reason.STALE, f"node {member.node_id} still holds replicas")
    if command.state == MemberState.DRAINING and not _others_active(tables, member.node_id):
        return _refused(Reason.NOT_ENOUGH_NODES, f"node {member.node_id} is the only active one")
    tables.put_member(replace(member, state=command.state))
    return Done()


def remove_member(tables: Tables, command: RemoveMember) -> Reply:
    member = tables.member(command.node_id)
    if member is None or command.incarnation not in ("", member.incarnation):
        if command.incarnation and tables.is_gone(command.node_id, command.incarnation):
            return Done()
        return _refused(Reason.NODE_NOT_FOUND, f"no node {command.node_id}")
    if not _others_active(tables, member.node_id):
        return _refused(Reason.NOT_ENOUGH_NODES, "the last active node cannot be removed")
    if not command.force:
        if member.state != MemberState.DRAINED:
            return _refused(Reason.OPERATION_CONFLICT, f"node {member.node_id} is not drained")
        if holds_partitions(tables, member.node_id):
            return _refused(Reason.OPERATION_CONFLICT, f"node {member.node_id} holds replicas")
    tables.drop_member(member.node_id)
    bury(tables, member, removed=True)
    controller = tables.group(CONTROLLER_GROUP_ID)
    assert controller is not None, "a founded cluster has its controller group"
    mine = member.controller_replica_id
    voters = tuple(r for r in controller.desired if r != mine)
    learners = tuple(r for r in controller.desired_learners if r != mine)
    if not voters:
        voters, learners = learners[:1], learners[1:]
    # Its partition replicas stay wished until the reconciler found other places for them; the
    # controller needs no place found: every node has a replica of it already.
    tables.put_group(
        replace(
            controller,
            generation=controller.generation + 1,
            desired=voters,
            desired_learners=learners,
        )
    )
    return Done()


def set_machine_version(tables: Tables, command: SetMachineVersion) -> Reply:
    now = tables.counters.machine_version
    if command.version == now:
        return Done()
    if command.version < now or command.version > MACHINE_VERSION:
        return _refused(Reason.BAD_REQUEST, f"version {command.version}, now {now}")
    for member in tables.members():
        if not member.machine_version_min <= command.version <= member.machine_version_max:
            return _refused(
                Reason.OPERATION_CONFLICT, f"node {member.node_id} cannot run {command.version}"
            )
    tables.put_counters(machine_version=command.version)
    return Done()


def set_feature_level(tables: Tables, command: SetFeatureLevel) -> Reply:
    now = tables.counters.feature_level
    if command.level == now:
        return Done()
    if command.level < now:
        return _refused(Reason.BAD_REQUEST, f"feature level {now} cannot fall to {command.level}")
    for member in tables.members():
        if member.feature_level_max < command.level:
            return _refused(
                Reason.OPERATION_CONFLICT,
                f"node {member.node_id} has features up to level {member.feature_level_max}",
            )
    tables.put_counters(feature_level=command.level)
    return Done()


def holds_partitions(tables: Tables, node_id: int) -> bool:
    """A replica of a partition is wished or real on the node, whichever its incarnation."""
    return any(group.group_id != CONTROLLER_GROUP_ID for group in tables.groups_on(node_id))


def bury(tables: Tables, member: Member, *, removed: bool) -> None:
    """This incarnation is gone for good; what it was to delete needs no deleting now."""
    tables.put_gone(
        GoneMember(
            number=tables.take_number("next_gone"),
            node_id=member.node_id,
            incarnation=member.incarnation,
            gone_at_ms=tables.counters.wall_ms,
            removed=removed,
        )
    )
    tables.drop_oldest_gone(GONE_MEMBERS_MAX)
    for tombstone in tables.tombstones_on(member.node_id, member.incarnation):
        tables.drop_tombstone(tombstone.replica_id)


def _join(tables: Tables, announced: Announcement) -> Reply:
    """A node id that is no member: new, or removed before and back as somebody else."""
    replace_gone_replicas(tables, announced.node_id, announced.incarnation)
    replica_id = tables.take_number("next_replica_id")
    member = _member(tables, announced, replica_id, MemberState.ACTIVE)
    tables.put_member(member)
    controller = tables.group(CONTROLLER_GROUP_ID)
    assert controller is not None, "a founded cluster has its controller group"
    tables.put_group(
        replace(
            controller,
            generation=controller.generation + 1,
            desired_learners=(*controller.desired_learners, replica_id),
            replicas=(*controller.replicas, _replica(replica_id, announced)),
        )
    )
    return _registered(tables, member, joined=True)


def _come_back(tables: Tables, old: Member, announced: Announcement) -> Reply:
    """The node lost its disk. Each replica it had gets a successor in the same place."""
    replaced = replace_gone_replicas(tables, announced.node_id, announced.incarnation)
    replica_id = replaced.get(old.controller_replica_id, 0)
    assert replica_id, f"controller replica {old.controller_replica_id} was not wished"
    member = _member(tables, announced, replica_id, old.state)
    tables.put_member(member)
    bury(tables, old, removed=False)
    return _registered(tables, member, joined=True)


def _registered(tables: Tables, member: Member, *, joined: bool) -> Reply:
    return MemberRegistered(
        cluster_id=tables.cluster_id,
        node_id=member.node_id,
        controller_replica_id=member.controller_replica_id,
        joined=joined,
    )


def _member(
    tables: Tables, announced: Announcement, controller_replica_id: int, state: MemberState
) -> Member:
    return Member(
        node_id=announced.node_id,
        incarnation=announced.incarnation,
        peer_endpoint=announced.peer_endpoint,
        client_endpoint=announced.client_endpoint,
        zone=announced.zone,
        state=state,
        controller_replica_id=controller_replica_id,
        software_version=announced.software_version,
        machine_version_min=announced.machine_version_min,
        machine_version_max=announced.machine_version_max,
        format_max=announced.format_max,
        feature_level_max=announced.feature_level_max,
        joined_at_ms=tables.counters.wall_ms,
    )


def _replica(replica_id: int, announced: Announcement) -> Replica:
    return Replica(
        replica_id=replica_id, node_id=announced.node_id, incarnation=announced.incarnation
    )


def _others_active(tables: Tables, node_id: int) -> bool:
    return any(
        member.state == MemberState.ACTIVE
        for member in tables.members()
        if member.node_id != node_id
    )


def _wrong_in(announced: Announcement) -> str:
    """What is wrong with it, "" if nothing is."""
    if not 1 <= announced.node_id <= NODE_ID_MAX:
        return f"node_id {announced.node_id} is not in 1..{NODE_ID_MAX}"
    if not 1 <= len(announced.incarnation) <= 64:
        return "incarnation must have 1 to 64 characters"
    for endpoint in (announced.peer_endpoint, announced.client_endpoint):
        if not 1 <= len(endpoint) <= ENDPOINT_CHARS_MAX:
            return f"endpoint must have 1 to {ENDPOINT_CHARS_MAX} characters: {endpoint!r}"
    if len(announced.zone) > ZONE_CHARS_MAX or len(announced.software_version) > ZONE_CHARS_MAX:
        return f"zone and version have at most {ZONE_CHARS_MAX} characters"
    return ""


def _refused(reason: Reason, message: str) -> Refused:
    return Refused(reason=reason, message=message)
