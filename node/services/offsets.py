"""Where partitions begin and end, and what offset belongs to a time.

Asked from the leader, after a ReadIndex: what was acknowledged to anybody before the question is
counted in the answer (house §4.17).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cluster.controller.model import Topic
from node.batches import cut, first_created
from node.ingest import NUMBER_MAX
from node.partitions import LocalPartition
from node.replica import PartitionReplica, StoredBatch
from node.services.call import Deadline
from node.services.errors import Refused, bad_request, not_enabled
from node.services.fan_out import ask_all
from node.services.places import Operation, Places
from node.services.topic_settings import BYTES_LIMIT
from node.v1 import wire_pb2 as wire
from quorumq.channel import Kind, method
from quorumq.v1 import admin_pb2 as admin
from quorumq.v1 import messaging_pb2 as pb

_FIND = method(
    "partition.find_offsets", Kind.UNARY, admin.ListOffsetsRequest, admin.ListOffsetsResponse
)
_SEARCHES_MAX = 64


class Offsets:
    """One per node."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._find = Operation(_FIND, self._find_here)
        # (group, time): no record below this offset was created then or later. Stays true for ever,
        # so a long search goes on where an earlier one ran out of time.
        self._searched: dict[tuple[int, int], int] = {}
        places.offer(self._find)

    async def of_partition(
        self,
        group_id: int,
        queries: Sequence[admin.OffsetQuery],
        by: pb.TimeBy,
        deadline: Deadline,
    ) -> list[admin.OffsetResult]:
        """One result a query, all as of one moment after the call. `queries` are of this partition
        and checked. Raises Refused."""
        request = admin.ListOffsetsRequest(queries=queries, by=by)
        response = await self._places.ask(group_id, self._find, request, deadline)
        return list(response.results)

    async def of_topic(
        self,
        topic: Topic,
        queries: Sequence[admin.OffsetQuery],
        by: pb.TimeBy,
        deadline: Deadline,
    ) -> list[admin.OffsetResult]:
        """The same for queries of any partitions, checked, in their order: a partition that cannot
        answer has its error in its results."""
        places_of: dict[int, list[int]] = {}
        for place, query in enumerate(queries):
            places_of.setdefault(query.partition, []).append(place)

        async def ask(partition: int) -> list[admin.OffsetResult]:
            group_id = self._places.group_id(topic, partition)
            wanted = [queries[place] for place in places_of[partition]]
            return await self.of_partition(group_id, wanted, by, deadline)

        results: dict[int, admin.OffsetResult] = {}
        answers = await ask_all(list(places_of), ask)
        for (partition, places), answer in zip(places_of.items(), answers, strict=True):
            for number, place in enumerate(places):
                if isinstance(answer, Refused):
                    results[place] = admin.OffsetResult(partition=partition, error=answer.error)
                else:
                    results[place] = answer[number]
        return [results[place] for place in range(len(queries))]

    # --- where the partition is led --------------------------------------------------------------

    async def _find_here(
        self, local: LocalPartition, request: admin.ListOffsetsRequest
    ) -> admin.ListOffsetsResponse:
        term = local.group.term
        await local.group.read_index()
        response = admin.ListOffsetsResponse()
        by_created = request.by == pb.TIME_BY_CREATED
        # Before anything suspends again: all results are of one moment.
        machine = local.replica.machine
        first_offset, next_offset = machine.first_offset, machine.next_offset
        for query in request.queries:
            match query.WhichOneof("at"):
                case "earliest":
                    offset = first_offset
                case "time_ms" if by_created:
                    offset = await self._created_at(local, query.time_ms, next_offset)
                case "time_ms":
                    offset = min(local.replica.offset_appended_at(query.time_ms), next_offset)
                case _:
                    offset = next_offset
            response.results.add(
                partition=local.partition,
                offset=offset,
                time_ms=_time_at(local.replica, offset, by_created=by_created)
                if offset < next_offset
                else None,
                leader_epoch=term,
            )
        return response

    async def _created_at(self, local: LocalPartition, time_ms: int, end: int) -> int:
        """The first offset below `end` of a record created at that time or later, else `end`."""
        replica, key = local.replica, (local.group_id, time_ms)
        offset = self._searched.pop(key, 0)
        while offset < end:
            search = replica.search_created(time_ms, from_offset=offset)
            if search.row is not None:
                # The row may have been trimmed up to somewhere within it.
                first = max(replica.machine.first_offset, search.row.base_offset)
                found = _first_created(replica, first, time_ms)
                if found is not None:
                    return min(found, end)
            offset = end if search.resume_offset is None else search.resume_offset
            self._note_searched(key, min(offset, end))
            await asyncio.sleep(0)  # up to 1000 rows were looked at
        return end

    def _note_searched(self, key: tuple[int, int], offset: int) -> None:
        self._searched.pop(key, None)
        self._searched[key] = offset
        if len(self._searched) > _SEARCHES_MAX:
            del self._searched[next(iter(self._searched))]


def check_queries(queries: Sequence[admin.OffsetQuery], by: int) -> None:
    """What is wrong with them whatever the partitions hold. Raises Refused."""
    check_time_by(by)
    for number, query in enumerate(queries):
        field = f"queries[{number}]"
        at = query.WhichOneof("at")
        if (at == "earliest" and not query.earliest) or (at == "latest" and not query.latest):
            raise bad_request(f"{field}.{at}", "can only be true")
        if at == "time_ms":
            check_time(f"{field}.time_ms", query.time_ms)


def check_time(field: str, time_ms: int) -> None:
    if not 0 <= time_ms <= NUMBER_MAX:
        raise bad_request(field, f"{time_ms} is not within 0 to 2^53-1")


def check_time_by(by: int) -> None:
    if by not in pb.TimeBy.values():
        raise not_enabled(f"time_by_{by}")


def _time_at(replica: PartitionReplica, offset: int, *, by_created: bool) -> int | None:
    """Of the record at the offset; None if it was trimmed meanwhile."""
    row = replica.find(offset)
    if row is None:
        return None
    if not by_created:
        return row.append_time_ms
    stored = _stored(replica, offset)
    if stored is None:
        return None
    place = offset - stored.row.base_offset
    single = cut(stored.batch, first=place, last=place, inflated_bytes_max=BYTES_LIMIT)
    record = wire.OpaqueRecordBatch.FromString(single).records.records[0]
    timestamps = wire.MergedRecords.FromString(record).timestamp_ms
    return timestamps[-1] if timestamps else stored.row.append_time_ms


def _first_created(replica: PartitionReplica, first_offset: int, time_ms: int) -> int | None:
    """The first offset at or after `first_offset`, in the batch that holds it, of a record created
    at that time or later."""
    stored = _stored(replica, first_offset)
    if stored is None:
        return None
    row, batch = stored.row, stored.batch
    skipped = first_offset - row.base_offset
    if skipped:
        last = row.record_count - 1
        batch = cut(batch, first=skipped, last=last, inflated_bytes_max=BYTES_LIMIT)
    place = first_created(
        batch, time_ms, append_time_ms=row.append_time_ms, inflated_bytes_max=BYTES_LIMIT
    )
    return None if place is None else first_offset + place


def _stored(replica: PartitionReplica, offset: int) -> StoredBatch | None:
    """The batch that holds the offset, None if it was trimmed."""
    found = replica.read(offset, bytes_max=0)
    return found[0] if found and found[0].row.base_offset <= offset else None
