"""The engine that the simulator runs with: an ordered map in memory that forgets in a crash what
was not synced, and breaks on request. tests/conformance/test_storage_engine.py holds it to what the
real one does.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from random import Random
from weakref import ref

from cluster.interfaces import StorageError, WriteBatch

Row = tuple[bytes, bytes]
_CHUNK_KEYS_MAX = 1024
_SCANS_MAX = 64


class SortedRows:
    """An ordered map of bytes. Keys lie in chunks of bounded length, so that a put moves few."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._chunks: list[list[bytes]] = [[]]
        self._lows: list[bytes] = [b""]  # chunk i holds lows[i] <= key < lows[i + 1]
        self._scans: list[ref[Scan]] = []

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: bytes) -> bytes:
        return self._values[key]

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self._values:
            at = self._chunk_of(key)
            chunk = self._chunks[at]
            insort(chunk, key)
            if len(chunk) > _CHUNK_KEYS_MAX:
                half = chunk[len(chunk) // 2 :]
                del chunk[len(chunk) // 2 :]
                self._chunks.insert(at + 1, half)
                self._lows.insert(at + 1, half[0])
        self._values[key] = value

    def delete(self, key: bytes) -> None:
        if self._values.pop(key, None) is None:
            return
        at = self._chunk_of(key)
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, key)]
        if not chunk and at > 0:
            del self._chunks[at], self._lows[at]

    def after(self, key: bytes) -> bytes | None:
        """The lowest key >= `key`."""
        for at in range(self._chunk_of(key), len(self._chunks)):
            chunk = self._chunks[at]
            place = bisect_left(chunk, key)
            if place < len(chunk):
                return chunk[place]
        return None

    def before(self, key: bytes) -> bytes | None:
        """The highest key < `key`."""
        for at in range(self._chunk_of(key), -1, -1):
            chunk = self._chunks[at]
            place = bisect_left(chunk, key)
            if place:
                return chunk[place - 1]
        return None

    def between(self, begin: bytes, end: bytes) -> list[bytes]:
        """Keys begin <= key < end."""
        found: list[bytes] = []
        for at in range(self._chunk_of(begin), len(self._chunks)):
            chunk = self._chunks[at]
            if self._lows[at] >= end:
                break
            found += chunk[bisect_left(chunk, begin) : bisect_left(chunk, end)]
        return found

    def scan(self, begin: bytes, end: bytes, *, reverse: bool) -> Scan:
        """A view of this moment, also of later changes announced by `will_change`."""
        scan = Scan(self, begin, end, reverse=reverse)
        if len(self._scans) > _SCANS_MAX:
            self._scans = [found for found in self._scans if found() is not None]
        self._scans.append(ref(scan))
        return scan

    def will_change(self) -> None:
        for found in self._scans:
            if (scan := found()) is not None:
                scan.take_all()
        self._scans = []

    def copy(self) -> SortedRows:
        rows = SortedRows()
        rows._values = dict(self._values)
        rows._chunks = [list(chunk) for chunk in self._chunks]
        rows._lows = list(self._lows)
        return rows

    def _chunk_of(self, key: bytes) -> int:
        return bisect_right(self._lows, key) - 1


class Scan:
    """Finds row after row; takes all that are left when the map is about to change."""

    def __init__(self, rows: SortedRows, begin: bytes, end: bytes, *, reverse: bool) -> None:
        self._rows = rows
        self._begin, self._end = begin, end
        self._reverse = reverse
        self._taken: list[Row] | None = None  # what is left, the next one last

    def __iter__(self) -> Scan:
        return self

    def __next__(self) -> Row:
        if self._taken is not None:
            if not self._taken:
                raise StopIteration
            return self._taken.pop()
        find = self._rows.before if self._reverse else self._rows.after
        key = find(self._end if self._reverse else self._begin)
        if key is None or not self._begin <= key < self._end:
            self._taken = []
            raise StopIteration
        if self._reverse:
            self._end = key
        else:
            self._begin = key + b"\0"
        return key, self._rows[key]

    def take_all(self) -> None:
        if self._taken is None:
            keys = self._rows.between(self._begin, self._end)
            self._taken = [(key, self._rows[key]) for key in keys]
            if not self._reverse:
                self._taken.reverse()


