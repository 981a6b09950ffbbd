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


async def test_no_request_fails_in_a_rolling_restart(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    """Three kinds of callers: the client library, with a reader that follows; stubs without any
    retry that call the nodes which are not being restarted; and stubs that call any node, with the
    retry policy that comes with the protos."""
    endpoints = [node.client_endpoint for node in cluster.nodes.values()]
    for name in (f"{topic}-surviving", f"{topic}-any"):
        await client.admin.create_topic(name, partitions=PARTITIONS)
    async with (
        stubs(endpoints[0]) as one,
        stubs(endpoints[1]) as two,
        stubs(endpoints[2]) as three,
        stubs(*endpoints, service_config=True) as any_node,
        ClientLoad(client, topic, workers=PARTITIONS) as library,
        client.reader(topic) as reader,
        TaskGroup("reading") as reading,
    ):
        reading.start(Follower(reader).run(), name="follower")
        up = {1: one, 2: two, 3: three}
        turn = itertools.count()
        surviving = StubLoad(lambda: list(up.values())[next(turn) % len(up)], f"{topic}-surviving")
        retrying = StubLoad(lambda: any_node, f"{topic}-any")
        loads = (library, surviving, retrying)
        async with surviving, retrying:
            await restart_in_turn(cluster, loads, up)
        reading.cancel()
    for load in loads:
        await load.check(cluster)


async def restart_in_turn(
    cluster: LocalCluster, loads: tuple[Load, ...], up: dict[int, Stubs]
) -> None:
    """`up`: only nodes that are not being restarted are in it. Calls that a node has taken in when
    it is told to stop are answered all the same."""
    for node_id in list(cluster.nodes):
        stub = up.pop(node_id)
        assert await cluster.stop_node(node_id) == EXIT_OK
        for load in loads:
            await load.progress()
        await cluster.restart(node_id)
        up[node_id] = stub
        for load in loads:
            await load.progress()
