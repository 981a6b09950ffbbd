"""A partition's replica on the real engine: rows, reads, trims, checkpoints, the leader's clock
(house §4.1-4.5, "Time"; rules R7, R15)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.interfaces import CheckpointMeta
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, EntryKind
from node import codec
from node.metrics import NodeCounters
from node.partition.commands import (
    DAY_MS,
    Append,
    Appended,
    Command,
    ExpireProducers,
    OpenProducer,
    ProducerSequence,
    Settings,
    Stamp,
    Trim,
)
from node.replica import PartitionReplica, row_bytes, row_columns, row_features
from node.storage.checkpoints import CheckpointStore
from node.storage.engine import RocksEngine
from node.storage.raft_log import RaftLog

GROUP = 7
WALL_MS = 1_760_000_000_000


@dataclass
class SetClock:
    """cluster.interfaces.Clock that the test sets."""

    wall: int = WALL_MS
    monotonic: int = 50

    def wall_ms(self) -> int:
        return self.wall

    def monotonic_ms(self) -> int:
        return self.monotonic


class Node:
    """One replica with its log and checkpoints on an engine of its own; turns are taken by hand."""

    def __init__(self, folder: Path) -> None:
        self.engine = RocksEngine.create(folder / "data", mark_path=folder / "mark")
        self.clock = SetClock()
        self.clock_offset_ms = 0
        self.start()

    def start(self) -> None:
        """As after a restart: what is on the engine, nothing in memory."""
        self.log = RaftLog(self.engine, GROUP)
        self.checkpoints = CheckpointStore(self.engine, GROUP)
        self.counters = NodeCounters()
        self.replica = PartitionReplica(
            group_id=GROUP,
            reader=self.engine,
            log=self.log,
            clock=self.clock,
            clock_offset_ms=lambda: self.clock_offset_ms,
            clock_skew_ms_max=500,
            counters=self.counters,
        )
        meta = self.checkpoints.meta()
        self.replica.restore(meta, self.checkpoints.segments() if meta else ())

    def lead(self, term: int = 1) -> None:
        self.replica.leadership_changed(term=term, is_leader=True)

    def write(self, *commands: Command | None) -> list[object]:
        """Append the commands (None: an entry without) to the log, and apply them."""
        entries = []
        for index, command in enumerate(commands, self.log.last_index + 1):
            kind = EntryKind.NOOP if command is None else EntryKind.COMMAND
            data = b"" if command is None else codec.encode(command)
            entries.append(Entry.create(index=index, term=1, kind=kind, data=data))
        batch = self.engine.new_batch()
        self.log.append(batch, entries)
        self.engine.write(batch)
        return self.apply(entries)

    def apply(self, entries: list[Entry]) -> list[object]:
        batch = self.engine.new_batch()
        replies = self.replica.apply(entries, batch)
        self.engine.write(batch)
        return replies

    def produce(self, count: int, body: bytes = b"batch", *, created_ms: int = 0) -> int:
        command = Append(self.replica.stamp(), body, count)
        if created_ms:
            command.created_count = count
            command.created_min_ms = command.created_max_ms = created_ms
        (reply,) = self.write(command)
        assert isinstance(reply, Appended)
        return reply.base_offset

    def trim(self, first_offset: int) -> None:
        self.write(Trim(self.replica.stamp(), first_offset))

    def checkpoint(self) -> CheckpointMeta:
        frozen = self.replica.freeze()
        meta = CheckpointMeta(frozen.applied_index, 1, Configuration.of([1]), frozen.live_index)
        batch = self.engine.new_batch()
        self.checkpoints.put(batch, meta, frozen.changed_segments())
        self.engine.write(batch)
        return meta

    def replay(self) -> None:
        low = self.replica.machine.applied_index + 1
        if low <= self.log.last_index:
            self.apply(self.log.entries(low, self.log.last_index, 1 << 30))

    def bodies(self, offset: int, bytes_max: int = 1 << 20) -> list[tuple[int, bytes]]:
        stored = self.replica.read(offset, bytes_max=bytes_max)
        return [(batch.row.base_offset, batch.batch) for batch in stored]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.lead()
    yield made
    made.engine.close()


def test_what_was_appended_is_read_as_the_same_bytes(node: Node) -> None:
    assert [node.produce(2, b"one"), node.produce(3, b"two"), node.produce(1, b"three")] == [
        0,
        2,
        5,
    ]
    assert node.bodies(0) == [(0, b"one"), (2, b"two"), (5, b"three")]
    assert node.bodies(4) == [(2, b"two"), (5, b"three")]
    assert node.bodies(6) == []


def test_reading_is_bounded_and_gives_one_batch_at_least(node: Node) -> None:
    for body in (b"a" * 100, b"b" * 100, b"c" * 100):
        node.produce(1, body)
    assert [base for base, _ in node.bodies(0, bytes_max=200)] == [0, 1]
    assert [base for base, _ in node.bodies(0, bytes_max=199)] == [0]
    assert [base for base, _ in node.bodies(1, bytes_max=0)] == [1]
    stored = node.replica.read(0, bytes_max=1_000, end_offset=2)
    assert [batch.row.base_offset for batch in stored] == [0, 1]


def test_a_row_says_all_about_its_batch(node: Node) -> None:
    command = Append(node.replica.stamp(), b"body", 2, features=2, columns=b"packed")
    node.write(None, command)
    row = node.replica.find(1)
    assert row is not None
    assert (row.base_offset, row.next_offset, row.entry_index) == (0, 2, 2)
    assert (row_bytes(row), row_features(row), row_columns(row)) == (4, 2, b"packed")
    assert row.append_time_ms == row.created_min_ms == WALL_MS
    assert node.replica.find(2) is None


def test_a_repeat_has_no_row_and_no_second_record(node: Node) -> None:
    """Bug class 36."""
    command = Append(node.replica.stamp(), b"body", 2, ProducerSequence(9, 1, 0))
    first, again = node.write(command, command)
    assert isinstance(again, Appended)
    assert again.duplicate
    assert first == Appended(0, 2, WALL_MS)
    assert node.bodies(0) == [(0, b"body")]


def test_entries_of_other_kinds_have_no_reply(node: Node) -> None:
    noop, appended = node.write(None, Append(node.replica.stamp(), b"", 1))
    assert noop is None
    assert isinstance(appended, Appended)
    assert node.replica.machine.applied_index == 2


def test_trimmed_records_are_gone_and_their_entries_may_go(node: Node) -> None:
    for _ in range(4):
        node.produce(2)
    node.trim(5)
    assert [base for base, _ in node.bodies(0)] == [4, 6]
    assert node.replica.find(4) is None
    assert node.replica.find(5) is not None
    first = node.replica.index.first()
    assert first is not None
    assert first.base_offset == 4
    assert node.replica.freeze().live_index == 3


def test_with_nothing_live_all_applied_entries_may_go(node: Node) -> None:
    assert node.replica.freeze().live_index == 1
    node.produce(2)
    node.trim(2)
    assert node.replica.freeze().live_index == 3
    assert node.replica.index.first() is None
    assert node.replica.stored_bytes() == 0


def test_append_and_trim_in_one_turn(node: Node) -> None:
    """The row is still in the batch when the trim wants to know about it."""
    stamp = node.replica.stamp()
    node.write(Append(stamp, b"a", 2), Append(stamp, b"b", 2), Trim(stamp, 3))
    assert node.bodies(0) == [(2, b"b")]
    assert node.replica.freeze().live_index == 2
    node.write(Append(stamp, b"c", 1), Trim(stamp, 5))
    assert node.bodies(0) == []
    assert node.replica.index.first() is None


def test_r15_a_restart_from_checkpoint_and_log_gives_the_same_state(node: Node) -> None:
    """Bug class 7: rows that are ahead of the checkpoint are written again as they were."""
    node.produce(2, b"one")
    node.write(OpenProducer(node.replica.stamp(), 5, 1))
    node.checkpoint()
    node.produce(3, b"two")
    node.trim(1)
    node.produce(1, b"three")
    before = dict(node.replica.machine.freeze().changed_segments())
    node.start()
    assert node.replica.machine.next_offset == 2
    assert node.bodies(0) == [(0, b"one")], "rows beyond the state are not shown"
    assert node.replica.offset_appended_at(0) == 0
    node.replay()
    assert node.replica.machine.freeze().applied_index == 5
    assert node.bodies(0) == [(0, b"one"), (2, b"two"), (5, b"three")]
    node.start()
    node.replay()
    after = dict(node.replica.machine.freeze().changed_segments())
    assert after[b"core"] == before[b"core"]


def test_replay_before_a_trim_deletes_nothing_the_checkpoint_calls_live(node: Node) -> None:
    for _ in range(3):
        node.produce(1)
    node.checkpoint()
    node.trim(2)
    node.start()
    frozen = node.replica.freeze()
    assert (frozen.applied_index, frozen.live_index) == (3, 1)


def test_history_is_what_a_replica_that_catches_up_lacks(node: Node, tmp_path: Path) -> None:
    for count in (1, 2, 3, 4):
        node.write(None)
        node.produce(count, b"%d" % count)
    node.trim(2)
    snapshot = node.engine.snapshot()
    node.produce(9)
    assert [index for index, _, _ in node.replica.history(snapshot, 0)] == [4, 6, 8]
    assert [index for index, _, _ in node.replica.history(snapshot, 4)] == [6, 8]
    assert [index for index, _, _ in node.replica.history(snapshot, 5)] == [6, 8]
    assert [index for index, _, _ in node.replica.history(snapshot, 8)] == []
    rows = [(key, value) for _, key, value in node.replica.history(snapshot, 0)]
    snapshot.close()
    (tmp_path / "other").mkdir()
    other = Node(tmp_path / "other")
    batch = other.engine.new_batch()
    for key, value in rows:
        batch.put(key, value)
    other.engine.write(batch)
    assert list(other.replica.index.rows(0)) == list(node.replica.index.rows(0))[:3]
    other.engine.close()


def test_search_by_append_time(node: Node) -> None:
    for second in range(3):
        node.clock.wall = WALL_MS + second * 1_000
        node.produce(2)
    assert node.replica.offset_appended_at(0) == 0
    assert node.replica.offset_appended_at(WALL_MS) == 0
    assert node.replica.offset_appended_at(WALL_MS + 1) == 2
    assert node.replica.offset_appended_at(WALL_MS + 2_000) == 4
    assert node.replica.offset_appended_at(WALL_MS + 2_001) == 6
    node.trim(3)
    assert node.replica.offset_appended_at(0) == 3


def test_search_by_creation_time_goes_on_where_it_stopped(node: Node) -> None:
    for created_ms in (10, 5, 30, 20):
        node.produce(1, created_ms=created_ms)
    search = node.replica.search_created(15, from_offset=0, rows_max=2)
    assert (search.row, search.resume_offset) == (None, 2)
    search = node.replica.search_created(15, from_offset=2, rows_max=2)
    assert search.row is not None
    assert (search.row.base_offset, search.resume_offset) == (2, 3)
    search = node.replica.search_created(31, from_offset=0)
    assert (search.row, search.resume_offset) == (None, None)


def test_retention_by_age(node: Node) -> None:
    for second in range(4):
        node.clock.wall = WALL_MS + second * 1_000
        node.produce(2)
    assert node.replica.due_trim(retention_ms=0, retention_bytes=0) is None
    assert node.replica.due_trim(retention_ms=3_000, retention_bytes=0) is None
    node.clock.wall += 1
    trim = node.replica.due_trim(retention_ms=3_000, retention_bytes=0)
    assert trim is not None
    assert trim.first_offset == 2
    node.clock.wall += 60_000
    trim = node.replica.due_trim(retention_ms=3_000, retention_bytes=0)
    assert trim is not None
    assert trim.first_offset == 8


def test_retention_by_bytes_keeps_the_last_batch(node: Node) -> None:
    for _ in range(4):
        node.produce(2, bytes(100))
    assert node.replica.stored_bytes() == 400
    assert node.replica.due_trim(retention_ms=0, retention_bytes=400) is None
    trim = node.replica.due_trim(retention_ms=0, retention_bytes=399)
    assert trim is not None
    assert trim.first_offset == 2
    node.write(trim)
    assert node.replica.stored_bytes() == 300
    trim = node.replica.due_trim(retention_ms=0, retention_bytes=1)
    assert trim is not None
    assert trim.first_offset == 6


def test_idle_producers_are_found_within_a_round(node: Node) -> None:
    stamp = node.replica.stamp()
    node.write(*(OpenProducer(stamp, producer_id, 1) for producer_id in (1, 300, 301)))
    node.clock.monotonic += 7 * DAY_MS - 1
    node.write(OpenProducer(node.replica.stamp(), 301, 2))
    assert due_in_a_round(node) == []
    node.clock.monotonic += 1
    due = due_in_a_round(node)
    assert sorted(i for command in due for i in command.producer_ids) == [1, 300]
    node.write(*due)
    assert node.replica.machine.producers.count == 1


def due_in_a_round(node: Node) -> list[ExpireProducers]:
    found = [node.replica.due_expiry() for _ in range(16)]
    return [command for command in found if command is not None]


def test_settings_are_brought_once(node: Node) -> None:
    command = node.replica.due_configure(Settings(version=3, dedup_window_count=9))
    assert command is not None
    node.write(command)
    assert node.replica.machine.settings.dedup_window_count == 9
    assert node.replica.due_configure(Settings(version=3)) is None
    assert node.replica.due_configure(Settings(version=2)) is None


def test_log_time_goes_on_from_the_last_applied_and_by_the_leaders_own_clock(node: Node) -> None:
    """House "Time": no wall clock moves it, and time without a leader does not count."""
    node.write(Append(Stamp(10_000, WALL_MS), b"", 1))
    node.replica.leadership_changed(term=2, is_leader=False)
    node.clock.monotonic += 5_000
    node.lead(3)
    assert node.replica.stamp().log_time_ms == 10_000
    node.clock.monotonic += 7
    node.clock.wall -= 86_400_000
    assert node.replica.stamp().log_time_ms == 10_007


def test_wall_time_never_falls(node: Node) -> None:
    assert node.replica.stamp().wall_time_ms == WALL_MS
    node.clock.wall -= 1_000
    assert node.replica.stamp().wall_time_ms == WALL_MS
    node.write(Append(Stamp(0, WALL_MS + 9), b"", 1))
    node.lead(2)
    assert node.replica.stamp().wall_time_ms == WALL_MS + 9


def test_a_leader_with_a_wrong_clock_stamps_the_median_and_counts_it(node: Node) -> None:
    node.clock_offset_ms = 500
    assert node.replica.stamp().wall_time_ms == WALL_MS
    assert node.counters.skewed_stamps == 0
    node.clock.wall += 3_600_000
    node.clock_offset_ms = 3_600_000
    assert node.replica.stamp().wall_time_ms == WALL_MS
    assert node.counters.skewed_stamps == 1


def test_only_a_leader_stamps(node: Node) -> None:
    node.replica.leadership_changed(term=2, is_leader=False)
    with pytest.raises(AssertionError, match="without leading"):
        node.replica.stamp()


def test_listeners_hear_of_new_offsets_and_leaders(node: Node) -> None:
    heard: list[int] = []
    node.replica.listeners.append(lambda: heard.append(node.replica.machine.next_offset))
    node.produce(2)
    node.write(None)
    node.write(OpenProducer(node.replica.stamp(), 5, 1))
    node.trim(1)
    node.replica.leadership_changed(term=2, is_leader=False)
    assert heard == [2, 2, 2]


def test_a_command_nobody_knows_stops_the_replica(node: Node) -> None:
    entry = Entry.create(index=1, term=1, kind=EntryKind.COMMAND, data=b"\x0d\x05\x00\x00\x00")
    with pytest.raises(codec.UnknownCommand):
        node.apply([entry])
