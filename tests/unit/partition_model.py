"""A partition as one would explain it: whole lists, no windows of bytes, no segments. What the
machine answers is compared with it. And commands to try, with so few ids that they meet."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from node.partition.commands import (
    DAY_MS,
    PRODUCER_WINDOW_BATCHES,
    Append,
    Appended,
    Command,
    CommitPositions,
    Configure,
    DedupOverflow,
    DropPositions,
    ExpireProducers,
    OpenProducer,
    PositionCommit,
    ProducerOpened,
    ProducerSequence,
    ProducersExpired,
    Reason,
    Settings,
    Stamp,
    Trim,
)


@dataclass
class ModelProducer:
    epoch: int
    log_time_ms: int
    next_sequence: int = 0
    last_offset: int | None = None
    state: bytes = b""
    batches: list[tuple[int, Appended]] = field(default_factory=list)


class PartitionModel:
    """`answer` gives the reply, or of a refusal its reason."""

    def __init__(self) -> None:
        self.next_offset = 0
        self.first_offset = 0
        self.log_time_ms = 0
        self.wall_time_ms = 0
        self.settings = Settings()
        self.producers: dict[int, ModelProducer] = {}
        self.highest_expired_id = 0
        self.dedup: list[tuple[bytes, int, Appended]] = []  # id, log time, first answer
        self.positions: dict[str, int] = {}

    def answer(self, command: Command) -> object:
        self.log_time_ms = max(self.log_time_ms, command.stamp.log_time_ms)
        self.wall_time_ms = max(self.wall_time_ms, command.stamp.wall_time_ms)
        match command:
            case Append():
                return self._append(command)
            case OpenProducer():
                return self._open(command)
            case ExpireProducers():
                return self._expire(command)
            case Trim():
                self.first_offset = max(
                    self.first_offset, min(command.first_offset, self.next_offset)
                )
            case Configure() if command.settings.version > self.settings.version:
                self.settings = command.settings
            case CommitPositions():
                for commit in command.commits:
                    if commit.position <= self.next_offset and not commit.generation:
                        self.positions[commit.subscription_id] = commit.position
            case DropPositions():
                for subscription_id in command.subscription_ids:
                    self.positions.pop(subscription_id, None)
        return None

    def _append(self, append: Append) -> Appended | Reason:
        if append.producer is not None:
            answer = self._sequence(append.producer, append.record_count)
            if answer is not None:
                return answer
        if append.dedup_id:
            answer = self._dedup_id(append.dedup_id)
            if answer is not None:
                return answer
        expected = append.expected_next_offset
        if expected is not None and expected != self.next_offset:
            return Reason.EXPECTED_OFFSET
        appended = Appended(self.next_offset, append.record_count, self.wall_time_ms)
        self.next_offset += append.record_count
        if append.producer is not None:
            self._count(append, append.producer, appended)
        if append.dedup_id:
            self.dedup = [known for known in self.dedup if self._counts(known)]
            self.dedup.append((append.dedup_id, self.log_time_ms, appended))
            if self.settings.dedup_overflow is DedupOverflow.EVICT_OLDEST:
                self.dedup = self.dedup[-self.settings.dedup_window_count :]
        return appended

    def _sequence(self, sequence: ProducerSequence, count: int) -> Appended | Reason | None:
        known = self.producers.get(sequence.producer_id)
        if known is None:
            if sequence.producer_id <= self.highest_expired_id:
                return Reason.PRODUCER_EXPIRED
            return Reason.SEQUENCE_GAP if sequence.base_sequence else None
        if sequence.epoch < known.epoch:
            return Reason.PRODUCER_FENCED
        if sequence.epoch > known.epoch:
            return Reason.PRODUCER_EXPIRED
        if sequence.base_sequence == known.next_sequence:
            return None
        for base_sequence, first in known.batches[-PRODUCER_WINDOW_BATCHES:]:
            if (base_sequence, first.record_count) == (sequence.base_sequence, count):
                return repeat_of(first)
        return Reason.SEQUENCE_GAP

    def _count(self, append: Append, sequence: ProducerSequence, appended: Appended) -> None:
        known = self.producers.setdefault(
            sequence.producer_id, ModelProducer(sequence.epoch, self.log_time_ms)
        )
        known.log_time_ms = self.log_time_ms
        known.next_sequence += append.record_count
        known.last_offset = self.next_offset - 1
        known.state = append.producer_state or known.state
        known.batches.append((sequence.base_sequence, appended))

    def _dedup_id(self, dedup_id: bytes) -> Appended | Reason | None:
        if self.settings.dedup_window_count == 0:
            return Reason.FEATURE_NOT_ENABLED
        counting = [known for known in self.dedup if self._counts(known)]
        for known_id, _, first in counting:
            if known_id == dedup_id:
                return repeat_of(first)
        is_full = len(counting) >= self.settings.dedup_window_count
        if is_full and self.settings.dedup_overflow is DedupOverflow.REFUSE:
            return Reason.DEDUP_FULL
        return None

    def _counts(self, known: tuple[bytes, int, Appended]) -> bool:
        window_ms = self.settings.dedup_window_ms
        return not window_ms or self.log_time_ms - known[1] < window_ms

    def _open(self, command: OpenProducer) -> ProducerOpened | Reason:
        known = self.producers.setdefault(command.producer_id, ModelProducer(command.epoch, 0))
        if command.epoch < known.epoch:
            return Reason.PRODUCER_FENCED
        known.epoch, known.log_time_ms = command.epoch, self.log_time_ms
        if known.last_offset is None:
            return ProducerOpened(known.epoch, None, None, b"")
        return ProducerOpened(known.epoch, known.next_sequence - 1, known.last_offset, known.state)

    def _expire(self, command: ExpireProducers) -> ProducersExpired:
        expired = 0
        for producer_id in command.producer_ids:
            known = self.producers.get(producer_id)
            if known and self.log_time_ms - known.log_time_ms >= max(command.idle_ms, 60_000):
                del self.producers[producer_id]
                self.highest_expired_id = max(self.highest_expired_id, producer_id)
                expired += 1
        return ProducersExpired(expired)


def repeat_of(first: Appended) -> Appended:
    return Appended(first.base_offset, first.record_count, first.append_time_ms, duplicate=True)


STAMPS = st.builds(Stamp, st.integers(0, 2 * DAY_MS), st.integers(0, 10_000))
PRODUCER_IDS = st.sampled_from([1, 2, 3, 258])

APPENDS = st.builds(
    Append,
    STAMPS,
    st.binary(max_size=4),
    st.integers(1, 3),
    st.one_of(
        st.none(), st.builds(ProducerSequence, PRODUCER_IDS, st.integers(1, 3), st.integers(0, 9))
    ),
    producer_state=st.binary(max_size=3),
    expected_next_offset=st.one_of(st.none(), st.none(), st.integers(0, 12)),
)
DEDUP_APPENDS = st.builds(
    Append, STAMPS, st.binary(max_size=4), st.just(1), dedup_id=st.sampled_from([b"a", b"b", b"cc"])
)
SETTINGS = st.builds(
    Settings,
    version=st.integers(1, 9),
    dedup_window_count=st.integers(0, 3),
    dedup_overflow=st.sampled_from(DedupOverflow),
    dedup_window_ms=st.sampled_from([0, 1_000, DAY_MS]),
)
POSITION_COMMITS = st.builds(
    PositionCommit,
    st.sampled_from(["one", "two", "drei"]),
    st.integers(0, 20),
    st.sampled_from([None, 0, 1]),
    st.text(max_size=3),
)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    APPENDS,
    APPENDS,
    DEDUP_APPENDS,
    st.builds(OpenProducer, STAMPS, PRODUCER_IDS, st.integers(1, 3)),
    st.builds(
        ExpireProducers,
        STAMPS,
        st.lists(PRODUCER_IDS, max_size=3, unique=True).map(tuple),
        st.sampled_from([0, DAY_MS]),
    ),
    st.builds(Trim, STAMPS, st.integers(0, 30)),
    st.builds(Configure, STAMPS, SETTINGS),
    st.builds(CommitPositions, STAMPS, st.lists(POSITION_COMMITS, max_size=3).map(tuple)),
    st.builds(
        DropPositions, STAMPS, st.lists(st.sampled_from(["one", "two"]), max_size=2).map(tuple)
    ),
)
