"""A produce request on its way: what of it each command stores, and what became of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.controller.model import Topic
from node.batches import split_by_dedup_id
from node.ingest import BatchRefused, Ingested, ingest
from node.partition import commands
from node.partition.commands import Appended, ProducerSequence
from node.services.topic_settings import settings_of
from node.v1 import wire_pb2 as wire
from quorumq.v1 import errors_pb2 as pb


class Part:
    """What one command stores of an item: all of it, unless records have dedup ids."""

    __slots__ = ("ingested", "outcome", "sequence", "under_way")

    def __init__(self, ingested: Ingested, sequence: ProducerSequence | None) -> None:
        self.ingested = ingested
        self.sequence = sequence
        self.outcome: Appended | pb.Error | None = None
        self.under_way = False

    @property
    def is_repeatable(self) -> bool:
        return self.sequence is not None or any(self.ingested.dedup_ids)


class Item:
    """One request to one partition. `answer` is called once, with the response; `finished` once,
    when nothing of the request is kept any more. `forwarded`: another node sent it on to here."""

    __slots__ = (
        "answer",
        "attempt",
        "begun_at",
        "finished",
        "forwarded",
        "in_doubt",
        "is_answered",
        "number",
        "parts",
        "request",
        "request_id",
        "size",
        "timer",
        "topic",
    )

    def __init__(
        self,
        *,
        topic: Topic,
        request: wire.ProduceRequest,
        forwarded: bool,
        begun_at: float,
        answer: Callable[[wire.ProduceResponse], None],
        finished: Callable[[Item], None],
    ) -> None:
        self.topic = topic
        self.request = request
        self.request_id = request.request_id
        self.size = len(request.batch)
        self.forwarded = forwarded
        self.begun_at = begun_at
        self.answer = answer
        self.finished = finished
        self.number = 0  # its place in the lane
        self.attempt = 0
        self.in_doubt = False
        self.is_answered = False
        self.parts: list[Part] = []
        self.timer: asyncio.TimerHandle | None = None

    def prepare(self) -> None:
        """Check the batch, once. Raises BatchRefused."""
        if self.parts:
            return
        limits = settings_of(self.topic).limits
        request = self.request
        has_producer = request.HasField("producer")
        whole = ingest(request.batch, limits, has_producer=has_producer)
        split = split_by_dedup_id(whole, limits, has_producer=has_producer)
        if len(split) > 1 and request.HasField("expected_next_offset"):
            raise BatchRefused(
                commands.Reason.BAD_REQUEST, "expected_next_offset with several dedup ids"
            )
        sequence = request.producer.base_sequence
        for ingested in split:
            identity = None
            if has_producer:
                producer = request.producer
                identity = ProducerSequence(producer.producer_id, producer.epoch, sequence)
                sequence += ingested.record_count
            self.parts.append(Part(ingested, identity))

    def is_repeatable(self) -> bool:
        """Whether storing it again, after it may have been stored, changes nothing."""
        if self.request.HasField("producer"):
            return True
        try:
            self.prepare()
        except BatchRefused:
            return True  # it will be refused again
        return all(part.is_repeatable for part in self.parts)
