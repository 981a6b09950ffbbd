"""Where everything lies in the one ordered key space of a node's engine.

    group id, 8 bytes big-endian | kind, 1 byte | ...

    h                                     hard state
    m                                     log meta: first index, base, segments
    l                                     last index
    b                                     sizes of the history, block by block
    k  index u64                          a configuration in the log
    e  generation u32, index u64          an entry
    d                                     checkpoint meta
    c  generation u32, name               a segment of a checkpoint
    r  base offset u64                    a row of the record index
    i                                     which replica this is, or was: outlives all the others

    ff ff ff ff ff ff ff ff | n           the number of the last batch written (node/storage/engine)

Numbers in keys are big-endian, so that byte order is number order. No group has the id 2^64-1.
"""

from __future__ import annotations

HARD_STATE = b"h"
LOG_META = b"m"
LAST_INDEX = b"l"
LOG_SIZES = b"b"
CONFIGURATION = b"k"
ENTRY = b"e"
CHECKPOINT_META = b"d"
CHECKPOINT_SEGMENT = b"c"
RECORD = b"r"
IDENTITY = b"i"

COMMIT_NUMBER = b"\xff" * 8 + b"n"

_GROUP_ID_MAX = 2**64 - 2


def group_key(group_id: int, kind: bytes) -> bytes:
    """The key of a single row of the group, or the prefix of many."""
    assert 0 <= group_id <= _GROUP_ID_MAX, f"group id {group_id}"
    assert len(kind) == 1, f"kind {kind!r}"
    return group_id.to_bytes(8, "big") + kind


def group_bounds(group_id: int) -> tuple[bytes, bytes]:
    """begin <= key < end for everything of the group."""
    return group_id.to_bytes(8, "big"), (group_id + 1).to_bytes(8, "big")


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix`."""
    stem = prefix.rstrip(b"\xff")
    assert stem, f"nothing comes after {prefix!r}"
    return stem[:-1] + bytes((stem[-1] + 1,))


def entry_prefix(group_id: int, generation: int) -> bytes:
    """Add the index, 8 bytes big-endian."""
    return group_key(group_id, ENTRY) + generation.to_bytes(4, "big")


def index_key(prefix: bytes, index: int) -> bytes:
    return prefix + index.to_bytes(8, "big")


def segment_key(prefix: bytes, generation: int, name: bytes) -> bytes:
    return prefix + generation.to_bytes(4, "big") + name
