"""Checkpoints of the machines' state: due by entries or bytes applied, built in short slices
between turns, written in one batch with the compaction and the deletions that they allow.
"""

from __future__ import annotations

import asyncio

from cluster.group import Group
from cluster.interfaces import Engine
from cluster.tasks import TaskGroup


class Checkpointer:
    def __init__(
        self, engine: Engine, tasks: TaskGroup, *, entries_max: int, bytes_max: int
    ) -> None:
        self._engine = engine
        self._tasks = tasks
        self._entries_max = entries_max
        self._bytes_max = bytes_max

    def consider(self, group: Group) -> None:
        """Start a checkpoint of what is applied now, if one is due and none is being built."""
        if group.checkpointing or group.failure is not None:
            return
        due = (
            group.entries_since_checkpoint >= self._entries_max
            or group.bytes_since_checkpoint >= self._bytes_max
        )
        if due:
            self.begin(group)

    def begin(self, group: Group) -> asyncio.Task[None]:
        group.checkpointing = True
        return self._tasks.start(self._build(group), name=f"checkpoint-{group.group_id}")

    async def _build(self, group: Group) -> None:
        """Between turns machine and core are at the same index, whenever this task gets to run."""
        try:
            meta, frozen = group.freeze()
            changed: list[tuple[bytes, bytes | None]] = []
            for segment in frozen.changed_segments():
                changed.append(segment)
                await asyncio.sleep(0)  # others' turns come first; each slice is <= 5 ms
            if group.failure is not None or group.checkpoint_index > meta.index:
                return  # stopped, or overtaken by a catch-up
            batch = self._engine.new_batch()
            group.put_checkpoint(batch, meta, changed)
            self._engine.write(batch)
        finally:
            group.checkpointing = False
