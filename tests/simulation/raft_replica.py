"""One replica as its owner runs it, without event loop or engine: a RaftCore on a log in memory
that knows what is written, what is synced, and what a crash would leave.

Scenarios drive it by hand, the random schedules of raft_cluster.py by dice. `code` is the set of
raft modules to run: the real ones, or a mutant of them (raft_mutants.py).
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Of cluster.raft: what a mutant must have copies of, in order of imports.
MODULES = (
    "configuration",
    "errors",
    "messages",
    "quorum",
    "progress",
    "log",
    "state",
    "leader",
    "follower",
    "candidate",
    "core",
)


class RaftCode:
    """The raft modules under a package name, as attributes: code.core.RaftCore and so on."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.modules = {m: importlib.import_module(f"{package}.{m}") for m in MODULES}

    def __getattr__(self, module: str) -> Any:
        try:
            return self.__dict__["modules"][module]
        except KeyError:
            raise AttributeError(module) from None


REAL = RaftCode("cluster.raft")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A machine's whole state: what was applied, and where in the log."""

    index: int
    term: int
    configuration: Any
    applied: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class DiskState:
    """Everything one replica stores. Immutable: a write makes a new one, a crash goes back to an
    older one, as the engine recovers a prefix of its batches."""

    term: int = 0
    voted_for: int = 0
    commit_index: int = 0
    base_index: int = 0  # the compaction point
    base_term: int = 0
    entries: tuple[Any, ...] = ()
    configurations: tuple[tuple[int, Any], ...] = ()
    checkpoint: Checkpoint | None = None


