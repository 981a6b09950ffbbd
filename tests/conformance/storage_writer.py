"""A process that writes to an engine until it is killed, or until the disk refuses:

    python -m tests.conformance.storage_writer FOLDER SEED|refuse

It prints the number of each batch once it is durable. What batch n puts follows from n, so that
what is found later tells which batches it was made of.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path
from random import Random

from cluster.interfaces import StorageError
from node.storage.engine import EngineSettings, RocksEngine

# Small, so that memtables are flushed and blob files written while it runs.
SETTINGS = EngineSettings(write_buffer_bytes=1 << 20, block_cache_bytes=1 << 20)


def keys_of(number: int) -> list[bytes]:
    random = Random(number)
    return [b"%03d" % random.randint(0, 999) for _ in range(3)]


def value_of(number: int) -> bytes:
    return b"%010d" % number * Random(number).choice((1, 10, 1000))


def rows_after(number: int) -> dict[bytes, bytes]:
    """What the engine holds after batch `number`."""
    rows: dict[bytes, bytes] = {}
    for at in range(1, number + 1):
        for key in keys_of(at):
            rows[key] = value_of(at)
    return rows


async def write_until_killed(folder: Path, seed: int) -> None:
    engine = RocksEngine.create(
        folder / "engine", mark_path=folder / "durable.mark", settings=SETTINGS
    )
    random = Random(seed)
    while True:
        for _ in range(random.randint(1, 5)):
            batch = engine.new_batch()
            number = engine.commit_number + 1
            for key in keys_of(number):
                batch.put(key, value_of(number))
            engine.write(batch)
        await engine.sync()
        print(engine.durable_number, flush=True)


async def write_until_the_disk_refuses(folder: Path) -> None:
    """Rule R13. A limit on the size of files stands for a disk that reports errors."""
    engine = RocksEngine.create(
        folder / "engine", mark_path=folder / "durable.mark", settings=SETTINGS
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    try:
        while True:
            batch = engine.new_batch()
            batch.put(b"key", b"x" * 1000)
            engine.write(batch)
            await engine.sync()
    except StorageError as error:
        print("failed:", error, flush=True)
    durable = engine.durable_number
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for what, act in (
        ("get", lambda: engine.get(b"key")),
        ("write", lambda: engine.write(engine.new_batch())),
        ("snapshot", engine.snapshot),
    ):
        try:
            act()
        except StorageError:
            print("refused:", what, flush=True)
    try:
        await engine.sync()
    except StorageError:
        print("refused: sync", flush=True)
    assert engine.durable_number == durable
    print("durable:", durable, flush=True)
    engine.close()


if __name__ == "__main__":
    if sys.argv[2] == "refuse":
        asyncio.run(write_until_the_disk_refuses(Path(sys.argv[1])))
    else:
        asyncio.run(write_until_killed(Path(sys.argv[1]), int(sys.argv[2])))
