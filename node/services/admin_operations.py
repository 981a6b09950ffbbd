"""AdminService: nodes that come and go, replicas that move, and operations one can watch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from cluster.controller import commands as c
from cluster.controller.model import (
    NODE_ID_MAX,
    Member,
    MemberState,
    Operation,
    OperationKind,
    OperationState,
)
from cluster.founding import HELLO_METHOD, Membership
from cluster.host import Host
from cluster.interfaces import PeerError
from node.services.admin_cluster import AdminCluster
from node.services.admin_rows import operation_message
from node.services.call import Call, Deadline
from node.services.catalog_access import CatalogAccess
from node.services.errors import Refused, bad_request
from node.services.paging import after_of, page_size, token_of
from node.services.places import Places
from quorumq.v1 import admin_pb2 as pb

WAIT_MS_MAX = 60_000
_HELLO_TIMEOUT_MS = 2_000
_EMPTYING = (OperationKind.DRAIN_NODE, OperationKind.REMOVE_NODE)


class AdminOperations:
    def __init__(
        self, *, access: CatalogAccess, places: Places, host: Host, cluster: AdminCluster
    ) -> None:
        self._access = access
        self._places = places
        self._host = host
        self._cluster = cluster

    # --- nodes -----------------------------------------------------------------------------------

    async def add_node(self, request: pb.AddNodeRequest, call: Call) -> pb.AddNodeResponse:
        """The node tells who it is; it is registered for it, should it not have done so itself."""
        deadline = Deadline.of(call)
        _check_node_id("node_id", request.node_id)
        await self._access.current(deadline)
        member = self._access.catalog.member(request.node_id)
        announced = await self._hello(request, member, deadline)
        if announced is not None:
            if member is not None and member.incarnation != announced.incarnation:
                self._refuse_another(member)
            register = c.RegisterMember(member=announced)
            await self._access.command(lambda: register, c.MemberRegistered, deadline)
        start = c.StartOperation(kind=OperationKind.ADD_NODE, node_id=request.node_id)
        return pb.AddNodeResponse(operation=await self._start(lambda: start, deadline))

    async def _hello(
        self, request: pb.AddNodeRequest, member: Member | None, deadline: Deadline
    ) -> c.Announcement | None:
        """Who is at the endpoint; None if nobody answers and a member is known to be there. Raises
        Refused BAD_REQUEST."""
        endpoint = request.peer_endpoint
        if not endpoint:
            raise bad_request("peer_endpoint", "is empty")
        timeout_ms = min(_HELLO_TIMEOUT_MS, max(1, int(deadline.left_s() * 1000)))
        try:
            answer = await self._host.transport.call(
                0, HELLO_METHOD, b"", timeout_ms=timeout_ms, endpoint=endpoint
            )
            hello = json.loads(answer)
            announced = c.Announcement(**hello["member"])
            stored = hello["membership"]
            theirs = Membership.decode(stored.encode()).cluster_id if stored else ""
        except PeerError as error:
            if member is not None and member.peer_endpoint == endpoint:
                return None  # the operation shows that it waits for the node
            raise bad_request("peer_endpoint", f"no node answers at {endpoint}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise bad_request(
                "peer_endpoint", f"what answers at {endpoint} is no node: {error!r}"
            ) from error
        if announced.node_id != request.node_id:
            raise bad_request("peer_endpoint", f"{endpoint} is node {announced.node_id}")
        if theirs not in ("", self._access.catalog.cluster_id):
            raise bad_request("peer_endpoint", f"{endpoint} belongs to another cluster, {theirs}")
        return announced

    def _refuse_another(self, member: Member) -> None:
        """A member that is silent may have lost its disk and come back; one that is heard of is
        another node. Raises Refused ALREADY_EXISTS."""
        if self._host.node_alive(member.node_id):
            raise Refused(
                "ALREADY_EXISTS", f"node {member.node_id} is at {member.peer_endpoint} and alive"
            )

    async def drain_node(self, request: pb.DrainNodeRequest, call: Call) -> pb.DrainNodeResponse:
        deadline = Deadline.of(call)
        _check_node_id("node_id", request.node_id)
        if request.cancel:
            return pb.DrainNodeResponse(operation=await self._cancel(request.node_id, deadline))
        start = c.StartOperation(kind=OperationKind.DRAIN_NODE, node_id=request.node_id)
        return pb.DrainNodeResponse(operation=await self._start(lambda: start, deadline))

    async def _cancel(self, node_id: int, deadline: Deadline) -> pb.Operation:
        """The node takes part again. Raises Refused NODE_NOT_FOUND, OPERATION_CONFLICT."""
        await self._access.current(deadline)
        await self._access.command(lambda: self._cancel_command(node_id), c.Done, deadline)
        last = self._last_emptying(node_id)
        if last is not None:
            return operation_message(last)
        return pb.Operation(
            kind=pb.OPERATION_KIND_DRAIN_NODE, state=pb.OPERATION_STATE_CANCELLED, node_id=node_id
        )

    def _cancel_command(self, node_id: int) -> c.Command:
        member = self._member(node_id)
        last = self._last_emptying(node_id)
        if last is not None and last.state in (OperationState.RUNNING, OperationState.CANCELLED):
            return c.FinishOperation(operation_id=last.operation_id, state=OperationState.CANCELLED)
        if member.state == MemberState.ACTIVE:
            raise Refused("OPERATION_CONFLICT", f"node {node_id} is not drained")
        return c.SetMemberState(node_id=node_id, state=MemberState.ACTIVE)

    def _last_emptying(self, node_id: int) -> Operation | None:
        """The latest drain or removal of the node."""
        for row in reversed(self._access.catalog.operations()):
            if row.kind in _EMPTYING and row.node_id == node_id:
                return row
        return None

    async def remove_node(self, request: pb.RemoveNodeRequest, call: Call) -> pb.RemoveNodeResponse:
        """A drained node goes when it is seen to hold nothing, a dead or forced one at once: its
        replicas are then made anew elsewhere, which the operation waits for."""
        deadline = Deadline.of(call)
        node_id, force = request.node_id, request.force
        _check_node_id("node_id", node_id)
        await self._access.current(deadline)
        member = self._access.catalog.member(node_id)
        if not force and member is not None and member.state != MemberState.DRAINED:
            seen = await self._cluster.seen(deadline)
            if not seen.HasField("controller"):
                raise Refused("NO_LEADER", "the controller's leader does not answer")
            states = [node.state for node in seen.nodes if node.node_id == node_id]
            if states != [pb.NODE_STATE_DEAD]:
                raise Refused(
                    "OPERATION_CONFLICT",
                    f"node {node_id} is alive and {member.state.name.lower()}:"
                    " drain it first, or force its removal",
                )
            force = True
        start = c.StartOperation(kind=OperationKind.REMOVE_NODE, node_id=node_id, force=force)
        return pb.RemoveNodeResponse(operation=await self._start(lambda: start, deadline))

    async def move_replica(
        self, request: pb.MoveReplicaRequest, call: Call
    ) -> pb.MoveReplicaResponse:
        deadline = Deadline.of(call)
        _check_node_id("from_node_id", request.from_node_id)
        _check_node_id("to_node_id", request.to_node_id)
        topic = await self._access.topic(request.topic, None, deadline)
        self._places.group_id(topic, request.partition)
        for node_id in (request.from_node_id, request.to_node_id):
            self._member(node_id)
        start = c.StartOperation(
            kind=OperationKind.MOVE_REPLICA,
            node_id=request.from_node_id,
            to_node_id=request.to_node_id,
            topic_id=topic.topic_id,
            partition=request.partition,
        )
        return pb.MoveReplicaResponse(operation=await self._start(lambda: start, deadline))

    def _member(self, node_id: int) -> Member:
        """Raises Refused NODE_NOT_FOUND."""
        member = self._access.catalog.member(node_id)
        if member is None:
            raise Refused("NODE_NOT_FOUND", f"the cluster has no node {node_id}")
        return member

    async def _start(
        self, make: Callable[[], c.StartOperation], deadline: Deadline
    ) -> pb.Operation:
        reply = await self._access.command(make, c.OperationStarted, deadline)
        return operation_message(self._operation(reply.operation_id))

    # --- watching --------------------------------------------------------------------------------

    async def get_operation(
        self, request: pb.GetOperationRequest, call: Call
    ) -> pb.GetOperationResponse:
        if not 0 <= request.wait_ms <= WAIT_MS_MAX:
            raise bad_request("wait_ms", f"{request.wait_ms} is not within 0 to {WAIT_MS_MAX}")
        deadline = Deadline.of(call)
        await self._access.fresh(deadline)
        row = self._operation(request.operation_id)
        if request.HasField("known_version"):
            wait_s = min(request.wait_ms / 1000, deadline.left_s())
            row = await self._news(row, request.known_version, wait_s)
        return pb.GetOperationResponse(operation=operation_message(row))

    async def _news(self, row: Operation, known_version: int, wait_s: float) -> Operation:
        """As soon as its version is above the known one, or as it is when the time is up."""
        try:
            async with asyncio.timeout(wait_s):
                while row.version <= known_version:
                    await self._access.controller.shows(self._access.catalog.version + 1)
                    row = self._operation(row.operation_id)
        except TimeoutError:
            pass
        return row

    def _operation(self, operation_id: str) -> Operation:
        """Raises Refused OPERATION_NOT_FOUND."""
        row = self._access.catalog.operation(operation_id)
        if row is None:
            raise Refused("OPERATION_NOT_FOUND", f"there is no operation {operation_id[:100]!r}")
        return row

    async def list_operations(
        self, request: pb.ListOperationsRequest, call: Call
    ) -> pb.ListOperationsResponse:
        size, after = page_size(request.page_size), after_of(request.page_token)
        if after is not None and not after.isdecimal():
            raise bad_request("page_token", f"{request.page_token!r} is none of ListOperations")
        await self._access.fresh(Deadline.of(call))
        catalog = self._access.catalog
        rows = catalog.running_operations() if request.running_only else catalog.operations()
        rest = [row for row in reversed(rows) if after is None or row.number < int(after)]
        token = token_of(str(rest[size - 1].number)) if len(rest) > size else ""
        return pb.ListOperationsResponse(
            operations=map(operation_message, rest[:size]), next_page_token=token
        )


def _check_node_id(field: str, node_id: int) -> None:
    if not 1 <= node_id <= NODE_ID_MAX:
        raise bad_request(field, f"{node_id} is not within 1 to {NODE_ID_MAX}")
