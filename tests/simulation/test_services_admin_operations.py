"""AdminService: nodes that come and go, replicas and leaderships that move, operations watched."""

from __future__ import annotations

import asyncio

from quorumq import methods
from quorumq.v1 import admin_pb2 as pb
from tests.simulation.admin_bed import ask, create, play, produce, refused
from tests.simulation.cluster import SimCluster, SimNode

SUCCEEDED = pb.OPERATION_STATE_SUCCEEDED


def come_up(cluster: SimCluster, node_id: int) -> SimNode:
    """A new node that is told of the others and waits to join."""
    cluster.initial_peers = {**cluster.initial_peers, node_id: f"node-{node_id}:9500"}
    node = cluster.nodes[node_id] = SimNode(cluster, node_id)
    node.start()
    return node


async def ended(cluster: SimCluster, node_id: int, operation: pb.Operation) -> pb.Operation:
    """Watches it through the node: every answer is news, versions rise."""
    while operation.state == pb.OPERATION_STATE_RUNNING:
        request = pb.GetOperationRequest(
            operation_id=operation.operation_id, known_version=operation.version, wait_ms=60_000
        )
        answer = await ask(cluster, node_id, methods.GET_OPERATION, request, timeout_s=70.0)
        assert answer.operation.version > operation.version
        operation = answer.operation
    return operation


async def states(cluster: SimCluster, node_id: int) -> dict[int, pb.NodeState]:
    told = await ask(cluster, node_id, methods.GET_CLUSTER, pb.GetClusterRequest())
    return {node.node_id: node.state for node in told.nodes}


async def replica_nodes(cluster: SimCluster, node_id: int, topic: str) -> list[list[int]]:
    request = pb.GetMetadataRequest(topics=[topic])
    metadata = await ask(cluster, node_id, methods.GET_METADATA, request)
    return [list(partition.replica_node_ids) for partition in metadata.topics[0].partitions]


def test_a_node_is_added_gets_its_share_and_is_drained_and_removed() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=4)
        come_up(cluster, 4)
        request = pb.AddNodeRequest(node_id=4, peer_endpoint="node-4:9500")
        added = (await ask(cluster, 2, methods.ADD_NODE, request)).operation
        assert (added.kind, added.node_id) == (pb.OPERATION_KIND_ADD_NODE, 4)
        added = await ended(cluster, 3, added)
        assert added.state == SUCCEEDED
        assert added.steps_done == added.steps_total
        assert added.ended_at_ms > added.started_at_ms
        assert (await states(cluster, 4))[4] == pb.NODE_STATE_ACTIVE
        assert sum(4 in nodes for nodes in await replica_nodes(cluster, 4, "t")) == 3

        drain = pb.DrainNodeRequest(node_id=4)
        drained = (await ask(cluster, 1, methods.DRAIN_NODE, drain)).operation
        again = (await ask(cluster, 2, methods.DRAIN_NODE, drain)).operation
        assert again.operation_id == drained.operation_id, "one drain a node"
        drained = await ended(cluster, 2, drained)
        assert drained.state == SUCCEEDED
        assert (await states(cluster, 1))[4] == pb.NODE_STATE_DRAINED
        assert not any(4 in nodes for nodes in await replica_nodes(cluster, 1, "t"))

        remove = pb.RemoveNodeRequest(node_id=4)
        removed = (await ask(cluster, 3, methods.REMOVE_NODE, remove)).operation
        removed = await ended(cluster, 1, removed)
        assert removed.state == SUCCEEDED
        assert sorted(await states(cluster, 1)) == [1, 2, 3]
        listed = await ask(cluster, 2, methods.LIST_OPERATIONS, pb.ListOperationsRequest())
        assert [row.operation_id for row in listed.operations] == [
            removed.operation_id,
            drained.operation_id,
            added.operation_id,
        ]

    play(story)


def test_a_dead_node_is_removed_and_its_replicas_are_made_anew() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=2)
        await produce(cluster, "t", 0, b"a")
        request = pb.RemoveNodeRequest(node_id=4)
        error = await refused(cluster, 1, methods.REMOVE_NODE, request)
        assert error.reason == "OPERATION_CONFLICT", "alive and active"
        await cluster.nodes[4].crash()
        await cluster.until(
            lambda: all(not broker.host.node_alive(4) for broker in cluster.brokers()),
            "a node found dead",
        )
        removed = (await ask(cluster, 1, methods.REMOVE_NODE, request)).operation
        removed = await ended(cluster, 2, removed)
        assert removed.state == SUCCEEDED
        assert await replica_nodes(cluster, 1, "t") == [[1, 2, 3], [1, 2, 3]]
        error = await refused(cluster, 1, methods.REMOVE_NODE, request)
        assert error.reason == "NODE_NOT_FOUND"

    play(story, nodes=4)


