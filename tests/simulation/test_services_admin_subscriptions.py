"""AdminService: stream subscriptions, from their first position to their last."""

from __future__ import annotations

import asyncio

from google.protobuf.field_mask_pb2 import FieldMask

from quorumq import methods
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import errors_pb2
from tests.simulation.admin_bed import ask, create, play, produce, refused
from tests.simulation.cluster import SimCluster

STREAM = pb.SubscriptionConfig(kind=pb.SUBSCRIPTION_KIND_STREAM)


async def subscribe(
    cluster: SimCluster,
    node_id: int,
    name: str,
    start: pb.StartPosition | None = None,
    *,
    topic: str = "t",
) -> pb.CreateSubscriptionResponse:
    request = pb.CreateSubscriptionRequest(topic=topic, name=name, config=STREAM, start=start)
    return await ask(cluster, node_id, methods.CREATE_SUBSCRIPTION, request)


async def describe(cluster: SimCluster, node_id: int, name: str) -> list[pb.SubscriptionPartition]:
    request = pb.DescribeSubscriptionRequest(topic="t", name=name)
    described = await ask(cluster, node_id, methods.DESCRIBE_SUBSCRIPTION, request)
    assert described.subscription.name == name
    return list(described.partitions)


def test_a_subscription_begins_where_it_was_created_whenever_it_is_first_read() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t", partitions=2)
        await produce(cluster, "t", 1, b"a", b"b")
        await asyncio.sleep(1.0)
        between_ms = cluster.clock.wall_ms()
        await asyncio.sleep(1.0)
        await produce(cluster, "t", 1, b"c")
        made = await subscribe(cluster, 2, "late")
        assert not made.already_existed
        assert made.subscription.topic == "default/t"
        assert made.subscription.topic_id == topic.topic_id
        assert made.subscription.config == pb.SubscriptionConfig(
            kind=pb.SUBSCRIPTION_KIND_STREAM, revoke_timeout_ms=10_000
        )
        await subscribe(cluster, 1, "first", pb.StartPosition(earliest=True))
        await subscribe(cluster, 3, "between", pb.StartPosition(time_ms=between_ms))
        await produce(cluster, "t", 1, b"d", b"e")
        for name, position in (("late", 3), ("first", 0), ("between", 2)):
            for node_id in cluster.nodes:
                empty, full = await describe(cluster, node_id, name)
                assert (empty.ack_floor, empty.backlog_records) == (0, 0)
                assert empty.oldest_unsettled_ms == 0
                assert (full.ack_floor, full.backlog_records) == (position, 5 - position)
                assert full.oldest_unsettled_ms >= (0 if name == "late" else 1)

    play(story)


def test_the_same_subscription_again_is_fine_and_stays_where_it_is() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t")
        first = await subscribe(cluster, 1, "s")
        await produce(cluster, "t", 0, b"a")
        again = await subscribe(cluster, 2, "s", pb.StartPosition(latest=True))
        assert again.already_existed
        assert again.subscription == first.subscription
        (partition,) = await describe(cluster, 3, "s")
        assert (partition.ack_floor, partition.backlog_records) == (0, 1)
        other = pb.SubscriptionConfig(kind=pb.SUBSCRIPTION_KIND_STREAM, revoke_timeout_ms=5)
        request = pb.CreateSubscriptionRequest(topic="t", name="s", config=other)
        error = await refused(cluster, 1, methods.CREATE_SUBSCRIPTION, request)
        assert error.reason == "ALREADY_EXISTS"

    play(story)


