"""What every engine does: cluster.interfaces.Engine, held to the same by the real one and by the
one that the simulator runs with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cluster.interfaces import StorageError
from tests.conformance.storage_rigs import RIGS, Rig, put, stored


@pytest.fixture(params=RIGS, ids=lambda rig: rig.name)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made: Rig = request.param(tmp_path)
    yield made
    made.close()


def test_a_write_is_seen_at_once_and_in_order(rig: Rig) -> None:
    engine = rig.engine
    batch = engine.new_batch()
    batch.put(b"a", b"1")
    batch.put(b"b", b"1")
    batch.put(b"a", b"2")
    batch.delete(b"b")
    batch.put(b"c", b"")
    assert engine.get(b"a") is None
    engine.write(batch)
    assert (engine.get(b"a"), engine.get(b"b"), engine.get(b"c")) == (b"2", None, b"")


def test_delete_range_has_an_open_end_and_spares_what_is_put_after_it(rig: Rig) -> None:
    engine = rig.engine
    put(engine, [(bytes((n,)), b"old") for n in range(10)])
    batch = engine.new_batch()
    batch.delete_range(b"\x02", b"\x07")
    batch.put(b"\x05", b"new")
    engine.write(batch)
    assert [key[0] for key in stored(engine)] == [0, 1, 5, 7, 8, 9]
    assert engine.get(b"\x05") == b"new"


@pytest.mark.parametrize("seed", range(5))
def test_scans_agree_with_a_sorted_list(rig: Rig, seed: int) -> None:
    random, engine = Random(seed), rig.engine
    model: dict[bytes, bytes] = {}
    for step in range(300):
        batch = engine.new_batch()
        for _ in range(random.randint(1, 20)):
            key = random.randbytes(random.randint(1, 2))
            if random.random() < 0.7:
                value = random.randbytes(random.choice((3, 5000)))
                batch.put(key, value)
                model[key] = value
            elif random.random() < 0.9:
                batch.delete(key)
                model.pop(key, None)
            else:
                end = key + b"\x40"
                batch.delete_range(key, end)
                model = {k: v for k, v in model.items() if not key <= k < end}
        engine.write(batch)
        begin, end = sorted(random.randbytes(random.randint(1, 3)) for _ in range(2))
        expected = sorted((k, v) for k, v in model.items() if begin <= k < end)
        assert list(engine.scan(begin, end)) == expected, f"step {step}"
        assert list(engine.scan(begin, end, reverse=True)) == expected[::-1], f"step {step}"
        assert all(engine.get(key) == value for key, value in expected)


def test_bounds_outlive_the_objects_that_named_them(rig: Rig) -> None:
    """A scan has its own copy of the bounds, however late it is read."""
    put(rig.engine, [(b"k%03d" % n, b"v") for n in range(100)])
    random = Random(1)
    for _ in range(500):
        scan = rig.engine.scan(b"k%03d" % 10, b"k%03d" % 20)
        reverse = rig.engine.scan(b"k%03d" % 10, b"k%03d" % 20, reverse=True)
        junk = [random.randbytes(random.choice((4, 8, 16, 24))) for _ in range(40)]
        assert [key for key, _ in scan] == [b"k%03d" % n for n in range(10, 20)]
        assert [key for key, _ in reverse] == [b"k%03d" % n for n in range(19, 9, -1)]
        assert junk


def test_a_scan_is_a_view_of_the_moment_of_the_call(rig: Rig) -> None:
    put(rig.engine, [(b"a", b"1"), (b"b", b"1"), (b"c", b"1")])
    scans = [rig.engine.scan(b"a", b"z", reverse=reverse) for reverse in (False, True)]
    assert next(scans[0]) == (b"a", b"1")
    batch = rig.engine.new_batch()
    batch.delete(b"b")
    batch.put(b"c", b"2")
    batch.put(b"d", b"2")
    rig.engine.write(batch)
    assert list(scans[0]) == [(b"b", b"1"), (b"c", b"1")]
    assert list(scans[1]) == [(b"c", b"1"), (b"b", b"1"), (b"a", b"1")]


def test_a_snapshot_is_a_view_of_its_moment(rig: Rig) -> None:
    put(rig.engine, [(b"k%03d" % n, b"%d" % n) for n in range(100)])
    snapshot = rig.engine.snapshot()
    before = stored(rig.engine)
    batch = rig.engine.new_batch()
    batch.delete_range(b"k010", b"k050")
    batch.put(b"k001", b"new")
    batch.put(b"k0011", b"new")
    rig.engine.write(batch)
    assert dict(snapshot.scan(b"", b"\xff" * 8)) == before
    assert snapshot.get(b"k001") == b"1"
    assert snapshot.get(b"k0011") is None
    assert snapshot.get(b"k020") == b"20"
    assert snapshot.get(b"zzz") is None
    assert rig.engine.get(b"k020") is None
    snapshot.close()
    with pytest.raises(StorageError):
        snapshot.get(b"k001")
    with pytest.raises(StorageError):
        list(snapshot.scan(b"", b"z"))


@pytest.mark.parametrize("seed", range(5))
def test_scans_of_one_snapshot_do_not_disturb_each_other(rig: Rig, seed: int) -> None:
    random = Random(seed)
    put(rig.engine, [(b"k%03d" % n, b"%d" % n) for n in range(0, 200, 2)])
    snapshot = rig.engine.snapshot()
    scans, expected = [], []
    got: list[list[tuple[bytes, bytes]]] = []
    for _ in range(6):
        begin, end = sorted((b"k%03d" % random.randint(0, 200), b"k%03d" % random.randint(0, 200)))
        reverse = random.random() < 0.5
        scans.append(snapshot.scan(begin, end, reverse=reverse))
        rows = [(b"k%03d" % n, b"%d" % n) for n in range(0, 200, 2) if begin <= b"k%03d" % n < end]
        expected.append(rows[::-1] if reverse else rows)
        got.append([])
    running = list(range(len(scans)))
    while running:
        at = random.choice(running)
        row = next(scans[at], None)
        if row is None:
            running.remove(at)
        else:
            got[at].append(row)
        if random.random() < 0.3:
            assert snapshot.get(b"k010") == b"10"
    assert got == expected
    snapshot.close()


async def test_sync_covers_what_was_written_before_it(rig: Rig) -> None:
    put(rig.engine, [(b"a", b"1")])
    syncing = asyncio.ensure_future(rig.sync())
    await asyncio.sleep(0)
    put(rig.engine, [(b"b", b"1")])
    await syncing
    rig.crash(Random(0))
    assert rig.engine.get(b"a") == b"1"


async def test_one_sync_at_a_time(rig: Rig) -> None:
    put(rig.engine, [(b"a", b"1")])
    first = asyncio.ensure_future(rig.engine.sync())
    await asyncio.sleep(0)
    with pytest.raises(AssertionError):
        await rig.engine.sync()
    await first
    await rig.engine.sync()  # nothing to do, and allowed again


@pytest.mark.parametrize("seed", range(20))
async def test_what_a_crash_leaves_is_a_prefix_that_holds_what_was_synced(
    rig: Rig, seed: int
) -> None:
    """Bug classes 1 and 13: never part of a batch, never a batch without those before it."""
    random = Random(seed)
    states: list[dict[bytes, bytes]] = [{}]
    synced = 0
    for _ in range(random.randint(1, 3)):
        if seed % 4 == 3:
            await rig.wear(random)
            await rig.sync()
            states[-1], synced = stored(rig.engine), len(states) - 1
        for _ in range(random.randint(1, 30)):
            state = dict(states[-1])
            batch = rig.engine.new_batch()
            for _ in range(random.randint(1, 5)):
                key, value = b"%02d" % random.randint(0, 40), random.randbytes(20)
                if random.random() < 0.8:
                    batch.put(key, value)
                    state[key] = value
                else:
                    batch.delete_range(b"", key)
                    state = {k: v for k, v in state.items() if k >= key}
            batch.put(b"number", b"%d" % len(states))
            state[b"number"] = b"%d" % len(states)
            rig.engine.write(batch)
            states.append(state)
            if random.random() < 0.2:
                await rig.sync()
                synced = len(states) - 1
        rig.crash(random)
        found = stored(rig.engine)
        number = int(found.get(b"number", b"0"))
        assert synced <= number < len(states)
        assert found == states[number]
        # Everything that came back is durable: a second crash takes nothing of it.
        del states[number + 1 :]
        synced = number


async def test_after_a_crash_the_engine_goes_on(rig: Rig) -> None:
    put(rig.engine, [(b"a", b"1")])
    await rig.sync()
    put(rig.engine, [(b"b", b"1")])
    rig.crash(Random(3))
    put(rig.engine, [(b"c", b"1")])
    await rig.sync()
    rig.crash(Random(3))
    assert rig.engine.get(b"a") == b"1"
    assert rig.engine.get(b"c") == b"1"


def test_a_closed_engine_refuses(rig: Rig) -> None:
    batch = rig.engine.new_batch()
    batch.put(b"a", b"1")
    rig.engine.close()
    with pytest.raises(StorageError):
        rig.engine.get(b"a")
    with pytest.raises(StorageError):
        rig.engine.write(batch)


def test_an_idle_engine_has_no_pressure(rig: Rig) -> None:
    assert rig.engine.pressure == 0.0
