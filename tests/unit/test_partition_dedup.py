"""dedup_id: a window of ids of stateless callers (contract "Produce", rule R16)."""

from __future__ import annotations

from node.partition.commands import (
    Append,
    Appended,
    Configure,
    DedupOverflow,
    Reason,
    Refused,
    Reply,
    Settings,
    Stamp,
)
from node.partition.machine import PartitionMachine


class Partition:
    def __init__(self, settings: Settings | None = None) -> None:
        self.machine = PartitionMachine()
        self.now_ms = 1_000
        if settings is not None:
            self.configure(settings)

    def configure(self, settings: Settings) -> None:
        self._apply(Configure(Stamp(self.now_ms, self.now_ms), settings))

    def produce(self, dedup_id: str, *, expected_next_offset: int | None = None) -> Reply:
        return self._apply(
            Append(
                Stamp(self.now_ms, self.now_ms),
                b"batch",
                1,
                dedup_id=dedup_id.encode(),
                expected_next_offset=expected_next_offset,
            )
        )

    def offset(self, dedup_id: str) -> int:
        reply = self.produce(dedup_id)
        assert isinstance(reply, Appended), reply
        return reply.base_offset

    def _apply(self, command: Append | Configure) -> Reply:
        return self.machine.apply(self.machine.applied_index + 1, 1, command)[0]


def test_a_second_record_with_the_same_id_is_not_stored() -> None:
    partition = Partition()
    partition.produce("a")
    partition.now_ms += 70
    partition.produce("b")
    assert partition.produce("a") == Appended(0, 1, 1_000, duplicate=True)
    assert partition.produce("b") == Appended(1, 1, 1_070, duplicate=True)
    assert partition.machine.next_offset == 2


def test_the_oldest_id_is_forgotten_when_the_window_is_full() -> None:
    partition = Partition(Settings(version=1, dedup_window_count=3))
    assert [partition.offset(i) for i in "abcd"] == [0, 1, 2, 3]
    assert partition.machine.dedup.count == 3
    assert [partition.offset(i) for i in "bcd"] == [1, 2, 3]
    assert partition.offset("a") == 4


def test_a_repeat_of_the_oldest_id_in_a_full_window_is_a_repeat() -> None:
    partition = Partition(Settings(version=1, dedup_window_count=3))
    for dedup_id in "abc":
        partition.produce(dedup_id)
    assert partition.offset("a") == 0
    assert partition.machine.next_offset == 3


def test_a_refused_append_forgets_no_id() -> None:
    partition = Partition(Settings(version=1, dedup_window_count=2))
    partition.produce("a")
    partition.produce("b")
    refused = partition.produce("c", expected_next_offset=9)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.EXPECTED_OFFSET
    assert partition.offset("a") == 0
    assert partition.offset("c") == 2


def test_a_full_window_refuses_when_the_topic_says_so() -> None:
    partition = Partition(
        Settings(1, dedup_window_count=2, dedup_overflow=DedupOverflow.REFUSE, dedup_window_ms=500)
    )
    partition.produce("a")
    partition.now_ms += 100
    partition.produce("b")
    refused = partition.produce("c")
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.DEDUP_FULL
    assert partition.offset("a") == 0
    partition.now_ms += 400
    assert partition.offset("c") == 2
    assert partition.offset("b") == 1


def test_an_id_counts_for_dedup_window_ms_of_log_time() -> None:
    partition = Partition(Settings(version=1, dedup_window_ms=1_000))
    partition.produce("a")
    partition.now_ms += 999
    assert partition.offset("a") == 0
    partition.now_ms += 1
    assert partition.offset("a") == 1
    partition.now_ms += 999
    assert partition.offset("a") == 1


def test_a_window_made_smaller_shrinks_by_steps_and_keeps_the_newest() -> None:
    partition = Partition()
    for number in range(3_000):
        partition.produce(f"id-{number}")
    partition.configure(Settings(version=1, dedup_window_count=10))
    counts = []
    for number in range(100):
        partition.produce(f"later-{number}")
        counts.append(partition.machine.dedup.count)
    # Each append drops 64 at most and adds one: no apply takes long.
    assert counts[0] == 3_000 - 64 + 1
    assert counts[-1] == 10
    assert partition.offset("later-90") == 3_090
    assert partition.machine.next_offset == 3_100


def test_a_window_of_none_refuses_ids_by_name() -> None:
    partition = Partition(Settings(version=1, dedup_window_count=0))
    refused = partition.produce("a")
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.FEATURE_NOT_ENABLED
    assert refused.details == {"feature": "dedup_id"}
    assert partition.machine.next_offset == 0


def test_the_span_really_covered_is_known() -> None:
    partition = Partition(Settings(version=1, dedup_window_count=2))
    assert partition.machine.dedup.oldest_log_time_ms is None
    partition.produce("a")
    partition.now_ms += 10
    partition.produce("b")
    assert partition.machine.dedup.oldest_log_time_ms == 1_000
    partition.produce("c")
    assert partition.machine.dedup.oldest_log_time_ms == 1_010
