"""What Produce answers when it cannot store: each reason once, and that nothing was stored."""

from __future__ import annotations

import asyncio

import pytest

from quorumq import methods
from quorumq.errors import OutcomeUnknown, QuorumqError
from quorumq.v1 import messaging_pb2, records_pb2
from tests.simulation.cluster import SimCluster
from tests.simulation.test_producing import batch, play, produce, stored


def identity(producer_id: int, epoch: int, sequence: int) -> messaging_pb2.ProducerIdentity:
    return messaging_pb2.ProducerIdentity(
        producer_id=producer_id, epoch=epoch, base_sequence=sequence
    )


async def refused(cluster: SimCluster, **fields: object) -> QuorumqError:
    """Through the node with the highest id, which mostly has to forward."""
    with pytest.raises(QuorumqError) as caught:
        await produce(cluster, 3, **fields)
    return caught.value


def test_bad_requests_are_refused_by_name() -> None:
    async def story(cluster: SimCluster) -> None:
        big = batch(bytes(1_048_577))
        many = records_pb2.RecordBatch()
        many.CopyFrom(batch(*[bytes(600_000)] * 2))
        delayed = batch(b"x")
        delayed.records.records[0].priority = 3
        wrong_count = batch(b"x")
        wrong_count.record_count = 2
        cases: list[tuple[str, dict[str, object]]] = [
            ("BAD_REQUEST", {"partition": 0}),
            ("EMPTY_BATCH", {"partition": 0, "batch": records_pb2.RecordBatch()}),
            ("RECORD_TOO_LARGE", {"partition": 0, "batch": big}),
            ("BATCH_TOO_LARGE", {"partition": 0, "batch": many}),
            ("MALFORMED_BATCH", {"partition": 0, "batch": wrong_count}),
            ("FEATURE_NOT_ENABLED", {"partition": 0, "batch": delayed}),
            ("PARTITION_NOT_FOUND", {"partition": 1, "batch": batch(b"x")}),
            ("BAD_REQUEST", {"producer": identity(1, 1, 0), "batch": batch(b"x")}),
            ("BAD_REQUEST", {"expected_next_offset": 0, "batch": batch(b"x")}),
            ("TOPIC_REPLACED", {"partition": 0, "topic_id": "t99-0", "batch": batch(b"x")}),
        ]
        for reason, fields in cases:
            error = await refused(cluster, **fields)
            assert (error.reason, error.outcome_known) == (reason, True), fields
        assert await stored(cluster, 2) == []

    play(story)


def test_a_topic_that_is_not_there() -> None:
    async def story(cluster: SimCluster) -> None:
        channel = cluster.clients.channel("node-2:9400")
        for name, reason in (("nowhere", "TOPIC_NOT_FOUND"), ("a/b/c", "BAD_NAME")):
            request = messaging_pb2.ProduceRequest(topic=name, partition=0, batch=batch(b"x"))
            with pytest.raises(Exception, match="topic") as caught:
                await channel.unary(methods.PRODUCE, request, timeout_s=5.0)
            assert ("quorumq-reason", reason) in caught.value.trailers  # type: ignore[attr-defined]

    play(story)


def test_sequences_are_exact() -> None:
    async def story(cluster: SimCluster) -> None:
        first = await produce(
            cluster, 1, partition=0, batch=batch(b"a", b"b"), producer=identity(7, 1, 0)
        )
        again = await produce(
            cluster, 2, partition=0, batch=batch(b"a", b"b"), producer=identity(7, 1, 0)
        )
        assert (again.base_offset, again.duplicate) == (first.base_offset, True)
        gap = await refused(cluster, partition=0, batch=batch(b"c"), producer=identity(7, 1, 5))
        assert (gap.reason, gap.expected_sequence) == ("SEQUENCE_GAP", 2)
        unknown = await refused(cluster, partition=0, batch=batch(b"c"), producer=identity(9, 1, 4))
        assert unknown.reason in ("PRODUCER_EXPIRED", "SEQUENCE_GAP")
        assert await stored(cluster, 2) == [b"a", b"b"]

    play(story)


def test_a_named_producer_goes_on_and_fences_its_older_process() -> None:
    async def story(cluster: SimCluster) -> None:
        async def opened(node_id: int) -> messaging_pb2.OpenProducerResponse:
            channel = cluster.clients.channel(cluster.nodes[node_id].client_endpoint)
            request = messaging_pb2.OpenProducerRequest(name="etl", topics=["t"])
            return await channel.unary(methods.OPEN_PRODUCER, request, timeout_s=5.0)

        old = await opened(1)
        assert not old.partitions[0].HasField("last_sequence")
        ours = identity(old.producer_id, old.epoch, 0)
        await produce(cluster, 2, partition=0, batch=batch(b"a", b"b"), producer=ours)
        new = await opened(3)
        assert (new.producer_id, new.epoch) == (old.producer_id, old.epoch + 1)
        assert (new.partitions[0].last_sequence, new.partitions[0].last_offset) == (1, 1)
        late = identity(old.producer_id, old.epoch, 2)
        error = await refused(cluster, partition=0, batch=batch(b"late"), producer=late)
        assert error.reason == "PRODUCER_FENCED"
        ours = identity(new.producer_id, new.epoch, 2)
        await produce(cluster, 1, partition=0, batch=batch(b"c"), producer=ours)
        assert await stored(cluster, 2) == [b"a", b"b", b"c"]

    play(story)


