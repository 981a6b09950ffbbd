"""Topics, metadata and the cluster, as coroutines. Answers are the messages of quorumq.v1, which
say in admin.proto what each of their fields means.

All of them ask any node, repeat what may be repeated until `timeout_ms`, and raise the errors of
quorumq.errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from quorumq import methods
from quorumq.channel import Method, Q, R
from quorumq.connection import Connection
from quorumq.errors import from_message
from quorumq.reader import Start, commit, offset_query
from quorumq.records import Record, record_of
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import errors_pb2, messaging_pb2

PAGE_SIZE = 1000


class Admin:
    """From `Client.admin`. `timeout_ms` of each call; nodes hold a request while what it needs has
    no leader."""

    def __init__(self, connection: Connection, *, timeout_ms: int = 30_000) -> None:
        self._connection = connection
        self.timeout_ms = timeout_ms

    # -------------------------------------------------------------------------------------- topics

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        config: pb.TopicConfig | None = None,
        validate_only: bool = False,
        **settings: int,
    ) -> pb.TopicInfo:
        """`settings` are fields of TopicConfig, for example retention_ms=86_400_000. Equal settings
        again are OK, others raise AlreadyExists. Returns when its partitions have leaders."""
        wanted = pb.TopicConfig(partitions=partitions, **settings)  # type: ignore[arg-type]
        if config is not None:
            wanted.MergeFrom(config)
        request = pb.CreateTopicRequest(name=name, config=wanted, validate_only=validate_only)
        response = await self._call(methods.CREATE_TOPIC, request)
        if not validate_only:
            self._connection.created(name)
        return response.topic

    async def alter_topic(
        self, name: str, *, reset: Sequence[str] = (), **settings: int
    ) -> pb.AlterTopicResponse:
        """Change the settings given; those named in `reset` go back to their defaults."""
        request = pb.AlterTopicRequest(
            name=name,
            config=pb.TopicConfig(**settings),  # type: ignore[arg-type]
            update_mask=FieldMask(paths=[*settings, *reset]),
        )
        return await self._call(methods.ALTER_TOPIC, request)

    async def delete_topic(self, name: str, *, topic_id: str | None = None) -> None:
        """With its records and subscriptions. Raises TopicNotFound."""
        await self._call(methods.DELETE_TOPIC, pb.DeleteTopicRequest(name=name, topic_id=topic_id))
        self._connection.forget(name)

    async def describe_topic(self, name: str) -> pb.DescribeTopicResponse:
        """From its leaders: offsets, sizes, replicas."""
        return await self._call(methods.DESCRIBE_TOPIC, pb.DescribeTopicRequest(name=name))

    async def list_topics(
        self, *, namespace: str | None = None, prefix: str = ""
    ) -> list[pb.TopicInfo]:
        """All, by name."""
        topics: list[pb.TopicInfo] = []
        token = ""
        while True:
            request = pb.ListTopicsRequest(
                namespace=namespace, name_prefix=prefix, page_size=PAGE_SIZE, page_token=token
            )
            response = await self._call(methods.LIST_TOPICS, request)
            topics += response.topics
            token = response.next_page_token
            if not token:
                return topics

    async def metadata(self, *topics: str) -> pb.GetMetadataResponse:
        """Nodes, leaders, slot maps; a topic that is not there has an `error`."""
        return await self._call(methods.GET_METADATA, pb.GetMetadataRequest(topics=topics))

    # ---------------------------------------------------------------------------- offsets, records

    async def list_offsets(
        self, topic: str, queries: Mapping[int, Start], *, by_created: bool = False
    ) -> dict[int, pb.OffsetResult]:
        """By partition, for "earliest", "latest" or a Time each. Raises the first error."""
        request = pb.ListOffsetsRequest(
            topic=topic, queries=[offset_query(partition, at) for partition, at in queries.items()]
        )
        if by_created:
            request.by = messaging_pb2.TIME_BY_CREATED
        response = await self._call(methods.LIST_OFFSETS, request)
        for result in response.results:
            if result.HasField("error"):
                raise from_message(result.error)
        return {result.partition: result for result in response.results}

    async def get_record(self, topic: str, partition: int, offset: int) -> Record:
        """Raises RecordNotFound when it is gone, OffsetOutOfRange when it is not there yet."""
        response = await self._call(
            methods.GET_RECORD,
            pb.GetRecordRequest(topic=topic, partition=partition, offset=offset),
        )
        return record_of(
            response.record,
            topic=topic,
            partition=response.partition,
            offset=response.offset,
            append_time_ms=response.append_time_ms,
        )

    async def list_producers(
        self, topic: str, *, partition: int | None = None
    ) -> list[pb.ProducerInfo]:
        """What the partitions know of producers."""
        producers: list[pb.ProducerInfo] = []
        token = ""
        while True:
            request = pb.ListProducersRequest(
                topic=topic, partition=partition, page_size=PAGE_SIZE, page_token=token
            )
            response = await self._call(methods.LIST_PRODUCERS, request)
            producers += response.producers
            token = response.next_page_token
            if not token:
                return producers

    # ------------------------------------------------------------------------------- subscriptions

    async def create_subscription(
        self,
        topic: str,
        name: str,
        *,
        kind: pb.SubscriptionKind,
        start: Start = "latest",
        config: pb.SubscriptionConfig | None = None,
    ) -> pb.SubscriptionInfo:
        """`start`: "earliest", "latest" or a Time. `config` holds settings besides the kind."""
        wanted = pb.SubscriptionConfig(kind=kind)
        if config is not None:
            wanted.MergeFrom(config)
        query = offset_query(0, start)
        position = pb.StartPosition(earliest=True)
        if query.WhichOneof("at") == "latest":
            position = pb.StartPosition(latest=True)
        elif query.WhichOneof("at") == "time_ms":
            position = pb.StartPosition(time_ms=query.time_ms)
        request = pb.CreateSubscriptionRequest(
            topic=topic, name=name, config=wanted, start=position
        )
        return (await self._call(methods.CREATE_SUBSCRIPTION, request)).subscription

    async def delete_subscription(self, topic: str, name: str) -> None:
        request = pb.DeleteSubscriptionRequest(topic=topic, name=name)
        await self._call(methods.DELETE_SUBSCRIPTION, request)

    async def describe_subscription(self, topic: str, name: str) -> pb.DescribeSubscriptionResponse:
        request = pb.DescribeSubscriptionRequest(topic=topic, name=name)
        return await self._call(methods.DESCRIBE_SUBSCRIPTION, request)

    async def list_subscriptions(self, topic: str = "") -> list[pb.SubscriptionInfo]:
        """Of one topic, or all."""
        subscriptions: list[pb.SubscriptionInfo] = []
        token = ""
        while True:
            request = pb.ListSubscriptionsRequest(
                topic=topic, page_size=PAGE_SIZE, page_token=token
            )
            response = await self._call(methods.LIST_SUBSCRIPTIONS, request)
            subscriptions += response.subscriptions
            token = response.next_page_token
            if not token:
                return subscriptions

    async def commit(
        self,
        topic: str,
        subscription: str,
        positions: Mapping[int, int],
        *,
        metadata: str = "",
    ) -> None:
        """Store positions of a stream subscription: next offsets to read, by partition."""
        route = await self._connection.topic(topic, timeout_s=self.timeout_ms / 1000)
        await commit(
            self._connection,
            route,
            subscription,
            positions,
            metadata=metadata,
            timeout_s=self.timeout_ms / 1000,
        )

    async def positions(
        self, topic: str, subscription: str, partitions: Sequence[int] = ()
    ) -> dict[int, messaging_pb2.PartitionPosition]:
        """By partition, of all or those given. Raises the first error."""
        request = messaging_pb2.GetPositionsRequest(
            topic=topic, subscription=subscription, partitions=partitions
        )
        response = await self._call(methods.GET_POSITIONS, request)
        for position in response.positions:
            if position.HasField("error"):
                raise from_message(position.error)
        return {position.partition: position for position in response.positions}

    # ------------------------------------------------------------------------------------- cluster

    async def get_cluster(self) -> pb.GetClusterResponse:
        """Nodes, versions, features, limits, health."""
        return await self._call(methods.GET_CLUSTER, pb.GetClusterRequest())

    async def add_node(self, node_id: int, peer_endpoint: str) -> pb.Operation:
        """Take in a node that runs and waits to join."""
        request = pb.AddNodeRequest(node_id=node_id, peer_endpoint=peer_endpoint)
        return (await self._call(methods.ADD_NODE, request)).operation

    async def drain_node(self, node_id: int, *, cancel: bool = False) -> pb.Operation:
        """Move everything away from a node, or stop doing so."""
        request = pb.DrainNodeRequest(node_id=node_id, cancel=cancel)
        return (await self._call(methods.DRAIN_NODE, request)).operation

    async def remove_node(self, node_id: int, *, force: bool = False) -> pb.Operation:
        """Take out a drained or dead node; any node with `force`."""
        request = pb.RemoveNodeRequest(node_id=node_id, force=force)
        return (await self._call(methods.REMOVE_NODE, request)).operation

    async def move_replica(
        self, topic: str, partition: int, *, from_node_id: int, to_node_id: int
    ) -> pb.Operation:
        request = pb.MoveReplicaRequest(
            topic=topic, partition=partition, from_node_id=from_node_id, to_node_id=to_node_id
        )
        return (await self._call(methods.MOVE_REPLICA, request)).operation

    async def transfer_leader(
        self, topic: str, partition: int, *, to_node_id: int | None = None
    ) -> errors_pb2.Leader:
        """Hand a leadership over, to the node furthest along by default. Topic "" = the
        controller. Returns who leads now."""
        request = pb.TransferLeaderRequest(topic=topic, partition=partition, to_node_id=to_node_id)
        return (await self._call(methods.TRANSFER_LEADER, request)).leader

    async def get_operation(
        self, operation_id: str, *, known_version: int | None = None, wait_ms: int = 0
    ) -> pb.Operation:
        """As it is; with `known_version`, after waiting up to `wait_ms` for news of it."""
        request = pb.GetOperationRequest(
            operation_id=operation_id, known_version=known_version, wait_ms=wait_ms
        )
        return (await self._call(methods.GET_OPERATION, request, extra_ms=wait_ms)).operation

    async def watch_operation(self, operation_id: str) -> AsyncIterator[pb.Operation]:
        """Every news of it, the last one when it has ended."""
        version: int | None = None
        while True:
            operation = await self.get_operation(operation_id, known_version=version, wait_ms=5_000)
            if operation.version != version:
                yield operation
            if operation.state not in (
                pb.OPERATION_STATE_RUNNING,
                pb.OPERATION_STATE_UNSPECIFIED,
            ):
                return
            version = operation.version

    async def list_operations(self, *, running_only: bool = False) -> list[pb.Operation]:
        """Newest first."""
        operations: list[pb.Operation] = []
        token = ""
        while True:
            request = pb.ListOperationsRequest(
                running_only=running_only, page_size=PAGE_SIZE, page_token=token
            )
            response = await self._call(methods.LIST_OPERATIONS, request)
            operations += response.operations
            token = response.next_page_token
            if not token:
                return operations

    async def _call(self, method: Method[Q, R], request: Q, *, extra_ms: int = 0) -> R:
        timeout_s = (self.timeout_ms + extra_ms) / 1000
        return await self._connection.call(method, request, timeout_s=timeout_s)
