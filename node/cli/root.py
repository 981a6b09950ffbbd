"""`quorumq`: the group of commands and what is common to all of them.

Commands are imported when they are called: `quorumq serve` has no use for the client, and `--help`
none for gRPC.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from node.cli import failures
from node.cli.settings import Settings

COMMANDS = {
    "serve": ("node.cli.serve", "Run a node."),
    "topic": ("node.cli.topics", "Create, list, describe, alter and delete topics."),
    "produce": ("node.cli.produce", "Produce the lines of a file or of standard input."),
    "read": ("node.cli.read", "Read records of a topic."),
    "record": ("node.cli.record", "Look at one record."),
    "cluster": ("node.cli.cluster", "See and change the cluster."),
    "bench": ("node.cli.bench", "Measure a cluster."),
}


class LazyCommands(click.Group):
    """Each module has its command as `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--server",
    "servers",
    metavar="HOST:PORT,...",
    envvar="QUORUMQ_SERVERS",
    default="127.0.0.1:9400",
    show_default=True,
    show_envvar=True,
    help="Nodes to talk to; any of them will do.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "jsonl"]),
    default="table",
    show_default=True,
    help="table for people, json for one document, jsonl for one line an item.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a request may take.",
)
@click.version_option(package_name="quorumq", prog_name="quorumq")
@click.pass_context
def cli(ctx: click.Context, servers: str, output: str, timeout_s: float) -> None:
    """quorumq, a replicated message broker.

    Errors are one line on standard error, `error: REASON: message`. Exit codes: 0 done, 2 usage, 3
    not found, 4 refused, 5 unavailable or timed out, 6 outcome unknown, 1 any other failure.
    """
    ctx.obj = Settings(servers=servers, output=output, timeout_s=timeout_s)


def run(arguments: list[str] | None = None) -> int:
    """The exit code; what went wrong has been said by then."""
    # gRPC's own lines about connections that come and go would stand between ours. Its older way of
    # doing IO has the thread that polls read and write too, one thread switch a message less than
    # its event engine. Both are read when gRPC is imported, which the commands do.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
    try:
        result: Any = cli.main(arguments, prog_name="quorumq", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone (`quorumq read | head`): nothing is wrong. What is left
        # in the buffer would be written, and complained about, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failures.OK
    except (KeyboardInterrupt, click.Abort):
        return failures.INTERRUPTED
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        context = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        )
        see = f" (see {context} --help)" if context else ""
        failures.tell("USAGE", f"{error.format_message()}{see}")
        return failures.USAGE
    except failures.CommandFailed as error:
        failures.tell(error.reason, error.message)
        return error.exit_code
    return result if isinstance(result, int) else failures.OK


def main() -> None:
    sys.exit(run())
