"""The catalog's tables: rows by number, the indexes derived from them, what changed, what is dirty.

Nothing here decides anything. A table is cut into blocks of neighbouring numbers; a block is one
segment of a checkpoint, so a change costs one small segment however big the cluster is. Indexes
are rebuilt from the rows, never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from cluster.controller.model import (
    CONTROLLER_GROUP_ID,
    Counters,
    DeletedTopic,
    GoneMember,
    Group,
    Member,
    NamedProducer,
    Operation,
    OperationState,
    Replica,
    Subscription,
    Tombstone,
    Topic,
)

Row = TypeVar("Row")


class Table(Generic[Row]):
    """Rows by number. `block_rows`: how many neighbouring numbers share a segment, chosen so that a
    full segment takes far less than 5 ms to serialise."""

    def __init__(self, name: str, number: Callable[[Row], int], *, block_rows: int) -> None:
        self.name = name
        self.block_rows = block_rows
        self.rows: dict[int, Row] = {}
        self._number = number
        self._dirty: dict[int, None] = {}

    def put(self, row: Row) -> None:
        number = self._number(row)
        self.rows[number] = row
        self._dirty[number // self.block_rows] = None

    def drop(self, number: int) -> None:
        del self.rows[number]
        self._dirty[number // self.block_rows] = None

    def sorted_rows(self) -> list[Row]:
        """By number: the order of a dict depends on history that a checkpoint does not keep."""
        return [self.rows[number] for number in sorted(self.rows)]

    def block(self, block: int) -> list[Row]:
        first = block * self.block_rows
        numbers = range(first, first + self.block_rows)
        return [self.rows[number] for number in numbers if number in self.rows]

    def take_dirty(self) -> list[tuple[int, list[Row]]]:
        """Blocks that changed since the last call, in rising order, with the rows they have now."""
        blocks = sorted(self._dirty)
        self._dirty.clear()
        return [(block, self.block(block)) for block in blocks]

    def blocks(self) -> list[int]:
        return sorted({number // self.block_rows for number in self.rows})

    def load(self, rows: Iterable[Row]) -> None:
        """Rows of a checkpoint: not dirty."""
        for row in rows:
            self.rows[self._number(row)] = row


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one or more commands changed: numbers of rows, each once. A row that can no longer be
    looked up is gone. `nodes`: the member itself, what it should hold or delete. `version`: the
    catalog's after it. A restored catalog says `everything`: look at all of it."""

    version: int
    nodes: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    topics: tuple[int, ...] = ()
    subscriptions: tuple[int, ...] = ()
    operations: tuple[int, ...] = ()
    everything: bool = False


