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

    def crash(self, random: Random) -> None:
        """Lose the power: `engine` is then what comes back."""
        self.memory = self.memory.crash(random)

    def close(self) -> None:
        self.memory.close()


class RocksRig:
    """A crash copies the folder without a part of what came after the last sync, cut at any byte,
    and opens the copy."""

    name = "rocks"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._run = 0
        self._folder = path / "run-0"
        self._folder.mkdir()
        self.rocks = RocksEngine.create(
            self._folder / "engine", mark_path=self._folder / "durable.mark", settings=SMALL
        )
        self._synced: dict[str, int] = {}

    @property
    def engine(self) -> Engine:
        return self.rocks

    async def sync(self) -> None:
        await self.rocks.sync()
        self._synced = {log.name: log.stat().st_size for log in self._logs()}

    def crash(self, random: Random) -> None:
        before = self._folder
        self._run += 1
        self._folder = self._path / f"run-{self._run}"
        shutil.copytree(before, self._folder)
        self.rocks.close()
        for log in self._logs():
            synced, written = self._synced.get(log.name, 0), log.stat().st_size
            with log.open("r+b") as file:
                file.truncate(random.randint(synced, written))
        self.rocks = RocksEngine.open(
            self._folder / "engine", mark_path=self._folder / "durable.mark", settings=SMALL
        )
        self._synced = {}

    def close(self) -> None:
        self.rocks.close()

    def _logs(self) -> list[Path]:
        return sorted((self._folder / "engine").glob("*.log"))


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
