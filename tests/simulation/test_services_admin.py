"""AdminService through any node of a simulated cluster: topics, metadata, the cluster."""

from __future__ import annotations

import asyncio

from google.protobuf.field_mask_pb2 import FieldMask

from quorumq import methods
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import errors_pb2, records_pb2
from tests.simulation.admin_bed import ask, create, play, refused
from tests.simulation.cluster import SimCluster


async def names(cluster: SimCluster, node_id: int, **fields: object) -> list[str]:
    request = pb.ListTopicsRequest(**fields)  # type: ignore[arg-type]
    listed = await ask(cluster, node_id, methods.LIST_TOPICS, request)
    return [topic.name for topic in listed.topics]


def test_a_created_topic_has_leaders_and_all_its_settings() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 2, "orders", partitions=6, retention_ms=60_000)
        assert topic.name == "default/orders"
        assert (topic.hash_slots, topic.partition_epoch) == (384, 1)
        assert topic.config == pb.TopicConfig(
            partitions=6,
            replication_factor=3,
            retention_ms=60_000,
            record_bytes_max=1_048_576,
            batch_bytes_max=1_048_576,
            dedup_window_count=100_000,
            dedup_overflow=pb.DEDUP_OVERFLOW_EVICT_OLDEST,
            producer_expiry_ms=604_800_000,
            feature_level=1,
        )
        row = cluster.brokers()[1].controller.catalog.topic_by_name("default/orders")
        assert row is not None
        groups = row.group_ids
        assert all(cluster.brokers()[1].host.leader_of(group_id) for group_id in groups)
        await cluster.until(
            lambda: all(b.host.leader_of(g) for b in cluster.brokers() for g in groups),
            "all nodes to hear who leads",
        )
        for node_id in cluster.nodes:
            request = pb.GetMetadataRequest(topics=["orders"])
            metadata = await ask(cluster, node_id, methods.GET_METADATA, request)
            (row,) = metadata.topics
            assert (row.topic_id, row.partition_count) == (topic.topic_id, 6)
            assert all(partition.HasField("leader") for partition in row.partitions)
            leaders = [partition.leader.node_id for partition in row.partitions]
            assert sorted(leaders) == [1, 1, 2, 2, 3, 3], "leaders are spread evenly"
            assert all(list(p.replica_node_ids) == [1, 2, 3] for p in row.partitions)

    play(story)


def test_a_topic_created_through_one_node_is_seen_through_every_other_at_once() -> None:
    async def story(cluster: SimCluster) -> None:
        for number in range(10):
            name = f"default/t{number}"
            topic = await create(cluster, 1 + number % 3, name)
            for node_id in (1 + (number + 1) % 3, 1 + (number + 2) % 3):
                assert name in await names(cluster, node_id)
                request = pb.GetMetadataRequest(topics=[name])
                metadata = await ask(cluster, node_id, methods.GET_METADATA, request)
                assert metadata.topics[0].topic_id == topic.topic_id

    play(story)


def test_the_same_create_again_is_fine_and_another_is_refused() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t", partitions=2, retention_bytes=0)
        for config in (
            pb.TopicConfig(partitions=2),
            pb.TopicConfig(partitions=2, replication_factor=3, retention_ms=0),
            pb.TopicConfig(partitions=2, dedup_overflow=pb.DEDUP_OVERFLOW_EVICT_OLDEST),
        ):
            request = pb.CreateTopicRequest(name="default/t", config=config)
            again = await ask(cluster, 2, methods.CREATE_TOPIC, request)
            assert again.already_existed
            assert again.topic == topic
        request = pb.CreateTopicRequest(name="t", config=pb.TopicConfig(partitions=3))
        error = await refused(cluster, 3, methods.CREATE_TOPIC, request)
        assert error.reason == "ALREADY_EXISTS"
        assert ("config.partitions", "is 2, not 3") in error.violations

    play(story)


def test_two_who_create_the_same_topic_at_once_both_succeed() -> None:
    async def story(cluster: SimCluster) -> None:
        request = pb.CreateTopicRequest(name="t", config=pb.TopicConfig(partitions=2))
        answers = await asyncio.gather(
            *(ask(cluster, node_id, methods.CREATE_TOPIC, request) for node_id in cluster.nodes)
        )
        assert len({answer.topic.topic_id for answer in answers}) == 1
        assert sorted(answer.already_existed for answer in answers) == [False, True, True]

    play(story)


