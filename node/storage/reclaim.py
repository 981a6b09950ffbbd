"""Gives the room of what was deleted back to the disk (house §4.15).

RocksDB drops a blob file of which nothing lives any more. One that still holds a little goes when
that is written again elsewhere: by compactions that new data causes, which then write much again
that has no garbage beside it, or by one of a whole group. Where little is written nothing causes
any: 99 % of a partition can be trimmed, or a topic deleted, and the disk stays as full as it was.
So this task compares what the files take with what the logs hold. While that is too much, it lets
everyday compactions collect, and compacts the groups that deleted most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from cluster.interfaces import StorageError
from node.storage import keys

logger = logging.getLogger(__name__)

_WORTH_BYTES = 1 << 20  # below it a compaction costs more than it gives


class Files(Protocol):
    """What is asked of the engine."""

    def stored_bytes(self) -> int: ...
    def garbage_bytes(self) -> int: ...
    def disk_free_bytes(self) -> int: ...
    async def compact_range(self, begin: bytes, end: bytes) -> None: ...
    async def collect_garbage(self, is_due: bool) -> None: ...


class Log(Protocol):
    """A group's log. `deleted_bytes` counts up and may be set."""

    group_id: int
    deleted_bytes: int

    @property
    def log_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ReclaimOptions:
    """interval_ms           between two looks
    garbage_bytes_max     files may take so much more than 5/4 of what the logs hold
    disk_free_bytes_min   with less room on the disk every megabyte of garbage counts
    """

    interval_ms: int = 10_000
    garbage_bytes_max: int = 128 << 20
    disk_free_bytes_min: int = 1 << 30


class Reclaimer:
    """Compacts one group at a time, the one that deleted most first. What a group holds is written
    again: so not before it has deleted as much, a quarter of it when room is short."""

    def __init__(
        self, files: Files, *, logs: Callable[[], Iterable[Log]], options: ReclaimOptions
    ) -> None:
        self._files = files
        self._logs = logs
        self._options = options
        self._buried: dict[int, int] = {}  # groups that are no longer here -> their bytes
        self._compacted_all = False
        self.compactions = 0

    def buried(self, group_id: int, log_bytes: int) -> None:
        """All that was stored of the group was deleted."""
        self._buried[group_id] = self._buried.get(group_id, 0) + log_bytes

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._options.interval_ms / 1000)
            while await self.look():
                pass

    async def look(self) -> bool:
        """Compact where it is most needed; whether there was anything to do."""
        logs = {log.group_id: log for log in self._logs()}
        short = self._files.disk_free_bytes() < self._options.disk_free_bytes_min
        is_due = self._is_garbage_due(sum(log.log_bytes for log in logs.values()), short=short)
        await self._collect(is_due)
        if not is_due:
            return False
        deleted = dict(self._buried)
        for group_id, log in logs.items():
            if log.deleted_bytes * (4 if short else 1) >= log.log_bytes:
                deleted[group_id] = deleted.get(group_id, 0) + log.deleted_bytes
        group_id = max(deleted, key=deleted.__getitem__, default=0)
        if deleted.get(group_id, 0) >= _WORTH_BYTES:
            self._buried.pop(group_id, None)
            if group_id in logs:
                logs[group_id].deleted_bytes = 0
            await self._compact(*keys.group_bounds(group_id))
            return True
        if self._compacted_all:
            return False
        # Nobody counted what was deleted before this process began.
        self._compacted_all = True
        await self._compact(b"", keys.COMMIT_NUMBER)
        return True

    def _is_garbage_due(self, live_bytes: int, *, short: bool) -> bool:
        """By what the logs hold; where that is much smaller in files, by what these know."""
        stored, known = self._files.stored_bytes(), self._files.garbage_bytes()
        garbage = max(stored - live_bytes, known)
        if short:
            return garbage > _WORTH_BYTES
        live_bytes = min(live_bytes, stored - known)
        return garbage > live_bytes // 4 + self._options.garbage_bytes_max

    async def _collect(self, is_due: bool) -> None:
        try:
            await self._files.collect_garbage(is_due)
        except StorageError as error:
            logger.warning("everyday compactions go on as they did: %s", error)

    async def _compact(self, begin: bytes, end: bytes) -> None:
        self.compactions += 1
        before = self._files.stored_bytes()
        try:
            await self._files.compact_range(begin, end)
        except StorageError as error:
            logger.warning("room is not given back: %s", error)
            return
        logger.info("compacted: %d bytes of files are %d now", before, self._files.stored_bytes())
