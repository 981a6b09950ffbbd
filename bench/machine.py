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
from bench.latencies import Latencies, back_to_back

IN_FLIGHT = 64  # as many as `unary` has
_SECONDS = 1.0
_WARM_UP_S = 0.3
_FLUSHES_S = 0.5
_BLOCK_BYTES, _BLOCKS = 4096, 256
_START_TIMEOUT_S, _END_TIMEOUT_S = 20.0, 5.0


class NoYardstick(Exception):
    """The machine does not even do that; the message says what."""


async def yardstick() -> dict[str, float]:
    """`echo_p50_ms`: of bare gRPC calls of 100 B between two processes, one at a time;
    `echo_per_s`: 64 in flight. `flush_p50_ms`: of 4 KiB written over what a file in the
    folder for temporary files has there, as a node's log is. Takes 3 s. Raises
    NoYardstick and AioRpcError."""
    try:
        flushes = await asyncio.to_thread(_flushes)
    except OSError as error:
        raise NoYardstick(f"a flush in {tempfile.gettempdir()}: {error}") from error
    async with _echo() as call:
        await back_to_back(call, _WARM_UP_S)
        echoes = await back_to_back(call, _SECONDS)
        began = perf_counter()
        many = await asyncio.gather(*(back_to_back(call, _SECONDS) for _ in range(IN_FLIGHT)))
        per_s = sum(map(len, many)) / (perf_counter() - began)
    return {
        "flush_p50_ms": flushes.figures()["p50_ms"],
        "echo_p50_ms": echoes.figures()["p50_ms"],
        "echo_per_s": round(per_s),
    }


def _flushes() -> Latencies:
    latencies = Latencies()
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        file.write(os.urandom(_BLOCK_BYTES * _BLOCKS))
        os.fsync(file.fileno())
        block = os.urandom(_BLOCK_BYTES)
        began = perf_counter()
        end = began + _FLUSHES_S
        while began < end:
            os.pwrite(file.fileno(), block, len(latencies) % _BLOCKS * _BLOCK_BYTES)
            os.fdatasync(file.fileno())
            flushed = perf_counter()
            latencies.add(flushed - began)
            began = flushed
    return latencies


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
        port = await _port(process.stdout)
        options = (("grpc.enable_http_proxy", 0),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                f"/{SERVICE}/{METHOD}"
            )
            body = os.urandom(100)
            yield lambda: method(body, timeout=10)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _port(output: asyncio.StreamReader) -> int:
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            told = await output.readline()
    except TimeoutError:
        raise NoYardstick(f"bench.echo did not serve within {_START_TIMEOUT_S} s") from None
    if not told:
        raise NoYardstick("bench.echo ended before it served")
    return int(told)