def test_a_drain_is_cancelled() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=2)
        error = await refused(
            cluster, 1, methods.DRAIN_NODE, pb.DrainNodeRequest(node_id=3, cancel=True)
        )
        assert error.reason == "OPERATION_CONFLICT", "nothing to cancel"
        drain = pb.DrainNodeRequest(node_id=3)
        drained = (await ask(cluster, 1, methods.DRAIN_NODE, drain)).operation
        await asyncio.sleep(3.0)
        request = pb.GetOperationRequest(operation_id=drained.operation_id)
        stuck = (await ask(cluster, 2, methods.GET_OPERATION, request)).operation
        assert stuck.state == pb.OPERATION_STATE_RUNNING
        assert "add nodes" in stuck.progress
        assert (await states(cluster, 1))[3] == pb.NODE_STATE_DRAINING
        cancel = pb.DrainNodeRequest(node_id=3, cancel=True)
        for node_id in (2, 3):  # and again
            cancelled = (await ask(cluster, node_id, methods.DRAIN_NODE, cancel)).operation
            assert cancelled.operation_id == drained.operation_id
            assert cancelled.state == pb.OPERATION_STATE_CANCELLED
        assert (await states(cluster, 1))[3] == pb.NODE_STATE_ACTIVE

    play(story)


def test_a_drained_node_takes_part_again() -> None:
    async def story(cluster: SimCluster) -> None:
        drain = pb.DrainNodeRequest(node_id=3)
        await ended(cluster, 1, (await ask(cluster, 1, methods.DRAIN_NODE, drain)).operation)
        assert (await states(cluster, 1))[3] == pb.NODE_STATE_DRAINED
        cancel = pb.DrainNodeRequest(node_id=3, cancel=True)
        await ask(cluster, 1, methods.DRAIN_NODE, cancel)
        assert (await states(cluster, 2))[3] == pb.NODE_STATE_ACTIVE

    play(story)


def test_what_adding_a_node_is_refused_for() -> None:
    async def story(cluster: SimCluster) -> None:
        async def why(node_id: int, endpoint: str) -> tuple[str, str]:
            request = pb.AddNodeRequest(node_id=node_id, peer_endpoint=endpoint)
            error = await refused(cluster, 1, methods.ADD_NODE, request)
            return error.reason, next((field for field, _ in error.violations), "")

        assert await why(0, "node-2:9500") == ("BAD_REQUEST", "node_id")
        assert await why(2**31, "node-2:9500") == ("BAD_REQUEST", "node_id")
        assert await why(4, "") == ("BAD_REQUEST", "peer_endpoint")
        assert await why(4, "nowhere:9500") == ("BAD_REQUEST", "peer_endpoint")
        assert await why(4, "node-2:9500") == ("BAD_REQUEST", "peer_endpoint")
        stranger = SimCluster(cluster.random, nodes=1)
        stranger.network = cluster.network
        stranger.initial_peers = {9: "node-9:9500"}
        stranger.nodes = {9: SimNode(stranger, 9)}
        await stranger.start()
        assert await why(9, "node-9:9500") == ("BAD_REQUEST", "peer_endpoint")
        await stranger.close()

    play(story)


def test_a_node_id_that_is_taken_by_a_live_node() -> None:
    async def story(cluster: SimCluster) -> None:
        impostor = SimNode(cluster, 2)
        impostor.endpoint, impostor.incarnation = "elsewhere:9500", "another"
        request = pb.AddNodeRequest(node_id=2, peer_endpoint="elsewhere:9500")
        cluster.initial_peers = {2: "elsewhere:9500", 8: "nowhere:9500"}  # it waits for ever
        impostor.start()
        error = await refused(cluster, 1, methods.ADD_NODE, request)
        assert error.reason == "ALREADY_EXISTS"
        await impostor.crash()

    play(story)


