"""The catalog by stories: what each command does, refuses, and answers when it is repeated."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest

from cluster.controller import commands as c
from cluster.controller import model as m
from cluster.controller.catalog import Catalog

ReplyT = TypeVar("ReplyT", bound=c.Reply)


def node(node_id: int, incarnation: str = "a", zone: str = "") -> c.Announcement:
    return c.Announcement(
        node_id=node_id,
        incarnation=f"{incarnation}{node_id}",
        peer_endpoint=f"peer{node_id}:1",
        client_endpoint=f"client{node_id}:1",
        zone=zone,
    )


class Cluster:
    """A catalog with a clock, and the leaders of its groups."""

    def __init__(self, *node_ids: int) -> None:
        self.catalog = Catalog()
        self.now_ms = 0
        if node_ids:
            members = tuple(node(n) for n in node_ids)
            self.ok(c.Found(cluster_id="c1", members=members), c.Founded)

    def apply(self, command: c.Command) -> c.Reply:
        self.now_ms += 10
        return self.catalog.apply(
            command, c.Stamp(log_time_ms=self.now_ms, wall_ms=1_000_000 + self.now_ms)
        )

    def ok(self, command: c.Command, kind: type[ReplyT]) -> ReplyT:
        reply = self.apply(command)
        assert isinstance(reply, kind), reply
        return reply

    def refused(self, command: c.Command) -> c.Reason:
        before = self.catalog.version
        reply = self.apply(command)
        assert isinstance(reply, c.Refused), reply
        assert self.catalog.version == before
        assert reply.message
        return reply.reason

    def topic(self, name: str = "default/t", *sets: tuple[int, ...]) -> m.Topic:
        sets = sets or ((1, 2, 3),)
        self.ok(
            c.CreateTopic(
                name=name,
                partitions=len(sets),
                replication_factor=len(sets[0]),
                settings=b"s",
                assignment=tuple(n for node_ids in sets for n in node_ids),
            ),
            c.TopicCreated,
        )
        topic = self.catalog.topic_by_name(name)
        assert topic is not None
        return topic

    def group(self, group_id: int) -> m.Group:
        group = self.catalog.group(group_id)
        assert group is not None
        return group

    def member(self, node_id: int) -> m.Member:
        member = self.catalog.member(node_id)
        assert member is not None
        return member

    def report(
        self, group_id: int, *voters: int, index: int = 0, learners: tuple[int, ...] = ()
    ) -> c.GroupWish:
        """As a leader that knows the present wish does it."""
        group = self.group(group_id)
        return self.ok(
            c.ReportConfiguration(
                group_id=group_id,
                index=index or group.reality.index + 1,
                term=1,
                generation=group.generation,
                voters=tuple(sorted(voters)),
                learners=learners,
            ),
            c.GroupWish,
        )

    def settle(self, group_id: int) -> None:
        group = self.group(group_id)
        self.report(group_id, *group.desired, learners=group.desired_learners)


# ---------------------------------------------------------------------------------------- founding


def test_nothing_is_possible_before_the_founding() -> None:
    assert Cluster().refused(c.AllocateProducerIds(count=1)) == c.Reason.NOT_FOUNDED


def test_founding_makes_all_members_voters_of_the_controller() -> None:
    cluster = Cluster(1, 2, 5)
    controller = cluster.group(m.CONTROLLER_GROUP_ID)
    assert controller.desired == controller.founding == controller.reality.voters == (1, 2, 3)
    assert [r.node_id for r in controller.replicas] == [1, 2, 5]
    assert [member.controller_replica_id for member in cluster.catalog.members()] == [1, 2, 3]


def test_founding_again_is_harmless_but_not_as_another_cluster() -> None:
    cluster = Cluster(1, 2, 3)
    version = cluster.catalog.version
    assert cluster.ok(c.Found(cluster_id="c1", members=(node(1),)), c.Founded).version == version
    other = c.Found(cluster_id="c2", members=(node(1),))
    assert cluster.refused(other) == c.Reason.OPERATION_CONFLICT


@pytest.mark.parametrize(
    "members",
    [(), (node(2), node(1)), (node(1), node(1)), (node(0),), (replace(node(1), incarnation=""),)],
)
def test_a_founding_that_makes_no_sense_is_refused(members: tuple[c.Announcement, ...]) -> None:
    assert Cluster().refused(c.Found(cluster_id="c1", members=members)) == c.Reason.BAD_REQUEST


# ----------------------------------------------------------------------------------------- members


def test_a_joining_node_becomes_a_learner_of_the_controller() -> None:
    cluster = Cluster(1, 2, 3)
    joined = cluster.ok(c.RegisterMember(member=node(4)), c.MemberRegistered)
    controller = cluster.group(1)
    assert joined.joined
    assert controller.desired == (1, 2, 3)
    assert controller.desired_learners == (joined.controller_replica_id,) == (4,)
    again = cluster.ok(c.RegisterMember(member=node(4)), c.MemberRegistered)
    assert (again.joined, again.controller_replica_id, again.version) == (False, 4, joined.version)


def test_a_known_node_may_change_its_endpoints() -> None:
    cluster = Cluster(1, 2, 3)
    moved = replace(node(2), peer_endpoint="elsewhere:1")
    cluster.ok(c.RegisterMember(member=moved), c.MemberRegistered)
    assert cluster.member(2).peer_endpoint == "elsewhere:1"
    assert cluster.member(2).controller_replica_id == 2


def test_a_wiped_node_gets_new_replicas_in_the_places_of_the_old() -> None:
    """Rule R12: an empty disk is a new incarnation, which must be added anew."""
    cluster = Cluster(1, 2, 3)
    topic = cluster.topic("default/t", (1, 2, 3), (3, 1, 2))
    old = [cluster.group(g).desired for g in topic.group_ids]
    reply = cluster.ok(c.RegisterMember(member=node(2, "b")), c.MemberRegistered)
    assert reply.joined
    for group_id, before in zip((1, *topic.group_ids), [(1, 2, 3), *old], strict=True):
        group = cluster.group(group_id)
        assert group.desired_nodes() == tuple(
            cluster.catalog.group(group_id).node_of(r)  # type: ignore[union-attr]
            for r in before
        )
        changed = [r for r in group.desired if r not in before]
        assert len(changed) == 1
        assert group.replica(changed[0]) == m.Replica(
            replica_id=changed[0], node_id=2, incarnation="b2"
        )
        assert changed[0] not in group.founding, "it starts empty"
        assert set(before) < {r.replica_id for r in group.replicas}, "still in reality"
    assert cluster.catalog.is_gone(2, "a2")
    assert cluster.refused(c.RegisterMember(member=node(2, "a"))) == c.Reason.MEMBER_GONE
    held = cluster.catalog.replicas_on(2, "b2")
    assert sorted(group.group_id for group, _ in held) == [1, *topic.group_ids]


def test_the_replicas_of_a_wiped_node_leave_no_tombstones() -> None:
    cluster = Cluster(1, 2, 3)
    cluster.topic()
    cluster.ok(c.RegisterMember(member=node(2, "b")), c.MemberRegistered)
    cluster.settle(2)
    assert [r.node_id for r in cluster.group(2).replicas] == [1, 3, 2]
    assert cluster.catalog.tombstones_on(2, "b2") == []
    assert cluster.catalog.replica_count == 7, "3 of the partition, 4 of the controller"


def test_a_node_is_drained_only_when_it_holds_nothing() -> None:
    cluster = Cluster(1, 2, 3, 4)
    cluster.topic()
    drained = c.SetMemberState(node_id=1, state=m.MemberState.DRAINED)
    assert cluster.refused(drained) == c.Reason.OPERATION_CONFLICT, "not from ACTIVE"
    cluster.ok(c.SetMemberState(node_id=1, state=m.MemberState.DRAINING), c.Done)
    assert cluster.refused(drained) == c.Reason.STALE
    cluster.ok(c.SetDesiredReplicas(group_id=2, generation=0, node_ids=(4, 2, 3)), c.GroupWish)
    assert cluster.refused(drained) == c.Reason.STALE, "wished away, but still real"
    cluster.settle(2)
    cluster.ok(drained, c.Done)
    cluster.ok(drained, c.Done)
    assert cluster.member(1).state == m.MemberState.DRAINED


def test_a_draining_node_gets_nothing_new() -> None:
    cluster = Cluster(1, 2, 3, 4)
    cluster.topic()
    cluster.ok(c.SetMemberState(node_id=4, state=m.MemberState.DRAINING), c.Done)
    wish = c.SetDesiredReplicas(group_id=2, generation=0, node_ids=(1, 2, 4))
    assert cluster.refused(wish) == c.Reason.STALE
    create = c.CreateTopic(
        name="default/u", partitions=1, replication_factor=1, settings=b"", assignment=(4,)
    )
    assert cluster.refused(create) == c.Reason.STALE


def test_the_last_active_node_can_neither_be_drained_nor_removed() -> None:
    cluster = Cluster(1, 2)
    cluster.ok(c.SetMemberState(node_id=1, state=m.MemberState.DRAINING), c.Done)
    assert (
        cluster.refused(c.SetMemberState(node_id=2, state=m.MemberState.DRAINING))
        == c.Reason.NOT_ENOUGH_NODES
    )
    assert cluster.refused(c.RemoveMember(node_id=2, force=True)) == c.Reason.NOT_ENOUGH_NODES


def test_removal_wants_a_drained_node_and_takes_it_out_of_the_controller() -> None:
    cluster = Cluster(1, 2, 3, 4)
    assert cluster.refused(c.RemoveMember(node_id=4)) == c.Reason.OPERATION_CONFLICT
    for state in (m.MemberState.DRAINING, m.MemberState.DRAINED):
        cluster.ok(c.SetMemberState(node_id=4, state=state), c.Done)
    cluster.ok(c.RemoveMember(node_id=4, incarnation="a4"), c.Done)
    cluster.ok(c.RemoveMember(node_id=4, incarnation="a4"), c.Done)
    assert cluster.group(1).desired == (1, 2, 3)
    assert cluster.catalog.member(4) is None
    assert cluster.refused(c.RegisterMember(member=node(4))) == c.Reason.MEMBER_GONE
    cluster.settle(1)
    assert [r.replica_id for r in cluster.group(1).replicas] == [1, 2, 3]


def test_a_dead_node_removed_by_force_may_come_back_as_somebody_new() -> None:
    cluster = Cluster(1, 2, 3)
    cluster.topic()
    cluster.ok(c.RemoveMember(node_id=3, force=True), c.Done)
    assert cluster.group(2).desired_nodes() == (1, 2, 3), "wished until another place is found"
    cluster.ok(c.RegisterMember(member=node(3, "b")), c.MemberRegistered)
    assert cluster.group(2).desired_nodes() == (1, 2, 3)
    assert cluster.group(2).desired != cluster.group(2).founding
    assert [r.incarnation for g, r in cluster.catalog.replicas_on(3, "b3")] == ["b3", "b3"]


def test_versions_rise_when_every_member_can() -> None:
    cluster = Cluster(1, 2)
    assert cluster.refused(c.SetFeatureLevel(level=1)) == c.Reason.OPERATION_CONFLICT
    for n in (1, 2):
        cluster.ok(
            c.RegisterMember(member=replace(node(n), feature_level_max=2)), c.MemberRegistered
        )
    cluster.ok(c.SetFeatureLevel(level=2), c.Done)
    assert cluster.refused(c.SetFeatureLevel(level=1)) == c.Reason.BAD_REQUEST
    assert (
        cluster.refused(c.SetMachineVersion(version=m.MACHINE_VERSION + 1)) == c.Reason.BAD_REQUEST
    )
    cluster.ok(c.SetMachineVersion(version=m.MACHINE_VERSION), c.Done)
    old = replace(node(3), machine_version_min=0, machine_version_max=0)
    assert cluster.refused(c.RegisterMember(member=old)) == c.Reason.BAD_REQUEST


# ------------------------------------------------------------------------------------------ topics


def test_a_topic_has_its_groups_and_founding_replicas() -> None:
    cluster = Cluster(1, 2, 3)
    topic = cluster.topic("default/t", (1, 2, 3), (2, 3, 1))
    assert topic.group_ids == (2, 3)
    assert topic.hash_slots == 128
    assert [topic.partition_of_slot(slot) for slot in (0, 1, 2, 127)] == [0, 1, 0, 1]
    group = cluster.catalog.group_of(topic.topic_id, 1)
    assert group is not None
    assert group.desired_nodes() == (2, 3, 1)
    assert group.founding == group.desired == group.reality.voters == (7, 8, 9)
    assert cluster.catalog.group_of(topic.topic_id, 2) is None


def test_creating_again_is_ok_with_equal_settings_only() -> None:
    cluster = Cluster(1, 2, 3)
    topic = cluster.topic()
    again = c.CreateTopic(
        name="default/t",
        partitions=1,
        replication_factor=3,
        settings=b"s",
        assignment=(3, 2, 1),
    )
    reply = cluster.ok(again, c.TopicCreated)
    assert (reply.topic_id, reply.already_existed) == (topic.topic_id, True)
    other = replace(again, settings=b"other")
    assert cluster.refused(other) == c.Reason.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "t"}, c.Reason.BAD_NAME),
        ({"name": "default/" + "x" * 201}, c.Reason.BAD_NAME),
        ({"name": "default/sp ace"}, c.Reason.BAD_NAME),
        ({"partitions": 0}, c.Reason.BAD_CONFIG),
        ({"partitions": 1001}, c.Reason.BAD_CONFIG),
        ({"replication_factor": 8}, c.Reason.BAD_CONFIG),
        ({"replication_factor": 4}, c.Reason.NOT_ENOUGH_NODES),
        ({"settings": bytes(16 * 1024 + 1)}, c.Reason.BAD_CONFIG),
        ({"assignment": (1, 2)}, c.Reason.BAD_REQUEST),
        ({"assignment": (1, 2, 2)}, c.Reason.BAD_REQUEST),
        ({"assignment": (1, 2, 9)}, c.Reason.STALE),
    ],
)
def test_a_wrong_topic_is_refused(change: dict[str, object], reason: c.Reason) -> None:
    good = c.CreateTopic(
        name="default/t", partitions=1, replication_factor=3, settings=b"", assignment=(1, 2, 3)
    )
    assert Cluster(1, 2, 3).refused(replace(good, **change)) == reason  # type: ignore[arg-type]


def test_topics_beyond_the_limit_of_partitions_are_refused() -> None:
    cluster = Cluster(1)
    per_topic = m.PARTITIONS_PER_TOPIC_MAX
    for number in range(m.PARTITIONS_MAX // per_topic):
        cluster.topic(f"default/t{number}", *([(1,)] * per_topic))
    one_more = c.CreateTopic(
        name="default/x", partitions=1, replication_factor=1, settings=b"", assignment=(1,)
    )
    assert cluster.refused(one_more) == c.Reason.QUOTA


def test_a_deleted_topic_leaves_tombstones_until_its_nodes_confirm() -> None:
    cluster = Cluster(1, 2, 3)
    topic = cluster.topic()
    cluster.ok(c.DeleteTopic(topic_id=topic.topic_id), c.Done)
    cluster.ok(c.DeleteTopic(topic_id=topic.topic_id), c.Done)
    assert cluster.catalog.group(2) is None
    assert [g.group_id for g, _ in cluster.catalog.replicas_on(2, "a2")] == [1]
    (tombstone,) = cluster.catalog.tombstones_on(2, "a2")
    assert (tombstone.group_id, tombstone.replica_id) == (2, 5)
    stranger = c.ConfirmDeleted(node_id=2, incarnation="b2", replica_ids=(5,))
    cluster.ok(stranger, c.Done)
    assert len(cluster.catalog.tombstones_on(2, "a2")) == 1
    cluster.ok(c.ConfirmDeleted(node_id=2, incarnation="a2", replica_ids=(5, 77)), c.Done)
    assert cluster.catalog.tombstones_on(2, "a2") == []


def test_a_topic_created_again_is_another_topic() -> None:
    cluster = Cluster(1, 2, 3)
    first = cluster.topic()
    cluster.ok(c.DeleteTopic(topic_id=first.topic_id), c.Done)
    second = cluster.topic()
    assert second.topic_id != first.topic_id
    assert not set(second.group_ids) & set(first.group_ids)
    alter = c.AlterTopic(topic_id=first.topic_id, settings_version=1, settings=b"x")
    assert cluster.refused(alter) == c.Reason.TOPIC_REPLACED
    unknown = replace(alter, topic_id="t99-0")
    assert cluster.refused(unknown) == c.Reason.TOPIC_NOT_FOUND


def test_settings_change_at_the_version_they_were_read_at() -> None:
    cluster = Cluster(1, 2, 3)
    topic = cluster.topic()
    alter = c.AlterTopic(topic_id=topic.topic_id, settings_version=1, settings=b"new")
    assert cluster.ok(alter, c.TopicAltered).settings_version == 2
    assert cluster.ok(alter, c.TopicAltered).settings_version == 2
    assert cluster.refused(replace(alter, settings=b"newer")) == c.Reason.STALE


def test_another_replication_factor_starts_an_operation() -> None:
    cluster = Cluster(1, 2, 3)
    topic = cluster.topic()
    alter = c.AlterTopic(
        topic_id=topic.topic_id, settings_version=1, settings=b"s", replication_factor=1
    )
    first = cluster.ok(alter, c.TopicAltered)
    second = cluster.ok(replace(alter, settings_version=2, replication_factor=2), c.TopicAltered)
    operations = [cluster.catalog.operation(r.operation_id) for r in (first, second)]
    assert [o.state for o in operations if o] == [
        m.OperationState.CANCELLED,
        m.OperationState.RUNNING,
    ]
    four = replace(alter, settings_version=3, replication_factor=4)
    assert cluster.refused(four) == c.Reason.NOT_ENOUGH_NODES


# ----------------------------------------------------------------------------------- subscriptions


def test_subscriptions_live_and_die_with_their_topic() -> None:
    cluster = Cluster(1, 2, 3)
    topic = cluster.topic()
    create = c.CreateSubscription(
        topic_id=topic.topic_id, name="s", kind=m.SubscriptionKind.QUEUE, settings=b"q", start=b"0"
    )
    first = cluster.ok(create, c.SubscriptionCreated)
    again = cluster.ok(replace(create, start=b"9"), c.SubscriptionCreated)
    assert (again.subscription_id, again.already_existed) == (first.subscription_id, True)
    stream = replace(create, kind=m.SubscriptionKind.STREAM)
    assert cluster.refused(stream) == c.Reason.ALREADY_EXISTS
    assert cluster.refused(replace(create, name="")) == c.Reason.BAD_NAME
    alter = c.AlterSubscription(
        subscription_id=first.subscription_id, settings_version=1, settings=b"p"
    )
    assert cluster.ok(alter, c.SubscriptionAltered).settings_version == 2
    assert cluster.refused(replace(alter, settings=b"r")) == c.Reason.STALE
    cluster.ok(c.DeleteTopic(topic_id=topic.topic_id), c.Done)
    assert cluster.catalog.subscription_by_id(first.subscription_id) is None
    assert cluster.refused(create) == c.Reason.TOPIC_REPLACED


def test_a_subscription_created_again_is_another_one() -> None:
    cluster = Cluster(1, 2, 3)
    topic = cluster.topic()
    create = c.CreateSubscription(
        topic_id=topic.topic_id, name="s", kind=m.SubscriptionKind.STREAM, settings=b""
    )
    first = cluster.ok(create, c.SubscriptionCreated)
    cluster.ok(c.DeleteSubscription(subscription_id=first.subscription_id), c.Done)
    second = cluster.ok(create, c.SubscriptionCreated)
    assert second.subscription_id != first.subscription_id
    gone = c.DeleteSubscription(subscription_id=first.subscription_id)
    assert cluster.refused(gone) == c.Reason.SUBSCRIPTION_NOT_FOUND


# --------------------------------------------------------------------------------------- producers


def test_producer_ids_rise_and_names_keep_theirs() -> None:
    cluster = Cluster(1)
    first = cluster.ok(c.AllocateProducerIds(count=1000), c.ProducerIdsAllocated)
    named = cluster.ok(c.OpenNamedProducer(name="default/etl"), c.NamedProducerOpened)
    second = cluster.ok(c.AllocateProducerIds(count=1), c.ProducerIdsAllocated)
    assert (first.first, named.producer_id, named.epoch, second.first) == (1, 1001, 1, 1002)
    again = cluster.ok(c.OpenNamedProducer(name="default/etl"), c.NamedProducerOpened)
    assert (again.producer_id, again.epoch) == (1001, 2)
    assert cluster.refused(c.AllocateProducerIds(count=0)) == c.Reason.BAD_REQUEST
    assert cluster.refused(c.OpenNamedProducer(name="etl")) == c.Reason.BAD_NAME


# --------------------------------------------------------------------------- replica sets (R8, R9)


def test_a_wish_keeps_the_replicas_of_nodes_that_stay() -> None:
    cluster = Cluster(1, 2, 3, 4)
    cluster.topic()
    before = cluster.group(2)
    reply = cluster.ok(
        c.SetDesiredReplicas(group_id=2, generation=1, node_ids=(4, 2, 1)), c.GroupWish
    )
    assert reply.generation == 2
    assert reply.desired[1:] == (before.desired[1], before.desired[0])
    assert cluster.group(2).node_of(reply.desired[0]) == 4
    same = c.SetDesiredReplicas(group_id=2, generation=1, node_ids=(4, 2, 1))
    assert cluster.ok(same, c.GroupWish).generation == 2, "repeated: the same answer"
    other = replace(same, node_ids=(1, 2, 3))
    assert cluster.refused(other) == c.Reason.STALE


def test_a_wish_taken_back_in_time_finds_the_old_replica_as_it_was() -> None:
    cluster = Cluster(1, 2, 3, 4)
    cluster.topic()
    before = cluster.group(2).desired
    cluster.ok(c.SetDesiredReplicas(group_id=2, generation=0, node_ids=(1, 2, 4)), c.GroupWish)
    back = c.SetDesiredReplicas(group_id=2, generation=0, node_ids=(1, 2, 3))
    assert cluster.ok(back, c.GroupWish).desired == before


def test_every_member_keeps_its_part_in_the_controller() -> None:
    cluster = Cluster(1, 2, 3)
    wish = c.SetDesiredReplicas(group_id=1, generation=0, node_ids=(1,), learner_node_ids=(2,))
    assert cluster.refused(wish) == c.Reason.STALE
    cluster.ok(replace(wish, learner_node_ids=(2, 3)), c.GroupWish)
    assert cluster.group(1).desired == (1,)


@pytest.mark.parametrize(
    ("node_ids", "learners"),
    [((), ()), ((1, 1), ()), ((1, 2), (3,)), ((1, 2), (2,)), (tuple(range(1, 9)), ())],
)
def test_a_wish_that_makes_no_sense_is_refused(
    node_ids: tuple[int, ...], learners: tuple[int, ...]
) -> None:
    cluster = Cluster(1, 2, 3)
    cluster.topic()
    wish = c.SetDesiredReplicas(
        group_id=2, generation=0, node_ids=node_ids, learner_node_ids=learners
    )
    assert cluster.refused(wish) == c.Reason.BAD_REQUEST
    assert cluster.refused(replace(wish, group_id=99)) == c.Reason.GROUP_NOT_FOUND


def test_a_replica_is_dropped_only_by_a_report_that_knows_the_wish() -> None:
    cluster = Cluster(1, 2, 3, 4)
    cluster.topic()
    old = cluster.group(2)
    wish = cluster.ok(
        c.SetDesiredReplicas(group_id=2, generation=0, node_ids=(1, 2, 4)), c.GroupWish
    )
    unaware = c.ReportConfiguration(
        group_id=2, index=5, term=1, generation=old.generation, voters=old.desired[:2]
    )
    cluster.ok(unaware, c.GroupWish)
    assert len(cluster.group(2).replicas) == 4
    cluster.report(2, *old.desired, learners=(wish.desired[2],))
    assert len(cluster.group(2).replicas) == 4
    cluster.report(2, *wish.desired)
    assert [r.node_id for r in cluster.group(2).replicas] == [1, 2, 4]
    assert cluster.group(2).is_settled()
    assert [t.group_id for t in cluster.catalog.tombstones_on(3, "a3")] == [2]


def test_a_report_that_was_overtaken_changes_nothing() -> None:
    cluster = Cluster(1, 2, 3)
    cluster.topic()
    cluster.report(2, 4, 5, 6, index=10)
    before = cluster.catalog.version
    cluster.report(2, 4, 5, index=9)
    cluster.report(2, 4, 5, 6, index=11)
    assert cluster.catalog.version == before, "the same news is no change"
    assert cluster.group(2).reality.voters == (4, 5, 6)


# -------------------------------------------------------------------------------------- operations


def test_a_drain_is_an_operation_that_can_be_asked_for_again_and_cancelled() -> None:
    cluster = Cluster(1, 2, 3)
    drain = c.StartOperation(kind=m.OperationKind.DRAIN_NODE, node_id=3)
    started = cluster.ok(drain, c.OperationStarted)
    again = cluster.ok(drain, c.OperationStarted)
    assert (again.operation_id, again.already_running) == (started.operation_id, True)
    assert cluster.member(3).state == m.MemberState.DRAINING
    cluster.ok(
        c.UpdateOperation(
            operation_id=started.operation_id, steps_done=1, steps_total=4, progress="1 of 4"
        ),
        c.Done,
    )
    operation = cluster.catalog.operation(started.operation_id)
    assert operation is not None
    assert (operation.version, operation.steps_done, operation.progress) == (2, 1, "1 of 4")
    cancel = c.FinishOperation(operation_id=started.operation_id, state=m.OperationState.CANCELLED)
    cluster.ok(cancel, c.Done)
    cluster.ok(cancel, c.Done)
    assert cluster.member(3).state == m.MemberState.ACTIVE
    succeeded = replace(cancel, state=m.OperationState.SUCCEEDED)
    assert cluster.refused(succeeded) == c.Reason.OPERATION_CONFLICT
    assert cluster.ok(drain, c.OperationStarted).operation_id != started.operation_id


def test_a_removal_overtakes_a_drain_and_a_forced_one_the_patient_one() -> None:
    cluster = Cluster(1, 2, 3)
    drain = c.StartOperation(kind=m.OperationKind.DRAIN_NODE, node_id=3)
    remove = replace(drain, kind=m.OperationKind.REMOVE_NODE)
    drained = cluster.ok(drain, c.OperationStarted)
    patient = cluster.ok(remove, c.OperationStarted)
    assert cluster.refused(drain) == c.Reason.OPERATION_CONFLICT
    forced = cluster.ok(replace(remove, force=True), c.OperationStarted)
    assert cluster.catalog.member(3) is None
    states = [
        operation.state
        for reply in (drained, patient, forced)
        if (operation := cluster.catalog.operation(reply.operation_id))
    ]
    assert states == [
        m.OperationState.CANCELLED,
        m.OperationState.CANCELLED,
        m.OperationState.RUNNING,
    ]
    assert cluster.refused(replace(drain, node_id=9)) == c.Reason.NODE_NOT_FOUND


def test_moving_a_replica_changes_the_wish() -> None:
    cluster = Cluster(1, 2, 3, 4)
    topic = cluster.topic()
    move = c.StartOperation(
        kind=m.OperationKind.MOVE_REPLICA, topic_id=topic.topic_id, node_id=2, to_node_id=4
    )
    first = cluster.ok(move, c.OperationStarted)
    assert cluster.group(2).desired_nodes() == (1, 4, 3)
    assert cluster.ok(move, c.OperationStarted).operation_id == first.operation_id
    assert cluster.refused(replace(move, node_id=9)) == c.Reason.BAD_REQUEST
    assert cluster.refused(replace(move, partition=7)) == c.Reason.PARTITION_NOT_FOUND
    assert cluster.refused(replace(move, topic_id="t9-0")) == c.Reason.TOPIC_NOT_FOUND


def test_ended_operations_are_kept_for_a_day_and_no_more_than_there_is_room_for() -> None:
    cluster = Cluster(1)
    redrive = c.StartOperation(kind=m.OperationKind.REDRIVE)
    for _ in range(m.OPERATIONS_MAX):
        started = cluster.ok(redrive, c.OperationStarted)
        done = c.FinishOperation(
            operation_id=started.operation_id, state=m.OperationState.SUCCEEDED
        )
        cluster.ok(done, c.Done)
    assert cluster.refused(redrive) == c.Reason.QUOTA
    cluster.now_ms += m.OPERATION_KEPT_MS
    cluster.ok(redrive, c.OperationStarted)
    assert len(cluster.catalog.operations()) == m.OPERATIONS_MAX
    assert cluster.catalog.operations()[0].number == 2
