"""Every error that a client sees: the table of proto/quorumq/v1/errors.proto, and the one place
where whatever went wrong below becomes an Error, and an Error a gRPC status.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import status_pb2  # type: ignore[import-untyped]
from grpc import StatusCode

from cluster.controller.access import ControllerUnavailable
from cluster.group import OutcomeUnknown, ProposalLost
from cluster.interfaces import StorageError
from cluster.raft.errors import RaftRefused, Throttled
from node.ingest import BatchRefused
from node.partition import commands
from quorumq.channel import CallFailed
from quorumq.errors import QuorumqError
from quorumq.v1 import errors_pb2 as pb

logger = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 1_000
DETAILS_BYTES_MAX = 4_096  # what every gRPC client takes in trailers
VIOLATIONS_MAX = 20
THROTTLE_RETRY_MS = 50


class Policy(NamedTuple):
    code: StatusCode
    retriable: bool
    outcome_known: bool


_UNAVAILABLE = Policy(StatusCode.UNAVAILABLE, True, True)
_EXHAUSTED = Policy(StatusCode.RESOURCE_EXHAUSTED, True, True)
_PRECONDITION = Policy(StatusCode.FAILED_PRECONDITION, False, True)
_NOT_FOUND = Policy(StatusCode.NOT_FOUND, False, True)
_INVALID = Policy(StatusCode.INVALID_ARGUMENT, False, True)

POLICIES: dict[str, Policy] = {
    "NO_LEADER": _UNAVAILABLE,
    "NODE_DRAINING": _UNAVAILABLE,
    "DISK_FULL": _UNAVAILABLE,
    "NOT_LEADER": _UNAVAILABLE,
    "THROTTLED": _EXHAUSTED,
    "WINDOW_EXCEEDED": _EXHAUSTED,
    "DEDUP_FULL": _EXHAUSTED,
    "QUOTA": _EXHAUSTED,
    "OUTCOME_UNKNOWN": Policy(StatusCode.ABORTED, False, False),
    "STALE_PARTITIONS": Policy(StatusCode.ABORTED, True, True),
    "SEQUENCE_GAP": _PRECONDITION,
    "PRODUCER_FENCED": _PRECONDITION,
    "PRODUCER_EXPIRED": _PRECONDITION,
    "STALE_GENERATION": _PRECONDITION,
    "SESSION_REPLACED": _PRECONDITION,
    "SESSION_EXPIRED": _PRECONDITION,
    "TOPIC_REPLACED": _PRECONDITION,
    "EXPECTED_OFFSET": _PRECONDITION,
    "NOT_ENOUGH_NODES": _PRECONDITION,
    "OPERATION_CONFLICT": _PRECONDITION,
    "ALREADY_EXISTS": Policy(StatusCode.ALREADY_EXISTS, False, True),
    "TOPIC_NOT_FOUND": _NOT_FOUND,
    "PARTITION_NOT_FOUND": _NOT_FOUND,
    "SUBSCRIPTION_NOT_FOUND": _NOT_FOUND,
    "RECORD_NOT_FOUND": _NOT_FOUND,
    "NODE_NOT_FOUND": _NOT_FOUND,
    "OPERATION_NOT_FOUND": _NOT_FOUND,
    "SESSION_NOT_FOUND": _NOT_FOUND,
    "OFFSET_OUT_OF_RANGE": Policy(StatusCode.OUT_OF_RANGE, False, True),
    "RECORD_TOO_LARGE": _INVALID,
    "BATCH_TOO_LARGE": _INVALID,
    "MALFORMED_BATCH": _INVALID,
    "EMPTY_BATCH": _INVALID,
    "BAD_NAME": _INVALID,
    "BAD_CONFIG": _INVALID,
    "BAD_REQUEST": _INVALID,
    "FEATURE_NOT_ENABLED": Policy(StatusCode.UNIMPLEMENTED, False, True),
    "CORRUPT": Policy(StatusCode.DATA_LOSS, False, True),
    "INTERNAL": Policy(StatusCode.INTERNAL, False, False),
}
_UNKNOWN = Policy(StatusCode.UNKNOWN, False, False)


class Refused(Exception):
    """A request is answered with `error`. The policy is the reason's unless told otherwise."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retriable: bool | None = None,
        retry_after_ms: int | None = None,
        leader: pb.Leader | None = None,
        expected_sequence: int | None = None,
        violations: Iterable[tuple[str, str]] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        policy = POLICIES[reason]
        self.error = error = pb.Error(
            reason=f"REASON_{reason}",
            message=_fit(message),
            retriable=policy.retriable if retriable is None else retriable,
            outcome_known=policy.outcome_known,
            retry_after_ms=retry_after_ms,
            leader=leader,
            expected_sequence=expected_sequence,
            metadata=metadata,
        )
        for field, description in list(violations)[:VIOLATIONS_MAX]:
            error.field_violations.add(field=field, description=description)

    @classmethod
    def from_error(cls, error: pb.Error) -> Refused:
        """Pass on what another node answered."""
        refused = cls.__new__(cls)
        Exception.__init__(refused, f"{reason_of(error)}: {error.message}")
        refused.error = error
        return refused

    @property
    def reason(self) -> str:
        return reason_of(self.error)


