"""Every seam of the cluster as a Protocol, so that each side can be replaced: the real part, and
the one that the simulator runs with. tests/conformance holds both to the same behaviour.

    Engine        an ordered store of bytes on one disk       node/storage/engine.py
    LogStore      one group's log and hard state in it        node/storage/raft_log.py
    SnapshotStore one group's durable checkpoint in it        node/storage/checkpoints.py
    Machine       what the entries of a group mean            node/replica.py, controller
    Transport     messages between nodes                      cluster/transport.py
    Clock         wall and monotonic milliseconds             node/server.py

All of these are used from one event loop and one thread. Plain functions do not suspend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.raft.configuration import Configuration
from cluster.raft.errors import Compacted as Compacted
from cluster.raft.messages import Entry, HardState, Message


class StorageError(Exception):
    """The disk or the engine failed. Never retried and never ignored: the replica, and for an
    engine the whole process, stops loudly (rule R13)."""


class CorruptEntry(StorageError):
    """An entry's CRC or contiguity is wrong below what was durable (rule R14). `index`: the one
    entry that is damaged or missing, 0 when it is more."""

    def __init__(self, message: str, *, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class CorruptRow(StorageError):
    """One row cannot be read: the engine's own checksum of it is wrong. The engine itself goes on,
    and what the row was for decides whether it can be had from elsewhere."""


class WriteBatch(Protocol):
    """Applied in order, whole or not at all."""

    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Delete begin <= key < end. begin > end fails the whole batch."""


class EngineReader(Protocol):
    """Reads of the engine or of one snapshot of it. Keys in unsigned byte order. All raise
    CorruptRow."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(
        self, begin: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """begin <= key < end, rising; falling when `reverse`."""


class EngineSnapshot(EngineReader, Protocol):
    def close(self) -> None: ...


class Engine(EngineReader, Protocol):
    """Writes are visible at once and durable when a `sync` that began after them returns. After a
    crash what is recovered is a prefix of the batches written, never part of one."""

    def new_batch(self) -> WriteBatch: ...
    def write(self, batch: WriteBatch) -> None:
        """Unsynced. The batch is used up. Raises StorageError, after which the process must stop.
        Never refuses for being busy: see `pressure`."""

    @property
    def pressure(self) -> float:
        """How far flushing and compaction are behind: from 1.0 on take no more appends until it has
        fallen again, or `write` will block the loop."""

    async def sync(self) -> None:
        """One at a time (asserted). Raises StorageError, after which the process must stop."""

    async def compact_range(self, begin: bytes, end: bytes) -> None:
        """Give the room of what was deleted in begin <= key < end back to the disk; may take
        minutes. Raises StorageError: nothing is lost then."""

    async def collect_garbage(self, is_due: bool) -> None:
        """Whether compactions that new data causes are to free room besides: they then write part
        of what lives again. Raises StorageError: nothing is lost then."""

    def stored_bytes(self) -> int:
        """What the engine's files take, with what was deleted and not given back yet."""

    def garbage_bytes(self) -> int:
        """What of that is known to be of no use any more."""

    def disk_free_bytes(self) -> int:
        """Room left on the disk. Raises StorageError."""

    def snapshot(self) -> EngineSnapshot: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CheckpointMeta:
    """What a checkpoint is of: the machine's state after applying `index`, written in `term`, under
    `configuration` (which may be joint). `live_index`: entries below it hold no live record."""

    index: int
    term: int
    configuration: Configuration
    live_index: int


