"""`python -m bench SCENARIO --json`, which is also `quorumq bench SCENARIO`.

Exit codes: 0 measured, 1 the scenario itself failed (a produce was refused, a record was lost), 2
usage.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a killed node is no news here

import click
import uvloop

from bench.cluster import Cluster, ClusterFailed, ExternalCluster, LaunchedCluster
from bench.setup import Result, Setup
from quorumq.errors import QuorumqError

SCENARIOS = {
    "latency": "one durable produce at a time, 100 B",
    "produce": "one producer, 100 B records, 6 partitions",
    "produce-1k": "the same, 1 KiB",
    "unary": "64 plain stubs, one record a call, through any node",
    "failover": "leader killed: time to the partition's next ack",
    "transfer": "leaderships handed over under load",
    "idle": "300 partitions, no traffic",
    "restart": "a node with 1,000,000 records is killed and started",
    "backlog": "1 GB stored, read slowly from the start while producing",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenario", type=click.Choice(list(SCENARIOS)))
@click.option("--json", "as_json", is_flag=True, help="One JSON line instead of a table.")
@click.option("--seconds", type=click.FloatRange(min=1), default=30.0, show_default=True)
@click.option("--warmup", type=click.FloatRange(min=0), default=5.0, show_default=True)
@click.option(
    "--kills", type=click.IntRange(1), help="Times a node is killed. [failover 30, restart 5]"
)
@click.option("--nodes", type=click.IntRange(1, 15), default=3, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A node setting.")
@click.option(
    "--nodes-external", metavar="HOST:PORT,...", help="Measure this cluster instead of a new one."
)
def main(
    scenario: str,
    as_json: bool,
    seconds: float,
    warmup: float,
    kills: int | None,
    nodes: int,
    settings: tuple[str, ...],
    nodes_external: str | None,
) -> None:
    """Run SCENARIO against a cluster of its own on this machine, and print what was measured."""
    pairs = dict(setting.partition("=")[::2] for setting in settings)
    cluster: Cluster = (
        ExternalCluster(nodes_external)
        if nodes_external
        else LaunchedCluster(nodes=nodes, settings=pairs)
    )
    try:
        result = uvloop.run(
            _measure(
                scenario,
                cluster,
                min(nodes, 3),
                seconds=seconds,
                warmup_s=warmup,
                kills=kills or 0,
            )
        )
    except (ClusterFailed, QuorumqError) as error:
        print(f"error: BENCH: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    line = {
        "scenario": scenario,
        "commit": _commit(),
        "config": {
            "nodes": "external" if nodes_external else nodes,
            "settings": pairs,
            "warmup_s": warmup,
            **result.config,
        },
        "seconds": round(result.seconds, 3),
        **result.figures,
        "failures": result.failures,
    }
    print(json.dumps(line) if as_json else _table(line), flush=True)
    sys.exit(1 if result.failures else 0)


async def _measure(
    scenario: str, cluster: Cluster, factor: int, *, seconds: float, warmup_s: float, kills: int
) -> Result:
    module = importlib.import_module(f"bench.scenarios.{scenario.replace('-', '_')}")
    async with cluster:
        setup = Setup(cluster, seconds, warmup_s, kills, factor)
        result: Result = await module.run(setup)
        return result


def _commit() -> str:
    """Of the tree this runs from; `+` = with changes; empty outside of one."""
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _table(line: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    for name, value in line.items():
        if isinstance(value, dict):
            rows += [(f"{name} {key}", _shown(inner)) for key, inner in value.items()]
        else:
            rows.append((name, _shown(value)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    main()