def test_what_a_create_is_refused_for() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t")

        async def why(**fields: object) -> tuple[str, str]:
            wanted = {"topic": "t", "name": "s", "config": STREAM, **fields}
            request = pb.CreateSubscriptionRequest(**wanted)  # type: ignore[arg-type]
            error = await refused(cluster, 2, methods.CREATE_SUBSCRIPTION, request)
            return error.reason, error.metadata.get("feature", "")

        def config(**fields: object) -> pb.SubscriptionConfig:
            kind = {"kind": pb.SUBSCRIPTION_KIND_STREAM, **fields}
            return pb.SubscriptionConfig(**kind)  # type: ignore[arg-type]

        assert await why(topic="u") == ("TOPIC_NOT_FOUND", "")
        assert await why(topic="a/b/c") == ("BAD_NAME", "")
        assert await why(name="a/b") == ("BAD_NAME", "")
        assert await why(name="") == ("BAD_NAME", "")
        assert await why(config=pb.SubscriptionConfig()) == ("BAD_CONFIG", "")
        assert await why(config=config(revoke_timeout_ms=300_001)) == ("BAD_CONFIG", "")
        assert await why(start=pb.StartPosition(earliest=False)) == ("BAD_REQUEST", "")
        assert await why(start=pb.StartPosition(time_ms=-1)) == ("BAD_REQUEST", "")
        not_yet = "FEATURE_NOT_ENABLED"
        assert await why(config=config(kind=pb.SUBSCRIPTION_KIND_QUEUE)) == (not_yet, "KIND_QUEUE")
        assert await why(config=config(kind=9)) == (not_yet, "kind_9")
        for name, value in (
            ("lease_ms", 0),
            ("failed_attempts_max", 3),
            ("retry_delay_ms", 1000),
            ("retry_delay_ms_max", 1000),
            ("dead_letter_topic", ""),
            ("leased_records_max", 5),
            ("ordered_by_key", False),
            ("subject_filter", "a.#"),
        ):
            assert await why(config=config(**{name: value})) == (not_yet, name)
        newer = config()
        newer.MergeFromString(b"\xf8\x01\x01")  # field 31
        assert await why(config=newer) == (not_yet, "config.31")

    play(story)


def test_altering_a_subscription() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t")
        made = (await subscribe(cluster, 1, "s")).subscription

        def request(config: pb.SubscriptionConfig, *paths: str) -> pb.AlterSubscriptionRequest:
            mask = FieldMask(paths=paths)
            return pb.AlterSubscriptionRequest(topic="t", name="s", config=config, update_mask=mask)

        longer = request(pb.SubscriptionConfig(revoke_timeout_ms=20_000))
        altered = (await ask(cluster, 2, methods.ALTER_SUBSCRIPTION, longer)).subscription
        assert altered.subscription_id == made.subscription_id
        assert altered.config.revoke_timeout_ms == 20_000
        back = request(pb.SubscriptionConfig(), "revoke_timeout_ms")
        altered = (await ask(cluster, 3, methods.ALTER_SUBSCRIPTION, back)).subscription
        assert altered == made

        async def why(wrong: pb.AlterSubscriptionRequest) -> str:
            return (await refused(cluster, 2, methods.ALTER_SUBSCRIPTION, wrong)).reason

        queue = pb.SubscriptionConfig(kind=pb.SUBSCRIPTION_KIND_QUEUE)
        assert await why(request(queue)) == "BAD_CONFIG"
        assert await why(request(pb.SubscriptionConfig(lease_ms=5_000))) == "FEATURE_NOT_ENABLED"
        assert await why(request(pb.SubscriptionConfig(), "nothing")) == "BAD_REQUEST"
        unknown = pb.AlterSubscriptionRequest(topic="t", name="u")
        assert await why(unknown) == "SUBSCRIPTION_NOT_FOUND"
        guarded = pb.AlterSubscriptionRequest(topic="t", name="s", subscription_id="another")
        assert await why(guarded) == "TOPIC_REPLACED"

    play(story)


def test_a_deleted_subscription_leaves_nothing_behind() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=2)
        await subscribe(cluster, 1, "s")
        kept = (await subscribe(cluster, 1, "kept")).subscription
        request = pb.DeleteSubscriptionRequest(topic="t", name="s", subscription_id="another")
        error = await refused(cluster, 2, methods.DELETE_SUBSCRIPTION, request)
        assert error.reason == "TOPIC_REPLACED"
        request = pb.DeleteSubscriptionRequest(topic="t", name="s")
        await ask(cluster, 2, methods.DELETE_SUBSCRIPTION, request)
        row = cluster.brokers()[0].controller.catalog.topic_by_name("default/t")
        assert row is not None
        for group_id in row.group_ids:
            leader = cluster.leader(group_id)
            assert leader is not None
            positions = leader.replica.machine.positions
            assert positions.count == 1
            assert positions.get(kept.subscription_id) is not None
        error = await refused(cluster, 3, methods.DELETE_SUBSCRIPTION, request)
        assert error.reason == "SUBSCRIPTION_NOT_FOUND"
        described = pb.DescribeSubscriptionRequest(topic="t", name="s")
        error = await refused(cluster, 3, methods.DESCRIBE_SUBSCRIPTION, described)
        assert error.reason == "SUBSCRIPTION_NOT_FOUND"

    play(story)


