"""AdminService: what partitions hold, as their leaders tell it through any node."""

from __future__ import annotations

import asyncio

from node.storage import keys
from quorumq import methods
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import errors_pb2, messaging_pb2
from tests.simulation.admin_bed import ask, create, play, produce, refused
from tests.simulation.cluster import SimCluster


async def describe(cluster: SimCluster, node_id: int, name: str) -> pb.DescribeTopicResponse:
    return await ask(cluster, node_id, methods.DESCRIBE_TOPIC, pb.DescribeTopicRequest(name=name))


def test_a_description_comes_from_the_leaders_and_holds_all_that_is_known() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t", partitions=3)
        producer = messaging_pb2.ProducerIdentity(producer_id=7, epoch=1, base_sequence=0)
        await produce(cluster, "t", 1, b"a", b"b", b"c", producer=producer)
        await produce(cluster, "t", 1, b"d", dedup_id="once")
        await asyncio.sleep(2.0)
        for node_id in cluster.nodes:
            described = await describe(cluster, node_id, "t")
            assert described.topic == topic
            assert [row.partition for row in described.partitions] == [0, 1, 2]
            row = described.partitions[1]
            assert row.HasField("leader")
            assert not row.HasField("error")
            assert (row.earliest_offset, row.latest_offset, row.record_count) == (0, 4, 4)
            assert row.stored_bytes > 0
            assert (row.producer_count, row.dedup_count) == (1, 1)
            assert 2_000 <= row.dedup_span_ms < 3_000
            assert row.last_append_time_ms >= cluster.clock.wall_ms() - 3_000
            assert row.applied_index == row.commit_index > 2
            assert [replica.node_id for replica in row.replicas] == [1, 2, 3]
            for replica in row.replicas:
                assert replica.role == pb.REPLICA_ROLE_VOTER
                assert replica.alive
                assert replica.in_sync
                assert replica.match_index == row.commit_index
            empty = described.partitions[0]
            assert (empty.record_count, empty.stored_bytes, empty.last_append_time_ms) == (0, 0, 0)

    play(story)


def test_a_replica_that_is_gone_is_shown_as_behind() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=1)
        await produce(cluster, "t", 0, b"a")
        gone = max(cluster.nodes)
        await cluster.nodes[gone].crash()
        await cluster.until(
            lambda: all(not broker.host.node_alive(gone) for broker in cluster.brokers()),
            "a node found dead",
        )
        await produce(cluster, "t", 0, b"b")
        (row,) = (await describe(cluster, 2, "t")).partitions
        states = {replica.node_id: (replica.alive, replica.in_sync) for replica in row.replicas}
        assert states == {1: (True, True), 2: (True, True), gone: (False, False)}

    play(story)


def test_a_partition_without_leader_has_an_error_and_hides_no_other() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=3, replication_factor=1)
        await cluster.nodes[3].crash()
        described = await describe(cluster, 1, "t")
        errors = [row.HasField("error") for row in described.partitions]
        assert sorted(errors) == [False, False, True]
        lost = described.partitions[errors.index(True)]
        assert lost.error.reason == errors_pb2.REASON_NO_LEADER
        assert [(replica.node_id, replica.alive) for replica in lost.replicas] == [(3, False)]
        error = await refused(cluster, 1, methods.DESCRIBE_TOPIC, pb.DescribeTopicRequest(name="u"))
        assert error.reason == "TOPIC_NOT_FOUND"
        request = pb.DescribeTopicRequest(name="t", topic_id="another")
        error = await refused(cluster, 1, methods.DESCRIBE_TOPIC, request)
        assert error.reason == "TOPIC_REPLACED"

    play(story)