class Tables:
    """All rows. Changed only through put_* and drop_*, which keep the indexes."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._counters: Table[Counters] = Table("counters", lambda _: 0, block_rows=1)
        self._members: Table[Member] = Table("members", lambda row: row.node_id, block_rows=64)
        self._gone: Table[GoneMember] = Table("gone", lambda row: row.number, block_rows=256)
        self._groups: Table[Group] = Table("groups", lambda row: row.group_id, block_rows=64)
        self._topics: Table[Topic] = Table("topics", lambda row: row.number, block_rows=16)
        self._deleted_topics: Table[DeletedTopic] = Table(
            "deleted_topics", lambda row: row.number, block_rows=256
        )
        self._subscriptions: Table[Subscription] = Table(
            "subscriptions", lambda row: row.number, block_rows=32
        )
        self._tombstones: Table[Tombstone] = Table(
            "tombstones", lambda row: row.replica_id, block_rows=1024
        )
        self._producers: Table[NamedProducer] = Table(
            "producers", lambda row: row.producer_id, block_rows=1024
        )
        self._operations: Table[Operation] = Table(
            "operations", lambda row: row.number, block_rows=64
        )
        self._counters.rows[0] = Counters()
        self.changed = False
        self._changed: dict[str, dict[int, None]] = {}
        self._told_version = 0
        self._clear_indexes()

    def all_tables(self) -> tuple[Table[object], ...]:
        """In a fixed order; the codec names their segments."""
        tables: tuple[object, ...] = (
            self._counters,
            self._members,
            self._gone,
            self._groups,
            self._topics,
            self._deleted_topics,
            self._subscriptions,
            self._tombstones,
            self._producers,
            self._operations,
        )
        return tables  # type: ignore[return-value]

    # ------------------------------------------------------------------------------------ lookups

    @property
    def counters(self) -> Counters:
        return self._counters.rows[0]

    @property
    def cluster_id(self) -> str:
        """ "" before the cluster is founded."""
        return self.counters.cluster_id

    @property
    def version(self) -> int:
        return self.counters.version

    def member(self, node_id: int) -> Member | None:
        return self._members.rows.get(node_id)

    def members(self) -> list[Member]:
        """By node id."""
        return self._members.sorted_rows()

    def is_current(self, node_id: int, incarnation: str) -> bool:
        """This incarnation is the node's present one."""
        member = self._members.rows.get(node_id)
        return member is not None and member.incarnation == incarnation

    def is_gone(self, node_id: int, incarnation: str) -> bool:
        """This incarnation was removed, or replaced by a later one."""
        return (node_id, incarnation) in self._gone_numbers

    def topic(self, number: int) -> Topic | None:
        return self._topics.rows.get(number)

    def topic_by_name(self, name: str) -> Topic | None:
        return self._topics.rows.get(self._topic_by_name.get(name, 0))

    def topic_by_id(self, topic_id: str) -> Topic | None:
        return self._topics.rows.get(self._topic_by_id.get(topic_id, 0))

    def topics(self) -> list[Topic]:
        """By number, that is in order of creation."""
        return self._topics.sorted_rows()

    def was_deleted(self, topic_id: str) -> bool:
        """Remembers the last DELETED_TOPICS_MAX only."""
        return topic_id in self._deleted_by_id

    def group(self, group_id: int) -> Group | None:
        return self._groups.rows.get(group_id)

    def groups(self) -> list[Group]:
        """By group id, the controller's first."""
        return self._groups.sorted_rows()

    def group_of(self, topic_id: str, partition: int) -> Group | None:
        topic = self.topic_by_id(topic_id)
        if topic is None or not 0 <= partition < topic.partitions:
            return None
        return self._groups.rows[topic.group_ids[partition]]

    def group_of_replica(self, replica_id: int) -> Group | None:
        return self._groups.rows.get(self._replica_group.get(replica_id, 0))

    def node_of_replica(self, replica_id: int) -> int:
        """0 = no such replica now."""
        group = self.group_of_replica(replica_id)
        return 0 if group is None else group.node_of(replica_id)

    def groups_on(self, node_id: int) -> list[Group]:
        """Groups that have a replica on the node, of whichever incarnation, by group id."""
        numbers = sorted(set(self._node_replicas.get(node_id, {}).values()))
        return [self._groups.rows[number] for number in numbers]

    def replicas_on(self, node_id: int, incarnation: str) -> list[tuple[Group, Replica]]:
        """What this incarnation should hold, by replica id."""
        found = []
        for replica_id, group_id in sorted(self._node_replicas.get(node_id, {}).items()):
            group = self._groups.rows[group_id]
            replica = group.replica(replica_id)
            assert replica is not None, f"replica {replica_id} is not in group {group_id}"
            if replica.incarnation == incarnation:
                found.append((group, replica))
        return found

    def replica_count_on(self, node_id: int) -> int:
        """Of partitions; leaving ones count until they are dropped."""
        held = self._node_replicas.get(node_id, {})
        return len(held) - sum(group_id == CONTROLLER_GROUP_ID for group_id in held.values())

    def preferred_count_on(self, node_id: int) -> int:
        """Groups whose preferred leader is on the node."""
        return self._preferred.get(node_id, 0)

    def nodes_with_replicas(self) -> list[int]:
        """Those that are members no more included."""
        return sorted(self._node_replicas)

    def unsettled_groups(self) -> list[Group]:
        """Whose reality is not their wish, by group id."""
        return [self._groups.rows[group_id] for group_id in sorted(self._unsettled)]

    def tombstones_on(self, node_id: int, incarnation: str) -> list[Tombstone]:
        """What this incarnation should delete and confirm, by replica id."""
        rows = [self._tombstones.rows[n] for n in sorted(self._node_tombstones.get(node_id, {}))]
        return [row for row in rows if row.incarnation == incarnation]

    def tombstone(self, replica_id: int) -> Tombstone | None:
        return self._tombstones.rows.get(replica_id)

    def subscription(self, number: int) -> Subscription | None:
        return self._subscriptions.rows.get(number)

    def subscription_by_id(self, subscription_id: str) -> Subscription | None:
        return self._subscriptions.rows.get(self._subscription_by_id.get(subscription_id, 0))

    def subscription_by_name(self, topic: int, name: str) -> Subscription | None:
        return self._subscriptions.rows.get(self._topic_subscriptions.get(topic, {}).get(name, 0))

    def subscriptions_of(self, topic: int) -> list[Subscription]:
        """By name."""
        names = sorted(self._topic_subscriptions.get(topic, {}).items())
        return [self._subscriptions.rows[number] for _, number in names]

    def producer(self, name: str) -> NamedProducer | None:
        return self._producers.rows.get(self._producer_by_name.get(name, 0))

    def producer_by_id(self, producer_id: int) -> NamedProducer | None:
        return self._producers.rows.get(producer_id)

    def operation(self, operation_id: str) -> Operation | None:
        return self._operations.rows.get(self._operation_by_id.get(operation_id, 0))

    def operations(self) -> list[Operation]:
        """By number, that is in order of their start."""
        return self._operations.sorted_rows()

    def running_operations(self) -> list[Operation]:
        return [row for row in self.operations() if row.state == OperationState.RUNNING]

    @property
    def partition_count(self) -> int:
        """Of all topics."""
        return len(self._groups.rows) - (1 if CONTROLLER_GROUP_ID in self._groups.rows else 0)

    @property
    def replica_count(self) -> int:
        """Of all groups, with those that are still to be deleted."""
        return len(self._replica_group) + len(self._tombstones.rows)

    @property
    def topic_count(self) -> int:
        return len(self._topics.rows)

    @property
    def subscription_count(self) -> int:
        return len(self._subscriptions.rows)

    @property
    def producer_count(self) -> int:
        return len(self._producers.rows)

    # ------------------------------------------------------------------------------------ changes

    def put_counters(self, **fields: int | str) -> None:
        """Times aside, this is a change of the catalog."""
        self._counters.put(replace(self.counters, **fields))  # type: ignore[arg-type]
        self.changed = True

    def stamp(self, *, log_time_ms: int, wall_ms: int) -> None:
        now = self.counters
        log_time_ms, wall_ms = max(now.log_time_ms, log_time_ms), max(now.wall_ms, wall_ms)
        if (log_time_ms, wall_ms) != (now.log_time_ms, now.wall_ms):
            self._counters.put(replace(now, log_time_ms=log_time_ms, wall_ms=wall_ms))

    def take_number(self, counter: str, count: int = 1) -> int:
        """The first of `count` numbers, never given again."""
        number: int = getattr(self.counters, counter)
        self.put_counters(**{counter: number + count})
        return number

    def put_member(self, member: Member) -> None:
        self._members.put(member)
        self._note("nodes", member.node_id)

    def drop_member(self, node_id: int) -> None:
        self._members.drop(node_id)
        self._note("nodes", node_id)

    def put_gone(self, gone: GoneMember) -> None:
        self._gone.put(gone)
        self._gone_numbers[gone.node_id, gone.incarnation] = gone.number
        self.changed = True

    def drop_oldest_gone(self, kept: int) -> None:
        while len(self._gone.rows) > kept:
            gone = self._gone.rows[min(self._gone.rows)]
            self._gone.drop(gone.number)
            del self._gone_numbers[gone.node_id, gone.incarnation]

    def put_group(self, group: Group) -> None:
        old = self._groups.rows.get(group.group_id)
        self._unindex_group(old)
        self._groups.put(group)
        self._index_group(group)
        for replica in (*(old.replicas if old else ()), *group.replicas):
            self._note("nodes", replica.node_id)
        self._note("groups", group.group_id)

    def drop_group(self, group_id: int) -> None:
        group = self._groups.rows[group_id]
        self._unindex_group(group)
        self._groups.drop(group_id)
        for replica in group.replicas:
            self._note("nodes", replica.node_id)
        self._note("groups", group_id)

    def put_topic(self, topic: Topic) -> None:
        self._topics.put(topic)
        self._index_topic(topic)
        self._note("topics", topic.number)

    def drop_topic(self, number: int) -> None:
        topic = self._topics.rows[number]
        self._topics.drop(number)
        del self._topic_by_name[topic.name], self._topic_by_id[topic.topic_id]
        self._note("topics", number)

    def put_deleted_topic(self, deleted: DeletedTopic, *, kept: int) -> None:
        self._deleted_topics.put(deleted)
        self._deleted_by_id[deleted.topic_id] = deleted.number
        while len(self._deleted_topics.rows) > kept:
            oldest = self._deleted_topics.rows[min(self._deleted_topics.rows)]
            self._deleted_topics.drop(oldest.number)
            del self._deleted_by_id[oldest.topic_id]
        self.changed = True

    def put_tombstone(self, tombstone: Tombstone) -> None:
        self._tombstones.put(tombstone)
        self._node_tombstones.setdefault(tombstone.node_id, {})[tombstone.replica_id] = None
        self._note("nodes", tombstone.node_id)

    def drop_tombstone(self, replica_id: int) -> None:
        tombstone = self._tombstones.rows[replica_id]
        self._tombstones.drop(replica_id)
        del self._node_tombstones[tombstone.node_id][replica_id]
        self._note("nodes", tombstone.node_id)

    def put_subscription(self, subscription: Subscription) -> None:
        self._subscriptions.put(subscription)
        self._index_subscription(subscription)
        self._note("subscriptions", subscription.number)

    def drop_subscription(self, number: int) -> None:
        row = self._subscriptions.rows[number]
        self._subscriptions.drop(number)
        del self._subscription_by_id[row.subscription_id]
        del self._topic_subscriptions[row.topic][row.name]
        if not self._topic_subscriptions[row.topic]:
            del self._topic_subscriptions[row.topic]
        self._note("subscriptions", number)

    def put_producer(self, producer: NamedProducer) -> None:
        old = self.producer(producer.name)
        if old is not None and old.producer_id != producer.producer_id:
            self._producers.drop(old.producer_id)
        self._producers.put(producer)
        self._producer_by_name[producer.name] = producer.producer_id
        self.changed = True

    def put_operation(self, operation: Operation) -> None:
        self._operations.put(operation)
        self._operation_by_id[operation.operation_id] = operation.number
        self._note("operations", operation.number)

    def drop_operation(self, number: int) -> None:
        del self._operation_by_id[self._operations.rows[number].operation_id]
        self._operations.drop(number)
        self._note("operations", number)

    def take_changes(self) -> Changes | None:
        """All since the last call; None if there were none. A change of counters alone names no
        rows, but whoever waits for its version must be told."""
        if self.version == self._told_version:
            return None
        self._told_version = self.version
        noted, self._changed = self._changed, {}
        return Changes(version=self.version, **{k: tuple(sorted(v)) for k, v in noted.items()})  # type: ignore[arg-type]

    def _note(self, kind: str, number: int) -> None:
        self._changed.setdefault(kind, {})[number] = None
        self.changed = True

    # ------------------------------------------------------------------------------------ indexes

    def rebuild_indexes(self) -> None:
        self._told_version = self.version
        self._clear_indexes()
        for topic in self._topics.rows.values():
            self._index_topic(topic)
        for group in self._groups.rows.values():
            self._index_group(group)
        for subscription in self._subscriptions.rows.values():
            self._index_subscription(subscription)
        for tombstone in self._tombstones.rows.values():
            on_node = self._node_tombstones.setdefault(tombstone.node_id, {})
            on_node[tombstone.replica_id] = None
        for gone in self._gone.rows.values():
            self._gone_numbers[gone.node_id, gone.incarnation] = gone.number
        for deleted in self._deleted_topics.rows.values():
            self._deleted_by_id[deleted.topic_id] = deleted.number
        for producer in self._producers.rows.values():
            self._producer_by_name[producer.name] = producer.producer_id
        for operation in self._operations.rows.values():
            self._operation_by_id[operation.operation_id] = operation.number

    def _clear_indexes(self) -> None:
        self._gone_numbers: dict[tuple[int, str], int] = {}
        self._replica_group: dict[int, int] = {}
        self._preferred: dict[int, int] = {}
        self._unsettled: dict[int, None] = {}
        self._node_replicas: dict[int, dict[int, int]] = {}
        self._node_tombstones: dict[int, dict[int, None]] = {}
        self._topic_by_name: dict[str, int] = {}
        self._topic_by_id: dict[str, int] = {}
        self._deleted_by_id: dict[str, int] = {}
        self._subscription_by_id: dict[str, int] = {}
        self._topic_subscriptions: dict[int, dict[str, int]] = {}
        self._producer_by_name: dict[str, int] = {}
        self._operation_by_id: dict[str, int] = {}

    def _index_topic(self, topic: Topic) -> None:
        self._topic_by_name[topic.name] = topic.number
        self._topic_by_id[topic.topic_id] = topic.number

    def _index_subscription(self, row: Subscription) -> None:
        self._subscription_by_id[row.subscription_id] = row.number
        self._topic_subscriptions.setdefault(row.topic, {})[row.name] = row.number

    def _index_group(self, group: Group) -> None:
        for replica in group.replicas:
            self._replica_group[replica.replica_id] = group.group_id
            on_node = self._node_replicas.setdefault(replica.node_id, {})
            on_node[replica.replica_id] = group.group_id
        leader = group.node_of(group.desired[0])
        self._preferred[leader] = self._preferred.get(leader, 0) + 1
        if not group.is_settled():
            self._unsettled[group.group_id] = None

    def _unindex_group(self, group: Group | None) -> None:
        if group is None:
            return
        for replica in group.replicas:
            del self._replica_group[replica.replica_id]
            del self._node_replicas[replica.node_id][replica.replica_id]
            if not self._node_replicas[replica.node_id]:
                del self._node_replicas[replica.node_id]
        self._preferred[group.node_of(group.desired[0])] -= 1
        self._unsettled.pop(group.group_id, None)
