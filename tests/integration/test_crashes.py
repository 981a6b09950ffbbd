"""Nodes that are killed under load: what was acknowledged is there, once, in order, on every node
(rules R1, R15, R16)."""

from __future__ import annotations

from node.local_cluster import LocalCluster
from quorumq import Client
from tests.integration.load import ClientLoad, leader_of


async def test_any_node_is_killed_and_comes_back(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    async with ClientLoad(client, topic) as load:
        for node_id in cluster.nodes:
            cluster.kill(node_id)
            await load.progress()
            await cluster.restart(node_id)
            await load.progress()
    await load.check(cluster)


async def test_a_leader_is_killed_while_it_is_produced_to(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    async with ClientLoad(client, topic) as load:
        leader = await leader_of(client, topic)
        load.listen()
        cluster.kill(leader)
        await load.progress()
        print(f"longest time without an acknowledgement: {load.longest_silence_ms()} ms")
        assert await leader_of(client, topic) != leader
        await cluster.restart(leader)
    await load.check(cluster)


async def test_all_nodes_are_killed_at_once(
    cluster: LocalCluster, client: Client, topic: str
) -> None:
    async with ClientLoad(client, topic) as load:
        for node_id in cluster.nodes:
            cluster.kill(node_id)
        await cluster.start()
        await load.progress()
    await load.check(cluster)
