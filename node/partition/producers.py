"""Who produced what: sequences, epochs and the window of known batches (house §4.10, rule R16).

A producer's sequence counts its records in this partition, dense from 0, through all its epochs.
The last PRODUCER_WINDOW_BATCHES batches are remembered with their offsets, so that a repeat gets
the original answer. A repeat that is older than the window is not stored again either, but its
offset is forgotten: it is refused as SEQUENCE_GAP with `stored: true`: an answer without an offset
would look like offset 0. Rejected: remembering runs instead of batches, which would answer a repeat
that was cut differently from the original, and so hide a broken client.

An unknown id is accepted at sequence 0 only, and only above the highest id ever expired here: one
below may have been forgotten, and its "first" batch be a repeat.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import NamedTuple

from node.partition.commands import (
    PRODUCER_IDLE_MS_MIN,
    PRODUCER_WINDOW_BATCHES,
    PRODUCERS_MAX,
    Appended,
    ProducerOpened,
    ProducerSequence,
    Reason,
    Refused,
)
from node.partition.state import FORMAT_VERSION, FrozenSegment, UnknownFormat, check_version

_BATCH = struct.Struct("<QIQQ")  # base_sequence, record_count, base_offset, append_time_ms
_HEAD = struct.Struct("<QIQQQBH")  # id, epoch, next_sequence, last_offset + 1, log time, lengths
_PREFIX = b"producers/"
_BUCKETS = 256
_WINDOW_BYTES = PRODUCER_WINDOW_BATCHES * _BATCH.size


class Producer(NamedTuple):
    """What is known of one producer. Immutable: an append replaces it, so freezing needs no copy.
    `window`: the latest batches, packed, oldest first. `last_offset` is -1 when nothing is stored;
    then `next_sequence` is 0."""

    epoch: int
    next_sequence: int
    last_offset: int
    log_time_ms: int
    window: bytes
    state: bytes


class Producers:
    """All producers of a partition, in buckets by id so that a checkpoint writes changed ones only.
    Bounded by PRODUCERS_MAX: one more is refused (QUOTA) until the leader had idle ones expired."""

    def __init__(self) -> None:
        self._buckets: list[dict[int, Producer]] = [{} for _ in range(_BUCKETS)]
        self._dirty = bytearray(_BUCKETS)
        self.count = 0
        self.highest_expired_id = 0

    def get(self, producer_id: int) -> Producer | None:
        return self._buckets[producer_id % _BUCKETS].get(producer_id)

    def check(self, sequence: ProducerSequence, record_count: int) -> Appended | Refused | None:
        """None: the batch is the producer's next one, `appended` must follow. Else the answer."""
        known = self._buckets[sequence.producer_id % _BUCKETS].get(sequence.producer_id)
        if known is None:
            return self._check_unknown(sequence)
        if sequence.epoch != known.epoch:
            return _other_epoch(sequence, known)
        if sequence.base_sequence == known.next_sequence:
            return None
        if sequence.base_sequence > known.next_sequence:
            return Refused(
                Reason.SEQUENCE_GAP,
                f"producer {sequence.producer_id} sent sequence {sequence.base_sequence}, "
                f"the next is {known.next_sequence}",
                expected_sequence=known.next_sequence,
            )
        return _repeat(sequence, known, record_count)

    def appended(
        self,
        sequence: ProducerSequence,
        *,
        record_count: int,
        base_offset: int,
        append_time_ms: int,
        log_time_ms: int,
        producer_state: bytes,
    ) -> None:
        """Count a batch that `check` let pass."""
        bucket = sequence.producer_id % _BUCKETS
        known = self._buckets[bucket].get(sequence.producer_id)
        base_sequence = sequence.base_sequence
        batch = _BATCH.pack(base_sequence, record_count, base_offset, append_time_ms)
        if known is None:
            assert base_sequence == 0, f"unknown producer at sequence {base_sequence}"
            self.count += 1
            window = batch
        else:
            assert base_sequence == known.next_sequence, f"{sequence} is not next to {known}"
            window = known.window + batch
            if len(window) > _WINDOW_BYTES:
                window = window[_BATCH.size :]
            if not producer_state:
                producer_state = known.state
        self._buckets[bucket][sequence.producer_id] = Producer(
            sequence.epoch,
            base_sequence + record_count,
            base_offset + record_count - 1,
            log_time_ms,
            window,
            producer_state,
        )
        self._dirty[bucket] = 1

    def open(self, producer_id: int, epoch: int, log_time_ms: int) -> ProducerOpened | Refused:
        """Make the epoch real. An expired producer begins anew at sequence 0: what its older epochs
        still have in flight is refused by the epoch."""
        bucket = producer_id % _BUCKETS
        known = self._buckets[bucket].get(producer_id)
        if known is None:
            if self.count >= PRODUCERS_MAX:
                return _too_many()
            self.count += 1
            known = Producer(epoch, 0, -1, log_time_ms, b"", b"")
        elif epoch < known.epoch:
            return _fenced(producer_id, epoch, known.epoch)
        self._buckets[bucket][producer_id] = known._replace(epoch=epoch, log_time_ms=log_time_ms)
        self._dirty[bucket] = 1
        stored = known.last_offset >= 0
        return ProducerOpened(
            epoch,
            known.next_sequence - 1 if stored else None,
            known.last_offset if stored else None,
            known.state,
        )

    def expire(self, producer_ids: tuple[int, ...], *, idle_ms: int, log_time_ms: int) -> int:
        """Forget those idle long enough; returns how many."""
        idle_since_ms = log_time_ms - max(idle_ms, PRODUCER_IDLE_MS_MIN)
        expired = 0
        for producer_id in producer_ids:
            bucket = producer_id % _BUCKETS
            known = self._buckets[bucket].get(producer_id)
            if known is None or known.log_time_ms > idle_since_ms:
                continue
            del self._buckets[bucket][producer_id]
            self._dirty[bucket] = 1
            self.highest_expired_id = max(self.highest_expired_id, producer_id)
            expired += 1
        self.count -= expired
        return expired

    def idle_in(self, bucket: int, idle_since_ms: int) -> list[int]:
        """Ids in one of `bucket_count` buckets, last active at or before that log time."""
        known = self._buckets[bucket]
        return sorted(i for i, p in known.items() if p.log_time_ms <= idle_since_ms)

    @property
    def bucket_count(self) -> int:
        return _BUCKETS

    def freeze(self) -> list[FrozenSegment]:
        frozen: list[FrozenSegment] = []
        for bucket, dirty in enumerate(self._dirty):
            if not dirty:
                continue
            copy = self._buckets[bucket].copy()
            frozen.append((_PREFIX + b"%02x" % bucket, partial(_encode, copy) if copy else None))
        self._dirty = bytearray(_BUCKETS)
        return frozen

    def restore(self, name: bytes, data: bytes) -> None:
        """Take in one segment; the others of this table were empty before."""
        bucket = int(name.removeprefix(_PREFIX), 16)
        assert not self._buckets[bucket], f"bucket {bucket} restored twice"
        self._buckets[bucket] = _decode(name, data)
        self.count += len(self._buckets[bucket])

    def _check_unknown(self, sequence: ProducerSequence) -> Refused | None:
        if sequence.producer_id <= self.highest_expired_id:
            return Refused(
                Reason.PRODUCER_EXPIRED,
                f"producer {sequence.producer_id} is not known any more; open it again",
            )
        if sequence.base_sequence != 0:
            return Refused(
                Reason.SEQUENCE_GAP,
                f"producer {sequence.producer_id} is not known here and sent sequence "
                f"{sequence.base_sequence}, the next is 0",
                expected_sequence=0,
            )
        return _too_many() if self.count >= PRODUCERS_MAX else None


