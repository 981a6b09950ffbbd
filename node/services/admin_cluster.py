"""AdminService.GetCluster: the cluster as the controller's leader sees it, asked through any node.

The catalog is everywhere, but who is silent, and whose clock is off, is for one node to say: else
the answer would depend on which node a client happens to ask. Disk room only each node knows
itself, so the one that answers asks them all, and waits for none of them long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cluster.controller import model
from cluster.controller.model import CONTROLLER_GROUP_ID, Member, MemberState
from cluster.host import Host
from cluster.interfaces import PeerError
from node import ingest
from node.services import topic_settings
from node.services.call import Call, Deadline
from node.services.catalog_access import CatalogAccess
from node.services.fan_out import ask_all
from node.services.places import Places
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import records_pb2

CLUSTER_METHOD = "admin.cluster"
NODE_METHOD = "admin.node"

_CLUSTER_TIMEOUT_S = 3.0
_NODE_TIMEOUT_MS = 500
_GROUPS_AT_ONCE = 1_000  # looked at before the loop gets its turn

# What every node decides alike, whatever its own configuration.
_LIMITS = {
    "record_bytes_max": topic_settings.BYTES_LIMIT,
    "batch_bytes_max": topic_settings.BYTES_LIMIT,
    "records_per_batch_max": ingest.RECORDS_MAX,
    "headers_per_record_max": ingest.HEADERS_MAX,
    "topics_max": model.TOPICS_MAX,
    "partitions_max": model.PARTITIONS_MAX,
    "partitions_per_topic_max": model.PARTITIONS_PER_TOPIC_MAX,
    "replicas_max": model.REPLICAS_MAX,
    "replication_factor_max": model.REPLICATION_FACTOR_MAX,
    "subscriptions_max": model.SUBSCRIPTIONS_MAX,
    "subscriptions_per_topic_max": model.SUBSCRIPTIONS_PER_TOPIC_MAX,
    "named_producers_max": model.NAMED_PRODUCERS_MAX,
    "nodes_max": model.MEMBERS_MAX,
}


class DiskRoom(NamedTuple):
    """Of the data folder's disk. 0 = not known. `full`: this node refuses appends."""

    free_bytes: int = 0
    total_bytes: int = 0
    full: bool = False