def test_only_checking_creates_and_changes_nothing() -> None:
    async def story(cluster: SimCluster) -> None:
        request = pb.CreateTopicRequest(
            name="t", config=pb.TopicConfig(partitions=4), validate_only=True
        )
        would_be = await ask(cluster, 1, methods.CREATE_TOPIC, request)
        assert not would_be.already_existed
        assert would_be.topic.config.partitions == 4
        assert would_be.topic.config.replication_factor == 3
        assert await names(cluster, 2) == []
        topic = await create(cluster, 1, "t", partitions=4)
        alter = pb.AlterTopicRequest(
            name="t", config=pb.TopicConfig(retention_ms=5_000), validate_only=True
        )
        altered = await ask(cluster, 1, methods.ALTER_TOPIC, alter)
        assert altered.topic.config.retention_ms == 5_000
        again = await ask(cluster, 2, methods.CREATE_TOPIC, request)
        assert again.already_existed
        assert again.topic == topic

    play(story)


def test_bad_names_and_settings_are_refused_with_what_is_wrong() -> None:
    async def story(cluster: SimCluster) -> None:
        for name in ("", "a b", "a/b/c", "/x", "x" * 201):
            error = await refused(
                cluster, 1, methods.CREATE_TOPIC, pb.CreateTopicRequest(name=name)
            )
            assert error.reason == "BAD_NAME", name
        config = pb.TopicConfig(partitions=1001, retention_ms=5)
        error = await refused(
            cluster, 1, methods.CREATE_TOPIC, pb.CreateTopicRequest(name="t", config=config)
        )
        assert error.reason == "BAD_CONFIG"
        assert [field for field, _ in error.violations] == [
            "config.partitions",
            "config.retention_ms",
        ]
        config = pb.TopicConfig(replication_factor=4)
        for check in (False, True):
            error = await refused(
                cluster,
                1,
                methods.CREATE_TOPIC,
                pb.CreateTopicRequest(name="t", config=config, validate_only=check),
            )
            assert error.reason == "NOT_ENOUGH_NODES"
        config = pb.TopicConfig()
        config.MergeFromString(b"\xf8\x01\x01")  # field 31
        error = await refused(
            cluster, 1, methods.CREATE_TOPIC, pb.CreateTopicRequest(name="t", config=config)
        )
        assert error.reason == "FEATURE_NOT_ENABLED"
        assert error.metadata["feature"] == "config.31"

    play(story)


def test_altering_by_mask_and_by_presence() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", retention_ms=60_000, retention_bytes=2 << 20)

        async def alter(config: pb.TopicConfig, *paths: str) -> pb.TopicConfig:
            request = pb.AlterTopicRequest(
                name="t", config=config, update_mask=FieldMask(paths=paths)
            )
            return (await ask(cluster, 2, methods.ALTER_TOPIC, request)).topic.config

        config = await alter(pb.TopicConfig(retention_ms=90_000))
        assert (config.retention_ms, config.retention_bytes) == (90_000, 2 << 20)
        config = await alter(pb.TopicConfig(retention_ms=1_000), "retention_bytes")
        assert config.retention_ms == 90_000, "not in the mask"
        assert not config.HasField("retention_bytes"), "back to its default"
        config = await alter(pb.TopicConfig(record_bytes_max=2 << 20))
        assert config.batch_bytes_max == 2 << 20, "its default follows"

    play(story)


def test_what_an_alter_is_refused_for() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t", partitions=2)

        async def reason(**fields: object) -> str:
            request = pb.AlterTopicRequest(**{"name": "t", **fields})  # type: ignore[arg-type]
            return (await refused(cluster, 2, methods.ALTER_TOPIC, request)).reason

        assert await reason(config=pb.TopicConfig(partitions=3)) == "BAD_CONFIG"
        assert await reason(update_mask=FieldMask(paths=["partitions"])) == "BAD_CONFIG"
        assert await reason(config=pb.TopicConfig(feature_level=0)) == "BAD_CONFIG"
        assert await reason(config=pb.TopicConfig(retention_ms=3)) == "BAD_CONFIG"
        assert await reason(update_mask=FieldMask(paths=["nothing"])) == "BAD_REQUEST"
        assert await reason(config=pb.TopicConfig(replication_factor=5)) == "NOT_ENOUGH_NODES"
        assert await reason(name="u") == "TOPIC_NOT_FOUND"
        assert await reason(topic_id="another") == "TOPIC_REPLACED"
        request = pb.AlterTopicRequest(
            name="t", topic_id=topic.topic_id, config=pb.TopicConfig(partitions=2)
        )
        altered = await ask(cluster, 1, methods.ALTER_TOPIC, request)
        assert altered.topic == topic, "a fixed field with its own value is no change"

    play(story)


