"""How far stream subscriptions are in this partition: position, generation, metadata.

A position is the next offset to read. It may go back, and it may lie below the first record that is
left; never beyond the next offset to be given. The generation is that of the assignment of the
partition to a consumer; nothing assigns partitions at machine_version 1, so it is 0.
"""

from __future__ import annotations

import struct
import zlib
from functools import partial
from typing import NamedTuple

from node.partition.commands import (
    POSITIONS_MAX,
    PositionCommit,
    PositionCommitted,
    Reason,
    Refused,
)
from node.partition.state import FORMAT_VERSION, FrozenSegment, UnknownFormat, check_version

_PREFIX = b"positions/"
_BUCKETS = 64
_HEAD = struct.Struct("<HHQQQ")  # lengths of id and metadata, position, generation, log time


class Position(NamedTuple):
    """`log_time_ms`: when it was committed."""

    position: int
    generation: int
    log_time_ms: int
    metadata: str


class Positions:
    """By subscription id. One more than POSITIONS_MAX is refused (QUOTA)."""

    def __init__(self) -> None:
        self._buckets: list[dict[str, Position]] = [{} for _ in range(_BUCKETS)]
        self._dirty = bytearray(_BUCKETS)
        self.count = 0

    def get(self, subscription_id: str) -> Position | None:
        return self._buckets[_bucket_of(subscription_id)].get(subscription_id)

    def commit(
        self, commit: PositionCommit, *, next_offset: int, log_time_ms: int
    ) -> PositionCommitted | Refused:
        bucket = _bucket_of(commit.subscription_id)
        known = self._buckets[bucket].get(commit.subscription_id)
        generation = known.generation if known is not None else 0
        if commit.generation is not None and commit.generation != generation:
            return Refused(
                Reason.STALE_GENERATION,
                f"generation {commit.generation} is not the present one, {generation}",
            )
        if commit.position > next_offset:
            return Refused(
                Reason.OFFSET_OUT_OF_RANGE,
                f"position {commit.position} is beyond the next offset, {next_offset}",
                details={"latest": str(next_offset)},
            )
        if known is None:
            if self.count >= POSITIONS_MAX:
                return Refused(
                    Reason.QUOTA,
                    f"the partition keeps {POSITIONS_MAX} positions",
                    details={"limit": "positions_per_partition"},
                )
            self.count += 1
        self._buckets[bucket][commit.subscription_id] = Position(
            commit.position, generation, log_time_ms, commit.metadata
        )
        self._dirty[bucket] = 1
        return PositionCommitted(commit.position)

    def drop(self, subscription_ids: tuple[str, ...]) -> int:
        """Returns how many were known."""
        dropped = 0
        for subscription_id in subscription_ids:
            bucket = _bucket_of(subscription_id)
            if self._buckets[bucket].pop(subscription_id, None) is not None:
                self._dirty[bucket] = 1
                dropped += 1
        self.count -= dropped
        return dropped

    def ids_in(self, bucket: int) -> list[str]:
        """Of the subscriptions in one of `bucket_count` buckets."""
        return sorted(self._buckets[bucket])

    @property
    def bucket_count(self) -> int:
        return _BUCKETS

    def freeze(self) -> list[FrozenSegment]:
        frozen: list[FrozenSegment] = []
        for bucket, dirty in enumerate(self._dirty):
            if not dirty:
                continue
            copy = self._buckets[bucket].copy()
            frozen.append((_PREFIX + b"%02x" % bucket, partial(_encode, copy) if copy else None))
        self._dirty = bytearray(_BUCKETS)
        return frozen

    def restore(self, name: bytes, data: bytes) -> None:
        """Take in one segment; the others of this table were empty before."""
        bucket = int(name.removeprefix(_PREFIX), 16)
        assert not self._buckets[bucket], f"bucket {bucket} restored twice"
        self._buckets[bucket] = _decode(name, data)
        self.count += len(self._buckets[bucket])


def _bucket_of(subscription_id: str) -> int:
    return zlib.crc32(subscription_id.encode()) % _BUCKETS


def _encode(bucket: dict[str, Position]) -> bytes:
    parts = [bytes((FORMAT_VERSION,))]
    for subscription_id in sorted(bucket):
        known = bucket[subscription_id]
        name, metadata = subscription_id.encode(), known.metadata.encode()
        parts.append(
            _HEAD.pack(
                len(name), len(metadata), known.position, known.generation, known.log_time_ms
            )
        )
        parts.append(name)
        parts.append(metadata)
    return b"".join(parts)


def _decode(name: bytes, data: bytes) -> dict[str, Position]:
    check_version(name, data)
    bucket: dict[str, Position] = {}
    at = 1
    try:
        while at < len(data):
            id_bytes, metadata_bytes, position, generation, log_time_ms = _HEAD.unpack_from(
                data, at
            )
            id_at = at + _HEAD.size
            metadata_at = id_at + id_bytes
            at = metadata_at + metadata_bytes
            bucket[data[id_at:metadata_at].decode()] = Position(
                position, generation, log_time_ms, data[metadata_at:at].decode()
            )
    except (struct.error, UnicodeDecodeError) as error:
        raise UnknownFormat(f"segment {name!r} is damaged: {error}") from error
    if at != len(data):
        raise UnknownFormat(f"segment {name!r} is cut short")
    return bucket
