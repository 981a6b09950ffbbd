"""Producer dedup in the machine: rule R16, house §4.10, bug classes 36-38 and 40."""

from __future__ import annotations

from node.partition.commands import (
    DAY_MS,
    PRODUCER_IDLE_MS_MIN,
    PRODUCER_WINDOW_BATCHES,
    PRODUCERS_MAX,
    Append,
    Appended,
    ExpireProducers,
    OpenProducer,
    ProducerOpened,
    ProducerSequence,
    ProducersExpired,
    Reason,
    Refused,
    Reply,
    Stamp,
)
from node.partition.machine import PartitionMachine


class Partition:
    """A machine and its log's last index, with a clock that the test sets."""

    def __init__(self) -> None:
        self.machine = PartitionMachine()
        self.now_ms = 1_000

    def produce(
        self,
        base_sequence: int,
        count: int = 1,
        *,
        producer_id: int = 7,
        epoch: int = 1,
        state: bytes = b"",
    ) -> Reply:
        append = Append(
            self.stamp(),
            b"batch",
            count,
            ProducerSequence(producer_id, epoch, base_sequence),
            producer_state=state,
        )
        return self.apply(append)

    def open(self, epoch: int, *, producer_id: int = 7) -> Reply:
        return self.apply(OpenProducer(self.stamp(), producer_id, epoch))

    def expire(self, *producer_ids: int, idle_ms: int = 7 * DAY_MS) -> Reply:
        return self.apply(ExpireProducers(self.stamp(), producer_ids, idle_ms))

    def stamp(self) -> Stamp:
        return Stamp(self.now_ms, 1_760_000_000_000 + self.now_ms)

    def apply(self, command: Append | OpenProducer | ExpireProducers) -> Reply:
        reply, effects = self.machine.apply(self.machine.applied_index + 1, 1, command)
        # What was not appended now has no effect, so that nobody delivers or indexes it twice.
        assert bool(effects) == (isinstance(reply, Appended) and not reply.duplicate)
        return reply


def refusal(reply: Reply) -> Refused:
    assert isinstance(reply, Refused), reply
    return reply


def appended(reply: Reply) -> Appended:
    assert isinstance(reply, Appended), reply
    return reply


def opened(reply: Reply) -> ProducerOpened:
    assert isinstance(reply, ProducerOpened), reply
    return reply


def test_r16_a_repeat_gets_the_original_offset_and_time() -> None:
    """Bug class 36: a repeat answered with anything but the original offset becomes a duplicate
    at the client."""
    partition = Partition()
    partition.produce(0, 5, producer_id=3)
    first = appended(partition.produce(0, 10))
    assert (first.base_offset, first.duplicate) == (5, False)
    partition.now_ms += 500
    partition.produce(10, 3)
    again = appended(partition.produce(0, 10))
    assert again == Appended(5, 10, first.append_time_ms, duplicate=True)
    assert partition.machine.next_offset == 18


def test_r16_the_window_holds_64_batches_in_flight() -> None:
    partition = Partition()
    for sequence in range(PRODUCER_WINDOW_BATCHES):
        partition.produce(sequence)
    offsets = [appended(partition.produce(s)).base_offset for s in range(PRODUCER_WINDOW_BATCHES)]
    assert offsets == list(range(PRODUCER_WINDOW_BATCHES))
    assert partition.machine.next_offset == PRODUCER_WINDOW_BATCHES


def test_r16_a_repeat_older_than_the_window_is_refused_and_not_stored() -> None:
    partition = Partition()
    for sequence in range(PRODUCER_WINDOW_BATCHES + 1):
        partition.produce(sequence)
    refused = refusal(partition.produce(0))
    assert refused.reason is Reason.SEQUENCE_GAP
    assert refused.expected_sequence == PRODUCER_WINDOW_BATCHES + 1
    assert refused.details == {"stored": "true"}
    assert appended(partition.produce(1)).duplicate
    assert partition.machine.next_offset == PRODUCER_WINDOW_BATCHES + 1


def test_r16_a_gap_is_refused_and_says_what_is_expected() -> None:
    partition = Partition()
    partition.produce(0, 4)
    refused = refusal(partition.produce(5))
    assert (refused.reason, refused.expected_sequence) == (Reason.SEQUENCE_GAP, 4)
    assert appended(partition.produce(4)).base_offset == 4


def test_r16_an_overlap_is_refused_as_a_whole() -> None:
    partition = Partition()
    partition.produce(0, 4)
    partition.produce(4, 4)
    for base_sequence, count, stored in ((0, 3, True), (2, 4, True), (0, 8, True), (6, 4, False)):
        refused = refusal(partition.produce(base_sequence, count))
        assert (refused.reason, refused.expected_sequence) == (Reason.SEQUENCE_GAP, 8)
        assert (refused.details == {"stored": "true"}) is stored
    assert partition.machine.next_offset == 8


