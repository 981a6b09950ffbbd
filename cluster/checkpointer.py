"""Checkpoints of the machines' state: due by entries or bytes applied, or by what they allow to be
deleted; built in short slices between turns, written in one batch with compaction and deletions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from cluster.group import Group
from cluster.interfaces import Engine
from cluster.tasks import TaskGroup

_SWEEP_TICKS = 200  # in which every group is looked at once


class Checkpointer:
    def __init__(
        self,
        engine: Engine,
        tasks: TaskGroup,
        *,
        entries_max: int,
        bytes_max: int,
        tail_bytes_max: int,
        trimmed_bytes_max: int,
    ) -> None:
        """See HostOptions."""
        self._engine = engine
        self._tasks = tasks
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._tail_bytes_max = tail_bytes_max
        self._trimmed_bytes_max = trimmed_bytes_max
        self._to_look_at: list[Group] = []

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

    def sweep(self, groups: Mapping[int, Group]) -> None:
        """Called each tick, looks at a few: a group to which nothing is appended any more reaches
        none of the limits above, and would keep what was trimmed for ever."""
        if not self._to_look_at:
            self._to_look_at = list(groups.values())
        for group in self._to_look_at[: len(groups) // _SWEEP_TICKS + 1]:
            if group.checkpointing or group.failure is not None:
                continue
            trimmed_bytes = group.trimmed_bytes(tail_bytes_max=self._tail_bytes_max)
            if trimmed_bytes > self._trimmed_bytes_max:
                self.begin(group)
        del self._to_look_at[: len(groups) // _SWEEP_TICKS + 1]

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
            group.put_checkpoint(batch, meta, changed, tail_bytes_max=self._tail_bytes_max)
            self._engine.write(batch)
        finally:
            group.checkpointing = False
