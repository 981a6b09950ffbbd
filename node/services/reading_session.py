"""One Read under way: its partitions in turn, each from this node's replica or, where there is
none, from another node.

    begin: where? ----> placed: a LocalSource, or part of a RelaySource <---- pause
           |                        |                       |                   ^
           +--> refused             +--> ended              +-------------------+
                                                      replica or stream gone

Sources that may have something wait in `_ready` for their turn; a turn is bounded, and nothing is
read before the stream has taken what came before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence

from cluster.controller.model import Topic
from cluster.interfaces import CorruptEntry, CorruptRow, StorageError
from cluster.tasks import TaskGroup
from node.metrics import NodeCounters
from node.partitions import LocalPartition
from node.services.call import HOLD_S, Deadline
from node.services.errors import Refused, refused_of
from node.services.offsets import Offsets
from node.services.peer_channel import NodeChannels
from node.services.places import Places
from node.services.reading_local import Cursor, LocalSource, cut_delivery
from node.services.reading_relay import RelaySource
from node.services.reading_request import Taken
from node.v1 import wire_pb2 as wire
from quorumq.v1 import admin_pb2 as admin
from quorumq.v1 import messaging_pb2 as pb

HEARTBEAT_S = 15.0
_REVIEW_S = 1.0
# A replica that has nothing new, and no leader or less than is known to exist, for so long is left.
_BEHIND_S_MAX = 5.0
_PAUSE_S, _PAUSE_S_MAX = 0.02, 0.5
_BEGINNING_MAX = 64  # partitions whose leaders are asked at a time

Source = LocalSource | RelaySource


class ReadSession:
    """`is_forwarded`: another node reads this for its client; what has no replica here is answered
    with NOT_LEADER, offsets are known to be good. `responses` once."""

    def __init__(
        self,
        *,
        places: Places,
        offsets: Offsets,
        channels: NodeChannels,
        draining: asyncio.Event,
        counters: NodeCounters,
        wall_ms: Callable[[], int],
        topic: Topic,
        request: pb.ReadRequest,
        taken: Taken,
        is_forwarded: bool,
    ) -> None:
        self._places = places
        self._offsets = offsets
        self._channels = channels
        self._draining = draining
        self._counters = counters
        self._wall_ms = wall_ms
        self._topic = topic
        self._request = request
        self._taken = taken
        self._is_forwarded = is_forwarded
        self._cursors: dict[int, Cursor] = {}  # by partition
        self._unplaced: list[Cursor] = []
        self._local: dict[int, LocalSource] = {}  # by partition
        self._ready: dict[Source, None] = {}
        self._statuses: dict[int, wire.PartitionStatus] = {}  # to be sent, by partition
        self._records_left = request.max_records or None
        self._bytes_left = request.max_bytes or None
        self._has_sent = self._is_full = False
        self._woken: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._room_to_begin = asyncio.Semaphore(_BEGINNING_MAX)
        self._tasks = TaskGroup("read", on_failure=self._failed)

    async def responses(
        self, wanted: Sequence[pb.ReadPartition]
    ) -> AsyncGenerator[wire.ReadResponse, None]:
        loop = asyncio.get_running_loop()
        self._tasks.start(self._follow_draining(), name="draining")
        for partition in wanted:
            self._begin(partition)
        speak_at, review_at = loop.time() + HEARTBEAT_S, loop.time() + _REVIEW_S
        try:
            while not self._is_full:
                if self._failure is not None:
                    raise self._failure
                if self._draining.is_set():
                    yield wire.ReadResponse(go_away=wire.GoAway(deadline_ms=0))
                    return
                if loop.time() >= review_at:
                    review_at = loop.time() + _REVIEW_S
                    self._review()
                self._place()
                if self._statuses or self._ready:
                    for response in self._turn():
                        yield response
                        speak_at = loop.time() + HEARTBEAT_S
                    await asyncio.sleep(0)
                elif all(cursor.has_ended for cursor in self._cursors.values()):
                    return
                elif loop.time() < speak_at:
                    await self._wake(min(speak_at, review_at))
                else:
                    speak_at = loop.time() + HEARTBEAT_S
                    yield wire.ReadResponse(heartbeat=wire.Heartbeat(sent_at_ms=self._wall_ms()))
        finally:
            for source in self._local.values():
                source.close()
            await self._tasks.cancel_and_wait()

    # --- beginning -------------------------------------------------------------------------------

    def _begin(self, wanted: pb.ReadPartition) -> None:
        """Where only the leader knows where to begin or to end, it is asked in the background."""
        cursor = Cursor(wanted.partition, self._topic.group_ids[wanted.partition])
        self._cursors[cursor.partition] = cursor
        if wanted.HasField("until_offset"):
            cursor.until = wanted.until_offset
        start = wanted.WhichOneof("start")
        if start == "offset":
            cursor.next_offset = cursor.known_end = wanted.offset
        if not self._is_forwarded and (
            not self._request.follow
            or start in ("latest", "time_ms")
            or (start == "offset" and not self._is_within(cursor))
        ):
            self._tasks.start(self._ask_where(cursor, wanted), name=f"begin {cursor.partition}")
        else:
            self._unplaced.append(cursor)

    def _is_within(self, cursor: Cursor) -> bool:
        """Its start is known here to be no offset beyond the end: 0, or one that was applied."""
        if not cursor.next_offset:
            return True
        local = self._places.local(cursor.group_id)
        return local is not None and local.replica.machine.next_offset >= cursor.next_offset

    async def _ask_where(self, cursor: Cursor, wanted: pb.ReadPartition) -> None:
        queries = [
            admin.OffsetQuery(partition=wanted.partition, earliest=True),
            admin.OffsetQuery(partition=wanted.partition, latest=True),
        ]
        start = wanted.WhichOneof("start")
        if start == "time_ms":
            queries.append(admin.OffsetQuery(partition=wanted.partition, time_ms=wanted.time_ms))
        results = await self._until_answered(cursor, queries)
        if results is None:
            return
        earliest, latest = results[0].offset, results[1].offset
        if start == "offset" and wanted.offset > latest:
            self._end(
                cursor,
                Refused(
                    "OFFSET_OUT_OF_RANGE",
                    f"offset {wanted.offset} is beyond the next offset, {latest}",
                    metadata={"earliest": str(earliest), "latest": str(latest)},
                ),
            )
            return
        if start in ("latest", "time_ms"):
            cursor.next_offset = results[-1].offset
        cursor.next_offset = cursor.known_end = max(cursor.next_offset, earliest)
        if not self._request.follow:
            cursor.until = latest if cursor.until is None else min(cursor.until, latest)
            cursor.known_end = max(cursor.known_end, cursor.until)
        self._unplaced.append(cursor)
        self._wake_up()

    async def _until_answered(
        self, cursor: Cursor, queries: Sequence[admin.OffsetQuery]
    ) -> list[admin.OffsetResult] | None:
        """None if the partition has ended instead. While nobody leads, that is told, and asked
        again."""
        while not cursor.has_ended:
            try:
                async with self._room_to_begin:
                    results = await self._offsets.of_partition(
                        cursor.group_id, queries, self._request.by, Deadline(HOLD_S)
                    )
            except Refused as refused:
                if not refused.error.retriable:
                    self._end(cursor, refused)
                    return None
                self._failed_once(cursor)
                await asyncio.sleep(_pause_s(cursor))
            else:
                self._is_well(cursor)
                return None if cursor.has_ended else results
        return None

    # --- where each partition is read ------------------------------------------------------------

    def _place(self) -> None:
        """Give every cursor that has none a source."""
        if not self._unplaced:
            return
        cursors, self._unplaced = self._unplaced, []
        elsewhere: dict[int, list[Cursor]] = {}
        for cursor in cursors:
            if cursor.has_ended:
                continue
            local = self._serving_replica(cursor)
            if local is not None:
                self._read_here(cursor, local)
            elif self._is_forwarded:
                self._end(cursor, Refused("NOT_LEADER", f"node {self._places.node_id} has none"))
            else:
                elsewhere.setdefault(self._node_for(cursor), []).append(cursor)
        for node_id, of_node in elsewhere.items():
            if node_id:
                self._read_there(node_id, of_node)
            else:
                self._give_back(of_node)

    def _serving_replica(self, cursor: Cursor) -> LocalPartition | None:
        """The replica here if it is a voter and keeps up, as far as can be told."""
        local = self._places.local(cursor.group_id)
        if local is None or local.group.failure is not None:
            return None
        if not local.group.configuration.is_voter(local.group.replica_id):
            return None
        next_offset = local.replica.machine.next_offset
        if next_offset > cursor.next_offset or (
            next_offset >= cursor.known_end and self._places.leadership(cursor.group_id)
        ):
            cursor.behind_since = None
            return local
        now = asyncio.get_running_loop().time()
        if cursor.behind_since is None:
            cursor.behind_since = now
        return local if now - cursor.behind_since < _BEHIND_S_MAX else None

    def _read_here(self, cursor: Cursor, local: LocalPartition) -> None:
        source = LocalSource(
            cursor,
            local,
            topic_id=self._topic.topic_id,
            taken=self._taken,
            ready=self._is_ready,
        )
        self._local[cursor.partition] = source
        self._is_ready(source)
        self._is_well(cursor)

    def _node_for(self, cursor: Cursor) -> int:
        """The leader's node, after a failure the next one that has a voter; 0 = none is known."""
        nodes: dict[int, None] = {}
        leadership = self._places.leadership(cursor.group_id)
        if leadership is not None:
            nodes[leadership[0]] = None
        row = self._places.catalog.group(cursor.group_id)
        if row is not None:
            for replica_id in row.reality.voters or row.founding:
                nodes[row.node_of(replica_id)] = None
        nodes.pop(self._places.node_id, None)
        return list(nodes)[cursor.failures % len(nodes)] if nodes else 0

    def _read_there(self, node_id: int, cursors: Sequence[Cursor]) -> None:
        request = pb.ReadRequest(
            topic=self._topic.name,
            topic_id=self._topic.topic_id,
            partitions=[
                pb.ReadPartition(
                    partition=cursor.partition,
                    offset=cursor.next_offset,
                    until_offset=cursor.until,
                )
                for cursor in cursors
            ],
            max_message_bytes=self._request.max_message_bytes,
            follow=True,
            accept_codecs=self._request.accept_codecs,
        )
        self._counters.forwarded_requests += 1
        source = RelaySource(
            cursors, ready=self._is_ready, heard=self._is_well, give_back=self._give_back
        )
        channel = self._channels(node_id)
        self._tasks.start(source.run(channel, request), name=f"relay from node {node_id}")

    def _give_back(self, cursors: list[Cursor]) -> None:
        for cursor in cursors:
            if not cursor.has_ended:
                self._failed_once(cursor)
                self._tasks.start(self._place_again(cursor), name=f"pause {cursor.partition}")

    async def _place_again(self, cursor: Cursor) -> None:
        await asyncio.sleep(_pause_s(cursor))
        self._unplaced.append(cursor)
        self._wake_up()

    def _review(self) -> None:
        """Once a second: do the replicas here still serve, is the topic still there?"""
        places = self._places
        if places.catalog.topic(self._topic.number) is None:
            gone = Refused("TOPIC_NOT_FOUND", f"topic {self._topic.name} was deleted")
            if places.catalog.topic_by_name(self._topic.name) is not None:
                gone = Refused("TOPIC_REPLACED", f"topic {self._topic.name} is another one now")
            for cursor in self._cursors.values():
                if not cursor.has_ended:
                    self._end(cursor, gone)
            return
        for source in list(self._local.values()):
            if self._serving_replica(source.cursor) is not source.local:
                self._close(source)
                self._unplaced.append(source.cursor)

    def _close(self, source: LocalSource) -> None:
        del self._local[source.cursor.partition]
        self._ready.pop(source, None)
        source.close()

    # --- turns -----------------------------------------------------------------------------------

    def _turn(self) -> list[wire.ReadResponse]:
        """What is sent next: trouble, else something of the source that waited longest."""
        if self._statuses:
            statuses, self._statuses = self._statuses, {}
            return [wire.ReadResponse(status=status) for status in statuses.values()]
        source = next(iter(self._ready))
        del self._ready[source]
        try:
            taken = source.take()
        except (CorruptEntry, CorruptRow) as error:
            assert isinstance(source, LocalSource), f"{source} reads no storage"
            self._corrupt(source, error)
            return []
        if source.has_more:
            self._ready[source] = None  # behind all others
        return [sent for response in taken for sent in self._send(response)]

    def _send(self, response: wire.ReadResponse) -> list[wire.ReadResponse]:
        """The response as far as the limits allow it, counted."""
        if self._is_full:
            return []
        match response.WhichOneof("event"):
            case "delivery":
                return self._send_delivery(response)
            case "end_of_partition":
                self._ended(self._cursors[response.end_of_partition.partition])
            case "status":
                status = response.status
                cursor = self._cursors[status.partition]
                if status.HasField("next_offset"):
                    cursor.next_offset = max(cursor.next_offset, status.next_offset)
                else:
                    self._ended(cursor)
        return [response]

    def _send_delivery(self, response: wire.ReadResponse) -> list[wire.ReadResponse]:
        delivery = response.delivery
        cursor = self._cursors[delivery.partition]
        if cursor.has_ended:
            return []
        base_offset, size = delivery.base_offset, len(delivery.batch)
        # Nothing makes holes in a batch yet, so offsets count its records.
        count = delivery.next_offset - base_offset
        if self._records_left is not None:
            if count > self._records_left:
                end = base_offset + self._records_left
                cut = cut_delivery(delivery, first=base_offset, end=end, taken=self._taken)
                return [sent for piece in cut for sent in self._send(piece)]
            self._records_left -= count
            self._is_full = self._records_left == 0
        if self._bytes_left is not None:
            if size > self._bytes_left and self._has_sent:
                self._is_full = True
                return []
            self._bytes_left -= size
            self._is_full |= self._bytes_left <= 0
        self._has_sent = True
        cursor.next_offset = max(cursor.next_offset, delivery.next_offset)
        if not self._is_forwarded:
            self._counters.read_records += count
            self._counters.read_bytes += size
        return [response]

    # --- how a partition fares -------------------------------------------------------------------

    def _end(self, cursor: Cursor, refused: Refused) -> None:
        """Nothing more comes of the partition, and why."""
        self._statuses[cursor.partition] = wire.PartitionStatus(
            partition=cursor.partition, error=refused.error
        )
        self._ended(cursor)
        self._wake_up()

    def _ended(self, cursor: Cursor) -> None:
        cursor.has_ended = True
        source = self._local.get(cursor.partition)
        if source is not None:
            self._close(source)

    def _corrupt(self, source: LocalSource, error: StorageError) -> None:
        """What is stored here of the record at the cursor is damaged."""
        self._close(source)
        self._tasks.start(self._mend(source, error), name=f"mend {source.cursor.partition}")

    async def _mend(self, source: LocalSource, error: StorageError) -> None:
        cursor = source.cursor
        if await self._places.mend(source.local, error):
            self._unplaced.append(cursor)
            self._wake_up()
        else:
            self._end(cursor, refused_of(error))
            self._statuses[cursor.partition].offset = cursor.next_offset

    def _failed_once(self, cursor: Cursor) -> None:
        """Nobody can be asked for it. Passes unnoticed unless it lasts."""
        now = asyncio.get_running_loop().time()
        cursor.failures += 1
        if cursor.failing_since is None:
            cursor.failing_since = now
        elif now - cursor.failing_since >= HOLD_S and not cursor.is_trouble_told:
            cursor.is_trouble_told = True
            self._statuses[cursor.partition] = wire.PartitionStatus(
                partition=cursor.partition,
                error=Refused("NO_LEADER", "no replica of the partition can be read").error,
            )
            self._wake_up()

    def _is_well(self, cursor: Cursor) -> None:
        cursor.failures, cursor.failing_since = 0, None
        if cursor.is_trouble_told:
            cursor.is_trouble_told = False
            self._statuses[cursor.partition] = wire.PartitionStatus(partition=cursor.partition)
            self._wake_up()

    # --- waking up -------------------------------------------------------------------------------

    def _is_ready(self, source: Source) -> None:
        if source not in self._ready:
            self._ready[source] = None
            self._wake_up()

    def _wake_up(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _wake(self, latest: float) -> None:
        """Returns when something is to be done, at `latest` in any case."""
        self._woken = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(latest):
                await self._woken

    async def _follow_draining(self) -> None:
        await self._draining.wait()
        self._wake_up()

    def _failed(self, _name: str, error: BaseException) -> None:
        self._failure = error
        self._wake_up()


def _pause_s(cursor: Cursor) -> float:
    return min(_PAUSE_S * 2.0 ** min(cursor.failures, 10), _PAUSE_S_MAX)