def test_r18_a_retry_on_a_new_leader_meets_the_same_answer() -> None:
    """Bug class 40: the answer rests on replicated state, not on the old leader's memory."""
    entries = [
        Append(Stamp(1, 1), b"a", 2, ProducerSequence(7, 1, 0)),
        Append(Stamp(2, 2), b"b", 2, ProducerSequence(7, 1, 2)),
    ]
    old, new = PartitionMachine(), PartitionMachine()
    for index, entry in enumerate(entries, 1):
        old.apply(index, 1, entry)
        new.apply(index, 1, entry)
    retry = Append(Stamp(9, 9), b"a", 2, ProducerSequence(7, 1, 0))
    assert new.apply(3, 2, retry) == old.apply(3, 2, retry)
    assert new.apply(4, 2, retry)[0] == Appended(0, 2, 1, duplicate=True)


def test_an_unknown_producer_begins_at_sequence_0() -> None:
    partition = Partition()
    refused = refusal(partition.produce(3))
    assert (refused.reason, refused.expected_sequence) == (Reason.SEQUENCE_GAP, 0)
    assert appended(partition.produce(0)).base_offset == 0


def test_a_new_epoch_fences_what_the_older_process_has_in_flight() -> None:
    partition = Partition()
    partition.produce(0, 3, state=b"at 3")
    assert partition.open(2) == ProducerOpened(2, 2, 2, b"at 3")
    refused = refusal(partition.produce(3))
    assert refused.reason is Reason.PRODUCER_FENCED
    assert appended(partition.produce(3, epoch=2)).base_offset == 3


def test_what_landed_before_the_new_epoch_is_counted() -> None:
    partition = Partition()
    partition.produce(0, 3)
    partition.produce(3, 2)
    reply = opened(partition.open(2))
    assert (reply.last_sequence, reply.last_offset) == (4, 4)
    assert appended(partition.produce(3, 2, epoch=2)).duplicate


def test_an_epoch_is_real_only_once_opened_in_this_log() -> None:
    partition = Partition()
    partition.produce(0)
    assert refusal(partition.produce(1, epoch=2)).reason is Reason.PRODUCER_EXPIRED
    assert refusal(partition.open(0)).reason is Reason.PRODUCER_FENCED
    partition.open(2)
    assert appended(partition.produce(1, epoch=2)).base_offset == 1


def test_opening_twice_changes_nothing() -> None:
    partition = Partition()
    assert partition.open(1) == ProducerOpened(1, None, None, b"")
    assert partition.open(1) == ProducerOpened(1, None, None, b"")
    partition.produce(0)
    assert opened(partition.open(1)).last_sequence == 0


def test_the_producer_state_goes_with_its_batch() -> None:
    partition = Partition()
    partition.produce(0, state=b"one")
    partition.produce(1)
    assert opened(partition.open(1)).producer_state == b"one"
    partition.produce(0, state=b"of a repeat")
    partition.produce(5, state=b"of a gap")
    assert opened(partition.open(1)).producer_state == b"one"
    partition.produce(2, state=b"two")
    assert opened(partition.open(1)).producer_state == b"two"


def test_r16_a_forgotten_producer_is_an_error_and_never_new() -> None:
    """Bug class 37: expiry is a decision in the log, and what is forgotten cannot begin again."""
    partition = Partition()
    partition.produce(0)
    partition.now_ms += 7 * DAY_MS
    assert partition.expire(7) == ProducersExpired(1)
    assert refusal(partition.produce(1)).reason is Reason.PRODUCER_EXPIRED
    assert refusal(partition.produce(0)).reason is Reason.PRODUCER_EXPIRED
    assert refusal(partition.produce(0, producer_id=6)).reason is Reason.PRODUCER_EXPIRED
    assert appended(partition.produce(0, producer_id=8)).base_offset == 1


def test_expiry_is_checked_against_log_time_when_it_is_applied() -> None:
    """The leader decided on what it knew; an append got into the log before the expiry."""
    partition = Partition()
    partition.produce(0)
    partition.now_ms += 7 * DAY_MS
    partition.produce(1)
    assert partition.expire(7) == ProducersExpired(0)
    partition.now_ms += PRODUCER_IDLE_MS_MIN - 1
    assert partition.expire(7, idle_ms=0) == ProducersExpired(0)
    partition.now_ms += 1
    assert partition.expire(7, 99, idle_ms=0) == ProducersExpired(1)


def test_an_expired_producer_may_be_opened_again() -> None:
    partition = Partition()
    partition.produce(0, 3)
    partition.now_ms += 7 * DAY_MS
    partition.expire(7)
    assert opened(partition.open(2)).last_sequence is None
    assert refusal(partition.produce(0)).reason is Reason.PRODUCER_FENCED
    assert appended(partition.produce(0, epoch=2)).base_offset == 3


def test_producers_are_bounded_and_the_bound_is_named() -> None:
    partition = Partition()
    for producer_id in range(1, PRODUCERS_MAX + 1):
        partition.open(1, producer_id=producer_id)
    for reply in (
        partition.open(1, producer_id=PRODUCERS_MAX + 1),
        partition.produce(0, producer_id=PRODUCERS_MAX + 1),
    ):
        refused = refusal(reply)
        assert refused.reason is Reason.QUOTA
        assert refused.details == {"limit": "producers_per_partition"}
    assert appended(partition.produce(0, producer_id=1)).base_offset == 0
    partition.now_ms += PRODUCER_IDLE_MS_MIN
    partition.expire(2, idle_ms=0)
    assert opened(partition.open(1, producer_id=PRODUCERS_MAX + 1)).epoch == 1
