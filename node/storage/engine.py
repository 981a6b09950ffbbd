"""The engine: RocksDB, one column family, one ordered key space for all groups of a node. The only
file that knows rocksdict.

What rocksdict 0.3.29 does and does not do, measured, and what follows from it here:

  * `write` holds the interpreter lock, its fsync included, so a batch is written unsynced on the
    loop, and `flush_wal(True)`, which releases the lock, runs in one writer thread. A write is not
    held up by a flush in flight.
  * Iterators have faults of their own: see node/storage/iteration.py.
  * A write that meets a stall blocks with the interpreter lock held. So the limits at which RocksDB
    would slow writes down are set out of reach, except the number of memtables, and `pressure`
    tells the node to stop taking appends long before that one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import rocksdict

from cluster.interfaces import CorruptRow, StorageError, WriteBatch
from node.metrics import FLUSH_BOUNDS_MS, Histogram
from node.storage.durable_mark import DurableMark
from node.storage.iteration import PinnedIterator, falling, rising
from node.storage.keys import COMMIT_NUMBER

_log = logging.getLogger(__name__)

# A thread that gave up the interpreter lock waits this long to get it back from a busy loop. With
# Python's 5 ms a busy loop cut syncs to 161/s.
_SWITCH_INTERVAL_S = 0.0005
_MARK_SYNC_INTERVAL_S = 1.0
_PRESSURE_INTERVAL_S = 0.02
_FLUSH_EMA_WEIGHT = 0.1
_CLOSE_TIMEOUT_S = 30.0

_BYTES_PER_SYNC = 1 << 20
_WRITE_BUFFERS_MAX = 8
_LEVEL_ZERO_FILES_MAX = 60
# The share of the blob files, oldest first, whose live values a compaction writes again, so that
# the files can go. It asks no file whether it has garbage: so none, as long as there is little.
_BLOB_AGE_CUTOFF = "blob_garbage_collection_age_cutoff"
_BLOB_AGE_CUTOFF_EVERYDAY, _BLOB_AGE_CUTOFF_COLLECTING = "0.0", "0.25"

# Reasons of the machine, not of the data, for RocksDB not to open: another start may well succeed.
_ENVIRONMENT_ERRORS = (
    "no space left",
    "permission denied",
    "too many open files",
    "cannot allocate memory",
    "read-only file system",
    "input/output error",
    "lock hold by current process",
    "resource temporarily unavailable",
    "while lock file",
    "disk quota exceeded",
)


class LostDurableData(StorageError):
    """What was durable here is not any more: the engine's files are damaged, or what they hold ends
    before the durable mark."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Memory is about write_buffer_bytes x 2 (8 when the disk falls behind) + block_cache_bytes.
    Values of blob_bytes_min and more lie in blob files of blob_file_bytes each."""

    write_buffer_bytes: int = 16 << 20
    block_cache_bytes: int = 32 << 20
    blob_bytes_min: int = 4 << 10
    blob_file_bytes: int = 64 << 20
    open_files_max: int = 512


@dataclass(slots=True)
class FlushStatistics:
    """Of the flushes that `sync` waited for. `mean_ms` is a moving average over about ten."""

    count: int = 0
    last_ms: float = 0.0
    mean_ms: float = 0.0
    max_ms: float = 0.0
    histogram: Histogram = field(default_factory=lambda: Histogram(FLUSH_BOUNDS_MS))

    def add(self, ms: float) -> None:
        self.histogram.observe(ms)
        self.mean_ms += (ms - self.mean_ms) * (_FLUSH_EMA_WEIGHT if self.count else 1.0)
        self.count += 1
        self.last_ms = ms
        self.max_ms = max(self.max_ms, ms)


@dataclass(slots=True)
class _SyncRequest:
    number: int
    loop: asyncio.AbstractEventLoop
    waiter: asyncio.Future[None]


class RocksEngine:
    """cluster.interfaces.Engine on a directory. Create with `create` or `open`.

    Everything but the flush runs on the loop's thread. After the first error of a write, a flush or
    the mark the engine is poisoned: every later call raises StorageError (rule R13).
    """

    def __init__(self, database: rocksdict.Rdict, mark: DurableMark, path: Path) -> None:
        self._database = database
        self._mark = mark
        self._path = path
        self._commit_number = mark.number
        self._durable_number = mark.number
        self._poison: StorageError | None = None
        self._closed = False
        self._compacting = False
        self._blob_age_cutoff = _BLOB_AGE_CUTOFF_EVERYDAY
        self._waiter: asyncio.Future[None] | None = None
        self._flush_began: float | None = None
        self._pressure = self._pressure_read = 0.0
        self.recovered_number = mark.number
        self.flushes = FlushStatistics()
        self.max_write_ms = 0.0
        self._requests: queue.SimpleQueue[_SyncRequest | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_out, name="storage-writer", daemon=True)
        self._compactor = ThreadPoolExecutor(1, thread_name_prefix="storage-compactor")
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        self._writer.start()

    @classmethod
    def create(
        cls, path: Path, *, mark_path: Path, settings: EngineSettings | None = None
    ) -> RocksEngine:
        """A new, empty engine. Neither path may exist. Raises StorageError."""
        assert not path.exists(), f"{path} exists"
        try:
            database = rocksdict.Rdict(str(path), _options(settings or EngineSettings()))
            return cls(database, DurableMark.create(mark_path), path)
        except Exception as error:
            raise StorageError(f"cannot create an engine in {path}: {error}") from error

    @classmethod
    def open(
        cls, path: Path, *, mark_path: Path, settings: EngineSettings | None = None
    ) -> RocksEngine:
        """What was durable, and at most some of the batches written after that; all of it is
        durable again on return. Raises LostDurableData, and StorageError when the machine (disk
        room, rights) is in the way."""
        if not path.is_dir() or not mark_path.is_file():
            missing = mark_path if path.is_dir() else path
            raise LostDurableData(f"{missing} is missing")
        kept = _keep_logs(path)
        mark = _open_mark(mark_path)
        try:
            database = _open_database(path, _options(settings or EngineSettings()))
        except StorageError:
            mark.close()
            raise
        recovered = int.from_bytes(database.get(COMMIT_NUMBER) or b"", "big")
        if recovered < mark.number:
            database.close()
            mark.close()
            raise LostDurableData(
                f"batch {mark.number} was durable in {path}, and {recovered} is the last one that"
                " can be read: its log is damaged"
            )
        shutil.rmtree(kept)
        # RocksDB flushes what it recovers to a table file, synced, before it opens: what can be
        # read now survives a power cut even if it had only been in the page cache before a crash.
        mark.set(recovered)
        return cls(database, mark, path)

    # Reading

    def get(self, key: bytes) -> bytes | None:
        self._check()
        try:
            value: bytes | None = self._database.get(key)
        except Exception as error:
            raise CorruptRow(f"cannot read {key.hex()}: {error}") from error
        return value

    def scan(
        self, begin: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """A view of the moment of the call."""
        self._check()
        options = rocksdict.ReadOptions()
        options.set_iterate_upper_bound(end)
        iterator = self._database.iter(options)
        return (falling if reverse else rising)(iterator, begin, options)

    def snapshot(self) -> PinnedIterator:
        """Holds memtables and files of this moment until it is closed: not for keeping."""
        self._check()
        return PinnedIterator(self._database.iter())

    # Writing

    @property
    def commit_number(self) -> int:
        """Of the last batch written."""
        return self._commit_number

    @property
    def durable_number(self) -> int:
        """Of the last batch known to be durable."""
        return self._durable_number

    def new_batch(self) -> WriteBatch:
        return rocksdict.WriteBatch(raw_mode=True)

    def write(self, batch: WriteBatch) -> None:
        self._check()
        assert isinstance(batch, rocksdict.WriteBatch), f"not a batch of this engine: {batch!r}"
        number = self._commit_number + 1
        began = time.monotonic()
        try:
            batch.put(COMMIT_NUMBER, number.to_bytes(8, "big"))
            self._database.write(batch)
        except Exception as error:
            raise self._poisoned(f"cannot write batch {number}: {error}") from error
        self._commit_number = number
        self.max_write_ms = max(self.max_write_ms, (time.monotonic() - began) * 1000)

    async def sync(self) -> None:
        """Returns at once when everything is durable already."""
        self._check()
        assert self._waiter is None, "a sync is under way"
        if self._durable_number == self._commit_number:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        self._requests.put(_SyncRequest(self._commit_number, loop, self._waiter))
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def pressure(self) -> float:
        """Half of what RocksDB lets wait is as far as we let it come. Read from RocksDB at most
        every 20 ms."""
        now = time.monotonic()
        if now - self._pressure_read >= _PRESSURE_INTERVAL_S and not self._closed:
            self._pressure_read = now
            self._pressure = max(
                self._property("num-immutable-mem-table") * 2 / _WRITE_BUFFERS_MAX,
                self._property("num-files-at-level0") * 2 / _LEVEL_ZERO_FILES_MAX,
                float(self._property("is-write-stopped")),
            )
        return self._pressure

    # Care

    async def compact_range(self, begin: bytes, end: bytes) -> None:
        """Give the room of what was deleted in begin <= key < end back to the disk, values in blob
        files included. Runs in a thread of its own, one at a time; may take minutes."""
        self._check()
        await self._in_compactor("compaction", self._compact, begin, end)

    async def collect_garbage(self, is_due: bool) -> None:
        """Whether compactions that new data causes are to free room besides."""
        cutoff = _BLOB_AGE_CUTOFF_COLLECTING if is_due else _BLOB_AGE_CUTOFF_EVERYDAY
        if cutoff != self._blob_age_cutoff:
            await self._in_compactor("setting an option", self._set_blob_age_cutoff, cutoff)

    async def _in_compactor(self, what: str, act: Callable[..., None], *arguments: object) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._compactor, act, *arguments)
        except Exception as error:
            # Nothing is lost by it; if it was the disk, the next write says so.
            raise StorageError(f"{what} failed: {error}") from error

    def stored_bytes(self) -> int:
        """Of the files that are in use, the write-ahead log aside."""
        return self._property("live-sst-files-size") + self._property("live-blob-file-size")

    def garbage_bytes(self) -> int:
        """As far as compactions have found it."""
        return self._property("live-blob-file-garbage-size")

    def disk_free_bytes(self) -> int:
        """Room left for us on the file system. Raises StorageError."""
        try:
            status = os.statvfs(self._path)
        except OSError as error:
            raise StorageError(f"cannot ask for the room on {self._path}: {error}") from error
        return status.f_bavail * status.f_frsize

    def flush_running_ms(self) -> float:
        """How long the flush in flight has taken so far; 0 when there is none."""
        began = self._flush_began
        return 0.0 if began is None else (time.monotonic() - began) * 1000

    def properties(self) -> dict[str, int]:
        """RocksDB's own figures, for metrics."""
        names = (
            "cur-size-all-mem-tables",
            "num-immutable-mem-table",
            "num-files-at-level0",
            "estimate-pending-compaction-bytes",
            "total-sst-files-size",
            "total-blob-file-size",
            "live-blob-file-garbage-size",
            "block-cache-usage",
        )
        return {name: self._property(name) for name in names}

    def close(self) -> None:
        """Idempotent. What was not synced may be lost, as in a crash. Close snapshots and end scans
        first: the files stay open, and locked, as long as one of them lives."""
        if self._closed:
            return
        self._closed = True
        self._requests.put(None)
        self._writer.join(_CLOSE_TIMEOUT_S)
        if self._compacting:
            # It would be waited for. What is not flushed for it now is in the write-ahead log.
            self._database.cancel_all_background(True)
        self._compactor.shutdown()
        try:
            self._database.close()
        except Exception as error:
            # Nothing that was promised depends on it; after an IO error it always fails.
            _log.info("closing the engine in %s: %s", self._path, error)
        del self._database  # the last reference closes what `close` could not
        self._mark.close()

    def _check(self) -> None:
        if self._poison is not None:
            raise StorageError(f"the engine has failed: {self._poison}") from self._poison
        if self._closed:
            raise StorageError("the engine is closed")

    def _poisoned(self, message: str) -> StorageError:
        error = StorageError(message)
        if self._poison is None:
            self._poison = error
            _log.critical("storage has failed and will not be used again: %s", message)
        return error

    def _property(self, name: str) -> int:
        return self._database.property_int_value(f"rocksdb.{name}") or 0

    # In the writer thread

    def _write_out(self) -> None:
        mark_synced = 0.0
        while (request := self._requests.get()) is not None:
            self._flush_began = began = time.monotonic()
            failure = self._attempt(lambda: self._database.flush_wal(True), "flush")
            now = time.monotonic()
            self._flush_began = None
            if failure is None:
                self._mark.set(request.number)
                self._durable_number = request.number
                self.flushes.add((now - began) * 1000)
            _answer(request, failure)
            if now - mark_synced >= _MARK_SYNC_INTERVAL_S:
                mark_synced = now
                self._attempt(self._mark.sync, "sync of the durable mark")

    def _attempt(self, act: Callable[[], None], what: str) -> StorageError | None:
        if self._poison is not None:
            return self._poison  # never a second flush after one that failed (rule R13)
        try:
            act()
        except Exception as error:
            return self._poisoned(f"{what} failed: {error}")
        return None

    # In the compactor thread

    def _compact(self, begin: bytes, end: bytes) -> None:
        options = rocksdict.CompactOptions()
        options.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force())
        options.set_exclusive_manual_compaction(False)  # everyday compactions go on beside it
        # Other compactions move values out of the oldest blob files at most; here out of all.
        cutoff = self._blob_age_cutoff
        self._compacting = True
        try:
            self._set_blob_age_cutoff("1.0")
            self._database.compact_range(begin, end, options)
        finally:
            self._compacting = False
            self._set_blob_age_cutoff(cutoff)

    def _set_blob_age_cutoff(self, cutoff: str) -> None:
        self._database.set_options({_BLOB_AGE_CUTOFF: cutoff})
        self._blob_age_cutoff = cutoff