def test_offsets_at_the_ends_and_by_time() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=2)
        await produce(cluster, "t", 1, b"a", timestamp_ms=1_000)
        await asyncio.sleep(1.0)
        between_ms = cluster.clock.wall_ms()
        await asyncio.sleep(1.0)
        await produce(cluster, "t", 1, b"b", b"c", timestamp_ms=2_000)

        async def offsets(
            *queries: pb.OffsetQuery, by: messaging_pb2.TimeBy = messaging_pb2.TIME_BY_APPENDED
        ) -> list[tuple[int, int]]:
            request = pb.ListOffsetsRequest(topic="t", queries=queries, by=by)
            listed = await ask(cluster, 2, methods.LIST_OFFSETS, request)
            assert not any(result.HasField("error") for result in listed.results)
            return [(result.partition, result.offset) for result in listed.results]

        assert await offsets(
            pb.OffsetQuery(partition=1, latest=True),
            pb.OffsetQuery(partition=0),
            pb.OffsetQuery(partition=1, earliest=True),
            pb.OffsetQuery(partition=1, time_ms=between_ms),
        ) == [(1, 3), (0, 0), (1, 0), (1, 1)]
        by_created = pb.OffsetQuery(partition=1, time_ms=1_500)
        assert await offsets(by_created, by=messaging_pb2.TIME_BY_CREATED) == [(1, 1)]

    play(story)


def test_what_offset_queries_are_refused_for() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t")

        async def reason(topic: str, *queries: pb.OffsetQuery, by: int = 0) -> str:
            request = pb.ListOffsetsRequest(topic=topic, queries=queries, by=by)  # type: ignore[arg-type]
            return (await refused(cluster, 2, methods.LIST_OFFSETS, request)).reason

        latest = pb.OffsetQuery(latest=True)
        assert await reason("t") == "BAD_REQUEST"
        assert await reason("t", *[latest] * 10_001) == "BAD_REQUEST"
        assert await reason("t", pb.OffsetQuery(earliest=False)) == "BAD_REQUEST"
        assert await reason("t", pb.OffsetQuery(time_ms=-1)) == "BAD_REQUEST"
        assert await reason("t", latest, by=9) == "FEATURE_NOT_ENABLED"
        assert await reason("u", latest) == "TOPIC_NOT_FOUND"
        assert await reason("u u", latest) == "BAD_NAME"
        request = pb.ListOffsetsRequest(topic="t", queries=[pb.OffsetQuery(partition=1), latest])
        listed = await ask(cluster, 1, methods.LIST_OFFSETS, request)
        assert listed.results[0].error.reason == errors_pb2.REASON_PARTITION_NOT_FOUND
        assert not listed.results[1].HasField("error")

    play(story)


def test_one_record_from_the_middle_of_a_batch() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t", partitions=2)
        await produce(cluster, "t", 1, b"a", b"b", b"c")
        for node_id in cluster.nodes:
            request = pb.GetRecordRequest(topic="t", partition=1, offset=1)
            got = await ask(cluster, node_id, methods.GET_RECORD, request)
            assert got.record.value == b"b"
            assert (got.topic_id, got.partition, got.offset) == (topic.topic_id, 1, 1)
            assert got.append_time_ms > 0
            assert got.leader_epoch > 0

    play(story)


def test_a_record_of_16_mib_passes_between_nodes() -> None:
    async def story(cluster: SimCluster) -> None:
        size = (16 << 20) - 100
        await create(cluster, 1, "t", record_bytes_max=16 << 20)
        await produce(cluster, "t", 0, b"x" * size)
        for node_id in cluster.nodes:
            request = pb.GetRecordRequest(topic="t", offset=0)
            got = await ask(cluster, node_id, methods.GET_RECORD, request)
            assert len(got.record.value) == size

    play(story)


def test_a_record_that_is_gone_and_one_that_is_not_there_yet() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t", retention_ms=20_000)
        await produce(cluster, "t", 0, b"a", b"b")
        await asyncio.sleep(21.0)
        await produce(cluster, "t", 0, b"c")
        (group_id,) = _group_ids(cluster, topic)
        await cluster.until(
            lambda: all(r.replica.machine.first_offset == 2 for r in cluster.replicas(group_id)),
            "what is old is trimmed",
        )

        async def what(offset: int, **fields: object) -> tuple[str, dict[str, str]]:
            request = pb.GetRecordRequest(**{"topic": "t", "offset": offset, **fields})  # type: ignore[arg-type]
            error = await refused(cluster, 3, methods.GET_RECORD, request)
            return error.reason, dict(error.metadata)

        latest = (await describe(cluster, 1, "t")).partitions[0].latest_offset
        bounds = {"earliest": "2", "latest": str(latest)}
        assert latest == 3
        assert await what(1) == ("RECORD_NOT_FOUND", bounds)
        assert await what(3) == ("OFFSET_OUT_OF_RANGE", bounds)
        assert (await what(0, partition=1))[0] == "PARTITION_NOT_FOUND"
        assert (await what(0, topic="u"))[0] == "TOPIC_NOT_FOUND"
        assert (await what(0, topic_id="another"))[0] == "TOPIC_REPLACED"

    play(story)


