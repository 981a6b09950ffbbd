"""Produce and ProduceStream: what comes in is bounded, split by partition where the client did not
choose one, put into its lanes (lanes.py), and answered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.controller.model import Topic
from cluster.raft.state import RandomSource
from cluster.tasks import TaskGroup
from node.batches import Share, split_by_partition
from node.ingest import NUMBER_MAX
from node.metrics import NodeCounters
from node.services.budget import Budget
from node.services.call import HOLD_S, Call, Deadline
from node.services.errors import THROTTLE_RETRY_MS, Refused, bad_request, reason_of, refused_of
from node.services.items import Item
from node.services.lanes import Lanes
from node.services.places import Places
from node.services.topic_settings import settings_of
from node.v1 import wire_pb2 as wire

Answer = Callable[[wire.ProduceResponse], None]


class StreamCall(Call, Protocol):
    async def write(self, response: wire.ProduceStreamResponse) -> None: ...


@dataclass(frozen=True, slots=True)
class ProduceLimits:
    """Produced and not answered yet. Unary calls above a limit are refused with THROTTLED; streams
    are read no further until there is room."""

    node_bytes_max: int = 128 << 20
    connection_bytes_max: int = 32 << 20
    connection_requests_max: int = 1_024


class Producing:
    def __init__(
        self,
        *,
        places: Places,
        lanes: Lanes,
        counters: NodeCounters,
        random: RandomSource,
        limits: ProduceLimits,
    ) -> None:
        self._places = places
        self._lanes = lanes
        self._counters = counters
        self._random = random
        self._limits = limits
        self._node_budget = Budget(bytes_max=limits.node_bytes_max)
        self._sessions: dict[_Session, None] = {}

    # --- services --------------------------------------------------------------------------------

    async def produce(self, request: wire.ProduceRequest, call: Call) -> wire.ProduceResponse:
        """One batch. Raises Refused."""
        loop = asyncio.get_running_loop()
        begun_at, deadline = loop.time(), Deadline.of(call)
        work = await self._prepare(request, deadline, forwarded=False, begun_at=begun_at)
        if not all(budget.fits(work.size) for budget in (self._node_budget, *work.budgets)):
            self._counters.throttled_requests += 1
            raise Refused(
                "THROTTLED", "too much is produced at once", retry_after_ms=THROTTLE_RETRY_MS
            )
        answered: asyncio.Future[wire.ProduceResponse] = loop.create_future()

        def answer(response: wire.ProduceResponse) -> None:
            if not answered.done():
                answered.set_result(response)

        self._node_budget.take(work.size)
        work.start(answer, lambda: self._node_budget.give(work.size), deadline.at)
        try:
            response = await answered
        finally:
            work.drop()
        if response.HasField("error"):
            raise Refused.from_error(response.error)
        return response

    async def produce_stream(
        self, requests: AsyncIterator[wire.ProduceStreamRequest], call: StreamCall
    ) -> None:
        """Pipelined; what goes wrong with one request is in its answer."""
        await self._stream(requests, call, forwarded=False)

    async def produce_forwarded(
        self, requests: AsyncIterator[wire.ProduceStreamRequest], call: StreamCall
    ) -> None:
        """The same from another node: what is not led here is refused with NOT_LEADER."""
        await self._stream(requests, call, forwarded=True)

    @property
    def inflight_bytes(self) -> int:
        return self._node_budget.bytes

    async def answered(self) -> None:
        """Returns when nothing is left that was taken in."""
        await self._node_budget.empty()

    def stop_reading(self) -> None:
        """The node stops: streams end when all that was read from them is answered."""
        for session in self._sessions:
            session.stop_reading()

    # --- one stream ------------------------------------------------------------------------------

    async def _stream(
        self,
        requests: AsyncIterator[wire.ProduceStreamRequest],
        call: StreamCall,
        *,
        forwarded: bool,
    ) -> None:
        session = _Session(self._limits, None if forwarded else self._counters)
        self._sessions[session] = None
        try:
            async with TaskGroup("produce stream") as tasks:
                session.reader = tasks.start(
                    self._read(requests, session, forwarded=forwarded), name="read"
                )
                session.reader.add_done_callback(lambda _task: session.wake.set())
                await session.write_answers(call)
        finally:
            del self._sessions[session]
            for work in list(session.open):
                work.drop()

    async def _read(
        self,
        requests: AsyncIterator[wire.ProduceStreamRequest],
        session: _Session,
        *,
        forwarded: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        async for message in requests:
            request, begun_at = message.produce, loop.time()
            try:
                work = await self._prepare(
                    request, Deadline(HOLD_S), forwarded=forwarded, begun_at=begun_at
                )
            except Refused as refused:
                session.answer(_refused(request, refused))
                continue
            budgets = (self._node_budget, session.budget, *work.budgets)
            while (full := _first_full(budgets, work.size)) is not None:
                await full.given()
            self._start(work, session, loop.time() + HOLD_S)

    def _start(self, work: _Work, session: _Session, answer_by: float) -> None:
        session.open[work] = None
        session.budget.take(work.size)
        self._node_budget.take(work.size)

        def finished() -> None:
            session.open.pop(work, None)
            session.budget.give(work.size)
            self._node_budget.give(work.size)

        work.start(session.answer, finished, answer_by)

    # --- one request -----------------------------------------------------------------------------

    async def _prepare(
        self,
        request: wire.ProduceRequest,
        deadline: Deadline,
        *,
        forwarded: bool,
        begun_at: float,
    ) -> _Work:
        """Raises Refused."""
        topic_id = request.topic_id if request.HasField("topic_id") else None
        topic = self._places.known_topic(request.topic, topic_id)
        if topic is None:
            topic = await self._places.topic(request.topic, topic_id, deadline)
        _check(request)
        work = _Work(self._lanes, topic, request.request_id, len(request.batch))
        if request.HasField("partition"):
            self._places.group_id(topic, request.partition)
            work.add(request, None, forwarded=forwarded, begun_at=begun_at)
            return work
        for share in self._split(topic, request):
            part = wire.ProduceRequest(
                topic=request.topic, partition=share.partition, batch=share.batch
            )
            places = None if len(share.batch) == work.size else share.places
            work.add(part, places, forwarded=forwarded, begun_at=begun_at)
        return work

    def _split(self, topic: Topic, request: wire.ProduceRequest) -> list[Share]:
        limits = settings_of(topic).limits
        if len(request.batch) > limits.batch_bytes_max + limits.record_bytes_max:
            raise Refused(
                "BATCH_TOO_LARGE",
                f"the batch has {len(request.batch)} bytes, {limits.batch_bytes_max} are allowed",
            )
        try:
            return split_by_partition(
                request.batch,
                hash_slots=topic.hash_slots,
                partition_of_slot=topic.partition_of_slot,
                keyless_partition=self._random.randrange(0, topic.partitions),
                inflated_bytes_max=limits.batch_bytes_max,
            )
        except Exception as error:
            raise refused_of(error) from error


class _Session:
    """One produce stream."""

    def __init__(self, limits: ProduceLimits, counters: NodeCounters | None) -> None:
        """`counters`: of the errors that a client is told in answers."""
        self._counters = counters
        self.budget = Budget(
            bytes_max=limits.connection_bytes_max, requests_max=limits.connection_requests_max
        )
        self.open: dict[_Work, None] = {}
        self.wake = asyncio.Event()
        self.reader: asyncio.Task[None] | None = None
        self._answers: deque[wire.ProduceResponse] = deque()

    def answer(self, response: wire.ProduceResponse) -> None:
        if self._counters is not None and response.HasField("error"):
            self._counters.count_error(reason_of(response.error))
        self._answers.append(response)
        self.wake.set()

    def stop_reading(self) -> None:
        if self.reader is not None:
            self.reader.cancel()

    async def write_answers(self, call: StreamCall) -> None:
        """Returns when reading has ended and all is answered."""
        assert self.reader is not None
        while True:
            while self._answers:
                response = self._answers.popleft()
                await call.write(wire.ProduceStreamResponse(produced=response))
            if self.reader.done() and not self.open and not self._answers:
                return
            self.wake.clear()
            await self.wake.wait()


class _Work:
    """One request: an item for each partition that it concerns, and the answer made of theirs."""

    def __init__(self, lanes: Lanes, topic: Topic, request_id: int, size: int) -> None:
        self.size = size
        self._lanes = lanes
        self._topic = topic
        self._request_id = request_id
        self._items: list[Item] = []
        self._places: list[Sequence[int] | None] = []
        self._responses: dict[int, wire.ProduceResponse] = {}
        self._unfinished = 0
        self._answer: Answer | None = None
        self._finished: Callable[[], None] = _nothing

    @property
    def budgets(self) -> list[Budget]:
        """Of the partitions."""
        topic = self._topic
        return [self._lanes.budget(topic.group_ids[i.request.partition]) for i in self._items]

    def add(
        self,
        request: wire.ProduceRequest,
        places: Sequence[int] | None,
        *,
        forwarded: bool,
        begun_at: float,
    ) -> None:
        """`places`: where the records stood in the client's request, None = it is all of it."""
        number = len(self._items)
        self._items.append(
            Item(
                topic=self._topic,
                request=request,
                forwarded=forwarded,
                begun_at=begun_at,
                answer=lambda response: self._item_answered(number, response),
                finished=self._item_finished,
            )
        )
        self._places.append(places)

    def start(self, answer: Answer, finished: Callable[[], None], answer_by: float) -> None:
        """`answer` is called at most once, `finished` once when nothing is kept any more."""
        self._answer, self._finished = answer, finished
        self._unfinished = len(self._items)
        for item in self._items:
            self._lanes.add(item, answer_by=answer_by)

    def drop(self) -> None:
        self._answer = None
        for item in self._items:
            self._lanes.drop(item)

    def _item_answered(self, number: int, response: wire.ProduceResponse) -> None:
        self._responses[number] = response
        if len(self._responses) < len(self._items) or self._answer is None:
            return
        if len(self._items) > 1:
            response = self._combined()
        response.request_id = self._request_id
        self._answer(response)

    def _item_finished(self, _item: Item) -> None:
        self._unfinished -= 1
        if not self._unfinished:
            finished, self._finished, self._answer = self._finished, _nothing, None
            # Items point here. Without this, batches would live until the garbage collector came.
            self._items.clear()
            finished()

    def _combined(self) -> wire.ProduceResponse:
        """One result a record. When nothing at all was stored, the answer is an error."""
        results: dict[int, wire.ProduceResult] = {}
        for number, places in enumerate(self._places):
            assert places is not None, "one of several shares is the whole request"
            for result, place in zip(
                _results(self._responses[number], len(places)), places, strict=True
            ):
                results[place] = result
        in_order = [results[place] for place in range(len(results))]
        first = in_order[0]
        combined = wire.ProduceResponse(
            partition=first.partition,
            base_offset=first.offset,
            append_time_ms=first.append_time_ms,
            record_count=len(in_order),
            duplicate=all(result.duplicate for result in in_order),
            results=in_order,
        )
        if all(result.HasField("error") for result in in_order):
            known = all(result.error.outcome_known for result in in_order)
            worst = next(r.error for r in in_order if known or not r.error.outcome_known)
            combined.error.CopyFrom(worst)
        return combined


