"""The catalog as the state machine of the controller group (cluster.interfaces.Machine)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from cluster.controller.catalog import Catalog
from cluster.controller.codec import decode_command, decode_segment, encode_segment, segment_name
from cluster.controller.tables import Changes
from cluster.interfaces import CheckpointMeta, EngineReader, WriteBatch
from cluster.raft.messages import Entry, EntryKind

ChangeListener = Callable[[Changes], None]
LeadershipListener = Callable[[int, bool], None]


class FrozenCatalog:
    """Rows as they were at `applied_index`; serialised as the iterator is advanced."""

    def __init__(self, applied_index: int, segments: list[tuple[str, int, list[Any]]]) -> None:
        self.applied_index = applied_index
        # The catalog is wholly in its checkpoint: no entry it is made of is needed any more.
        self.live_index = applied_index + 1
        self._segments = segments

    def changed_segments(self) -> Iterator[tuple[bytes, bytes | None]]:
        for table, block, rows in self._segments:
            yield segment_name(table, block), encode_segment(table, rows) if rows else None


class CatalogMachine:
    """Implements Machine. Listeners are called on the loop, after the entries handed over together
    have all been applied, and must not suspend or propose."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.applied_index = 0
        self.is_leader = False
        self.term = 0
        self._on_change: list[ChangeListener] = []
        self._on_leadership: list[LeadershipListener] = []

    def on_change(self, listener: ChangeListener) -> None:
        """Told once for each run of entries that changed anything, and after a restore."""
        self._on_change.append(listener)

    def on_leadership(self, listener: LeadershipListener) -> None:
        """Told (term, is_leader), as Machine.leadership_changed is."""
        self._on_leadership.append(listener)

    def apply(self, entries: Sequence[Entry], batch: WriteBatch) -> list[object]:
        replies: list[object] = []
        for entry in entries:
            assert entry.index > self.applied_index, f"{entry.index} after {self.applied_index}"
            self.applied_index = entry.index
            replies.append(self._apply(entry) if entry.kind == EntryKind.COMMAND else None)
        changes = self.catalog.take_changes()
        if changes is not None:
            self._tell(changes)
        return replies

    def freeze(self) -> FrozenCatalog:
        return FrozenCatalog(self.applied_index, self.catalog.take_segments())

    def live_index(self) -> int:
        return self.applied_index + 1

    def history(self, reader: EngineReader, above: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Nothing: the checkpoint holds the whole catalog."""
        return iter(())

    def restore(self, meta: CheckpointMeta | None, segments: Iterable[tuple[bytes, bytes]]) -> None:
        self.applied_index = 0 if meta is None else meta.index
        self.catalog.restore(decode_segment(name, data) for name, data in segments)
        self._tell(Changes(version=self.catalog.version, everything=True))

    def leadership_changed(self, *, term: int, is_leader: bool) -> None:
        self.term, self.is_leader = term, is_leader
        for listener in self._on_leadership:
            listener(term, is_leader)

    def _apply(self, entry: Entry) -> object:
        # A committed command that cannot be read is one of a newer version or a bug: the replica
        # must stop (house rule: asserts), for going on would make it differ from the others.
        command, stamp = decode_command(entry.data)
        assert stamp is not None, f"entry {entry.index} of the controller carries no stamp"
        return self.catalog.apply(command, stamp)

    def _tell(self, changes: Changes) -> None:
        for listener in self._on_change:
            listener(changes)
