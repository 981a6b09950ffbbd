"""What the catalog holds: the rows of its tables, the limits, and small rules about single rows.

Rows are frozen: a change puts a new row in the place of the old one, so a checkpoint under way can
keep the rows it began with while the catalog goes on. Numbers that identify (group, replica, topic,
subscription, operation, producer) come from counters and are never given twice.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum

CONTROLLER_GROUP_ID = 1
MACHINE_VERSION = 1  # the newest version of the catalog's rules that this code knows

# Limits. They decide what a command is refused for, so every replica must have the same ones: they
# are constants of the machine version, not settings of a node. When full: refused with QUOTA.
MEMBERS_MAX = 64
TOPICS_MAX = 10_000
PARTITIONS_MAX = 20_000  # of all topics
PARTITIONS_PER_TOPIC_MAX = 1000
REPLICATION_FACTOR_MAX = 7
REPLICAS_MAX = 100_000  # of all groups, tombstones included
SUBSCRIPTIONS_MAX = 20_000
SUBSCRIPTIONS_PER_TOPIC_MAX = 1000
NAMED_PRODUCERS_MAX = 100_000
OPERATIONS_MAX = 1000
RUNNING_OPERATIONS_MAX = 100
# A row that ended later than this ago is kept even if that means refusing a new one.
OPERATION_KEPT_MS = 24 * 3600 * 1000
GONE_MEMBERS_MAX = 4096  # beyond it the oldest is forgotten
DELETED_TOPICS_MAX = 1024  # beyond it the oldest is forgotten
PRODUCER_IDS_MAX = 1_000_000  # in one block
SETTINGS_BYTES_MAX = 16 * 1024
ENDPOINT_CHARS_MAX = 255
ZONE_CHARS_MAX = 100
MESSAGE_CHARS_MAX = 1000
NODE_ID_MAX = 2**31 - 1
NUMBER_MAX = 2**53 - 1  # what JavaScript can hold
EPOCH_MAX = 2**31 - 1
SLOTS_PER_PARTITION = 64

_NAME_PART = r"[A-Za-z0-9._-]{1,200}"
_TOPIC_NAME = re.compile(f"{_NAME_PART}/{_NAME_PART}")
_SHORT_NAME = re.compile(_NAME_PART)


def is_topic_name(name: str) -> bool:
    """A full name of a topic or producer, `namespace/name`."""
    return _TOPIC_NAME.fullmatch(name) is not None


def is_short_name(name: str) -> bool:
    """A subscription's name."""
    return _SHORT_NAME.fullmatch(name) is not None


def identity(kind: str, *, cluster_id: str, number: int) -> str:
    """The public identity of the `number`-th topic ("t"), subscription ("s") or operation ("o").
    The number keeps it unique in its cluster; the digest keeps ids of two clusters apart."""
    digest = hashlib.blake2b(f"{cluster_id}/{kind}/{number}".encode(), digest_size=6).hexdigest()
    return f"{kind}{number:x}-{digest}"


def number_of(identity: str) -> int:
    """The number that `identity` was made of, 0 if it is none."""
    try:
        return int(identity[1:].partition("-")[0], 16)
    except ValueError:
        return 0


class MemberState(IntEnum):
    ACTIVE = 1  # takes part
    DRAINING = 2  # its replicas are being moved away
    DRAINED = 3  # holds no replica but the controller's, gets none


class SubscriptionKind(IntEnum):
    STREAM = 1
    QUEUE = 2


class OperationKind(IntEnum):
    ADD_NODE = 1
    DRAIN_NODE = 2
    REMOVE_NODE = 3
    MOVE_REPLICA = 4
    ALTER_REPLICATION = 5
    REDRIVE = 6