class AdminCluster:
    """`limits`: this node's own, by name."""

    def __init__(
        self,
        *,
        access: CatalogAccess,
        places: Places,
        host: Host,
        disk_room: Callable[[], DiskRoom],
        limits: Mapping[str, int],
    ) -> None:
        self._access = access
        self._places = places
        self._host = host
        self._disk_room = disk_room
        self._limits = {**_LIMITS, **limits}

    async def get_cluster(self, request: pb.GetClusterRequest, call: Call) -> pb.GetClusterResponse:
        deadline = Deadline.of(call)
        await self._access.fresh(deadline)
        response = await self.seen(deadline)
        response.answering_node_id = self._host.node_id
        return response

    async def seen(self, deadline: Deadline) -> pb.GetClusterResponse:
        """By the controller's leader, or without `controller` by this node if that does not
        answer."""
        known = self._places.leadership(CONTROLLER_GROUP_ID)
        if known is not None and known[0] == self._host.node_id:
            return await self._view()
        told = await self._ask(known[0], deadline) if known is not None else None
        if told is not None:
            return told
        view = await self._view()
        view.ClearField("controller")
        return view

    async def _ask(self, node_id: int, deadline: Deadline) -> pb.GetClusterResponse | None:
        """What the controller's leader sees; None if it does not answer."""
        timeout_s = min(_CLUSTER_TIMEOUT_S, deadline.left_s() / 2)
        try:
            body = await self._host.transport.call(
                node_id, CLUSTER_METHOD, b"", timeout_ms=max(1, int(timeout_s * 1000))
            )
        except PeerError:
            return None
        return pb.GetClusterResponse.FromString(body)

    async def serve_cluster(self, request: bytes) -> bytes:
        """A peer's CLUSTER_METHOD."""
        return (await self._view()).SerializeToString()

    async def serve_node(self, request: bytes) -> bytes:
        """A peer's NODE_METHOD."""
        return self._myself().SerializeToString()

    # --- what there is ---------------------------------------------------------------------------

    async def _view(self) -> pb.GetClusterResponse:
        catalog = self._access.catalog
        leader_counts, counts = await self._count()
        members = catalog.members()
        rooms = await ask_all(members, self._room)
        nodes = [
            self._node(member, room, leader_counts.get(member.node_id, 0))
            for member, room in zip(members, rooms, strict=True)
            if isinstance(room, pb.NodeInfo)
        ]
        return pb.GetClusterResponse(
            cluster_id=catalog.cluster_id,
            controller=self._places.leader(CONTROLLER_GROUP_ID),
            nodes=nodes,
            counts=counts,
            features=_features(),
            codecs=[records_pb2.CODEC_ZSTD],
            limits=[pb.LimitInfo(name=n, value=v) for n, v in sorted(self._limits.items())],
            machine_version=catalog.counters.machine_version,
        )

    def _node(self, member: Member, room: pb.NodeInfo, leader_count: int) -> pb.NodeInfo:
        node_id, peers = member.node_id, self._host.peers
        info = pb.NodeInfo(
            node_id=node_id,
            incarnation=member.incarnation,
            state=self._state(member),
            zone=member.zone,
            client_endpoint=member.client_endpoint,
            peer_endpoint=member.peer_endpoint,
            version=member.software_version,
            machine_version=member.machine_version_max,
            replica_count=self._access.catalog.replica_count_on(node_id),
            leader_count=leader_count,
            silent_ms=peers.silent_ticks(node_id) * self._host.options.tick_ms,
            clock_skew_ms=peers.clock_offset_ms(node_id) + peers.clock_ahead_ms(),
        )
        info.MergeFrom(room)
        return info

    def _state(self, member: Member) -> pb.NodeState:
        if member.state == MemberState.DRAINED:
            return pb.NODE_STATE_DRAINED  # also when it is stopped by now, as it should be
        if not self._host.node_alive(member.node_id):
            return pb.NODE_STATE_DEAD
        if member.state == MemberState.DRAINING:
            return pb.NODE_STATE_DRAINING
        controller = self._access.catalog.group(CONTROLLER_GROUP_ID)
        assert controller is not None, "a founded cluster has its controller group"
        if member.controller_replica_id not in controller.reality.members():
            return pb.NODE_STATE_JOINING
        return pb.NODE_STATE_ACTIVE

    async def _room(self, member: Member) -> pb.NodeInfo:
        """Its disk fields; none for a node that does not answer."""
        if member.node_id == self._host.node_id:
            return self._myself()
        if not self._host.node_alive(member.node_id):
            return pb.NodeInfo()
        try:
            body = await self._host.transport.call(
                member.node_id, NODE_METHOD, b"", timeout_ms=_NODE_TIMEOUT_MS
            )
        except PeerError:
            return pb.NodeInfo()
        return pb.NodeInfo.FromString(body)

    def _myself(self) -> pb.NodeInfo:
        room = self._disk_room()
        return pb.NodeInfo(
            disk_free_bytes=room.free_bytes, disk_total_bytes=room.total_bytes, disk_full=room.full
        )

    async def _count(self) -> tuple[dict[int, int], pb.ClusterCounts]:
        """Leaders by node, and the totals."""
        catalog = self._access.catalog
        alive = {m.node_id: self._host.node_alive(m.node_id) for m in catalog.members()}
        leaders: dict[int, int] = {}
        leaderless = under_replicated = 0
        for number, group in enumerate(catalog.groups(), start=1):
            if number % _GROUPS_AT_ONCE == 0:
                await asyncio.sleep(0)
            topic = catalog.topic(group.topic)
            if topic is None:
                continue  # the controller's, or deleted meanwhile
            known = self._places.leadership(group.group_id)
            if known is None:
                leaderless += 1
            else:
                leaders[known[0]] = leaders.get(known[0], 0) + 1
            live = sum(alive.get(group.node_of(voter), False) for voter in group.reality.voters)
            under_replicated += live < topic.replication_factor
        return leaders, pb.ClusterCounts(
            topics=catalog.topic_count,
            partitions=catalog.partition_count,
            under_replicated_partitions=under_replicated,
            leaderless_partitions=leaderless,
            running_operations=len(catalog.running_operations()),
        )


def _features() -> list[pb.FeatureInfo]:
    """By bit. What no node supports yet has level 0."""
    found = []
    for name, bit in sorted(ingest.FEATURES.items(), key=lambda item: item[1]):
        delivered = bool(bit & ingest.FEATURES_DELIVERED)
        found.append(
            pb.FeatureInfo(
                feature=f"FEATURE_{name.upper()}",
                name=name,
                feature_level=topic_settings.FEATURE_LEVEL if delivered else 0,
            )
        )
    return found
