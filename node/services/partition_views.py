"""What only a partition's leader can tell of it, as operations that run there. Each confirms its
leadership first: what was acknowledged to anybody before the question is in the answer.
"""

from __future__ import annotations

import asyncio
import heapq

from cluster.group import Group
from cluster.host import Host
from cluster.raft.errors import NotLeader
from node.batches import cut
from node.partitions import LocalPartition
from node.replica import PartitionReplica
from node.services.errors import Refused
from node.services.places import Operation, Places
from node.services.topic_settings import BYTES_LIMIT
from quorumq.channel import Kind, method
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import records_pb2

_EVER_MS = 2**63  # after any log time
_BUCKETS_AT_ONCE = 16


class PartitionViews:
    """One per node."""

    def __init__(self, *, places: Places, host: Host) -> None:
        self._places = places
        self._host = host
        self.describe = Operation(
            method(
                "partition.describe",
                Kind.UNARY,
                pb.DescribeTopicRequest,
                pb.PartitionDescription,
            ),
            self._describe,
        )
        self.record = Operation(
            method("partition.record", Kind.UNARY, pb.GetRecordRequest, pb.GetRecordResponse),
            self._record,
        )
        self.producers = Operation(
            method(
                "partition.producers",
                Kind.UNARY,
                pb.ListProducersRequest,
                pb.ListProducersResponse,
            ),
            self._producers,
        )
        for operation in (self.describe, self.record, self.producers):
            places.offer(operation)

    # --- describe --------------------------------------------------------------------------------

    async def _describe(
        self, local: LocalPartition, request: pb.DescribeTopicRequest
    ) -> pb.PartitionDescription:
        await local.group.read_index()
        group, replica, machine = local.group, local.replica, local.replica.machine
        oldest_id_ms = machine.dedup.oldest_log_time_ms
        return pb.PartitionDescription(
            partition=local.partition,
            leader=self._places.leader(local.group_id),
            replicas=self._replicas(group),
            earliest_offset=machine.first_offset,
            latest_offset=machine.next_offset,
            record_count=machine.next_offset - machine.first_offset,
            stored_bytes=replica.stored_bytes(),
            commit_index=group.commit_index,
            applied_index=group.applied_index,
            producer_count=machine.producers.count,
            dedup_count=machine.dedup.count,
            dedup_span_ms=log_time_ms(local) - oldest_id_ms if oldest_id_ms is not None else 0,
            last_append_time_ms=_last_append_time_ms(replica),
        )

    def _replicas(self, group: Group) -> list[pb.ReplicaInfo]:
        """By node id, as the leader knows them."""
        configuration = group.configuration
        voters = (*configuration.voters, *configuration.voters_outgoing)
        infos = []
        for replica_id in configuration.members():
            node_id = self._host.peers.node_of(replica_id)
            match_index = group.match_index(replica_id)
            infos.append(
                pb.ReplicaInfo(
                    node_id=node_id,
                    replica_id=replica_id,
                    role=pb.REPLICA_ROLE_VOTER if replica_id in voters else pb.REPLICA_ROLE_LEARNER,
                    match_index=match_index,
                    alive=self._host.node_alive(node_id),
                    in_sync=match_index >= group.commit_index,
                )
            )
        return sorted(infos, key=lambda info: (info.node_id, info.replica_id))

    # --- one record ------------------------------------------------------------------------------

    async def _record(
        self, local: LocalPartition, request: pb.GetRecordRequest
    ) -> pb.GetRecordResponse:
        """Raises Refused RECORD_NOT_FOUND, OFFSET_OUT_OF_RANGE, CorruptEntry."""
        offset, machine = request.offset, local.replica.machine
        if offset >= machine.next_offset:  # what is applied may be read without asking anybody
            await local.group.read_index()
        bounds = {"earliest": str(machine.first_offset), "latest": str(machine.next_offset)}
        if offset >= machine.next_offset:
            raise Refused(
                "OFFSET_OUT_OF_RANGE",
                f"offset {offset} is beyond the last one; next is {machine.next_offset}",
                metadata=bounds,
            )
        found = local.replica.read(offset, bytes_max=0)
        if offset < machine.first_offset or not found or found[0].row.base_offset > offset:
            raise Refused("RECORD_NOT_FOUND", f"record {offset} was trimmed", metadata=bounds)
        row, place = found[0].row, offset - found[0].row.base_offset
        single = cut(found[0].batch, first=place, last=place, inflated_bytes_max=BYTES_LIMIT)
        return pb.GetRecordResponse(
            partition=local.partition,
            offset=offset,
            append_time_ms=row.append_time_ms,
            record=records_pb2.RecordBatch.FromString(single).records.records[0],
            leader_epoch=local.group.term,
        )

    # --- producers -------------------------------------------------------------------------------

    async def _producers(
        self, local: LocalPartition, request: pb.ListProducersRequest
    ) -> pb.ListProducersResponse:
        """`page_size` of those with an id above `page_token`."""
        await local.group.read_index()
        producers, now_ms = local.replica.machine.producers, log_time_ms(local)
        after, ids = int(request.page_token), list[int]()
        for bucket in range(producers.bucket_count):
            ids += [i for i in producers.idle_in(bucket, _EVER_MS) if i > after]
            if bucket % _BUCKETS_AT_ONCE == 0:
                await asyncio.sleep(0)  # there may be 100,000
        response = pb.ListProducersResponse()
        for producer_id in heapq.nsmallest(request.page_size, ids):
            known = producers.get(producer_id)
            if known is None:
                continue  # expired meanwhile
            stored = known.last_offset >= 0
            response.producers.add(
                partition=local.partition,
                producer_id=producer_id,
                name=self._name(producer_id),
                epoch=known.epoch,
                last_sequence=known.next_sequence - 1 if stored else None,
                last_offset=known.last_offset if stored else None,
                idle_ms=max(0, now_ms - known.log_time_ms),
            )
        return response

    def _name(self, producer_id: int) -> str:
        named = self._places.catalog.producer_by_id(producer_id)
        return named.name if named is not None else ""


def log_time_ms(local: LocalPartition) -> int:
    """The partition's own clock, now. Raises NotLeader."""
    if not local.replica.leader_term:
        raise NotLeader("this replica does not lead", leader_id=local.group.leader_replica)
    return local.replica.stamp().log_time_ms


def _last_append_time_ms(replica: PartitionReplica) -> int:
    """0 = there is no record."""
    row = replica.find(replica.machine.next_offset - 1)
    return row.append_time_ms if row is not None else 0