def _group_ids(cluster: SimCluster, topic: pb.TopicInfo) -> tuple[int, ...]:
    row = cluster.brokers()[0].controller.catalog.topic_by_id(topic.topic_id)
    assert row is not None
    return row.group_ids


def test_producers_of_all_partitions_in_pages() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=3)
        opened = await ask(
            cluster,
            1,
            methods.OPEN_PRODUCER,
            messaging_pb2.OpenProducerRequest(name="billing", topics=["t"]),
        )
        for number in (5, 3):
            producer = messaging_pb2.ProducerIdentity(
                producer_id=opened.producer_id + number, epoch=1, base_sequence=0
            )
            await produce(cluster, "t", 1, b"a", b"b", producer=producer)
        first, named = opened.producer_id, "default/billing"
        expected = [(0, first), (1, first), (1, first + 3), (1, first + 5), (2, first)]
        found: list[pb.ProducerInfo] = []
        token = ""
        while True:
            request = pb.ListProducersRequest(topic="t", page_size=2, page_token=token)
            page = await ask(cluster, 2, methods.LIST_PRODUCERS, request)
            found += page.producers
            token = page.next_page_token
            if not token:
                break
            assert len(page.producers) == 2
        assert [(row.partition, row.producer_id) for row in found] == expected
        assert [row.name for row in found] == [named, named, "", "", named]
        assert not found[0].HasField("last_sequence")
        assert (found[2].last_sequence, found[2].last_offset) == (1, 3)
        assert found[0].epoch == opened.epoch
        assert 0 <= found[0].idle_ms < 5_000
        request = pb.ListProducersRequest(topic="t", partition=1)
        page = await ask(cluster, 3, methods.LIST_PRODUCERS, request)
        assert [(row.partition, row.producer_id) for row in page.producers] == expected[1:4]

    play(story)


def test_what_a_list_of_producers_is_refused_for() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t")

        async def reason(**fields: object) -> str:
            request = pb.ListProducersRequest(**{"topic": "t", **fields})  # type: ignore[arg-type]
            return (await refused(cluster, 2, methods.LIST_PRODUCERS, request)).reason

        assert await reason(partition=1) == "PARTITION_NOT_FOUND"
        assert await reason(topic="u") == "TOPIC_NOT_FOUND"
        assert await reason(page_size=1001) == "BAD_REQUEST"
        assert await reason(page_token="MTphYmM=") == "BAD_REQUEST"

    play(story)


def test_a_record_whose_bytes_are_damaged_is_refused_and_its_neighbours_are_not() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t", replication_factor=1)
        (group_id,) = _group_ids(cluster, topic)
        for number in range(120):  # old enough not to be looked at when the log is opened
            await produce(cluster, "t", 0, b"%d" % number)
        request = pb.GetMetadataRequest(topics=["t"])
        metadata = await ask(cluster, 1, methods.GET_METADATA, request)
        node = cluster.nodes[metadata.topics[0].partitions[0].leader.node_id]
        (local,) = cluster.replicas(group_id)
        await cluster.until(lambda: local.group.checkpoint_index > 60, "a checkpoint")
        row = local.replica.find(0)
        assert row is not None
        await node.crash()
        entries = keys.group_key(group_id, keys.ENTRY)
        (key,) = [
            key
            for key, _ in node.engine.scan(entries, keys.prefix_end(entries))
            if key.endswith(row.entry_index.to_bytes(8, "big"))
        ]
        node.engine.flip_bit(key, 200)
        node.start()
        request = pb.GetRecordRequest(topic="t", offset=0)
        via = 1 + node.node_id % 3
        error = await refused(cluster, via, methods.GET_RECORD, request)
        assert error.reason == "CORRUPT"
        request = pb.GetRecordRequest(topic="t", offset=1)
        assert (await ask(cluster, via, methods.GET_RECORD, request)).record.value == b"1"

    play(story)
