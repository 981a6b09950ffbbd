"""Every error of the library: one tree that knows its policy, mapped from the wire in one place.

    retriable       the very same request may be sent again
    outcome_known   True: certainly nothing was done; False: it may have been done
    retry_after_ms  not earlier than this; None: the caller's own backoff
    reason          a name of quorumq.v1.Reason without its prefix, or one of this library's own

The library retries by itself what may be retried, as long as the caller's time lasts; what a caller
sees is what could not be mended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc

from quorumq.v1 import errors_pb2 as pb

Metadata = Sequence[tuple[str, str | bytes]]


class QuorumqError(Exception):
    """Base of all. `reason` etc. have the class's values unless the node told others."""

    reason = "UNSPECIFIED"
    retriable = False
    outcome_known = False

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retriable: bool | None = None,
        outcome_known: bool | None = None,
        retry_after_ms: int | None = None,
        expected_sequence: int | None = None,
        leader: pb.Leader | None = None,
        violations: Sequence[tuple[str, str]] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        if retriable is not None:
            self.retriable = retriable
        if outcome_known is not None:
            self.outcome_known = outcome_known
        self.retry_after_ms = retry_after_ms
        self.expected_sequence = expected_sequence
        self.leader = leader
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class _KnownError(QuorumqError):
    outcome_known = True


class Unavailable(_KnownError):
    """No leader, a draining node, a full disk: certainly not stored; later it may work."""

    reason = "UNAVAILABLE"
    retriable = True


class Unreachable(Unavailable):
    """No connection could be made: the request was never sent."""

    reason = "UNREACHABLE"


class ResourceExhausted(_KnownError):
    """A bound is reached (THROTTLED, WINDOW_EXCEEDED, DEDUP_FULL, QUOTA): certainly not stored."""

    reason = "THROTTLED"
    retriable = True


class BufferFull(ResourceExhausted):
    """`Producer.send` found its buffer full. Await `Producer.ready()` and send again."""

    reason = "BUFFER_FULL"


class OutcomeUnknown(QuorumqError):
    """It may or may not have been carried out."""

    reason = "OUTCOME_UNKNOWN"


class ConnectionLost(OutcomeUnknown):
    """The connection broke between the request and its answer."""

    reason = "CONNECTION_LOST"


class RequestTimeout(OutcomeUnknown):
    """No answer in time. `outcome_known` when it was certainly never sent or never stored."""

    reason = "TIMEOUT"


class DeliveryTimeout(RequestTimeout):
    """A record was not acknowledged within `delivery_timeout_ms`. With `outcome_known` it is not
    stored and never will be; without, it may be stored, now or later."""

    reason = "DELIVERY_TIMEOUT"


class NotSent(_KnownError):
    """Given up before it was ever sent, because its producer failed or was closed."""

    reason = "NOT_SENT"


class Closed(_KnownError):
    """The client, producer or reader was closed."""

    reason = "CLOSED"


class StalePartitions(_KnownError):
    """The keys were partitioned by an older slot map than the topic's."""

    reason = "STALE_PARTITIONS"
    retriable = True


class FailedPrecondition(_KnownError):
    """The present state forbids it; sending the same again does not help."""

    reason = "FAILED_PRECONDITION"


class ProducerFailed(FailedPrecondition):
    """The producer's identity no longer works: it stops. Open another producer; what was in doubt
    stays in doubt, and a named one is told by OpenProducer what is stored."""


class SequenceGap(ProducerFailed):
    """The partition lacks, or already has, something before this batch; see `expected_sequence`."""

    reason = "SEQUENCE_GAP"


class ProducerFenced(ProducerFailed):
    """A newer process opened this producer name."""

    reason = "PRODUCER_FENCED"


class ProducerExpired(ProducerFailed):
    """The partition forgot this producer: it was idle for longer than producer_expiry_ms."""

    reason = "PRODUCER_EXPIRED"


class TopicReplaced(FailedPrecondition):
    """The topic was deleted and another one made under its name."""

    reason = "TOPIC_REPLACED"


class ExpectedOffset(FailedPrecondition):
    """Compare and append: something else was appended meanwhile; `metadata` has next_offset."""

    reason = "EXPECTED_OFFSET"


class SessionLost(FailedPrecondition):
    """STALE_GENERATION, SESSION_REPLACED or SESSION_EXPIRED."""

    reason = "SESSION_EXPIRED"


class AlreadyExists(_KnownError):
    """The name or node id is taken, with other settings than the ones given."""

    reason = "ALREADY_EXISTS"


class NotFound(_KnownError):
    """Some topic, partition, subscription, record, node, operation or session is not there."""

    reason = "NOT_FOUND"


class TopicNotFound(NotFound):
    """No such topic."""

    reason = "TOPIC_NOT_FOUND"


class PartitionNotFound(NotFound):
    """The topic has no such partition."""

    reason = "PARTITION_NOT_FOUND"


class RecordNotFound(NotFound):
    """The record was there and is gone: trimmed, or settled by all."""

    reason = "RECORD_NOT_FOUND"


class OffsetOutOfRange(_KnownError):
    """Above the partition's next offset; `metadata` has earliest and latest."""

    reason = "OFFSET_OUT_OF_RANGE"


class InvalidRequest(_KnownError):
    """The request is wrong and will stay so; `violations` has (field, what is wrong)."""

    reason = "BAD_REQUEST"


class RecordTooLarge(InvalidRequest):
    """Above the topic's record_bytes_max, or what the reader takes."""

    reason = "RECORD_TOO_LARGE"


class FeatureNotEnabled(_KnownError):
    """This cluster or topic does not support it; `metadata` has the feature."""

    reason = "FEATURE_NOT_ENABLED"


