"""What a node shows to those who watch it: health, reflection, metrics, logs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from node.local_cluster import LocalCluster
from quorumq import Client
from quorumq.v1 import messaging_pb2
from tests.integration.load import leader_of
from tests.integration.metrics import get, metrics
from tests.integration.stubs import TIMEOUT_S, Stubs, batch, stubs
from tests.integration.watching import until_none

SERVICES = ("quorumq.v1.MessagingService", "quorumq.v1.AdminService")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, 2
# What operators were promised to see (issue §3), as series.
WATCHED = (
    "quorumq_elections_won_total",
    "quorumq_terms_sum",
    "quorumq_commit_lag_entries_max",
    "quorumq_apply_lag_entries_max",
    "quorumq_flush_ms_bucket",
    "quorumq_produce_ms_bucket",
    "quorumq_producer_duplicates_total",
    "quorumq_dedup_id_hits_total",
    "quorumq_topic_backlog_records",
    "quorumq_disk_free_bytes",
    "quorumq_clock_skew_ms",
    "quorumq_forwarded_requests_total",
)

# What one batch of three records that is sent twice makes of them.
COUNTED = {
    "quorumq_produce_records_total": 3.0,
    "quorumq_produce_requests_total": 2.0,
    "quorumq_producer_duplicates_total": 1.0,
    "quorumq_produce_ms_count": 2.0,
    "quorumq_topic_backlog_records": 3.0,
}


async def health_of(node: Stubs, service: str) -> int:
    health = health_pb2_grpc.HealthStub(node.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    return int((await health.Check(request, timeout=TIMEOUT_S)).status)


async def test_health_and_readiness_follow_the_controllers_leader(cluster: LocalCluster) -> None:
    """`` is the process; the services need a leader of the controller."""
    watched = cluster.nodes[2]
    async with stubs(watched.client_endpoint) as node:
        assert {await health_of(node, name) for name in ("", *SERVICES)} == {SERVING}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_of(node, "quorumq.v1.NoSuchService")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        for path in ("/healthz", "/readyz"):
            assert (await get(watched, path))[0] == 200
        assert (await get(watched, "/elsewhere"))[0] == 404

        for other in (1, 3):
            cluster.pause(other)

        async def still_ready() -> list[str]:
            ready = [name for name in SERVICES if await health_of(node, name) != NOT_SERVING]
            return ready + ["/readyz"] * ((await get(watched, "/readyz"))[0] != 503)

        await until_none(still_ready)
        assert await health_of(node, "") == SERVING
        assert (await get(watched, "/healthz"))[0] == 200
    for other in (1, 3):
        cluster.resume(other)
    await cluster.wait_ready()
    assert (await get(watched, "/readyz"))[0] == 200


async def test_reflection_lists_and_describes_the_services(cluster: LocalCluster) -> None:
    request = reflection_pb2.ServerReflectionRequest

    async def questions() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield request(list_services="")
        for name in SERVICES:
            yield request(file_containing_symbol=name)

    async with stubs(cluster.nodes[1].client_endpoint) as node:
        reflection = reflection_pb2_grpc.ServerReflectionStub(node.channel)
        call = reflection.ServerReflectionInfo(questions(), timeout=TIMEOUT_S)
        listed, *described = [answer async for answer in call]
    assert {*SERVICES} < {service.name for service in listed.list_services_response.service}
    for name, answer in zip(SERVICES, described, strict=True):
        files = [
            FileDescriptorProto.FromString(file)
            for file in answer.file_descriptor_response.file_descriptor_proto
        ]
        services = {f"{f.package}.{s.name}": s for f in files for s in f.service}
        assert len(services[name].method) > 8


async def test_metrics_count_what_was_done(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    await client.admin.create_topic(topic, partitions=1)
    leader = await leader_of(client, topic)
    other = next(node_id for node_id in cluster.nodes if node_id != leader)
    before = await metrics(cluster.nodes[leader])
    forwarded = (await metrics(cluster.nodes[other]))["quorumq_forwarded_requests_total"]
    assert [name for name in WATCHED if name not in before] == []
    async with stubs(cluster.nodes[other].client_endpoint) as node:
        opened = await node.messaging.OpenProducer(
            messaging_pb2.OpenProducerRequest(topics=[topic]), timeout=TIMEOUT_S
        )
        request = messaging_pb2.ProduceRequest(
            topic=topic,
            partition=0,
            batch=batch(b"one", b"two", b"three"),
            producer=messaging_pb2.ProducerIdentity(
                producer_id=opened.producer_id, epoch=opened.epoch, base_sequence=0
            ),
        )
        for duplicate in (False, True):
            stored = await node.messaging.Produce(request, timeout=TIMEOUT_S)
            assert (stored.base_offset, stored.duplicate) == (0, duplicate)
    after = await metrics(cluster.nodes[leader])
    rises = {name: after[name] - before[name] for name in COUNTED}
    assert rises == COUNTED
    now = (await metrics(cluster.nodes[other]))["quorumq_forwarded_requests_total"]
    assert now - forwarded == 2


async def test_metrics_tell_of_replicas_that_are_missing(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    await client.admin.create_topic(topic, partitions=1)
    leader = await leader_of(client, topic)
    lost = next(node_id for node_id in cluster.nodes if node_id != leader)

    async def is_told(told: float) -> list[str]:
        series = await metrics(cluster.nodes[leader])
        return [] if series["quorumq_topic_under_replicated"] == told else ["not told"]

    await until_none(lambda: is_told(0))
    cluster.kill(lost)
    await until_none(lambda: is_told(1))
    await cluster.start()
    await until_none(lambda: is_told(0))


async def test_errors_within_streams_are_counted(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    await client.admin.create_topic(topic, partitions=1)
    await leader_of(client, topic)
    request = messaging_pb2.ProduceRequest(topic=topic, partition=9, batch=batch(b"lost"))

    async def requests() -> AsyncIterator[messaging_pb2.ProduceStreamRequest]:
        yield messaging_pb2.ProduceStreamRequest(produce=request)

    before = (await metrics(cluster.nodes[1])).get("quorumq_errors_total", 0.0)
    async with stubs(cluster.nodes[1].client_endpoint) as node:
        answers = [
            answer async for answer in node.messaging.ProduceStream(requests(), timeout=TIMEOUT_S)
        ]
    assert [answer.produced.HasField("error") for answer in answers] == [True]
    assert (await metrics(cluster.nodes[1]))["quorumq_errors_total"] == before + 1


async def test_logs_are_lines_of_json(cluster: LocalCluster) -> None:
    for node_id, node in cluster.nodes.items():
        lines = node.log_path.read_text().splitlines()
        assert lines
        for line in lines:
            event = json.loads(line)
            assert event["node_id"] == node_id
            assert event["level"] in ("info", "warning", "error")
            assert event["event"]
            assert event["logger"]
            assert datetime.fromisoformat(event["time"]).tzinfo == UTC
