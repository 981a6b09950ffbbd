"""How fast this machine is just now, by what every scenario is made of and no broker can undercut:
a gRPC call that stores nothing, and a flush to the disk."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter

import grpc.aio

from bench.echo import METHOD, SERVICE
from bench.latencies import percentile

IN_FLIGHT = 64  # as many as `unary` has
_SECONDS = 1.0
_WARM_UP_S = 0.3
_FLUSHES = 200
_BLOCK = bytes(4096)


class NoYardstick(Exception):
    """The machine does not even do that; the message says what."""


async def yardstick() -> dict[str, float]:
    """`echo_p50_ms`: of bare gRPC calls of 100 B between two processes, one at a time;
    `echo_per_s`: 64 in flight. `flush_p50_ms`: of 4 KiB appended to a file in the folder for
    temporary files, where the clusters measured have theirs. Takes 3 s. Raises
    NoYardstick and AioRpcError."""
    try:
        figures = {"flush_p50_ms": round(await asyncio.to_thread(_flush_p50_ms), 3)}
    except OSError as error:
        raise NoYardstick(f"a flush in {tempfile.gettempdir()}: {error}") from error
    async with _echo() as call:
        await _calls(call, _WARM_UP_S)
        figures["echo_p50_ms"] = round(percentile(sorted(await _calls(call, _SECONDS)), 50), 3)
        began = perf_counter()
        all_ms = await asyncio.gather(*(_calls(call, _SECONDS) for _ in range(IN_FLIGHT)))
        figures["echo_per_s"] = round(sum(map(len, all_ms)) / (perf_counter() - began))
    return figures


def _flush_p50_ms() -> float:
    took_ms = []
    with tempfile.TemporaryFile(buffering=0) as file:
        for _ in range(_FLUSHES):
            began = perf_counter()
            file.write(_BLOCK)
            os.fdatasync(file.fileno())
            took_ms.append((perf_counter() - began) * 1000)
    return percentile(sorted(took_ms), 50)


@asynccontextmanager
async def _echo() -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.echo"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us: we then close its standard input
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = (await process.stdout.readline()).decode().strip()
        if not port:
            raise NoYardstick(f"bench.echo ended, exit code {await process.wait()}")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                f"/{SERVICE}/{METHOD}"
            )
            body = os.urandom(100)
            yield lambda: method(body, timeout=10)
    finally:
        process.stdin.close()
        await process.wait()


async def _calls(call: Callable[[], Awaitable[bytes]], seconds: float) -> list[float]:
    """Back to back; what each took, in milliseconds."""
    took_ms = []
    began = perf_counter()
    end = began + seconds
    while began < end:
        await call()
        answered = perf_counter()
        took_ms.append((answered - began) * 1000)
        began = answered
    return took_ms
