"""More than a node can take in: it says so, certainly has not stored it, and needs no more memory
than its limits allow (rule R19)."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from pathlib import Path

import grpc

from cluster.tasks import TaskGroup
from node.local_cluster import LocalCluster
from node.local_node import LocalNode
from quorumq import Client
from quorumq.v1 import messaging_pb2, records_pb2
from tests.integration.load import WITHIN_S, leader_of
from tests.integration.stubs import TIMEOUT_S, Stubs, batch, read_all, stubs

RECORD_BYTES = 200_000
AT_ONCE = 240
WAVES = 16
TAKEN_BYTES_MAX = 32 << 20  # uncommitted_bytes_max: what one partition takes in and has not stored
# Of growth. What is taken in is there as a request, a command, an entry, twice on its way to the
# followers, in the storage's buffers and in gRPC's: about ten times (measured: 200 to 350 MB).
MEMORY_BYTES_MAX = 14 * TAKEN_BYTES_MAX


def memory_peak_bytes(node: LocalNode) -> int:
    status = Path(f"/proc/{node.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


async def put(node: Stubs, topic: str, records: records_pb2.RecordBatch) -> str:
    """ "stored", or the reason why it was not."""
    request = messaging_pb2.ProduceRequest(topic=topic, partition=0, batch=records)
    call = node.messaging.Produce(request, timeout=TIMEOUT_S)
    code, trailers = await call.code(), dict(await call.trailing_metadata())
    if code == grpc.StatusCode.OK:
        return "stored"
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, await call.details()
    assert (trailers["quorumq-retriable"], trailers["quorumq-outcome"]) == ("true", "known")
    assert int(trailers["quorumq-retry-after-ms"]) > 0
    assert trailers["grpc-retry-pushback-ms"] == trailers["quorumq-retry-after-ms"]
    return str(trailers["quorumq-reason"])


async def some_end(tasks: list[asyncio.Task[str]], count: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        for ended in itertools.islice(asyncio.as_completed(tasks), count):
            await ended


async def test_a_stub_above_the_limits_is_refused(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    """The leader's followers stand still, so nothing that it takes in can be stored. 768 MB are
    sent to it, of which it takes 32 MiB."""
    assert WAVES * AT_ONCE * RECORD_BYTES > MEMORY_BYTES_MAX
    await client.admin.create_topic(topic)
    leader = cluster.nodes[await leader_of(client, topic)]
    followers = [node_id for node_id in cluster.nodes if node_id != leader.node_id]
    records = batch(bytes(RECORD_BYTES))
    async with stubs(leader.client_endpoint) as node, TaskGroup("stubs") as tasks:
        assert await put(node, topic, records) == "stored"
        before = memory_peak_bytes(leader)
        for follower in followers:
            cluster.pause(follower)
        calls = []
        for _ in range(WAVES):
            wave = [tasks.start(put(node, topic, records), name="put") for _ in range(AT_ONCE)]
            refused = AT_ONCE - (0 if calls else TAKEN_BYTES_MAX // RECORD_BYTES)
            calls += wave
            await some_end(wave, refused)
        grown = memory_peak_bytes(leader) - before
        for follower in followers:
            cluster.resume(follower)
        outcomes = Counter([await call for call in calls])
    print(f"{outcomes}, memory peak + {grown >> 20} MiB")
    assert outcomes.keys() == {"stored", "THROTTLED"}
    assert outcomes["stored"] <= TAKEN_BYTES_MAX // RECORD_BYTES
    assert grown <= MEMORY_BYTES_MAX
    stored = await read_all(leader.client_endpoint, topic)
    assert len(stored[0]) == 1 + outcomes["stored"]