class OperationState(IntEnum):
    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The single row of counts. `version` rises with every change of the catalog; the `next_*` are
    the numbers to be given next. The times are the highest stamps applied."""

    cluster_id: str = ""
    version: int = 0
    log_time_ms: int = 0
    wall_ms: int = 0
    machine_version: int = MACHINE_VERSION
    feature_level: int = 0
    next_replica_id: int = 1
    next_group_id: int = CONTROLLER_GROUP_ID + 1
    next_topic: int = 1
    next_subscription: int = 1
    next_operation: int = 1
    next_producer_id: int = 1
    next_gone: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node of the cluster, in its present incarnation. What it announces about itself: versions
    of the catalog's and partitions' rules it can run, newest data format, highest feature level."""

    node_id: int
    incarnation: str
    peer_endpoint: str
    client_endpoint: str
    zone: str
    state: MemberState
    controller_replica_id: int
    software_version: str = ""
    machine_version_min: int = MACHINE_VERSION
    machine_version_max: int = MACHINE_VERSION
    format_max: int = 0
    feature_level_max: int = 0
    joined_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneMember:
    """Tombstone of one incarnation of a node: whoever shows it is refused. `removed`: taken out of
    the cluster; else the node came back with an empty disk under a new incarnation."""

    number: int
    node_id: int
    incarnation: str
    gone_at_ms: int
    removed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One copy of a group, for good bound to one incarnation of one node."""

    replica_id: int
    node_id: int
    incarnation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reality:
    """The Raft configuration of a group as its leader last reported it, committed at `index`.
    index 0: not reported yet, the founding replicas are the voters."""

    index: int = 0
    term: int = 0
    generation: int = 0  # of the wish that the leader knew when it reported
    voters: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()

    def members(self) -> tuple[int, ...]:
        return tuple(sorted({*self.voters, *self.voters_outgoing, *self.learners}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A Raft group. `desired` (voters, the first is the preferred leader) and `desired_learners`
    are the wish, `generation` counts its changes; `reality` is what is so. `replicas` are all that
    are in either, in rising order of ids: those nodes create and keep. `founding` start with the
    configuration of these voters, every other replica starts empty."""

    group_id: int
    topic: int  # the topic's number, 0 = the controller
    partition: int
    generation: int
    founding: tuple[int, ...]
    desired: tuple[int, ...]
    desired_learners: tuple[int, ...]
    replicas: tuple[Replica, ...]
    reality: Reality

    def replica(self, replica_id: int) -> Replica | None:
        for replica in self.replicas:
            if replica.replica_id == replica_id:
                return replica
        return None

    def node_of(self, replica_id: int) -> int:
        """0 = not a replica of the group."""
        replica = self.replica(replica_id)
        return 0 if replica is None else replica.node_id

    def desired_nodes(self) -> tuple[int, ...]:
        """Node ids of the wished voters, the preferred leader's first."""
        return tuple(self.node_of(replica_id) for replica_id in self.desired)

    def unneeded(self) -> tuple[Replica, ...]:
        """Replicas that are neither wished nor, as last reported, real."""
        needed = (*self.desired, *self.desired_learners, *self.reality.members())
        return tuple(r for r in self.replicas if r.replica_id not in needed)

    def is_settled(self) -> bool:
        """Reality is the wish, as far as the catalog knows."""
        real = self.reality
        return (
            not real.voters_outgoing
            and real.voters == tuple(sorted(self.desired))
            and real.learners == tuple(sorted(self.desired_learners))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """A replica that is no more. Its node deletes what it has of it, then confirms."""

    replica_id: int
    group_id: int
    node_id: int
    incarnation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """`slot_map`: little-endian u16 partition numbers, one a slot; empty = slot mod partitions."""

    number: int
    topic_id: str
    name: str
    partitions: int
    replication_factor: int
    settings: bytes
    settings_version: int
    created_at_ms: int
    group_ids: tuple[int, ...]
    partition_epoch: int = 1
    slot_map: bytes = b""

    @property
    def hash_slots(self) -> int:
        return self.partitions * SLOTS_PER_PARTITION

    def partition_of_slot(self, slot: int) -> int:
        assert 0 <= slot < self.hash_slots, f"slot {slot} of {self.hash_slots}"
        if not self.slot_map:
            return slot % self.partitions
        return int.from_bytes(self.slot_map[2 * slot : 2 * slot + 2], "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedTopic:
    """Makes a repeated delete harmless, and TOPIC_REPLACED differ from TOPIC_NOT_FOUND."""

    number: int
    topic_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """`start`: where it begins, opaque; not part of the settings that make two creates equal."""

    number: int
    subscription_id: str
    topic: int  # the topic's number
    name: str
    kind: SubscriptionKind
    settings: bytes
    settings_version: int
    start: bytes
    created_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedProducer:
    producer_id: int
    name: str
    epoch: int
    opened_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that takes its time and survives changes of leader. `version` rises with every
    change. `node_id`, `topic`, `partition`, `to_node_id` say what it is about; topic 0 = none."""

    number: int
    operation_id: str
    kind: OperationKind
    state: OperationState
    version: int
    started_at_ms: int
    ended_at_ms: int = 0
    node_id: int = 0
    incarnation: str = ""  # of node_id's member when it began
    to_node_id: int = 0
    topic: int = 0
    topic_name: str = ""
    partition: int = 0
    steps_done: int = 0
    steps_total: int = 0
    progress: str = ""
    reason: str = ""
    message: str = ""