def test_deleting_a_topic() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t")
        request = pb.DeleteTopicRequest(name="t", topic_id="another")
        error = await refused(cluster, 2, methods.DELETE_TOPIC, request)
        assert error.reason == "TOPIC_REPLACED"
        request = pb.DeleteTopicRequest(name="t")
        deleted = await ask(cluster, 2, methods.DELETE_TOPIC, request)
        assert deleted.topic_id == topic.topic_id
        assert await names(cluster, 3) == []
        error = await refused(cluster, 3, methods.DELETE_TOPIC, request)
        assert error.reason == "TOPIC_NOT_FOUND"
        guarded = pb.DeleteTopicRequest(name="t", topic_id=topic.topic_id)
        repeated = await ask(cluster, 3, methods.DELETE_TOPIC, guarded)
        assert repeated.topic_id == topic.topic_id, "what the id names is gone: done"
        again = await create(cluster, 2, "t")
        assert again.topic_id != topic.topic_id
        error = await refused(cluster, 1, methods.DELETE_TOPIC, guarded)
        assert error.reason == "TOPIC_REPLACED"

    play(story)


def test_listing_in_pages_that_stay_right_while_topics_come_and_go() -> None:
    async def story(cluster: SimCluster) -> None:
        for name in ("b", "a", "d", "c", "other/a", "other/ab"):
            await create(cluster, 1, name)
        assert await names(cluster, 2, namespace="other") == ["other/a", "other/ab"]
        assert await names(cluster, 2, name_prefix="a") == ["default/a", "other/a", "other/ab"]
        page = await ask(cluster, 1, methods.LIST_TOPICS, pb.ListTopicsRequest(page_size=2))
        assert [topic.name for topic in page.topics] == ["default/a", "default/b"]
        await ask(cluster, 2, methods.DELETE_TOPIC, pb.DeleteTopicRequest(name="b"))
        await create(cluster, 3, "aa")
        request = pb.ListTopicsRequest(page_size=10, page_token=page.next_page_token)
        page = await ask(cluster, 3, methods.LIST_TOPICS, request)
        assert [topic.name for topic in page.topics] == [
            "default/c",
            "default/d",
            "other/a",
            "other/ab",
        ]
        assert page.next_page_token == ""
        for wrong in (
            pb.ListTopicsRequest(page_size=1001),
            pb.ListTopicsRequest(page_token="§"),
            pb.ListTopicsRequest(page_token="bm9uZQ=="),
        ):
            error = await refused(cluster, 1, methods.LIST_TOPICS, wrong)
            assert error.reason == "BAD_REQUEST"
        error = await refused(
            cluster, 1, methods.LIST_TOPICS, pb.ListTopicsRequest(namespace="a/b")
        )
        assert error.reason == "BAD_NAME"

    play(story)


def test_metadata_of_what_is_not_there() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t")
        request = pb.GetMetadataRequest(topics=["none", "t", "a b"])
        metadata = await ask(cluster, 2, methods.GET_METADATA, request)
        assert [row.name for row in metadata.topics] == ["none", "t", "a b"]
        assert metadata.topics[0].error.reason == errors_pb2.REASON_TOPIC_NOT_FOUND
        assert not metadata.topics[1].HasField("error")
        assert metadata.topics[2].error.reason == errors_pb2.REASON_BAD_NAME
        metadata = await ask(cluster, 3, methods.GET_METADATA, pb.GetMetadataRequest())
        assert not metadata.topics
        assert [(n.node_id, n.client_endpoint) for n in metadata.nodes] == [
            (node_id, f"node-{node_id}:9400") for node_id in (1, 2, 3)
        ]
        assert metadata.controller.node_id in (1, 2, 3)
        assert metadata.cluster_id == cluster.nodes[1].cluster_id
        request = pb.GetMetadataRequest(topics=[f"t{n}" for n in range(1001)])
        error = await refused(cluster, 1, methods.GET_METADATA, request)
        assert error.reason == "BAD_REQUEST"

    play(story)