def _answer(request: _SyncRequest, failure: StorageError | None) -> None:
    try:
        request.loop.call_soon_threadsafe(_resolve, request.waiter, failure)
    except RuntimeError:
        _log.debug("a sync ended after its loop was closed")


def _resolve(waiter: asyncio.Future[None], failure: StorageError | None) -> None:
    if waiter.done():
        return  # cancelled
    if failure is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(failure)


def _keep_logs(path: Path) -> Path:
    """Opening may drop what follows a damaged place in the write-ahead log, for good. A second link
    to each log file stays beside the engine until the open is known to have lost nothing."""
    kept = path.parent / "logs-before-open"
    try:
        kept.mkdir(exist_ok=True)
        for log in sorted(path.glob("*.log")):
            link = kept / log.name
            if not link.exists():
                link.hardlink_to(log)
    except OSError as error:
        raise StorageError(f"cannot prepare {path} for opening: {error}") from error
    return kept


def _open_mark(path: Path) -> DurableMark:
    try:
        return DurableMark.open(path)
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error}") from error
    except ValueError as error:
        raise LostDurableData(str(error)) from error


def _open_database(path: Path, options: rocksdict.Options) -> rocksdict.Rdict:
    try:
        return rocksdict.Rdict(str(path), options)
    except Exception as error:
        reason = str(error).lower()
        if any(sign in reason for sign in _ENVIRONMENT_ERRORS):
            raise StorageError(f"cannot open the engine in {path}: {error}") from error
        raise LostDurableData(f"the engine in {path} will not open: {error}") from error


