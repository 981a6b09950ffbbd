"""Both engines, each with a way to crash it, behind one face: what the storage suites run over."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from random import Random

from cluster.interfaces import Engine
from cluster.raft.messages import Entry, EntryKind
from node.storage.engine import EngineSettings, RocksEngine
from tests.simulation.memory_engine import MemoryEngine

SMALL = EngineSettings(write_buffer_bytes=4 << 20, block_cache_bytes=4 << 20)


class MemoryRig:
    name = "memory"

    def __init__(self, path: Path) -> None:
        self.memory = MemoryEngine()

    @property
    def engine(self) -> Engine:
        return self.memory

    async def sync(self) -> None:
        await self.memory.sync()

    async def wear(self, random: Random) -> None:
        """Until its log is written over an old one, as it is in a node that has run for a while."""

    def crash(self, random: Random) -> None:
        """Lose the power: `engine` is then what comes back."""
        self.memory = self.memory.crash(random)

    def close(self) -> None:
        self.memory.close()


class RocksRig:
    """A crash copies the folder, with what came after the last sync only up to any byte, and opens
    the copy. Behind that byte a log has what it had at the sync: nothing, or what an older log that
    it is written over had there."""

    name = "rocks"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._run = 0
        self._folder = path / "run-0"
        self._folder.mkdir()
        self.rocks = RocksEngine.create(
            self._folder / "engine", mark_path=self._folder / "durable.mark", settings=SMALL
        )
        self._synced: dict[int, bytes] = {}  # by inode: a log that is used again gets a new name

    @property
    def engine(self) -> Engine:
        return self.rocks

    async def sync(self) -> None:
        await self.rocks.sync()
        self._synced = {log.stat().st_ino: log.read_bytes() for log in self._logs()}

    async def wear(self, random: Random) -> None:
        for _ in range(2_000):  # 40 MB: several logs
            keys = [b"worn%03d" % random.randrange(1_000) for _ in range(100)]
            put(self.rocks, [(key, random.randbytes(random.randint(50, 350))) for key in keys])
            await self.rocks.sync()
            if writes_over_old_logs(self._folder):
                return
        raise AssertionError("no log is written over an old one")

    def crash(self, random: Random) -> None:
        before = self._folder
        self._run += 1
        self._folder = self._path / f"run-{self._run}"
        copy_at_rest(before, self._folder)
        synced = {
            log.name: self._synced.get(log.stat().st_ino, b"")
            for log in (before / "engine").glob("*.log")
        }
        self.rocks.close()
        for log in self._logs():
            log.write_bytes(cut(synced[log.name], log.read_bytes(), random))
        self.rocks = RocksEngine.open(
            self._folder / "engine", mark_path=self._folder / "durable.mark", settings=SMALL
        )
        self._synced = {}

    def close(self) -> None:
        self.rocks.close()

    def _logs(self) -> list[Path]:
        return sorted((self._folder / "engine").glob("*.log"))


def copy_at_rest(source: Path, target: Path) -> None:
    """As it is between two of its compactions, which a real crash cannot tear apart either."""

    def content() -> list[tuple[str, int, int]]:
        files = [(path.name, path.stat()) for path in sorted((source / "engine").iterdir())]
        return [(name, stat.st_ino, stat.st_size) for name, stat in files]

    for _ in range(100):
        try:
            before = content()
            shutil.copytree(source, target)
            if content() == before:
                return
        except (FileNotFoundError, shutil.Error):
            pass  # a file of before a compaction went meanwhile
        shutil.rmtree(target, ignore_errors=True)
    raise AssertionError(f"{source} does not come to rest")


def cut(synced: bytes, written: bytes, random: Random) -> bytes:
    """What is left of a log when the power goes between the two."""
    end = random.randint(*changed(synced, written))
    return written[:end] + synced[end:]


def changed(before: bytes, after: bytes) -> tuple[int, int]:
    """Begin and end of what was written into a log meanwhile; both its length if nothing was."""
    both, end = min(len(before), len(after)), len(after)
    begin = next((at for at in range(both) if before[at] != after[at]), both)
    if len(before) == end:
        while end > begin and before[end - 1] == after[end - 1]:
            end -= 1
    return begin, end


def writes_over_old_logs(folder: Path) -> bool:
    """Whether the engine in the folder has come to its second log that had been another one."""
    return (folder / "engine" / "LOG").read_text().count("reusing log") >= 2


Rig = MemoryRig | RocksRig
RIGS: tuple[type[MemoryRig] | type[RocksRig], ...] = (MemoryRig, RocksRig)


def put(engine: Engine, rows: Iterable[tuple[bytes, bytes]]) -> None:
    batch = engine.new_batch()
    for key, value in rows:
        batch.put(key, value)
    engine.write(batch)


def stored(engine: Engine) -> dict[bytes, bytes]:
    """Everything but the engine's own row."""
    return dict(engine.scan(b"", b"\xff" * 8))


def command(index: int, term: int = 1, data: bytes = b"") -> Entry:
    data = data or b"data of %d in %d" % (index, term)
    return Entry.create(index=index, term=term, kind=EntryKind.COMMAND, data=data)


def commands(first: int, last: int, term: int = 1) -> list[Entry]:
    return [command(index, term) for index in range(first, last + 1)]
