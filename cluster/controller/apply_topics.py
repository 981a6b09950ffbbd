"""Topics, subscriptions, producer ids. Pure."""

from __future__ import annotations

from dataclasses import replace

from cluster.controller.apply_groups import bury_replica, new_replica
from cluster.controller.apply_operations import start_replication_change
from cluster.controller.commands import (
    AllocateProducerIds,
    AlterSubscription,
    AlterTopic,
    CreateSubscription,
    CreateTopic,
    DeleteSubscription,
    DeleteTopic,
    Done,
    NamedProducerOpened,
    OpenNamedProducer,
    ProducerIdsAllocated,
    Reason,
    Refused,
    Reply,
    SubscriptionAltered,
    SubscriptionCreated,
    TopicAltered,
    TopicCreated,
)
from cluster.controller.model import (
    DELETED_TOPICS_MAX,
    EPOCH_MAX,
    NAMED_PRODUCERS_MAX,
    NUMBER_MAX,
    PARTITIONS_MAX,
    PARTITIONS_PER_TOPIC_MAX,
    PRODUCER_IDS_MAX,
    REPLICAS_MAX,
    REPLICATION_FACTOR_MAX,
    SETTINGS_BYTES_MAX,
    SUBSCRIPTIONS_MAX,
    SUBSCRIPTIONS_PER_TOPIC_MAX,
    TOPICS_MAX,
    DeletedTopic,
    Group,
    MemberState,
    NamedProducer,
    Reality,
    Subscription,
    Topic,
    identity,
    is_short_name,
    is_topic_name,
)
from cluster.controller.tables import Tables


def create_topic(tables: Tables, command: CreateTopic) -> Reply:
    existing = tables.topic_by_name(command.name)
    if existing is not None:
        return _existing_topic(existing, command)
    refused = _refuse_topic(tables, command) or _refuse_assignment(tables, command)
    if refused is not None:
        return refused
    number = tables.take_number("next_topic")
    first_group = tables.take_number("next_group_id", command.partitions)
    group_ids = tuple(range(first_group, first_group + command.partitions))
    topic_id = identity("t", cluster_id=tables.cluster_id, number=number)
    factor = command.replication_factor
    for partition, group_id in enumerate(group_ids):
        node_ids = command.assignment[partition * factor : (partition + 1) * factor]
        tables.put_group(_new_group(tables, group_id, number, partition, node_ids))
    tables.put_topic(
        Topic(
            number=number,
            topic_id=topic_id,
            name=command.name,
            partitions=command.partitions,
            replication_factor=factor,
            settings=command.settings,
            settings_version=1,
            created_at_ms=tables.counters.wall_ms,
            group_ids=group_ids,
        )
    )
    return TopicCreated(topic_id=topic_id, already_existed=False)


def alter_topic(tables: Tables, command: AlterTopic) -> Reply:
    topic = tables.topic_by_id(command.topic_id)
    if topic is None:
        return _unknown_topic(tables, command.topic_id)
    factor = command.replication_factor or topic.replication_factor
    if (topic.settings, topic.replication_factor) == (command.settings, factor):
        return TopicAltered(settings_version=topic.settings_version, operation_id="")
    if command.settings_version != topic.settings_version:
        return _refused(
            Reason.STALE, f"topic {topic.name} is at settings version {topic.settings_version}"
        )
    if len(command.settings) > SETTINGS_BYTES_MAX:
        return _refused(Reason.BAD_CONFIG, f"settings above {SETTINGS_BYTES_MAX} bytes")
    operation_id = ""
    if factor != topic.replication_factor:
        if not 1 <= factor <= REPLICATION_FACTOR_MAX:
            return _refused(Reason.BAD_CONFIG, f"replication factor {factor}")
        if factor > _active_count(tables):
            return _refused(Reason.NOT_ENOUGH_NODES, f"{factor} active nodes are needed")
        more = (factor - topic.replication_factor) * topic.partitions
        if tables.replica_count + more > REPLICAS_MAX:
            return _refused(Reason.QUOTA, f"{REPLICAS_MAX} replicas already")
        started = start_replication_change(tables, topic)
        if isinstance(started, Refused):
            return started
        operation_id = started.operation_id
    version = topic.settings_version + 1
    tables.put_topic(
        replace(
            topic,
            settings=command.settings,
            settings_version=version,
            replication_factor=factor,
        )
    )
    return TopicAltered(settings_version=version, operation_id=operation_id)