class LogStore(Protocol):
    """One group's log. Entries in [first_index, last_index] are the Raft log: contiguous, readable
    by index. Entries below first_index are history: kept while they hold live records, with holes.
    `append` and the other writers put into the caller's batch; what they say is readable through
    this object at once, even before that batch is written (the writer of the turn writes it)."""

    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int:
        """first_index - 1 when the log is empty."""

    @property
    def hard_state(self) -> HardState: ...
    @property
    def configurations(self) -> Sequence[tuple[int, Configuration]]:
        """(index, configuration) in rising order: the one of the compaction point first, then one
        for each CONFIGURATION entry of the log."""

    def term(self, index: int) -> int:
        """For first_index - 1 <= index <= last_index, else Compacted (below) or IndexError."""

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """low <= index <= high, at least one entry, then as long as data bytes stay <= bytes_max.
        Raises Compacted, IndexError, CorruptEntry."""

    def entry(self, index: int, reader: EngineReader | None = None) -> Entry | None:
        """Any stored entry, history too; None when it was deleted. Raises CorruptEntry."""

    def tail_start(self, bytes_max: int) -> int:
        """About the lowest index from which entries to the end take at most so much, at least
        first_index."""

    def bytes_below(self, index: int) -> int:
        """What is stored of entries below the index takes about so much."""

    def found(self, batch: WriteBatch, configuration: Configuration) -> None:
        """Only while empty: the configuration that a founding replica starts with, at index 0."""

    def append(self, batch: WriteBatch, entries: Sequence[Entry]) -> None:
        """Discards everything from entries[0].index on, then appends (rule R2)."""

    def put_hard_state(self, batch: WriteBatch, hard_state: HardState) -> None: ...

    def compact(self, batch: WriteBatch, index: int) -> None:
        """Move first_index to index + 1. Deletes nothing."""

    def delete_history(self, batch: WriteBatch, below: int) -> None:
        """Delete stored entries with index < min(below, first_index)."""

    def repair(self, batch: WriteBatch, entry: Entry) -> None:
        """Store an intact copy of an entry that is damaged here; nothing, if that was deleted."""

    def stage(self, batch: WriteBatch, entries: Sequence[Entry]) -> None:
        """Keep entries of a catch-up aside: not part of the log until `switch`. Idempotent."""

    @property
    def staged_index(self) -> int:
        """Highest staged index, 0 if none; survives a restart."""

    def switch(self, batch: WriteBatch, meta: CheckpointMeta, applied_index: int) -> None:
        """The log becomes: own entries <= applied_index, staged ones up to meta.index, nothing
        above; first_index = meta.index + 1. One batch."""

    def drop(self, batch: WriteBatch) -> None:
        """Delete the whole log, history and staged entries too (the replica is removed)."""


