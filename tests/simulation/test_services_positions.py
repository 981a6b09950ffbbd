"""Commit and GetPositions through any node of a simulated cluster."""

from __future__ import annotations

import asyncio

from cluster.controller import commands as c
from cluster.controller.model import SubscriptionKind
from quorumq import methods
from quorumq.v1 import errors_pb2
from quorumq.v1 import messaging_pb2 as pb
from tests.simulation.admin_bed import ask, refused
from tests.simulation.cluster import SimCluster
from tests.simulation.reading_bed import leading_node, play, store_values


async def subscribe(
    cluster: SimCluster, name: str = "s", kind: SubscriptionKind = SubscriptionKind.STREAM
) -> None:
    controller = cluster.brokers()[0].controller
    topic = controller.catalog.topic_by_name("default/t")
    assert topic is not None
    reply = await controller.propose(
        c.CreateSubscription(topic_id=topic.topic_id, name=name, kind=kind, settings=b"")
    )
    assert isinstance(reply, c.SubscriptionCreated), f"{reply}"


def commits(*positions: tuple[int, int], **fields: object) -> pb.CommitRequest:
    return pb.CommitRequest(
        topic="t",
        subscription="s",
        positions=[
            pb.CommitPosition(partition=partition, position=position, **fields)  # type: ignore[arg-type]
            for partition, position in positions
        ],
    )


async def commit(cluster: SimCluster, node_id: int, request: pb.CommitRequest) -> pb.CommitResponse:
    return await ask(cluster, node_id, methods.COMMIT, request)


async def positions(
    cluster: SimCluster, node_id: int, *partitions: int
) -> list[pb.PartitionPosition]:
    request = pb.GetPositionsRequest(topic="t", subscription="s", partitions=partitions)
    return list((await ask(cluster, node_id, methods.GET_POSITIONS, request)).positions)


def reasons(results: list[pb.CommitResult]) -> list[str]:
    return [errors_pb2.Reason.Name(r.error.reason).removeprefix("REASON_") for r in results]


def test_what_one_node_stored_every_node_tells() -> None:
    async def story(cluster: SimCluster) -> None:
        await subscribe(cluster)
        for partition in range(3):
            await store_values(cluster, 6, partition=partition)
        for number, node_id in enumerate(cluster.nodes):
            request = commits((2, number), (0, number + 1), metadata=f"by {node_id}")
            answer = await commit(cluster, node_id, request)
            assert [(r.partition, r.position) for r in answer.results] == [
                (2, number),
                (0, number + 1),
            ]
            for other in cluster.nodes:
                told = await positions(cluster, other)
                assert [p.partition for p in told] == [0, 1, 2]
                assert [p.end_offset for p in told] == [6, 6, 6]
                assert [p.HasField("position") for p in told] == [True, False, True]
                assert [p.position for p in told] == [number + 1, 0, number]
                assert told[0].metadata == f"by {node_id}"
        assert [p.partition for p in await positions(cluster, 1, 2, 0)] == [0, 2]

    play(story, nodes=4, partitions=3)


def test_a_position_may_go_back_but_not_beyond_the_end() -> None:
    async def story(cluster: SimCluster) -> None:
        await subscribe(cluster)
        for partition in range(2):
            await store_values(cluster, 6, partition=partition)
        for position in (6, 2):
            answer = await commit(cluster, 2, commits((0, position)))
            assert answer.results[0].position == position
        answer = await commit(cluster, 2, commits((0, 7), (9, 1), (1, 3)))
        assert [r.partition for r in answer.results] == [0, 9, 1]
        assert reasons(list(answer.results)) == [
            "OFFSET_OUT_OF_RANGE",
            "PARTITION_NOT_FOUND",
            "UNSPECIFIED",
        ]
        assert answer.results[0].error.metadata["latest"] == "6"
        assert [p.position for p in await positions(cluster, 3)] == [2, 3]
        told = await positions(cluster, 3, 1, 8)
        assert (told[0].position, told[1].error.reason) == (
            3,
            errors_pb2.REASON_PARTITION_NOT_FOUND,
        )

    play(story, partitions=2)


def test_a_generation_is_checked_when_it_is_given() -> None:
    async def story(cluster: SimCluster) -> None:
        await subscribe(cluster)
        await store_values(cluster, 6)
        answer = await commit(cluster, 1, commits((0, 1), generation=3))
        assert reasons(list(answer.results)) == ["STALE_GENERATION"]
        answer = await commit(cluster, 1, commits((0, 1), generation=0))
        assert reasons(list(answer.results)) == ["UNSPECIFIED"]

    play(story)


def test_positions_outlive_their_leaders() -> None:
    async def story(cluster: SimCluster) -> None:
        await subscribe(cluster)
        await store_values(cluster, 60)
        for position in range(0, 60, 10):
            node = leading_node(cluster)
            other = next(n for n in cluster.nodes if n != node.node_id)
            committing = asyncio.ensure_future(commit(cluster, other, commits((0, position))))
            await asyncio.sleep(cluster.random.uniform(0.0, 0.004))
            await node.crash()
            assert (await committing).results[0].position == position
            [told] = await positions(cluster, other)
            assert (told.position, told.end_offset) == (position, 60)
            node.start()
            await asyncio.sleep(2.0)

    play(story)


def test_refused_as_a_whole() -> None:
    async def story(cluster: SimCluster) -> None:
        await subscribe(cluster)
        await subscribe(cluster, "q", SubscriptionKind.QUEUE)

        async def reason(request: pb.CommitRequest) -> tuple[str, list[str]]:
            error = await refused(cluster, 2, methods.COMMIT, request)
            return error.reason, [field for field, _ in error.violations]

        assert await reason(commits()) == ("BAD_REQUEST", ["positions"])
        assert await reason(commits((0, 0), (0, 0))) == ("BAD_REQUEST", ["positions[1]"])
        too_long = commits((0, 0), metadata="x" * 4097)
        assert await reason(too_long) == ("BAD_REQUEST", ["positions[0].metadata"])
        assert await reason(commits((0, 2**53))) == ("BAD_REQUEST", ["positions[0].position"])
        for name, expected in (
            ("q", "BAD_REQUEST"),
            ("nobody", "SUBSCRIPTION_NOT_FOUND"),
            ("?", "BAD_NAME"),
        ):
            request = commits((0, 0))
            request.subscription = name
            assert (await reason(request))[0] == expected
            asked = pb.GetPositionsRequest(topic="t", subscription=name)
            assert (await refused(cluster, 2, methods.GET_POSITIONS, asked)).reason == expected
        replaced = commits((0, 0))
        replaced.topic_id = "t0-other"
        assert (await reason(replaced))[0] == "TOPIC_REPLACED"
        twice = pb.GetPositionsRequest(topic="t", subscription="s", partitions=[0, 0])
        assert (await refused(cluster, 2, methods.GET_POSITIONS, twice)).reason == "BAD_REQUEST"

    play(story)
