"""Catch-up: a checkpoint and the live entries that a replica lacks, fetched from another replica.

The receiver pulls: the leader only tells it to (InstallSnapshot). Entries are staged as they come,
so that a fetch that broke goes on where it stopped, from the same replica or another one: committed
entries are the same everywhere. The checkpoint's segments stay in memory until all is there; then
one batch switches log, checkpoint and machine over (house §4.3, rule R10).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing

from cluster.group import Group
from cluster.interfaces import (
    CatchUpChunk,
    CatchUpRequest,
    CheckpointMeta,
    CorruptEntry,
    Engine,
    EngineSnapshot,
    PeerError,
    Transport,
)
from cluster.raft.messages import Entry, InstallSnapshot
from cluster.tasks import TaskGroup

logger = logging.getLogger(__name__)


class CatchUpServer:
    """Serves at most `served_max` catch-ups at a time; more are refused with BUSY. `mend`: see
    cluster/mending.py."""

    def __init__(
        self,
        engine: Engine,
        *,
        served_max: int,
        chunk_bytes: int,
        mend: Callable[[Group, int], Awaitable[bool]],
    ) -> None:
        self._engine = engine
        self._mend = mend
        self._served_max = served_max
        self._chunk_bytes = chunk_bytes
        self._serving = 0

    async def serve(self, group: Group, request: CatchUpRequest) -> AsyncIterator[CatchUpChunk]:
        """Read through one snapshot of the engine; the log is pinned meanwhile, so that the
        receiver can go on from the checkpoint with ordinary appends."""
        if self._serving >= self._served_max:
            raise PeerError("BUSY", f"{self._serving} catch-ups are being served")
        snapshot = self._engine.snapshot()
        self._serving += 1
        try:
            meta = group.snapshots.meta(snapshot)
            if meta is None:
                raise PeerError("NOT_FOUND", f"group {group.group_id} has no checkpoint here")
            group.pinned_index = meta.index
            yield CatchUpChunk(meta=meta)
            above = max(request.applied_index, request.staged_index)
            async with aclosing(self._entry_chunks(group, snapshot, above)) as chunks:
                async for chunk in chunks:
                    yield chunk
            for chunk in self._segment_chunks(group, snapshot):
                yield chunk
            yield CatchUpChunk(done=True)
        finally:
            self._serving -= 1
            group.pinned_index = None
            snapshot.close()

    async def _entry_chunks(
        self, group: Group, snapshot: EngineSnapshot, above: int
    ) -> AsyncGenerator[CatchUpChunk, None]:
        """Entries that hold live records, each with its derived row."""
        entries: list[Entry] = []
        rows: list[tuple[bytes, bytes]] = []
        size = 0
        for index, key, value in group.machine.history(snapshot, above):
            entry = await self._entry(group, snapshot, index)
            entries.append(entry)
            rows.append((key, value))
            size += len(entry.data)
            if size >= self._chunk_bytes:
                yield CatchUpChunk(entries=entries, rows=rows)
                entries, rows, size = [], [], 0
        if entries:
            yield CatchUpChunk(entries=entries, rows=rows)

    async def _entry(self, group: Group, snapshot: EngineSnapshot, index: int) -> Entry:
        """Raises PeerError when it is damaged and no replica has it."""
        try:
            entry = group.log.entry(index, snapshot)
        except CorruptEntry:
            entry = None
        if entry is None and await self._mend(group, index):
            entry = group.log.entry(index)  # what was mended now is not in the snapshot
        if entry is None:
            raise PeerError("CORRUPT", f"group {group.group_id}: live entry {index} is damaged")
        return entry

    def _segment_chunks(self, group: Group, snapshot: EngineSnapshot) -> Iterator[CatchUpChunk]:
        part: list[tuple[bytes, bytes]] = []
        size = 0
        for name, data in group.snapshots.segments(snapshot):
            part.append((name, data))
            size += len(data)
            if size >= self._chunk_bytes:
                yield CatchUpChunk(segments=part)
                part, size = [], 0
        if part:
            yield CatchUpChunk(segments=part)


class CatchUpFetcher:
    """Fetches what the leaders of this node's replicas told them to, `fetched_max` at a time. A
    fetch is tried again, with a growing pause, as long as the replica still wants it."""

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        tasks: TaskGroup,
        *,
        fetched_max: int,
        node_of: Callable[[int], int],
        installed: Callable[[Group], None],
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._tasks = tasks
        self._slots = asyncio.Semaphore(fetched_max)
        self._node_of = node_of
        self._installed = installed
        self._running: dict[int, asyncio.Task[None]] = {}

    def fetch(self, group: Group) -> None:
        """The group's core has an `install` order. At most one fetch a group."""
        running = self._running.get(group.group_id)
        if running is None or running.done():
            self._running[group.group_id] = self._tasks.start(
                self._fetch(group), name=f"catch-up-{group.group_id}"
            )

    async def _fetch(self, group: Group) -> None:
        pause_s = 0.1
        async with self._slots:
            while group.failure is None and (order := group.core.state.install) is not None:
                try:
                    await self._fetch_once(group, order)
                except PeerError as error:
                    logger.warning("group %d: catch-up: %s", group.group_id, error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, 2.0)

    async def _fetch_once(self, group: Group, order: InstallSnapshot) -> None:
        node_id = self._node_of(order.sender)
        if not node_id:
            raise PeerError("UNREACHABLE", f"nobody knows where replica {order.sender} is")
        request = CatchUpRequest(
            group_id=group.group_id,
            from_replica=order.sender,
            to_replica=group.replica_id,
            applied_index=group.applied_index,
            staged_index=group.log.staged_index,
        )
        meta: CheckpointMeta | None = None
        segments: list[tuple[bytes, bytes]] = []
        async for chunk in self._transport.fetch_catch_up(node_id, request):
            if group.failure is not None:
                return
            if chunk.meta is not None:
                meta = chunk.meta
            elif chunk.entries:
                if self._engine.pressure >= 1.0:
                    raise PeerError("BUSY", "the disk here is behind")
                self._stage(group, chunk)
            elif chunk.done:
                if meta is None or meta.index < order.snapshot_index:
                    raise PeerError("STALE", f"checkpoint {meta} for {order}")
                self._switch(group, meta, segments)
                return
            else:
                segments.extend(chunk.segments)
        raise PeerError("BROKEN", "the catch-up ended before it was done")

    def _stage(self, group: Group, chunk: CatchUpChunk) -> None:
        batch = self._engine.new_batch()
        group.log.stage(batch, chunk.entries)
        for key, value in chunk.rows:
            # Rows of committed entries are the same everywhere and lie beyond what this replica
            # has applied: nobody reads them before the switch.
            batch.put(key, value)
        self._engine.write(batch)

    def _switch(
        self, group: Group, meta: CheckpointMeta, segments: list[tuple[bytes, bytes]]
    ) -> None:
        batch = self._engine.new_batch()
        if group.install(batch, meta, segments):
            logger.info("group %d: caught up to %d by a checkpoint", group.group_id, meta.index)
        self._engine.write(batch)
        self._installed(group)