def test_a_replica_is_moved() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=1)
        await produce(cluster, "t", 0, b"a")
        ((*nodes,),) = await replica_nodes(cluster, 1, "t")
        (free,) = [node_id for node_id in cluster.nodes if node_id not in nodes]

        async def why(**fields: object) -> str:
            wanted = {"topic": "t", "from_node_id": nodes[0], "to_node_id": free, **fields}
            request = pb.MoveReplicaRequest(**wanted)  # type: ignore[arg-type]
            return (await refused(cluster, 2, methods.MOVE_REPLICA, request)).reason

        assert await why(topic="u") == "TOPIC_NOT_FOUND"
        assert await why(partition=1) == "PARTITION_NOT_FOUND"
        assert await why(to_node_id=0) == "BAD_REQUEST"
        assert await why(to_node_id=9) == "NODE_NOT_FOUND"
        assert await why(to_node_id=nodes[1]) == "BAD_REQUEST"
        assert await why(from_node_id=free, to_node_id=nodes[0]) == "BAD_REQUEST"
        request = pb.MoveReplicaRequest(topic="t", from_node_id=nodes[0], to_node_id=free)
        moved = (await ask(cluster, 2, methods.MOVE_REPLICA, request)).operation
        assert (moved.topic, moved.partition) == ("default/t", 0)
        assert moved.HasField("partition")
        moved = await ended(cluster, 3, moved)
        assert moved.state == SUCCEEDED
        assert await replica_nodes(cluster, 1, "t") == [sorted([*nodes[1:], free])]
        described = await ask(cluster, 1, methods.DESCRIBE_TOPIC, pb.DescribeTopicRequest(name="t"))
        assert described.partitions[0].record_count == 1

    play(story, nodes=4)


def test_another_replication_factor_is_an_operation() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=2, replication_factor=1)
        request = pb.AlterTopicRequest(name="t", config=pb.TopicConfig(replication_factor=3))
        altered = await ask(cluster, 2, methods.ALTER_TOPIC, request)
        assert altered.topic.config.replication_factor == 3
        get = pb.GetOperationRequest(operation_id=altered.operation_id)
        operation = (await ask(cluster, 3, methods.GET_OPERATION, get)).operation
        assert operation.kind == pb.OPERATION_KIND_ALTER_REPLICATION
        operation = await ended(cluster, 1, operation)
        assert operation.state == SUCCEEDED
        assert await replica_nodes(cluster, 1, "t") == [[1, 2, 3], [1, 2, 3]]
        again = await ask(cluster, 2, methods.ALTER_TOPIC, request)
        assert not again.HasField("operation_id")

    play(story)


def test_a_leadership_is_handed_over_to_the_node_asked_for() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=1)
        for to_node in (1, 2, 3, 3):
            request = pb.TransferLeaderRequest(topic="t", to_node_id=to_node)
            via = 1 + to_node % 3
            leader = (await ask(cluster, via, methods.TRANSFER_LEADER, request)).leader
            assert leader.node_id == to_node
            assert leader.client_endpoint == f"node-{to_node}:9400"
        request = pb.TransferLeaderRequest(topic="t")
        leader = (await ask(cluster, 1, methods.TRANSFER_LEADER, request)).leader
        assert leader.node_id != 3, "whoever is furthest along"

    play(story)


def test_the_controllers_leadership_is_handed_over() -> None:
    async def story(cluster: SimCluster) -> None:
        before = cluster.brokers()[0].controller.leader_node
        leader = (
            await ask(cluster, before, methods.TRANSFER_LEADER, pb.TransferLeaderRequest())
        ).leader
        assert leader.node_id != before
        request = pb.TransferLeaderRequest(to_node_id=before)
        leader = (await ask(cluster, leader.node_id, methods.TRANSFER_LEADER, request)).leader
        assert leader.node_id == before
        told = await ask(cluster, 1, methods.GET_CLUSTER, pb.GetClusterRequest())
        assert told.controller.node_id == before

    play(story)


def test_what_a_transfer_is_refused_for() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=1, replication_factor=1)
        ((holder,),) = await replica_nodes(cluster, 1, "t")
        other = 1 + holder % 3

        async def why(**fields: object) -> str:
            request = pb.TransferLeaderRequest(**fields)  # type: ignore[arg-type]
            return (await refused(cluster, 2, methods.TRANSFER_LEADER, request)).reason

        assert await why(topic="u") == "TOPIC_NOT_FOUND"
        assert await why(topic="t", partition=1) == "PARTITION_NOT_FOUND"
        assert await why(partition=1) == "PARTITION_NOT_FOUND"
        assert await why(topic="t", to_node_id=9) == "NODE_NOT_FOUND"
        assert await why(topic="t", to_node_id=other) == "BAD_REQUEST"
        assert await why(topic="t") == "OPERATION_CONFLICT"
        await create(cluster, 1, "three")
        dead = 3 if (await leader_of(cluster, "three")) != 3 else 2
        await cluster.nodes[dead].crash()
        request = pb.TransferLeaderRequest(topic="three", to_node_id=dead)
        error = await refused(cluster, 1, methods.TRANSFER_LEADER, request)
        assert error.reason == "OPERATION_CONFLICT"
        assert (await leader_of(cluster, "three")) != dead

    play(story)


