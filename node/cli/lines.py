"""The lines of a file or of standard input, for a program that must go on meanwhile."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from typing import BinaryIO

from node.cli import failures

LINE_BYTES_MAX = 16 << 20  # a larger record no topic takes
_CHUNK_BYTES = 1 << 16


async def lines(path: str) -> AsyncIterator[bytes]:
    """Without their ends; what comes after the last end too, if it is not empty. "-" = standard
    input, whose lines come as soon as they are written. Raises CommandFailed."""
    chunks = _chunks_of_input() if path == "-" else _chunks_of_file(_opened(path))
    async for line in _split(chunks):
        yield line


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise failures.CommandFailed(
            "USAGE", f"cannot read {path}: {error.strerror}", exit_code=failures.USAGE
        ) from error


async def _split(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")
        if len(rest) > LINE_BYTES_MAX:
            raise failures.CommandFailed(
                "RECORD_TOO_LARGE", f"a line has more than {LINE_BYTES_MAX} bytes"
            )
    if rest:
        yield rest.removesuffix(b"\r")


async def _chunks_of_file(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


async def _chunks_of_input() -> AsyncIterator[bytes]:
    file = sys.stdin.buffer
    kind = os.fstat(file.fileno()).st_mode
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or file.isatty()):
        async for chunk in _chunks_of_file(file):
            yield chunk
        return
    reader = asyncio.StreamReader(limit=_CHUNK_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    while chunk := await reader.read(_CHUNK_BYTES):
        yield chunk
