"""A partition of a Read, from this node's own replica.

What a replica has applied is committed, so it is a true prefix of what any leader has (house
§4.17): reading it needs nobody's permission, and no change of leader disturbs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.interfaces import CorruptEntry
from node.batches import pieces
from node.ingest import FEATURES
from node.partitions import LocalPartition
from node.replica import StoredBatch, row_features
from node.services.errors import Refused
from node.services.reading_request import Taken
from node.services.topic_settings import BYTES_LIMIT
from node.v1 import wire_pb2 as wire

# What a partition gives before it is the next one's turn; one batch in any case.
TURN_BYTES = 256 << 10
# A response around the batch: numbers, the topic's identity, tags and lengths.
_ENVELOPE_BYTES = 256
_COMPRESSED = FEATURES["compression"]


@dataclass(slots=True, eq=False)
class Cursor:
    """Where a Read stands in one partition. Everything below `next_offset` was handed over; nothing
    at or above `until` is wanted; the partition is known to have what lies below `known_end`.

    `behind_since`: since when the replica here has nothing for it though others may. `failures` in
    a row, since `failing_since`, of getting it elsewhere."""

    partition: int
    group_id: int
    next_offset: int = 0
    until: int | None = None
    known_end: int = 0
    has_ended: bool = False
    behind_since: float | None = None
    failures: int = 0
    failing_since: float | None = None
    is_trouble_told: bool = False


class LocalSource:
    """`ready(self)` is called when there may be more to take."""

    def __init__(
        self,
        cursor: Cursor,
        local: LocalPartition,
        *,
        topic_id: str,
        taken: Taken,
        ready: Callable[[LocalSource], None],
    ) -> None:
        self.cursor = cursor
        self.local = local
        self.has_more = True
        self._bytes_max = TURN_BYTES
        self._topic_id = topic_id
        self._taken = taken
        self._ready = ready
        local.replica.listeners.append(self._moved)

    def close(self) -> None:
        self.local.replica.listeners.remove(self._moved)

    def take(self) -> list[wire.ReadResponse]:
        """About TURN_BYTES, or what there is; moves the cursor. Raises CorruptEntry, CorruptRow."""
        cursor, machine = self.cursor, self.local.replica.machine
        at, until = max(cursor.next_offset, machine.first_offset), cursor.until
        responses: list[wire.ReadResponse] = []
        found: list[StoredBatch] = []
        if until is None or at < until:
            try:
                found = self.local.replica.read(at, bytes_max=self._bytes_max, end_offset=until)
            except CorruptEntry:
                if not self._bytes_max:
                    raise
                self._bytes_max = 0  # batch by batch up to the damaged one
                return []
        for stored in found:
            row = stored.row
            first = max(at, row.base_offset)
            at = row.next_offset if until is None else min(row.next_offset, until)
            responses += self._responses(stored, first, at)
        cursor.next_offset = at
        if until is not None and at >= until:
            end = wire.EndOfPartition(partition=cursor.partition, next_offset=at)
            responses.append(wire.ReadResponse(end_of_partition=end))
        # Without anything found there is no more, whatever the machine says: the replica may be
        # being deleted.
        self.has_more = bool(found) and at < machine.next_offset
        return responses

    def _responses(self, stored: StoredBatch, first: int, end: int) -> list[wire.ReadResponse]:
        """Of the batch's records first <= offset < end. Mostly that is the batch as it is."""
        row, batch = stored.row, stored.batch
        delivery = wire.Delivery(
            partition=self.cursor.partition,
            base_offset=row.base_offset,
            next_offset=row.next_offset,
            append_time_ms=row.append_time_ms,
            batch=batch,
            leader_epoch=self.local.group.term,
            topic_id=self._topic_id,
        )
        if (
            end - first == row.record_count
            and len(batch) + _ENVELOPE_BYTES <= self._taken.message_bytes_max
            and (self._taken.accepts_zstd or not row_features(row) & _COMPRESSED)
        ):
            return [wire.ReadResponse(delivery=delivery)]
        return list(cut_delivery(delivery, first=first, end=end, taken=self._taken))

    def _moved(self) -> None:
        self._ready(self)


def cut_delivery(
    delivery: wire.Delivery, *, first: int, end: int, taken: Taken
) -> Iterator[wire.ReadResponse]:
    """The records first <= offset < end of a delivery, not compressed, in messages that fit; what
    can not fit is a RECORD_TOO_LARGE."""
    base_offset = delivery.base_offset
    for piece in pieces(
        delivery.batch,
        first=first - base_offset,
        last=end - base_offset - 1,
        bytes_max=taken.message_bytes_max - _ENVELOPE_BYTES,
        inflated_bytes_max=BYTES_LIMIT,
    ):
        offset, next_offset = base_offset + piece.first, base_offset + piece.last + 1
        if piece.batch is None:
            error = Refused(
                "RECORD_TOO_LARGE",
                f"the record at offset {offset} does not fit into"
                f" max_message_bytes {taken.message_bytes_max}",
            ).error
            yield wire.ReadResponse(
                status=wire.PartitionStatus(
                    partition=delivery.partition,
                    error=error,
                    offset=offset,
                    next_offset=next_offset,
                )
            )
        else:
            yield wire.ReadResponse(
                delivery=wire.Delivery(
                    partition=delivery.partition,
                    base_offset=offset,
                    next_offset=next_offset,
                    append_time_ms=delivery.append_time_ms,
                    batch=piece.batch,
                    leader_epoch=delivery.leader_epoch,
                    topic_id=delivery.topic_id,
                )
            )
