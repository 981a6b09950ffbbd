"""What every command does that talks to a cluster: connect, run, and say in one line what went
wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
import uvloop

from node.cli import failures
from node.cli.settings import Settings
from quorumq import Client, connect
from quorumq.errors import QuorumqError

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 10.0
# Reasons of the client library that mean: no answer. What they make of it depends on the command.
_NO_ANSWER = ("TIMEOUT", "DELIVERY_TIMEOUT", "CONNECTION_LOST", "OUTCOME_UNKNOWN", "UNSPECIFIED")
_UNAVAILABLE = ("UNREACHABLE", "UNAVAILABLE", "BUFFER_FULL", "NOT_SENT")


def settings_of(ctx: click.Context) -> Settings:
    assert isinstance(ctx.obj, Settings)
    return ctx.obj


def run(ctx: click.Context, work: Callable[[Client], Awaitable[T]], *, changes: bool = False) -> T:
    """`changes`: without an answer it may have been done. Raises CommandFailed."""
    settings = settings_of(ctx)

    async def connected() -> T:
        timeout_ms = int(min(settings.timeout_s, _CONNECT_TIMEOUT_S) * 1000)
        async with await connect(settings.servers, timeout_ms=timeout_ms) as client:
            client.admin.timeout_ms = int(settings.timeout_s * 1000)
            return await work(client)

    try:
        return uvloop.run(connected())
    except QuorumqError as error:
        raise failed(error, changes=changes) from error
    except ValueError as error:  # an endpoint or a name that the library refuses itself
        raise failures.CommandFailed("USAGE", str(error), exit_code=failures.USAGE) from error


def failed(error: QuorumqError, *, changes: bool) -> failures.CommandFailed:
    said = error.message  # mostly names the first one itself
    violations = "; ".join(f"{name}: {what}" for name, what in error.violations if what not in said)
    message = f"{error.message} ({violations})" if violations else error.message
    code: int | None = None
    if error.reason in _UNAVAILABLE:
        code = failures.UNAVAILABLE
    elif error.reason in _NO_ANSWER:
        unknown = changes and not error.outcome_known
        code = failures.OUTCOME_UNKNOWN if unknown else failures.UNAVAILABLE
    return failures.CommandFailed(error.reason, message, exit_code=code)


def parse_pairs(pairs: tuple[str, ...], *, option: str) -> list[tuple[str, str]]:
    """NAME=VALUE each. Raises click.BadParameter."""
    parsed = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint=option)
        parsed.append((name, value))
    return parsed


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several decorators as one."""

    def apply(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply
