"""A partition and a topic as the public contract words them, in memory: offsets, producer sequences
with their window, dedup ids, positions. What a quorum would agree on; who leads is a variable."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from quorumq.v1 import errors_pb2, messaging_pb2, records_pb2

WINDOW_BATCHES = 64


class Refused(Exception):
    """A typed error of the contract."""

    def __init__(
        self,
        reason: str,
        message: str = "",
        *,
        retriable: bool = False,
        outcome_known: bool = True,
        retry_after_ms: int | None = None,
        expected_sequence: int | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.error = errors_pb2.Error(
            reason=errors_pb2.Reason.Value(f"REASON_{reason}"),
            message=message or reason,
            retriable=retriable,
            outcome_known=outcome_known,
            retry_after_ms=retry_after_ms,
            expected_sequence=expected_sequence,
        )


@dataclass
class StoredBatch:
    base_offset: int
    end: int
    append_time_ms: int
    batch: records_pb2.RecordBatch

    @property
    def offsets(self) -> list[int]:
        """Of the records that are still there."""
        deltas = self.batch.offset_deltas or range(self.batch.record_count)
        return [self.base_offset + delta for delta in deltas]

    def lose(self, gone: Sequence[int]) -> None:
        """Records that were settled are cut out, the others keep their offsets."""
        kept = [(at, r) for at, r in zip(self.offsets, plain(self.batch), strict=True)]
        kept = [(at, record) for at, record in kept if at not in gone]
        self.batch = records_pb2.RecordBatch(
            record_count=len(kept),
            records=records_pb2.RecordList(records=[record for _, record in kept]),
            offset_deltas=[at - self.base_offset for at, _ in kept],
        )


@dataclass
class KnownProducer:
    epoch: int
    next_sequence: int = 0
    last_offset: int = -1
    window: OrderedDict[int, tuple[int, int, int]] = field(default_factory=OrderedDict)


@dataclass
class Partition:
    number: int
    leader: str | None = None  # an endpoint
    leader_epoch: int = 0
    batches: list[StoredBatch] = field(default_factory=list)
    next_offset: int = 0
    earliest: int = 0
    producers: dict[int, KnownProducer] = field(default_factory=dict)
    dedup_ids: dict[str, tuple[int, int]] = field(default_factory=dict)  # -> offset, time
    positions: dict[str, tuple[int, str]] = field(default_factory=dict)

    def records(self) -> list[tuple[int, records_pb2.Record]]:
        return [
            found
            for stored in self.batches
            for found in zip(stored.offsets, plain(stored.batch), strict=True)
        ]

    def values(self) -> list[bytes]:
        return [record.value for _, record in self.records()]

    def trim(self, first: int, *, gone: Sequence[int] = ()) -> None:
        """Batches wholly below `first` are gone, and the records `gone`."""
        self.batches = [stored for stored in self.batches if stored.end > first]
        self.earliest = first
        for stored in self.batches:
            if any(stored.base_offset <= at < stored.end for at in gone):
                stored.lose(gone)

    def produce(
        self, request: messaging_pb2.ProduceRequest, now_ms: int
    ) -> messaging_pb2.ProduceResponse:
        records = plain(request.batch)
        if len(records) != request.batch.record_count or not records:
            raise Refused("MALFORMED_BATCH", f"{request.batch.record_count} != {len(records)}")
        if any(record.dedup_id for record in records):
            return self._produce_by_id(request, records, now_ms)
        answer = messaging_pb2.ProduceResponse(
            partition=self.number, record_count=len(records), append_time_ms=now_ms
        )
        if request.HasField("producer"):
            repeat = self._check(request.producer, len(records))
            if repeat is not None:
                _, answer.base_offset, answer.append_time_ms = repeat
                answer.duplicate = True
                return answer
        answer.base_offset = self._append(request.batch, now_ms)
        if request.HasField("producer"):
            sequence = request.producer.base_sequence
            known = self.producers[request.producer.producer_id]
            known.next_sequence = sequence + len(records)
            known.last_offset = self.next_offset - 1
            known.window[sequence] = (len(records), answer.base_offset, now_ms)
            if len(known.window) > WINDOW_BATCHES:
                known.window.popitem(last=False)
        return answer

    def open_producer(self, producer_id: int, epoch: int) -> KnownProducer:
        known = self.producers.setdefault(producer_id, KnownProducer(epoch))
        known.epoch = max(known.epoch, epoch)
        return known

    def _check(
        self, producer: messaging_pb2.ProducerIdentity, count: int
    ) -> tuple[int, int, int] | None:
        known = self.producers.get(producer.producer_id)
        if known is None:
            raise Refused("PRODUCER_EXPIRED", f"producer {producer.producer_id} is not known")
        if producer.epoch != known.epoch:
            raise Refused("PRODUCER_FENCED", f"epoch {producer.epoch}, now {known.epoch}")
        if producer.base_sequence == known.next_sequence:
            return None
        repeat = known.window.get(producer.base_sequence)
        if repeat is not None and repeat[0] == count:
            return repeat
        raise Refused(
            "SEQUENCE_GAP",
            f"sequence {producer.base_sequence}, next is {known.next_sequence}",
            expected_sequence=known.next_sequence,
        )

    def _produce_by_id(
        self,
        request: messaging_pb2.ProduceRequest,
        records: list[records_pb2.Record],
        now_ms: int,
    ) -> messaging_pb2.ProduceResponse:
        if request.HasField("producer"):
            raise Refused("BAD_REQUEST", "dedup ids and a producer identity")
        answer = messaging_pb2.ProduceResponse(
            partition=self.number, record_count=len(records), append_time_ms=now_ms
        )
        for record in records:
            known = self.dedup_ids.get(record.dedup_id)
            if known is None:
                one = records_pb2.RecordBatch(
                    record_count=1, records=records_pb2.RecordList(records=[record])
                )
                offset = self._append(one, now_ms)
                self.dedup_ids[record.dedup_id] = (offset, now_ms)
            offset, at = self.dedup_ids[record.dedup_id]
            answer.results.add(
                partition=self.number,
                offset=offset,
                append_time_ms=at,
                duplicate=known is not None,
            )
        answer.base_offset = answer.results[0].offset
        return answer

    def _append(self, batch: records_pb2.RecordBatch, now_ms: int) -> int:
        base = self.next_offset
        stored = records_pb2.RecordBatch()
        stored.CopyFrom(batch)
        self.next_offset += batch.record_count
        self.batches.append(StoredBatch(base, self.next_offset, now_ms, stored))
        return base


@dataclass
class Topic:
    name: str
    topic_id: str
    partitions: list[Partition]
    record_bytes_max: int = 1 << 20
    batch_bytes_max: int = 1 << 20
    subscriptions: list[str] = field(default_factory=list)


def plain(batch: records_pb2.RecordBatch) -> list[records_pb2.Record]:
    """Inflated without the library's own code, to check it."""
    import zstandard

    if batch.WhichOneof("body") == "records":
        return list(batch.records.records)
    inflated = zstandard.ZstdDecompressor().decompress(
        batch.compressed, max_output_size=batch.uncompressed_bytes
    )
    assert len(inflated) == batch.uncompressed_bytes
    return list(records_pb2.RecordList.FromString(inflated).records)
