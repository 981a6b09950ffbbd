"""The faults that the simulator's engine can be told to have."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from cluster.interfaces import StorageError
from tests.conformance.storage_rigs import put, stored
from tests.simulation.memory_engine import MemoryEngine


def state_of(count: int) -> dict[bytes, bytes]:
    return {b"%03d" % n: b"%d" % n for n in range(count)}


async def written(engine: MemoryEngine, *, synced: int, unsynced: int) -> None:
    for number in range(synced + unsynced):
        put(engine, [(b"%03d" % number, b"%d" % number)])
        if number + 1 == synced:
            await engine.sync()


async def write_and_sync(engine: MemoryEngine) -> None:
    put(engine, [(b"b", b"1")])
    await engine.sync()


async def test_a_crash_can_take_none_all_or_some_of_what_was_not_synced() -> None:
    left = set()
    for seed in range(100):
        engine = MemoryEngine()
        await written(engine, synced=3, unsynced=3)
        again = engine.crash(Random(seed))
        count = len(stored(again))
        assert stored(again) == state_of(count)
        assert again.commit_number == again.recovered_number == again.durable_number == count
        assert not again.lost_durable_data
        left.add(count)
        with pytest.raises(StorageError, match="crashed"):
            engine.get(b"000")
    assert left == {3, 4, 5, 6}


async def test_a_crash_during_a_sync_may_take_what_it_was_to_cover() -> None:
    left = set()
    for seed in range(50):
        engine = MemoryEngine(sync_delay_s=lambda: 0.001)
        put(engine, [(b"a", b"1")])
        syncing = asyncio.ensure_future(engine.sync())
        await asyncio.sleep(0)
        left.add(len(stored(engine.crash(Random(seed)))))
        with pytest.raises(StorageError):
            await syncing
    assert left == {0, 1}


async def test_a_disk_that_lies_forgets_what_was_synced() -> None:
    engine = MemoryEngine(remember_synced=4)
    await written(engine, synced=10, unsynced=2)
    again = engine.crash(Random(1), forget_synced=3)
    assert again.lost_durable_data
    assert stored(again) == state_of(7)
    engine = MemoryEngine(remember_synced=4)
    await written(engine, synced=10, unsynced=2)
    with pytest.raises(AssertionError):
        engine.crash(Random(1), forget_synced=5)


async def test_R13_after_a_failed_sync_or_write_every_call_refuses() -> None:
    for fail in (MemoryEngine.fail_next_sync, MemoryEngine.fail_next_write):
        engine = MemoryEngine()
        await written(engine, synced=1, unsynced=0)
        fail(engine)
        with pytest.raises(StorageError):
            await write_and_sync(engine)
        for _ in range(2):
            with pytest.raises(StorageError):
                await engine.sync()
            with pytest.raises(StorageError):
                engine.get(b"000")
            with pytest.raises(StorageError):
                engine.write(engine.new_batch())
        assert stored(engine.crash(Random(1))).items() >= state_of(1).items()


async def test_a_full_disk_fails_the_write_whole() -> None:
    engine = MemoryEngine(disk_bytes=1000)
    put(engine, [(b"a", b"x" * 500)])
    await engine.sync()
    assert engine.disk_free_bytes() == 1000 - 501
    with pytest.raises(StorageError, match="no space"):
        put(engine, [(b"b", b"1"), (b"c", b"x" * 500)])
    again = engine.crash(Random(1))
    assert [key for key, _ in stored(again).items()] == [b"a"]


async def test_a_flipped_bit_stays_flipped() -> None:
    engine = MemoryEngine()
    put(engine, [(b"a", b"\x00\x00")])
    engine.flip_bit(b"a", 9)
    assert engine.get(b"a") == b"\x00\x02"
    await engine.sync()
    assert engine.crash(Random(1)).get(b"a") == b"\x00\x02"
