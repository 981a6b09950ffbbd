"""The nodes as a client sees them: which can be reached, who leads what, and calls that find one.

Any node takes any request and holds it while a partition has no leader, so the rules are few: go
to the leader if it is known and reachable, else to any node that is; a connection that breaks sends
its requests elsewhere at once; a node that failed is left alone for a short, growing, jittered
while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from quorumq import methods
from quorumq.channel import CallFailed, Channel, ChannelFactory, Method, Q, R
from quorumq.errors import (
    Closed,
    OutcomeUnknown,
    QuorumqError,
    RequestTimeout,
    TopicReplaced,
    Unavailable,
    Unreachable,
    from_message,
    from_status,
)
from quorumq.partitioner import full_slot_map
from quorumq.produce_link import ProduceLink
from quorumq.tasks import Tasks
from quorumq.v1 import admin_pb2, errors_pb2
from quorumq.v1.messaging_pb2 import ProduceStreamResponse
from quorumq.wire import with_request_id

BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 2.0
CONNECT_TIMEOUT_S = 2.0
ATTEMPT_TIMEOUT_S = 12.0  # above the 10 s that a node holds a request at most
METADATA_TIMEOUT_S = 1.5
NEW_TOPIC_KNOWN_WITHIN_S = 10.0

Link = ProduceLink[bytes, ProduceStreamResponse]

# The client builds produce requests as bytes, see records.py.
_PRODUCE_BYTES: Method[bytes, ProduceStreamResponse] = Method(
    methods.PRODUCE_STREAM.path,
    methods.PRODUCE_STREAM.kind,
    bytes,
    bytes,
    ProduceStreamResponse.SerializeToString,
    ProduceStreamResponse.FromString,
)


def backoff_s(failures: int, rng: Random) -> float:
    """Wait before the next attempt after `failures` >= 1 in a row: doubled each time, jittered
    by half."""
    ceiling = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2.0 ** min(failures - 1, 10))
    return ceiling * (0.5 + rng.random() / 2)


class Node:
    """One endpoint: its channel, its produce link, and how it fared lately."""

    def __init__(self, endpoint: str, channels: ChannelFactory, rng: Random) -> None:
        self.endpoint = endpoint
        self.failures = 0  # in a row
        self.retry_at = 0.0  # loop time; before it, others are preferred
        self._channels = channels
        self._channel: Channel | None = None
        self._link: Link | None = None
        self._ended_links: list[Link] = []
        self._rng = rng

    @property
    def channel(self) -> Channel:
        if self._channel is None:
            self._channel = self._channels(self.endpoint)
        return self._channel

    def usable(self, now: float) -> bool:
        return now >= self.retry_at

    def link(self) -> Link:
        """The live link, made if there is none."""
        if self._link is None:
            self._link = ProduceLink(
                self.channel,
                _PRODUCE_BYTES,
                attach_id=with_request_id,
                id_of=_request_id,
                on_end=self._link_ended,
                connect_timeout_s=CONNECT_TIMEOUT_S,
            )
        return self._link

    def succeeded(self) -> None:
        self.failures = 0
        self.retry_at = 0.0

    def failed(self) -> None:
        self.failures += 1
        now = asyncio.get_running_loop().time()
        self.retry_at = now + backoff_s(self.failures, self._rng)

    def avoid(self, seconds: float) -> None:
        """It asked to be left alone."""
        self.retry_at = max(self.retry_at, asyncio.get_running_loop().time() + seconds)

    async def close(self) -> None:
        if self._link is not None:
            self._ended_links.append(self._link)
        for link in self._ended_links:
            await link.close()
        if self._channel is not None:
            await self._channel.close()

    def _link_ended(self, _cause: QuorumqError) -> None:
        if self._link is not None:
            self._ended_links = [link for link in self._ended_links if link.outstanding]
            self._ended_links.append(self._link)
            self._link = None
        self.failed()


class TopicRoute:
    """What is known of a topic: fixed facts, and who leads its partitions, which changes. Shared by
    all who use the topic; `leader_changed` listeners are called with the partition."""

    def __init__(self, topic: admin_pb2.TopicMetadata) -> None:
        self.name = topic.name
        self.topic_id = topic.topic_id
        self.partition_count = topic.partition_count
        self.record_bytes_max = topic.record_bytes_max
        self.batch_bytes_max = topic.batch_bytes_max
        self.feature_level = topic.feature_level
        self.partition_epoch = 0
        self.slot_map: list[int] = []
        self.leaders: list[errors_pb2.Leader | None] = [None] * topic.partition_count
        self.listeners: list[Callable[[int], None]] = []
        self.update(topic)

    def update(self, topic: admin_pb2.TopicMetadata) -> None:
        """Raises TopicReplaced when it is another topic of the same name."""
        if topic.topic_id != self.topic_id:
            raise TopicReplaced(
                f"topic {self.name} is {topic.topic_id} now, it was {self.topic_id}"
            )
        if not self.slot_map or topic.partition_epoch > self.partition_epoch:
            self.partition_epoch = topic.partition_epoch
            self.slot_map = full_slot_map(
                topic.slot_map, hash_slots=topic.hash_slots, partitions=topic.partition_count
            )
        for partition in topic.partitions:
            if partition.HasField("leader"):
                self.learn(partition.partition, partition.leader)

    def learn(self, partition: int, leader: errors_pb2.Leader) -> None:
        """Somebody says who leads. Older news than what is known is ignored."""
        known = self.leaders[partition]
        if not leader.client_endpoint:
            return
        if known is not None and leader.leader_epoch < known.leader_epoch:
            return
        self.leaders[partition] = leader
        if known is None or known.client_endpoint != leader.client_endpoint:
            for listener in list(self.listeners):
                listener(partition)

    def leader_epoch(self, partition: int) -> int:
        leader = self.leaders[partition]
        return 0 if leader is None else leader.leader_epoch


class Connection:
    """All nodes. One for each client."""

    def __init__(self, servers: Sequence[str], *, channels: ChannelFactory, rng: Random) -> None:
        assert servers
        self.rng = rng
        self.tasks = Tasks(_report)
        self.closed = False
        self._channels = channels
        self._nodes = {server: Node(server, channels, rng) for server in servers}
        self._current: Node | None = None  # where calls go, until it fails
        self._routes: dict[str, TopicRoute] = {}
        self._created: dict[str, float] = {}  # topics this client made: loop time
        self._refreshing: dict[str, asyncio.Task[None]] = {}

    def node(self, endpoint: str) -> Node:
        node = self._nodes.get(endpoint)
        if node is None:
            node = self._nodes[endpoint] = Node(endpoint, self._channels, self.rng)
        return node

    def pick(self) -> Node:
        """A node to ask: the one asked last while it answers, else a random one of those that did
        not fail lately, else the one whose backoff ends first."""
        now = asyncio.get_running_loop().time()
        if self._current is not None and self._current.usable(now):
            return self._current
        usable = [node for node in self._nodes.values() if node.usable(now)]
        if usable:
            self._current = self.rng.choice(usable)
            return self._current
        return min(self._nodes.values(), key=lambda node: node.retry_at)

    def leader_node(self, route: TopicRoute, partition: int) -> Node | None:
        """The leader's node, if it is known and did not fail lately."""
        leader = route.leaders[partition]
        if leader is None:
            return None
        node = self.node(leader.client_endpoint)
        return node if node.usable(asyncio.get_running_loop().time()) else None

    async def call(
        self,
        method: Method[Q, R],
        request: Q,
        *,
        timeout_s: float,
        attempt_s: float = ATTEMPT_TIMEOUT_S,
    ) -> R:
        """Ask nodes until one answers. Repeats what is certainly not done, and what may be done if
        the method is repeatable. Raises the last error when `timeout_s` is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        in_doubt = False
        failures = 0
        while True:
            if self.closed:
                raise Closed("the client is closed")
            node = self.pick()
            left_s = deadline - loop.time()
            try:
                if not node.usable(loop.time()):
                    raise Unreachable(f"no node answers, the last one asked was {node.endpoint}")
                response = await _attempt(node, method, request, min(left_s, attempt_s))
                node.succeeded()
                return response
            except QuorumqError as error:
                failures += 1
                in_doubt |= not error.outcome_known
                wait_s = self._wait_s(node, error, method.repeatable, failures)
                if wait_s is None or loop.time() + wait_s >= deadline:
                    if in_doubt and error.outcome_known:
                        error.outcome_known = False  # an earlier attempt may have done it
                    raise
            await asyncio.sleep(wait_s)

    def _wait_s(
        self, node: Node, error: QuorumqError, repeatable: bool, failures: int
    ) -> float | None:
        """How long to wait before the next attempt; None = there is none."""
        # In doubt because of a bug (INTERNAL, UNKNOWN) it would fail the same way again.
        in_doubt = isinstance(error, OutcomeUnknown) and not error.outcome_known
        if not (error.retriable or (repeatable and in_doubt)):
            return None
        if error.reason in ("UNREACHABLE", "CONNECTION_LOST", "TIMEOUT", "NODE_DRAINING"):
            now = asyncio.get_running_loop().time()
            return max(0.0, self.pick().retry_at - now)
        if error.retry_after_ms is not None:
            return error.retry_after_ms / 1000
        return backoff_s(failures, self.rng)

    async def topic(self, name: str, *, timeout_s: float) -> TopicRoute:
        """The topic as it is now: a producer or reader that begins must not be sent to one that was
        deleted since. Those of the same topic share what is learned. Raises TopicNotFound."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            topic = await self._topic_metadata(name, timeout_s=deadline - loop.time())
            if not topic.HasField("error"):
                break
            # A node may not yet know of a topic that was made a moment ago through another one.
            made_at = self._created.get(name)
            young = made_at is not None and loop.time() < made_at + NEW_TOPIC_KNOWN_WITHIN_S
            error = from_message(topic.error)
            if loop.time() >= deadline or not (young or error.retriable):
                raise error
            await asyncio.sleep(BACKOFF_S_MIN)
        route = self._routes.get(name)
        if route is None or route.topic_id != topic.topic_id:
            route = self._routes[name] = TopicRoute(topic)
        else:
            route.update(topic)
        return route

    def created(self, name: str) -> None:
        """This client made the topic: soon all nodes know it."""
        self._created[name] = asyncio.get_running_loop().time()
        self._routes.pop(name, None)

    def forget(self, name: str) -> None:
        self._created.pop(name, None)
        self._routes.pop(name, None)

    async def refresh(self, route: TopicRoute) -> None:
        """Learn anew who leads. Raises TopicReplaced, TopicNotFound, or why nobody told."""
        topic = await self._topic_metadata(route.name, timeout_s=METADATA_TIMEOUT_S * 2)
        if topic.HasField("error"):
            raise from_message(topic.error)
        try:
            route.update(topic)
        except TopicReplaced:
            if self._routes.get(route.name) is route:
                del self._routes[route.name]
            raise

    def refresh_soon(self, route: TopicRoute) -> None:
        """`refresh` in the background, once at a time; its errors are those of the requests that
        wait for it, and shown there."""
        if route.name not in self._refreshing and not self.closed:
            task = self.tasks.start(self._try_refresh(route), name=f"metadata of {route.name}")
            self._refreshing[route.name] = task

    async def close(self) -> None:
        self.closed = True
        await self.tasks.close()
        for node in list(self._nodes.values()):
            await node.close()

    async def metadata(
        self, topics: Sequence[str], *, timeout_s: float
    ) -> admin_pb2.GetMetadataResponse:
        response = await self.call(
            methods.GET_METADATA,
            admin_pb2.GetMetadataRequest(topics=topics),
            timeout_s=timeout_s,
            attempt_s=METADATA_TIMEOUT_S,
        )
        for info in response.nodes:
            if info.client_endpoint:
                self.node(info.client_endpoint)
        return response

    async def _topic_metadata(self, name: str, *, timeout_s: float) -> admin_pb2.TopicMetadata:
        response = await self.metadata([name], timeout_s=timeout_s)
        if len(response.topics) != 1:
            raise Unavailable(f"asked for topic {name}, got {len(response.topics)} topics")
        return response.topics[0]

    async def _try_refresh(self, route: TopicRoute) -> None:
        try:
            await self.refresh(route)
        except QuorumqError:
            pass  # see refresh_soon
        finally:
            self._refreshing.pop(route.name, None)


async def _attempt(node: Node, method: Method[Q, R], request: Q, timeout_s: float) -> R:
    try:
        await node.channel.ready(min(timeout_s, CONNECT_TIMEOUT_S))
    except CallFailed as failure:
        node.failed()
        raise Unreachable(failure.details) from None
    try:
        return await node.channel.unary(method, request, timeout_s=timeout_s)
    except CallFailed as failure:
        error = from_status(failure.code, failure.details, failure.trailers)
        if error.reason in ("CONNECTION_LOST", "TIMEOUT", "NODE_DRAINING"):
            node.failed()
        if isinstance(error, RequestTimeout):
            error.message = f"{method.path}: no answer of {node.endpoint} within {timeout_s:.3g} s"
        raise error from None


def _request_id(response: ProduceStreamResponse) -> int:
    return response.produced.request_id


def _report(name: str, error: BaseException) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {"message": f"{name} failed", "exception": error}
    )
