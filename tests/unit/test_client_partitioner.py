"""The rule from key to partition, by the vectors that every client is tested with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quorumq.partitioner import full_slot_map, partition_of, slot_of

VECTORS = json.loads(
    (Path(__file__).resolve().parents[2] / "proto/quorumq/v1/partitioner.json").read_text()
)["vectors"]


def test_the_vectors() -> None:
    assert len(VECTORS) > 50
    for vector in VECTORS:
        key = bytes.fromhex(vector["key_hex"])
        slots, partitions = vector["hash_slots"], vector["partitions"]
        assert slot_of(key, slots) == vector["slot"], vector
        slot_map = full_slot_map([], hash_slots=slots, partitions=partitions)
        assert partition_of(key, slot_map) == vector["partition"], vector


def test_a_slot_map_of_a_topic_that_was_split() -> None:
    slot_map = full_slot_map([0, 1, 2, 1], hash_slots=4, partitions=3)
    assert slot_map == [0, 1, 2, 1]
    assert partition_of(b"a", slot_map) == slot_map[slot_of(b"a", 4)]


@pytest.mark.parametrize("slot_map", [[0, 1], [0, 1, 2, 3]])
def test_a_slot_map_that_contradicts_its_topic(slot_map: list[int]) -> None:
    with pytest.raises(ValueError, match="slot map"):
        full_slot_map(slot_map, hash_slots=4, partitions=3)
