"""`quorumq produce`: each line of a file or of standard input becomes a record."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass

import click

from node.cli import failures
from node.cli.lines import lines
from node.cli.output import Output, shown_bytes
from node.cli.session import failed, parse_pairs, run, settings_of
from quorumq import Client, Producer
from quorumq.errors import BufferFull, InvalidRequest, PartitionNotFound, QuorumqError

_READY_EVERY = 256  # records; lets answers be read and waits for room in the buffer
_PROGRESS_S = 0.5
_AHEAD_S = 0.002  # how far ahead of its rate a producer may be: timers are not exact


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every record has, and how they are sent."""

    key: bytes | None
    key_separator: bytes | None
    headers: list[tuple[str, str]]
    partition: int | None
    rate: float | None
    compression: str | None
    shows_progress: bool

    def keyed(self, line: bytes) -> tuple[bytes | None, bytes]:
        """Key and value of a line."""
        if self.key_separator is None:
            return self.key, line
        before, separator, after = line.partition(self.key_separator)
        return (before, after) if separator else (self.key, line)


@dataclass(slots=True)
class Sent:
    records: int = 0
    value_bytes: int = 0


@click.command("produce")
@click.argument("topic")
@click.argument("file", default="-")
@click.option("--key", help="Key of all records. Default: none.")
@click.option(
    "--key-separator", metavar="TEXT", help="What stands before it in a line is its record's key."
)
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Of all records.")
@click.option("--partition", type=click.IntRange(0), help="Default: by the key.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many records a second."
)
@click.option("--compression", type=click.Choice(["zstd"]), help="Default: none.")
@click.option("--progress/--no-progress", default=None, help="Default: on a terminal.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    topic: str,
    file: str,
    key: str | None,
    key_separator: str | None,
    headers: tuple[str, ...],
    partition: int | None,
    rate: float | None,
    compression: str | None,
    progress: bool | None,
) -> None:
    """Produce the lines of FILE, or of standard input, to TOPIC.

    Each line is stored once, in order within its partition, however often it has to be sent.
    Returns when all of them are acknowledged, with what was sent. A line that no record may be ends
    it: those before it are stored, those after it are not.
    """
    if key_separator == "":
        raise click.UsageError("--key-separator is empty")
    wanted = Wanted(
        key=None if key is None else key.encode(),
        key_separator=None if key_separator is None else key_separator.encode(),
        headers=parse_pairs(headers, option="--header"),
        partition=partition,
        rate=rate,
        compression=compression,
        shows_progress=sys.stderr.isatty() if progress is None else progress,
    )
    timeout_ms = int(settings_of(ctx).timeout_s * 1000)

    async def work(client: Client) -> tuple[Sent, float]:
        began = time.monotonic()
        producer = client.producer(
            topic,
            compression=wanted.compression,
            delivery_timeout_ms=timeout_ms,
            open_timeout_ms=timeout_ms,
        )
        try:
            await producer.start()
        except QuorumqError as error:
            raise failed(error, changes=False) from error  # no record was sent
        async with producer:
            sent = await _produce(producer, file, wanted)
            await producer.flush()
        return sent, time.monotonic() - began

    sent, seconds = run(ctx, work, changes=True)
    shown = {
        "topic": topic,
        "records": sent.records,
        "bytes": sent.value_bytes,
        "seconds": round(seconds, 3),
        "records_per_s": round(sent.records / max(seconds, 0.001)),
    }
    Output(settings_of(ctx).output).one(shown)


async def _produce(producer: Producer, file: str, wanted: Wanted) -> Sent:
    loop = asyncio.get_running_loop()
    sent, began, shown_at = Sent(), loop.time(), 0.0
    async for line in lines(file):
        if wanted.rate is not None:
            ahead_s = began + sent.records / wanted.rate - loop.time()
            if ahead_s > _AHEAD_S:
                await asyncio.sleep(ahead_s)
        if sent.records % _READY_EVERY == 0:
            await producer.ready()
        key, value = wanted.keyed(line)
        try:
            producer.send(value, key=key, headers=wanted.headers, partition=wanted.partition)
        except BufferFull:
            await producer.ready()
            producer.send(value, key=key, headers=wanted.headers, partition=wanted.partition)
        except (InvalidRequest, PartitionNotFound) as error:
            await producer.flush()
            raise failures.CommandFailed(
                error.reason,
                f"line {sent.records + 1}: {error.message}; {sent.records} before it are stored",
            ) from error
        sent.records += 1
        sent.value_bytes += len(value)
        if wanted.shows_progress and loop.time() - shown_at >= _PROGRESS_S:
            shown_at = loop.time()
            _progress(sent, shown_at - began)
    if wanted.shows_progress:
        _progress(sent, loop.time() - began)
        print(file=sys.stderr)
    return sent


def _progress(sent: Sent, seconds: float) -> None:
    rate = sent.records / max(seconds, 0.001)
    text = f"{sent.records:,} records, {shown_bytes(sent.value_bytes)}, {rate:,.0f} a second"
    print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)
