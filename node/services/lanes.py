"""One lane a partition: produced batches in the order they came, on their way to the leader.

    came in -> waiting -> under way (proposed here, or sent to the node that leads) -> answered
                  ^------------ back ------------'

A batch comes back when it is certainly not stored, or when it may be and repeating it is harmless.
Then nothing more is sent before all that is under way has been answered, and what came back goes
first, in the old order: a producer's sequences stay in order through any change of leader.
While nobody leads, batches wait, until their deadline.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from cluster.group import OutcomeUnknown, ProposalLost
from cluster.raft.errors import RaftRefused
from cluster.tasks import TaskGroup
from node import codec
from node.ingest import BatchRefused
from node.metrics import NodeCounters
from node.partition import commands
from node.partition.commands import Appended
from node.partitions import LocalPartition
from node.services.budget import Budget
from node.services.errors import Refused, of_reply, reason_of, refused_of
from node.services.items import Item, Part
from node.services.links import Links
from node.services.places import Leadership, Places
from node.v1 import wire_pb2 as wire
from quorumq.errors import QuorumqError, Unreachable
from quorumq.v1 import errors_pb2 as pb

_PAUSE_S = 0.02

# The node asked will not have it now, another one or a later moment may.
_TRY_AGAIN = frozenset({"NOT_LEADER", "NO_LEADER", "NODE_DRAINING", "THROTTLED"})


class Lane:
    def __init__(self, lanes: Lanes, group_id: int) -> None:
        self._lanes = lanes
        self._group_id = group_id
        self._waiting: OrderedDict[Item, None] = OrderedDict()  # oldest first
        self._last_number = 0
        self._under_way: dict[Item, Leadership] = {}  # in order of sending, and to whom
        self._back: dict[Item, None] = {}
        self._watch: asyncio.Task[None] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self.budget = Budget(bytes_max=lanes.lane_bytes_max)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._back)

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._under_way or self._back or self._watch or self._pause)

    def add(self, item: Item) -> None:
        self.budget.take(item.size)
        self._last_number += 1
        item.number = self._last_number
        self._waiting[item] = None
        self.pump()

    def expire(self, item: Item) -> None:
        """The item's deadline is here."""
        item.timer = None
        if item in self._under_way or item.in_doubt:
            error = Refused(
                "OUTCOME_UNKNOWN", "no answer in time", retriable=item.is_repeatable()
            ).error
        else:
            error = Refused("NO_LEADER", "the partition had no leader in time").error
        self._answer(item, self._lanes.response(item, error))
        sent_to = self._under_way.get(item)
        if sent_to is None:
            self._forget(item)
        elif sent_to[0] != self._lanes.places.node_id:
            self._came_back(item)  # that node may never answer
            self.pump()

    def refuse_all(self, why: Refused) -> None:
        """The node stops: what waits is certainly not stored, unless it is in doubt."""
        if self._watch is not None:
            self._watch.cancel()
        if self._pause is not None:
            self._pause.cancel()
        for item in (*self._back, *self._waiting, *self._under_way):
            if item.is_answered:
                continue
            refused = why
            if item.in_doubt or item in self._under_way:
                refused = Refused("OUTCOME_UNKNOWN", str(why), retriable=item.is_repeatable())
            self._answer(item, self._lanes.response(item, refused.error))
            if item not in self._under_way:
                self._forget(item)

    def drop(self, item: Item) -> None:
        """Nobody waits for the answer any more."""
        if not item.is_answered:
            item.is_answered = True
            if item.timer is not None:
                item.timer.cancel()
                item.timer = None
            if item not in self._under_way:
                self._forget(item)

    def _forget(self, item: Item) -> None:
        """An answered item that is not under way: nothing of it is kept."""
        self._waiting.pop(item, None)
        self._back.pop(item, None)
        self._lanes.finish(self, item)

    # --- sending ---------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what can be sent now."""
        if self._pause is not None:
            return
        if self._back:
            if self._under_way:
                return
            back = sorted(self._back, key=lambda item: item.number)
            self._waiting = OrderedDict.fromkeys([*back, *self._waiting])
            self._back.clear()
        while self._waiting:
            item = next(iter(self._waiting))
            if not self._send(item):
                return
            self._waiting.pop(item, None)

    def _send(self, item: Item) -> bool:
        """False if it has to wait; then `pump` is called again by what it waits for."""
        places = self._lanes.places
        local = places.led_here(self._group_id)
        if local is not None:
            return self._propose(local, item)
        known = places.leadership(self._group_id)
        if item.forwarded:
            reason = "OUTCOME_UNKNOWN" if item.in_doubt else "NOT_LEADER"
            error = Refused(reason, f"node {places.node_id} does not lead").error
            self._done(item, self._lanes.response(item, error))
            return True
        if known is None:
            self._watch_leader(None)
            return False
        if known[0] == places.node_id:
            self._pause_for(_PAUSE_S)  # elected, about to serve
            return False
        return self._forward(known, item)

    def _pause_for(self, seconds: float) -> None:
        if self._pause is None:
            loop = asyncio.get_running_loop()
            self._pause = loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self.pump()
        self._lanes.forget_if_idle(self._group_id, self)

    def _watch_leader(self, seen: Leadership | None) -> None:
        if self._watch is None:
            self._lanes.counters.held_requests += len(self._waiting) if seen is None else 0
            self._watch = self._lanes.tasks.start(
                self._follow_leader(seen), name=f"leader of group {self._group_id}"
            )

    async def _follow_leader(self, seen: Leadership | None) -> None:
        """Wait until somebody leads, other than `seen` or again. What is under way to another node
        need not be waited for then: that node may be cut off for long."""
        places = self._lanes.places
        await places.leader_change(self._group_id, seen)
        while (known := places.leadership(self._group_id)) is None:
            await places.leader_change(self._group_id, None)
        self._watch = None
        for item, sent_to in list(self._under_way.items()):
            if sent_to not in (known, (places.node_id, sent_to[1])) and item.is_repeatable():
                item.in_doubt = True
                self._came_back(item)
        if known in self._under_way.values() and known[0] != places.node_id:
            self._watch_leader(known)
        self.pump()
        self._lanes.forget_if_idle(self._group_id, self)

    # --- what becomes of it ----------------------------------------------------------------------

    def _came_back(self, item: Item) -> None:
        del self._under_way[item]
        item.attempt += 1  # answers to the former one are not heard
        if item.is_answered:
            self._lanes.finish(self, item)
        else:
            self._back[item] = None

    def _done(self, item: Item, response: wire.ProduceResponse) -> None:
        self._under_way.pop(item, None)
        self._answer(item, response)
        self._lanes.finish(self, item)

    def _answer(self, item: Item, response: wire.ProduceResponse) -> None:
        if item.is_answered:
            return
        item.is_answered = True
        if item.timer is not None:
            item.timer.cancel()
            item.timer = None
        item.answer(response)

    # --- proposing here --------------------------------------------------------------------------

    def _propose(self, local: LocalPartition, item: Item) -> bool:
        if self._lanes.disk_full():
            error = Refused("DISK_FULL", f"node {self._lanes.places.node_id} has no disk room")
            self._done(item, self._lanes.response(item, error.error))
            return True
        if self._lanes.pressure() >= 1.0:
            self._pause_for(_PAUSE_S)  # what comes meanwhile fills the budgets
            return False
        try:
            item.prepare()
        except BatchRefused as error:
            self._done(item, self._lanes.response(item, refused_of(error).error))
            return True
        group, term = local.group, local.group.term
        for part in item.parts:
            if part.outcome is not None:
                continue
            expected = item.request.expected_next_offset
            command = part.ingested.append(
                local.replica.stamp(),
                part.sequence,
                expected if item.request.HasField("expected_next_offset") else None,
            )
            try:
                future = group.propose(codec.encode_append(command), expected_term=term)
            except RaftRefused:
                break
            part.under_way = True
            future.add_done_callback(partial(self._proposed, item, part))
        if not any(part.under_way for part in item.parts):
            self._pause_for(_PAUSE_S)  # not led here now, or too much is uncommitted
            return False
        self._under_way[item] = (self._lanes.places.node_id, term)
        return True

    def _proposed(self, item: Item, part: Part, future: asyncio.Future[object]) -> None:
        part.under_way = False
        try:
            reply = future.result()
        except ProposalLost:
            pass
        except OutcomeUnknown as error:
            item.in_doubt = True
            if not part.is_repeatable:
                part.outcome = refused_of(error).error
        else:
            if isinstance(reply, Appended):
                part.outcome = reply
            else:
                assert isinstance(reply, commands.Refused), f"{reply!r} to an append"
                part.outcome = of_reply(reply).error
        if any(other.under_way for other in item.parts):
            return
        if all(other.outcome is not None for other in item.parts):
            self._done(item, self._lanes.stored(item))
        else:
            self._came_back(item)
        if self._waiting or self._back:
            self.pump()
        else:
            self._lanes.forget_if_idle(self._group_id, self)

    # --- sending on ------------------------------------------------------------------------------

    def _forward(self, known: Leadership, item: Item) -> bool:
        link = self._lanes.links.to(known[0])
        if link is None or link.is_full:
            self._pause_for(_PAUSE_S)
            return False
        item.request.topic_id = item.topic.topic_id
        answered = partial(self._forwarded, item, known, item.attempt)
        self._under_way[item] = known
        self._watch_leader(known)
        self._lanes.counters.forwarded_requests += 1
        link.send(item.request, answered)
        return True

    def _forwarded(
        self,
        item: Item,
        sent_to: Leadership,
        attempt: int,
        result: wire.ProduceStreamResponse | QuorumqError,
    ) -> None:
        if item.attempt != attempt or item not in self._under_way:
            return  # sent again meanwhile
        if isinstance(result, QuorumqError):
            if isinstance(result, Unreachable):
                self._came_back(item)
            else:
                self._in_doubt(item, str(result))
            self._pause_for(_PAUSE_S)
        else:
            response = result.produced
            reason = reason_of(response.error) if response.HasField("error") else ""
            if reason in _TRY_AGAIN:
                if reason == "NOT_LEADER":
                    self._lanes.places.lost(self._group_id, sent_to)
                else:
                    self._pause_for(_PAUSE_S)
                self._came_back(item)
            elif reason == "OUTCOME_UNKNOWN":
                self._in_doubt(item, response.error.message)
            else:
                response.request_id = item.request_id
                self._done(item, response)
        self.pump()
        self._lanes.forget_if_idle(self._group_id, self)

    def _in_doubt(self, item: Item, why: str) -> None:
        item.in_doubt = True
        if item.is_repeatable():
            self._came_back(item)
        else:
            self._done(item, self._lanes.response(item, Refused("OUTCOME_UNKNOWN", why).error))


