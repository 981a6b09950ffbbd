"""`quorumq record`."""

from __future__ import annotations

import sys

import click

from node.cli.output import Output, record_dict, shown_time
from node.cli.session import run, settings_of
from quorumq import Client, Record


@click.group("record")
def command() -> None:
    """Look at one record."""


@command.command("get")
@click.argument("topic")
@click.argument("partition", type=click.IntRange(0))
@click.argument("offset", type=click.IntRange(0))
@click.option("--value", "value_only", is_flag=True, help="Nothing but the value's bytes.")
@click.pass_context
def get(ctx: click.Context, topic: str, partition: int, offset: int, value_only: bool) -> None:
    """Show the record at OFFSET of PARTITION."""

    async def work(client: Client) -> Record:
        return await client.admin.get_record(topic, partition, offset)

    record = run(ctx, work)
    if value_only:
        sys.stdout.buffer.write(record.value or b"")
        return
    shown = record_dict(record)
    output = Output(settings_of(ctx).output)
    if output.form == "table":
        shown["timestamp"] = shown_time(record.timestamp_ms)
        shown["append_time"] = shown_time(record.append_time_ms)
    output.one(shown)
