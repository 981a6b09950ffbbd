"""How a producer's batches reach the leaders: order, window, retries, routes, time limits.

No task of its own: everything happens in plain functions, called when a batch is full, when the
linger is over, when an answer came or a link broke, and by timers. Rules:

- Of a partition, batches go out in order, on one link at a time. What must be sent again goes
  before anything new. A node refuses what comes out of order, so nothing overtakes.
- A link that broke: its batches go to another node at once, for any node forwards, and holds a
  request while there is no leader.
- A batch keeps its sequence while a copy of it may be stored (see PartitionQueue); a producer whose
  identity no longer works stops, rather than number its batches anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from quorumq.batching import Batch, BatchState
from quorumq.connection import Connection, Link, TopicRoute, backoff_s
from quorumq.errors import OutcomeUnknown, QuorumqError, Unreachable, from_message
from quorumq.partition_queue import PartitionQueue
from quorumq.v1.messaging_pb2 import ProduceResponse, ProduceStreamResponse

WATCH_EVERY_S = 0.25
STALLED_S = 1.0  # unanswered so long: ask who leads
SILENT_S = 15.0  # above the 10 s that a node holds a request: it hangs
DRAINING_AVOIDED_S = 1.0
STALE_GAPS_MAX = 5


class Delivery:
    """Sends what is in `queues`. `on_done` is told of each batch that is stored or given up, after
    its records were; `on_fatal` once, why the producer cannot go on."""

    def __init__(
        self,
        connection: Connection,
        route: TopicRoute,
        *,
        in_flight_max: int,
        delivery_timeout_s: float,
        compress: bool,
        on_done: Callable[[Batch], None],
        on_fatal: Callable[[QuorumqError], None],
    ) -> None:
        self._connection = connection
        self._route = route
        self._in_flight_max = in_flight_max
        # One partition without a leader must not keep the others from sending.
        share = max(2, 2 * in_flight_max // route.partition_count)
        self._partition_in_flight_max = min(in_flight_max, share)
        self._delivery_timeout_s = delivery_timeout_s
        self._compress = compress
        self._on_done = on_done
        self._on_fatal = on_fatal
        self._queues: list[PartitionQueue] = []
        self._listed: deque[PartitionQueue] = deque()
        self._in_flight = 0
        self._pump_asked = False
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        route.listeners.append(self._leader_changed)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def add_queue(self, queue: PartitionQueue) -> None:
        self._queues.append(queue)

    def offer(self, queue: PartitionQueue) -> None:
        """It has something to send."""
        if not queue.listed and queue.has_work():
            queue.listed = True
            self._listed.append(queue)
        if not self._pump_asked and self._listed:
            self._pump_asked = True
            self._loop.call_soon(self._pump)
        if self._watch is None and not self._closed:
            self._watch = self._loop.call_later(WATCH_EVERY_S, self._watch_over)

    def abort(self, error: QuorumqError) -> None:
        """Give everything up and send no more."""
        if self._closed:
            return
        self._closed = True
        self._route.listeners.remove(self._leader_changed)
        if self._watch is not None:
            self._watch.cancel()
        self._in_flight = 0
        for queue in self._queues:
            for batch in queue.abort(error):
                self._on_done(batch)

    # ------------------------------------------------------------------------------------- sending

    def _pump(self) -> None:
        self._pump_asked = False
        if self._closed:
            return
        listed = self._listed
        while listed and self._in_flight < self._in_flight_max:
            queue = listed.popleft()
            queue.listed = False
            if self._send_one(queue) and queue.has_work():
                queue.listed = True
                listed.append(queue)  # the others first

    def _send_one(self, queue: PartitionQueue) -> bool:
        """False: it cannot now, and will be offered again when that changes."""
        now = self._loop.time()
        if queue.retry_at > now or queue.sent >= self._partition_in_flight_max:
            return False
        link = self._link_of(queue, now)
        if link is None:
            return False
        batch = queue.next_to_send(compress=self._compress)
        if batch is None:
            return False
        attempt = queue.mark_sent(batch, now)
        self._in_flight += 1
        try:
            link.send(queue.request(batch), partial(self._answered, batch, attempt))
        except QuorumqError as error:  # the link is full of others' requests, or just ended
            self._retry(batch, error)
            return False
        return True

    def _link_of(self, queue: PartitionQueue, now: float) -> Link | None:
        """Where the partition's next batch goes. None: first the answers that are under way must
        come, or no node can be asked yet."""
        link = queue.link
        leader = self._connection.leader_node(self._route, queue.partition)
        if link is not None and link.alive:
            leads = leader is None or leader.endpoint == link.endpoint
            if leads and self._connection.node(link.endpoint).usable(now):
                return link
            if queue.sent:
                return None  # on two links at once they could overtake each other
        node = leader or self._connection.pick()
        if not node.usable(now):
            self._pause(queue, node.retry_at - now)
            return None
        queue.link = node.link()
        queue.leader_epoch = self._route.leader_epoch(queue.partition)
        return queue.link

    def _pause(self, queue: PartitionQueue, seconds: float) -> None:
        queue.retry_at = self._loop.time() + seconds
        self._loop.call_at(queue.retry_at, self._resume, queue, queue.retry_at)

    def _resume(self, queue: PartitionQueue, paused_until: float) -> None:
        """Timers may come a little early: what ends the pause is this call, not the clock."""
        if queue.retry_at == paused_until:
            queue.retry_at = 0.0
        self.offer(queue)

    # ------------------------------------------------------------------------------------- answers

    def _answered(
        self, batch: Batch, attempt: int, result: ProduceStreamResponse | QuorumqError
    ) -> None:
        if self._closed or batch.state is BatchState.DONE:
            return
        queue = batch.queue
        awaited = batch.attempt == attempt and batch.state is BatchState.SENT
        if isinstance(result, QuorumqError):
            if awaited:
                self._lost(batch, result)
        else:
            answer = result.produced
            if answer.HasField("leader"):
                self._route.learn(queue.partition, answer.leader)
            if not answer.HasField("error"):
                self._stored(batch, answer)  # also when it is the answer to an older attempt
            elif awaited:
                self._refused(batch, from_message(answer.error))
        self.offer(queue)

    def _stored(self, batch: Batch, answer: ProduceResponse) -> None:
        queue = batch.queue
        if queue.link is not None:
            self._connection.node(queue.link.endpoint).succeeded()
        if batch.state is BatchState.SENT:
            self._in_flight -= 1
        queue.remove(batch)
        queue.stale_gaps = 0
        batch.stored(answer)
        self._on_done(batch)
        self._relist()

    def _lost(self, batch: Batch, error: QuorumqError) -> None:
        """The link broke before the answer."""
        batch.in_doubt |= not error.outcome_known
        if batch.in_doubt and not batch.queue.repeatable:
            self._fail(batch, error)
        else:
            self._wait(batch)
        self._connection.refresh_soon(self._route)

    def _refused(self, batch: Batch, error: QuorumqError) -> None:
        queue = batch.queue
        if error.leader is not None:
            self._route.learn(queue.partition, error.leader)
        if error.reason == "SEQUENCE_GAP" and self._gap_will_close(batch, error):
            self._wait(batch)
            return
        batch.in_doubt |= not error.outcome_known
        if error.retriable and (queue.repeatable or not batch.in_doubt):
            self._retry(batch, error)
        elif queue.identity is None:
            self._fail(batch, error)
        else:
            self._fatal(batch, error)

    def _gap_will_close(self, batch: Batch, error: QuorumqError) -> bool:
        """Whether what is missing before the batch is on its way again: something before it was
        refused or lost, and those behind were refused because of that.

        If nothing is missing as far as we know, the answer may be older than what another link
        acknowledged since; a few times that is believed. After that the partition has lost what it
        acknowledged, or has something of ours that we do not know of."""
        expected = error.expected_sequence
        if expected is None or expected > batch.base_sequence:
            return False
        outstanding = batch.queue.outstanding
        if any(earlier.base_sequence == expected for earlier in outstanding):
            return True
        batch.queue.stale_gaps += 1
        return batch.queue.stale_gaps <= STALE_GAPS_MAX

    def _retry(self, batch: Batch, error: QuorumqError) -> None:
        """Certainly not stored, or harmless to repeat: once more, after a while."""
        queue = batch.queue
        self._wait(batch)
        batch.refusals += 1
        if error.reason == "NODE_DRAINING" and queue.link is not None:
            self._connection.node(queue.link.endpoint).avoid(DRAINING_AVOIDED_S)
            return
        if error.reason == "NOT_LEADER" and error.leader is not None and batch.refusals < 3:
            return
        if error.retry_after_ms is not None:
            self._pause(queue, error.retry_after_ms / 1000)
        else:
            self._pause(queue, backoff_s(batch.refusals, self._connection.rng))
        if not isinstance(error, Unreachable):
            self._connection.refresh_soon(self._route)

    def _wait(self, batch: Batch) -> None:
        batch.queue.mark_waiting(batch)
        self._in_flight -= 1
        self._relist()

    def _fail(self, batch: Batch, error: QuorumqError) -> None:
        """This batch only: without identity the others do not depend on it."""
        if batch.in_doubt and error.outcome_known:
            error = OutcomeUnknown(f"refused now, but an earlier attempt may be stored: {error}")
        if batch.state is BatchState.SENT:
            self._in_flight -= 1
        batch.queue.remove(batch)
        batch.failed(error)
        self._on_done(batch)
        self._relist()

    def _fatal(self, batch: Batch, error: QuorumqError) -> None:
        """Without this batch the ones behind it can never be stored, or the identity is gone."""
        self._fail(batch, error)
        self._on_fatal(error)
        self.abort(error)

    def _relist(self) -> None:
        """The window has room again."""
        if self._listed and not self._pump_asked:
            self._pump_asked = True
            self._loop.call_soon(self._pump)

    # ----------------------------------------------------------------------------- routes and time

    def _leader_changed(self, partition: int) -> None:
        for queue in self._queues_of(partition):
            self.offer(queue)

    def _queues_of(self, partition: int) -> Iterable[PartitionQueue]:
        return [queue for queue in self._queues if queue.partition == partition]

    def _watch_over(self) -> None:
        """While anything is under way: time limits, and nodes that do not answer."""
        self._watch = None
        now = self._loop.time()
        message = f"not acknowledged within {self._delivery_timeout_s:g} s"
        busy = False
        for queue in self._queues:
            if not (queue.outstanding or queue.sealed or queue.open):
                continue
            busy = True
            for batch in queue.expire(now - self._delivery_timeout_s, message):
                self._on_done(batch)
            self._look_after(queue, now)
            self.offer(queue)
        if busy and self._watch is None and not self._closed:
            self._watch = self._loop.call_later(WATCH_EVERY_S, self._watch_over)

    def _look_after(self, queue: PartitionQueue, now: float) -> None:
        sent_at = queue.oldest_sent_at()
        link = queue.link
        if sent_at is None or link is None or now - sent_at < STALLED_S:
            return
        if now - sent_at > SILENT_S:
            link.break_off(f"no answer for {SILENT_S:g} s")
            return
        leader = self._connection.leader_node(self._route, queue.partition)
        moved = leader is not None and leader.endpoint != link.endpoint
        if (
            moved
            and queue.repeatable
            and self._route.leader_epoch(queue.partition) > (queue.leader_epoch)
        ):
            # The node asked hangs or is cut off, and there is a newer leader: the copies it has are
            # harmless, for sequences say what they are.
            for batch in queue.outstanding:
                if batch.state is BatchState.SENT:
                    batch.in_doubt = True
                    self._wait(batch)
            queue.link = None
        else:
            self._connection.refresh_soon(self._route)
