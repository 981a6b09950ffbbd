"""What processes use, from /proc: client and nodes share the cores, so each is shown."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = resource.getpagesize()
_IDLE = (3, 4)  # of the fields of /proc/stat: idle and waiting for disk
_FIELDS = 8  # the rest, guests, is counted among these already
CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Usage:
    """`cpu_percent`: of one core, over the time measured. `rss_mb`: the most that was seen, in
    units of 10^6 bytes."""

    cpu_percent: float
    rss_mb: float


class UsageMeter:
    """Of processes that live as long as it measures, from `begin` on. `sample` now and then, so
    that a peak of memory is seen."""

    def __init__(self, pids: Mapping[int, int]) -> None:
        self._names = {f"node-{node_id}": pid for node_id, pid in pids.items()}
        self._names[CLIENT] = os.getpid()
        self._cpu_s: dict[str, float] = {}
        self._rss: dict[str, int] = {}
        self._machine_s = 0.0
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.monotonic()
        self._machine_s = machine_cpu_s()
        self._rss.clear()
        for name, pid in self._names.items():
            self._cpu_s[name] = _cpu_s(pid)
        self.sample()

    def sample(self) -> None:
        for name, pid in self._names.items():
            self._rss[name] = max(self._rss.get(name, 0), _rss_bytes(pid))

    def end(self) -> tuple[dict[str, Usage], float]:
        """By process: `client`, `node-1`, ...; and the percent of a core that everything else on
        the machine used meanwhile, what a hypervisor took away included."""
        self.sample()
        seconds = time.monotonic() - self._began
        used = {name: _cpu_s(pid) - self._cpu_s[name] for name, pid in self._names.items()}
        others_s = machine_cpu_s() - self._machine_s - sum(used.values())
        usages = {
            name: Usage(
                cpu_percent=round(100 * used[name] / seconds, 1),
                rss_mb=round(self._rss[name] / 1e6, 1),
            )
            for name in self._names
        }
        return usages, round(100 * max(0.0, others_s) / seconds, 1)


def machine_cpu_s() -> float:
    """Core seconds that were not idle since the machine started."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1 : 1 + _FIELDS]
    busy = sum(int(ticks) for i, ticks in enumerate(fields) if i not in _IDLE)
    return busy / _TICKS_A_SECOND


def _cpu_s(pid: int) -> float:
    """User and system time so far; 0 for a process that is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(after_name[11]) + int(after_name[12])) / _TICKS_A_SECOND


def _rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
