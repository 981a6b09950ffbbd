"""Admin: each call asks for what it says and gives what was answered; pages, news and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import quorumq
from quorumq import errors, methods
from quorumq.channel import Method
from quorumq.in_process import Handler
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import errors_pb2, messaging_pb2, records_pb2
from tests.client_bed.model import Refused
from tests.client_bed.worlds import Bed, Run, both_worlds, in_process


class Asked:
    """A node that answers what the test says, and keeps what it was asked."""

    def __init__(self, bed: Bed) -> None:
        self.requests: list[Any] = []
        self._bed = bed

    async def client(
        self, *answers: tuple[Method[Any, Any], Callable[[Any], Any]]
    ) -> quorumq.Client:
        async def metadata(_request: Any, _call: Any) -> Any:
            topic = pb.TopicMetadata(name="t", topic_id="id", partition_count=1, hash_slots=64)
            return pb.GetMetadataResponse(topics=[topic])

        handlers = [Handler(methods.GET_METADATA, metadata)]
        handlers += [Handler(method, self._answering(answer)) for method, answer in answers]
        await self._bed.world.serve(9, {handler.method.path: handler for handler in handlers})
        return await self._bed.client(servers=self._bed.world.endpoint(9))

    def _answering(self, answer: Callable[[Any], Any]) -> Callable[..., Any]:
        async def handle(request: Any, _call: Any) -> Any:
            self.requests.append(request)
            response = answer(request)
            if isinstance(response, Exception):
                raise response
            return response

        return handle


def _always(response: Any) -> Callable[[Any], Any]:
    return lambda _request: response


# --------------------------------------------------------------------------- against the model


@both_worlds
def test_topics_from_creation_to_deletion(run: Run) -> None:
    async def story(bed: Bed) -> None:
        client = await bed.client()
        created = await client.admin.create_topic("t", partitions=3)
        assert (created.name, created.topic_id) == ("t", "topic-1")
        await client.admin.create_topic("t", partitions=3)  # equal settings again
        with pytest.raises(errors.AlreadyExists):
            await client.admin.create_topic("t", partitions=4)
        async with client.producer("t") as producer:
            await producer.send_and_wait(b"value", key=b"key", partition=1)
        record = await client.admin.get_record("t", 1, 0)
        assert (record.key, record.value, record.offset) == (b"key", b"value", 0)
        with pytest.raises(errors.OffsetOutOfRange):
            await client.admin.get_record("t", 1, 1)
        ends = await client.admin.list_offsets("t", {0: "latest", 1: "latest"})
        assert {partition: result.offset for partition, result in ends.items()} == {0: 0, 1: 1}
        metadata = await client.admin.metadata("t", "nothing")
        assert [topic.HasField("error") for topic in metadata.topics] == [False, True]
        await client.admin.delete_topic("t")
        with pytest.raises(errors.TopicNotFound):
            await client.admin.delete_topic("t")
        with pytest.raises(errors.TopicNotFound):
            await client.producer("t").start()

    run(story)


def test_a_topic_that_was_just_made_may_not_be_known_everywhere() -> None:
    async def story(bed: Bed) -> None:
        client = await bed.client()
        await client.admin.create_topic("t")
        known = bed.cluster.topics.pop("t")

        async def appear() -> None:
            await asyncio.sleep(1.0)
            bed.cluster.topics["t"] = known

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(appear())
            await client.producer("t").start()
        with pytest.raises(errors.TopicNotFound):
            await client.producer("another").start()

    in_process(story)


def test_a_record_that_is_gone() -> None:
    async def story(bed: Bed) -> None:
        topic = bed.cluster.create("t", 1)
        client = await bed.client()
        async with client.producer("t", compression="zstd") as producer:
            for number in range(3):
                producer.send(b"%d" % number * 100)
        topic.partitions[0].trim(0, gone=[1])
        with pytest.raises(errors.RecordNotFound):
            await client.admin.get_record("t", 0, 1)
        assert (await client.admin.get_record("t", 0, 2)).value == b"2" * 100

    in_process(story)


# -------------------------------------------------------------------------------------- requests


def test_settings_of_a_topic() -> None:
    async def story(bed: Bed) -> None:
        asked = Asked(bed)
        client = await asked.client(
            (methods.CREATE_TOPIC, _always(pb.CreateTopicResponse())),
            (methods.ALTER_TOPIC, _always(pb.AlterTopicResponse())),
        )
        admin = client.admin
        await admin.create_topic(
            "t", partitions=6, config=pb.TopicConfig(replication_factor=1), retention_ms=1000
        )
        await admin.alter_topic("t", retention_ms=2000, reset=["retention_bytes"])
        create, alter = asked.requests
        assert create.config == pb.TopicConfig(
            partitions=6, replication_factor=1, retention_ms=1000
        )
        assert alter.config == pb.TopicConfig(retention_ms=2000)
        assert list(alter.update_mask.paths) == ["retention_ms", "retention_bytes"]
        with pytest.raises(ValueError, match="no_such_setting"):
            await admin.create_topic("t", no_such_setting=1)

    in_process(story)


PAGED: list[tuple[Method[Any, Any], str, str, type[Any], type[Any]]] = [
    (methods.LIST_TOPICS, "list_topics", "topics", pb.TopicInfo, pb.ListTopicsResponse),
    (
        methods.LIST_SUBSCRIPTIONS,
        "list_subscriptions",
        "subscriptions",
        pb.SubscriptionInfo,
        pb.ListSubscriptionsResponse,
    ),
    (
        methods.LIST_OPERATIONS,
        "list_operations",
        "operations",
        pb.Operation,
        pb.ListOperationsResponse,
    ),
    (
        methods.LIST_PRODUCERS,
        "list_producers",
        "producers",
        pb.ProducerInfo,
        pb.ListProducersResponse,
    ),
]


@pytest.mark.parametrize(
    ("method", "call", "field", "item", "response"), PAGED, ids=[row[1] for row in PAGED]
)
def test_lists_are_read_to_their_last_page(
    method: Method[Any, Any], call: str, field: str, item: type[Any], response: type[Any]
) -> None:
    pages = {"": "second", "second": "third", "third": ""}

    async def story(bed: Bed) -> None:
        asked = Asked(bed)
        client = await asked.client(
            (
                method,
                lambda request: response(
                    **{field: [item(), item()]}, next_page_token=pages[request.page_token]
                ),
            )
        )
        arguments = ["t"] if call == "list_producers" else []
        assert len(await getattr(client.admin, call)(*arguments)) == 6
        assert [request.page_token for request in asked.requests] == list(pages)

    in_process(story)


def test_where_a_subscription_begins() -> None:
    async def story(bed: Bed) -> None:
        asked = Asked(bed)
        client = await asked.client(
            (methods.CREATE_SUBSCRIPTION, _always(pb.CreateSubscriptionResponse())),
            (methods.DELETE_SUBSCRIPTION, _always(pb.DeleteSubscriptionResponse())),
            (methods.DESCRIBE_SUBSCRIPTION, _always(pb.DescribeSubscriptionResponse())),
        )
        kind = pb.SUBSCRIPTION_KIND_STREAM
        for start in ("earliest", "latest", quorumq.Time(42)):
            await client.admin.create_subscription("t", "s", kind=kind, start=start)
        starts = [request.start for request in asked.requests]
        assert starts == [
            pb.StartPosition(earliest=True),
            pb.StartPosition(latest=True),
            pb.StartPosition(time_ms=42),
        ]
        assert asked.requests[0].config.kind == kind
        await client.admin.describe_subscription("t", "s")
        await client.admin.delete_subscription("t", "s")
        for request in asked.requests[3:]:
            assert (request.topic, request.name) == ("t", "s")

    in_process(story)


def test_calls_about_nodes_and_leaders() -> None:
    async def story(bed: Bed) -> None:
        asked = Asked(bed)
        operation = pb.Operation(operation_id="op")
        client = await asked.client(
            (methods.ADD_NODE, _always(pb.AddNodeResponse(operation=operation))),
            (methods.DRAIN_NODE, _always(pb.DrainNodeResponse(operation=operation))),
            (methods.REMOVE_NODE, _always(pb.RemoveNodeResponse(operation=operation))),
            (methods.MOVE_REPLICA, _always(pb.MoveReplicaResponse(operation=operation))),
            (
                methods.TRANSFER_LEADER,
                _always(pb.TransferLeaderResponse(leader=errors_pb2.Leader(node_id=3))),
            ),
            (methods.GET_CLUSTER, _always(pb.GetClusterResponse(cluster_id="c"))),
            (methods.DESCRIBE_TOPIC, _always(pb.DescribeTopicResponse())),
        )
        admin = client.admin
        for operated in (
            await admin.add_node(4, "d:1"),
            await admin.drain_node(4, cancel=True),
            await admin.remove_node(4, force=True),
            await admin.move_replica("t", 1, from_node_id=1, to_node_id=4),
        ):
            assert operated == operation
        assert (await admin.transfer_leader("t", 1, to_node_id=3)).node_id == 3
        assert (await admin.get_cluster()).cluster_id == "c"
        await admin.describe_topic("t")
        assert asked.requests[:5] == [
            pb.AddNodeRequest(node_id=4, peer_endpoint="d:1"),
            pb.DrainNodeRequest(node_id=4, cancel=True),
            pb.RemoveNodeRequest(node_id=4, force=True),
            pb.MoveReplicaRequest(topic="t", partition=1, from_node_id=1, to_node_id=4),
            pb.TransferLeaderRequest(topic="t", partition=1, to_node_id=3),
        ]

    in_process(story)


def test_an_operation_is_watched_to_its_end() -> None:
    news = [
        pb.Operation(operation_id="op", version=1, state=pb.OPERATION_STATE_RUNNING),
        pb.Operation(operation_id="op", version=1, state=pb.OPERATION_STATE_RUNNING),  # no news
        pb.Operation(operation_id="op", version=2, state=pb.OPERATION_STATE_RUNNING),
        pb.Operation(operation_id="op", version=3, state=pb.OPERATION_STATE_SUCCEEDED),
    ]

    async def story(bed: Bed) -> None:
        asked = Asked(bed)
        answers = iter(news)
        client = await asked.client(
            (methods.GET_OPERATION, lambda _: pb.GetOperationResponse(operation=next(answers)))
        )
        seen = [operation.version async for operation in client.admin.watch_operation("op")]
        assert seen == [1, 2, 3]
        known = [r.known_version if r.HasField("known_version") else None for r in asked.requests]
        assert known == [None, 1, 1, 2]

    in_process(story)


# ---------------------------------------------------------------------------------------- errors


def test_a_partitions_error_is_raised() -> None:
    error = Refused("PARTITION_NOT_FOUND", "3").error

    async def story(bed: Bed) -> None:
        asked = Asked(bed)
        client = await asked.client(
            (
                methods.LIST_OFFSETS,
                _always(
                    pb.ListOffsetsResponse(results=[pb.OffsetResult(partition=3, error=error)])
                ),
            ),
            (
                methods.GET_POSITIONS,
                _always(
                    messaging_pb2.GetPositionsResponse(
                        positions=[messaging_pb2.PartitionPosition(partition=3, error=error)]
                    )
                ),
            ),
            (
                methods.COMMIT,
                _always(
                    messaging_pb2.CommitResponse(
                        results=[messaging_pb2.CommitResult(partition=3, error=error)]
                    )
                ),
            ),
        )
        for call in (
            client.admin.list_offsets("t", {3: "latest"}),
            client.admin.positions("t", "s", [3]),
            client.admin.commit("t", "s", {3: 0}),
        ):
            with pytest.raises(errors.PartitionNotFound, match="3"):
                await call

    in_process(story)


def test_a_refused_call_is_repeated_as_long_as_it_may_be() -> None:
    async def story(bed: Bed) -> None:
        asked = Asked(bed)
        record = records_pb2.Record(value=b"found")
        answers = iter(
            [
                Refused("NO_LEADER", retriable=True),
                Refused("THROTTLED", retriable=True, retry_after_ms=5000),
                pb.GetRecordResponse(record=record),
                Refused("BAD_REQUEST", "no"),
                Refused("INTERNAL", "a bug", outcome_known=False),
            ]
        )
        client = await asked.client((methods.GET_RECORD, lambda _: next(answers)))
        begin = asyncio.get_running_loop().time()
        assert (await client.admin.get_record("t", 0, 0)).value == b"found"
        assert 5.0 <= asyncio.get_running_loop().time() - begin < 5.2
        for hopeless in (errors.InvalidRequest, errors.InternalError):
            with pytest.raises(hopeless):
                await client.admin.get_record("t", 0, 0)
        assert len(asked.requests) == 5

    in_process(story)
