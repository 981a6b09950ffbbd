"""The demo tells the truth: each kind of wrong that a broker can do shows in its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node.demo.__main__ import all_is_good
from node.demo.follow import Follower, OffsetsWrong
from node.demo.outage import Acknowledgements
from node.demo.source import Source
from node.demo.verify import Verdict, compare
from quorumq.records import Record

MODULES = {
    b"abc": [b"import os\n", b"\n", b"x = 1\n", b"\n", b"y = 2\n"],
    b"re": [b"def f():\n", b"    pass\n"],
}
SOURCE = Source(Path("lib"), MODULES, records=7, bytes=42)


def verdict(**changed: list[bytes]) -> Verdict:
    """Of a read in which these modules came out otherwise."""
    read = {name: list(lines) for name, lines in MODULES.items()}
    read.update({name.encode(): lines for name, lines in changed.items()})
    return compare(SOURCE, read)


def counts(judged: Verdict) -> tuple[int, int, int]:
    return judged.lost, judged.duplicated, judged.out_of_order


def test_what_was_published_is_good() -> None:
    judged = verdict()
    assert judged.is_good
    assert counts(judged) == (0, 0, 0)
    assert judged.read == 7


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"def f():\n"], (1, 0, 0)),
        ([], (2, 0, 0)),
        ([b"def f():\n", b"    pass\n", b"    pass\n"], (0, 1, 0)),
        ([b"def f():\n", b"def f():\n", b"    pass\n"], (0, 1, 0)),
        ([b"    pass\n", b"def f():\n"], (0, 0, 2)),
        ([b"    pass\n", b"def f():\n", b"    pass\n"], (0, 1, 2)),
    ],
    ids=["lost at the end", "all lost", "duplicated", "duplicated within", "swapped", "both"],
)
def test_lost_duplicated_and_disordered_records_are_counted(
    lines: list[bytes], expected: tuple[int, int, int]
) -> None:
    judged = verdict(re=lines)
    assert counts(judged) == expected
    assert not judged.is_good
    assert judged.read_hash != judged.source_hash


def test_equal_lines_are_told_apart_by_their_number_only() -> None:
    """A module has many empty lines; losing one is a loss."""
    assert counts(verdict(abc=[b"import os\n", b"\n", b"x = 1\n", b"y = 2\n"])) == (1, 0, 0)


def test_other_content_is_a_loss_a_surplus_and_another_hash() -> None:
    judged = verdict(re=[b"def f():\n", b"    pazz\n"])
    assert counts(judged) == (1, 1, 0)
    assert judged.read_hash != judged.source_hash


def test_a_key_that_nobody_sent_is_a_surplus() -> None:
    judged = verdict(stranger=[b"hello\n"])
    assert counts(judged) == (0, 1, 0)
    assert not judged.is_good


def test_the_hash_knows_to_which_module_a_line_belongs() -> None:
    """Nothing is lost or surplus over all modules together, and yet it is wrong."""
    moved = verdict(abc=[*MODULES[b"abc"], b"def f():\n"], re=[b"    pass\n"])
    assert moved.read == 7
    assert counts(moved) == (1, 1, 0)
    assert moved.read_hash != moved.source_hash


def test_only_a_whole_and_replicated_copy_is_good() -> None:
    """What the exit status stands for."""
    assert all_is_good(verdict(), in_sync=18)
    assert not all_is_good(verdict(), in_sync=17)
    assert not all_is_good(verdict(re=[]), in_sync=18)


class Log:
    """A reader that gives these batches."""

    def __init__(self, *batches: list[Record]) -> None:
        self._batches = batches

    async def batches(self) -> Any:
        for records in self._batches:
            yield Batch(records)


class Batch:
    def __init__(self, records: list[Record]) -> None:
        self.partition = records[0].partition
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> list[Record]:
        return self._records


def at(offset: int, value: bytes = b"v", *, partition: int = 0) -> Record:
    return Record("t", partition, offset, b"k", value, (), 0, 0)


async def test_the_follower_keeps_what_it_read_and_knows_when_it_has_all() -> None:
    log = Log([at(0, b"a"), at(1, b"b")], [at(0, b"c", partition=1)], [at(2, b"d")])
    follower = Follower(log)  # type: ignore[arg-type]
    follower.read_up_to({0: 3, 1: 1, 2: 0})
    assert not follower.reached.is_set()
    await follower.run()
    assert follower.reached.is_set()
    assert follower.count == 4
    assert follower.values == {b"k": [b"a", b"b", b"c", b"d"]}


@pytest.mark.parametrize("offset", [0, 2, 5])
async def test_the_follower_refuses_an_offset_that_came_twice_or_was_left_out(offset: int) -> None:
    follower = Follower(Log([at(0)], [at(offset)]))  # type: ignore[arg-type]
    with pytest.raises(OffsetsWrong):
        await follower.run()


def test_the_time_without_an_acknowledgement_is_that_of_the_worst_partition_killed() -> None:
    acknowledgements = Acknowledgements()
    acknowledgements.add(0, sent_at=0.0, now=1.0)
    acknowledgements.killed([0, 1], now=10.0)
    acknowledgements.add(2, sent_at=10.0, now=19.0)  # led by somebody else
    acknowledgements.add(0, sent_at=9.9, now=10.1)  # was under way when the leader died
    acknowledgements.add(0, sent_at=10.2, now=10.9)
    assert not acknowledgements.recovered.is_set()
    acknowledgements.add(1, sent_at=10.0, now=11.5)
    assert acknowledgements.recovered.is_set()
    assert acknowledgements.longest_gap_ms() == pytest.approx(1_500)
