"""Every reason of errors.proto is a typed exception with the policy that the table gives it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any as PackedAny
from google.rpc import status_pb2  # type: ignore[import-untyped]

from quorumq import errors
from quorumq.errors import QuorumqError, from_message, from_status
from quorumq.v1 import errors_pb2 as pb

PROTO = Path(__file__).resolve().parents[2] / "proto/quorumq/v1/errors.proto"
ROW = re.compile(
    r"// ([A-Z_]+), (not retriable|retriable), outcome (known|unknown)\."
    r"(?:.|\n)*?\n  REASON_(\w+) = \d+;"
)
TABLE = [
    (reason, code, retriable == "retriable", outcome == "known")
    for code, retriable, outcome, reason in ROW.findall(PROTO.read_text(encoding="utf-8"))
]

KINDS = {
    "UNSPECIFIED": errors.OutcomeUnknown,
    "NO_LEADER": errors.Unavailable,
    "NODE_DRAINING": errors.Unavailable,
    "DISK_FULL": errors.Unavailable,
    "NOT_LEADER": errors.Unavailable,
    "THROTTLED": errors.ResourceExhausted,
    "WINDOW_EXCEEDED": errors.ResourceExhausted,
    "DEDUP_FULL": errors.ResourceExhausted,
    "QUOTA": errors.ResourceExhausted,
    "OUTCOME_UNKNOWN": errors.OutcomeUnknown,
    "STALE_PARTITIONS": errors.StalePartitions,
    "SEQUENCE_GAP": errors.SequenceGap,
    "PRODUCER_FENCED": errors.ProducerFenced,
    "PRODUCER_EXPIRED": errors.ProducerExpired,
    "STALE_GENERATION": errors.SessionLost,
    "SESSION_REPLACED": errors.SessionLost,
    "SESSION_EXPIRED": errors.SessionLost,
    "TOPIC_REPLACED": errors.TopicReplaced,
    "EXPECTED_OFFSET": errors.ExpectedOffset,
    "NOT_ENOUGH_NODES": errors.FailedPrecondition,
    "OPERATION_CONFLICT": errors.FailedPrecondition,
    "ALREADY_EXISTS": errors.AlreadyExists,
    "TOPIC_NOT_FOUND": errors.TopicNotFound,
    "PARTITION_NOT_FOUND": errors.PartitionNotFound,
    "SUBSCRIPTION_NOT_FOUND": errors.NotFound,
    "RECORD_NOT_FOUND": errors.RecordNotFound,
    "NODE_NOT_FOUND": errors.NotFound,
    "OPERATION_NOT_FOUND": errors.NotFound,
    "SESSION_NOT_FOUND": errors.NotFound,
    "OFFSET_OUT_OF_RANGE": errors.OffsetOutOfRange,
    "RECORD_TOO_LARGE": errors.RecordTooLarge,
    "BATCH_TOO_LARGE": errors.InvalidRequest,
    "MALFORMED_BATCH": errors.InvalidRequest,
    "EMPTY_BATCH": errors.InvalidRequest,
    "BAD_NAME": errors.InvalidRequest,
    "BAD_CONFIG": errors.InvalidRequest,
    "BAD_REQUEST": errors.InvalidRequest,
    "FEATURE_NOT_ENABLED": errors.FeatureNotEnabled,
    "CORRUPT": errors.Corrupt,
    "INTERNAL": errors.InternalError,
}


def test_the_table_is_read_whole() -> None:
    names = [name.removeprefix("REASON_") for name in pb.Reason.keys()]  # noqa: SIM118
    assert [reason for reason, *_ in TABLE] == names
    assert list(KINDS) == names


@pytest.mark.parametrize(("reason", "code", "retriable", "known"), TABLE)
def test_a_reason_has_its_class_and_the_classes_policy_is_the_tables(
    reason: str, code: str, retriable: bool, known: bool
) -> None:
    message = pb.Error(reason=pb.Reason.Value(f"REASON_{reason}"), message="why")
    message.retriable, message.outcome_known = retriable, known
    error = from_message(message)
    assert type(error) is KINDS[reason]
    assert (error.reason, error.message) == (reason, "why")
    assert (error.retriable, error.outcome_known) == (retriable, known)
    assert (type(error).retriable, type(error).outcome_known) == (retriable, known)
    trailers = [
        ("quorumq-reason", f"REASON_{reason}"),
        ("quorumq-retriable", str(retriable).lower()),
        ("quorumq-outcome", "known" if known else "unknown"),
    ]
    told = from_status(grpc.StatusCode[code], "why", trailers)
    assert type(told) is KINDS[reason]
    assert (told.reason, told.retriable, told.outcome_known) == (reason, retriable, known)


def test_all_that_a_node_tells_is_there() -> None:
    message = pb.Error(
        reason=pb.Reason.REASON_SEQUENCE_GAP,
        message="why",
        retriable=True,  # a node's word is above the class's
        outcome_known=False,
        retry_after_ms=70,
        expected_sequence=0,
        leader=pb.Leader(node_id=2, client_endpoint="b:1", leader_epoch=3),
        field_violations=[pb.FieldViolation(field="config.x", description="too small")],
        metadata={"limit": "topics"},
    )
    packed = PackedAny()
    packed.Pack(message)
    status = status_pb2.Status(code=9, message="why", details=[packed])
    trailers = [("grpc-status-details-bin", status.SerializeToString())]
    for error in (
        from_message(message),
        from_status(grpc.StatusCode.FAILED_PRECONDITION, "why", trailers),
    ):
        assert isinstance(error, errors.SequenceGap)
        assert (error.retriable, error.outcome_known) == (True, False)
        assert (error.retry_after_ms, error.expected_sequence) == (70, 0)
        assert error.leader is not None
        assert error.leader.client_endpoint == "b:1"
        assert error.violations == (("config.x", "too small"),)
        assert error.metadata == {"limit": "topics"}
        assert str(error) == "SEQUENCE_GAP: why"


def test_a_reason_newer_than_the_library_keeps_its_number_and_policy() -> None:
    message = pb.Error(message="new", retriable=True, outcome_known=True)
    message.ParseFromString(message.SerializeToString() + b"\x08\xfa\x01")  # reason = 250
    error = from_message(message)
    assert type(error) is QuorumqError
    assert (error.reason, error.retriable, error.outcome_known) == ("REASON_250", True, True)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.ConnectionLost),
        (grpc.StatusCode.CANCELLED, errors.ConnectionLost),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.RequestTimeout),
        (grpc.StatusCode.UNIMPLEMENTED, errors.FeatureNotEnabled),
        (grpc.StatusCode.UNKNOWN, QuorumqError),
        (grpc.StatusCode.PERMISSION_DENIED, QuorumqError),
    ],
)
def test_a_status_that_no_node_gave(code: grpc.StatusCode, kind: type[QuorumqError]) -> None:
    for trailers in ((), (("grpc-status-details-bin", b"\xff\xff not a status"),)):
        error = from_status(code, "proxy says no", trailers)
        assert type(error) is kind
        assert not error.retriable
        assert error.outcome_known is (kind is errors.FeatureNotEnabled)


def test_what_one_can_catch_is_one_tree() -> None:
    classes = [
        c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__
    ]
    assert len(classes) > 30
    for kind in classes:
        assert issubclass(kind, QuorumqError)
        assert kind.__doc__ or kind.__name__.startswith("_"), kind
    for kind in (errors.SequenceGap, errors.ProducerFenced, errors.ProducerExpired):
        assert issubclass(kind, errors.ProducerFailed)
    assert issubclass(errors.DeliveryTimeout, errors.OutcomeUnknown)
