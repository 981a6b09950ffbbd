"""A topic's settings: TopicConfig as the catalog stores it, checked and with its defaults.

The catalog holds the explicit fields of a TopicConfig, serialised; here they get their meaning for
ingest, for the partitions' machines and for retention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cluster.controller.catalog import Catalog
from cluster.controller.model import PARTITIONS_PER_TOPIC_MAX, REPLICATION_FACTOR_MAX, Topic
from node.ingest import BatchLimits
from node.partition import commands
from quorumq.v1 import admin_pb2 as pb

FEATURE_LEVEL = 1  # the highest that this node supports

RECORD_BYTES = 1_048_576
BYTES_LIMIT = 16_777_216
_YEAR_MS = 31_536_000_000

# Field: least and greatest value; 0 is allowed beside them where it means "no limit".
_RANGES: dict[str, tuple[int, int, bool]] = {
    "partitions": (1, PARTITIONS_PER_TOPIC_MAX, False),
    "replication_factor": (1, REPLICATION_FACTOR_MAX, False),
    "retention_bytes": (1_048_576, 2**53 - 1, True),
    "retention_ms": (1_000, 2**53 - 1, True),
    "record_bytes_max": (1, BYTES_LIMIT, False),
    "batch_bytes_max": (1, BYTES_LIMIT, False),
    "dedup_window_count": (0, 10_000_000, False),
    "dedup_overflow": (1, 2, False),
    "dedup_window_ms": (1_000, 604_800_000, True),
    "producer_expiry_ms": (3_600_000, _YEAR_MS, False),
    "feature_level": (1, FEATURE_LEVEL, False),
}
_DEFAULTS: dict[str, int] = {
    "partitions": 1,
    "retention_bytes": 0,
    "retention_ms": 0,
    "record_bytes_max": RECORD_BYTES,
    "dedup_window_count": 100_000,
    "dedup_overflow": pb.DEDUP_OVERFLOW_EVICT_OLDEST,
    "dedup_window_ms": 0,
    "producer_expiry_ms": 604_800_000,
    "feature_level": FEATURE_LEVEL,
}
FIELDS = tuple(_RANGES)


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """node.duties.TopicSettings. 0 = no limit."""

    limits: BatchLimits
    machine: commands.Settings
    retention_bytes: int
    retention_ms: int


def violations(config: pb.TopicConfig) -> list[tuple[str, str]]:
    """(field, what is wrong) of a TopicConfig; empty = good."""
    found = []
    for name, (least, most, or_zero) in _RANGES.items():
        if not config.HasField(name):
            continue
        value = getattr(config, name)
        if not (least <= value <= most or (or_zero and value == 0)):
            zero = ", or 0" if or_zero else ""
            found.append((f"config.{name}", f"{value} is not within {least} to {most}{zero}"))
    full = with_defaults(config)
    if not found and full.batch_bytes_max < full.record_bytes_max:
        found.append(
            (
                "config.batch_bytes_max",
                f"{full.batch_bytes_max} is below record_bytes_max {full.record_bytes_max}",
            )
        )
    return found


def with_defaults(config: pb.TopicConfig) -> pb.TopicConfig:
    """A copy with every field set, but replication_factor, which depends on the cluster."""
    full = pb.TopicConfig()
    full.CopyFrom(config)
    for name, value in _DEFAULTS.items():
        if not full.HasField(name):
            setattr(full, name, value)
    if not full.HasField("batch_bytes_max"):
        full.batch_bytes_max = max(RECORD_BYTES, full.record_bytes_max)
    return full


@lru_cache(maxsize=1024)
def parse(settings: bytes, version: int) -> TopicSettings:
    """What the catalog holds of a topic."""
    config = with_defaults(pb.TopicConfig.FromString(settings))
    return TopicSettings(
        limits=BatchLimits(config.record_bytes_max, config.batch_bytes_max),
        machine=commands.Settings(
            version,
            config.dedup_window_count,
            commands.DedupOverflow(config.dedup_overflow),
            config.dedup_window_ms,
            config.producer_expiry_ms,
        ),
        retention_bytes=config.retention_bytes,
        retention_ms=config.retention_ms,
    )


def settings_of(topic: Topic) -> TopicSettings:
    return parse(topic.settings, topic.settings_version)


def settings_of_number(catalog: Catalog, number: int) -> TopicSettings | None:
    """None = the topic was deleted."""
    topic = catalog.topic(number)
    return None if topic is None else settings_of(topic)
