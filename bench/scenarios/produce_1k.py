"""produce-1k: as produce, with records of 1 KiB."""

from __future__ import annotations

from bench.scenarios.produce import produce
from bench.setup import Result, Setup


async def run(setup: Setup) -> Result:
    return await produce(setup, record_bytes=1024)
