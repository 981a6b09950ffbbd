"""A node without its disk, ports and clock: everything that agrees, stores and decides, built on
the seams of cluster/interfaces.py. server.py gives it the real ones, the simulator virtual ones.

    start: place in a cluster (founding.py) -> controller's replica -> partitions as the catalog
    says stop:  refuse new work -> hand every leadership over -> end

Background work, each a task of its own: registering what changed about this node, the reconciler
(on the controller's leader), duties of partition leaders (node/duties.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from cluster.controller import commands as c
from cluster.controller.access import (
    PROPOSE_METHOD,
    VERSION_METHOD,
    ControllerAccess,
    ControllerUnavailable,
    ProducerIds,
)
from cluster.controller.codec import decode_command, decode_reply, encode_command, encode_reply
from cluster.controller.machine import CatalogMachine
from cluster.controller.model import CONTROLLER_GROUP_ID
from cluster.controller.partition_driver import TRANSFER_METHOD, DriverOptions, PartitionDriver
from cluster.controller.reconciler import Reconciler, ReconcilerOptions
from cluster.controller.tables import Changes
from cluster.founding import HELLO_METHOD, REGISTER_METHOD, Founding, Membership
from cluster.host import Host
from cluster.host_options import HostOptions
from cluster.interfaces import (
    CatchUpChunk,
    CatchUpRequest,
    Clock,
    Engine,
    Envelope,
    Peer,
    PeerError,
    Receiver,
    Transport,
)
from cluster.mending import ENTRY_METHOD
from cluster.raft.configuration import Configuration
from cluster.raft.errors import ChangeRefused, RaftRefused
from cluster.raft.state import RaftOptions, RandomSource
from cluster.tasks import TaskGroup
from node.duties import Duties
from node.metrics import NodeCounters
from node.partitions import Partitions
from node.replica import PartitionReplica
from node.services.places import OPERATION_METHOD, Places
from node.services.topic_settings import settings_of_number
from node.storage.checkpoints import CheckpointStore
from node.storage.raft_log import RaftLog
from node.storage.reclaim import Reclaimer, ReclaimOptions
from node.storage.tail_cache import TailBudget

logger = logging.getLogger(__name__)

MEMBERSHIP_KEY = b"\xff" * 8 + b"m"  # outside of all groups, see node/storage/keys.py
_URGE_S = 0.1
_REGISTER_RETRY_S = 1.0
_ESTRANGED_S = 3.0
_REGISTER_TIMEOUT_MS = 2_000
_HAND_OVER_POLL_S = 0.05


class NotAMember(Exception):
    """This incarnation of the node was removed or replaced, or it is of another cluster than its
    peers."""


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """Of the groups and their host; the controller's group differs from the partitions' only in
    that it announces commits and never stops its clocks."""

    raft: RaftOptions
    host: HostOptions
    driver: DriverOptions = field(default_factory=DriverOptions)
    reconciler: ReconcilerOptions = field(default_factory=ReconcilerOptions)
    reclaim: ReclaimOptions = field(default_factory=ReclaimOptions)
    tail_budget_bytes: int = 32 << 20
    clock_skew_ms_max: int = 500
    retention_interval_ms: int = 5_000


class Broker:
    """Implements cluster.interfaces.Receiver. `failed` is told once of an error that must stop the
    process."""

    def __init__(
        self,
        *,
        me: c.Announcement,
        may_found: bool,
        initial_peers: dict[int, str],
        engine: Engine,
        new_transport: Callable[[Receiver], Transport],
        clock: Clock,
        random: RandomSource,
        options: BrokerOptions,
        counters: NodeCounters,
        new_cluster_id: Callable[[], str],
        bind_cluster: Callable[[str], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.me = me
        self.engine = engine
        self.transport = transport = new_transport(self)
        self.clock = clock
        self.options = options
        self.counters = counters
        self._initial_peers = initial_peers
        self._bind_cluster = bind_cluster
        self.host = Host(
            node_id=me.node_id,
            engine=engine,
            transport=transport,
            clock=clock,
            random=random,
            options=options.host,
            failed=failed,
        )
        stored = engine.get(MEMBERSHIP_KEY)
        self.founding = Founding(
            me=me,
            may_found=may_found,
            peers=initial_peers,
            transport=transport,
            membership=Membership.decode(stored) if stored else None,
            keep=self._keep_membership,
            new_cluster_id=new_cluster_id,
        )
        self._tail_budget = TailBudget(options.tail_budget_bytes)
        self._tasks = TaskGroup(f"broker-{me.node_id}", on_failure=self._task_failed)
        self._failed = failed
        self.draining = False
        self.disk_full = False
        # What the services answer to other nodes, by method; empty until they are there.
        self.peer_functions: dict[str, Callable[[bytes], Awaitable[bytes]]] = {}
        self._build()

    def _build(self) -> None:
        """What stands on the host."""
        host, options = self.host, self.options
        self.controller_machine = machine = CatalogMachine()
        self.controller = ControllerAccess(host, machine)
        self.producer_ids = ProducerIds(self.controller, host)
        self.reclaimer = Reclaimer(
            self.engine,
            logs=lambda: [partition.log for partition in self.partitions.all()],
            options=options.reclaim,
        )
        self.partitions = Partitions(
            host=host,
            catalog=machine.catalog,
            initial_peers=self._initial_peers,
            engine=self.engine,
            incarnation=self.me.incarnation,
            raft_options=options.raft,
            tail_budget=self._tail_budget,
            new_replica=self._new_replica,
            buried=self.reclaimer.buried,
            damaged=self._failed,
        )
        self.places = Places(host=host, controller=self.controller, partitions=self.partitions)
        self.duties = Duties(
            self.partitions,
            settings_of=lambda topic: settings_of_number(machine.catalog, topic),
            is_deleted=machine.catalog.is_deleted,
            interval_ms=options.retention_interval_ms,
        )
        propose = self.controller.propose
        self.driver = PartitionDriver(host, machine.catalog, propose, options.driver)
        self.reconciler = Reconciler(
            host, machine, propose, self.driver.ask_transfer, options.reconciler
        )
        machine.on_change(self._catalog_changed)

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when this node has its place in a cluster; its groups find their leaders then."""
        membership = await self.founding.find_place()
        self._bind_cluster(membership.cluster_id)
        founding = None
        for node_id, endpoint in self._initial_peers.items():
            self.host.set_peer(node_id, endpoint)
        for number, founder in enumerate(membership.founders, start=1):
            self.host.peers.set_replica(number, founder.node_id)
        if membership.founders:
            founding = Configuration.of(range(1, len(membership.founders) + 1))
        raft = self.options.raft
        self.host.create_replica(
            group_id=CONTROLLER_GROUP_ID,
            replica_id=membership.controller_replica_id,
            log=RaftLog(self.engine, CONTROLLER_GROUP_ID, self._tail_budget),
            snapshots=CheckpointStore(self.engine, CONTROLLER_GROUP_ID),
            machine=self.controller_machine,
            founding=founding,
            options=RaftOptions(
                election_ticks=raft.election_ticks,
                heartbeat_ticks=raft.heartbeat_ticks,
                quiesce_ticks=0,
                announce_commit=True,
            ),
        )
        self.host.start()
        self._tasks.start(self._announce_self(membership), name="announce")
        self._tasks.start(self._greet_peers(), name="greet")
        self._tasks.start(self._urge_fresh_groups(), name="urge")
        self._tasks.start(self._confirm_deleted(), name="confirm-deleted")
        self._tasks.start(self.driver.run(), name="driver")
        self._tasks.start(self.reconciler.run(), name="reconciler")
        self._tasks.start(self.duties.run(), name="duties")
        self._tasks.start(self.reclaimer.run(), name="reclaim")

    def start_draining(self) -> None:
        """This node is about to stop: the others give it no leaderships any more."""
        self.draining = True
        self.host.set_reluctant(True)

    async def stop(self, *, grace_s: float) -> None:
        """Hand leaderships over for at most `grace_s`, then end all tasks. The engine stays
        open."""
        self.start_draining()
        await self.hand_over_leaderships(within_s=grace_s)
        await self._tasks.cancel_and_wait()
        await self.host.close()

    def _task_failed(self, name: str, error: BaseException) -> None:
        logger.critical("task %s failed: %r", name, error, exc_info=error)
        self._failed(error)

    def _new_replica(self, group_id: int, log: RaftLog) -> PartitionReplica:
        return PartitionReplica(
            group_id=group_id,
            reader=self.engine,
            log=log,
            clock=self.clock,
            clock_offset_ms=self.host.peers.clock_ahead_ms,
            clock_skew_ms_max=self.options.clock_skew_ms_max,
            counters=self.counters,
        )

    async def _keep_membership(self, membership: Membership) -> None:
        batch = self.engine.new_batch()
        batch.put(MEMBERSHIP_KEY, membership.encode())
        self.engine.write(batch)
        await self.engine.sync()

    async def hand_over_leaderships(self, *, within_s: float) -> None:
        """Ask the best of each led group's other live voters to take over, until none is led here
        or the time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while loop.time() < deadline:
            led = [g for g in self.host.groups.values() if g.core.leads_since_index]
            movable = [group for group in led if self._hand_over(group.group_id)]
            if not movable:
                return
            await asyncio.sleep(_HAND_OVER_POLL_S)

    def _hand_over(self, group_id: int) -> bool:
        """False if nobody can take the group."""
        group = self.host.groups[group_id]
        peers = self.host.peers
        able = [
            voter
            for voter in group.configuration.voters
            if voter != group.replica_id and peers.may_lead(peers.node_of(voter))
        ]
        if not able or group.failure is not None:
            return False
        if not group.core.transferee:
            best = max(able, key=lambda voter: (group.match_index(voter), -voter))
            try:
                group.transfer_leadership(best)
                self.counters.leaders_handed_over += 1
            except (RaftRefused, ChangeRefused) as error:
                logger.info("group %d: not handed over: %s", group_id, error)
        return True

    # --- background ------------------------------------------------------------------------------

    async def _announce_self(self, membership: Membership) -> None:
        """Found the catalog if this node leads the controller first; then say who is here. That is
        said at every start: only the cluster knows whether this incarnation still belongs to it."""
        catalog = self.controller.catalog
        while not catalog.cluster_id:
            if membership.founders and self.host.groups[CONTROLLER_GROUP_ID].is_leader:
                await self._try(
                    c.Found(cluster_id=membership.cluster_id, members=membership.founders)
                )
            await asyncio.sleep(_URGE_S)
        assert catalog.cluster_id == membership.cluster_id, (
            f"the controller is of cluster {catalog.cluster_id}, this node of {membership}"
        )
        registration = c.RegisterMember(member=self.me)
        while True:
            reply = await self._try(registration, timeout_ms=_REGISTER_TIMEOUT_MS)
            if reply is None:
                reply = await self._register_through_peers(registration)
            if reply is not None:
                break
            await asyncio.sleep(_REGISTER_RETRY_S)
        self._end_if_gone(reply)
        await self._notice_removal(registration)

    async def _notice_removal(self, registration: c.RegisterMember) -> None:
        """A node that is removed while it runs may never hear of it: the others do not speak to it
        any more. One that hears of no controller for long asks whether it still belongs there."""
        host = self.host
        while True:
            known = host.leader_of(CONTROLLER_GROUP_ID)
            try:
                async with asyncio.timeout(None if known else _ESTRANGED_S):
                    await host.peers.leader_change(CONTROLLER_GROUP_ID, known)
            except TimeoutError:
                self._end_if_gone(await self._register_through_peers(registration))

    def _end_if_gone(self, reply: c.Reply | None) -> None:
        if isinstance(reply, c.Refused) and reply.reason == c.Reason.MEMBER_GONE:
            self._failed(NotAMember(reply.message))

    async def _register_through_peers(self, registration: c.RegisterMember) -> c.Reply | None:
        """A node that was removed is told by nobody who leads the controller; it may ask all the
        same. None if no peer could answer."""
        answer = await self._ask_peers(REGISTER_METHOD, encode_command(registration, None))
        return None if answer is None else decode_reply(answer)

    async def _greet_peers(self) -> None:
        """Until this node sees a catalog: the peers that should show it may be of another
        cluster."""
        while not self.controller.catalog.cluster_id:
            await asyncio.sleep(_REGISTER_RETRY_S)
            await self._ask_peers(HELLO_METHOD, b"")

    async def _ask_peers(self, method: str, request: bytes) -> bytes | None:
        """The first answer, None if there is none. A peer of another cluster is an error at once:
        this node was given a folder, or peers, that are not its own."""
        for node_id in self.host.peers.nodes:
            try:
                return await self.transport.call(
                    node_id, method, request, timeout_ms=_REGISTER_TIMEOUT_MS
                )
            except PeerError as error:
                if error.code == "WRONG_CLUSTER":
                    self._failed(NotAMember(error.message))
                logger.debug("node %d did not answer %s: %s", node_id, method, error)
        return None

    async def _try(self, command: c.Command, *, timeout_ms: int = 10_000) -> c.Reply | None:
        """None if the controller did not answer."""
        try:
            reply = await self.controller.propose(command, timeout_ms=timeout_ms)
        except ControllerUnavailable as error:
            logger.warning("%s: %s", type(command).__name__, error)
            return None
        if isinstance(reply, c.Refused):
            logger.error("%s refused: %s", type(command).__name__, reply.message)
        return reply

    async def _urge_fresh_groups(self) -> None:
        while True:
            self.partitions.urge_fresh()
            await asyncio.sleep(_URGE_S)

    def _catalog_changed(self, changes: Changes) -> None:
        self.partitions.follow(changes)
        self.driver.wake()

    async def _confirm_deleted(self) -> None:
        """Tell the catalog what of the replicas it buried is gone from this disk, too."""
        while True:
            deleted = tuple(self.partitions.deleted_replicas)
            if deleted:
                command = c.ConfirmDeleted(
                    node_id=self.me.node_id, incarnation=self.me.incarnation, replica_ids=deleted
                )
                if await self._try(command):
                    for replica_id in deleted:
                        self.partitions.deleted_replicas.pop(replica_id, None)
            await asyncio.sleep(_REGISTER_RETRY_S)

    # --- Receiver --------------------------------------------------------------------------------

    def receive(self, peer: Peer, envelope: Envelope) -> None:
        if not self.host.can_reach(peer.node_id):
            self._meet(peer)
        self.host.receive(peer, envelope)

    def _meet(self, peer: Peer) -> None:
        """This node's catalog does not name the peer (yet): it has just joined, or members changed
        while it was down. What it needs to learn of them comes from this very peer perhaps, and
        only if it hears answers."""
        gone = self.controller.catalog.is_gone(peer.node_id, peer.incarnation)
        if peer.endpoint and not gone:
            self.host.set_peer(peer.node_id, peer.endpoint)

    def peer_connected(self, node_id: int) -> None:
        self.host.peer_connected(node_id)

    def peer_lost(self, node_id: int) -> None:
        self.host.peer_lost(node_id)

    async def call(self, node_id: int, method: str, request: bytes) -> bytes:
        if method == HELLO_METHOD:
            return self.founding.answer_hello()
        if method == OPERATION_METHOD:
            return await self.places.serve(request)
        if method == PROPOSE_METHOD:
            return await self.controller.serve(request)
        if method == VERSION_METHOD:
            return await self.controller.serve_version()
        if method == ENTRY_METHOD:
            return self.host.entry_for_peer(request)
        if method == TRANSFER_METHOD:
            return await self.driver.serve_transfer(request)
        if method == REGISTER_METHOD:
            return await self._register(request)
        if method in self.peer_functions:
            return await self.peer_functions[method](request)
        raise PeerError("NOT_FOUND", f"no method {method}")

    async def _register(self, request: bytes) -> bytes:
        """A node that has no cluster yet joins through this one."""
        command, _ = decode_command(request)
        if not isinstance(command, c.RegisterMember):
            raise PeerError("BAD_REQUEST", f"{type(command).__name__} is not for strangers")
        try:
            return encode_reply(await self.controller.propose(command))
        except ControllerUnavailable as error:
            raise PeerError("NO_LEADER", str(error)) from error

    def catch_up(self, request: CatchUpRequest) -> AsyncIterator[CatchUpChunk]:
        return self.host.catch_up(request)
