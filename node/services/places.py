"""Where topics and partitions are, and asking a partition's leader from any node.

Every node has the whole catalog, so looking up is local. A name that is not known here may have
been created through another node a moment ago: then the controller's leader is asked before the
answer is "not found". What only a leader can answer is an operation: a method with its codec and a
function that runs where the partition is led. `Places.ask` finds the leader, holds the request
while there is none, and asks again when leadership moves; so every operation must be harmless when
repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic

from cluster.controller.access import ControllerAccess, ControllerUnavailable
from cluster.controller.catalog import Catalog
from cluster.controller.model import Topic, is_topic_name
from cluster.group import OutcomeUnknown, ProposalLost
from cluster.host import Host
from cluster.interfaces import CorruptEntry, PeerError, StorageError
from cluster.raft.errors import NotLeader, Transferring
from node import codec
from node.partition import commands
from node.partitions import LocalPartition, Partitions
from node.services.call import Deadline
from node.services.errors import Refused, of_reply, refused_of
from quorumq.channel import Method, Q, R
from quorumq.v1 import errors_pb2 as pb

OPERATION_METHOD = "partition.operation"

_RETRY_S = 0.02
_ATTEMPT_S_MAX = 3.0
# How an answer begins; then comes the response, the Error, or what was the trouble.
_DONE, _REFUSED, _NOT_LEADER, _BUSY, _IN_DOUBT = b"D", b"R", b"N", b"B", b"U"

Leadership = tuple[int, int]  # node id, term


@dataclass(frozen=True, slots=True)
class Operation(Generic[Q, R]):
    """`run(partition, request)` is called on the node that leads; it may raise what refused_of
    knows. NotLeader, ProposalLost and OutcomeUnknown make it be asked again. `changes`: whether it
    may have done something when its answer was lost."""

    method: Method[Q, R]
    run: Callable[[LocalPartition, Q], Awaitable[R]]
    changes: bool = False


class Places:
    """One per node."""

    def __init__(self, *, host: Host, controller: ControllerAccess, partitions: Partitions) -> None:
        self._host = host
        self._controller = controller
        self._partitions = partitions
        self._operations: dict[str, Operation[Any, Any]] = {}

    @property
    def catalog(self) -> Catalog:
        return self._controller.catalog

    @property
    def node_id(self) -> int:
        return self._host.node_id

    # --- topics ----------------------------------------------------------------------------------

    async def topic(self, name: str, topic_id: str | None, deadline: Deadline) -> Topic:
        """Raises Refused BAD_NAME, TOPIC_NOT_FOUND, TOPIC_REPLACED."""
        found = self.known_topic(name, topic_id)
        if found is not None:
            return found
        full = full_name(name)
        try:
            await self._controller.refresh(timeout_ms=int(deadline.left_s() * 1000))
        except ControllerUnavailable as error:
            raise Refused("NO_LEADER", f"topic {full} is not known here, and {error}") from error
        topic = self.catalog.topic_by_name(full)
        if topic is None:
            raise Refused("TOPIC_NOT_FOUND", f"there is no topic {full}")
        if topic_id is not None and topic.topic_id != topic_id:
            raise Refused("TOPIC_REPLACED", f"topic {full} is {topic.topic_id}, not {topic_id}")
        return topic

    def known_topic(self, name: str, topic_id: str | None) -> Topic | None:
        """The same without waiting, None where `topic` would have to ask."""
        topic = self.catalog.topic_by_name(full_name(name))
        if topic is None or (topic_id is not None and topic.topic_id != topic_id):
            return None
        return topic

    def group_id(self, topic: Topic, partition: int) -> int:
        """Raises Refused PARTITION_NOT_FOUND."""
        if not 0 <= partition < topic.partitions:
            raise Refused(
                "PARTITION_NOT_FOUND",
                f"topic {topic.name} has partitions 0 to {topic.partitions - 1}, not {partition}",
            )
        return topic.group_ids[partition]

    # --- leaders ---------------------------------------------------------------------------------

    def led_here(self, group_id: int) -> LocalPartition | None:
        """The partition if this node leads it and is ready to serve."""
        local = self._partitions.get(group_id)
        if local is None or not (local.group.is_leader and local.replica.leader_term):
            return None
        return local

    def local(self, group_id: int) -> LocalPartition | None:
        return self._partitions.get(group_id)

    def leadership(self, group_id: int) -> Leadership | None:
        return self._host.leader_of(group_id)

    def leader(self, group_id: int) -> pb.Leader | None:
        """For clients: None while nobody is known to lead."""
        known = self._host.leader_of(group_id)
        if known is None:
            return None
        return pb.Leader(
            node_id=known[0], client_endpoint=self.endpoint(known[0]), leader_epoch=known[1]
        )

    def endpoint(self, node_id: int) -> str:
        """Its client endpoint, empty if not known."""
        member = self.catalog.member(node_id)
        return "" if member is None else member.client_endpoint

    async def hold(
        self, group_id: int, deadline: Deadline, *, not_this: Leadership | None = None
    ) -> Leadership:
        """Returns when somebody leads the partition, other than `not_this`. Raises Refused
        NO_LEADER at the deadline."""
        try:
            async with asyncio.timeout(deadline.left_s()):
                while (known := self._host.leader_of(group_id)) is None or known == not_this:
                    await self._host.peers.leader_change(group_id, known)
        except TimeoutError:
            raise Refused("NO_LEADER", "the partition has no leader") from None
        return known

    async def leader_change(self, group_id: int, seen: Leadership | None) -> None:
        """Returns when `leadership` differs from `seen`."""
        await self._host.peers.leader_change(group_id, seen)

    def lost(self, group_id: int, leadership: Leadership) -> None:
        """Who was believed to lead said that it does not."""
        self._host.peers.forget_leader(group_id, node_id=leadership[0], term=leadership[1])

    # --- operations ------------------------------------------------------------------------------

    def offer(self, operation: Operation[Any, Any]) -> None:
        assert operation.method.path not in self._operations, f"{operation.method.path} twice"
        self._operations[operation.method.path] = operation

    async def ask(
        self, group_id: int, operation: Operation[Q, R], request: Q, deadline: Deadline
    ) -> R:
        """The leader's answer. Raises Refused: what the leader refused, or NO_LEADER, or
        OUTCOME_UNKNOWN of an operation that changes something."""
        trouble, in_doubt = "the partition has no leader", False
        while deadline.left_s() > 0:
            try:
                leadership = await self.hold(group_id, deadline)
            except Refused:
                break
            try:
                answer = await self._ask_once(leadership[0], group_id, operation, request, deadline)
            except PeerError as error:
                trouble, in_doubt = f"node {leadership[0]} leads, but: {error}", True
                await asyncio.sleep(min(_RETRY_S, deadline.left_s()))
                continue
            status, body = answer[:1], answer[1:]
            if status == _DONE:
                return operation.method.decode_response(body)
            if status == _REFUSED:
                raise Refused.from_error(pb.Error.FromString(body))
            trouble, in_doubt = body.decode(), in_doubt or status == _IN_DOUBT
            if status == _NOT_LEADER:
                self.lost(group_id, leadership)
            await asyncio.sleep(min(_RETRY_S, deadline.left_s()))
        if in_doubt and operation.changes:
            raise Refused("OUTCOME_UNKNOWN", trouble, retriable=True)
        raise Refused("NO_LEADER", trouble)

    async def _ask_once(
        self,
        node_id: int,
        group_id: int,
        operation: Operation[Q, R],
        request: Q,
        deadline: Deadline,
    ) -> bytes:
        timeout_s = min(deadline.left_s(), _ATTEMPT_S_MAX)
        body = operation.method.encode_request(request)
        if node_id == self._host.node_id:
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._answer(group_id, operation.method.path, body)
            except TimeoutError:
                return _IN_DOUBT + b"the leader did not answer in time"
        return await self._host.transport.call(
            node_id,
            OPERATION_METHOD,
            group_id.to_bytes(8, "big") + operation.method.path.encode() + b"\0" + body,
            timeout_ms=max(1, int(timeout_s * 1000)),
        )

    async def serve(self, request: bytes) -> bytes:
        """A peer's OPERATION_METHOD."""
        path, _, body = request[8:].partition(b"\0")
        return await self._answer(int.from_bytes(request[:8], "big"), path.decode(), body)

    async def _answer(self, group_id: int, path: str, body: bytes) -> bytes:
        operation = self._operations.get(path)
        if operation is None:
            return (
                _REFUSED
                + refused_of(
                    Refused(
                        "FEATURE_NOT_ENABLED", f"no operation {path}", metadata={"feature": path}
                    )
                ).error.SerializeToString()
            )
        local = self.led_here(group_id)
        if local is None:
            return _NOT_LEADER + f"node {self.node_id} does not lead".encode()
        try:
            answer = await self._run(local, operation, body)
        except NotLeader as error:
            return _NOT_LEADER + str(error).encode()
        except (Transferring, ProposalLost) as error:
            return _BUSY + str(error).encode()
        except OutcomeUnknown as error:
            return _IN_DOUBT + str(error).encode()
        except Exception as error:  # becomes the answer; a bug is logged by refused_of
            return _REFUSED + refused_of(error).error.SerializeToString()
        return _DONE + operation.method.encode_response(answer)

    async def _run(self, local: LocalPartition, operation: Operation[Any, R], body: bytes) -> R:
        while True:
            try:
                return await operation.run(local, operation.method.decode_request(body))
            except CorruptEntry as error:
                if not await self.mend(local, error):
                    raise

    async def mend(self, local: LocalPartition, error: StorageError) -> bool:
        """Whether what was found damaged can be read now: another replica may have it."""
        index = error.index if isinstance(error, CorruptEntry) else 0
        return await self._host.mend(local.group, index)


async def propose(local: LocalPartition, command: commands.Command) -> commands.Reply:
    """The machine's reply. Raises Refused for what it refused, NotLeader, Transferring, Throttled,
    ProposalLost, OutcomeUnknown."""
    data = codec.encode(command)
    reply = await local.group.propose(data, expected_term=local.group.term)
    if isinstance(reply, commands.Refused):
        raise of_reply(reply)
    assert isinstance(reply, commands.Reply), f"{reply!r} is not a reply of a partition"
    return reply


def full_name(name: str) -> str:
    """`namespace/name`. Raises Refused BAD_NAME."""
    full = name if "/" in name else f"default/{name}"
    if not is_topic_name(full):
        raise Refused("BAD_NAME", f"{name!r} is no topic name: [namespace/]name of A-Za-z0-9._-")
    return full