async def leader_of(cluster: SimCluster, topic: str) -> int:
    request = pb.GetMetadataRequest(topics=[topic])
    metadata = await ask(cluster, 1, methods.GET_METADATA, request)
    return metadata.topics[0].partitions[0].leader.node_id


def test_operations_that_are_not_there_and_waits_that_end() -> None:
    async def story(cluster: SimCluster) -> None:
        async def why(**fields: object) -> str:
            request = pb.GetOperationRequest(**fields)  # type: ignore[arg-type]
            return (await refused(cluster, 1, methods.GET_OPERATION, request)).reason

        assert await why(operation_id="none") == "OPERATION_NOT_FOUND"
        assert await why(operation_id="none", wait_ms=60_001) == "BAD_REQUEST"
        await create(cluster, 1, "t", partitions=1)
        drain = pb.DrainNodeRequest(node_id=3)
        operation = (await ask(cluster, 1, methods.DRAIN_NODE, drain)).operation
        await asyncio.sleep(3.0)
        get = pb.GetOperationRequest(operation_id=operation.operation_id)
        operation = (await ask(cluster, 2, methods.GET_OPERATION, get)).operation
        waiting = pb.GetOperationRequest(
            operation_id=operation.operation_id, known_version=operation.version, wait_ms=2_000
        )
        began = asyncio.get_running_loop().time()
        same = (await ask(cluster, 2, methods.GET_OPERATION, waiting)).operation
        assert same == operation
        assert 2.0 <= asyncio.get_running_loop().time() - began < 2.2
        waiting.known_version -= 1
        assert (await ask(cluster, 2, methods.GET_OPERATION, waiting)).operation == operation
        error = await refused(cluster, 1, methods.DRAIN_NODE, pb.DrainNodeRequest(node_id=9))
        assert error.reason == "NODE_NOT_FOUND"

    play(story)


def test_draining_the_last_active_node_is_refused() -> None:
    async def story(cluster: SimCluster) -> None:
        error = await refused(cluster, 1, methods.DRAIN_NODE, pb.DrainNodeRequest(node_id=1))
        assert error.reason == "NOT_ENOUGH_NODES"
        request = pb.RemoveNodeRequest(node_id=1, force=True)
        error = await refused(cluster, 1, methods.REMOVE_NODE, request)
        assert error.reason == "NOT_ENOUGH_NODES"

    play(story, nodes=1)


def test_operations_in_pages_and_only_running_ones() -> None:
    async def story(cluster: SimCluster) -> None:
        await create(cluster, 1, "t", partitions=1)
        ids = []
        for cancel in (False, True) * 3:
            request = pb.DrainNodeRequest(node_id=3, cancel=cancel)
            operation = (await ask(cluster, 1, methods.DRAIN_NODE, request)).operation
            ids.append(operation.operation_id)
        newest_first = ids[::2][::-1]
        request = pb.ListOperationsRequest(page_size=2)
        page = await ask(cluster, 2, methods.LIST_OPERATIONS, request)
        assert [row.operation_id for row in page.operations] == newest_first[:2]
        await ask(cluster, 1, methods.DRAIN_NODE, pb.DrainNodeRequest(node_id=3))
        request.page_token = page.next_page_token
        page = await ask(cluster, 3, methods.LIST_OPERATIONS, request)
        assert [row.operation_id for row in page.operations] == newest_first[2:]
        assert not page.next_page_token
        running = pb.ListOperationsRequest(running_only=True)
        page = await ask(cluster, 3, methods.LIST_OPERATIONS, running)
        assert [row.state for row in page.operations] == [pb.OPERATION_STATE_RUNNING]
        request.page_token = "MTphYmM="
        error = await refused(cluster, 1, methods.LIST_OPERATIONS, request)
        assert error.reason == "BAD_REQUEST"

    play(story)
