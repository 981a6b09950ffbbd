"""`quorumq bench`: the same as `python -m bench`. A process of its own, for nothing of the broker
may depend on the benchmarks, and what is measured should be alone in its process anyway."""

from __future__ import annotations

import subprocess
import sys

import click


@click.command(
    "bench",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Measure a cluster of its own; `quorumq bench --help` tells the scenarios."""
    try:
        return subprocess.run([sys.executable, "-m", "bench", *arguments], check=False).returncode
    except KeyboardInterrupt:
        return 130