def _options(settings: EngineSettings) -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    # The default mode of the C++ library may change; ours is what `recovered_number` is built on.
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.point_in_time())
    # A log written over an old one keeps its size and blocks: a flush has no metadata to write.
    options.set_recycle_log_file_num(2)
    options.set_wal_bytes_per_sync(_BYTES_PER_SYNC)
    options.set_bytes_per_sync(_BYTES_PER_SYNC)
    options.set_max_background_jobs(2)
    options.set_avoid_unnecessary_blocking_io(True)
    options.set_max_open_files(settings.open_files_max)
    options.set_skip_stats_update_on_db_open(True)
    options.set_keep_log_file_num(3)
    options.set_max_log_file_size(4 << 20)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    # A stalled write would hold the interpreter lock: out of reach, see `pressure`.
    options.set_write_buffer_size(settings.write_buffer_bytes)
    options.set_max_write_buffer_number(_WRITE_BUFFERS_MAX)
    options.set_level_zero_file_num_compaction_trigger(4)
    options.set_level_zero_slowdown_writes_trigger(_LEVEL_ZERO_FILES_MAX)
    options.set_level_zero_stop_writes_trigger(_LEVEL_ZERO_FILES_MAX + 20)
    options.set_soft_pending_compaction_bytes_limit(0)
    options.set_hard_pending_compaction_bytes_limit(0)
    options.set_max_bytes_for_level_base(4 * settings.write_buffer_bytes)
    options.set_target_file_size_base(settings.write_buffer_bytes)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    # Producers compress; a blob that is compressed again costs time on the way in and out.
    options.set_enable_blob_files(True)
    options.set_min_blob_size(settings.blob_bytes_min)
    options.set_blob_file_size(settings.blob_file_bytes)
    options.set_blob_compression_type(rocksdict.DBCompressionType.none())
    options.set_enable_blob_gc(True)
    options.set_blob_gc_age_cutoff(float(_BLOB_AGE_CUTOFF_EVERYDAY))
    options.set_blob_gc_force_threshold(0.5)
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(settings.block_cache_bytes))
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_bloom_filter(10, False)
    table.set_block_size(16 << 10)
    options.set_block_based_table_factory(table)
    return options