def test_compare_and_append() -> None:
    async def story(cluster: SimCluster) -> None:
        await produce(cluster, 1, partition=0, batch=batch(b"a"), expected_next_offset=0)
        late = await refused(cluster, partition=0, batch=batch(b"b"), expected_next_offset=0)
        assert late.reason == "EXPECTED_OFFSET"
        assert late.metadata["next_offset"] == "1"
        await produce(cluster, 1, partition=0, batch=batch(b"b"), expected_next_offset=1)
        assert await stored(cluster, 2) == [b"a", b"b"]

    play(story)


def test_dedup_ids_answer_per_record() -> None:
    async def story(cluster: SimCluster) -> None:
        one, two = batch(b"a", dedup_id="1"), batch(b"b", dedup_id="2")
        first = await produce(cluster, 1, partition=0, batch=one)
        both = records_pb2.RecordBatch(record_count=2)
        both.records.records.extend([one.records.records[0], two.records.records[0]])
        again = await produce(cluster, 2, partition=0, batch=both)
        assert [(r.offset, r.duplicate) for r in again.results] == [(0, True), (1, False)]
        assert (first.base_offset, again.duplicate) == (0, False)
        assert await stored(cluster, 2) == [b"a", b"b"]

    play(story)


def test_a_batch_without_partition_is_split_by_key() -> None:
    async def story(cluster: SimCluster) -> None:
        whole = records_pb2.RecordBatch(record_count=40)
        for n in range(40):
            whole.records.records.add(key=b"k%d" % n, value=b"%d" % n)
        answer = await produce(cluster, 3, batch=whole)
        assert len(answer.results) == answer.record_count == 40
        assert len({result.partition for result in answer.results}) == 4
        row = cluster.brokers()[0].controller.catalog.topic_by_name("default/t")
        assert row is not None
        for n, result in enumerate(answer.results):
            values = await stored(cluster, row.group_ids[result.partition])
            assert values[result.offset] == b"%d" % n

    play(story, partitions=4)


def test_without_a_leader_a_request_is_held_and_then_refused() -> None:
    async def story(cluster: SimCluster) -> None:
        for node_id in (1, 2):
            await cluster.nodes[node_id].crash()
        await asyncio.sleep(2.0)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        error = await refused(cluster, partition=0, batch=batch(b"x"), timeout_s=3.0)
        assert (error.reason, error.retriable, error.outcome_known) == ("NO_LEADER", True, True)
        assert 2.8 < loop.time() - begun < 3.0
        held = asyncio.ensure_future(produce(cluster, 3, partition=0, batch=batch(b"held")))
        await asyncio.sleep(1.0)
        cluster.nodes[1].start()
        await held
        assert await stored(cluster, 2) == [b"held"]

    play(story)


def test_in_doubt_without_identity_is_told_and_with_one_is_mended() -> None:
    async def story(cluster: SimCluster) -> None:
        await cluster.until(lambda: cluster.leader(2), "a leader")
        leader = cluster.leader(2)
        assert leader is not None
        node_id = cluster.brokers()[0].host.peers.node_of(leader.group.replica_id)
        others = [n for n in cluster.nodes if n != node_id]
        cluster.network.isolate(node_id, cluster.nodes)  # proposals there stay open
        plain = asyncio.ensure_future(
            produce(cluster, node_id, partition=0, batch=batch(b"plain"), timeout_s=4.0)
        )
        await asyncio.sleep(0.05)
        with pytest.raises(OutcomeUnknown):
            await plain
        cluster.network.heal()
        answer = await produce(
            cluster, others[0], partition=0, batch=batch(b"id"), producer=identity(5, 1, 0)
        )
        again = await produce(
            cluster, node_id, partition=0, batch=batch(b"id"), producer=identity(5, 1, 0)
        )
        assert again.base_offset == answer.base_offset
        values = await stored(cluster, 2)
        assert values.count(b"id") == 1

    play(story)


def test_a_full_disk_is_named() -> None:
    async def story(cluster: SimCluster) -> None:
        for broker in cluster.brokers():
            broker.disk_full = True
        error = await refused(cluster, partition=0, batch=batch(b"x"))
        assert (error.reason, error.retriable) == ("DISK_FULL", True)

    play(story)


def test_R19_storage_under_pressure_holds_and_then_throttles() -> None:
    async def story(cluster: SimCluster) -> None:
        for node in cluster.nodes.values():
            node.engine.pressure = 1.0
        big = batch(bytes(900_000))
        asked = [
            asyncio.ensure_future(produce(cluster, 3, partition=0, batch=big, timeout_s=5.0))
            for _ in range(60)
        ]
        await asyncio.sleep(1.0)
        failed = [one.exception() for one in asked if one.done()]
        assert failed, "60 times 0.9 MB fit into no lane"
        for error in failed:
            assert isinstance(error, QuorumqError)
            assert (error.reason, error.retry_after_ms) == ("THROTTLED", 50)
        for node in cluster.nodes.values():
            node.engine.pressure = 0.0
        held = [one for one in asked if not one.done()]
        await asyncio.gather(*held)
        assert len(await stored(cluster, 2)) == len(held) == 60 - len(failed)

    play(story)


def test_a_node_that_has_stopped_taking_in_says_so() -> None:
    """Calls still come while its server ends: they are certainly not stored, another node takes
    them."""

    async def story(cluster: SimCluster) -> None:
        await cluster.nodes[3].front.stop(grace_s=1.0)
        for partition in ({"partition": 0}, {}):
            error = await refused(cluster, batch=batch(b"x"), **partition)
            assert (error.reason, error.retriable) == ("NODE_DRAINING", True)
            assert error.outcome_known
        assert await stored(cluster, 2) == []

    play(story)
