"""All replicas of a node: one clock, one group commit, one envelope a peer and turn.

A *turn* drains every group that has something: its entries and hard state go into ONE write batch,
its messages into one envelope for each peer. Then one flush makes the batch durable for all groups
(house rule: one group commit a node). While a flush is under way turns only apply what is
committed; what arrives meanwhile shares the next batch. So the batch grows with the load, and a
node whose disk hangs stops speaking as a leader, whom the others then replace.

    messages, proposals --> _want(group) --> turn: collect -> apply -> write -> send -> flush
                                               ^                                          |
                                               +----------------- synced -----------------+
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from cluster.announcer import CommitAnnouncer
from cluster.checkpointer import Checkpointer
from cluster.group import Group
from cluster.host_options import HostOptions
from cluster.interfaces import (
    CatchUpChunk,
    CatchUpRequest,
    Clock,
    CorruptEntry,
    Engine,
    Envelope,
    LogStore,
    Machine,
    NodeBeat,
    Peer,
    PeerError,
    SnapshotStore,
    StorageError,
    Transport,
    WriteBatch,
)
from cluster.mending import Mender
from cluster.peers import Peers
from cluster.raft.configuration import Configuration
from cluster.raft.messages import AppendEntries, Message
from cluster.raft.state import RaftOptions, RandomSource
from cluster.snapshot import CatchUpFetcher, CatchUpServer
from cluster.tasks import TaskGroup
from cluster.wire import data_bytes

logger = logging.getLogger(__name__)


class Host:
    """Owns the node's groups; the half of `cluster.interfaces.Receiver` that is about groups.
    `failed` is told once of an error that must stop the process (a failed disk), with its reason.
    """

    def __init__(
        self,
        *,
        node_id: int,
        engine: Engine,
        transport: Transport,
        clock: Clock,
        random: RandomSource,
        options: HostOptions,
        failed: Callable[[BaseException], None],
    ) -> None:
        self.node_id = node_id
        self.engine = engine
        self.transport = transport
        self.clock = clock
        self.options = options
        self.groups: dict[int, Group] = {}
        self.peers = Peers(node_id, silence_ticks=options.peer_silence_ticks)
        self._reachable: dict[int, None] = {}
        self._random = random
        self._failed = failed
        self._tasks = TaskGroup(f"host-{node_id}", on_failure=self._task_failed)
        self._wanted: dict[int, Group] = {}  # groups with something for the next turn
        self._awake: dict[int, Group] = {}  # groups whose clocks run
        self._collected: list[Group] = []  # groups in the batch that is being flushed
        self._turn_scheduled = self._flushing = False
        self._flush_wanted = asyncio.Event()
        self._want_durable: list[Callable[[], None]] = []  # to be called after the next flush
        self._become_durable: list[Callable[[], None]] = []  # after the one under way
        self._outbox: dict[int, list[tuple[int, Message]]] = {}
        self._posted_bytes: dict[int, int] = {}  # of entries in the outbox, by node
        self._ticks = 0
        self._reluctant = self._stopped = False
        self._announcer = CommitAnnouncer()
        self._checkpointer = Checkpointer(
            engine,
            self._tasks,
            entries_max=options.checkpoint_entries_max,
            bytes_max=options.checkpoint_bytes_max,
            tail_bytes_max=options.tail_bytes_max,
            trimmed_bytes_max=options.trimmed_bytes_max,
        )
        self._mender = Mender(
            engine, transport, self._tasks, groups=self.groups, node_of=self.peers.node_of
        )
        self._server = CatchUpServer(
            engine,
            served_max=options.catch_ups_max,
            chunk_bytes=options.catch_up_chunk_bytes,
            mend=self.mend,
        )
        self._fetcher = CatchUpFetcher(
            engine,
            transport,
            self._tasks,
            fetched_max=options.catch_ups_max,
            node_of=self.peers.node_of,
            installed=self._want,
        )

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        self._tasks.start(self._flush_loop(), name="flush")
        self._tasks.start(self._tick_loop(), name="tick")

    async def close(self) -> None:
        """Stop all replicas and wait for the host's tasks. The engine is the caller's to close."""
        self._stopped = True
        self._announcer.stop()
        for group in self.groups.values():
            group.stop(ConnectionError("the node is closing"))
        await self._tasks.cancel_and_wait()

    def _task_failed(self, name: str, error: BaseException) -> None:
        self._stop(error, f"task {name} failed")

    def _stop(self, error: BaseException, what: str) -> None:
        """A disk failed, or code did outside any one group: stop every replica loudly and tell the
        owner (rule R13)."""
        if self._stopped:
            return
        self._stopped = True
        logger.critical("node stops: %s: %r", what, error, exc_info=error)
        for group in self.groups.values():
            group.stop(error)
        self._failed(error)

    def _stop_group(self, group: Group, error: BaseException) -> None:
        """An assertion or a corrupt entry stops its replica alone: loudly, and for good."""
        logger.critical("group %d: replica stops: %r", group.group_id, error, exc_info=error)
        self._wanted.pop(group.group_id, None)
        self._awake.pop(group.group_id, None)
        group.stop(error)
        self.peers.replica_gone(group.group_id)

    # --- groups ----------------------------------------------------------------------------------

    def create_replica(
        self,
        *,
        group_id: int,
        replica_id: int,
        log: LogStore,
        snapshots: SnapshotStore,
        machine: Machine,
        founding: Configuration | None,
        options: RaftOptions,
    ) -> Group:
        """Open (or begin) this node's replica of a group; see Group. Raises StorageError."""
        assert group_id not in self.groups, f"group {group_id} is here already"
        group = Group(
            group_id=group_id,
            replica_id=replica_id,
            engine=self.engine,
            log=log,
            snapshots=snapshots,
            machine=machine,
            founding=founding,
            options=options,
            random=self._random,
            wanted=self._want,
        )
        group.core.set_reluctant(self._reluctant)
        self.groups[group_id] = group
        self.peers.set_replica(replica_id, self.node_id)
        self._want(group)
        return group

    def remove_replica(self, group_id: int, batch: WriteBatch) -> None:
        """Stop the replica; that all it stored is deleted goes into the batch. Only between turns:
        the turn's own batch may hold more of it."""
        group = self.groups.pop(group_id)
        self._wanted.pop(group_id, None)
        self._awake.pop(group_id, None)
        group.stop(ConnectionError("the replica was removed from this node"))
        group.drop(batch)
        self.peers.replica_gone(group_id)

    def leader_of(self, group_id: int) -> tuple[int, int] | None:
        """(node id, term) of the group's leader as far as this node knows; ready to serve."""
        return self.peers.leader_of(group_id)

    def set_reluctant(self, reluctant: bool) -> None:
        """Whether this node should not be made a leader: the others are told at once. It keeps what
        it leads, and still campaigns after all others when the leader is lost."""
        if reluctant != self._reluctant:
            self._reluctant = reluctant
            for group in self.groups.values():
                group.core.set_reluctant(reluctant)
            self._send(beat=True)

    def may_lead(self, node_id: int) -> bool:
        """Whether leaderships may be given to the node."""
        if node_id == self.node_id:
            return not self._reluctant
        return self.peers.may_lead(node_id)

    def node_alive(self, node_id: int) -> bool:
        return node_id == self.node_id or self.peers.is_alive(node_id)

    def set_peer(self, node_id: int, endpoint: str) -> None:
        if node_id != self.node_id:
            self.peers.set_node(node_id)
            self._reachable[node_id] = None
            self.transport.set_peer(node_id, endpoint)

    def can_reach(self, node_id: int) -> bool:
        """Somebody told where the node is."""
        return node_id in self._reachable

    def forget_peer(self, node_id: int) -> None:
        self.peers.forget_node(node_id)
        self._reachable.pop(node_id, None)
        self.transport.set_peer(node_id, None)

    # --- turns -----------------------------------------------------------------------------------

    def _want(self, group: Group) -> None:
        if group.failure is not None:
            return
        self._wanted[group.group_id] = group
        self._awake[group.group_id] = group
        self._schedule_turn()

    def between_turns(self, act: Callable[[], None]) -> None:
        """Call it soon, when no turn is under way: it may write batches of its own. An exception
        stops the node; a node that has stopped does not call it."""
        asyncio.get_running_loop().call_soon(self._act, act)

    def _act(self, act: Callable[[], None]) -> None:
        if self._stopped:
            return
        try:
            act()
        except Exception as error:
            self._stop(error, f"{act.__qualname__} failed")

    def when_durable(self, act: Callable[[], None]) -> None:
        """Call it once everything that is written by now is on disk."""
        self._want_durable.append(act)
        self._schedule_turn()

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled and not self._stopped:
            self._turn_scheduled = True
            self.between_turns(self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self._turn_scheduled = False
        self._turn()

    def _turn(self) -> None:
        if self._stopped:
            return
        batch = self.engine.new_batch()
        wanted, self._wanted = self._wanted, {}
        must_sync = False
        if not self._flushing:
            must_sync = bool(self._want_durable)
            for group in wanted.values():
                must_sync |= self._in_group(group, self._collect, batch)
            if not must_sync:
                self._send()  # none of it rests on this batch: it need not wait for the applying
        applied = False
        for group in wanted.values():
            applied |= self._in_group(group, self._apply, batch, must_sync)
        if applied or must_sync:
            self.engine.write(batch)
        self._send()
        if must_sync:
            self._flushing = True
            self._flush_wanted.set()
            self._become_durable, self._want_durable = self._want_durable, []
        elif not self._flushing:
            self._collected.clear()

    def _in_group(self, group: Group, act: Callable[..., bool], *arguments: object) -> bool:
        """What `act` says; False of one that stopped, or was removed, since it asked."""
        if group.failure is not None:
            return False
        try:
            return act(group, *arguments)
        except (AssertionError, ValueError, LookupError, CorruptEntry) as error:
            self._stop_group(group, error)
            return False

    def _collect(self, group: Group, batch: WriteBatch) -> bool:
        """Whether the batch must be synced for it."""
        messages, must_sync, install = group.collect(batch)
        self._post(group, messages)
        if install is not None:
            self._fetcher.fetch(group)
        self._collected.append(group)
        return must_sync

    def _apply(self, group: Group, batch: WriteBatch, must_sync: bool) -> bool:
        """Whether something was applied. A follower's flush comes first, since the leader waits for
        it, and nobody for what a follower applies: that is done during the flush or after it."""
        applied = group.core.has_committed and (not must_sync or group.is_leader)
        if applied:
            group.apply(batch)
            self._checkpointer.consider(group)
            if group.is_leader:
                self._announcer.applied(group)
        self._observe(group)
        has_more = group.core.has_committed
        if has_more or self._flushing:
            self._wanted[group.group_id] = group
        if has_more and applied:
            self._schedule_turn()
        return applied

    def _observe(self, group: Group) -> None:
        """Leadership as this replica sees it, for routing here and on the peers."""
        leader = group.core.leader_id
        self.peers.observe(
            group.group_id,
            term=group.core.term,
            node_id=self.peers.node_of(leader) if leader else 0,
            leads_here=group.is_leader and not group.core.transferee,
        )

    def _post(self, group: Group, messages: list[Message]) -> None:
        held: dict[int, None] = {}  # replicas that get no more entries of these messages
        for message in messages:
            node_id = self.peers.node_of(message.to)
            if not node_id:
                continue  # not told yet where it is; Raft sends again
            if isinstance(message, AppendEntries) and (size := data_bytes(message)):
                if message.to in held:
                    continue
                posted = self._posted_bytes.get(node_id, 0)
                waiting = posted + self.transport.unsent_bytes(node_id)
                if waiting and waiting + size > self.options.posted_bytes_max:
                    group.core.not_sent(message)
                    held[message.to] = None
                    continue
                self._posted_bytes[node_id] = posted + size
            self._outbox.setdefault(node_id, []).append((group.group_id, message))

    def _send(self, *, beat: bool = False) -> None:
        outbox, self._outbox, self._posted_bytes = self._outbox, {}, {}
        tells = beat or self.peers.leads_unsent()
        for node_id in self.peers.nodes if tells else list(outbox):
            messages = outbox.get(node_id, [])
            sign = None
            if tells:
                leads = self.peers.leads_for(node_id)
                asks = self.peers.asks_leads(node_id)
                sign = NodeBeat(self.clock.wall_ms(), leads, self._reluctant, asks)
            self.transport.send(node_id, Envelope(sign, messages))

    async def _flush_loop(self) -> None:
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted.clear()
            while self._flushing:
                await self.engine.sync()
                self._flushing = False
                collected, self._collected = self._collected, []
                for act in self._become_durable:
                    act()
                for group in collected:
                    if group.failure is None:
                        self._post(group, group.synced())
                        self._want_quietly(group)
                if self._wanted or self._outbox or self._want_durable:
                    self._turn()

    def _want_quietly(self, group: Group) -> None:
        """For the turn that follows at once."""
        if group.core.has_committed or group.core.has_output:
            self._wanted[group.group_id] = group
            self._awake[group.group_id] = group

    # --- time ------------------------------------------------------------------------------------

    async def _tick_loop(self) -> None:
        loop = asyncio.get_running_loop()
        tick_s = self.options.tick_ms / 1000
        due = loop.time() + tick_s
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            # What has arrived is read before silence is counted; a stall of this process counts as
            # one tick, however long it was.
            for _ in range(3):
                await asyncio.sleep(0)
            due = max(due + tick_s, loop.time() + tick_s / 2)
            self._tick()

    def _tick(self) -> None:
        self._ticks += 1
        for node_id in self.peers.tick():
            logger.warning("node %d: nothing heard for %d ticks", node_id, self.peers.silence_ticks)
            self.peers.forget_leads_of(node_id)
            self._wake_groups_on(node_id, gone=True)
        for group in list(self._awake.values()):
            core = group.core
            before = (core.term, core.leader_id, core.role)
            core.tick()
            if core.has_output or before != (core.term, core.leader_id, core.role):
                self._wanted[group.group_id] = group
            elif core.quiesced:
                del self._awake[group.group_id]
        if self._wanted:
            self._turn()
        self._checkpointer.sweep(self.groups)
        if self._ticks % self.options.beat_ticks == 0:
            self._send(beat=True)

    def _wake_groups_on(self, node_id: int, *, gone: bool = False) -> None:
        """Quiesced groups rely on node liveness (rule R20): start the clocks of those concerned."""
        for group in self.groups.values():
            if group.failure is None and any(
                self.peers.node_of(member) == node_id for member in group.configuration.members()
            ):
                if gone and self.peers.node_of(group.core.leader_id) == node_id:
                    group.core.leader_lost(rank=self._rank(group))
                else:
                    group.core.wake()
                self._awake[group.group_id] = group

    def _rank(self, group: Group) -> int:
        """This voter's turn among those that are left when the leader is gone. The group's number
        turns the order, so that what one node led is spread over all others."""
        left = sorted(v for v in group.configuration.voters if v != group.core.leader_id)
        if group.replica_id not in left:
            return len(left)
        turn = (left.index(group.replica_id) + group.group_id) % len(left)
        return turn + len(left) if self._reluctant else turn

    # --- Receiver --------------------------------------------------------------------------------

    def receive(self, peer: Peer, envelope: Envelope) -> None:
        if self._stopped:
            return
        wall_ms = self.clock.wall_ms() if envelope.beat is not None else 0
        if self.peers.heard(peer, envelope.beat, wall_ms=wall_ms):
            self._wake_groups_on(peer.node_id)
        for group_id, message in envelope.messages:
            if type(message) is AppendEntries and message.entries and self.engine.pressure >= 1.0:
                continue  # the disk is behind: as if it were lost, and sent again (rule R19)
            group = self.groups.get(group_id)
            if group is None or group.failure is not None or message.to != group.replica_id:
                continue  # for a replica that was, or is not yet
            if not self.peers.replica_is_on(message.sender, peer.node_id):
                logger.error("node %d speaks as replica %d", peer.node_id, message.sender)
                continue
            self._awake[group_id] = group
            try:
                group.step(message)
            except (AssertionError, ValueError, StorageError) as error:
                self._stop_group(group, error)

    def peer_connected(self, node_id: int) -> None:
        self.peers.resend_leads(node_id)

    def peer_lost(self, node_id: int) -> None:
        """What was sent last may be lost: replicate to that node step by step again. And the node
        may be dead: if it does not come back soon, it counts as gone."""
        self.peers.connection_lost(node_id)
        for group in self._awake.values():
            for member, progress in group.core.progress.items():
                if progress.inflight and self.peers.node_of(member) == node_id:
                    group.core.unreachable(member)

    async def mend(self, group: Group, index: int) -> bool:
        """Whether the entry, found damaged here, can be read now: another replica may have it."""
        return await self._mender.mend(group, index)

    def entry_for_peer(self, request: bytes) -> bytes:
        """A peer's ENTRY_METHOD. Raises PeerError."""
        return self._mender.serve(request)

    async def catch_up(self, request: CatchUpRequest) -> AsyncIterator[CatchUpChunk]:
        group = self.groups.get(request.group_id)
        if group is None or group.failure is not None:
            raise PeerError("NOT_FOUND", f"group {request.group_id} is not here")
        if request.from_replica != group.replica_id:
            raise PeerError("NOT_FOUND", f"replica {request.from_replica} is not here")
        async for chunk in self._server.serve(group, request):
            yield chunk
