"""The plan of the controller's leader, played through on a real catalog: groups whose voters are up
become what is wished for them, a few at a time, and every operation comes to its end."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.controller import commands as c
from cluster.controller import model as m
from cluster.controller.catalog import Catalog
from cluster.controller.plan import PlanOptions, Sight, assign_topic, plan, plan_leaders
from cluster.controller.plan_operations import plan_operations

OPTIONS = PlanOptions(moves_max=4, leader_moves_max=8)


class World:
    """Nodes that are up or down, groups that do what is wished as fast as their voters can."""

    def __init__(self, nodes: int, zones: int = 1) -> None:
        self.catalog = Catalog()
        self.zones = zones
        self.up = set(range(1, nodes + 1))
        self.dead: set[int] = set()
        self.leaders: dict[int, int] = {}
        self.most_moving = 0
        self.now_ms = 0
        self.apply(
            c.Found(cluster_id="c1", members=tuple(self.announce(n) for n in sorted(self.up)))
        )

    def announce(self, node_id: int, incarnation: str = "a") -> c.Announcement:
        return c.Announcement(
            node_id=node_id,
            incarnation=incarnation,
            peer_endpoint=f"p{node_id}",
            client_endpoint=f"c{node_id}",
            zone=f"z{node_id % self.zones}",
        )

    def apply(self, command: c.Command) -> c.Reply:
        self.now_ms += 1
        return self.catalog.apply(command, c.Stamp(log_time_ms=self.now_ms, wall_ms=self.now_ms))

    def topic(self, partitions: int, factor: int, name: str = "t") -> m.Topic:
        assignment = assign_topic(
            self.catalog,
            partitions=partitions,
            replication_factor=factor,
            alive=frozenset(self.up),
        )
        self.apply(
            c.CreateTopic(
                name=f"default/{name}",
                partitions=partitions,
                replication_factor=factor,
                settings=b"",
                assignment=assignment,
            )
        )
        topic = self.catalog.topic_by_name(f"default/{name}")
        assert topic is not None
        return topic

    def join(self, node_id: int, incarnation: str = "a") -> None:
        self.up.add(node_id)
        self.dead.discard(node_id)
        reply = self.apply(c.RegisterMember(member=self.announce(node_id, incarnation)))
        assert isinstance(reply, c.MemberRegistered), reply

    def crash(self, node_id: int, *, for_long: bool = True) -> None:
        self.up.discard(node_id)
        if for_long:
            self.dead.add(node_id)

    def start(self, kind: m.OperationKind, **fields: object) -> str:
        reply = self.apply(c.StartOperation(kind=kind, **fields))  # type: ignore[arg-type]
        assert isinstance(reply, c.OperationStarted), reply
        return reply.operation_id

    def operation(self, operation_id: str) -> m.Operation:
        operation = self.catalog.operation(operation_id)
        assert operation is not None
        return operation

    def sight(self) -> Sight:
        return Sight(alive=frozenset(self.up), dead=frozenset(self.dead), leader_of=self.leader_of)

    def leader_of(self, group_id: int) -> int:
        """The node that leads, if a majority of the real voters are up; elected at need."""
        group = self.catalog.group(group_id)
        if group is None:
            return 0
        live = [
            node_id
            for replica_id in group.reality.voters
            if (node_id := self.holder(group, replica_id)) in self.up
        ]
        if 2 * len(live) <= len(group.reality.voters):
            return 0
        if self.leaders.get(group_id) not in live:
            self.leaders[group_id] = live[0]
        return self.leaders[group_id]

    def holder(self, group: m.Group, replica_id: int) -> int:
        """The node, if its present incarnation holds that replica."""
        replica = group.replica(replica_id)
        if replica is None:
            return 0
        member = self.catalog.member(replica.node_id)
        lives_on = member is None or member.incarnation == replica.incarnation
        return replica.node_id if lives_on else 0

    def groups_do_as_wished(self) -> int:
        """How many could. A group needs a leader, and the newcomers up."""
        done = 0
        for group in self.catalog.groups():
            if group.is_settled() and not group.unneeded():
                continue
            coming = [r for r in group.desired if r not in group.reality.voters]
            if not self.leader_of(group.group_id):
                continue
            if any(self.holder(group, r) not in self.up for r in coming):
                continue
            self.apply(
                c.ReportConfiguration(
                    group_id=group.group_id,
                    index=group.reality.index + 1,
                    term=1,
                    generation=group.generation,
                    voters=tuple(sorted(group.desired)),
                    learners=tuple(sorted(group.desired_learners)),
                )
            )
            done += 1
        return done

    def settle(self) -> None:
        """Rounds until nothing happens any more; none without a leader of the controller."""
        for _ in range(2000):
            if not self.leader_of(m.CONTROLLER_GROUP_ID):
                return
            commands = plan_operations(self.catalog, frozenset(self.up))
            commands += plan(self.catalog, self.sight(), OPTIONS)
            for command in commands:
                reply = self.apply(command)
                if isinstance(reply, c.Refused):  # a command before it changed what it rests on
                    assert reply.reason is c.Reason.STALE, f"{command}: {reply}"
            self.most_moving = max(self.most_moving, len(self.moving()))
            if not self.groups_do_as_wished() and not commands:
                return
        raise AssertionError("the plan does not come to an end")

    def moving(self) -> list[m.Group]:
        groups = self.catalog.unsettled_groups()
        return [g for g in groups if g.group_id != m.CONTROLLER_GROUP_ID]

    def wished_nodes(self, topic: m.Topic) -> list[tuple[int, ...]]:
        groups = [self.catalog.group(group_id) for group_id in topic.group_ids]
        return [group.desired_nodes() for group in groups if group is not None]

    def controller_nodes(self) -> tuple[list[int], list[int]]:
        group = self.catalog.group(m.CONTROLLER_GROUP_ID)
        assert group is not None
        return (
            sorted(group.desired_nodes()),
            sorted(group.node_of(replica_id) for replica_id in group.desired_learners),
        )


def spread(values: list[tuple[int, ...]], nodes: list[int]) -> int:
    counts = Counter(node_id for node_ids in values for node_id in node_ids)
    return max(counts[n] for n in nodes) - min(counts[n] for n in nodes)


def test_an_unfounded_cluster_has_no_plan() -> None:
    sight = Sight(alive=frozenset(), dead=frozenset(), leader_of=lambda _: 0)
    assert plan(Catalog(), sight, OPTIONS) == []


def test_a_quiet_cluster_needs_nothing() -> None:
    world = World(3)
    world.topic(6, 3)
    assert plan(world.catalog, world.sight(), OPTIONS) == []


@pytest.mark.parametrize(
    ("nodes", "voters"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (6, 5), (9, 5)]
)
def test_the_controller_has_an_odd_number_of_voters_and_everybody_else_learns(
    nodes: int, voters: int
) -> None:
    world = World(nodes)
    world.settle()
    voting, learning = world.controller_nodes()
    assert len(voting) == voters
    assert sorted([*voting, *learning]) == list(range(1, nodes + 1))


def test_a_dead_controller_voter_is_replaced_and_not_put_back_when_it_returns() -> None:
    world = World(4)
    world.settle()
    world.crash(2, for_long=False)
    world.settle()
    assert world.controller_nodes() == ([1, 2, 3], [4]), "a short silence moves nothing"
    world.dead.add(2)
    world.settle()
    assert world.controller_nodes() == ([1, 3, 4], [2])
    world.dead.discard(2)
    world.up.add(2)
    world.settle()
    assert world.controller_nodes() == ([1, 3, 4], [2])


def test_a_death_alone_moves_no_replica() -> None:
    world = World(4)
    topic = world.topic(8, 3)
    before = world.wished_nodes(topic)
    world.crash(2)
    world.settle()
    assert world.wished_nodes(topic) == before


def test_draining_empties_a_node_a_few_groups_at_a_time() -> None:
    world = World(4)
    topic = world.topic(20, 3)
    operation_id = world.start(m.OperationKind.DRAIN_NODE, node_id=2)
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.SUCCEEDED
    assert world.operation(operation_id).steps_done == world.operation(operation_id).steps_total > 0
    member = world.catalog.member(2)
    assert member is not None
    assert member.state == m.MemberState.DRAINED
    assert all(2 not in nodes for nodes in world.wished_nodes(topic))
    assert 0 < world.most_moving <= OPTIONS.moves_max
    assert spread(world.wished_nodes(topic), [1, 3, 4]) <= 1
    assert world.controller_nodes() == ([1, 3, 4], [2])


def test_a_drain_with_nowhere_to_go_says_so_and_goes_on_when_there_is() -> None:
    world = World(3)
    world.topic(5, 3)
    operation_id = world.start(m.OperationKind.DRAIN_NODE, node_id=3)
    world.settle()
    operation = world.operation(operation_id)
    assert operation.state == m.OperationState.RUNNING
    assert operation.steps_total == 5
    assert "5 of them have no other live active node" in operation.progress
    world.join(4)
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.SUCCEEDED


def test_a_cancelled_drain_leaves_things_where_they_are() -> None:
    world = World(4)
    topic = world.topic(8, 3)
    operation_id = world.start(m.OperationKind.DRAIN_NODE, node_id=1)
    for command in plan(world.catalog, world.sight(), OPTIONS):
        world.apply(command)
    world.apply(c.FinishOperation(operation_id=operation_id, state=m.OperationState.CANCELLED))
    world.settle()
    assert any(1 in nodes for nodes in world.wished_nodes(topic))
    assert not world.moving()


def test_a_drained_node_votes_in_the_controller_until_it_is_removed_if_it_is_needed() -> None:
    world = World(3)
    world.start(m.OperationKind.DRAIN_NODE, node_id=2)
    world.settle()
    assert world.controller_nodes() == ([1, 2, 3], [])
    world.start(m.OperationKind.REMOVE_NODE, node_id=2)
    world.settle()
    assert world.controller_nodes() == ([1, 3], [])


def test_removing_a_live_node_drains_it_first() -> None:
    world = World(4)
    topic = world.topic(8, 3)
    operation_id = world.start(m.OperationKind.REMOVE_NODE, node_id=2)
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.SUCCEEDED
    assert world.catalog.member(2) is None
    assert all(2 not in nodes for nodes in world.wished_nodes(topic))
    assert world.controller_nodes() == ([1, 3, 4], [])
    assert not world.catalog.groups_on(2)


@pytest.mark.parametrize("force", [False, True])
def test_removing_a_dead_node_makes_its_replicas_anew_elsewhere(force: bool) -> None:
    world = World(4)
    topic = world.topic(8, 3)
    world.crash(2)
    operation_id = world.start(m.OperationKind.REMOVE_NODE, node_id=2, force=force)
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.SUCCEEDED
    assert world.catalog.member(2) is None
    assert all(2 not in nodes for nodes in world.wished_nodes(topic))
    assert not world.moving()


def test_a_dead_node_removed_from_a_full_cluster_waits_for_its_successor() -> None:
    world = World(3)
    topic = world.topic(4, 3)
    world.crash(2)
    operation_id = world.start(m.OperationKind.REMOVE_NODE, node_id=2, force=True)
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.RUNNING
    assert "add nodes" in world.operation(operation_id).progress
    world.join(7)
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.SUCCEEDED
    assert all(sorted(nodes) == [1, 3, 7] for nodes in world.wished_nodes(topic))


def test_a_dead_node_may_be_replaced_under_its_own_id() -> None:
    world = World(3)
    topic = world.topic(4, 3)
    world.crash(2)
    operation_id = world.start(m.OperationKind.REMOVE_NODE, node_id=2, force=True)
    world.join(2, "b")
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.SUCCEEDED
    assert all(sorted(nodes) == [1, 2, 3] for nodes in world.wished_nodes(topic))
    assert len(world.catalog.replicas_on(2, "b")) == 5


def test_a_wiped_node_gets_its_replicas_again() -> None:
    world = World(3)
    topic = world.topic(4, 3)
    world.join(2, "b")
    world.settle()
    assert not world.catalog.unsettled_groups()
    assert len(world.catalog.replicas_on(2, "b")) == len(topic.group_ids) + 1


def test_an_added_node_gets_its_share() -> None:
    world = World(3)
    topic = world.topic(12, 3)
    world.join(4)
    world.settle()
    assert all(4 not in nodes for nodes in world.wished_nodes(topic)), "not unasked"
    operation_id = world.start(m.OperationKind.ADD_NODE, node_id=4)
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.SUCCEEDED
    assert spread(world.wished_nodes(topic), [1, 2, 3, 4]) <= 1
    assert world.most_moving <= OPTIONS.moves_max
    assert world.operation(operation_id).steps_done == world.operation(operation_id).steps_total


def test_replicas_on_their_way_to_a_node_that_dies_go_elsewhere() -> None:
    world = World(5)
    topic = world.topic(1, 3)
    group = world.catalog.group(topic.group_ids[0])
    assert group is not None
    free = [n for n in range(1, 6) if n not in group.desired_nodes()]
    kept = group.desired_nodes()[:2]
    world.apply(
        c.SetDesiredReplicas(group_id=group.group_id, generation=0, node_ids=(*kept, free[0]))
    )
    world.crash(free[0], for_long=False)
    world.settle()
    assert world.wished_nodes(topic) == [(*kept, free[0])], "it may be back in a moment"
    world.dead.add(free[0])
    world.settle()
    assert world.wished_nodes(topic) == [(*kept, free[1])]
    assert not world.moving()


def test_stuck_groups_do_not_hold_up_a_drain() -> None:
    world = World(6)
    for number in range(6):  # no majority: these groups cannot change
        world.apply(
            c.CreateTopic(
                name=f"default/stuck{number}",
                partitions=1,
                replication_factor=1,
                settings=b"",
                assignment=(6,),
            )
        )
    world.crash(6)
    world.apply(c.RemoveMember(node_id=6, force=True))
    topic = world.topic(6, 3)
    operation_id = world.start(m.OperationKind.DRAIN_NODE, node_id=1)
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.SUCCEEDED
    assert all(1 not in nodes for nodes in world.wished_nodes(topic))


@pytest.mark.parametrize("factor", [1, 2, 4, 5])
def test_another_replication_factor_is_made_real(factor: int) -> None:
    world = World(5)
    topic = world.topic(6, 3)
    reply = world.apply(
        c.AlterTopic(
            topic_id=topic.topic_id, settings_version=1, settings=b"", replication_factor=factor
        )
    )
    assert isinstance(reply, c.TopicAltered)
    preferred = [nodes[0] for nodes in world.wished_nodes(topic)]
    world.settle()
    assert world.operation(reply.operation_id).state == m.OperationState.SUCCEEDED
    assert [len(nodes) for nodes in world.wished_nodes(topic)] == [factor] * 6
    assert [nodes[0] for nodes in world.wished_nodes(topic)] == preferred


def test_a_moved_replica_ends_its_operation() -> None:
    world = World(4)
    topic = world.topic(1, 3)
    (nodes,) = world.wished_nodes(topic)
    (free,) = [n for n in range(1, 5) if n not in nodes]
    operation_id = world.start(
        m.OperationKind.MOVE_REPLICA, topic_id=topic.topic_id, node_id=nodes[1], to_node_id=free
    )
    world.settle()
    assert world.operation(operation_id).state == m.OperationState.SUCCEEDED
    other = world.start(
        m.OperationKind.MOVE_REPLICA, topic_id=topic.topic_id, node_id=free, to_node_id=nodes[1]
    )
    world.apply(c.DeleteTopic(topic_id=topic.topic_id))
    world.settle()
    assert world.operation(other).state == m.OperationState.FAILED
    assert world.operation(other).reason == "TOPIC_NOT_FOUND"


def test_leaders_leave_draining_nodes_and_even_out() -> None:
    world = World(3)
    world.topic(9, 3)
    for group in world.catalog.groups():
        world.leaders[group.group_id] = 1
    for _ in range(5):
        for group_id, node_id, to_node in plan_leaders(world.catalog, world.sight(), OPTIONS):
            assert world.leaders[group_id] == node_id
            world.leaders[group_id] = to_node
    counts = Counter(n for group_id, n in world.leaders.items() if group_id != 1)
    assert counts == {1: 3, 2: 3, 3: 3}
    world.start(m.OperationKind.DRAIN_NODE, node_id=3)
    for _ in range(5):
        for group_id, _, to_node in plan_leaders(world.catalog, world.sight(), OPTIONS):
            world.leaders[group_id] = to_node
    counts = Counter(n for group_id, n in world.leaders.items() if group_id != 1)
    assert sorted(counts) == [1, 2]
    assert abs(counts[1] - counts[2]) <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_whatever_happens_the_plan_comes_to_an_end_and_the_cluster_to_rest(seed: int) -> None:
    """Nodes join, die, return wiped, are drained and removed; topics come and go. With everybody up
    again, every operation ends and every group is as wished on active nodes only."""
    random = Random(seed)
    world = World(random.randint(3, 6), zones=random.randint(1, 3))
    wipes = random.random() < 0.5  # then every group must be able to lose one replica
    for number in range(3):
        factor = 3 if wipes else random.randint(1, 3)
        world.topic(random.randint(1, 6), factor, name=f"t{number}")
    for step in range(8):
        nodes = [member.node_id for member in world.catalog.members()]
        node_id = random.choice(nodes)
        if not world.leader_of(m.CONTROLLER_GROUP_ID):
            break  # nothing can be commanded before nodes come back
        match random.randrange(6):
            case 0:
                world.join(10 + step)
                world.start(m.OperationKind.ADD_NODE, node_id=10 + step)
            case 1 if len(nodes) - len(world.up & set(nodes)) < 1:
                world.crash(node_id, for_long=random.random() < 0.5)
            case 2 if wipes and world.up >= set(nodes):
                world.settle()
                members = [member.node_id for member in world.catalog.members()]
                if node_id in members and len(members) >= 3:  # of two, one is no majority
                    world.join(node_id, f"w{step}")
                    world.settle()
            case 3 | 4:
                kind = random.choice([m.OperationKind.DRAIN_NODE, m.OperationKind.REMOVE_NODE])
                world.apply(c.StartOperation(kind=kind, node_id=node_id))
            case _:
                topics = world.catalog.topics()
                if topics:
                    world.apply(c.DeleteTopic(topic_id=random.choice(topics).topic_id))
        if random.random() < 0.7:
            world.settle()
    for node_id in (90, 91, 92):
        world.join(node_id)  # room for everything
    world.up |= {member.node_id for member in world.catalog.members()}
    world.dead.clear()
    world.settle()
    assert not world.catalog.unsettled_groups()
    assert not world.catalog.running_operations()
    for topic in world.catalog.topics():
        for wished in world.wished_nodes(topic):
            assert len(set(wished)) == topic.replication_factor
            states = [member.state for n in wished if (member := world.catalog.member(n))]
            assert states == [m.MemberState.ACTIVE] * topic.replication_factor