def _other_epoch(sequence: ProducerSequence, known: Producer) -> Refused:
    """A lower epoch was fenced. A higher one is not real before an OpenProducer in this log."""
    if sequence.epoch < known.epoch:
        return _fenced(sequence.producer_id, sequence.epoch, known.epoch)
    return Refused(
        Reason.PRODUCER_EXPIRED,
        f"epoch {sequence.epoch} of producer {sequence.producer_id} was not opened in this "
        f"partition, {known.epoch} is; open it for this topic",
    )


def _fenced(producer_id: int, epoch: int, newer: int) -> Refused:
    return Refused(
        Reason.PRODUCER_FENCED, f"producer {producer_id} has epoch {newer}, yours is {epoch}"
    )


def _too_many() -> Refused:
    return Refused(
        Reason.QUOTA,
        f"the partition knows {PRODUCERS_MAX} producers",
        details={"limit": "producers_per_partition"},
    )


def _repeat(sequence: ProducerSequence, known: Producer, record_count: int) -> Appended | Refused:
    """The answer to a batch below next_sequence: the original one if it is a whole known batch."""
    window, base_sequence = known.window, sequence.base_sequence
    for at in range(len(window) - _BATCH.size, -1, -_BATCH.size):
        sequence_there, count, base_offset, append_time_ms = _BATCH.unpack_from(window, at)
        if sequence_there > base_sequence:
            continue
        if sequence_there == base_sequence and count == record_count:
            return Appended(base_offset, record_count, append_time_ms, duplicate=True)
        break
    end = base_sequence + record_count
    stored = end <= known.next_sequence
    return Refused(
        Reason.SEQUENCE_GAP,
        f"producer {sequence.producer_id} sent sequences {base_sequence} to {end - 1}, "
        + ("all stored" if stored else "some stored")
        + f" but not as one batch that is remembered; the next is {known.next_sequence}",
        expected_sequence=known.next_sequence,
        details={"stored": "true"} if stored else {},
    )


def _encode(bucket: dict[int, Producer]) -> bytes:
    parts = [bytes((FORMAT_VERSION,))]
    for producer_id in sorted(bucket):
        known = bucket[producer_id]
        parts.append(
            _HEAD.pack(
                producer_id,
                known.epoch,
                known.next_sequence,
                known.last_offset + 1,
                known.log_time_ms,
                len(known.window) // _BATCH.size,
                len(known.state),
            )
        )
        parts.append(known.window)
        parts.append(known.state)
    return b"".join(parts)


def _decode(name: bytes, data: bytes) -> dict[int, Producer]:
    check_version(name, data)
    bucket: dict[int, Producer] = {}
    at = 1
    try:
        while at < len(data):
            producer_id, epoch, next_sequence, end, log_time_ms, batches, state_bytes = (
                _HEAD.unpack_from(data, at)
            )
            window_at = at + _HEAD.size
            state_at = window_at + batches * _BATCH.size
            at = state_at + state_bytes
            window, state = data[window_at:state_at], data[state_at:at]
            bucket[producer_id] = Producer(
                epoch, next_sequence, end - 1, log_time_ms, window, state
            )
    except struct.error as error:
        raise UnknownFormat(f"segment {name!r} is damaged: {error}") from error
    if at != len(data):
        raise UnknownFormat(f"segment {name!r} is cut short")
    return bucket
