"""Records into batches: which partition and batch a record belongs to, when a batch is full or has
lingered long enough, and how much of the buffer is taken.

`Producer.send` works on the attributes directly: a call costs as much as all it would do here.
"""

from __future__ import annotations

import asyncio

from quorumq.batching import Batch
from quorumq.connection import Connection, TopicRoute
from quorumq.delivery import Delivery
from quorumq.errors import PartitionNotFound, RecordTooLarge
from quorumq.partition_queue import PartitionQueue
from quorumq.partitioner import partition_of
from quorumq.wire import varint

NO_ROOM = -(1 << 62)  # of a producer that takes nothing any more: no batch done makes up for it


class Accumulator:
    """The batches of a producer that are not yet done. The caller that adds a record of `size`
    bytes to a batch also counts it: batch.size, batch.count, room."""

    def __init__(
        self,
        connection: Connection,
        route: TopicRoute,
        delivery: Delivery,
        queues: list[PartitionQueue],
        *,
        linger_s: float,
        batch_bytes_max: int,
        buffer_bytes_max: int,
        compress: bool,
    ) -> None:
        self.queues = queues
        self.slot_map = route.slot_map
        self.sticky: Batch | None = None  # takes the records without key
        self.room = buffer_bytes_max  # bytes left in the buffer
        self.batch_bytes_max = min(batch_bytes_max, route.batch_bytes_max)
        # A record framed in a batch is up to 6 bytes larger: who comes close is looked at twice.
        self.record_size_max = min(route.record_bytes_max, self.batch_bytes_max)
        self.batches: dict[Batch, None] = {}  # not done, in order of opening
        self._route = route
        self._delivery = delivery
        self._linger_s = linger_s
        self._compress = compress
        self._by_id: dict[int, PartitionQueue] = {}  # queues of records with dedup ids
        self._sticky_turn = connection.rng.randrange(len(queues))
        self._lingering: list[PartitionQueue] = []
        self._linger: asyncio.TimerHandle | None = None
        for queue in queues:
            delivery.add_queue(queue)

    def queue(self, partition: int) -> PartitionQueue:
        if not 0 <= partition < len(self.queues):
            raise PartitionNotFound(f"topic {self._route.name} has no partition {partition}")
        return self.queues[partition]

    def queue_by_id(
        self, partition: int | None, key: bytes | None, dedup_id: str
    ) -> PartitionQueue:
        """Records with dedup ids travel without the producer's identity: their ids are enough, and
        some of a batch may be repeats while others are not."""
        if partition is None:
            partition = partition_of(dedup_id.encode() if key is None else key, self.slot_map)
        self.queue(partition)
        queue = self._by_id.get(partition)
        if queue is None:
            queue = self._by_id[partition] = PartitionQueue(
                self._route.name,
                self._route.topic_id,
                partition,
                identity=None,
                next_sequence=0,
                repeatable=True,
            )
            self._delivery.add_queue(queue)
        return queue

    def begin(self, queue: PartitionQueue) -> Batch:
        """A new open batch; the queue must have none."""
        loop = asyncio.get_running_loop()
        batch = queue.open = Batch(queue, loop.time())
        self.batches[batch] = None
        self._lingering.append(queue)
        if self._linger is None:
            self._linger = loop.call_later(self._linger_s, self.send_all)
        return batch

    def next_sticky(self) -> Batch:
        """Records without key fill one batch after the other, each for the partition with the
        fewest batches under way, in turn: large batches, and around what is stuck."""
        count = len(self.queues)
        chosen, least = self._sticky_turn, -1
        for step in range(count):
            turn = (self._sticky_turn + step) % count
            queue = self.queues[turn]
            under_way = len(queue.outstanding) + len(queue.sealed)
            if least < 0 or under_way < least:
                chosen, least = turn, under_way
            if under_way == 0:
                break
        self._sticky_turn = (chosen + 1) % count
        queue = self.queues[chosen]
        self.sticky = queue.open or self.begin(queue)
        return self.sticky

    def next_batch(self, batch: Batch, size: int, *, is_sticky: bool = False) -> Batch:
        """Where a record goes that may not fit `batch`. Raises RecordTooLarge."""
        queue = batch.queue
        record_bytes = size - 1 - len(varint(size))
        if record_bytes > self._route.record_bytes_max or size > self._route.batch_bytes_max:
            if batch.count == 0:
                self._drop_empty(batch)
            raise RecordTooLarge(
                f"a record of {record_bytes} bytes, topic {self._route.name} takes "
                f"{self._route.record_bytes_max}"
            )
        if batch.count == 0 or batch.size + size <= self.batch_bytes_max:
            return batch
        queue.seal_open(compress=self._compress)
        self._delivery.offer(queue)
        return self.next_sticky() if is_sticky else self.begin(queue)

    def send_all(self) -> None:
        """The linger is over: whatever is there is to be sent."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        lingering, self._lingering = self._lingering, []
        for queue in lingering:
            if queue.open is not None:
                queue.due = True
                self._delivery.offer(queue)

    def done(self, batch: Batch) -> None:
        """It is stored or given up."""
        del self.batches[batch]
        self.room += batch.size

    def stop(self) -> None:
        """Take no more records, for good. What is there is sent."""
        self.room = NO_ROOM
        self.send_all()

    def _drop_empty(self, batch: Batch) -> None:
        batch.queue.open = None
        batch.is_open = False
        del self.batches[batch]