def test_the_cluster_as_every_node_tells_it() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=3)
        for node_id in cluster.nodes:
            told = await ask(cluster, node_id, methods.GET_CLUSTER, pb.GetClusterRequest())
            assert told.answering_node_id == node_id
            assert told.cluster_id == cluster.nodes[1].cluster_id
            assert told.HasField("controller")
            assert [node.node_id for node in told.nodes] == [1, 2, 3]
            for node in told.nodes:
                assert node.state == pb.NODE_STATE_ACTIVE
                assert node.incarnation == f"i{node.node_id}.1"
                assert node.peer_endpoint == f"node-{node.node_id}:9500"
                assert (node.replica_count, node.leader_count) == (3, 1)
                assert (node.disk_free_bytes, node.disk_total_bytes) == (6 << 30, 8 << 30)
                assert not node.disk_full
                assert node.machine_version == 1
                assert node.silent_ms < 500
            assert told.counts == pb.ClusterCounts(topics=1, partitions=3)
            levels = {row.name: row.feature_level for row in told.features}
            assert (levels["dedup_id"], levels["priority"]) == (1, 0)
            assert list(told.codecs) == [records_pb2.CODEC_ZSTD]
            limits = {limit.name: limit.value for limit in told.limits}
            assert limits["record_bytes_max"] == 16 << 20
            assert list(limits) == sorted(limits)

    play(story)


def test_a_dead_node_and_what_it_takes_along_is_shown() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=3)
        await cluster.nodes[3].crash()
        await cluster.until(
            lambda: all(not broker.host.node_alive(3) for broker in cluster.brokers()),
            "a node found dead",
        )
        told = await ask(cluster, 1, methods.GET_CLUSTER, pb.GetClusterRequest())
        states = [node.state for node in told.nodes]
        assert states == [pb.NODE_STATE_ACTIVE, pb.NODE_STATE_ACTIVE, pb.NODE_STATE_DEAD]
        assert told.nodes[2].silent_ms >= 500
        assert told.nodes[2].disk_total_bytes == 0
        assert told.counts.under_replicated_partitions == 3
        metadata = await ask(cluster, 2, methods.GET_METADATA, pb.GetMetadataRequest())
        assert [node.node_id for node in metadata.nodes] == [1, 2]

    play(story)


def test_metadata_stays_available_without_a_controller_and_changes_do_not() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t")
        await cluster.nodes[2].crash()
        await cluster.nodes[3].crash()
        await cluster.until(
            lambda: cluster.brokers()[0].controller.leader_node == 0, "no controller leader"
        )
        request = pb.GetMetadataRequest(topics=["t", "none"])
        metadata = await ask(cluster, 1, methods.GET_METADATA, request)
        assert metadata.topics[0].topic_id == topic.topic_id
        assert metadata.topics[1].error.reason == errors_pb2.REASON_NO_LEADER
        assert not metadata.HasField("controller")
        assert await names(cluster, 1) == ["default/t"]
        told = await ask(cluster, 1, methods.GET_CLUSTER, pb.GetClusterRequest())
        assert not told.HasField("controller")
        assert len(told.nodes) == 3
        for method, change in (
            (methods.CREATE_TOPIC, pb.CreateTopicRequest(name="u")),
            (methods.ALTER_TOPIC, pb.AlterTopicRequest(name="t")),
            (methods.DELETE_TOPIC, pb.DeleteTopicRequest(name="t")),
            (methods.DESCRIBE_TOPIC, pb.DescribeTopicRequest(name="none")),
            (
                methods.DESCRIBE_SUBSCRIPTION,
                pb.DescribeSubscriptionRequest(topic="t", name="none"),
            ),
        ):
            error = await refused(cluster, 1, method, change, timeout_s=1.0)  # type: ignore[arg-type]
            assert error.reason == "NO_LEADER"
            assert error.retriable
            assert error.outcome_known

    play(story)


def test_what_is_not_delivered_yet_is_refused_by_name() -> None:
    async def story(cluster: SimCluster) -> None:
        for method, request in (
            (methods.LIST_LEASES, pb.ListLeasesRequest()),
            (methods.LIST_SESSIONS, pb.ListSessionsRequest()),
            (methods.KICK_SESSION, pb.KickSessionRequest()),
            (methods.SEEK, pb.SeekRequest()),
            (methods.PURGE, pb.PurgeRequest()),
            (methods.REDRIVE, pb.RedriveRequest()),
        ):
            error = await refused(cluster, 1, method, request)  # type: ignore[arg-type]
            assert error.reason == "FEATURE_NOT_ENABLED"
            assert error.metadata["feature"] == method.path.rpartition("/")[2]

    play(story)
