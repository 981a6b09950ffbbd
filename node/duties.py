"""What the leaders of partitions do besides answering: look what is due, propose it as a command.

Apply only checks and executes (house §4.4); the looking is here, on the leader, at intervals. All
of it is level-triggered: what a lost leader did not get to, the next one finds still due.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from cluster.group import OutcomeUnknown, ProposalLost
from cluster.raft.errors import RaftRefused
from node import codec
from node.partition.commands import Command, Settings
from node.partitions import LocalPartition, Partitions

logger = logging.getLogger(__name__)

_SLICE = 32  # partitions looked at before the loop gets its turn


class TopicSettings(Protocol):
    """0 = no limit. `machine` is what the partition's machine is to know, with its version."""

    @property
    def retention_ms(self) -> int: ...
    @property
    def retention_bytes(self) -> int: ...
    @property
    def machine(self) -> Settings: ...


class Duties:
    """`settings_of(topic number)`: None for a topic that was deleted meanwhile. `is_deleted`: of a
    subscription, by its identity."""

    def __init__(
        self,
        partitions: Partitions,
        *,
        settings_of: Callable[[int], TopicSettings | None],
        is_deleted: Callable[[str], bool],
        interval_ms: int,
    ) -> None:
        self._partitions = partitions
        self._settings_of = settings_of
        self._is_deleted = is_deleted
        self._interval_s = interval_ms / 1000
        self.trimmed = 0  # Trim commands proposed here, for metrics

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            for number, local in enumerate(self._partitions.led()):
                if local.group.is_leader:
                    self.look_at(local)
                if number % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)

    def look_at(self, local: LocalPartition) -> None:
        """Propose what is due of one partition led here."""
        settings = self._settings_of(local.topic)
        if settings is None:
            return
        replica = local.replica
        self._propose(local, replica.due_configure(settings.machine))
        if settings.retention_ms or settings.retention_bytes:
            trim = replica.due_trim(
                retention_ms=settings.retention_ms, retention_bytes=settings.retention_bytes
            )
            self.trimmed += trim is not None
            self._propose(local, trim)
        self._propose(local, replica.due_expiry())
        self._propose(local, replica.due_drop(self._is_deleted))

    def _propose(self, local: LocalPartition, command: Command | None) -> None:
        """Nobody waits for it: what came to nothing is due again at the next look."""
        if command is None:
            return
        try:
            future = local.group.propose(codec.encode(command), expected_term=local.group.term)
        except RaftRefused as error:
            logger.debug("group %d: %s not proposed: %s", local.group_id, command, error)
            return
        future.add_done_callback(_read_outcome)


def _read_outcome(future: asyncio.Future[object]) -> None:
    if not future.cancelled():
        error = future.exception()
        if error is not None and not isinstance(error, ProposalLost | OutcomeUnknown):
            logger.error("a duty failed: %r", error)