def delete_topic(tables: Tables, command: DeleteTopic) -> Reply:
    topic = tables.topic_by_id(command.topic_id)
    if topic is None:
        if tables.was_deleted(command.topic_id):
            return Done()
        return _unknown_topic(tables, command.topic_id)
    for group_id in topic.group_ids:
        group = tables.group(group_id)
        assert group is not None, f"topic {topic.topic_id} lacks group {group_id}"
        tables.drop_group(group_id)
        for replica in group.replicas:
            bury_replica(tables, group_id, replica)
    for subscription in tables.subscriptions_of(topic.number):
        tables.drop_subscription(subscription.number)
    tables.drop_topic(topic.number)
    tables.put_deleted_topic(
        DeletedTopic(number=topic.number, topic_id=topic.topic_id, name=topic.name),
        kept=DELETED_TOPICS_MAX,
    )
    return Done()


def create_subscription(tables: Tables, command: CreateSubscription) -> Reply:
    topic = tables.topic_by_id(command.topic_id)
    if topic is None:
        return _unknown_topic(tables, command.topic_id)
    existing = tables.subscription_by_name(topic.number, command.name)
    if existing is not None:
        if (existing.kind, existing.settings) == (command.kind, command.settings):
            return SubscriptionCreated(
                subscription_id=existing.subscription_id, already_existed=True
            )
        return _refused(Reason.ALREADY_EXISTS, f"subscription {command.name} has other settings")
    if not is_short_name(command.name):
        return _refused(Reason.BAD_NAME, f"not a subscription name: {command.name[:200]!r}")
    if max(len(command.settings), len(command.start)) > SETTINGS_BYTES_MAX:
        return _refused(Reason.BAD_CONFIG, f"settings above {SETTINGS_BYTES_MAX} bytes")
    if (
        tables.subscription_count >= SUBSCRIPTIONS_MAX
        or len(tables.subscriptions_of(topic.number)) >= SUBSCRIPTIONS_PER_TOPIC_MAX
    ):
        return _refused(
            Reason.QUOTA,
            f"{SUBSCRIPTIONS_PER_TOPIC_MAX} subscriptions a topic, {SUBSCRIPTIONS_MAX} in all",
        )
    number = tables.take_number("next_subscription")
    subscription_id = identity("s", cluster_id=tables.cluster_id, number=number)
    tables.put_subscription(
        Subscription(
            number=number,
            subscription_id=subscription_id,
            topic=topic.number,
            name=command.name,
            kind=command.kind,
            settings=command.settings,
            settings_version=1,
            start=command.start,
            created_at_ms=tables.counters.wall_ms,
        )
    )
    return SubscriptionCreated(subscription_id=subscription_id, already_existed=False)


def alter_subscription(tables: Tables, command: AlterSubscription) -> Reply:
    old = tables.subscription_by_id(command.subscription_id)
    if old is None:
        return _refused(Reason.SUBSCRIPTION_NOT_FOUND, f"no {command.subscription_id}")
    if old.settings == command.settings:
        return SubscriptionAltered(settings_version=old.settings_version)
    if command.settings_version != old.settings_version:
        return _refused(Reason.STALE, f"{old.name} is at settings version {old.settings_version}")
    if len(command.settings) > SETTINGS_BYTES_MAX:
        return _refused(Reason.BAD_CONFIG, f"settings above {SETTINGS_BYTES_MAX} bytes")
    version = old.settings_version + 1
    tables.put_subscription(replace(old, settings=command.settings, settings_version=version))
    return SubscriptionAltered(settings_version=version)


def delete_subscription(tables: Tables, command: DeleteSubscription) -> Reply:
    old = tables.subscription_by_id(command.subscription_id)
    if old is None:
        return _refused(Reason.SUBSCRIPTION_NOT_FOUND, f"no {command.subscription_id}")
    tables.drop_subscription(old.number)
    return Done()


def allocate_producer_ids(tables: Tables, command: AllocateProducerIds) -> Reply:
    if not 1 <= command.count <= PRODUCER_IDS_MAX:
        return _refused(Reason.BAD_REQUEST, f"count {command.count} not in 1..{PRODUCER_IDS_MAX}")
    if tables.counters.next_producer_id + command.count > NUMBER_MAX:
        return _refused(Reason.QUOTA, "producer ids are used up")
    first = tables.take_number("next_producer_id", command.count)
    return ProducerIdsAllocated(first=first, count=command.count)