class MemoryLog:
    """cluster.interfaces.LogStore as far as the core reads it, with its writers."""

    def __init__(self, code: RaftCode, configurations: Sequence[tuple[int, Any]] = ()) -> None:
        self._code = code
        self.state = DiskState(configurations=tuple(configurations))
        self.version = 0  # of the last write
        self.unsynced: deque[tuple[int, DiskState]] = deque()
        self.synced_state = self.state

    # --- reading ---------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self.state.base_index + 1

    @property
    def last_index(self) -> int:
        return self.state.base_index + len(self.state.entries)

    @property
    def hard_state(self) -> Any:
        state = self.state
        return self._code.messages.HardState(state.term, state.voted_for, state.commit_index)

    @property
    def configurations(self) -> Sequence[tuple[int, Any]]:
        return self.state.configurations

    def term(self, index: int) -> int:
        state = self.state
        at = index - state.base_index - 1
        if at >= 0:
            return int(state.entries[at].term)
        if at == -1:
            return state.base_term
        raise self._code.errors.Compacted(f"{index} is below {self.first_index}")

    def entries(self, low: int, high: int, bytes_max: int) -> list[Any]:
        if low < self.first_index:
            raise self._code.errors.Compacted(f"{low} is below {self.first_index}")
        if high > self.last_index:
            raise IndexError(high)
        base = self.state.base_index + 1
        found: list[Any] = []
        for entry in self.state.entries[low - base : high + 1 - base]:
            bytes_max -= len(entry.data)
            if found and bytes_max < 0:
                break
            found.append(entry)
        return found

    # --- writing ---------------------------------------------------------------------------------

    def _write(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self.version += 1
        self.unsynced.append((self.version, self.state))

    def write(self, entries: Sequence[Any], hard_state: Any | None) -> None:
        """One batch: entries (discarding everything from the first one on), then hard state."""
        changes: dict[str, Any] = {}
        if entries:
            first = entries[0].index
            assert self.first_index <= first <= self.last_index + 1, (
                f"append at {first} to [{self.first_index}, {self.last_index}]"
            )
            kept = self.state.entries[: first - self.first_index]
            changes["entries"] = (*kept, *entries)
            decode = self._code.configuration.Configuration.decode
            changes["configurations"] = (
                *((i, c) for i, c in self.state.configurations if i < first),
                *((e.index, decode(e.data)) for e in entries if e.kind == 3),
            )
        if hard_state is not None:
            changes["term"] = hard_state.term
            changes["voted_for"] = hard_state.voted_for
            changes["commit_index"] = hard_state.commit_index
        self._write(**changes)

    def configuration_at(self, index: int) -> Any:
        found = self._code.configuration.Configuration()
        for at, configuration in self.state.configurations:
            if at <= index:
                found = configuration
        return found

    def put_checkpoint(self, checkpoint: Checkpoint) -> None:
        self._write(checkpoint=checkpoint)

    def compact(self, index: int) -> None:
        """first_index becomes index + 1."""
        above = tuple((i, c) for i, c in self.state.configurations if i > index)
        self._write(
            base_index=index,
            base_term=self.term(index),
            entries=self.state.entries[index - self.state.base_index :],
            configurations=((index, self.configuration_at(index)), *above),
        )

    def switch(self, checkpoint: Checkpoint) -> None:
        """A fetched checkpoint takes the place of the whole log."""
        self._write(
            base_index=checkpoint.index,
            base_term=checkpoint.term,
            entries=(),
            configurations=((checkpoint.index, checkpoint.configuration),),
            checkpoint=checkpoint,
        )

    # --- the disk --------------------------------------------------------------------------------

    def synced(self, version: int) -> None:
        while self.unsynced and self.unsynced[0][0] <= version:
            self.synced_state = self.unsynced.popleft()[1]

    def crash(self, *, keep: int) -> None:
        """Of the writes that were not synced, the first `keep` survive."""
        for _ in range(min(keep, len(self.unsynced))):
            self.synced_state = self.unsynced.popleft()[1]
        self.unsynced.clear()
        self.state = self.synced_state


@dataclass(slots=True)
class Pending:
    """A Ready whose write is on its way to the disk."""

    ready: Any
    version: int


@dataclass(slots=True)
class Replica:
    """Call `drain` after anything that was done to `core`; it returns messages that may leave."""

    code: RaftCode
    replica_id: int
    log: MemoryLog
    options: Any
    random: Any
    core: Any = None
    applied: list[Any] = field(default_factory=list)  # the machine: every entry since the first
    pending: deque[Pending] = field(default_factory=deque)
    reads: list[tuple[object, int]] = field(default_factory=list)
    failed_reads: list[object] = field(default_factory=list)
    install: Any = None  # an order that was not carried out yet

    @property
    def is_up(self) -> bool:
        return self.core is not None

    def start(self) -> None:
        """From what the disk holds: the last checkpoint, then replay."""
        checkpoint = self.log.state.checkpoint
        self.applied = list(checkpoint.applied) if checkpoint else []
        self.core = self.code.core.RaftCore(
            replica_id=self.replica_id,
            store=self.log,
            hard_state=self.log.hard_state,
            configurations=self.log.configurations,
            applied_index=checkpoint.index if checkpoint else 0,
            options=self.options,
            random=self.random,
        )

    def crash(self, *, keep: int) -> None:
        """The process is gone; of its unsynced writes the first `keep` are found again."""
        self.log.crash(keep=keep)
        self.core = None
        self.pending.clear()
        self.reads.clear()
        self.failed_reads.clear()
        self.install = None

    def drain(self) -> list[Any]:
        """One Ready: hand its entries to the log, keep what waits for the disk, return the rest."""
        ready = self.core.ready()
        if ready.must_sync:
            self.log.write(ready.entries, ready.hard_state)
        self.reads += ready.reads
        self.failed_reads += ready.failed_reads
        if ready.install is not None:
            self.install = ready.install
        if ready.must_sync or ready.after_sync:
            self.pending.append(Pending(ready, self.log.version))
        return list(ready.messages) + self._release()

    def sync(self, count: int | None = None) -> list[Any]:
        """The first `count` pending writes (None: all) are on disk; the messages they held back."""
        for _ in range(len(self.pending) if count is None else count):
            if not self.pending:
                break
            self.log.synced(self.pending[0].version)
            self._release_first()
        if not self.pending:
            self.log.synced(self.log.version)
        return self._take_released()

    def _release(self) -> list[Any]:
        """What waits for nothing that is not on disk already leaves at once."""
        synced = self.log.unsynced[0][0] - 1 if self.log.unsynced else self.log.version
        while self.pending and self.pending[0].version <= synced:
            self._release_first()
        return self._take_released()

    _released: list[Any] = field(default_factory=list)

    def _release_first(self) -> None:
        ready = self.pending.popleft().ready
        self.core.synced(ready)
        for message in ready.after_sync:
            if message.to == self.replica_id:
                self.core.step(message)
            else:
                self._released.append(message)

    def _take_released(self) -> list[Any]:
        released, self._released = self._released, []
        return released

    def apply(self) -> list[Any]:
        """What may be applied by now, into the machine."""
        fresh: list[Any] = []
        while entries := self.core.take_committed():
            fresh += entries
            self.applied += entries
            self.core.applied(entries[-1].index)
        return fresh

    def checkpoint(self, *, compact_to: int | None = None) -> Checkpoint:
        """Of the machine as it is now; then let the log begin after `compact_to`."""
        index = self.core.log.applied_index
        checkpoint = Checkpoint(
            index, self.log.term(index), self.log.configuration_at(index), tuple(self.applied)
        )
        self.log.put_checkpoint(checkpoint)
        if compact_to is not None and compact_to >= self.log.first_index:
            self.log.compact(min(compact_to, index))
        return checkpoint

    def install_from(self, checkpoint: Checkpoint) -> bool:
        """Switch to a fetched checkpoint, if it is still wanted."""
        self.install = None
        if not self.core.wants_checkpoint(index=checkpoint.index, term=checkpoint.term):
            self.core.snapshot_refused()
            return False
        self.log.switch(checkpoint)
        self.applied = list(checkpoint.applied)
        self.core.snapshot_installed(index=checkpoint.index, configuration=checkpoint.configuration)
        return True