def reason_of(error: pb.Error) -> str:
    return pb.Reason.Name(error.reason).removeprefix("REASON_")


def bad_request(field: str, description: str) -> Refused:
    return Refused("BAD_REQUEST", f"{field}: {description}", violations=[(field, description)])


def not_enabled(feature: str) -> Refused:
    return Refused(
        "FEATURE_NOT_ENABLED", f"{feature} is not supported yet", metadata={"feature": feature}
    )


def of_reply(refused: commands.Refused) -> Refused:
    """What a partition's machine refused."""
    return Refused(
        refused.reason,
        refused.message,
        expected_sequence=refused.expected_sequence,
        metadata=refused.details,
        retry_after_ms=THROTTLE_RETRY_MS if refused.reason == "DEDUP_FULL" else None,
    )


def refused_of(failure: BaseException) -> Refused:
    """Whatever was raised, as what the client is told. A bug is logged here, once."""
    match failure:
        case Refused():
            return failure
        case BatchRefused():
            return Refused(failure.reason, failure.message, metadata=failure.details)
        case Throttled():
            return Refused("THROTTLED", str(failure), retry_after_ms=THROTTLE_RETRY_MS)
        case RaftRefused() | ProposalLost():
            return Refused("NO_LEADER", str(failure))
        case OutcomeUnknown():
            return Refused("OUTCOME_UNKNOWN", str(failure))
        case ControllerUnavailable():
            # Every command of the catalog may be repeated.
            return Refused("OUTCOME_UNKNOWN", str(failure), retriable=True)
        case StorageError():
            return Refused("CORRUPT", str(failure))
        case QuorumqError() if failure.reason in POLICIES:
            return Refused(failure.reason, failure.message, retry_after_ms=failure.retry_after_ms)
        case QuorumqError():
            return Refused("OUTCOME_UNKNOWN", str(failure))
    logger.error("a request failed by a bug: %r", failure, exc_info=failure)
    return Refused("INTERNAL", f"{type(failure).__name__}: {failure}")


def status_of(failure: Exception) -> CallFailed:
    """How a call ends that failed: status, one line, trailers. A CallFailed stays what it is."""
    if isinstance(failure, CallFailed):
        return failure
    error = refused_of(failure).error
    code = POLICIES.get(reason_of(error), _UNKNOWN).code
    trailers: list[tuple[str, str | bytes]] = [
        ("quorumq-reason", reason_of(error)),
        ("quorumq-retriable", "true" if error.retriable else "false"),
        ("quorumq-outcome", "known" if error.outcome_known else "unknown"),
        ("grpc-status-details-bin", _details(code, error)),
    ]
    if error.HasField("retry_after_ms"):
        trailers.append(("quorumq-retry-after-ms", str(error.retry_after_ms)))
        trailers.append(("grpc-retry-pushback-ms", str(error.retry_after_ms)))
    elif not error.retriable:
        trailers.append(("grpc-retry-pushback-ms", "-1"))  # do not retry
    return CallFailed(code, error.message, trailers)


def _details(code: StatusCode, error: pb.Error) -> bytes:
    """A serialised google.rpc.Status that fits; what is only for people goes first."""
    for leave_out in (None, "field_violations", "metadata", "message"):
        if leave_out is not None:
            error = pb.Error.FromString(error.SerializeToString())
            error.ClearField(leave_out)
        packed = AnyMessage()
        packed.Pack(error)
        status = status_pb2.Status(code=code.value[0], message=error.message, details=[packed])
        data: bytes = status.SerializeToString()
        if len(data) <= DETAILS_BYTES_MAX:
            return data
    raise AssertionError(f"an error without texts has {len(data)} bytes")


def _fit(message: str) -> str:
    """One line of at most MESSAGE_BYTES_MAX bytes."""
    line = " ".join(message.split())
    data = line.encode(errors="replace")
    return (
        line if len(data) <= MESSAGE_BYTES_MAX else data[:MESSAGE_BYTES_MAX].decode(errors="ignore")
    )
