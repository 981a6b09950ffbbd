"""AdminService.TransferLeader: hand a leadership over, and see that it has arrived."""

from __future__ import annotations

import asyncio

from cluster.controller.model import CONTROLLER_GROUP_ID
from cluster.controller.reconciler import AskTransfer
from cluster.host import Host
from cluster.interfaces import PeerError
from node.services.call import Call, Deadline
from node.services.catalog_access import CatalogAccess
from node.services.errors import Refused, bad_request
from node.services.partition_views import PartitionViews
from node.services.places import Leadership, Places
from quorumq.v1 import admin_pb2 as pb

TRANSFER_S = 5.0
_ARRIVAL_S = 1.5  # Raft gives an attempt up after an election timeout
_PAUSE_S = 0.05


class AdminLeaders:
    def __init__(
        self,
        *,
        access: CatalogAccess,
        places: Places,
        host: Host,
        views: PartitionViews,
        ask_transfer: AskTransfer,
    ) -> None:
        self._access = access
        self._places = places
        self._host = host
        self._views = views
        self._ask_transfer = ask_transfer

    async def transfer_leader(
        self, request: pb.TransferLeaderRequest, call: Call
    ) -> pb.TransferLeaderResponse:
        """Tries for TRANSFER_S, through lost attempts and changes of leader. Raises Refused
        OPERATION_CONFLICT when nobody took over."""
        deadline = Deadline.of(call)
        group_id = await self._group_id(request, deadline)
        to_node = request.to_node_id if request.HasField("to_node_id") else None
        if to_node is not None and self._access.catalog.member(to_node) is None:
            raise Refused("NODE_NOT_FOUND", f"the cluster has no node {to_node}")
        within = Deadline(min(TRANSFER_S, deadline.left_s()))
        first = known = await self._places.hold(group_id, deadline)
        trouble = "nobody took over in time"
        while within.left_s() > 0:
            arrived = known != first if to_node is None else known[0] == to_node
            if arrived:
                return pb.TransferLeaderResponse(leader=self._places.leader(group_id))
            try:
                await self._try(group_id, known, to_node, within)
                arrival = Deadline(min(_ARRIVAL_S, within.left_s()))
                known = await self._places.hold(group_id, arrival, not_this=known)
            except (PeerError, Refused) as error:
                if isinstance(error, Refused) and error.reason != "NO_LEADER":
                    raise
                trouble = str(error)
                await asyncio.sleep(min(_PAUSE_S, within.left_s()))
                known = self._places.leadership(group_id) or known
        raise Refused("OPERATION_CONFLICT", f"the leadership stays where it is: {trouble}")

    async def _group_id(self, request: pb.TransferLeaderRequest, deadline: Deadline) -> int:
        if request.topic:
            topic = await self._access.topic(request.topic, None, deadline)
            return self._places.group_id(topic, request.partition)
        if request.partition:
            raise Refused("PARTITION_NOT_FOUND", "the controller has partition 0 only")
        return CONTROLLER_GROUP_ID

    async def _try(
        self, group_id: int, known: Leadership, to_node: int | None, within: Deadline
    ) -> None:
        """Returns when a replica was told to take over. Raises PeerError when none could be just
        now, Refused when none ever will."""
        targets = [to_node] if to_node is not None else await self._heirs(group_id, known, within)
        if not targets:
            raise Refused("OPERATION_CONFLICT", "no other live replica could take over")
        trouble: PeerError | None = None
        for target in targets:
            try:
                await self._ask_transfer(known[0], group_id, target)
                return
            except PeerError as error:
                trouble = error
        assert trouble is not None
        if to_node is not None and trouble.code == "NOT_FOUND":
            raise bad_request("to_node_id", f"node {to_node} has no voting replica of it")
        raise trouble

    async def _heirs(self, group_id: int, known: Leadership, within: Deadline) -> list[int]:
        """Nodes that could lead instead, the one furthest along first. What the controller's
        leader knows of its followers is not asked for: it refuses those that are behind."""
        group = self._access.catalog.group(group_id)
        if group is None:
            raise Refused("PARTITION_NOT_FOUND", "the topic was deleted")
        progress = {group.node_of(voter): 0 for voter in group.reality.voters}
        if group_id != CONTROLLER_GROUP_ID:
            nothing = pb.DescribeTopicRequest()
            told = await self._places.ask(group_id, self._views.describe, nothing, within)
            progress = {
                replica.node_id: replica.match_index
                for replica in told.replicas
                if replica.role == pb.REPLICA_ROLE_VOTER
            }
        able = [n for n in progress if n != known[0] and self._host.may_lead(n)]
        return sorted(able, key=lambda node_id: (-progress[node_id], node_id))
