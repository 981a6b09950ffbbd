"""AdminService.GetMetadata: what a client needs to go to leaders directly."""

from __future__ import annotations

from cluster.controller.model import CONTROLLER_GROUP_ID, Topic
from cluster.host import Host
from node.services.call import Call, Deadline
from node.services.catalog_access import CatalogAccess
from node.services.errors import Refused, bad_request
from node.services.places import Places, full_name
from node.services.topic_settings import with_defaults
from quorumq.v1 import admin_pb2 as pb

TOPICS_MAX = 1_000  # in one request


class Metadata:
    def __init__(self, *, access: CatalogAccess, places: Places, host: Host) -> None:
        self._access = access
        self._places = places
        self._host = host

    async def get_metadata(
        self, request: pb.GetMetadataRequest, call: Call
    ) -> pb.GetMetadataResponse:
        """From what this node knows; only a name that it does not know makes it ask."""
        if len(request.topics) > TOPICS_MAX:
            raise bad_request("topics", f"{len(request.topics)} names, {TOPICS_MAX} at most")
        topics = [self._row(name) for name in request.topics]
        if any(row is None for row in topics):
            is_fresh = await self._access.fresh(Deadline.of(call))
            topics = [
                row or self._row(name) or _unknown(name, is_fresh=is_fresh)
                for row, name in zip(topics, request.topics, strict=True)
            ]
        catalog = self._access.catalog
        return pb.GetMetadataResponse(
            cluster_id=catalog.cluster_id,
            nodes=[
                pb.NodeEndpoint(
                    node_id=member.node_id,
                    client_endpoint=member.client_endpoint,
                    zone=member.zone,
                )
                for member in catalog.members()
                if self._host.node_alive(member.node_id)
            ],
            topics=[row for row in topics if row is not None],
            controller=self._places.leader(CONTROLLER_GROUP_ID),
        )

    def _row(self, name: str) -> pb.TopicMetadata | None:
        """None for a topic that is not known here."""
        try:
            topic = self._access.catalog.topic_by_name(full_name(name))
        except Refused as refused:
            return pb.TopicMetadata(name=name, error=refused.error)
        return None if topic is None else self._known(name, topic)

    def _known(self, name: str, topic: Topic) -> pb.TopicMetadata:
        config = with_defaults(pb.TopicConfig.FromString(topic.settings))
        slots = range(topic.hash_slots if topic.slot_map else 0)
        return pb.TopicMetadata(
            name=name,
            topic_id=topic.topic_id,
            partition_count=topic.partitions,
            hash_slots=topic.hash_slots,
            partition_epoch=topic.partition_epoch,
            slot_map=[topic.partition_of_slot(slot) for slot in slots],
            partitions=[
                pb.PartitionMetadata(
                    partition=partition,
                    leader=self._places.leader(group_id),
                    replica_node_ids=self._replica_nodes(group_id),
                )
                for partition, group_id in enumerate(topic.group_ids)
            ],
            record_bytes_max=config.record_bytes_max,
            batch_bytes_max=config.batch_bytes_max,
            feature_level=config.feature_level,
        )

    def _replica_nodes(self, group_id: int) -> list[int]:
        group = self._access.catalog.group(group_id)
        assert group is not None, f"a topic lacks group {group_id}"
        return sorted(dict.fromkeys(replica.node_id for replica in group.replicas))


def _unknown(name: str, *, is_fresh: bool) -> pb.TopicMetadata:
    full = full_name(name)
    if is_fresh:
        error = Refused("TOPIC_NOT_FOUND", f"there is no topic {full}").error
    else:
        error = Refused(
            "NO_LEADER", f"topic {full} is not known here, and the controller has no leader"
        ).error
    return pb.TopicMetadata(name=name, error=error)
