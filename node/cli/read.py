"""`quorumq read`: records as they lie in the log, to the end or for ever."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from datetime import datetime

import click

from node.cli import failures
from node.cli.output import record_dict
from node.cli.session import failed, run, settings_of
from quorumq import Client, Record, Start, Time
from quorumq.errors import Corrupt, RecordTooLarge

_MESSAGE_BYTES_MAX = 18 << 20  # the largest record there may be


def parse_start(ctx: click.Context, param: click.Parameter, value: str) -> Start:
    """Raises click.BadParameter."""
    match value:
        case "earliest":
            return "earliest"
        case "latest":
            return "latest"
    if value.isdecimal():
        return int(value)
    try:
        moment = datetime.fromisoformat(value).timestamp()
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is none of: earliest, latest, an offset, a time such as"
            " 2026-01-31T12:00 (local) or 2026-01-31T12:00Z",
            ctx,
            param,
        ) from None
    if moment < 0:
        raise click.BadParameter(f"{value!r} is before 1970", ctx, param)
    return Time(int(moment * 1000))


@click.command("read")
@click.argument("topic")
@click.option(
    "--from",
    "start",
    callback=parse_start,
    default="earliest",
    show_default=True,
    metavar="START",
    help="earliest, latest, an offset, or a time (ISO 8601).",
)
@click.option(
    "--partition",
    "partitions",
    type=click.IntRange(0),
    multiple=True,
    help="Only this one; may be given several times.",
)
@click.option("--follow", is_flag=True, help="Wait for new records at the end.")
@click.option("--count", type=click.IntRange(1), help="End after so many records.")
@click.option("--by-created", is_flag=True, help="A start time means the records' own timestamps.")
@click.option("--value", "value_only", is_flag=True, help="Nothing but values, one a line.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    topic: str,
    start: Start,
    partitions: tuple[int, ...],
    follow: bool,
    count: int | None,
    by_created: bool,
    value_only: bool,
) -> None:
    """Read records of TOPIC, by default all there are.

    The table form is a line a record: partition:offset, key, value, with tabs between them. A
    record that cannot be read is told on standard error, and the rest is read all the same; the
    exit code is then not 0.
    """
    settings = settings_of(ctx)
    printer = Printer(_VALUE if value_only else settings.output)

    async def work(client: Client) -> failures.CommandFailed | None:
        trouble: failures.CommandFailed | None = None
        reader = client.reader(
            topic,
            start=start,
            partitions=partitions or None,
            follow=follow,
            by_created=by_created,
            max_message_bytes=_MESSAGE_BYTES_MAX,
            timeout_ms=int(settings.timeout_s * 1000),
        )
        left = count
        async with reader:
            batches = reader.batches()
            while left is None or left > 0:
                try:
                    batch = await anext(batches, None)
                except (Corrupt, RecordTooLarge) as error:
                    trouble = failed(error, changes=False)
                    failures.tell(trouble.reason, trouble.message)
                    batches = reader.batches()  # goes on behind it
                    continue
                if batch is None:
                    break
                records = batch.records()[:left]
                printer.print(records)
                left = None if left is None else left - len(records)
        return trouble

    try:
        trouble = run(ctx, work)
    finally:
        printer.end()
    if trouble is not None:
        ctx.exit(trouble.exit_code)


_VALUE = "value"


class Printer:
    """Records as they come, flushed by the batch. `json` is one array over all of them."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._line = _LINES[form]
        self._printed = 0

    def print(self, records: list[Record]) -> None:
        out = sys.stdout.buffer
        for record in records:
            if self._form == "json":
                out.write(b",\n" if self._printed else b"[\n")
            self._printed += 1
            out.write(self._line(record))
        out.flush()

    def end(self) -> None:
        if self._form == "json":
            sys.stdout.buffer.write(b"\n]\n" if self._printed else b"[]\n")


def _value_line(record: Record) -> bytes:
    return (record.value or b"") + b"\n"


def _table_line(record: Record) -> bytes:
    place = f"{record.partition}:{record.offset}"
    return f"{place}\t{_shown(record.key)}\t{_shown(record.value)}\n".encode()


def _shown(data: bytes | None) -> str:
    """Text where it is text without anything that would break the line."""
    if data is None:
        return "-"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(data).decode()}"
    return text if text.isprintable() else json.dumps(text, ensure_ascii=False)


def _json_line(record: Record) -> bytes:
    return json.dumps(record_dict(record), ensure_ascii=False).encode()


_LINES: dict[str, Callable[[Record], bytes]] = {
    _VALUE: _value_line,
    "table": _table_line,
    "json": _json_line,
    "jsonl": lambda record: _json_line(record) + b"\n",
}
