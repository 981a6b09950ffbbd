"""What the controller's leader should command next, from the catalog and from what it sees. Pure.

Level-triggered: it looks at what is and at what should be, remembers nothing, and asks for little
at a time. Commands that come of it are applied before it is asked again. Replicas are moved for
these reasons, the first first:

    the node is no member any more; the node a replica is to come to died before it had it;
    a topic has another replication factor; the node is draining; a node was added
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster.controller import commands as c
from cluster.controller.catalog import Catalog
from cluster.controller.model import (
    CONTROLLER_GROUP_ID,
    MACHINE_VERSION,
    Group,
    Member,
    MemberState,
    OperationKind,
)
from cluster.controller.placement import (
    Led,
    NodeLoad,
    VoterCandidate,
    assign,
    controller_voters,
    leader_moves,
    rebalance_moves,
    replacement,
    surplus,
)

_MemberTest = Callable[[Member | None], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the controller's leader sees. `alive`: heard of just now, itself included. `dead`:
    silent for so long that others should do its work. `leader_of`: a group's leader's node, 0 if
    none is known. `reluctant`: alive, but not to be given leaderships."""

    alive: frozenset[int]
    dead: frozenset[int]
    leader_of: Callable[[int], int]
    reluctant: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """moves_max         groups whose replicas are on the move at a time
    leader_moves_max  leaderships handed over in one round of balancing"""

    moves_max: int = 4
    leader_moves_max: int = 8


def assign_topic(
    catalog: Catalog, *, partitions: int, replication_factor: int, alive: frozenset[int]
) -> tuple[int, ...]:
    """`CreateTopic.assignment`. Live nodes if there are enough, else all active ones: a majority
    may be enough to begin with. Raises ValueError when there are too few nodes."""
    loads = node_loads(catalog)
    live = [load for load in loads if load.node_id in alive]
    sets = assign(
        live if len(live) >= replication_factor else loads,
        partitions=partitions,
        replication_factor=replication_factor,
        rotation=catalog.counters.next_topic,
    )
    return tuple(node_id for node_ids in sets for node_id in node_ids)


def node_loads(catalog: Catalog) -> list[NodeLoad]:
    """Of the nodes that may be given replicas."""
    return [
        NodeLoad(
            node_id=member.node_id,
            zone=member.zone,
            replicas=catalog.replica_count_on(member.node_id),
            leaders=catalog.preferred_count_on(member.node_id),
        )
        for member in catalog.members()
        if member.state == MemberState.ACTIVE
    ]


def plan(catalog: Catalog, sight: Sight, options: PlanOptions) -> list[c.Command]:
    """In the order in which to propose them; each one refused as STALE is for the next round."""
    if not catalog.cluster_id:
        return []
    moves = Moves(catalog, sight, options)
    commands: list[c.Command] = [*_versions(catalog), *_controller(catalog, sight)]
    moves.leave_nodes(lambda member: member is None)
    moves.leave_dead_targets()
    moves.fit_replication()
    moves.leave_nodes(lambda member: member is not None and member.state != MemberState.ACTIVE)
    if any(row.kind == OperationKind.ADD_NODE for row in catalog.running_operations()):
        moves.rebalance()
    return [*commands, *moves.commands, *_drained(catalog)]


def plan_leaders(
    catalog: Catalog, sight: Sight, options: PlanOptions
) -> list[tuple[int, int, int]]:
    """(group id, node that leads it, node that should)."""
    usable = {
        member.node_id
        for member in catalog.members()
        if member.state == MemberState.ACTIVE
        and member.node_id in sight.alive
        and member.node_id not in sight.reluctant
    }
    led: list[Led] = []
    for group in catalog.groups():
        leader = sight.leader_of(group.group_id)
        if group.group_id == CONTROLLER_GROUP_ID or not leader or not group.is_settled():
            continue
        nodes = group.desired_nodes()
        led.append(
            Led(
                group_id=group.group_id,
                leader=leader,
                preferred=nodes[0],
                candidates=tuple(node_id for node_id in nodes if node_id in usable),
            )
        )
    leaders = {group.group_id: group.leader for group in led}
    moves = leader_moves(led, moves_max=options.leader_moves_max)
    return [(group_id, leaders[group_id], to_node) for group_id, to_node in moves]


