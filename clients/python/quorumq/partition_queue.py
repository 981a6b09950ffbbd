"""What a producer has for one partition: the open batch, the full ones, and those under way.

Plain state, no IO. With an identity, sequences are dense: a batch gets its own when it is first
sent and keeps it for as long as any copy of it may still be stored. Numbering in-doubt batches anew
would let an old copy be stored beside the new one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from quorumq import wire
from quorumq.batching import Batch, BatchState
from quorumq.errors import DeliveryTimeout, NotSent, OutcomeUnknown, QuorumqError

if TYPE_CHECKING:
    from quorumq.connection import Link


class PartitionQueue:
    """`identity`: (producer_id, epoch), None without. `repeatable`: a batch that may be stored may
    be sent again: it has an identity, or its records have dedup ids."""

    def __init__(
        self,
        topic: str,
        topic_id: str,
        partition: int,
        *,
        identity: tuple[int, int] | None,
        next_sequence: int,
        repeatable: bool,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.identity = identity
        self.repeatable = repeatable
        self.next_sequence = next_sequence
        self.open: Batch | None = None
        self.due = False  # the open batch has lingered long enough
        self.sealed: deque[Batch] = deque()
        self.outstanding: deque[Batch] = deque()  # SENT and WAITING, in order of sequence
        self.sent = 0  # how many of them are SENT, all on `link`
        self.link: Link | None = None
        self.leader_epoch = 0  # what was known when `link` was chosen
        self.retry_at = 0.0  # loop time; nothing is sent before
        self.stale_gaps = 0  # see Delivery
        self.listed = False  # it is in Delivery's list of queues with work
        self._head = wire.request_head(topic, topic_id, partition)

    def batches(self) -> list[Batch]:
        """All that are not done, oldest first."""
        return [*self.outstanding, *self.sealed, *([self.open] if self.open else ())]

    def has_work(self) -> bool:
        """Whether something is to be sent, be it now possible or not."""
        if self.sealed or (self.due and self.open is not None):
            return True
        return len(self.outstanding) > self.sent

    def seal_open(self, *, compress: bool) -> None:
        assert self.open is not None
        self.open.seal(compress=compress)
        self.sealed.append(self.open)
        self.open = None
        self.due = False

    def next_to_send(self, *, compress: bool) -> Batch | None:
        """The first that waits to be sent again, else the first new one."""
        if len(self.outstanding) > self.sent:
            return next(b for b in self.outstanding if b.state is BatchState.WAITING)
        if not self.sealed and self.due and self.open is not None:
            self.seal_open(compress=compress)
        if not self.sealed:
            return None
        batch = self.sealed.popleft()
        if self.identity is not None:
            batch.base_sequence = self.next_sequence
            self.next_sequence += batch.count
        self.outstanding.append(batch)
        return batch

    def request(self, batch: Batch) -> bytes:
        """The ProduceRequest, without request_id."""
        producer = None if self.identity is None else (*self.identity, batch.base_sequence)
        return wire.produce_request(self._head, batch.body, producer)

    def mark_sent(self, batch: Batch, now: float) -> int:
        """Returns the attempt's number."""
        batch.state = BatchState.SENT
        batch.sent_at = now
        batch.attempt += 1
        self.sent += 1
        return batch.attempt

    def mark_waiting(self, batch: Batch) -> None:
        assert batch.state is BatchState.SENT, f"{batch.state}"
        batch.state = BatchState.WAITING
        self.sent -= 1

    def remove(self, batch: Batch) -> None:
        """It is stored or given up: the caller resolves it."""
        if batch.state is BatchState.SENT:
            self.sent -= 1
        self.outstanding.remove(batch)

    def oldest_sent_at(self) -> float | None:
        return next((b.sent_at for b in self.outstanding if b.state is BatchState.SENT), None)

    def expire(self, created_before: float, message: str) -> list[Batch]:
        """Tell the records of batches that are too old. Returns the batches that are done with;
        others stay to be sent, for a later one must not be stored without them."""
        done: list[Batch] = []
        while self.outstanding and self.outstanding[0].created_at < created_before:
            if not self._take_back():
                break
        for batch in self.outstanding:
            if batch.created_at < created_before and not batch.gave_up:
                batch.give_up(DeliveryTimeout(message))
        while self.sealed and self.sealed[0].created_at < created_before:
            done.append(self.sealed.popleft())
        if self.open is not None and self.open.created_at < created_before:
            done.append(self.open)
            self.open = None
            self.due = False
        for batch in done:
            batch.failed(DeliveryTimeout(message, outcome_known=True))
        return done

    def abort(self, error: QuorumqError) -> list[Batch]:
        """Give everything up, because of `error`. Returns the batches that are done with."""
        batches = self.batches()
        self.outstanding.clear()
        self.sealed.clear()
        self.open = None
        self.due = False
        self.sent = 0
        for batch in batches:
            why = f"given up: {error}"
            if batch.in_doubt or batch.state is BatchState.SENT:
                batch.failed(OutcomeUnknown(why))
            else:
                batch.failed(NotSent(why))
        return batches

    def _take_back(self) -> bool:
        """Make batches under way unsent ones, sequences and all, if none of them can be stored."""
        if any(b.in_doubt or b.state is BatchState.SENT for b in self.outstanding):
            return False
        if self.identity is not None:
            self.next_sequence = self.outstanding[0].base_sequence
        while self.outstanding:
            batch = self.outstanding.pop()
            batch.state = BatchState.SEALED
            batch.base_sequence = -1
            self.sealed.appendleft(batch)
        return True
