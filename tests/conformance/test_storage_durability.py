"""What the real engine keeps, on a real disk, when processes are killed and files are damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from cluster.interfaces import CorruptRow, StorageError
from node.storage.durable_mark import DurableMark
from node.storage.engine import EngineSettings, LostDurableData, RocksEngine
from tests.conformance.storage_rigs import (
    SMALL,
    changed,
    copy_at_rest,
    stored,
    writes_over_old_logs,
)
from tests.conformance.storage_writer import rows_after

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


class Folder:
    """Where one engine lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    @property
    def mark(self) -> Path:
        return self.path / "durable.mark"

    def create(self, settings: EngineSettings = SMALL) -> RocksEngine:
        return RocksEngine.create(self.path / "engine", mark_path=self.mark, settings=settings)

    def open(self) -> RocksEngine:
        return RocksEngine.open(self.path / "engine", mark_path=self.mark, settings=SMALL)

    def copy(self, name: str) -> Folder:
        """As it would be found if the process died now."""
        copy_at_rest(self.path, self.path.parent / name)
        return Folder(self.path.parent / name)

    def files(self, suffix: str) -> list[Path]:
        return sorted((self.path / "engine").glob(f"*{suffix}"))

    def log(self) -> Path:
        """The one that is written; older ones may be kept to be written over."""
        return self.files(".log")[-1]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "folder")


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes((byte ^ 0x10,)))


def write(engine: RocksEngine, key: bytes, value: bytes) -> None:
    batch = engine.new_batch()
    batch.put(key, value)
    engine.write(batch)


def writer(path: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.conformance.storage_writer", str(path), what],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_process_leaves_a_prefix_with_all_that_was_answered(
    folder: Folder, seed: int
) -> None:
    random = Random(seed)
    answers = random.randint(20, 400)
    process = writer(folder.path, str(seed))
    assert process.stdout is not None
    told = 0
    for _ in range(answers):
        told = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    told = max([told, *(int(line) for line in process.stdout.read().split())])
    process.stdout.close()
    process.wait()
    engine = folder.open()
    number = engine.recovered_number
    assert number >= told
    assert stored(engine) == rows_after(number)
    assert engine.durable_number == engine.commit_number == number
    engine.close()


async def test_R13_after_an_error_of_the_disk_every_call_refuses(folder: Folder) -> None:
    process = writer(folder.path, "refuse")
    output, _ = process.communicate()
    assert process.returncode == 0
    lines = output.splitlines()
    assert lines[0].startswith("failed:")
    assert lines[1:5] == [f"refused: {what}" for what in ("get", "write", "snapshot", "sync")]
    durable = int(lines[5].split()[1])
    engine = folder.open()
    assert engine.recovered_number >= durable > 10
    engine.close()


async def test_a_torn_tail_beyond_the_mark_is_cut(folder: Folder) -> None:
    engine = folder.create()
    for number in range(10):
        write(engine, b"%d" % number, b"x" * 100)
    await engine.sync()
    synced = folder.log().stat().st_size
    write(engine, b"unsynced", b"x" * 1000)
    crashed = folder.copy("crashed")
    engine.close()
    size = crashed.log().stat().st_size
    assert size > synced + 500
    os.truncate(crashed.log(), size - 300)
    engine = crashed.open()
    assert engine.recovered_number == 10
    assert len(stored(engine)) == 10
    engine.close()


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
async def test_R14_a_flipped_bit_in_the_synced_log_is_noticed_at_open(
    folder: Folder, place: float
) -> None:
    """RocksDB itself opens without an error and drops everything from there on."""
    engine = folder.create()
    for number in range(100):
        write(engine, b"%d" % number, b"x" * 100)
    await engine.sync()
    crashed = folder.copy("crashed")
    engine.close()
    log = crashed.log()
    size = log.stat().st_size
    flip(log, int(size * place) if place < 0.999 else size - 1)
    damaged = log.read_bytes()
    with pytest.raises(LostDurableData, match="batch 100 was durable"):
        crashed.open()
    # What RocksDB dropped is still there for a person to look at.
    (kept,) = (crashed.path / "logs-before-open").iterdir()
    assert kept.read_bytes() == damaged
    with pytest.raises(LostDurableData):
        crashed.open()