def test_what_a_subscription_leaves_in_a_partition_without_leader_goes_when_there_is_one() -> None:
    async def story(cluster: SimCluster) -> None:
        topic = await create(cluster, 1, "t", partitions=3, replication_factor=1)
        await subscribe(cluster, 1, "s")
        kept = (await subscribe(cluster, 1, "kept")).subscription
        await cluster.nodes[3].crash()
        await ask(
            cluster,
            1,
            methods.DELETE_SUBSCRIPTION,
            pb.DeleteSubscriptionRequest(topic="t", name="s"),
        )
        cluster.nodes[3].start()
        row = cluster.brokers()[0].controller.catalog.topic_by_name(topic.name)
        assert row is not None

        def only_what_is_left(group_id: int) -> bool:
            leader = cluster.leader(group_id)
            if leader is None:
                return False
            positions = leader.replica.machine.positions
            assert positions.get(kept.subscription_id) is not None
            return positions.count == 1

        await cluster.until(lambda: all(map(only_what_is_left, row.group_ids)), "what is left")

    play(story)


def test_listing_subscriptions_and_seeing_them_in_their_topic() -> None:
    async def story(cluster: SimCluster) -> None:
        for topic, name in (("b", "s"), ("a", "z"), ("a", "a"), ("a.b", "s")):
            await create(cluster, 1, topic)
            await subscribe(cluster, 2, name, topic=topic)
        found, token = [], ""
        while True:
            request = pb.ListSubscriptionsRequest(page_size=1, page_token=token)
            page = await ask(cluster, 3, methods.LIST_SUBSCRIPTIONS, request)
            found += [(row.topic, row.name) for row in page.subscriptions]
            token = page.next_page_token
            if not token:
                break
        assert found == [
            ("default/a", "a"),
            ("default/a", "z"),
            ("default/a.b", "s"),
            ("default/b", "s"),
        ]
        request = pb.ListSubscriptionsRequest(topic="a")
        page = await ask(cluster, 1, methods.LIST_SUBSCRIPTIONS, request)
        assert [row.name for row in page.subscriptions] == ["a", "z"]
        described = await ask(cluster, 2, methods.DESCRIBE_TOPIC, pb.DescribeTopicRequest(name="a"))
        assert list(described.subscriptions) == ["a", "z"]
        error = await refused(
            cluster, 1, methods.LIST_SUBSCRIPTIONS, pb.ListSubscriptionsRequest(topic="u")
        )
        assert error.reason == "TOPIC_NOT_FOUND"

    play(story)


def test_a_partition_without_leader_leaves_the_create_in_doubt_and_a_repeat_finishes_it() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=3, replication_factor=1)
        await cluster.nodes[3].crash()
        request = pb.CreateSubscriptionRequest(topic="t", name="s", config=STREAM)
        error = await refused(cluster, 1, methods.CREATE_SUBSCRIPTION, request, timeout_s=2.0)
        assert error.reason == "OUTCOME_UNKNOWN"
        assert error.retriable
        partitions = await describe(cluster, 1, "s")
        lost = [row for row in partitions if row.HasField("error")]
        assert len(lost) == 1
        assert lost[0].error.reason == errors_pb2.REASON_NO_LEADER
        cluster.nodes[3].start()
        again = await ask(cluster, 2, methods.CREATE_SUBSCRIPTION, request)
        assert again.already_existed
        assert not any(row.HasField("error") for row in await describe(cluster, 1, "s"))

    play(story)
