"""What can be asked of the catalog, and what it answers. codec.py gives these their stored form;
field names here and in proto/cluster/v1/catalog.proto are the same.

Absent values are 0, "" or (). A command that may be sent again after an unknown outcome is either
idempotent (said below: "again: ...") or harmless when repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.controller.model import (
    MACHINE_VERSION,
    MemberState,
    OperationKind,
    OperationState,
    SubscriptionKind,
)


class Reason(StrEnum):
    """Why a command was refused. Those up to OPERATION_NOT_FOUND are reasons of the public errors;
    the last four are for the node that asked."""

    BAD_REQUEST = "BAD_REQUEST"
    BAD_NAME = "BAD_NAME"
    BAD_CONFIG = "BAD_CONFIG"
    QUOTA = "QUOTA"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    NOT_ENOUGH_NODES = "NOT_ENOUGH_NODES"
    OPERATION_CONFLICT = "OPERATION_CONFLICT"
    TOPIC_NOT_FOUND = "TOPIC_NOT_FOUND"
    TOPIC_REPLACED = "TOPIC_REPLACED"
    PARTITION_NOT_FOUND = "PARTITION_NOT_FOUND"
    SUBSCRIPTION_NOT_FOUND = "SUBSCRIPTION_NOT_FOUND"
    NODE_NOT_FOUND = "NODE_NOT_FOUND"
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
    GROUP_NOT_FOUND = "GROUP_NOT_FOUND"  # deleted meanwhile
    NOT_FOUNDED = "NOT_FOUNDED"  # the catalog is empty
    MEMBER_GONE = "MEMBER_GONE"  # this incarnation was removed or replaced
    STALE = "STALE"  # decided from an older state: look again, ask again


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The two times of a command (house rule of time): the controller leader's log time and its
    wall time, both milliseconds. The catalog's own never fall."""

    log_time_ms: int
    wall_ms: int


# ---------------------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a node says of itself when it founds or joins."""

    node_id: int
    incarnation: str
    peer_endpoint: str
    client_endpoint: str
    zone: str = ""
    software_version: str = ""
    machine_version_min: int = MACHINE_VERSION
    machine_version_max: int = MACHINE_VERSION
    format_max: int = 0
    feature_level_max: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Command):
    """The first command. Members in rising order of node ids; their controller replicas are
    1, 2, ... in that order, all voters. Again with the same cluster_id: the same answer."""

    cluster_id: str
    members: tuple[Announcement, ...]
    feature_level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterMember(Command):
    """A node joins; or shows changed endpoints or versions; or, with a new incarnation, comes back
    without its data: then every replica it had is replaced by a new one on the new incarnation.
    Again: no change."""

    member: Announcement


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMemberState(Command):
    """See the table in apply_members.py. Again: no change."""

    node_id: int
    state: MemberState


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveMember(Command):
    """Take a node out. Unless `force`, it must be DRAINED and hold nothing. `incarnation` guards
    against removing a successor, "" = whichever. Again: OK if it is gone."""

    node_id: int
    incarnation: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTopic(Command):
    """`assignment`: node ids, replication_factor a partition, partition 0 first; in each the first
    is the preferred leader (placement.assign). Again with equal settings: the existing one."""

    name: str
    partitions: int
    replication_factor: int
    settings: bytes
    assignment: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterTopic(Command):
    """Replace the settings, and unless 0 the replication factor, if `settings_version` is still the
    topic's. Again: no change."""

    topic_id: str
    settings_version: int
    settings: bytes
    replication_factor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteTopic(Command):
    """Its groups become tombstones. Again: OK."""

    topic_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSubscription(Command):
    """Again with equal kind and settings: the existing one."""

    topic_id: str
    name: str
    kind: SubscriptionKind
    settings: bytes
    start: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterSubscription(Command):
    subscription_id: str
    settings_version: int
    settings: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteSubscription(Command):
    """Refused when unknown: a repeat may see SUBSCRIPTION_NOT_FOUND."""

    subscription_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDesiredReplicas(Command):
    """The wish for a group: voters in order, the preferred leader first; learners for the
    controller group only. Decided at `generation`, STALE if that is no more the group's (0 =
    whichever). A node that keeps its place keeps its replica. Again: no change."""

    group_id: int
    generation: int
    node_ids: tuple[int, ...]
    learner_node_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfiguration(Command):
    """The group's leader says what is: the configuration committed at `index` (its commit index)
    in its term, and the `generation` of the wish it knew before it confirmed its leadership.
    An older report (smaller index) changes nothing."""

    group_id: int
    index: int
    term: int
    generation: int
    voters: tuple[int, ...]
    voters_outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmDeleted(Command):
    """This incarnation has nothing left of these replicas. Unknown ids are ignored."""

    node_id: int
    incarnation: str
    replica_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateProducerIds(Command):
    """A block of ids for one node to hand out. Again: another block, the first is lost."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenNamedProducer(Command):
    """The name's id, its epoch raised by one. Again: raised once more, harmless."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMachineVersion(Command):
    """Raise the machine version in force; every member must announce it. Again: no change."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFeatureLevel(Command):
    """Raise the cluster's feature level; every member must announce it. Again: no change."""

    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOperation(Command):
    """Begin what DrainNode, RemoveNode, MoveReplica ... ask for, its first step included:
    DRAIN_NODE and REMOVE_NODE set the node DRAINING, MOVE_REPLICA changes the wish. Again while it
    runs: the running one. `force`: REMOVE_NODE of a dead node takes it out at once."""

    kind: OperationKind
    node_id: int = 0
    to_node_id: int = 0
    topic_id: str = ""
    partition: int = 0
    steps_total: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOperation(Command):
    """Ignored once it has ended."""

    operation_id: str
    steps_done: int
    steps_total: int
    progress: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishOperation(Command):
    """CANCELLED of a drain or removal makes the node ACTIVE again. Again: no change."""

    operation_id: str
    state: OperationState
    reason: str = ""
    message: str = ""


# ----------------------------------------------------------------------------------------- replies


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """`version`: of the catalog that shows what the command did; whoever wants to see it on another
    node waits until that node's catalog has at least this version."""

    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Reply):
    """Nothing was changed."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Reply):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded(Reply):
    cluster_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRegistered(Reply):
    cluster_id: str
    node_id: int
    controller_replica_id: int
    joined: bool  # new here, or in a new incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicCreated(Reply):
    topic_id: str
    already_existed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicAltered(Reply):
    """`operation_id`: "" unless replicas have to be moved."""

    settings_version: int
    operation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionCreated(Reply):
    subscription_id: str
    already_existed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionAltered(Reply):
    settings_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupWish(Reply):
    """Answer to SetDesiredReplicas and ReportConfiguration: the wish that holds."""

    group_id: int
    generation: int
    desired: tuple[int, ...]
    desired_learners: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerIdsAllocated(Reply):
    first: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedProducerOpened(Reply):
    producer_id: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStarted(Reply):
    operation_id: str
    already_running: bool
