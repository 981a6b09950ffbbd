"""Room of what was deleted comes back, and nothing is compacted for nothing (house §4.15)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cluster.interfaces import StorageError
from cluster.raft.messages import Entry, EntryKind
from node.storage import keys
from node.storage.engine import EngineSettings, RocksEngine
from node.storage.raft_log import RaftLog
from node.storage.reclaim import Reclaimer, ReclaimOptions

MIB = 1 << 20
GIB = 1 << 30
OPTIONS = ReclaimOptions(garbage_bytes_max=8 * MIB, disk_free_bytes_min=GIB)


class FakeLog:
    def __init__(self, group_id: int, *, held: int, deleted: int = 0) -> None:
        self.group_id = group_id
        self.log_bytes = held
        self.deleted_bytes = deleted


class FakeFiles:
    """A compaction gives back the garbage that lies in its range."""

    def __init__(self, garbage: dict[int, int], *, held: int) -> None:
        self.garbage = garbage
        self.held = held
        self.free = 10 * GIB
        self.compacted: list[int] = []
        self.is_collecting = False
        self.packed = 0  # so much less is in the files than in the logs
        self.is_broken = False

    def stored_bytes(self) -> int:
        return self.held - self.packed + sum(self.garbage.values())

    def garbage_bytes(self) -> int:
        return sum(self.garbage.values())

    def disk_free_bytes(self) -> int:
        return self.free

    async def compact_range(self, begin: bytes, end: bytes) -> None:
        if self.is_broken:
            raise StorageError("a bad block")
        for group_id in self.garbage:
            if begin <= keys.group_bounds(group_id)[0] < end:
                self.garbage[group_id] = 0
                self.compacted.append(group_id)

    async def collect_garbage(self, is_due: bool) -> None:
        self.is_collecting = is_due


async def exhaust(reclaimer: Reclaimer) -> None:
    while await reclaimer.look():
        pass


async def test_the_group_that_deleted_most_goes_first_until_little_garbage_is_left() -> None:
    logs = [FakeLog(n, held=MIB, deleted=n * 10 * MIB) for n in (1, 2, 3)]
    files = FakeFiles({n: n * 10 * MIB for n in (1, 2, 3)}, held=3 * MIB)
    reclaimer = Reclaimer(files, logs=lambda: logs, options=OPTIONS)
    assert await reclaimer.look()
    assert files.compacted == [3]
    await exhaust(reclaimer)
    assert files.compacted == [3, 2, 1]
    assert [log.deleted_bytes for log in logs] == [0, 0, 0]


async def test_little_garbage_is_left_to_everyday_compactions() -> None:
    logs = [FakeLog(1, held=100 * MIB, deleted=200 * MIB)]
    files = FakeFiles({1: 30 * MIB}, held=100 * MIB)
    reclaimer = Reclaimer(files, logs=lambda: logs, options=OPTIONS)
    await exhaust(reclaimer)
    assert files.compacted == []
    assert not files.is_collecting


async def test_everyday_compactions_collect_while_there_is_much_garbage() -> None:
    logs = [FakeLog(1, held=100 * MIB), FakeLog(2, held=100 * MIB, deleted=90 * MIB)]
    files = FakeFiles({1: 90 * MIB}, held=200 * MIB)
    reclaimer = Reclaimer(files, logs=lambda: logs, options=OPTIONS)
    reclaimer._compacted_all = True
    await exhaust(reclaimer)
    assert files.is_collecting, "no group deleted as much as it holds"
    assert files.compacted == []
    files.garbage[1] = 50 * MIB
    await exhaust(reclaimer)
    assert not files.is_collecting


async def test_garbage_is_found_where_the_files_are_smaller_than_the_logs() -> None:
    logs = [FakeLog(1, held=500 * MIB), FakeLog(2, held=MIB, deleted=90 * MIB)]
    files = FakeFiles({2: 90 * MIB}, held=501 * MIB)
    files.packed = 400 * MIB
    reclaimer = Reclaimer(files, logs=lambda: logs, options=OPTIONS)
    await exhaust(reclaimer)
    assert files.compacted == [2]


async def test_a_group_that_holds_much_is_not_written_again_for_little() -> None:
    logs = [FakeLog(1, held=100 * MIB, deleted=60 * MIB)]
    files = FakeFiles({1: 60 * MIB}, held=100 * MIB)
    reclaimer = Reclaimer(files, logs=lambda: logs, options=OPTIONS)
    await exhaust(reclaimer)
    assert files.compacted == [1]  # garbage that it could not explain, see below
    files.garbage[1] = 60 * MIB
    await exhaust(reclaimer)
    assert files.compacted == [1]
    files.free = GIB - 1
    await exhaust(reclaimer)
    assert files.compacted == [1, 1]


async def test_a_deleted_group_gives_its_room_back_when_room_is_short_and_much_else_lives() -> None:
    logs = [FakeLog(1, held=GIB)]
    files = FakeFiles({1: 0, 2: 100 * MIB}, held=GIB)
    reclaimer = Reclaimer(files, logs=lambda: logs, options=OPTIONS)
    reclaimer.buried(2, 100 * MIB)
    await exhaust(reclaimer)
    assert files.compacted == []
    files.free = GIB - 1
    await exhaust(reclaimer)
    assert files.compacted == [2]


async def test_garbage_of_an_earlier_run_is_looked_for_once() -> None:
    logs = [FakeLog(1, held=MIB), FakeLog(2, held=MIB)]
    files = FakeFiles({1: 0, 2: 100 * MIB}, held=2 * MIB)
    reclaimer = Reclaimer(files, logs=lambda: logs, options=OPTIONS)
    await exhaust(reclaimer)
    assert files.compacted == [1, 2]
    files.garbage[2] = 100 * MIB
    await exhaust(reclaimer)
    assert files.compacted == [1, 2]


async def test_a_compaction_that_fails_is_not_repeated_without_end() -> None:
    logs = [FakeLog(1, held=MIB, deleted=50 * MIB)]
    files = FakeFiles({1: 50 * MIB}, held=MIB)
    files.is_broken = True
    reclaimer = Reclaimer(files, logs=lambda: logs, options=OPTIONS)
    await exhaust(reclaimer)
    assert reclaimer.compactions == 2


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[RocksEngine]:
    engine = RocksEngine.create(
        tmp_path / "engine",
        mark_path=tmp_path / "mark",
        settings=EngineSettings(write_buffer_bytes=4 * MIB),
    )
    yield engine
    engine.close()


def body(index: int, size: int) -> bytes:
    return Random(index).randbytes(size)


async def fill(engine: RocksEngine, log: RaftLog, *, size: int, total: int) -> None:
    for first in range(1, total // size + 1, MIB // size):
        indexes = range(first, min(first + MIB // size, total // size + 1))
        append(engine, log, len(indexes), size=size)
        await engine.sync()


def append(engine: RocksEngine, log: RaftLog, count: int, *, size: int) -> None:
    batch, first = engine.new_batch(), log.last_index + 1
    log.append(
        batch,
        [
            Entry.create(index=i, term=1, kind=EntryKind.COMMAND, data=body(i, size))
            for i in range(first, first + count)
        ],
    )
    engine.write(batch)


@pytest.mark.parametrize("size", [1 << 10, 16 << 10])
async def test_trimmed_and_deleted_logs_leave_the_disk(engine: RocksEngine, size: int) -> None:
    trimmed, deleted, other = (RaftLog(engine, group_id) for group_id in (1, 2, 3))
    logs = [trimmed, deleted, other]
    options = ReclaimOptions(garbage_bytes_max=16 * MIB, disk_free_bytes_min=0)
    reclaimer = Reclaimer(engine, logs=lambda: logs, options=options)
    for log in (trimmed, deleted):
        await fill(engine, log, size=size, total=40 * MIB)
    await fill(engine, other, size=size, total=5 * MIB)
    assert not await reclaimer.look()
    last = trimmed.last_index
    batch = engine.new_batch()
    trimmed.compact(batch, last)
    trimmed.delete_history(batch, last - 20)
    reclaimer.buried(2, deleted.log_bytes)
    deleted.drop(batch)
    logs.remove(deleted)
    engine.write(batch)
    await engine.sync()
    assert engine.stored_bytes() > 70 * MIB
    await exhaust(reclaimer)
    assert engine.stored_bytes() < 2 * (trimmed.log_bytes + other.log_bytes) + 16 * MIB
    entry = trimmed.entry(last)
    assert entry is not None
    assert entry.data == body(last, size)
    assert trimmed.entry(last - 21) is None


async def settled(engine: RocksEngine) -> None:
    """No flush or compaction is under way or due."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 30.0
    names = ("num-running-flushes", "mem-table-flush-pending")
    names += ("num-running-compactions", "compaction-pending")
    while any(map(engine._property, names)):
        assert loop.time() < deadline, "compactions do not end"
        await asyncio.sleep(0.01)


