"""What a program has that uses generated stubs alone: errors it can read in three places, a retry
policy that ships with the protos, pipelining."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.rpc import status_pb2

from cluster.tasks import TaskGroup
from node.local_cluster import LocalCluster
from quorumq import Client
from quorumq.v1 import admin_pb2, errors_pb2, messaging_pb2
from tests.integration.metrics import metrics
from tests.integration.stubs import TIMEOUT_S, Stubs, batch, stubs
from tests.integration.watching import until_none


@pytest_asyncio.fixture(loop_scope="session")
async def node(cluster: LocalCluster) -> AsyncIterator[Stubs]:
    async with stubs(cluster.nodes[3].client_endpoint) as node:
        yield node


async def refused(
    node: Stubs, request: messaging_pb2.ProduceRequest
) -> tuple[grpc.StatusCode, dict[str, str], errors_pb2.Error]:
    """The code, the trailers, and the Error in the status details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await node.messaging.Produce(request, timeout=TIMEOUT_S)
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers.pop("grpc-status-details-bin"))
    assert status.code == caught.value.code().value[0]
    assert status.message == caught.value.details()
    error = errors_pb2.Error()
    (detail,) = status.details
    assert detail.Unpack(error)
    return caught.value.code(), trailers, error


async def test_an_error_is_told_by_code_trailers_and_details(node: Stubs) -> None:
    request = messaging_pb2.ProduceRequest(topic="nowhere", batch=batch(b"x"), partition=0)
    code, trailers, error = await refused(node, request)
    assert code == grpc.StatusCode.NOT_FOUND
    assert trailers["quorumq-reason"] == "TOPIC_NOT_FOUND"
    assert trailers["quorumq-retriable"] == "false"
    assert trailers["quorumq-outcome"] == "known"
    assert error.reason == errors_pb2.REASON_TOPIC_NOT_FOUND
    assert (error.retriable, error.outcome_known) == (False, True)
    assert "nowhere" in error.message


async def test_an_error_tells_what_to_do(node: Stubs, client: Client, topic: str) -> None:
    await client.admin.create_topic(topic)
    opened = await node.messaging.OpenProducer(
        messaging_pb2.OpenProducerRequest(topics=[topic]), timeout=TIMEOUT_S
    )
    identity = messaging_pb2.ProducerIdentity(
        producer_id=opened.producer_id, epoch=opened.epoch, base_sequence=5
    )
    request = messaging_pb2.ProduceRequest(
        topic=topic, partition=0, batch=batch(b"x"), producer=identity
    )
    code, _, error = await refused(node, request)
    assert (code, error.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        errors_pb2.REASON_SEQUENCE_GAP,
    )
    assert error.expected_sequence == 0

    request.ClearField("partition")
    code, _, error = await refused(node, request)
    assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, errors_pb2.REASON_BAD_REQUEST)
    assert [violation.field for violation in error.field_violations] == ["partition"]


async def test_a_stream_is_pipelined_and_answers_one_by_one(
    node: Stubs, client: Client, topic: str
) -> None:
    """In order within a partition; an error ends nothing."""
    await client.admin.create_topic(topic, partitions=2)

    async def requests() -> AsyncIterator[messaging_pb2.ProduceStreamRequest]:
        for number in range(100):
            produce = messaging_pb2.ProduceRequest(
                topic=topic,
                partition=number % 3,  # there is no partition 2
                batch=batch(b"%d" % number),
                request_id=number,
            )
            yield messaging_pb2.ProduceStreamRequest(produce=produce)

    call = node.messaging.ProduceStream(requests(), timeout=TIMEOUT_S)
    answers = [answer.produced async for answer in call]
    assert sorted(answer.request_id for answer in answers) == list(range(100))
    for partition in (0, 1):
        stored = [answer for answer in answers if answer.request_id % 3 == partition]
        assert [answer.base_offset for answer in stored] == list(range(len(stored)))
        assert [answer.request_id for answer in stored] == list(range(partition, 100, 3))
    reasons = {answer.error.reason for answer in answers if answer.request_id % 3 == 2}
    assert reasons == {errors_pb2.REASON_PARTITION_NOT_FOUND}


async def test_the_service_config_retries_what_was_certainly_not_done() -> None:
    """The node has room for one call, and a stream takes it: the other call is refused, and sent
    again by gRPC itself when the node said."""
    async with LocalCluster(1, settings={"calls_max": 1}) as cluster:
        only = cluster.nodes[1]
        async with (
            stubs(only.client_endpoint) as plain,
            stubs(only.client_endpoint, service_config=True) as patient,
            TaskGroup("calls") as tasks,
        ):
            create = admin_pb2.CreateTopicRequest(name="t")
            await plain.admin.CreateTopic(create, timeout=TIMEOUT_S)
            reading = plain.messaging.Read(messaging_pb2.ReadRequest(topic="t", follow=True))

            async def has_room() -> bool:
                return (await metrics(only))["quorumq_calls"] == 0

            await until_none(has_room)
            ask = admin_pb2.GetMetadataRequest(topics=["t"])
            call = tasks.start(answer(patient, ask), name="patient")

            async def not_refused_yet() -> bool:
                return (await metrics(only))["quorumq_throttled_requests_total"] == 0

            await until_none(not_refused_yet)
            assert not call.done()
            reading.cancel()
            response = await call
        assert response.topics[0].name == "t"


async def answer(
    node: Stubs, request: admin_pb2.GetMetadataRequest
) -> admin_pb2.GetMetadataResponse:
    response: admin_pb2.GetMetadataResponse = await node.admin.GetMetadata(
        request, timeout=TIMEOUT_S
    )
    return response
