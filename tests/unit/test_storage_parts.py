"""The small parts under the Raft log, each against the plainest thing that does the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.raft.configuration import Configuration
from cluster.raft.messages import HardState
from node.storage import keys, log_meta
from node.storage.durable_mark import DurableMark
from node.storage.log_meta import LogMeta, Segment
from node.storage.log_sizes import LogSizes
from node.storage.tail_cache import ENTRY_OVERHEAD_BYTES, TailBudget, TailCache
from node.storage.term_runs import TermRuns
from tests.conformance.storage_rigs import command
from tests.simulation.memory_engine import MemoryBatch

U64 = st.integers(0, 2**64 - 1)


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=20), st.binary(min_size=1, max_size=2))
def test_prefix_end_is_the_first_key_after_the_prefix(found: list[bytes], prefix: bytes) -> None:
    if prefix.strip(b"\xff") == b"":
        with pytest.raises(AssertionError):
            keys.prefix_end(prefix)
        return
    end = keys.prefix_end(prefix)
    assert [k for k in found if prefix <= k < end] == [k for k in found if k.startswith(prefix)]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), U64), min_size=1))
def test_entry_keys_sort_as_their_numbers(places: list[tuple[int, int]]) -> None:
    made = [keys.index_key(keys.entry_prefix(3, g), i) for g, i in places]
    assert [k for _, k in sorted(zip(places, made, strict=True))] == sorted(made)
    begin, end = keys.group_bounds(3)
    assert all(begin <= key < end for key in made)


def test_the_node_wide_row_lies_outside_of_all_groups() -> None:
    assert keys.group_bounds(2**64 - 2)[1] <= keys.COMMIT_NUMBER
    with pytest.raises(AssertionError):
        keys.group_key(2**64 - 1, keys.ENTRY)


@given(U64, U64, U64, st.lists(st.tuples(st.integers(0, 2**32 - 1), U64), min_size=1))
def test_small_rows_survive_and_every_flipped_bit_is_noticed(
    one: int, two: int, three: int, segments: list[tuple[int, int]]
) -> None:
    meta = LogMeta(
        one, two, (three, Configuration.of([1, 2])), tuple(Segment(*s) for s in segments)
    )
    state = HardState(one, two, three)
    assert LogMeta.decode(meta.encode()) == meta
    assert log_meta.decode_hard_state(log_meta.encode_hard_state(state)) == state
    assert log_meta.decode_last_index(log_meta.encode_last_index(one)) == one
    row = meta.encode()
    for at in range(0, 8 * len(row), 7):
        changed = bytearray(row)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError, match="CRC"):
            LogMeta.decode(bytes(changed))
    with pytest.raises(ValueError, match="CRC"):
        LogMeta.decode(b"")


@pytest.mark.parametrize("decode", [log_meta.decode_hard_state, log_meta.decode_last_index])
def test_a_row_of_another_kind_is_refused(decode: object) -> None:
    with pytest.raises(ValueError, match="not a"):
        decode(log_meta.seal(b"\x01"))  # type: ignore[operator]
    with pytest.raises(ValueError, match="version"):
        log_meta.decode_last_index(log_meta.seal(b"\x09" + b"\0" * 8))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 5), st.integers(0, 2)),
            st.tuples(st.just("truncate"), st.integers(0, 4), st.just(0)),
            st.tuples(st.just("drop"), st.integers(0, 4), st.just(0)),
        )
    )
)
def test_term_runs_agree_with_a_list(steps: list[tuple[str, int, int]]) -> None:
    runs, terms, term, first = TermRuns(), {}, 1, 1
    last = 0
    for act, count, rise in steps:
        if act == "append":
            term += rise
            for _ in range(count):
                last += 1
                runs.append(last, term)
                terms[last] = term
        elif act == "truncate":
            cut = max(first, last + 1 - count)
            runs.truncate(cut)
            terms = {i: t for i, t in terms.items() if i < cut}
            last = cut - 1
        else:
            first = min(last + 1, first + count)
            runs.drop_below(first)
            terms = {i: t for i, t in terms.items() if i >= first}
        assert [runs.at(index) for index in sorted(terms)] == [terms[i] for i in sorted(terms)]


def test_term_runs_refuse_a_falling_term() -> None:
    runs = TermRuns()
    runs.append(1, 5)
    with pytest.raises(AssertionError):
        runs.append(2, 4)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 3000), st.integers(0, 2 << 20)),
            st.tuples(st.just("truncate"), st.integers(0, 5000), st.just(0)),
            st.tuples(st.just("below"), st.integers(0, 5000), st.just(0)),
            st.tuples(st.just("hole"), st.integers(0, 5000), st.integers(0, 2000)),
            st.tuples(st.just("again"), st.integers(0, 5000), st.just(0)),
        ),
        max_size=30,
    )
)
def test_log_sizes_stay_consistent(steps: list[tuple[str, int, int]]) -> None:
    sizes, last = LogSizes(1), 0
    for act, one, two in steps:
        before = sizes.bytes
        if act == "add":
            last += one
            sizes.add(last, two)
            assert sizes.bytes == before + two
        elif act == "truncate":
            last = max(sizes.low - 1, last - one)
            sizes.truncate(last + 1)
            assert sizes.bytes <= before
        elif act == "below":
            sizes.delete_below(min(last + 1, sizes.low + one))
            assert sizes.bytes <= before
        elif act == "hole":
            sizes.delete(min(last, sizes.low + one), min(last, sizes.low + one + two))
            assert sizes.bytes <= before
        else:
            sizes = LogSizes.decode(sizes.encode(last + 1))
            assert sizes.bytes == before
        assert sizes.bytes >= 0
        assert (sizes.below(sizes.low), sizes.below(last + 1)) == (0, sizes.bytes)
        for room in (0, sizes.bytes // 3, sizes.bytes):
            start = sizes.start_of_last(room)
            assert sizes.low <= start <= last + 1
            assert sizes.bytes - sizes.below(start) <= room + 1  # shares are rounded down
    sizes.delete_below(last + 1)
    assert sizes.bytes == 0


def test_log_sizes_know_what_a_part_of_the_history_held() -> None:
    sizes = LogSizes(1)
    for at in range(1, 101):
        sizes.add(at * 100, 2 << 20 if at <= 50 else 1 << 10)
    sizes.delete_below(5001)
    assert sizes.bytes == 50 << 10
    assert sizes.below(7501) == 25 << 10
    assert sizes.start_of_last(25 << 10) == 7501
    assert sizes.start_of_last(1 << 40) == 5001
    assert sizes.start_of_last(0) == 10_001
    with pytest.raises(ValueError, match="sizes"):
        LogSizes.decode(b"123")


def test_the_logs_that_rest_lose_their_cached_entries_first() -> None:
    size = 100 + ENTRY_OVERHEAD_BYTES
    budget = TailBudget(20 * size)
    resting, busy = TailCache(budget, 1), TailCache(budget, 1)
    for index in range(1, 8):
        resting.append(MemoryBatch(), [command(index, data=b"x" * 100)])
    for index in range(1, 40):
        busy.append(MemoryBatch(), [command(index, data=b"x" * 100)])
        assert budget.bytes == resting.bytes + busy.bytes <= budget.bytes_max
    assert resting.bytes == size  # only what may not have been written
    assert busy.get(39) is not None
    assert busy.get(38) is not None
    assert busy.get(1) is None


def test_what_is_not_written_is_never_let_go() -> None:
    budget = TailBudget(1)
    cache = TailCache(budget, 1)
    batch = MemoryBatch()
    cache.append(batch, [command(1), command(2)])
    cache.append(batch, [command(3)])
    assert [cache.get(index) for index in (1, 2, 3)] == [command(1), command(2), command(3)]
    cache.append(MemoryBatch(), [command(2, 2)])  # another turn: the first batch is written
    assert [cache.get(index) for index in (1, 2, 3)] == [None, command(2, 2), None]
    cache.restart(10)
    assert budget.bytes == cache.bytes == 0
    cache.append(MemoryBatch(), [command(10)])
    assert cache.get(10) == command(10)


def test_a_mark_is_found_again_and_one_torn_slot_costs_one_step(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    mark = DurableMark.create(path)
    with pytest.raises(FileExistsError):
        DurableMark.create(path)
    for number in (1, 5, 2**63):
        mark.set(number)
        again = DurableMark.open(path)
        assert again.number == number
        again.close()
    mark.sync()
    with pytest.raises(AssertionError):
        mark.set(4)
    mark.close()
    whole = path.read_bytes()
    for at in (0, 4, 15, 2048, 2055):
        torn = bytearray(whole)
        torn[at] ^= 1
        path.write_bytes(bytes(torn))
        again = DurableMark.open(path)
        assert again.number in (5, 2**63)
        again.set(2**63 + 1)
        again.close()
        again = DurableMark.open(path)
        assert again.number == 2**63 + 1
        again.close()
    for content in (b"", whole[:100], b"\0" * 4096, whole[:2048]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            DurableMark.open(path)
