"""Clusters of real processes. The shared one is put back in order before each test that uses it.

All tests here run in one event loop: grpc.aio's poller, one for the process, does not forget a loop
that is closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from node.local_cluster import LocalCluster
from quorumq import Client, connect


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster() as cluster:
        yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(shared_cluster: LocalCluster) -> LocalCluster:
    """Three nodes, all of them up, and no topics, whatever the test before left."""
    for node_id in shared_cluster.running:
        shared_cluster.resume(node_id)
    await shared_cluster.start()
    async with await connect(shared_cluster.servers) as client:
        for topic in await client.admin.list_topics():
            await client.admin.delete_topic(topic.name)
    return shared_cluster


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: LocalCluster) -> AsyncIterator[Client]:
    async with await connect(cluster.servers) as client:
        yield client


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic's name that no other test has."""
    return str(request.node.originalname).removeprefix("test_")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """What the nodes said last is part of a failure's report."""
    outcome: Any = yield
    report = outcome.get_result()
    if not report.failed or not isinstance(item, pytest.Function):
        return
    for name, value in item.funcargs.items():
        if isinstance(value, LocalCluster) and name != "shared_cluster":
            words = "\n".join(node.last_words() for node in value.nodes.values())
            report.sections.append((f"nodes of {name}", words))