def _nothing() -> None: ...


def _results(response: wire.ProduceResponse, count: int) -> list[wire.ProduceResult]:
    if response.results:
        return list(response.results)
    if response.HasField("error"):
        return [wire.ProduceResult(partition=response.partition, error=response.error)] * count
    return [
        wire.ProduceResult(
            partition=response.partition,
            offset=response.base_offset + place,
            append_time_ms=response.append_time_ms,
            duplicate=response.duplicate,
        )
        for place in range(count)
    ]


def _check(request: wire.ProduceRequest) -> None:
    """What is wrong whatever the batch holds. Raises Refused."""
    if not request.HasField("batch"):
        raise bad_request("batch", "is required")
    if not request.HasField("partition"):
        for field in ("producer", "expected_next_offset"):
            if request.HasField(field):
                raise bad_request("partition", f"is required with {field}")
    if request.request_id > NUMBER_MAX:
        raise bad_request("request_id", f"{request.request_id} is above 2^53-1")
    if request.HasField("producer"):
        producer = request.producer
        for field, value in (("producer_id", producer.producer_id), ("epoch", producer.epoch)):
            if not 1 <= value <= NUMBER_MAX:
                raise bad_request(f"producer.{field}", f"{value} is not within 1 to 2^53-1")
        if producer.base_sequence > NUMBER_MAX:
            raise bad_request("producer.base_sequence", f"{producer.base_sequence} is above 2^53-1")


def _first_full(budgets: Sequence[Budget], size: int) -> Budget | None:
    return next((budget for budget in budgets if not budget.fits(size)), None)


def _refused(request: wire.ProduceRequest, refused: Refused) -> wire.ProduceResponse:
    assert reason_of(refused.error)
    response = wire.ProduceResponse(request_id=request.request_id, error=refused.error)
    if request.HasField("partition"):
        response.partition = request.partition
    return response