class Lanes:
    """All lanes of a node; those with nothing in them are not kept. `disk_full`: this node takes no
    appends now. `pressure`: of its storage, see cluster.interfaces.Engine."""

    def __init__(
        self,
        *,
        places: Places,
        links: Links,
        counters: NodeCounters,
        tasks: TaskGroup,
        disk_full: Callable[[], bool],
        pressure: Callable[[], float],
        lane_bytes_max: int,
    ) -> None:
        self.places = places
        self.links = links
        self.counters = counters
        self.tasks = tasks
        self.disk_full = disk_full
        self.pressure = pressure
        self.lane_bytes_max = lane_bytes_max
        self._lanes: dict[int, Lane] = {}
        self._refusal: Refused | None = None  # the node stops: nothing is taken in any more

    def budget(self, group_id: int) -> Budget:
        """What the partition's lane may hold."""
        return self._lane(group_id).budget

    def add(self, item: Item, *, answer_by: float) -> None:
        """`answer_by`: the loop's time."""
        if self._refusal is not None:
            item.is_answered = True
            item.answer(self.response(item, self._refusal.error))
            item.finished(item)
            return
        lane = self._lane(item.topic.group_ids[item.request.partition])
        item.timer = asyncio.get_running_loop().call_at(answer_by, lane.expire, item)
        lane.add(item)

    def _lane(self, group_id: int) -> Lane:
        lane = self._lanes.get(group_id)
        if lane is None:
            lane = self._lanes[group_id] = Lane(self, group_id)
        return lane

    def refuse_all(self, why: Refused) -> None:
        """What is here and what still comes."""
        self._refusal = why
        for lane in list(self._lanes.values()):
            lane.refuse_all(why)

    @property
    def waiting(self) -> int:
        """Items that are not under way."""
        return sum(lane.waiting for lane in self._lanes.values())

    def drop(self, item: Item) -> None:
        lane = self._lanes.get(item.topic.group_ids[item.request.partition])
        if lane is not None:
            lane.drop(item)

    def finish(self, lane: Lane, item: Item) -> None:
        lane.budget.give(item.size)
        item.finished(item)

    def forget_if_idle(self, group_id: int, lane: Lane) -> None:
        if lane.is_idle and self._lanes.get(group_id) is lane:
            del self._lanes[group_id]

    # --- answers ---------------------------------------------------------------------------------

    def response(self, item: Item, error: pb.Error) -> wire.ProduceResponse:
        """Nothing was stored, or nobody knows."""
        response = wire.ProduceResponse(
            request_id=item.request_id, partition=item.request.partition, error=error
        )
        if error.HasField("expected_sequence"):
            response.expected_sequence = error.expected_sequence
        self._tell_leader(item, response)
        return response

    def _tell_leader(self, item: Item, response: wire.ProduceResponse) -> None:
        """Always: a client that came here because the former leader is dead must not go back."""
        leader = self.places.leader(item.topic.group_ids[item.request.partition])
        if leader is not None:
            response.leader.CopyFrom(leader)

    def stored(self, item: Item) -> wire.ProduceResponse:
        """All parts have their outcome."""
        first = item.parts[0]
        if len(item.parts) == 1 and not isinstance(first.outcome, Appended):
            assert first.outcome is not None
            return self.response(item, first.outcome)
        response = wire.ProduceResponse(
            request_id=item.request_id, partition=item.request.partition, duplicate=True
        )
        self._count(item)
        self._tell_leader(item, response)
        for part in item.parts:
            outcome = part.outcome
            response.record_count += part.ingested.record_count
            if not isinstance(outcome, Appended) or not outcome.duplicate:
                response.duplicate = False
            if part is first and isinstance(outcome, Appended):
                response.base_offset = outcome.base_offset
                response.append_time_ms = outcome.append_time_ms
            if len(item.parts) > 1 or any(part.ingested.dedup_ids):
                _add_results(response, part)
        return response

    def _count(self, item: Item) -> None:
        counters = self.counters
        elapsed_s = asyncio.get_running_loop().time() - item.begun_at
        counters.produce_requests += 1
        counters.produce_ms.observe(elapsed_s * 1000)
        for part in item.parts:
            if not isinstance(part.outcome, Appended):
                continue
            if part.outcome.duplicate and part.sequence is not None:
                counters.producer_duplicates += 1
            elif part.outcome.duplicate:
                counters.dedup_id_hits += 1
            else:
                counters.produce_records += part.ingested.record_count
                counters.produce_bytes += len(part.ingested.batch)


def _add_results(response: wire.ProduceResponse, part: Part) -> None:
    outcome = part.outcome
    for place in range(part.ingested.record_count):
        result = response.results.add(partition=response.partition)
        if isinstance(outcome, Appended):
            result.offset = outcome.base_offset + place
            result.append_time_ms = outcome.append_time_ms
            result.duplicate = outcome.duplicate
        else:
            assert outcome is not None
            result.error.CopyFrom(outcome)
