"""A damaged entry is had from another replica, as long as one holds it intact (house §4.3).

Only for committed entries: those are the same everywhere, and an entry's CRC covers its place in
the log, so that nothing else can be taken for it.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Mapping

from cluster.entry_codec import decode_entry, encode_entry
from cluster.group import Group
from cluster.interfaces import CorruptEntry, Engine, PeerError, Transport
from cluster.raft.messages import Entry
from cluster.tasks import TaskGroup

logger = logging.getLogger(__name__)

ENTRY_METHOD = "entry.get"
_REQUEST = struct.Struct("<QQ")  # group id, index
_TIMEOUT_MS = 2_000


class Mender:
    """`node_of` a replica id: 0 if unknown."""

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        tasks: TaskGroup,
        *,
        groups: Mapping[int, Group],
        node_of: Callable[[int], int],
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._tasks = tasks
        self._groups = groups
        self._node_of = node_of
        self._running: dict[tuple[int, int], asyncio.Task[bool]] = {}

    async def mend(self, group: Group, index: int) -> bool:
        """Whether the entry, found damaged or missing here, can be read now. All who ask for it at
        once share one attempt."""
        key = (group.group_id, index)
        task = self._running.get(key)
        if task is None:
            task = self._tasks.start(self._mend(group, index), name=f"mend-{key[0]}-{index}")
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(task)

    def serve(self, request: bytes) -> bytes:
        """A peer's ENTRY_METHOD: the entry as it is stored here. Raises PeerError."""
        try:
            group_id, index = _REQUEST.unpack(request)
        except struct.error as error:
            raise PeerError("BAD_REQUEST", str(error)) from error
        group = self._groups.get(group_id)
        if group is None or group.failure is not None or index > group.applied_index:
            raise PeerError("NOT_FOUND", f"group {group_id}: entry {index} is not applied here")
        try:
            entry = group.log.entry(index)
        except CorruptEntry as error:
            raise PeerError("CORRUPT", str(error)) from error
        if entry is None:
            raise PeerError("NOT_FOUND", f"group {group_id}: entry {index} is not stored here")
        return encode_entry(entry)

    async def _mend(self, group: Group, index: int) -> bool:
        if not 0 < index <= group.applied_index:
            return False
        for member in group.configuration.members():
            node_id = self._node_of(member)
            if member == group.replica_id or not node_id:
                continue
            entry = await self._ask(node_id, group.group_id, index)
            if group.failure is not None:
                return False
            if entry is not None:
                batch = self._engine.new_batch()
                group.log.repair(batch, entry)
                self._engine.write(batch)
                logger.warning(
                    "group %d: entry %d was damaged; node %d had it", group.group_id, index, node_id
                )
                return True
        logger.error("group %d: entry %d is damaged, and no replica has it", group.group_id, index)
        return False

    async def _ask(self, node_id: int, group_id: int, index: int) -> Entry | None:
        request = _REQUEST.pack(group_id, index)
        try:
            answer = await self._transport.call(
                node_id, ENTRY_METHOD, request, timeout_ms=_TIMEOUT_MS
            )
            entry = decode_entry(index, answer)
        except (PeerError, ValueError) as error:
            logger.info("group %d: entry %d: node %d: %s", group_id, index, node_id, error)
            return None
        return entry if entry.is_intact() else None
