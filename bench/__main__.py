"""`python -m bench SCENARIO --json`, which is also `quorumq bench SCENARIO`; `all` runs every one,
`profile SCENARIO` tells where the time goes.

Exit codes: 0 measured, whether or not the figures reach their targets; 1 a scenario itself failed
(a produce was refused, a record was lost); 2 usage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a killed node is no news here
# The client as its README advises: one thread switch a message less.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

import click
import grpc.aio
import uvloop

from bench.cluster import ClusterFailed
from bench.lines import short, table
from bench.machine import NoYardstick
from bench.profiler import NoProfiler, Profiler
from bench.run import Options, measure
from bench.targets import SCENARIOS
from quorumq import QuorumqError

_HELP = {"help_option_names": ["-h", "--help"]}
_PROFILED = [name for name in SCENARIOS if name != "failover"]  # its leaders do not live so long
_REPORT_LINES = 16
_DECORATORS = (
    click.option("--json", "as_json", is_flag=True, help="One JSON line instead of a table."),
    click.option("--seconds", type=click.FloatRange(min=1), default=30.0, show_default=True),
    click.option("--warmup", type=click.FloatRange(min=0), default=5.0, show_default=True),
    click.option(
        "--kills", type=click.IntRange(1), help="Times a node is killed. [failover 30, restart 5]"
    ),
    click.option(
        "--scale",
        type=click.FloatRange(min=0.001, max=1),
        default=1.0,
        show_default=True,
        help="Share of the records or partitions that are there first (idle, restart, backlog).",
    ),
    click.option("--nodes", type=click.IntRange(1, 15), default=3, show_default=True),
    click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A node setting."),
    click.option(
        "--nodes-external",
        metavar="HOST:PORT,...",
        default="",
        help="Measure this cluster instead of a new one.",
    ),
)


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    for decorator in reversed(_DECORATORS):
        function = decorator(function)
    return function


@click.group(context_settings=_HELP)
def main() -> None:
    """Measure a cluster of its own on this machine, and print what was measured."""


@main.command("all", context_settings=_HELP)
@_with_options
def all_scenarios(as_json: bool, **given: Any) -> None:
    """Every scenario, a line each."""
    options = _options(**given)
    codes = [_report(name, options, json.dumps if as_json else short) for name in SCENARIOS]
    sys.exit(max(codes))


@main.command("profile", context_settings=_HELP)
@click.argument("scenario", type=click.Choice(_PROFILED))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results/profiles"),
    show_default=True,
    help="Folder for collapsed stacks and top functions.",
)
@_with_options
def profile(scenario: str, output: Path, as_json: bool, **given: Any) -> None:
    """Where the busiest leader and the client spend their time. The figures of such a run are not
    to be compared with others."""
    try:
        profiler = Profiler(output, scenario)
    except NoProfiler as error:
        _tell(error)
        sys.exit(1)
    code = _report(scenario, _options(**given), json.dumps if as_json else short, profiler)
    for path in profiler.reports:
        top = path.read_text().splitlines()[:_REPORT_LINES]
        print(f"\n{path}", *top, sep="\n")
    sys.exit(code)


def _scenario(name: str) -> click.Command:
    @click.command(name, help=SCENARIOS[name].meaning, context_settings=_HELP)
    @_with_options
    def command(as_json: bool, **given: Any) -> None:
        sys.exit(_report(name, _options(**given), json.dumps if as_json else table))

    return command


for _name in SCENARIOS:
    main.add_command(_scenario(_name))


def _options(
    *,
    seconds: float,
    warmup: float,
    kills: int | None,
    scale: float,
    nodes: int,
    settings: tuple[str, ...],
    nodes_external: str,
) -> Options:
    return Options(
        seconds=seconds,
        warmup_s=warmup,
        kills=kills,
        scale=scale,
        nodes=nodes,
        settings=dict(setting.partition("=")[::2] for setting in settings),
        external=nodes_external,
    )


def _report(
    scenario: str,
    options: Options,
    form: Callable[[dict[str, Any]], str],
    profiler: Profiler | None = None,
) -> int:
    """The exit code."""
    failed: Exception | None = None
    interrupted = False  # an except* block cannot exit
    try:
        line = uvloop.run(measure(scenario, options, profiler=profiler))
    except* (ClusterFailed, NoProfiler, NoYardstick, QuorumqError, grpc.aio.AioRpcError) as group:
        failed = _first(group)
    except* KeyboardInterrupt:
        interrupted = True
    if interrupted:
        sys.exit(130)
    if failed is not None:
        _tell(failed, scenario)
        return 1
    print(form(line), flush=True)
    return 1 if line["failures"] else 0


def _first(group: BaseExceptionGroup[Any]) -> Exception:
    first: Any = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, Exception)
    return first


def _tell(error: Exception, scenario: str = "") -> None:
    where = f"{scenario}: " if scenario else ""
    print(f"error: BENCH: {where}{' '.join(str(error).split())}", file=sys.stderr)


if __name__ == "__main__":
    main()