class Moves:
    """Wishes for partitions, as many as may be on the move at a time."""

    def __init__(self, catalog: Catalog, sight: Sight, options: PlanOptions) -> None:
        self.commands: list[c.Command] = []
        self._catalog = catalog
        self._sight = sight
        self._zones = {member.node_id: member.zone for member in catalog.members()}
        self._loads = {
            load.node_id: load for load in node_loads(catalog) if load.node_id in sight.alive
        }
        self._touched: dict[int, None] = {}
        moving = [group for group in catalog.unsettled_groups() if self._moves_on(group)]
        self._free = options.moves_max - len(moving)

    def leave_nodes(self, leaving: _MemberTest) -> None:
        """Away from all nodes whose member (None if it is none) passes the test."""
        for node_id in self._catalog.nodes_with_replicas():
            if not leaving(self._catalog.member(node_id)):
                continue
            for group in self._catalog.groups_on(node_id):
                if self._free <= 0:
                    return
                if self._may_touch(group) and node_id in group.desired_nodes():
                    self._replace(group, node_id)

    def leave_dead_targets(self) -> None:
        """A replica that was to come to a node that died meanwhile goes elsewhere: it holds nothing
        yet. One that is a voter stays wished: its node may come back with the data."""
        for group in self._catalog.unsettled_groups():
            if group.group_id == CONTROLLER_GROUP_ID:
                continue
            for node_id in self._waits_for(group):
                member = self._catalog.member(node_id)
                active = member is not None and member.state == MemberState.ACTIVE
                if (node_id in self._sight.dead or not active) and self._free > 0:
                    self._replace(group, node_id)
                    break

    def fit_replication(self) -> None:
        for topic in self._catalog.topics():
            for group_id in topic.group_ids:
                group = self._catalog.group(group_id)
                assert group is not None, f"topic {topic.name} lacks group {group_id}"
                difference = topic.replication_factor - len(group.desired)
                if difference == 0 or self._free <= 0 or not self._may_touch(group):
                    continue
                nodes = group.desired_nodes()
                if difference < 0:
                    given_up = surplus(nodes, list(self._loads.values()), self._zones)
                    self._wish(group, tuple(n for n in nodes if n != given_up))
                elif (added := self._target(nodes)) is not None:
                    self._wish(group, (*nodes, added))

    def rebalance(self) -> None:
        if self._free <= 0:
            return
        groups = {
            group.group_id: group.desired_nodes()
            for group in self._catalog.groups()
            if group.group_id != CONTROLLER_GROUP_ID
        }
        fixed = [g.group_id for g in self._catalog.unsettled_groups()]
        moves = rebalance_moves(
            groups,
            eligible=list(self._loads),
            zones=self._zones,
            moves_max=self._free,
            fixed=[*fixed, *self._touched],
        )
        for move in moves:
            group = self._catalog.group(move.group_id)
            assert group is not None, f"group {move.group_id} to be moved is not there"
            nodes = tuple(move.to_node if n == move.from_node else n for n in group.desired_nodes())
            self._wish(group, nodes)

    def _replace(self, group: Group, node_id: int) -> None:
        nodes = group.desired_nodes()
        target = self._target(tuple(n for n in nodes if n != node_id))
        if target is not None and target != node_id:
            self._wish(group, tuple(target if n == node_id else n for n in nodes))

    def _target(self, staying: tuple[int, ...]) -> int | None:
        return replacement(staying, list(self._loads.values()), self._zones)

    def _wish(self, group: Group, node_ids: tuple[int, ...]) -> None:
        self._touched[group.group_id] = None
        self._free -= 1
        for node_id in node_ids:
            if node_id in self._loads and node_id not in group.desired_nodes():
                load = self._loads[node_id]
                self._loads[node_id] = replace(load, replicas=load.replicas + 1)
        self.commands.append(
            c.SetDesiredReplicas(
                group_id=group.group_id, generation=group.generation, node_ids=node_ids
            )
        )

    def _may_touch(self, group: Group) -> bool:
        return (
            group.group_id != CONTROLLER_GROUP_ID
            and group.group_id not in self._touched
            and group.is_settled()
        )

    def _moves_on(self, group: Group) -> bool:
        """It is on the move and nothing that can be seen holds it up; else its place is free for
        others: a few stuck groups must not stop a drain."""
        return (
            group.group_id != CONTROLLER_GROUP_ID
            and self._sight.leader_of(group.group_id) != 0
            and all(node_id in self._sight.alive for node_id in self._waits_for(group))
        )

    def _waits_for(self, group: Group) -> list[int]:
        """Nodes of wished replicas that are not voters yet."""
        return [
            group.node_of(replica_id)
            for replica_id in group.desired
            if replica_id not in group.reality.voters
        ]


def _controller(catalog: Catalog, sight: Sight) -> list[c.Command]:
    group = catalog.group(CONTROLLER_GROUP_ID)
    assert group is not None, "a founded cluster has its controller group"
    members = catalog.members()
    candidates = [
        VoterCandidate(
            node_id=member.node_id,
            zone=member.zone,
            eligible=member.state == MemberState.ACTIVE,
            alive=member.node_id not in sight.dead,
        )
        for member in members
    ]
    voters = controller_voters(candidates, group.desired_nodes())
    learners = tuple(m.node_id for m in members if m.node_id not in voters)
    if (set(voters), set(learners)) == (
        set(group.desired_nodes()),
        {group.node_of(replica_id) for replica_id in group.desired_learners},
    ):
        return []
    return [
        c.SetDesiredReplicas(
            group_id=CONTROLLER_GROUP_ID,
            generation=group.generation,
            node_ids=voters,
            learner_node_ids=learners,
        )
    ]


def _versions(catalog: Catalog) -> list[c.Command]:
    """The machine version rises by itself once every member can run the next (house rule: rolling
    upgrades never diverge)."""
    members = catalog.members()
    version = min(MACHINE_VERSION, *(member.machine_version_max for member in members))
    if version > catalog.counters.machine_version:
        return [c.SetMachineVersion(version=version)]
    return []


def _drained(catalog: Catalog) -> list[c.Command]:
    return [
        c.SetMemberState(node_id=member.node_id, state=MemberState.DRAINED)
        for member in catalog.members()
        if member.state == MemberState.DRAINING and not catalog.replica_count_on(member.node_id)
    ]
