"""A subscription's settings: SubscriptionConfig as the catalog stores it, checked.

Queues are not delivered yet: their kind, their settings and filters are refused by name, so that
nobody relies on what would be ignored.
"""

from __future__ import annotations

from node.services.errors import Refused, bad_request, not_enabled
from node.services.field_masks import refuse_unknown_fields
from node.services.offsets import check_time
from quorumq.v1 import admin_pb2 as pb

REVOKE_TIMEOUT_MS = 10_000
REVOKE_TIMEOUT_MS_MAX = 300_000

_DELIVERED = ("kind", "revoke_timeout_ms")


def check(config: pb.SubscriptionConfig) -> None:
    """Raises Refused BAD_CONFIG, FEATURE_NOT_ENABLED."""
    refuse_unknown_fields(config, "config")
    if config.kind == pb.SUBSCRIPTION_KIND_UNSPECIFIED:
        raise bad_config("config.kind", "is required: STREAM")
    if config.kind != pb.SUBSCRIPTION_KIND_STREAM:
        known = config.kind in pb.SubscriptionKind.values()
        name = pb.SubscriptionKind.Name(config.kind) if known else f"kind_{config.kind}"
        raise not_enabled(name.removeprefix("SUBSCRIPTION_"))
    for field, value in config.ListFields():
        if field.name not in _DELIVERED and not (field.name == "subject_filter" and not value):
            raise not_enabled(field.name)
    if not 0 <= config.revoke_timeout_ms <= REVOKE_TIMEOUT_MS_MAX:
        raise bad_config(
            "config.revoke_timeout_ms",
            f"{config.revoke_timeout_ms} is not within 0 to {REVOKE_TIMEOUT_MS_MAX}",
        )


def check_start(start: pb.StartPosition) -> None:
    """Raises Refused BAD_REQUEST."""
    at = start.WhichOneof("at")
    if (at == "earliest" and not start.earliest) or (at == "latest" and not start.latest):
        raise bad_request(f"start.{at}", "can only be true")
    if at == "time_ms":
        check_time("start.time_ms", start.time_ms)


def stored(config: pb.SubscriptionConfig) -> bytes:
    """What the catalog keeps: the fields that were given; the kind has its own place."""
    kept = pb.SubscriptionConfig()
    kept.CopyFrom(config)
    kept.ClearField("kind")
    return kept.SerializeToString(deterministic=True)


def with_defaults(kind: int, settings: bytes) -> pb.SubscriptionConfig:
    """The settings that hold; those of another kind are absent."""
    config = pb.SubscriptionConfig(kind=pb.SubscriptionKind.Name(kind))
    config.MergeFromString(settings)
    if not config.HasField("revoke_timeout_ms"):
        config.revoke_timeout_ms = REVOKE_TIMEOUT_MS
    return config


def bad_config(field: str, description: str) -> Refused:
    return Refused("BAD_CONFIG", f"{field}: {description}", violations=[(field, description)])
