"""AdminService: what partitions hold, asked from their leaders."""

from __future__ import annotations

from cluster.controller.model import Topic
from cluster.host import Host
from node.services.admin_rows import topic_info
from node.services.call import Call, Deadline
from node.services.catalog_access import CatalogAccess
from node.services.errors import Refused, bad_request
from node.services.fan_out import AT_ONCE_MAX, ask_all
from node.services.offsets import Offsets, check_queries
from node.services.paging import after_of, page_size, token_of
from node.services.partition_views import PartitionViews
from node.services.places import Places
from quorumq.v1 import admin_pb2 as pb

OFFSET_QUERIES_MAX = 10_000
# A partition without a leader does not keep the others' descriptions waiting longer.
DESCRIBE_S = 2.0


class AdminPartitions:
    def __init__(
        self,
        *,
        access: CatalogAccess,
        places: Places,
        host: Host,
        offsets: Offsets,
        views: PartitionViews,
    ) -> None:
        self._access = access
        self._places = places
        self._host = host
        self._offsets = offsets
        self._views = views

    # --- describe --------------------------------------------------------------------------------

    async def describe_topic(
        self, request: pb.DescribeTopicRequest, call: Call
    ) -> pb.DescribeTopicResponse:
        deadline = Deadline.of(call)
        topic_id = request.topic_id if request.HasField("topic_id") else None
        topic = await self._access.topic(request.name, topic_id, deadline)
        within = Deadline(min(DESCRIBE_S, deadline.left_s()))

        async def describe(group_id: int) -> pb.PartitionDescription:
            nothing = pb.DescribeTopicRequest()
            return await self._places.ask(group_id, self._views.describe, nothing, within)

        answers = await ask_all(topic.group_ids, describe)
        return pb.DescribeTopicResponse(
            topic=topic_info(topic),
            partitions=[
                self._without_leader(topic, partition, answer)
                if isinstance(answer, Refused)
                else answer
                for partition, answer in enumerate(answers)
            ],
            subscriptions=[row.name for row in self._access.catalog.subscriptions_of(topic.number)],
        )

    def _without_leader(
        self, topic: Topic, partition: int, refused: Refused
    ) -> pb.PartitionDescription:
        """Where its replicas are, as the catalog knows: that is what an operator looks for now."""
        group = self._access.catalog.group(topic.group_ids[partition])
        description = pb.PartitionDescription(partition=partition, error=refused.error)
        for replica in sorted(group.replicas if group else (), key=lambda r: r.node_id):
            voters = group.reality.voters if group else ()
            description.replicas.add(
                node_id=replica.node_id,
                replica_id=replica.replica_id,
                role=pb.REPLICA_ROLE_VOTER
                if replica.replica_id in voters
                else pb.REPLICA_ROLE_LEARNER,
                alive=self._host.node_alive(replica.node_id),
            )
        return description

    # --- offsets, records ------------------------------------------------------------------------

    async def list_offsets(
        self, request: pb.ListOffsetsRequest, call: Call
    ) -> pb.ListOffsetsResponse:
        deadline = Deadline.of(call)
        queries = request.queries
        if not 1 <= len(queries) <= OFFSET_QUERIES_MAX:
            raise bad_request("queries", f"{len(queries)} of them, not 1 to {OFFSET_QUERIES_MAX}")
        check_queries(queries, request.by)
        topic_id = request.topic_id if request.HasField("topic_id") else None
        topic = await self._places.topic(request.topic, topic_id, deadline)
        results = await self._offsets.of_topic(topic, queries, request.by, deadline)
        return pb.ListOffsetsResponse(results=results)

    async def get_record(self, request: pb.GetRecordRequest, call: Call) -> pb.GetRecordResponse:
        deadline = Deadline.of(call)
        topic_id = request.topic_id if request.HasField("topic_id") else None
        topic = await self._places.topic(request.topic, topic_id, deadline)
        group_id = self._places.group_id(topic, request.partition)
        response = await self._places.ask(group_id, self._views.record, request, deadline)
        response.topic_id = topic.topic_id
        return response

    # --- producers -------------------------------------------------------------------------------

    async def list_producers(
        self, request: pb.ListProducersRequest, call: Call
    ) -> pb.ListProducersResponse:
        deadline = Deadline.of(call)
        size = page_size(request.page_size)
        first, after = _place_of(request.page_token)
        topic = await self._access.topic(request.topic, None, deadline)
        if request.HasField("partition"):
            self._places.group_id(topic, request.partition)
            partitions = range(request.partition, request.partition + 1)
        else:
            partitions = range(topic.partitions)
        rest = [partition for partition in partitions if partition >= first]
        found: list[pb.ProducerInfo] = []

        async def ask(partition: int) -> pb.ListProducersResponse:
            known = after if partition == first else 0
            wanted = pb.ListProducersRequest(page_size=size + 1, page_token=str(known))
            group_id = topic.group_ids[partition]
            return await self._places.ask(group_id, self._views.producers, wanted, deadline)

        for at in range(0, len(rest), AT_ONCE_MAX):
            for answer in await ask_all(rest[at : at + AT_ONCE_MAX], ask):
                if isinstance(answer, Refused):
                    raise answer
                found += answer.producers
            if len(found) > size:
                break
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = token_of(f"{last.partition}/{last.producer_id}")
        return pb.ListProducersResponse(producers=found[:size], next_page_token=token)


def _place_of(page_token: str) -> tuple[int, int]:
    """(partition, producer id) that the page before ended with. Raises Refused BAD_REQUEST."""
    after = after_of(page_token)
    if after is None:
        return 0, 0
    partition, _, producer_id = after.partition("/")
    if not (partition.isdecimal() and producer_id.isdecimal()):
        raise bad_request("page_token", f"{page_token!r} is no token of ListProducers")
    return int(partition), int(producer_id)