class MemoryBatch:
    def __init__(self) -> None:
        self.writes: list[tuple[bytes, bytes | None] | tuple[bytes, bytes, bool]] = []

    def put(self, key: bytes, value: bytes) -> None:
        # The real engine takes nothing else either, and keeps what it was given.
        assert (type(key), type(value)) == (bytes, bytes), f"{type(key)}, {type(value)}"
        self.writes.append((key, value))

    def delete(self, key: bytes) -> None:
        self.writes.append((key, None))

    def delete_range(self, begin: bytes, end: bytes) -> None:
        # RocksDB takes it and then fails the whole batch.
        assert begin <= end, f"delete_range from {begin.hex()} back to {end.hex()}"
        self.writes.append((begin, end, True))


class MemoryEngine:
    """cluster.interfaces.Engine.

    `sync_delay_s`: asked before each sync how long it takes; the loop's (virtual) time passes.
    `disk_bytes`: the room for keys and values; a write beyond it fails as on a full disk.
    `remember_synced`: so many batches that were synced can still be forgotten by `crash`, to play a
    disk that lies.

    A crash ends this engine; what was on its disk comes back as another.
    """

    def __init__(
        self,
        *,
        sync_delay_s: Callable[[], float] = lambda: 0.0,
        disk_bytes: int = 1 << 40,
        remember_synced: int = 0,
    ) -> None:
        self.pressure = 0.0  # for the test to set
        self.commit_number = self.durable_number = self.recovered_number = 0
        self.lost_durable_data = False
        self.syncs = 0
        self._sync_delay_s = sync_delay_s
        self._disk_bytes = disk_bytes
        self._remember_synced = remember_synced
        self._rows = SortedRows()
        self._used_bytes = 0
        self._undo: list[tuple[int, list[tuple[bytes, bytes | None]]]] = []  # rising batches
        self._failure: StorageError | None = None
        self._next_sync_fails = self._next_write_fails = False
        self._syncing = False

    # cluster.interfaces.Engine

    def get(self, key: bytes) -> bytes | None:
        self._check()
        return self._rows.get(key)

    def scan(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        self._check()
        return self._rows.scan(begin, end, reverse=reverse)

    def snapshot(self) -> MemorySnapshot:
        self._check()
        return MemorySnapshot(self._rows.copy())

    def new_batch(self) -> WriteBatch:
        return MemoryBatch()

    def write(self, batch: WriteBatch) -> None:
        self._check()
        assert isinstance(batch, MemoryBatch), f"not a batch of this engine: {batch!r}"
        if self._next_write_fails:
            raise self._failed("a write failed, as the test asked")
        self._rows.will_change()
        undo: list[tuple[bytes, bytes | None]] = []
        for write in batch.writes:
            if len(write) == 2:
                self._set(write[0], write[1], undo)
            else:
                for key in self._rows.between(write[0], write[1]):
                    self._set(key, None, undo)
        batch.writes = []
        self.commit_number += 1
        self._undo.append((self.commit_number, undo))
        if self._used_bytes > self._disk_bytes:
            self._take_back(self.commit_number - 1)
            raise self._failed("no space left on device")

    async def sync(self) -> None:
        self._check()
        assert not self._syncing, "a sync is under way"
        number = self.commit_number
        if number == self.durable_number:
            return
        self._syncing = True
        try:
            await asyncio.sleep(self._sync_delay_s())
        finally:
            self._syncing = False
        self._check()
        if self._next_sync_fails:
            raise self._failed("a sync failed, as the test asked")
        self.durable_number = number
        self.syncs += 1
        keep = number - self._remember_synced
        while self._undo and self._undo[0][0] <= keep:
            self._undo.pop(0)

    async def compact_range(self, begin: bytes, end: bytes) -> None:
        self._check()

    async def collect_garbage(self, is_due: bool) -> None:
        self._check()

    def stored_bytes(self) -> int:
        return self._used_bytes

    def garbage_bytes(self) -> int:
        return 0

    def disk_free_bytes(self) -> int:
        return max(0, self._disk_bytes - self._used_bytes)

    def flush_running_ms(self) -> float:
        return 0.0

    def close(self) -> None:
        self._failure = self._failure or StorageError("the engine is closed")

    # Faults

    def crash(self, random: Random, *, forget_synced: int = 0) -> MemoryEngine:
        """Lose a suffix of the batches that were not synced, none and all included, and this engine
        with them. `forget_synced`: lose that many of the synced ones too, at most remember_synced;
        what comes back then has `lost_durable_data` (the real engine refuses to open so)."""
        assert forget_synced <= self._remember_synced, f"only {self._remember_synced} remembered"
        durable = self.durable_number
        if forget_synced:
            last = max(0, durable - forget_synced)
        else:
            last = random.randint(durable, self.commit_number)
        self._take_back(last)
        self._failure = StorageError("the engine has crashed")
        engine = MemoryEngine(
            sync_delay_s=self._sync_delay_s,
            disk_bytes=self._disk_bytes,
            remember_synced=self._remember_synced,
        )
        engine._rows, engine._used_bytes = self._rows, self._used_bytes
        self._rows = SortedRows()
        engine.commit_number = engine.recovered_number = last
        engine.durable_number = last
        engine.lost_durable_data = last < durable
        return engine

    def fail_next_write(self) -> None:
        self._next_write_fails = True

    def fail_next_sync(self) -> None:
        """As when fsync reports an error: the engine is of no more use (rule R13)."""
        self._next_sync_fails = True

    def flip_bit(self, key: bytes, bit: int) -> None:
        """In the stored value of `key`; `bit` counts from its start and wraps."""
        value = self._rows.get(key)
        assert value, f"nothing is stored under {key.hex()}"
        changed = bytearray(value)
        at = bit % (8 * len(changed))
        changed[at // 8] ^= 1 << at % 8
        self._rows.will_change()
        self._rows.put(key, bytes(changed))

    def _set(self, key: bytes, value: bytes | None, undo: list[tuple[bytes, bytes | None]]) -> None:
        before = self._rows.get(key)
        undo.append((key, before))
        self._replace(key, before, value)

    def _replace(self, key: bytes, before: bytes | None, value: bytes | None) -> None:
        if before is not None:
            self._used_bytes -= len(key) + len(before)
        if value is None:
            self._rows.delete(key)
        else:
            self._rows.put(key, value)
            self._used_bytes += len(key) + len(value)

    def _take_back(self, last: int) -> None:
        """Undo the batches after `last`."""
        self._rows.will_change()
        while self._undo and self._undo[-1][0] > last:
            for key, before in reversed(self._undo.pop()[1]):
                self._replace(key, self._rows.get(key), before)
        self.commit_number = last

    def _failed(self, message: str) -> StorageError:
        self._failure = StorageError(message)
        return self._failure

    def _check(self) -> None:
        if self._failure is not None:
            raise StorageError(f"the engine has failed: {self._failure}") from self._failure


class MemorySnapshot:
    def __init__(self, rows: SortedRows) -> None:
        self._rows: SortedRows | None = rows

    def get(self, key: bytes) -> bytes | None:
        return self._open().get(key)

    def scan(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        return self._open().scan(begin, end, reverse=reverse)

    def close(self) -> None:
        self._rows = None

    def _open(self) -> SortedRows:
        if self._rows is None:
            raise StorageError("the snapshot is closed")
        return self._rows