def blob_bytes_written(folder: Path) -> int:
    """By flushes and compactions so far, as RocksDB's own log tells."""
    events = [
        json.loads(line[line.index("{") :])
        for line in (folder / "engine" / "LOG").read_text().splitlines()
        if '"event": "blob_file_creation"' in line
    ]
    return sum(event["total_blob_bytes"] for event in events)


async def test_what_lives_is_not_written_again_while_there_is_little_garbage(
    engine: RocksEngine, tmp_path: Path
) -> None:
    """However much is stored: a store of 1 TB can not be written again for every 64 MB."""
    log = RaftLog(engine, 1)
    reclaimer = Reclaimer(engine, logs=lambda: [log], options=OPTIONS)
    await fill(engine, log, size=64 << 10, total=120 * MIB)
    assert not await reclaimer.look()
    await settled(engine)
    written = blob_bytes_written(tmp_path)
    assert 100 * MIB < written < 125 * MIB


async def test_garbage_among_what_lives_goes_as_new_data_comes(engine: RocksEngine) -> None:
    """Every blob file has values of both logs: none goes by itself."""
    short, long = RaftLog(engine, 1), RaftLog(engine, 2)
    for _ in range(40):
        append(engine, short, 12, size=64 << 10)
        append(engine, long, 4, size=64 << 10)
        await engine.sync()
    batch = engine.new_batch()
    last = short.last_index
    short.compact(batch, last)
    short.delete_history(batch, last)
    engine.write(batch)
    short.deleted_bytes = 0  # as if a compaction of its own had not helped
    reclaimer = Reclaimer(engine, logs=lambda: [short, long], options=OPTIONS)
    reclaimer._compacted_all = True
    await exhaust(reclaimer)
    assert engine.stored_bytes() > long.log_bytes + 20 * MIB
    while engine.stored_bytes() > long.log_bytes * 5 // 4 + OPTIONS.garbage_bytes_max:
        assert long.log_bytes < 70 * MIB, "30 MiB of garbage stay"
        append(engine, long, 16, size=64 << 10)
        await engine.sync()
        await settled(engine)
        await exhaust(reclaimer)