def open_named_producer(tables: Tables, command: OpenNamedProducer) -> Reply:
    known = tables.producer(command.name)
    if known is None and not is_topic_name(command.name):
        return _refused(Reason.BAD_NAME, f"not a producer name: {command.name[:200]!r}")
    if known is None and tables.producer_count >= NAMED_PRODUCERS_MAX:
        return _refused(Reason.QUOTA, f"{NAMED_PRODUCERS_MAX} named producers already")
    if known is not None and known.epoch < EPOCH_MAX:
        producer_id, epoch = known.producer_id, known.epoch + 1
    elif tables.counters.next_producer_id < NUMBER_MAX:
        producer_id, epoch = tables.take_number("next_producer_id"), 1
    else:
        return _refused(Reason.QUOTA, "producer ids are used up")
    tables.put_producer(
        NamedProducer(
            producer_id=producer_id,
            name=command.name,
            epoch=epoch,
            opened_at_ms=tables.counters.wall_ms,
        )
    )
    return NamedProducerOpened(producer_id=producer_id, epoch=epoch)


def _existing_topic(topic: Topic, command: CreateTopic) -> Reply:
    mine = (topic.partitions, topic.replication_factor, topic.settings)
    if mine == (command.partitions, command.replication_factor, command.settings):
        return TopicCreated(topic_id=topic.topic_id, already_existed=True)
    return _refused(Reason.ALREADY_EXISTS, f"topic {topic.name} has other settings")


def _refuse_topic(tables: Tables, command: CreateTopic) -> Refused | None:
    if not is_topic_name(command.name):
        return _refused(Reason.BAD_NAME, f"not a topic name: {command.name[:401]!r}")
    if not 1 <= command.partitions <= PARTITIONS_PER_TOPIC_MAX:
        return _refused(Reason.BAD_CONFIG, f"partitions not in 1..{PARTITIONS_PER_TOPIC_MAX}")
    if not 1 <= command.replication_factor <= REPLICATION_FACTOR_MAX:
        return _refused(Reason.BAD_CONFIG, f"replication not in 1..{REPLICATION_FACTOR_MAX}")
    if len(command.settings) > SETTINGS_BYTES_MAX:
        return _refused(Reason.BAD_CONFIG, f"settings above {SETTINGS_BYTES_MAX} bytes")
    if tables.topic_count >= TOPICS_MAX:
        return _refused(Reason.QUOTA, f"{TOPICS_MAX} topics already")
    if tables.partition_count + command.partitions > PARTITIONS_MAX:
        return _refused(Reason.QUOTA, f"at most {PARTITIONS_MAX} partitions in all")
    if tables.replica_count + len(command.assignment) > REPLICAS_MAX:
        return _refused(Reason.QUOTA, f"at most {REPLICAS_MAX} replicas in all")
    if command.replication_factor > _active_count(tables):
        return _refused(
            Reason.NOT_ENOUGH_NODES, f"{command.replication_factor} active nodes are needed"
        )
    return None


def _refuse_assignment(tables: Tables, command: CreateTopic) -> Refused | None:
    factor = command.replication_factor
    if len(command.assignment) != command.partitions * factor:
        return _refused(Reason.BAD_REQUEST, f"{len(command.assignment)} replicas assigned")
    for node_id in sorted(set(command.assignment)):
        member = tables.member(node_id)
        if member is None or member.state != MemberState.ACTIVE:
            return _refused(Reason.STALE, f"node {node_id} is not active")
    for at in range(0, len(command.assignment), factor):
        if len(set(command.assignment[at : at + factor])) != factor:
            return _refused(Reason.BAD_REQUEST, "two replicas of a partition on one node")
    return None


def _new_group(
    tables: Tables, group_id: int, topic: int, partition: int, node_ids: tuple[int, ...]
) -> Group:
    replicas = tuple(new_replica(tables, node_id) for node_id in node_ids)
    ids = tuple(replica.replica_id for replica in replicas)
    return Group(
        group_id=group_id,
        topic=topic,
        partition=partition,
        generation=1,
        founding=ids,
        desired=ids,
        desired_learners=(),
        replicas=replicas,
        reality=Reality(voters=tuple(sorted(ids))),
    )


def _active_count(tables: Tables) -> int:
    return sum(member.state == MemberState.ACTIVE for member in tables.members())


def _unknown_topic(tables: Tables, topic_id: str) -> Refused:
    if tables.was_deleted(topic_id):
        return _refused(Reason.TOPIC_REPLACED, f"topic {topic_id} was deleted")
    return _refused(Reason.TOPIC_NOT_FOUND, f"no topic {topic_id}")


def _refused(reason: Reason, message: str) -> Refused:
    return Refused(reason=reason, message=message)
