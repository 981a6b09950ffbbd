"""One replica at work: the pure core, its log and checkpoint on the engine, its state machine, and
the callers that wait for it.

Everything here is plain functions called by the host within one turn (cluster/host.py); the only
things that suspend are the callers of `propose` and `read_index`, on futures.

    collect(batch) -> messages     drain the core into the turn's batch
    synced()                       the turn's batch is on disk: release answers
    apply(batch)                   committed entries into the machine, futures answered

A proposal ends in one of three ways: the machine's reply; ProposalLost, when a later term's entry
took its place (certainly not stored); OutcomeUnknown, when this replica skipped its place by a
checkpoint or stopped. Losing leadership ends nothing by itself: the entry may still commit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cluster.interfaces import (
    CheckpointMeta,
    Engine,
    FrozenState,
    LogStore,
    Machine,
    SnapshotStore,
    WriteBatch,
)
from cluster.raft.configuration import Configuration
from cluster.raft.core import RaftCore, Ready
from cluster.raft.errors import NotLeader
from cluster.raft.messages import AppendEntriesReply, Entry, InstallSnapshot, Message
from cluster.raft.state import RaftOptions, RandomSource, Role

logger = logging.getLogger(__name__)


class ProposalLost(Exception):
    """Another entry was committed in this proposal's place: it is certainly not stored."""


class OutcomeUnknown(Exception):
    """Whether the proposal is or will be stored can not be told here."""


