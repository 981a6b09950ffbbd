"""What replicas of one group say to each other, and what they keep on disk.

The field names are those of the Raft paper and dissertation (Ongaro, 2014). Replicas are named by
their replica id, a number the controller gives out once and never again, so that a wiped node can
not answer as its former self. Nothing here knows how a message travels (see cluster/wire.py).

All indexes and terms start at 1; 0 means "none". A message's `term` is the sender's current term,
except in `PreVote`, where it is the term the sender would campaign in.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum

_CRC_HEADER = struct.Struct("<BQQ")


class EntryKind(IntEnum):
    NOOP = 1  # a new leader's first entry (dissertation §6.4); empty data
    COMMAND = 2  # data is for the state machine, opaque here
    CONFIGURATION = 3  # data is an encoded Configuration (cluster/raft/configuration.py)


def entry_crc(kind: int, term: int, index: int, data: bytes) -> int:
    """CRC-32 over the entry's place and content: a misplaced entry is as wrong as a flipped bit."""
    return zlib.crc32(data, zlib.crc32(_CRC_HEADER.pack(kind, term, index)))


@dataclass(slots=True, eq=False)
class Entry:
    """One place in a group's log. Immutable after creation; `crc` is set once, by the leader that
    created the entry, and travels with it to every disk and every replica."""

    index: int
    term: int
    kind: EntryKind
    data: bytes
    crc: int

    @classmethod
    def create(cls, *, index: int, term: int, kind: EntryKind, data: bytes) -> Entry:
        return cls(index, term, kind, data, entry_crc(kind, term, index, data))

    def is_intact(self) -> bool:
        return self.crc == entry_crc(self.kind, self.term, self.index, self.data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        return (self.index, self.term, self.kind, self.crc, self.data) == (
            other.index,
            other.term,
            other.kind,
            other.crc,
            other.data,
        )


@dataclass(frozen=True, slots=True)
class HardState:
    """What must be on disk before a replica answers a vote or an append (rule R1). `commit_index`
    is kept with it as a hint that spares replay; losing it is safe."""

    term: int = 0
    voted_for: int = 0
    commit_index: int = 0


@dataclass(slots=True)
class Message:
    """`sender` and `to` are replica ids of one group."""

    sender: int
    to: int
    term: int


@dataclass(slots=True)
class PreVote(Message):
    """May I campaign in `term`? Changes nothing at the receiver (rule R6)."""

    last_log_index: int
    last_log_term: int


@dataclass(slots=True)
class PreVoteReply(Message):
    """`term`: the campaign's term if granted, else the voter's own current term."""

    granted: bool


@dataclass(slots=True)
class RequestVote(Message):
    """`leadership_transfer`: the current leader asked for this election, so the receiver's lease on
    that leader does not count (dissertation §4.2.3, rule R7)."""

    last_log_index: int
    last_log_term: int
    leadership_transfer: bool = False


@dataclass(slots=True)
class RequestVoteReply(Message):
    granted: bool


@dataclass(slots=True)
class AppendEntries(Message):
    """`entries` are contiguous from prev_log_index + 1. Empty entries make it a probe."""

    prev_log_index: int
    prev_log_term: int
    leader_commit: int
    entries: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class AppendEntriesReply(Message):
    """success: everything up to `match_index` equals the leader's log and is durable here.
    failure: no entry of prev_log_term at prev_log_index. `match_index` then echoes the refused
    prev_log_index (so that a late refusal is recognised), `conflict_index` is the last index here
    whose term is <= prev_log_term and `conflict_term` its term: where the leader probes next."""

    success: bool
    match_index: int
    conflict_index: int = 0
    conflict_term: int = 0


@dataclass(slots=True)
class Heartbeat(Message):
    """`leader_commit` never exceeds what this follower is known to match (rule R3). `read_round` is
    the leader's latest ReadIndex round; `quiesce` asks the follower to stop its election clock."""

    leader_commit: int
    read_round: int = 0
    quiesce: bool = False


@dataclass(slots=True)
class HeartbeatReply(Message):
    """Echoes `read_round`. `quiesced`: the follower did stop its clock (it holds and has committed
    exactly the leader's log). `last_log_index` lets the leader see a follower that lost its
    tail."""

    read_round: int = 0
    quiesced: bool = False
    last_log_index: int = 0


@dataclass(slots=True)
class InstallSnapshot(Message):
    """The follower needs what the leader's log no longer holds: fetch a checkpoint of at least
    `snapshot_index` from the sender's node. The bytes travel on their own stream."""

    snapshot_index: int
    snapshot_term: int


@dataclass(slots=True)
class InstallSnapshotReply(Message):
    """success: installed and durable, the log continues at `snapshot_index` + 1."""

    success: bool
    snapshot_index: int


@dataclass(slots=True)
class TimeoutNow(Message):
    """The leader's order to campaign at once: the last step of a leadership transfer."""
