"""The catalog under any sequence of commands: replicas stay byte-equal, checkpoint and replay give
the same state, ids are never given twice, replica sets stay sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.controller import codec
from cluster.controller import commands as c
from cluster.controller import model as m
from cluster.controller.catalog import Catalog
from cluster.controller.machine import CatalogMachine
from cluster.controller.placement import NodeLoad, assign
from cluster.controller.tables import Changes
from cluster.interfaces import CheckpointMeta
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, EntryKind

Draw = Callable[[int], int]  # draw(n): 0 <= number < n
# A run is a seed and a length: long runs reach deep states, a failing one shrinks by its length.
SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.integers(1, 80)


class NoRows:
    """The catalog keeps no derived rows."""

    def put(self, key: bytes, value: bytes) -> None:
        raise AssertionError("the catalog writes no rows")

    def delete(self, key: bytes) -> None:
        raise AssertionError("the catalog writes no rows")

    def delete_range(self, begin: bytes, end: bytes) -> None:
        raise AssertionError("the catalog writes no rows")


def announcement(node_id: int, incarnation: int, zone: int) -> c.Announcement:
    return c.Announcement(
        node_id=node_id,
        incarnation=f"i{incarnation}",
        peer_endpoint=f"p{node_id}:{zone}",
        client_endpoint=f"c{node_id}",
        zone=f"z{zone}",
        feature_level_max=incarnation,
    )


def pick(draw: Draw, values: Sequence[int]) -> int:
    return values[draw(len(values))] if values else 0


def found(catalog: Catalog, draw: Draw) -> c.Command:
    members = tuple(announcement(n, 1, n % 3) for n in range(1, 2 + draw(5)))
    return c.Found(cluster_id="c1", members=members)


def register(catalog: Catalog, draw: Draw) -> c.Command:
    return c.RegisterMember(member=announcement(1 + draw(8), 1 + draw(4), draw(3)))


def set_state(catalog: Catalog, draw: Draw) -> c.Command:
    return c.SetMemberState(node_id=1 + draw(8), state=m.MemberState(1 + draw(3)))


def remove(catalog: Catalog, draw: Draw) -> c.Command:
    return c.RemoveMember(node_id=1 + draw(8), force=draw(2) == 1)


def create_topic(catalog: Catalog, draw: Draw) -> c.Command:
    nodes = [
        NodeLoad(node_id=member.node_id, zone=member.zone)
        for member in catalog.members()
        if member.state == m.MemberState.ACTIVE
    ]
    partitions, factor = 1 + draw(3), 1 + draw(max(1, min(3, len(nodes))))
    sets = (
        assign(nodes, partitions=partitions, replication_factor=factor, rotation=draw(9))
        if len(nodes) >= factor
        else ((1,) * factor,) * partitions
    )
    return c.CreateTopic(
        name=f"default/t{draw(4)}",
        partitions=partitions,
        replication_factor=factor,
        settings=bytes([draw(2)]),
        assignment=tuple(n for chosen in sets for n in chosen),
    )


def topic_id(catalog: Catalog, draw: Draw) -> str:
    topics = catalog.topics()
    return topics[draw(len(topics))].topic_id if topics and draw(10) else "t1-0"


def alter_topic(catalog: Catalog, draw: Draw) -> c.Command:
    return c.AlterTopic(
        topic_id=topic_id(catalog, draw),
        settings_version=1 + draw(2),
        settings=bytes([draw(3)]),
        replication_factor=draw(4),
    )


def delete_topic(catalog: Catalog, draw: Draw) -> c.Command:
    return c.DeleteTopic(topic_id=topic_id(catalog, draw))


def create_subscription(catalog: Catalog, draw: Draw) -> c.Command:
    return c.CreateSubscription(
        topic_id=topic_id(catalog, draw),
        name=f"s{draw(3)}",
        kind=m.SubscriptionKind(1 + draw(2)),
        settings=b"",
    )


def delete_subscription(catalog: Catalog, draw: Draw) -> c.Command:
    number = 1 + draw(5)
    subscription = catalog.subscription(number)
    return c.DeleteSubscription(
        subscription_id=subscription.subscription_id if subscription else "s0-0"
    )


def set_desired(catalog: Catalog, draw: Draw) -> c.Command:
    group_id = pick(draw, [group.group_id for group in catalog.groups()])
    members = [member.node_id for member in catalog.members()]
    start, count = draw(9), 1 + draw(4)
    turned = [members[(start + i) % len(members)] for i in range(len(members))] if members else []
    learners = tuple(turned[count:]) if group_id == m.CONTROLLER_GROUP_ID else ()
    return c.SetDesiredReplicas(
        group_id=group_id, generation=0, node_ids=tuple(turned[:count]), learner_node_ids=learners
    )


def report(catalog: Catalog, draw: Draw) -> c.Command:
    """A leader on the way: any of the wish, the former reality, both at once, or an old report."""
    group = catalog.group(pick(draw, [group.group_id for group in catalog.groups()]))
    if group is None:
        return c.ReportConfiguration(group_id=1, index=1, term=1, generation=1, voters=(1,))
    reality = group.reality
    wished, old = tuple(sorted(group.desired)), reality.voters
    how = draw(4)
    return c.ReportConfiguration(
        group_id=group.group_id,
        index=max(0, reality.index + draw(4) - 1),
        term=1 + draw(3),
        generation=max(0, group.generation - draw(2)),
        voters=old if how == 0 else wished,
        voters_outgoing=old if how == 1 else (),
        learners=tuple(sorted(group.desired_learners)) if how == 2 else (),
    )


def confirm(catalog: Catalog, draw: Draw) -> c.Command:
    node_id, incarnation = 1 + draw(8), f"i{1 + draw(4)}"
    tombstones = catalog.tombstones_on(node_id, incarnation)
    return c.ConfirmDeleted(
        node_id=node_id,
        incarnation=incarnation,
        replica_ids=tuple(t.replica_id for t in tombstones[: 1 + draw(3)]),
    )


def producers(catalog: Catalog, draw: Draw) -> c.Command:
    if draw(2):
        return c.AllocateProducerIds(count=1 + draw(5))
    return c.OpenNamedProducer(name=f"default/p{draw(3)}")


def start_operation(catalog: Catalog, draw: Draw) -> c.Command:
    return c.StartOperation(
        kind=m.OperationKind(1 + draw(6)),
        node_id=1 + draw(8),
        to_node_id=1 + draw(8),
        topic_id=topic_id(catalog, draw),
        partition=draw(2),
        force=draw(3) == 0,
    )


def end_operation(catalog: Catalog, draw: Draw) -> c.Command:
    running = catalog.running_operations()
    operation_id = running[draw(len(running))].operation_id if running else "o0-0"
    if draw(3) == 0:
        return c.UpdateOperation(
            operation_id=operation_id, steps_done=draw(9), steps_total=9, progress="x"
        )
    return c.FinishOperation(
        operation_id=operation_id, state=m.OperationState(1 + draw(4)), message="m"
    )


def levels(catalog: Catalog, draw: Draw) -> c.Command:
    if draw(2):
        return c.SetFeatureLevel(level=draw(4))
    return c.SetMachineVersion(version=draw(3))


KINDS = (
    found,
    register,
    register,
    set_state,
    remove,
    create_topic,
    create_topic,
    alter_topic,
    delete_topic,
    create_subscription,
    delete_subscription,
    set_desired,
    set_desired,
    report,
    report,
    report,
    confirm,
    producers,
    start_operation,
    end_operation,
    levels,
)


def command_of(catalog: Catalog, draw: Draw) -> c.Command:
    if not catalog.cluster_id and draw(10):
        return found(catalog, draw)  # most runs begin with the founding
    return KINDS[draw(len(KINDS))](catalog, draw)


def entry(index: int, command: c.Command) -> Entry:
    stamp = c.Stamp(log_time_ms=index * 10, wall_ms=5_000_000 + index * (7 if index % 3 else -7))
    data = codec.encode_command(command, stamp)
    assert codec.decode_command(data) == (command, stamp)
    return Entry.create(index=index, term=1, kind=EntryKind.COMMAND, data=data)


def whole(machine: CatalogMachine) -> dict[bytes, bytes]:
    """A full checkpoint."""
    return {
        codec.segment_name(table.name, block): codec.encode_segment(table.name, table.block(block))
        for table in machine.catalog.all_tables()
        for block in table.blocks()
    }


def meta(machine: CatalogMachine) -> CheckpointMeta:
    index = machine.applied_index
    return CheckpointMeta(
        index=index, term=1, configuration=Configuration.of((1,)), live_index=index + 1
    )


def check_sound(catalog: Catalog, replica_nodes: dict[int, tuple[int, int, str]]) -> None:
    """Invariants of any state. `replica_nodes`: what each replica id was ever bound to."""
    for group in catalog.groups():
        ids = [replica.replica_id for replica in group.replicas]
        assert ids == sorted(set(ids))
        assert set(group.desired) | set(group.desired_learners) <= set(ids)
        assert group.desired, f"group {group.group_id} wishes nobody"
        wished = [group.node_of(r) for r in (*group.desired, *group.desired_learners)]
        assert len(set(wished)) == len(wished), f"two wished replicas on a node: {group}"
        for replica in group.replicas:
            bound = (group.group_id, replica.node_id, replica.incarnation)
            assert replica_nodes.setdefault(replica.replica_id, bound) == bound
            assert replica.replica_id < catalog.counters.next_replica_id
            assert catalog.group_of_replica(replica.replica_id) is group
            assert catalog.tombstone(replica.replica_id) is None
    for member in catalog.members():
        assert not catalog.is_gone(member.node_id, member.incarnation)
        controller = catalog.group(m.CONTROLLER_GROUP_ID)
        assert controller is not None
        assert controller.node_of(member.controller_replica_id) == member.node_id
        for group, replica in catalog.replicas_on(member.node_id, member.incarnation):
            assert replica in group.replicas
        for tombstone in catalog.tombstones_on(member.node_id, member.incarnation):
            assert tombstone.replica_id in replica_nodes
    for topic in catalog.topics():
        assert catalog.topic_by_name(topic.name) is topic
        assert len(topic.group_ids) == topic.partitions
        for partition, group_id in enumerate(topic.group_ids):
            owned = catalog.group(group_id)
            assert owned is not None
            assert (owned.topic, owned.partition) == (topic.number, partition)
    total = sum(topic.partitions for topic in catalog.topics())
    assert total == catalog.partition_count


@settings(max_examples=100, deadline=None)
@given(SEEDS, LENGTHS, st.integers(1, 20))
def test_replicas_agree_and_checkpoint_plus_replay_is_the_state(
    seed: int, length: int, checkpoint_every: int
) -> None:
    """Rule R15, for the catalog: one replica applies one by one, one in runs, and one is restarted
    from incremental checkpoints all the time. All answer the same and end byte-equal."""
    draw = Random(seed).randrange
    steady, lumpy, restarted = CatalogMachine(), CatalogMachine(), CatalogMachine()
    stored: dict[bytes, bytes] = {}
    waiting: list[Entry] = []
    replies: list[object] = []
    lumpy_replies: list[object] = []
    replica_nodes: dict[int, tuple[int, int, str]] = {}
    for index in range(1, length + 1):
        command = command_of(steady.catalog, draw)
        one = entry(index, command)
        (reply,) = steady.apply([one], NoRows())
        assert isinstance(reply, c.Reply)
        assert codec.decode_reply(codec.encode_reply(reply)) == reply
        replies.append(reply)
        waiting.append(one)
        assert restarted.apply([one], NoRows()) == [reply]
        check_sound(steady.catalog, replica_nodes)
        if index % checkpoint_every == 0:
            for name, data in restarted.freeze().changed_segments():
                if data is None:
                    stored.pop(name, None)  # made and emptied since: it was never stored
                else:
                    stored[name] = data
            point = meta(restarted)
            restarted = CatalogMachine()
            restarted.restore(point, sorted(stored.items()))
            assert whole(restarted) == stored
            lumpy_replies += lumpy.apply(waiting, NoRows())
            waiting.clear()
    lumpy_replies += lumpy.apply(waiting, NoRows())
    assert lumpy_replies == replies
    assert whole(steady) == whole(lumpy) == whole(restarted)


@settings(max_examples=60, deadline=None)
@given(SEEDS, LENGTHS)
def test_the_change_feed_names_every_row_that_changed(seed: int, length: int) -> None:
    """A node that looks only at what the feed names sees everything that a full scan sees."""
    machine = CatalogMachine()
    mirror: dict[str, dict[int, object]] = {"groups": {}, "topics": {}, "subscriptions": {}}
    held: dict[tuple[int, str], list[int]] = {}
    catalog = machine.catalog
    lookups: dict[str, Callable[[int], object | None]] = {
        "groups": catalog.group,
        "topics": catalog.topic,
        "subscriptions": catalog.subscription,
    }

    def look(kind: str, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            row = lookups[kind](number)
            if row is None:
                mirror[kind].pop(number, None)
            else:
                mirror[kind][number] = row

    versions = [0]

    def on_change(changes: Changes) -> None:
        assert changes.version > versions[-1]
        versions.append(changes.version)
        look("groups", changes.groups)
        look("topics", changes.topics)
        look("subscriptions", changes.subscriptions)
        for node_id in changes.nodes:
            for incarnation in (f"i{i}" for i in range(1, 5)):
                replicas = catalog.replicas_on(node_id, incarnation)
                held[node_id, incarnation] = [r.replica_id for _, r in replicas]

    machine.on_change(on_change)
    draw = Random(seed).randrange
    for index in range(1, length + 1):
        machine.apply([entry(index, command_of(catalog, draw))], NoRows())
        assert versions[-1] == catalog.version, "whoever waits for this version is told"
    assert mirror["groups"] == {group.group_id: group for group in catalog.groups()}
    assert mirror["topics"] == {topic.number: topic for topic in catalog.topics()}
    for member in catalog.members():
        key = (member.node_id, member.incarnation)
        assert held[key] == [r.replica_id for _, r in catalog.replicas_on(*key)]