class Group:
    """Created by the host. `wanted` is told whenever this group has something for a turn."""

    def __init__(
        self,
        *,
        group_id: int,
        replica_id: int,
        engine: Engine,
        log: LogStore,
        snapshots: SnapshotStore,
        machine: Machine,
        founding: Configuration | None,
        options: RaftOptions,
        random: RandomSource,
        wanted: Callable[[Group], None],
    ) -> None:
        """`founding`: the configuration that the group began with, for replicas that have been
        there from its first entry; None for one that was added later and learns it from the log.
        Raises StorageError."""
        self.group_id = group_id
        self.engine = engine
        self.log = log
        self.snapshots = snapshots
        self.machine = machine
        self._wanted = wanted
        if founding is not None and log.last_index == 0 and not log.configurations[0][1].voters:
            batch = engine.new_batch()
            log.found(batch, founding)
            engine.write(batch)
        meta = snapshots.meta()
        machine.restore(meta, snapshots.segments() if meta else ())
        applied = meta.index if meta else 0
        self.core = RaftCore(
            replica_id=replica_id,
            store=log,
            hard_state=log.hard_state,
            configurations=log.configurations,
            applied_index=applied,
            options=options,
            random=random,
        )
        self.checkpoint_index = applied
        self.entries_since_checkpoint = 0
        self.bytes_since_checkpoint = 0
        self.checkpointing = False
        self.pinned_index: int | None = None  # the log below is being read by a catch-up
        self.failure: BaseException | None = None
        self._pending: dict[int, tuple[int, asyncio.Future[object]]] = {}
        self._reads: list[tuple[int, asyncio.Future[int]]] = []  # (index to apply first, waiter)
        self._unsynced: list[Ready] = []
        self._told_leader_term = 0  # the term in which the machine was told that it leads

    # --- what it is ------------------------------------------------------------------------------

    @property
    def replica_id(self) -> int:
        return self.core.replica_id

    @property
    def term(self) -> int:
        return self.core.term

    @property
    def leader_replica(self) -> int:
        """Replica id of the leader as far as known here, 0 if unknown."""
        return self.core.leader_id

    @property
    def is_leader(self) -> bool:
        """Leads, and has applied the first entry of its term: knows everything committed before."""
        state = self.core.state
        return state.role is Role.LEADER and self._told_leader_term == state.term

    @property
    def configuration(self) -> Configuration:
        return self.core.configuration

    @property
    def configuration_index(self) -> int:
        return self.core.state.configuration_index

    @property
    def last_index(self) -> int:
        return self.core.log.last_index

    @property
    def commit_index(self) -> int:
        return self.core.log.commit_index

    @property
    def applied_index(self) -> int:
        return self.core.log.applied_index

    def match_index(self, replica_id: int) -> int:
        """As known by this leader; 0 when not leading or not a member."""
        progress = self.core.progress.get(replica_id)
        return progress.match_index if progress else 0

    # --- requests --------------------------------------------------------------------------------

    def propose(self, data: bytes, *, expected_term: int = 0) -> asyncio.Future[object]:
        """Replicate one command. Raises NotLeader, Transferring, Throttled at once: certainly not
        stored. The future gives the machine's reply, or ProposalLost, or OutcomeUnknown."""
        if not self.is_leader:
            raise NotLeader("this replica does not lead", leader_id=self.core.leader_id)
        index = self.core.propose([data], expected_term=expected_term)
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._pending[index] = (self.core.term, future)
        self._wanted(self)
        return future

    async def read_index(self) -> int:
        """Linearizable: everything committed anywhere before this call is applied here when it
        returns. Gives the index. Raises NotLeader."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.core.read_index(future)
        self._wanted(self)
        return await future

    def change_learners(self, learners: list[int]) -> int:
        """The index of the configuration entry. Raises NotLeader, Transferring, ChangeRefused."""
        index = self.core.propose_learners(learners)
        self._wanted(self)
        return index

    def change_voters(self, voters: list[int]) -> int:
        """Begin the joint change to `voters`; the index of its first entry. Raises as above."""
        index = self.core.propose_voters(voters)
        self._wanted(self)
        return index

    def transfer_leadership(self, replica_id: int) -> None:
        """Raises NotLeader, ChangeRefused. Returns at once; watch the leader."""
        self.core.transfer_leadership(replica_id)
        self._wanted(self)

    def announce_commit(self) -> None:
        """Tell the followers how far the log is committed, if this replica leads."""
        self.core.announce_commit()
        self._wanted(self)

    def campaign(self) -> None:
        self.core.campaign()
        self._wanted(self)

    def step(self, message: Message) -> None:
        self.core.step(message)
        if type(message) is AppendEntriesReply and self.core.is_at_rest:
            return  # it told nothing that asks for a turn: a majority had answered before
        self._wanted(self)

    # --- one turn --------------------------------------------------------------------------------

    def collect(self, batch: WriteBatch) -> tuple[list[Message], bool, InstallSnapshot | None]:
        """Put what must be stored into the batch: (messages that may leave now, whether the batch
        must be synced for this group, a checkpoint to fetch)."""
        ready = self.core.ready()
        if ready.entries:
            self.log.append(batch, ready.entries)
        if ready.hard_state is not None:
            self.log.put_hard_state(batch, ready.hard_state)
        for context, index in ready.reads:
            assert isinstance(context, asyncio.Future)
            self._reads.append((index, context))
        for context in ready.failed_reads:
            assert isinstance(context, asyncio.Future)
            if not context.done():
                context.set_exception(
                    NotLeader("leadership was lost", leader_id=self.core.leader_id)
                )
        if self._reads:
            self._answer_reads()
        messages, must_sync = ready.messages, ready.must_sync
        if must_sync:
            self._unsynced.append(ready)
        elif ready.after_sync:
            if self._unsynced:
                self._unsynced.append(ready)  # what it says may rest on a write still on its way
            else:
                messages = messages + self._deliver_to_self(ready.after_sync)
        self._follow_leadership()
        return messages, must_sync, ready.install

    def synced(self) -> list[Message]:
        """All batches written so far are on disk. Returns the messages that waited for it."""
        readies, self._unsynced = self._unsynced, []
        messages: list[Message] = []
        for ready in readies:
            self.core.synced(ready)
            messages += ready.after_sync
        return self._deliver_to_self(messages)

    def _deliver_to_self(self, messages: list[Message]) -> list[Message]:
        """A candidate's vote for itself comes back the way every vote does."""
        others = []
        for message in messages:
            if message.to == self.core.replica_id:
                self.core.step(message)
                self._wanted(self)
            else:
                others.append(message)
        return others

    def apply(self, batch: WriteBatch) -> None:
        """Apply committed entries, bounded by apply_bytes_max; there may be more after it."""
        entries = self.core.take_committed()
        if not entries:
            return
        replies = self.machine.apply(entries, batch)
        assert len(replies) == len(entries), f"{len(replies)} replies to {len(entries)} entries"
        self.core.applied(entries[-1].index)
        self.entries_since_checkpoint += len(entries)
        pending = self._pending
        for entry, reply in zip(entries, replies, strict=True):
            self.bytes_since_checkpoint += len(entry.data)
            if pending:
                self._answer(entry, reply)
        if self._reads:
            self._answer_reads()
        self._follow_leadership()

    def _answer(self, entry: Entry, reply: object) -> None:
        waiting = self._pending.pop(entry.index, None)
        if waiting is not None:
            term, future = waiting
            if term == entry.term:
                if not future.done():
                    future.set_result(reply)
            else:
                _fail(future, ProposalLost(f"index {entry.index} holds an entry of {entry.term}"))
        if self._pending and self.core.role is not Role.LEADER:
            # Terms never fall along a log: what was proposed in an older term, further on, is gone.
            for index in [i for i, (term, _) in self._pending.items() if term < entry.term]:
                _, future = self._pending.pop(index)
                _fail(future, ProposalLost(f"the log went on in term {entry.term}"))

    def _answer_reads(self) -> None:
        applied = self.core.log.applied_index
        waiting = []
        for index, future in self._reads:
            if index > applied:
                waiting.append((index, future))
            elif not future.done():
                future.set_result(index)
        self._reads = waiting

    def _follow_leadership(self) -> None:
        core = self.core
        if core.role is not Role.LEADER:
            if self._told_leader_term:
                self._told_leader_term = 0
                self.machine.leadership_changed(term=core.term, is_leader=False)
        elif (
            self._told_leader_term != core.term and core.log.applied_index >= core.leads_since_index
        ):
            self._told_leader_term = core.term
            logger.info(
                "group %d: replica %d leads in term %d", self.group_id, core.replica_id, core.term
            )
            self.machine.leadership_changed(term=core.term, is_leader=True)

    # --- checkpoints -----------------------------------------------------------------------------

    def freeze(self) -> tuple[CheckpointMeta, FrozenState]:
        """The state as applied now, and what is to be known of it."""
        frozen = self.machine.freeze()
        index = self.core.log.applied_index
        assert frozen.applied_index == index, f"machine at {frozen.applied_index}, core at {index}"
        meta = CheckpointMeta(
            index=index,
            term=self.core.log.term(index),
            configuration=self._configuration_at(index),
            live_index=frozen.live_index,
        )
        self.entries_since_checkpoint = 0
        self.bytes_since_checkpoint = 0
        return meta, frozen

    def _configuration_at(self, index: int) -> Configuration:
        found = Configuration()
        for at, configuration in self.core.state.configurations:
            if at <= index:
                found = configuration
        return found

    def trimmed_bytes(self, *, tail_bytes_max: int) -> int:
        """Stored entries without live records that a checkpoint taken now would let go."""
        below = min(self.machine.live_index(), self._tail_start(tail_bytes_max))
        return self.log.bytes_below(below)

    def _tail_start(self, tail_bytes_max: int) -> int:
        """Entries from here on are kept, trimmed or not, for replicas that are a little behind. All
        have all as long as the group's clocks stand still (rule R20)."""
        if self.core.quiesced:
            return self.core.log.applied_index + 1
        return self.log.tail_start(tail_bytes_max)

    def put_checkpoint(
        self,
        batch: WriteBatch,
        meta: CheckpointMeta,
        changed: list[tuple[bytes, bytes | None]],
        *,
        tail_bytes_max: int,
    ) -> None:
        """Checkpoint, compaction and deletion of what it calls trimmed, in one batch. The log keeps
        what came after the checkpoint before this one, as far as tail_bytes_max goes."""
        self.snapshots.put(batch, meta, changed)
        keep_from = max(self.checkpoint_index, self._tail_start(tail_bytes_max) - 1)
        keep_from = min(keep_from, meta.index)
        if self.pinned_index is not None:
            keep_from = min(keep_from, self.pinned_index)
        if keep_from >= self.log.first_index:
            self.log.compact(batch, keep_from)
        self.log.delete_history(batch, meta.live_index)
        self.checkpoint_index = meta.index

    def install(
        self, batch: WriteBatch, meta: CheckpointMeta, segments: list[tuple[bytes, bytes]]
    ) -> bool:
        """Switch to a fetched checkpoint whose entries are staged. False if it came too late."""
        if not self.core.wants_checkpoint(index=meta.index, term=meta.term):
            self.core.snapshot_refused()
            return False
        self.log.switch(batch, meta, self.core.log.applied_index)
        self.snapshots.replace(batch, meta, segments)
        self.machine.restore(meta, segments)
        self.core.snapshot_installed(index=meta.index, configuration=meta.configuration)
        self.checkpoint_index = meta.index
        self.entries_since_checkpoint = self.bytes_since_checkpoint = 0
        for _, future in self._pending.values():
            _fail(future, OutcomeUnknown("this replica caught up by a checkpoint"))
        self._pending.clear()
        self._wanted(self)
        return True

    def install_failed(self) -> None:
        self.core.snapshot_refused()
        self._wanted(self)

    # --- end -------------------------------------------------------------------------------------

    def stop(self, reason: BaseException) -> None:
        """Nothing more is answered from here. Stored data stays."""
        self.failure = reason
        for _, future in self._pending.values():
            _fail(future, OutcomeUnknown(f"the replica stopped: {reason}"))
        self._pending.clear()
        for _, reader in self._reads:
            if not reader.done():
                reader.set_exception(NotLeader(f"the replica stopped: {reason}"))
        self._reads.clear()
        if self._told_leader_term:
            self._told_leader_term = 0
            self.machine.leadership_changed(term=self.core.term, is_leader=False)

    def drop(self, batch: WriteBatch) -> None:
        self.log.drop(batch)
        self.snapshots.drop(batch)


def _fail(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
