"""`python -m node.local_cluster`, which is `make cluster`: a cluster that keeps running.

With --control it is also driven by another program: commands come on standard input, one a line,
and each is answered with one JSON line on standard output. This is how bench/ starts and kills
nodes without knowing node/.

    status            {"ok": true, "servers": "...", "nodes": {"1": {"pid": ..., ...}, ...}}
    kill N · pause N · resume N
    stop N            SIGTERM; {"ok": true, "exit_code": 0}
    start N           returns at once
    ready N           returns when the node is ready
    wipe N            its data folder; the node must not run
    add               one more node; {"ok": true, "node_id": 4}
    close             end all nodes

The end of standard input is a `close`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import click
import uvloop

from node.cli import failures
from node.local_cluster import LocalCluster
from node.local_node import NodeEnded


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--nodes", type=click.IntRange(1, 15), default=3, show_default=True)
@click.option(
    "--base-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where data and logs are kept. Default: a temporary folder, deleted at the end.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting for all nodes."
)
@click.option("--control", is_flag=True, help="Take commands from standard input.")
def command(nodes: int, base_dir: Path | None, settings: tuple[str, ...], control: bool) -> None:
    """A cluster of NODES node processes on this machine; Ctrl-C ends it."""
    pairs = dict(setting.partition("=")[::2] for setting in settings)
    try:
        uvloop.run(_run(LocalCluster(nodes, base_dir=base_dir, settings=pairs), control=control))
    except KeyboardInterrupt:
        sys.exit(failures.INTERRUPTED)
    except (NodeEnded, TimeoutError) as error:
        first, _, rest = str(error).partition("\n")
        failures.tell("CLUSTER", first)
        print(rest, file=sys.stderr)
        sys.exit(failures.OTHER)


async def _run(cluster: LocalCluster, *, control: bool) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with cluster:
        if control:
            await _obey(cluster, stopped)
            return
        print(_welcome(cluster), flush=True)
        await stopped.wait()
        print("stopping", flush=True)
        await cluster.stop()


def _welcome(cluster: LocalCluster) -> str:
    lines = [
        f"A cluster of {len(cluster.nodes)} nodes is ready. Data and logs: {cluster.base_dir}",
        "",
        *(
            f"  node {node.node_id}  clients {node.client_endpoint}  metrics"
            f" http://{node.metrics_endpoint}/metrics  pid {node.pid}"
            for node in cluster.nodes.values()
        ),
        "",
        "Talk to it from another terminal:",
        "",
        f"  export QUORUMQ_SERVERS={cluster.servers}",
        "  . .venv/bin/activate",
        "  quorumq cluster status",
        "  quorumq topic create hello --partitions 6",
        "  ls | quorumq produce hello",
        "  quorumq read hello --from earliest",
        "",
        "Ctrl-C ends it.",
    ]
    return "\n".join(lines)


async def _obey(cluster: LocalCluster, stopped: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"ok": True, **_status(cluster)}), flush=True)
    while not stopped.is_set():
        line = (await reader.readline()).decode().split()
        if not line or line[0] == "close":
            return
        try:
            answer = {"ok": True, **await _one(cluster, line[0], line[1:])}
        except (AssertionError, LookupError, NodeEnded, OSError, TimeoutError, ValueError) as error:
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


async def _one(cluster: LocalCluster, verb: str, rest: list[str]) -> dict[str, Any]:
    if verb == "status":
        return _status(cluster)
    if verb == "add":
        return {"node_id": await cluster.add_node()}
    node_id = int(rest[0])
    if verb in ("kill", "pause", "resume", "wipe"):
        getattr(cluster, verb)(node_id)
    elif verb == "stop":
        return {"exit_code": await cluster.stop_node(node_id)}
    elif verb == "start":
        cluster.nodes[node_id].start()
    elif verb == "ready":
        await cluster.wait_ready([node_id])
    else:
        raise ValueError(f"there is no command {verb}")
    return {}


def _status(cluster: LocalCluster) -> dict[str, Any]:
    nodes = {
        str(node.node_id): {
            "pid": node.pid,
            "running": node.is_running,
            "client_endpoint": node.client_endpoint,
            "metrics_endpoint": node.metrics_endpoint,
            "data_dir": str(node.data_dir),
            "log": str(node.log_path),
        }
        for node in cluster.nodes.values()
    }
    return {"servers": cluster.servers, "base_dir": str(cluster.base_dir), "nodes": nodes}
