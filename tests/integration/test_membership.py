"""Nodes that come, go, and come back without their data, under load (house §4.14, rules R9, R12).

Each test leaves three active nodes, whichever they are.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from node import startup
from node.local_cluster import LocalCluster
from quorumq import Client, connect
from quorumq.v1 import admin_pb2
from tests.integration.load import WITHIN_S, ClientLoad
from tests.integration.watching import ended, in_sync, nodes

SUCCEEDED = admin_pb2.OPERATION_STATE_SUCCEEDED


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def changing_cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster() as cluster:
        yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def members(changing_cluster: LocalCluster) -> LocalCluster:
    await changing_cluster.start()
    return changing_cluster


@pytest_asyncio.fixture(loop_scope="session")
async def client(members: LocalCluster) -> AsyncIterator[Client]:
    async with await connect(members.servers) as client:
        yield client


async def take_in(members: LocalCluster, client: Client) -> int:
    """A node that was started and waits. Returns its id."""
    node_id = await members.add_node()
    endpoint = members.nodes[node_id].peer_endpoint
    operation = await client.admin.add_node(node_id, endpoint)
    assert (operation.kind, operation.node_id) == (admin_pb2.OPERATION_KIND_ADD_NODE, node_id)
    assert (await ended(client, operation))[-1].state == SUCCEEDED
    return node_id


async def is_refused(members: LocalCluster, node_id: int) -> None:
    """What is in its folder is of somebody whom the cluster knows no more."""
    node = members.nodes[node_id]
    node.start()
    code = await node.wait_ended(timeout_s=WITHIN_S)
    assert code == startup.WrongDataFolder.exit_code, node.last_words()
    assert "error: WRONG_DATA_FOLDER: " in node.last_words()


async def holders(client: Client, topic: str) -> set[int]:
    told = await client.admin.describe_topic(topic)
    return {replica.node_id for part in told.partitions for replica in part.replicas}


async def test_a_node_is_added_and_another_drained(
    members: LocalCluster, client: Client, topic: str
) -> None:
    leaving = min(members.nodes)
    async with ClientLoad(client, topic) as load:
        added = await take_in(members, client)
        await load.progress()
        drain = await client.admin.drain_node(leaving)
        assert [o.operation_id for o in await client.admin.list_operations(running_only=True)] == [
            drain.operation_id
        ]
        news = await ended(client, drain)
        await load.progress()
    assert news[-1].state == SUCCEEDED
    assert news[-1].steps_done == news[-1].steps_total > 0
    assert [n.version for n in news] == sorted({n.version for n in news}), "news that are none"
    assert any(0 < n.steps_done < n.steps_total for n in news), "no progress was to be seen"
    assert all(n.progress for n in news[1:-1])  # the first may be of before the first look
    listed = await client.admin.list_operations()
    assert [operation.node_id for operation in listed[:2]] == [leaving, added]

    drained = (await nodes(client))[leaving]
    assert (drained.state, drained.replica_count, drained.leader_count) == (
        admin_pb2.NODE_STATE_DRAINED,
        0,
        0,
    )
    assert await holders(client, topic) == set(members.nodes) - {leaving}
    await in_sync(client, topic)
    await load.check(members)  # through the drained node too: it has others read for it

    removal = await client.admin.remove_node(leaving)
    assert (await ended(client, removal))[-1].state == SUCCEEDED
    members.kill(leaving)
    await is_refused(members, leaving)
    members.remove(leaving)
    assert set(await nodes(client)) == set(members.nodes)


async def test_a_node_that_is_dead_for_good_is_replaced(
    members: LocalCluster, client: Client, topic: str
) -> None:
    async with ClientLoad(client, topic) as load:
        dead = min(members.nodes)
        members.remove(dead)
        await load.progress()
        removal = await client.admin.remove_node(dead)
        await take_in(members, client)
        assert (await ended(client, removal))[-1].state == SUCCEEDED
        await load.progress()
    await in_sync(client, topic)
    assert set(await nodes(client)) == await holders(client, topic) == set(members.nodes)
    await load.check(members)


async def test_a_node_that_lost_its_data_comes_back_as_a_new_one(
    members: LocalCluster, client: Client, topic: str, tmp_path: Path
) -> None:
    node_id = min(members.nodes)
    data_dir = members.nodes[node_id].data_dir
    async with ClientLoad(client, topic) as load:
        before = (await nodes(client))[node_id].incarnation
        members.kill(node_id)
        shutil.move(data_dir, tmp_path / "old")
        await members.restart(node_id)
        await load.progress()
    now = (await nodes(client))[node_id].incarnation
    assert now != before
    await in_sync(client, topic)
    await load.check(members)

    assert await members.stop_node(node_id) == startup.EXIT_OK
    shutil.move(data_dir, tmp_path / "new")
    shutil.move(tmp_path / "old", data_dir)
    await is_refused(members, node_id)
    assert (await nodes(client))[node_id].incarnation == now
    shutil.rmtree(data_dir)
    shutil.move(tmp_path / "new", data_dir)
    await members.restart(node_id)
    await load.check(members)