async def test_R14_a_cut_synced_log_is_noticed_at_open(folder: Folder) -> None:
    engine = folder.create()
    for number in range(100):
        write(engine, b"%d" % number, b"x" * 100)
    await engine.sync()
    crashed = folder.copy("crashed")
    engine.close()
    os.truncate(crashed.log(), crashed.log().stat().st_size - 1)
    with pytest.raises(LostDurableData):
        crashed.open()


def value_of_row(number: int) -> bytes:
    return b"%06d" % number * 200


async def written_over(folder: Folder) -> RocksEngine:
    """An engine that is writing its log over an old one: batch n put row n, and all is durable."""
    engine = folder.create()
    while not writes_over_old_logs(folder.path):
        put_rows(engine, 100)
        await engine.sync()
    put_rows(engine, 1_000)
    await engine.sync()
    return engine


def put_rows(engine: RocksEngine, count: int) -> None:
    for number in range(engine.commit_number + 1, engine.commit_number + 1 + count):
        write(engine, b"%06d" % number, value_of_row(number))


def rows_up_to(number: int) -> dict[bytes, bytes]:
    return {b"%06d" % n: value_of_row(n) for n in range(1, number + 1)}


async def test_a_log_written_over_an_old_one_keeps_all_that_was_synced(folder: Folder) -> None:
    """What a power cut leaves of the batches after the last sync: their bytes up to anywhere, or
    all but a page in their middle; and elsewhere what the old log had there."""
    engine = await written_over(folder)
    synced = engine.commit_number
    before = folder.copy("before").log().read_bytes()
    put_rows(engine, 20)
    after = folder.log().read_bytes()
    assert len(after) == len(before), "the log grew: it was not written over an old one"
    begin, end = changed(before, after)
    cuts = [begin, begin + 1, *range(begin, end, (end - begin) // 7), end]
    left = [after[:cut] + before[cut:] for cut in cuts]
    hole = (begin + end) // 2
    left.append(after[:hole] + before[hole : hole + 4096] + after[hole + 4096 :])
    found = []
    for at, log in enumerate(left):
        crashed = folder.copy(f"crashed-{at}")
        crashed.log().write_bytes(log)
        reopened = crashed.open()
        number = reopened.recovered_number
        assert stored(reopened) == rows_up_to(number)
        write(reopened, b"more", b"x")
        await reopened.sync()
        reopened.close()
        found.append(number - synced)
    engine.close()
    assert found[:-1] == sorted(found[:-1])
    assert found[0] == 0
    assert found[-2] == 20
    assert 0 < found[-1] < 20


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
async def test_R14_a_flipped_bit_in_a_log_written_over_an_old_one_is_noticed(
    folder: Folder, place: float
) -> None:
    engine = await written_over(folder)
    crashed = folder.copy("crashed")
    last = engine.commit_number
    engine.close()
    whole = crashed.log().read_bytes()
    number = last - int((1.0 - place) * 900)
    flip(crashed.log(), whole.index(value_of_row(number)[:120]) + 50)  # RocksDB cuts at blocks
    with pytest.raises(LostDurableData, match=f"batch {last} was durable"):
        crashed.open()


async def test_the_mark_follows_each_sync_and_may_lag_behind_the_engine(folder: Folder) -> None:
    engine = folder.create()
    for number in range(1, 20):
        write(engine, b"a", b"%d" % number)
        await engine.sync()
        # Seen by another reader of the file before the answer: it outlives a kill.
        other = DurableMark.open(folder.mark)
        assert other.number == number
        other.close()
    write(engine, b"a", b"unsynced")
    early = folder.copy("early")
    engine.close()
    engine = early.open()
    assert engine.recovered_number in (19, 20)
    engine.close()


async def test_a_mark_ahead_of_the_engine_means_that_data_is_gone(folder: Folder) -> None:
    engine = folder.create()
    write(engine, b"a", b"1")
    await engine.sync()
    engine.close()
    mark = DurableMark.open(folder.mark)
    mark.set(2)
    mark.close()
    with pytest.raises(LostDurableData, match="batch 2 was durable"):
        folder.open()


async def test_a_missing_or_damaged_mark_means_that_nothing_is_known(folder: Folder) -> None:
    engine = folder.create()
    write(engine, b"a", b"1")
    await engine.sync()
    engine.close()
    without = folder.copy("without")
    without.mark.unlink()
    with pytest.raises(LostDurableData, match="missing"):
        without.open()
    torn = folder.copy("torn")
    for at in (5, 2048 + 5):
        flip(torn.mark, at)
    with pytest.raises(LostDurableData, match="damaged"):
        torn.open()


@pytest.mark.parametrize("name", ["CURRENT", "MANIFEST-*"])
async def test_an_engine_that_will_not_open_has_lost_durable_data(
    folder: Folder, name: str
) -> None:
    engine = folder.create()
    write(engine, b"a", b"1")
    await engine.sync()
    engine.close()
    (file,) = (folder.path / "engine").glob(name)
    file.unlink()
    with pytest.raises(LostDurableData):
        folder.open()


async def test_an_engine_that_is_open_is_not_taken_for_a_damaged_one(folder: Folder) -> None:
    engine = folder.create()
    write(engine, b"a", b"1")
    await engine.sync()
    with pytest.raises(StorageError) as raised:
        folder.open()
    assert not isinstance(raised.value, LostDurableData)
    engine.close()
    folder.open().close()


@pytest.mark.parametrize("size", [1000, 64 << 10])
async def test_a_damaged_table_or_blob_file_fails_the_read_and_not_the_engine(
    folder: Folder, size: int
) -> None:
    engine = folder.create()
    for number in range(20):
        write(engine, b"%02d" % number, Random(number).randbytes(size))
    await engine.sync()
    engine.close()
    engine = folder.open()  # everything is in files now, none of it cached
    engine.close()
    (file,) = folder.files(".blob" if size > 4096 else ".sst")
    flip(file, file.stat().st_size // 2)
    engine = folder.open()
    good, bad = 0, 0
    for number in range(20):
        try:
            assert engine.get(b"%02d" % number) == Random(number).randbytes(size)
            good += 1
        except CorruptRow:
            bad += 1
    assert bad > 0
    assert good > 0 or size < 4096  # a block of a table holds several rows
    for reverse in (False, True):
        with pytest.raises(CorruptRow):
            list(engine.scan(b"0", b"9", reverse=reverse))
    snapshot = engine.snapshot()
    with pytest.raises(CorruptRow):
        list(snapshot.scan(b"0", b"9"))
    snapshot.close()
    write(engine, b"new", b"1")
    await engine.sync()
    engine.close()


@pytest.mark.parametrize("size", [1000, 64 << 10])
async def test_the_disk_follows_live_data(folder: Folder, size: int) -> None:
    """House §4.15: du <= 2 x live + 128 MB after 99 % was deleted."""
    engine = folder.create(EngineSettings())
    total = 200 * MIB
    count = total // size
    for low in range(0, count, max(1, MIB // size)):
        batch = engine.new_batch()
        for number in range(low, min(count, low + max(1, MIB // size))):
            batch.put(b"k%08d" % number, Random(number).randbytes(size))
        engine.write(batch)
        await engine.sync()
    before = disk_usage(folder)
    assert before > total
    batch = engine.new_batch()
    live = range(0, count, 100)
    for number in live:  # holes everywhere: what is left lies in every file
        batch.delete_range(b"k%08d" % (number + 1), b"k%08d" % (number + 100))
    engine.write(batch)
    await engine.sync()
    await engine.compact_range(b"k", b"l")
    used = disk_usage(folder)
    assert used <= 2 * (total // 100) + 128 * MIB
    assert used < before / 3
    for number in live:
        assert engine.get(b"k%08d" % number) == Random(number).randbytes(size)
    engine.close()


def disk_usage(folder: Folder) -> int:
    return sum(f.stat().st_blocks * 512 for f in folder.path.rglob("*") if f.is_file())
