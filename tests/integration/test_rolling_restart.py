"""Each node in turn is stopped with SIGTERM and started again: no request fails (issue §3)."""

from __future__ import annotations

import itertools

from cluster.tasks import TaskGroup
from node.demo.follow import Follower
from node.local_cluster import LocalCluster
from node.startup import EXIT_OK
from quorumq import Client
from tests.integration.load import PARTITIONS, ClientLoad, Load, StubLoad
from tests.integration.stubs import Stubs, stubs


async def restart_in_turn(cluster: LocalCluster, load: Load, up: dict[int, Stubs]) -> None:
    """`up`: only nodes that are not being restarted are in it."""
    for node_id in cluster.nodes:
        stub = up.pop(node_id, None)
        assert await cluster.stop_node(node_id) == EXIT_OK
        await load.progress()
        await cluster.restart(node_id)
        await load.progress()
        if stub is not None:
            up[node_id] = stub


async def test_the_client_library_sees_no_rolling_restart(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    load = ClientLoad(client, topic)
    async with load, client.reader(topic) as reader, TaskGroup("reading") as reading:
        follower = Follower(reader)
        reading.start(follower.run(), name="follower")
        await restart_in_turn(cluster, load, {})
        reading.cancel()
    await load.check(cluster)


async def test_calls_to_surviving_nodes_see_no_rolling_restart(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    """Without any retry. The calls that a node has taken in when it is told to stop are answered
    too."""
    await client.admin.create_topic(topic, partitions=PARTITIONS)
    one, two, three = (node.client_endpoint for node in cluster.nodes.values())
    async with stubs(one) as first, stubs(two) as second, stubs(three) as third:
        up = {1: first, 2: second, 3: third}
        turn = itertools.count()
        async with StubLoad(lambda: list(up.values())[next(turn) % len(up)], topic) as load:
            await restart_in_turn(cluster, load, up)
    await load.check(cluster)


async def test_stubs_with_the_service_config_see_no_rolling_restart(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    """One channel to all nodes, with the retry policy that comes with the protos: it need not know
    which node is down."""
    await client.admin.create_topic(topic, partitions=PARTITIONS)
    endpoints = [node.client_endpoint for node in cluster.nodes.values()]
    async with (
        stubs(*endpoints, service_config=True) as any_node,
        StubLoad(lambda: any_node, topic) as load,
    ):
        await restart_in_turn(cluster, load, {})
    await load.check(cluster)