class SnapshotStore(Protocol):
    """One group's durable checkpoint: a meta row and named segments of machine state."""

    def meta(self, reader: EngineReader | None = None) -> CheckpointMeta | None: ...
    def segments(self, reader: EngineReader | None = None) -> Iterator[tuple[bytes, bytes]]:
        """(name, bytes) in rising order of names."""

    def put(
        self,
        batch: WriteBatch,
        meta: CheckpointMeta,
        changed: Iterable[tuple[bytes, bytes | None]],
    ) -> None:
        """Write changed segments (None deletes one) and the meta row."""

    def replace(
        self, batch: WriteBatch, meta: CheckpointMeta, segments: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """Drop what there was and write these: the end of a catch-up."""

    def drop(self, batch: WriteBatch) -> None: ...


class FrozenState(Protocol):
    """A machine's state at one applied index, fixed while the machine goes on. Serialising happens
    as the iterator is advanced, so that the owner can spread it over many turns."""

    applied_index: int
    live_index: int

    def changed_segments(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Segments that differ from the checkpoint frozen before; each step takes <= 5 ms."""


class Machine(Protocol):
    """Deterministic: the same entries in the same order give the same state and replies
    anywhere."""

    def apply(self, entries: Sequence[Entry], batch: WriteBatch) -> list[object]:
        """Committed, durable entries of every kind in index order; one reply each (None for kinds
        other than COMMAND). Derived rows (a record index) go into `batch`."""

    def freeze(self) -> FrozenState: ...
    def live_index(self) -> int:
        """No entry below it holds a live record: what `freeze` would say."""

    def history(self, reader: EngineReader, above: int) -> Iterator[tuple[int, bytes, bytes]]:
        """(entry index, row key, row value) of every live derived row whose entry is above `above`,
        rising: what a replica that catches up needs besides the checkpoint. Row keys are the
        engine's own keys, the same on every node."""

    def restore(self, meta: CheckpointMeta | None, segments: Iterable[tuple[bytes, bytes]]) -> None:
        """Replace all state; None = the state before the first entry."""

    def leadership_changed(self, *, term: int, is_leader: bool) -> None:
        """is_leader is told once the leader's own-term no-op has been applied, not before."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One run of one node as its peers see it. `boot_id` differs after every start of a process.
    `endpoint`: where it says that peers reach it."""

    node_id: int
    incarnation: str
    boot_id: str
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class NodeBeat:
    """What a node tells each peer about itself, in the envelope that carries its groups'
    heartbeats. `leads`: (group_id, term) of groups this node leads, sent whole on connect, when
    it changed and when asked for (None = unchanged). `wall_ms`: its wall clock, for clock skew.
    `reluctant`: it should not be made a leader. `asks_leads`: it does not know, or has forgotten,
    what the peer leads."""

    wall_ms: int
    leads: tuple[tuple[int, int], ...] | None = None
    reluctant: bool = False
    asks_leads: bool = False


@dataclass(slots=True)
class Envelope:
    """All that one node sends another in one turn. `messages` are (group_id, message)."""

    beat: NodeBeat | None
    messages: list[tuple[int, Message]]


@dataclass(frozen=True, slots=True)
class CatchUpRequest:
    """`to_replica` asks `from_replica` of the group for a checkpoint and the untrimmed entries
    above max(applied_index, staged_index)."""

    group_id: int
    from_replica: int
    to_replica: int
    applied_index: int
    staged_index: int


@dataclass(slots=True)
class CatchUpChunk:
    """Exactly one of: meta (first), entries (rising) with their derived rows, segments, done
    (last). The transport carries a CRC-32 over the chunk and refuses a wrong one."""

    meta: CheckpointMeta | None = None
    entries: Sequence[Entry] = ()
    rows: Sequence[tuple[bytes, bytes]] = ()
    segments: Sequence[tuple[bytes, bytes]] = ()
    done: bool = False


class Receiver(Protocol):
    """What a transport hands over to (cluster/host.py, node/server.py). Called on the event
    loop."""

    def receive(self, peer: Peer, envelope: Envelope) -> None: ...
    def peer_connected(self, node_id: int) -> None:
        """A new outgoing stream to the node is up: send the full beat."""

    def peer_lost(self, node_id: int) -> None:
        """The outgoing stream broke: what was sent last may be lost."""

    async def call(self, node_id: int, method: str, request: bytes) -> bytes:
        """A unary request from a peer; raises PeerError to answer with an error."""

    def catch_up(self, request: CatchUpRequest) -> AsyncIterator[CatchUpChunk]:
        """Serve a catch-up. Raises PeerError."""


class PeerError(Exception):
    """A peer could not be asked or refused. `code` is a short upper-case word, e.g. UNREACHABLE,
    WRONG_CLUSTER, BUSY, NOT_FOUND, NOT_LEADER, TIMEOUT."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Transport(Protocol):
    """Bounded, may drop, never blocks. Order between two nodes is kept while a stream lives."""

    def set_peer(self, node_id: int, endpoint: str | None) -> None:
        """Where a node is reached ("host:port"); None forgets it."""

    def send(self, node_id: int, envelope: Envelope) -> None: ...
    def unsent_bytes(self, node_id: int) -> int:
        """Of envelopes on their way to the node that have not left this one, about."""

    async def call(
        self, node_id: int, method: str, request: bytes, *, timeout_ms: int, endpoint: str = ""
    ) -> bytes:
        """Raises PeerError. `endpoint` overrides the address (a seed whose node id is unknown)."""

    def fetch_catch_up(self, node_id: int, request: CatchUpRequest) -> AsyncIterator[CatchUpChunk]:
        """Raises PeerError, also midway."""


class Clock(Protocol):
    def wall_ms(self) -> int: ...
    def monotonic_ms(self) -> int: ...
