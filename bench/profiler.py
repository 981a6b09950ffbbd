"""Where processes spend their time: py-spy's samples as collapsed stacks, and the top functions.

py-spy looks at a process from outside and stops it for each sample: figures taken meanwhile are
not figures. Threads that hold the interpreter's lock count and no others: it is what a node runs
out of first. (Whether a thread runs or waits py-spy cannot tell in some virtual machines: sampling
all threads would mostly find epoll_wait.)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLES_A_SECOND = 250
_SHOWN = 40


class NoProfiler(Exception):
    """py-spy is not installed, or may not look at processes here."""


@dataclass(frozen=True, slots=True)
class Row:
    """A function's share of the samples, in percent: on top of the stack, and anywhere in it."""

    own: float
    total: float
    function: str


class Profiler:
    """Writes `<name>.collapsed` and `<name>.top.txt` into `folder` for each process recorded.
    Raises NoProfiler without py-spy."""

    def __init__(self, folder: Path, scenario: str) -> None:
        beside_us = Path(sys.executable).with_name("py-spy")
        found = str(beside_us) if beside_us.exists() else shutil.which("py-spy")
        if found is None:
            raise NoProfiler("py-spy is not installed: it is one of the dev dependencies")
        self.client_pid = os.getpid()
        self.reports: list[Path] = []
        self._command = found
        self._folder = folder
        self._scenario = scenario
        folder.mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def recording(self, pids: Mapping[str, int]) -> AsyncIterator[None]:
        """While the block runs. A second recording of the same name replaces the first."""
        started = [(name, await self._start(name, pid)) for name, pid in pids.items()]
        try:
            yield
        finally:
            for _, process in started:
                if process.returncode is None:
                    process.send_signal(signal.SIGINT)  # it then writes what it has
            said = [(await process.communicate())[1] for _, process in started]
        for (name, _), words in zip(started, said, strict=True):
            self._report(name, words.decode(errors="replace"))

    async def _start(self, name: str, pid: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            self._command,
            "record",
            "--pid",
            str(pid),
            "--gil",
            "--rate",
            str(SAMPLES_A_SECOND),
            "--format",
            "raw",
            "--output",
            str(self._stacks(name)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    def _stacks(self, name: str) -> Path:
        return self._folder / f"{self._scenario}-{name}.collapsed"

    def _report(self, name: str, words: str) -> None:
        stacks = self._stacks(name)
        if not stacks.exists():
            raise NoProfiler(f"py-spy recorded nothing of {name}: {' '.join(words.split())}")
        report = self._folder / f"{self._scenario}-{name}.top.txt"
        rows = top_functions(stacks.read_text().splitlines())
        by_total = sorted(rows, key=lambda row: -row.total)
        report.write_text(f"{shown(rows[:_SHOWN])}\n{shown(by_total[:_SHOWN])}")
        if report not in self.reports:
            self.reports.append(report)


def top_functions(collapsed: Iterable[str]) -> list[Row]:
    """Of lines like `outer (a.py:3);inner (b.py:7) 12`, the largest own share first. Lines of one
    function count together, a recursive one once a stack."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in collapsed:
        stack, _, count = line.rpartition(" ")
        functions = [_function(frame) for frame in stack.split(";")]
        own[functions[-1]] += int(count)
        for function in dict.fromkeys(functions):
            total[function] += int(count)
    samples = own.total()
    rows = [
        Row(100 * own[function] / samples, 100 * count / samples, function)
        for function, count in total.items()
    ]
    return sorted(rows, key=lambda row: (-row.own, -row.total, row.function))


def _function(frame: str) -> str:
    """Without its line: `send (producer.py)`."""
    name, parenthesis, place = frame.rpartition(" (")
    return f"{name} ({place.partition(':')[0].removesuffix(')')})" if parenthesis else frame


def shown(rows: Iterable[Row]) -> str:
    lines = [f"{'own %':>6} {'total %':>7}  function"]
    lines += [f"{row.own:>6.1f} {row.total:>7.1f}  {row.function}" for row in rows]
    return "\n".join(lines) + "\n"