class Corrupt(_KnownError):
    """Stored bytes failed their checksum and no replica could mend them yet."""

    reason = "CORRUPT"


class InternalError(QuorumqError):
    """A bug of the node, which logged it."""

    reason = "INTERNAL"


_BY_REASON: dict[str, type[QuorumqError]] = {
    "UNSPECIFIED": OutcomeUnknown,
    "NO_LEADER": Unavailable,
    "NODE_DRAINING": Unavailable,
    "DISK_FULL": Unavailable,
    "NOT_LEADER": Unavailable,
    "THROTTLED": ResourceExhausted,
    "WINDOW_EXCEEDED": ResourceExhausted,
    "DEDUP_FULL": ResourceExhausted,
    "QUOTA": ResourceExhausted,
    "OUTCOME_UNKNOWN": OutcomeUnknown,
    "STALE_PARTITIONS": StalePartitions,
    "SEQUENCE_GAP": SequenceGap,
    "PRODUCER_FENCED": ProducerFenced,
    "PRODUCER_EXPIRED": ProducerExpired,
    "STALE_GENERATION": SessionLost,
    "SESSION_REPLACED": SessionLost,
    "SESSION_EXPIRED": SessionLost,
    "TOPIC_REPLACED": TopicReplaced,
    "EXPECTED_OFFSET": ExpectedOffset,
    "NOT_ENOUGH_NODES": FailedPrecondition,
    "OPERATION_CONFLICT": FailedPrecondition,
    "ALREADY_EXISTS": AlreadyExists,
    "TOPIC_NOT_FOUND": TopicNotFound,
    "PARTITION_NOT_FOUND": PartitionNotFound,
    "SUBSCRIPTION_NOT_FOUND": NotFound,
    "RECORD_NOT_FOUND": RecordNotFound,
    "NODE_NOT_FOUND": NotFound,
    "OPERATION_NOT_FOUND": NotFound,
    "SESSION_NOT_FOUND": NotFound,
    "OFFSET_OUT_OF_RANGE": OffsetOutOfRange,
    "RECORD_TOO_LARGE": RecordTooLarge,
    "BATCH_TOO_LARGE": InvalidRequest,
    "MALFORMED_BATCH": InvalidRequest,
    "EMPTY_BATCH": InvalidRequest,
    "BAD_NAME": InvalidRequest,
    "BAD_CONFIG": InvalidRequest,
    "BAD_REQUEST": InvalidRequest,
    "FEATURE_NOT_ENABLED": FeatureNotEnabled,
    "CORRUPT": Corrupt,
    "INTERNAL": InternalError,
}

# A status without a reason: from the gRPC library itself, a proxy, or a server that is no node.
_BY_CODE: dict[grpc.StatusCode, type[QuorumqError]] = {
    grpc.StatusCode.UNAVAILABLE: ConnectionLost,
    grpc.StatusCode.CANCELLED: ConnectionLost,
    grpc.StatusCode.DEADLINE_EXCEEDED: RequestTimeout,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: FeatureNotEnabled,
    grpc.StatusCode.INTERNAL: InternalError,
}


def from_message(error: pb.Error) -> QuorumqError:
    """The exception of an Error message, with the policy that the node gave it."""
    reason = _reason_name(error.reason)
    kind = _BY_REASON.get(reason, QuorumqError)
    return kind(
        error.message or reason,
        reason=reason,
        retriable=error.retriable,
        outcome_known=error.outcome_known,
        retry_after_ms=error.retry_after_ms if error.HasField("retry_after_ms") else None,
        expected_sequence=error.expected_sequence if error.HasField("expected_sequence") else None,
        leader=error.leader if error.HasField("leader") else None,
        violations=[(v.field, v.description) for v in error.field_violations],
        metadata=error.metadata,
    )


def from_status(code: grpc.StatusCode, details: str, trailers: Metadata) -> QuorumqError:
    """The exception of a failed call: from the Error in its status details, else from the
    quorumq-* trailers, else from the code alone: then nothing is retriable, and the outcome is
    known only where the code leaves no doubt."""
    values = {name: value for name, value in trailers}
    packed = values.get("grpc-status-details-bin")
    if isinstance(packed, bytes) and (error := _packed_error(packed)) is not None:
        return from_message(error)
    reason = values.get("quorumq-reason")
    if isinstance(reason, str) and reason:
        reason = reason.removeprefix("REASON_")
        after = values.get("quorumq-retry-after-ms")
        return _BY_REASON.get(reason, QuorumqError)(
            details,
            reason=reason,
            retriable=values.get("quorumq-retriable") == "true",
            outcome_known=values.get("quorumq-outcome") == "known",
            retry_after_ms=int(after) if isinstance(after, str) and after.isdecimal() else None,
        )
    kind = _BY_CODE.get(code, QuorumqError)
    given = None if kind is not QuorumqError else code.name
    return kind(details or code.name, reason=given)


def _packed_error(packed: bytes) -> pb.Error | None:
    """The quorumq.v1.Error among the details of a serialised google.rpc.Status."""
    from google.protobuf.message import DecodeError
    from google.rpc import status_pb2  # type: ignore[import-untyped]

    try:
        status = status_pb2.Status.FromString(packed)
        for detail in status.details:
            error = pb.Error()
            if detail.Unpack(error):
                return error
    except DecodeError:
        return None  # a proxy's own details: the code still tells something
    return None


def _reason_name(reason: int) -> str:
    """A reason newer than this library keeps its number; the message's flags say what to do."""
    if reason in pb.Reason.values():
        return pb.Reason.Name(pb.Reason.ValueType(reason)).removeprefix("REASON_")
    return f"REASON_{reason}"
