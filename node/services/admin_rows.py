"""Rows of the catalog as messages of the public contract."""

from __future__ import annotations

from cluster.controller.model import (
    Operation,
    OperationKind,
    OperationState,
    Subscription,
    Topic,
)
from node.services import subscription_settings
from node.services.errors import POLICIES
from node.services.topic_settings import with_defaults
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import errors_pb2

# Of these, 0 and absence both mean "no limit"; answers leave them out.
_NO_LIMIT = ("retention_bytes", "retention_ms", "dedup_window_ms")


def topic_config(topic: Topic) -> pb.TopicConfig:
    """The settings that hold, all of them."""
    config = with_defaults(pb.TopicConfig.FromString(topic.settings))
    config.partitions = topic.partitions
    config.replication_factor = topic.replication_factor
    for name in _NO_LIMIT:
        if not getattr(config, name):
            config.ClearField(name)
    return config


def topic_info(topic: Topic) -> pb.TopicInfo:
    return pb.TopicInfo(
        name=topic.name,
        topic_id=topic.topic_id,
        config=topic_config(topic),
        created_at_ms=topic.created_at_ms,
        partition_epoch=topic.partition_epoch,
        hash_slots=topic.hash_slots,
    )


def subscription_info(topic: Topic, row: Subscription) -> pb.SubscriptionInfo:
    return pb.SubscriptionInfo(
        name=row.name,
        subscription_id=row.subscription_id,
        topic=topic.name,
        topic_id=topic.topic_id,
        config=subscription_settings.with_defaults(row.kind, row.settings),
        created_at_ms=row.created_at_ms,
    )


def operation_message(row: Operation) -> pb.Operation:
    operation = pb.Operation(
        operation_id=row.operation_id,
        kind=f"OPERATION_KIND_{row.kind.name}",
        state=f"OPERATION_STATE_{row.state.name}",
        version=row.version,
        steps_done=row.steps_done,
        steps_total=row.steps_total,
        progress=row.progress if row.state == OperationState.RUNNING else "",
        started_at_ms=row.started_at_ms,
        node_id=row.node_id,
        topic=row.topic_name,
    )
    if row.ended_at_ms:
        operation.ended_at_ms = row.ended_at_ms
    if row.kind == OperationKind.MOVE_REPLICA:
        operation.partition = row.partition
    if row.reason:
        operation.error.CopyFrom(_error(row))
    return operation


def _error(row: Operation) -> errors_pb2.Error:
    """What the controller noted when the operation failed."""
    reason = row.reason if row.reason in POLICIES else "UNSPECIFIED"
    return errors_pb2.Error(reason=f"REASON_{reason}", message=row.message, outcome_known=True)
