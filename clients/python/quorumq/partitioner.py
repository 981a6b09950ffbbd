"""Which partition a key belongs to: the same rule in every language (partitioner.json)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence


def slot_of(key: bytes, hash_slots: int) -> int:
    """crc32 (IEEE, as zlib) of the key, mod hash_slots."""
    return zlib.crc32(key) % hash_slots


def partition_of(key: bytes, slot_map: Sequence[int]) -> int:
    """The partition of a key. `slot_map` has one partition per slot, see `full_slot_map`."""
    return slot_map[zlib.crc32(key) % len(slot_map)]


def full_slot_map(slot_map: Sequence[int], *, hash_slots: int, partitions: int) -> list[int]:
    """The partition of each slot. An empty map, as the metadata of a topic that was never split
    has it, means slot mod partitions. Raises ValueError when they contradict each other."""
    if not slot_map:
        return [slot % partitions for slot in range(hash_slots)]
    if len(slot_map) != hash_slots or max(slot_map) >= partitions:
        raise ValueError(
            f"a slot map of {len(slot_map)} up to partition {max(slot_map)} "
            f"for {hash_slots} slots and {partitions} partitions"
        )
    return list(slot_map)
