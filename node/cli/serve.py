"""`quorumq serve`: run a node until a signal ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import uvloop

from node import config, logs, startup
from node.cli import failures

# Set by node/local_cluster.py to its own process id: the node then dies with it.
PARENT_VARIABLE = "QUORUMQ_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each row of the configuration table."""
    for setting in reversed(config.SETTINGS):
        command = click.option(
            config.flag_of(setting.name),
            setting.name,
            metavar=setting.name.rpartition("_")[2].upper(),
            help=f"{setting.metadata['meaning']} [{config.shown_default(setting)}]".replace(
                "`", ""
            ),
        )(command)
    return command


@click.command("serve")
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="QUORUMQ_CONFIG",
    show_envvar=True,
    help="TOML file of settings; flags and QUORUMQ_* variables win over it.",
)
@_with_settings
def command(config_file: Path | None, **flags: str | None) -> int:
    """Run a node until SIGTERM or SIGINT.

    It then hands its leaderships over, ends its calls and stops; a second signal stops it at once.

    Exit codes: 0 stopped by a signal, 2 contradictory settings, 10 port in use, 11 data folder of
    another node or cluster or of one that is gone, 12 of a newer version, 13 no disk room, 14 data
    folder in use, 15 data folder unusable, 16 storage failed while running, 1 anything else.
    """
    try:
        settings = config.load(flags, os.environ, config_file)
    except config.ConfigError as error:
        raise failures.CommandFailed("CONFIG", str(error), exit_code=startup.EXIT_CONFIG) from None
    _die_with_launcher()
    logs.configure(
        node_id=settings.node_id, log_format=settings.log_format, log_level=settings.log_level
    )
    from node.server import run  # after the checks: it imports the whole broker

    try:
        return uvloop.run(run(settings))
    except startup.StartupError as error:
        raise failures.CommandFailed(error.reason, str(error), exit_code=error.exit_code) from error


def _die_with_launcher() -> None:
    """The kernel kills us when the thread that started us ends. A launcher that died before we
    asked for that shows by our having another parent."""
    launcher = os.environ.get(PARENT_VARIABLE)
    if launcher is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):
        sys.exit(failures.OTHER)
