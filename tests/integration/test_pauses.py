"""A leader that stands still (SIGSTOP) and goes on: it does not know yet that it leads no more."""

from __future__ import annotations

from cluster.tasks import TaskGroup
from node.local_cluster import LocalCluster
from quorumq import Client
from quorumq.v1 import messaging_pb2
from tests.integration.load import ClientLoad, leader_of
from tests.integration.stubs import TIMEOUT_S, Stored, Stubs, batch, read_all, stubs

STALE_REQUESTS = 20


async def test_a_leader_stands_still_for_seconds(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    async with ClientLoad(client, topic) as load:
        leader = await leader_of(client, topic)
        load.listen()
        cluster.pause(leader)
        await load.progress()
        print(f"longest time without an acknowledgement: {load.longest_silence_ms()} ms")
        await load.progress(1_000)  # the others have gone on without it by the time it wakes
        cluster.resume(leader)
        await load.progress()
        await cluster.wait_ready([leader])
    await load.check(cluster)


async def test_what_a_stale_leader_is_given_goes_to_the_new_one(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    await client.admin.create_topic(topic)
    leader = await leader_of(client, topic)
    async with stubs(cluster.nodes[leader].client_endpoint) as stale:
        first = await stale.messaging.Produce(request(topic, b"first"), timeout=TIMEOUT_S)
        assert first.base_offset == 0
        cluster.pause(leader)
        async with TaskGroup("given to the stale leader") as tasks:
            values = [b"stale-%d" % number for number in range(STALE_REQUESTS)]
            answers = [
                tasks.start(give(stale, topic, value), name=value.decode()) for value in values
            ]
            async with client.producer(topic) as producer:
                new = await producer.send_and_wait(b"new")
            assert new.offset == 1
            cluster.resume(leader)
            for answer in answers:
                await answer
    told = {answer.result(): value for answer, value in zip(answers, values, strict=True)}
    assert len(told) == STALE_REQUESTS, "two records were told the same offset"
    for node_id in cluster.nodes:
        stored = (await read_all(cluster.nodes[node_id].client_endpoint, topic))[0]
        assert stored[:2] == [Stored(0, b"", b"first"), Stored(1, b"", b"new")]
        assert {record.offset: record.value for record in stored[2:]} == told


async def give(stale: Stubs, topic: str, value: bytes) -> int:
    """The offset that it was told in the end."""
    response = await stale.messaging.Produce(request(topic, value), timeout=TIMEOUT_S)
    offset: int = response.base_offset
    return offset


def request(topic: str, value: bytes) -> messaging_pb2.ProduceRequest:
    return messaging_pb2.ProduceRequest(topic=topic, batch=batch(value), partition=0)
