"""What processes use, from /proc: client and nodes share the cores, so each is shown."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = resource.getpagesize()
CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Usage:
    """`cpu_percent`: of one core, over the time measured. `rss_mb`: the most that was seen, in
    units of 10^6 bytes."""

    cpu_percent: float
    rss_mb: float


class UsageMeter:
    """From `begin` on. `sample` now and then, so that a peak of memory is seen; a process that was
    restarted meanwhile counts from its start on."""

    def __init__(self, pids: Mapping[int, int]) -> None:
        self._names = {f"node-{node_id}": pid for node_id, pid in pids.items()}
        self._names[CLIENT] = os.getpid()
        self._cpu_s: dict[str, float] = {}
        self._rss: dict[str, int] = {}
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.monotonic()
        self._rss.clear()
        for name, pid in self._names.items():
            self._cpu_s[name] = _cpu_s(pid)
        self.sample()

    def sample(self) -> None:
        for name, pid in self._names.items():
            self._rss[name] = max(self._rss.get(name, 0), _rss_bytes(pid))

    def end(self) -> dict[str, Usage]:
        """By process: `client`, `node-1`, ..."""
        self.sample()
        seconds = time.monotonic() - self._began
        return {
            name: Usage(
                cpu_percent=round(100 * (_cpu_s(pid) - self._cpu_s[name]) / seconds, 1),
                rss_mb=round(self._rss[name] / 1e6, 1),
            )
            for name, pid in self._names.items()
        }


def _cpu_s(pid: int) -> float:
    """User and system time so far; 0 for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            after_name = stat.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(after_name[11]) + int(after_name[12])) / _TICKS_A_SECOND


def _rss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
