"""What a node says when it cannot start: one line that names the reason, and its exit code
(node/startup.py)."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from node import startup
from node.local_cluster import LocalCluster
from node.local_node import LocalNode, free_ports
from tests.integration.disks import small_disk
from tests.integration.load import WITHIN_S


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNode]:
    """A node that runs, alone in its cluster."""
    async with LocalCluster(1, base_dir=tmp_path_factory.mktemp("alone")) as cluster:
        yield cluster.nodes[1]


def node_in(base_dir: Path, *, node_id: int = 1, **settings: object) -> LocalNode:
    """Not started yet; its data folder is `base_dir`/node-<id>."""
    client, peer, metrics = (f"127.0.0.1:{port}" for port in free_ports(3))
    given = {
        "listen": client,
        "peer_listen": peer,
        "metrics_listen": metrics,
        "peers": f"{node_id}={peer}",
        **settings,
    }
    return LocalNode(node_id=node_id, base_dir=base_dir, settings=given, environment={})


async def told(node: LocalNode) -> tuple[int, str]:
    """Exit code and the one line for people; all other lines are events."""
    node.start()
    code = await node.wait_ended(timeout_s=WITHIN_S)
    lines = [text for text in node.log_path.read_text().splitlines() if text[0] != "{"]
    assert len(lines) == 1, lines
    return code, lines[0]


async def assert_refused(
    node: LocalNode, error: type[startup.StartupError], *words: object
) -> None:
    code, line = await told(node)
    assert code == error.exit_code, line
    assert line.startswith(f"error: {error.reason}: ")
    for word in words:
        assert str(word) in line


async def test_a_folder_in_use(alone: LocalNode, tmp_path: Path) -> None:
    other = node_in(tmp_path)
    other.data_dir = alone.data_dir
    await assert_refused(other, startup.DataFolderInUse, alone.data_dir, alone.pid)


async def test_a_folder_of_another_node(alone: LocalNode, tmp_path: Path) -> None:
    shutil.copytree(alone.data_dir, tmp_path / "node-2")
    await assert_refused(
        node_in(tmp_path, node_id=2), startup.WrongDataFolder, "node 1", "not to 2"
    )


async def test_a_folder_of_a_newer_version(alone: LocalNode, tmp_path: Path) -> None:
    shutil.copytree(alone.data_dir, tmp_path / "node-1")
    identity = tmp_path / "node-1/identity.json"
    content = json.loads(identity.read_text())
    content["format_version"] += 1
    identity.write_text(json.dumps(content))
    await assert_refused(node_in(tmp_path), startup.NewerFormat, content["format_version"])
    assert json.loads(identity.read_text()) == content


async def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "node-1").mkdir()
    (tmp_path / "node-1/thesis.txt").write_text("years of work")
    await assert_refused(node_in(tmp_path), startup.DataFolderUnusable, "thesis.txt")


async def test_a_folder_of_another_cluster(cluster: LocalCluster, tmp_path: Path) -> None:
    """Of two nodes, so that the one alone leads nothing; it meets peers of the shared cluster."""
    async with LocalCluster(2, base_dir=tmp_path) as other:
        await other.stop()
        node = other.nodes[2]
        peers = {
            1: cluster.nodes[1].peer_endpoint,
            2: node.peer_endpoint,
            3: cluster.nodes[3].peer_endpoint,
        }
        node.settings["peers"] = ",".join(f"{i}={endpoint}" for i, endpoint in peers.items())
        node.log_path.unlink()
        await assert_refused(node, startup.WrongDataFolder, node.data_dir, "cluster")


@pytest.mark.parametrize("setting", ["listen", "peer_listen", "metrics_listen"])
async def test_a_port_in_use(setting: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        endpoint = f"127.0.0.1:{holder.getsockname()[1]}"
        node = node_in(tmp_path, **{setting: endpoint})
        node.settings["peers"] = f"1={node.peer_endpoint}"
        await assert_refused(node, startup.PortInUse, endpoint)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heartbeat_ticks": 8, "election_ticks": 10}, ["heartbeat_ticks", "8", "10"]),
        ({"peers": "2=127.0.0.1:9502"}, ["peers", "1"]),
        ({"listen": "127.0.0.1:9400", "metrics_listen": "127.0.0.1:9400"}, ["metrics_listen"]),
        ({"inflight_bytes_max": "a lot"}, ["--inflight-bytes-max", "a lot"]),
    ],
)
async def test_a_contradictory_configuration(
    settings: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    code, line = await told(node_in(tmp_path, **settings))
    assert code == startup.EXIT_CONFIG, line
    assert line.startswith("error: CONFIG: ")
    assert all(word in line for word in words), line


async def test_a_disk_without_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=64) as disk:
        await assert_refused(
            node_in(disk, disk_free_bytes_min="65MiB"),
            startup.NoDiskRoom,
            "disk_free_bytes_min",
        )
