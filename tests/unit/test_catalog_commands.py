"""The catalog by stories: what each command does, refuses, and answers when it is repeated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.controller import commands as c
from cluster.controller import model as m
from tests.unit.catalog_bed import Cluster, node

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


def test_a_deleted_subscription_is_told_from_one_that_is_not_known_yet() -> None:
    ahead, behind = Cluster(1, 2, 3), Cluster(1, 2, 3)
    topic = ahead.topic()
    assert behind.topic() == topic
    create = c.CreateSubscription(
        topic_id=topic.topic_id, name="s", kind=m.SubscriptionKind.STREAM, settings=b""
    )
    made = ahead.ok(create, c.SubscriptionCreated).subscription_id
    assert not ahead.catalog.is_deleted(made)
    assert not behind.catalog.is_deleted(made)
    ahead.ok(c.DeleteSubscription(subscription_id=made), c.Done)
    assert ahead.catalog.is_deleted(made)
    assert not behind.catalog.is_deleted(made)
    for strange in ("", "s", "another", "s-"):
        assert not ahead.catalog.is_deleted(strange)


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
