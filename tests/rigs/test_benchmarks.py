"""Every benchmark measures, on real processes, and nothing fails: small runs, no figure judged."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from bench.targets import SCENARIOS


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_scenario_measures_what_is_asked_and_nothing_fails(scenario: str) -> None:
    small = ["--seconds", "2", "--warmup", "0.5", "--kills", "1", "--scale", "0.02"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", scenario, "--json", *small),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        told, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()  # its nodes end with it
            await process.wait()
    assert process.returncode == 0, errors.decode()
    line = json.loads(told)
    assert line["failures"] == 0
    assert line["ok"] in (True, False), f"a figure is missing of {line['target']}"
    assert all(line[figure] > 0 for figure in line["target"])
    machine = line["machine"]
    assert all(machine[figure] > 0 for figure in ("echo_p50_ms", "echo_per_s", "flush_p50_ms"))
