"""One group's durable checkpoint: a meta row, which lists the segments, and the segments of machine
state it names.

Segments lie under the generation of the checkpoint that wrote them. A checkpoint in the making
writes under the next generation, where nothing reads it, over as many batches as its owner likes
(`stage`), so that no turn has to write a big one. The meta row of the finishing batch (`put`) makes
them count; a segment that did not change keeps its older generation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cluster.interfaces import (
    CheckpointMeta,
    CorruptRow,
    Engine,
    EngineReader,
    StorageError,
    WriteBatch,
)
from cluster.raft.configuration import Configuration
from node.storage import keys
from node.storage.log_meta import seal, unseal

_VERSION = 1
# Version, generation, index, term, live index, bytes of the configuration, number of segments.
_META = struct.Struct("<BIQQQII")
_SEGMENT = struct.Struct("<IH")  # generation, bytes of the name


class CorruptCheckpoint(StorageError):
    """A checkpoint does not hold what was written: the replica has lost durable state."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """The meta row: `segments` maps each name to its generation, in rising order of names."""

    generation: int
    meta: CheckpointMeta | None
    segments: dict[bytes, int]


class CheckpointStore:
    """cluster.interfaces.SnapshotStore. Used from one thread."""

    def __init__(self, engine: Engine, group_id: int) -> None:
        """Raises CorruptCheckpoint."""
        self._engine = engine
        self._group_id = group_id
        self._meta_key = keys.group_key(group_id, keys.CHECKPOINT_META)
        self._prefix = keys.group_key(group_id, keys.CHECKPOINT_SEGMENT)
        self._end = keys.prefix_end(self._prefix)
        self._listing = self._read_listing(engine)
        self._staged: dict[bytes, bool] = {}  # name -> is it a deletion?
        # A crash may have left segments of a checkpoint that was never finished.
        self._has_leftovers = any(True for _ in engine.scan(self._staged_key(b""), self._end))

    def meta(self, reader: EngineReader | None = None) -> CheckpointMeta | None:
        return self._listing.meta if reader is None else self._read_listing(reader).meta

    def segments(self, reader: EngineReader | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Raises CorruptCheckpoint, also midway. From the engine itself it must be read to its end
        before the next `put`; from a snapshot at leisure."""
        reader = self._engine if reader is None else reader
        for name, generation in self._read_listing(reader).segments.items():
            yield name, self._read(reader, keys.segment_key(self._prefix, generation, name))

    def stage(self, batch: WriteBatch, changed: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write segments (None: delete one) of the checkpoint that the next `put` finishes."""
        if self._has_leftovers:
            batch.delete_range(self._staged_key(b""), self._end)
            self._has_leftovers = False
        for name, data in changed:
            if data is not None:
                batch.put(self._staged_key(name), seal(data))
            elif name in self._staged:
                batch.delete(self._staged_key(name))
            self._staged[name] = data is None

    def put(
        self,
        batch: WriteBatch,
        meta: CheckpointMeta,
        changed: Iterable[tuple[bytes, bytes | None]] = (),
    ) -> None:
        """Finish with these and everything staged."""
        self.stage(batch, changed)
        segments, generation = dict(self._listing.segments), self._listing.generation + 1
        for name, is_deletion in self._staged.items():
            if (before := segments.pop(name, None)) is not None:
                batch.delete(keys.segment_key(self._prefix, before, name))
            if not is_deletion:
                segments[name] = generation
        self._staged = {}
        self._listing = _Listing(generation, meta, dict(sorted(segments.items())))
        batch.put(self._meta_key, _encode(self._listing))

    def replace(
        self,
        batch: WriteBatch,
        meta: CheckpointMeta,
        segments: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """The checkpoint becomes these and everything staged, and nothing else."""
        self.stage(batch, segments)
        for name in self._listing.segments:
            self._staged.setdefault(name, True)
        self.put(batch, meta)

    def abandon(self, batch: WriteBatch) -> None:
        """Drop what is staged."""
        batch.delete_range(self._staged_key(b""), self._end)
        self._staged, self._has_leftovers = {}, False

    def drop(self, batch: WriteBatch) -> None:
        batch.delete_range(self._prefix, self._end)
        batch.delete(self._meta_key)
        self._listing = _Listing(0, None, {})
        self._staged, self._has_leftovers = {}, False

    def _staged_key(self, name: bytes) -> bytes:
        return keys.segment_key(self._prefix, self._listing.generation + 1, name)

    def _read_listing(self, reader: EngineReader) -> _Listing:
        row = self._row(reader, self._meta_key)
        if row is None:
            return _Listing(0, None, {})
        try:
            return _decode(unseal(row))
        except ValueError as error:
            raise CorruptCheckpoint(f"checkpoint of group {self._group_id}: {error}") from error

    def _read(self, reader: EngineReader, key: bytes) -> bytes:
        row = self._row(reader, key)
        try:
            if row is None:
                raise ValueError("it is missing")
            return unseal(row)
        except ValueError as error:
            raise CorruptCheckpoint(
                f"checkpoint of group {self._group_id}, row {key[8:]!r}: {error}"
            ) from error

    def _row(self, reader: EngineReader, key: bytes) -> bytes | None:
        try:
            return reader.get(key)
        except CorruptRow as error:
            raise CorruptCheckpoint(f"checkpoint of group {self._group_id}: {error}") from error


def _encode(listing: _Listing) -> bytes:
    meta = listing.meta
    assert meta is not None
    configuration = meta.configuration.encode()
    header = _META.pack(
        _VERSION,
        listing.generation,
        meta.index,
        meta.term,
        meta.live_index,
        len(configuration),
        len(listing.segments),
    )
    segments = [_SEGMENT.pack(g, len(name)) + name for name, g in listing.segments.items()]
    return seal(header + configuration + b"".join(segments))


def _decode(content: bytes) -> _Listing:
    """Raises ValueError."""
    try:
        version, generation, index, term, live_index, size, count = _META.unpack_from(content)
        if version != _VERSION:
            raise ValueError(f"version {version} is not known here")
        at = _META.size + size
        configuration = Configuration.decode(content[_META.size : at])
        segments = {}
        for _ in range(count):
            segment_generation, length = _SEGMENT.unpack_from(content, at)
            at += _SEGMENT.size + length
            segments[content[at - length : at]] = segment_generation
    except struct.error as error:
        raise ValueError(f"not a meta row: {error}") from error
    return _Listing(generation, CheckpointMeta(index, term, configuration, live_index), segments)
