"""One scenario from beginning to end: a cluster for it, its figures, the line that tells them."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cluster import Cluster, ExternalCluster, LaunchedCluster
from bench.machine import yardstick
from bench.profiler import Profiler
from bench.setup import Result, Setup
from bench.targets import SCENARIOS, judge

REPLICATION_FACTOR_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`kills` None = as the scenario thinks right. `external`: "host:port,..." of a cluster to
    measure instead of a new one of `nodes` nodes, "" = none."""

    seconds: float = 30.0
    warmup_s: float = 5.0
    kills: int | None = None
    scale: float = 1.0
    nodes: int = 3
    settings: Mapping[str, str] = field(default_factory=dict)
    external: str = ""

    def cluster(self) -> Cluster:
        if self.external:
            return ExternalCluster(self.external)
        return LaunchedCluster(nodes=self.nodes, settings=self.settings)


async def measure(
    scenario: str, options: Options, *, profiler: Profiler | None = None
) -> dict[str, Any]:
    """The line of a scenario of bench/targets.py. Raises ClusterFailed, NoProfiler, NoYardstick,
    QuorumqError and AioRpcError, each maybe in an ExceptionGroup."""
    machine = {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
    machine |= await yardstick()
    module = importlib.import_module(f"bench.scenarios.{scenario.replace('-', '_')}")
    async with options.cluster() as cluster:
        setup = Setup(
            cluster=cluster,
            seconds=options.seconds,
            warmup_s=options.warmup_s,
            kills=options.kills,
            scale=options.scale,
            replication_factor=min(options.nodes, REPLICATION_FACTOR_MAX),
            profiler=profiler,
        )
        result: Result = await module.run(setup)
    return _line(scenario, options, result, machine)


def _line(
    scenario: str, options: Options, result: Result, machine: dict[str, Any]
) -> dict[str, Any]:
    figures = dict(result.figures)
    if figures.get("records_per_s") and len(figures.get("processes", ())) > 1:
        figures["cpu_ms_per_record"] = _cpu_ms_per_record(figures)
    if "others_cpu_percent" in figures:
        machine["others_cpu_percent"] = figures.pop("others_cpu_percent")
    return {
        "scenario": scenario,
        "commit": _commit(),
        "config": {
            "nodes": "external" if options.external else options.nodes,
            "settings": dict(options.settings),
            "warmup_s": options.warmup_s,
            "scale": options.scale,
            **result.config,
        },
        "seconds": round(result.seconds, 3),
        **figures,
        "machine": machine,
        "failures": result.failures,
        "target": {target.figure: str(target) for target in SCENARIOS[scenario].targets},
        "ok": judge(scenario, figures, result.failures),
    }


def _cpu_ms_per_record(figures: Mapping[str, Any]) -> float:
    """Of the nodes and the client together: what a busy machine changes least."""
    percent: float = sum(process["cpu_percent"] for process in figures["processes"].values())
    per_s: int = figures["records_per_s"]
    return round(10 * percent / per_s, 4)


def _commit() -> str:
    """Of the tree this runs from; `+` = with changes; empty outside of one."""
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
