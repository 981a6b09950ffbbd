"""Nodes that serve the model: every node takes every request, goes to the leader by itself, and
holds a request while there is none. Faults are asked for by the tests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from quorumq import methods
from quorumq.channel import Method
from quorumq.in_process import Handler
from quorumq.v1 import admin_pb2, errors_pb2, messaging_pb2, records_pb2
from tests.client_bed.model import Partition, Refused, Topic, plain

HOLD_S = 10.0


class LoseConnection(Exception):
    """The node breaks the call off without an answer."""


@dataclass
class Faults:
    """What happens to the next produce requests, first in first out."""

    lose_answers: int = 0  # store, then break the stream instead of answering
    lose_calls: int = 0  # the same for unary calls that change topics
    refuse: deque[Refused] = field(default_factory=deque)
    hang: list[str] = field(default_factory=list)  # endpoints that take requests and do nothing
    draining: list[str] = field(default_factory=list)  # endpoints that send everybody elsewhere
    statuses: deque[messaging_pb2.PartitionStatus] = field(
        default_factory=deque
    )  # of the next Read
    produced: int = 0  # requests that arrived at a leader, repeats included
    forwarded: int = 0  # of them, those that came to another node first
    reads: int = 0  # Read calls
    deliveries: int = 0  # of all of them


class ModelCluster:
    """`endpoints`: of the nodes. Partition leaders are spread over them in turn."""

    def __init__(self, endpoints: list[str]) -> None:
        self.endpoints = endpoints
        self.topics: dict[str, Topic] = {}
        self.faults = Faults()
        self.names: dict[str, tuple[int, int]] = {}  # producer name -> id, epoch
        self.now_ms = 1_700_000_000_000
        self._last_producer_id = 0
        self._topics_made = 0
        self._changed: list[asyncio.Future[None]] = []

    def create(self, name: str, partitions: int, **limits: int) -> Topic:
        self._topics_made += 1
        made = [Partition(number) for number in range(partitions)]
        for partition in made:
            partition.leader = self.endpoints[partition.number % len(self.endpoints)]
            partition.leader_epoch = 1
        topic = Topic(name, f"topic-{self._topics_made}", made, **limits)
        self.topics[name] = topic
        return topic

    def move_leader(self, topic: str, partition: int, endpoint: str | None) -> None:
        """None: nobody leads until the next move."""
        moved = self.topics[topic].partitions[partition]
        moved.leader = endpoint
        moved.leader_epoch += 1
        self.changed()

    def changed(self) -> None:
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        await waiter

    def topic(self, name: str, topic_id: str) -> Topic:
        topic = self.topics.get(name)
        if topic is None:
            raise Refused("TOPIC_NOT_FOUND", name)
        if topic_id and topic.topic_id != topic_id:
            raise Refused("TOPIC_REPLACED", f"{topic_id} is {topic.topic_id} now")
        return topic

    def new_producer_id(self) -> int:
        self._last_producer_id += 1
        return self._last_producer_id

    def leader_of(self, partition: Partition) -> errors_pb2.Leader | None:
        if partition.leader is None:
            return None
        return errors_pb2.Leader(
            node_id=self.endpoints.index(partition.leader) + 1,
            client_endpoint=partition.leader,
            leader_epoch=partition.leader_epoch,
        )


class ModelNode:
    """One node's handlers."""

    def __init__(self, cluster: ModelCluster, endpoint: str) -> None:
        self.cluster = cluster
        self.endpoint = endpoint

    def handlers(self) -> dict[str, Handler]:
        functions: list[tuple[Method[Any, Any], Any]] = [
            (methods.OPEN_PRODUCER, self.open_producer),
            (methods.PRODUCE_STREAM, self.produce_stream),
            (methods.READ, self.read),
            (methods.COMMIT, self.commit),
            (methods.GET_POSITIONS, self.get_positions),
            (methods.CREATE_TOPIC, self.create_topic),
            (methods.DELETE_TOPIC, self.delete_topic),
            (methods.CREATE_SUBSCRIPTION, self.create_subscription),
            (methods.GET_METADATA, self.get_metadata),
            (methods.LIST_OFFSETS, self.list_offsets),
            (methods.GET_RECORD, self.get_record),
        ]
        return {method.path: Handler(method, function) for method, function in functions}

    # --------------------------------------------------------------------------------- produce

    async def open_producer(
        self, request: messaging_pb2.OpenProducerRequest, _call: Any
    ) -> messaging_pb2.OpenProducerResponse:
        cluster = self.cluster
        await self._not_hanging()
        self._not_draining()
        topics = [cluster.topic(name, "") for name in request.topics]
        producer_id, epoch = cluster.names.get(request.name, (0, 0))
        producer_id, epoch = producer_id or cluster.new_producer_id(), epoch + 1
        if request.HasField("name"):
            cluster.names[request.name] = (producer_id, epoch)
        answer = messaging_pb2.OpenProducerResponse(producer_id=producer_id, epoch=epoch)
        for topic in topics:
            for partition in topic.partitions:
                known = partition.open_producer(producer_id, epoch)
                told = answer.partitions.add(
                    topic=topic.name, topic_id=topic.topic_id, partition=partition.number
                )
                if known.last_offset >= 0:
                    told.last_sequence = known.next_sequence - 1
                    told.last_offset = known.last_offset
        return answer

    async def produce_stream(self, requests: Any, call: Any) -> None:
        """Answers in order within a partition; partitions do not wait for each other."""
        queues: dict[int, asyncio.Queue[messaging_pb2.ProduceRequest]] = {}
        async with asyncio.TaskGroup() as tasks:
            workers = []
            async for request in requests:
                produce = request.produce
                queue = queues.get(produce.partition)
                if queue is None:
                    queue = queues[produce.partition] = asyncio.Queue()
                    workers.append(tasks.create_task(self._work(queue, call)))
                queue.put_nowait(produce)
            for worker in workers:
                worker.cancel()

    async def _work(self, queue: asyncio.Queue[messaging_pb2.ProduceRequest], call: Any) -> None:
        while True:
            request = await queue.get()
            answer = await self._produce(request)
            answer.request_id = request.request_id
            await call.write(messaging_pb2.ProduceStreamResponse(produced=answer))

    async def _produce(
        self, request: messaging_pb2.ProduceRequest
    ) -> messaging_pb2.ProduceResponse:
        cluster = self.cluster
        try:
            await self._not_hanging()
            self._not_draining()
            topic = cluster.topic(request.topic, request.topic_id)
            partition = topic.partitions[request.partition]
            await self._leader(partition)
            cluster.faults.produced += 1
            cluster.faults.forwarded += partition.leader != self.endpoint
            if cluster.faults.refuse:
                raise cluster.faults.refuse.popleft()
            answer = partition.produce(request, cluster.now_ms)
        except Refused as refused:
            answer = messaging_pb2.ProduceResponse(error=refused.error)
        else:
            leader = cluster.leader_of(partition)
            if leader is not None:
                answer.leader.CopyFrom(leader)
            cluster.changed()
        if cluster.faults.lose_answers and not answer.HasField("error"):
            cluster.faults.lose_answers -= 1
            raise LoseConnection
        return answer

    async def _leader(self, partition: Partition) -> None:
        try:
            async with asyncio.timeout(HOLD_S):
                while partition.leader is None:
                    await self.cluster.change()
        except TimeoutError:
            raise Refused("NO_LEADER", retriable=True) from None

    async def _not_hanging(self) -> None:
        while self.endpoint in self.cluster.faults.hang:
            await self.cluster.change()

    def _not_draining(self) -> None:
        if self.endpoint in self.cluster.faults.draining:
            raise Refused("NODE_DRAINING", self.endpoint, retriable=True)

    # ------------------------------------------------------------------------------------ read

    async def read(
        self, request: messaging_pb2.ReadRequest, _call: Any
    ) -> AsyncIterator[messaging_pb2.ReadResponse]:
        cluster = self.cluster
        cluster.faults.reads += 1
        topic = cluster.topic(request.topic, request.topic_id)
        at: dict[int, int] = {}
        until: dict[int, int] = {}
        for wanted in request.partitions:
            partition = topic.partitions[wanted.partition]
            if wanted.offset > partition.next_offset:
                error = Refused("OFFSET_OUT_OF_RANGE", str(wanted.offset)).error
                yield messaging_pb2.ReadResponse(
                    status=messaging_pb2.PartitionStatus(partition=wanted.partition, error=error)
                )
                continue
            at[wanted.partition] = max(wanted.offset, partition.earliest)
            if wanted.HasField("until_offset"):
                until[wanted.partition] = wanted.until_offset
            elif not request.follow:
                until[wanted.partition] = partition.next_offset
        while cluster.faults.statuses:
            yield messaging_pb2.ReadResponse(status=cluster.faults.statuses.popleft())
        while at:
            await self._not_hanging()
            if self.endpoint in cluster.faults.draining:
                yield messaging_pb2.ReadResponse(go_away=messaging_pb2.GoAway(deadline_ms=500))
                await asyncio.sleep(0.5)
                return
            before = dict(at)
            for number in list(at):
                for response in self._events(topic, number, at, until):
                    yield response
            if at == before:
                await cluster.change()

    def _events(
        self, topic: Topic, number: int, at: dict[int, int], until: dict[int, int]
    ) -> list[messaging_pb2.ReadResponse]:
        """The next whole batch, though reading may begin or end inside it; or the end."""
        partition = topic.partitions[number]
        stored = next((b for b in partition.batches if b.end > at[number]), None)
        if number in until and at[number] >= until[number]:
            end = messaging_pb2.EndOfPartition(partition=number, next_offset=at.pop(number))
            return [messaging_pb2.ReadResponse(end_of_partition=end)]
        if stored is None:
            return []
        at[number] = stored.end
        self.cluster.faults.deliveries += 1
        delivery = messaging_pb2.Delivery(
            partition=number,
            base_offset=stored.base_offset,
            next_offset=stored.end,
            append_time_ms=stored.append_time_ms,
            batch=stored.batch,
            leader_epoch=partition.leader_epoch,
            topic_id=topic.topic_id,
        )
        return [messaging_pb2.ReadResponse(delivery=delivery)]

    async def commit(
        self, request: messaging_pb2.CommitRequest, _call: Any
    ) -> messaging_pb2.CommitResponse:
        topic = self.cluster.topic(request.topic, request.topic_id)
        answer = messaging_pb2.CommitResponse()
        unknown = self._unknown_subscription(topic, request.subscription)
        for wanted in request.positions:
            if unknown is not None:
                answer.results.add(partition=wanted.partition, error=unknown)
                continue
            positions = topic.partitions[wanted.partition].positions
            positions[request.subscription] = (wanted.position, wanted.metadata)
            answer.results.add(partition=wanted.partition, position=wanted.position)
        return answer

    async def get_positions(
        self, request: messaging_pb2.GetPositionsRequest, _call: Any
    ) -> messaging_pb2.GetPositionsResponse:
        topic = self.cluster.topic(request.topic, request.topic_id)
        answer = messaging_pb2.GetPositionsResponse()
        if self._unknown_subscription(topic, request.subscription) is not None:
            raise Refused("SUBSCRIPTION_NOT_FOUND", request.subscription)
        for partition in topic.partitions:
            told = answer.positions.add(
                partition=partition.number, end_offset=partition.next_offset
            )
            if request.subscription in partition.positions:
                told.position, told.metadata = partition.positions[request.subscription]
        return answer

    def _unknown_subscription(self, topic: Topic, name: str) -> errors_pb2.Error | None:
        if name in topic.subscriptions:
            return None
        return Refused("SUBSCRIPTION_NOT_FOUND", name).error

    # ----------------------------------------------------------------------------------- admin

    async def create_subscription(
        self, request: admin_pb2.CreateSubscriptionRequest, _call: Any
    ) -> admin_pb2.CreateSubscriptionResponse:
        topic = self.cluster.topic(request.topic, "")
        topic.subscriptions.append(request.name)
        info = admin_pb2.SubscriptionInfo(topic=topic.name, name=request.name)
        return admin_pb2.CreateSubscriptionResponse(subscription=info)

    async def create_topic(
        self, request: admin_pb2.CreateTopicRequest, _call: Any
    ) -> admin_pb2.CreateTopicResponse:
        existed = request.name in self.cluster.topics
        if not existed:
            self.cluster.create(request.name, request.config.partitions or 1)
        topic = self.cluster.topics[request.name]
        if len(topic.partitions) != (request.config.partitions or 1):
            raise Refused("ALREADY_EXISTS", request.name)
        self._lose_call()
        info = admin_pb2.TopicInfo(name=topic.name, topic_id=topic.topic_id)
        return admin_pb2.CreateTopicResponse(topic=info, already_existed=existed)

    async def delete_topic(
        self, request: admin_pb2.DeleteTopicRequest, _call: Any
    ) -> admin_pb2.DeleteTopicResponse:
        topic = self.cluster.topic(request.name, request.topic_id)
        del self.cluster.topics[request.name]
        self._lose_call()
        return admin_pb2.DeleteTopicResponse(topic_id=topic.topic_id)

    def _lose_call(self) -> None:
        if self.cluster.faults.lose_calls:
            self.cluster.faults.lose_calls -= 1
            raise LoseConnection

    async def get_metadata(
        self, request: admin_pb2.GetMetadataRequest, _call: Any
    ) -> admin_pb2.GetMetadataResponse:
        await self._not_hanging()
        cluster = self.cluster
        answer = admin_pb2.GetMetadataResponse(cluster_id="model")
        for number, endpoint in enumerate(cluster.endpoints):
            answer.nodes.add(node_id=number + 1, client_endpoint=endpoint)
        for name in request.topics:
            told = answer.topics.add(name=name)
            topic = cluster.topics.get(name)
            if topic is None:
                told.error.CopyFrom(Refused("TOPIC_NOT_FOUND", name).error)
                continue
            told.topic_id = topic.topic_id
            told.partition_count = len(topic.partitions)
            told.hash_slots = len(topic.partitions) * 64
            told.record_bytes_max = topic.record_bytes_max
            told.batch_bytes_max = topic.batch_bytes_max
            for partition in topic.partitions:
                place = told.partitions.add(partition=partition.number)
                leader = cluster.leader_of(partition)
                if leader is not None:
                    place.leader.CopyFrom(leader)
        return answer

    async def list_offsets(
        self, request: admin_pb2.ListOffsetsRequest, _call: Any
    ) -> admin_pb2.ListOffsetsResponse:
        topic = self.cluster.topic(request.topic, request.topic_id)
        answer = admin_pb2.ListOffsetsResponse()
        for query in request.queries:
            partition = topic.partitions[query.partition]
            offset = partition.next_offset
            if query.WhichOneof("at") == "earliest":
                offset = partition.earliest
            elif query.WhichOneof("at") == "time_ms":
                late = (b for b in partition.batches if b.append_time_ms >= query.time_ms)
                offset = next((b.base_offset for b in late), partition.next_offset)
            answer.results.add(partition=query.partition, offset=offset)
        return answer

    async def get_record(
        self, request: admin_pb2.GetRecordRequest, _call: Any
    ) -> admin_pb2.GetRecordResponse:
        topic = self.cluster.topic(request.topic, request.topic_id)
        partition = topic.partitions[request.partition]
        for stored in partition.batches:
            if request.offset in stored.offsets:
                at = stored.offsets.index(request.offset)
                record: records_pb2.Record = plain(stored.batch)[at]
                return admin_pb2.GetRecordResponse(
                    topic_id=topic.topic_id,
                    partition=request.partition,
                    offset=request.offset,
                    append_time_ms=stored.append_time_ms,
                    record=record,
                )
        if request.offset >= partition.next_offset:
            raise Refused("OFFSET_OUT_OF_RANGE", str(request.offset))
        raise Refused("RECORD_NOT_FOUND", str(request.offset))
