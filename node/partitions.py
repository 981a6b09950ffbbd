"""The partitions that this node holds a replica of, as the catalog wants them.

Level-triggered: whenever the catalog changed something about this node, what it should hold is
compared with what it holds. Replicas are created and deleted here and nowhere else, and only for
entries that name this very incarnation (rule R12).

After a restart the catalog replays the past: it names replicas that this node has deleted since, or
replaced by later ones of the same group. So the disk remembers, for each group, the last replica
that was here and whether it was deleted; ids only rise, and a name from the past is passed over.
Without that, a deleted founding replica would come back empty and vote again.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.controller.catalog import Catalog
from cluster.controller.model import CONTROLLER_GROUP_ID
from cluster.controller.model import Group as GroupRow
from cluster.controller.tables import Changes
from cluster.group import Group
from cluster.host import Host
from cluster.interfaces import Engine, StorageError, WriteBatch
from cluster.raft.configuration import Configuration
from cluster.raft.state import RaftOptions
from node.replica import PartitionReplica
from node.storage import keys
from node.storage.checkpoints import CheckpointStore
from node.storage.raft_log import RaftLog
from node.storage.tail_cache import TailBudget

logger = logging.getLogger(__name__)

_IDENTITY = struct.Struct("<Q?")  # replica id, whether it was deleted


@dataclass(slots=True)
class LocalPartition:
    """One replica on this node. `topic` is the topic's number in the catalog."""

    group: Group
    replica: PartitionReplica
    log: RaftLog
    topic: int
    partition: int

    @property
    def group_id(self) -> int:
        return self.group.group_id


class Partitions:
    def __init__(
        self,
        *,
        host: Host,
        catalog: Catalog,
        initial_peers: Mapping[int, str],
        engine: Engine,
        incarnation: str,
        raft_options: RaftOptions,
        tail_budget: TailBudget,
        new_replica: Callable[[int, RaftLog], PartitionReplica],
        buried: Callable[[int, int], None],
        damaged: Callable[[StorageError], None],
    ) -> None:
        """`damaged` is told when what is stored of a replica can not be trusted: durable data is
        gone, and this incarnation must not go on (rule R14). `buried`: of each replica that is
        deleted, the group and how many bytes its log had."""
        self._host = host
        self._catalog = catalog
        self._initial_peers = initial_peers
        self._engine = engine
        self._incarnation = incarnation
        self._raft_options = raft_options
        self._tail_budget = tail_budget
        self._new_replica = new_replica
        self._buried = buried
        self._damaged = damaged
        self._partitions: dict[int, LocalPartition] = {}
        self._leaving: dict[int, None] = {}  # nodes that are no members any more
        self.fresh: dict[int, LocalPartition] = {}  # of new groups that this node should lead
        self.deleted_replicas: dict[int, None] = {}  # replica ids, to be confirmed to the catalog

    def get(self, group_id: int) -> LocalPartition | None:
        return self._partitions.get(group_id)

    def all(self) -> list[LocalPartition]:
        return list(self._partitions.values())

    def led(self) -> list[LocalPartition]:
        return [p for p in self._partitions.values() if p.group.is_leader]

    def follow(self, changes: Changes) -> None:
        """The catalog changed. Called on the loop, within a turn: plain and quick."""
        catalog, host = self._catalog, self._host
        groups = catalog.groups() if changes.everything else map(catalog.group, changes.groups)
        for row in groups:
            for replica in row.replicas if row is not None else ():
                host.peers.set_replica(replica.replica_id, replica.node_id)
        for group_id in changes.groups:
            if catalog.group(group_id) is None:
                host.peers.group_gone(group_id)
        members = [member.node_id for member in catalog.members()]
        for node_id in members if changes.everything else changes.nodes:
            if changes.everything and node_id in self._initial_peers:
                continue  # a restored catalog may be older than what the operator says now
            member = catalog.member(node_id)
            if member is None:
                self._leaving[node_id] = None
            elif node_id != host.node_id:
                host.set_peer(node_id, member.peer_endpoint)
        if changes.everything or host.node_id in changes.nodes:
            host.between_turns(self._hold_what_is_named)
        if self._leaving:
            self._forget_who_left()

    def _forget_who_left(self) -> None:
        """Who is no member any more is spoken to as long as it stands in a configuration here: till
        then it counts in its groups, and hears from the controller's that it was removed."""
        host = self._host
        needed = {
            host.peers.node_of(replica_id)
            for group in host.groups.values()
            for replica_id in group.configuration.members()
        }
        for node_id in [node_id for node_id in self._leaving if node_id not in needed]:
            del self._leaving[node_id]
            if self._catalog.member(node_id) is None:
                host.forget_peer(node_id)

    def _hold_what_is_named(self) -> None:
        node_id = self._host.node_id
        buried = self._catalog.tombstones_on(node_id, self._incarnation)
        for tombstone in buried:
            local = self._partitions.get(tombstone.group_id)
            if local is not None and local.group.replica_id == tombstone.replica_id:
                self._delete(local)
            elif self._identity(tombstone.group_id) == (tombstone.replica_id, False):
                self._purge(self._engine.new_batch(), tombstone.group_id, tombstone.replica_id)
        if buried:
            # The catalog forgets what it is told is gone: a crash must not bring that back.
            gone = dict.fromkeys(tombstone.replica_id for tombstone in buried)
            self._host.when_durable(lambda: self.deleted_replicas.update(gone))
        for row, replica in self._catalog.replicas_on(node_id, self._incarnation):
            if row.group_id == CONTROLLER_GROUP_ID:
                continue
            local = self._partitions.get(row.group_id)
            if local is not None and local.group.replica_id == replica.replica_id:
                continue
            if self._identity(row.group_id) >= (replica.replica_id, True):
                continue  # the catalog tells the past: this one was here, and is deleted
            if local is not None:
                self._delete(local)  # an older replica of this node, replaced meanwhile
            try:
                self._create(row, replica.replica_id)
            except StorageError as error:
                self._damaged(error)
                return

    def _create(self, row: GroupRow, replica_id: int) -> None:
        self._begin(row.group_id, replica_id)
        log = RaftLog(self._engine, row.group_id, self._tail_budget)
        replica = self._new_replica(row.group_id, log)
        founding = Configuration.of(row.founding) if replica_id in row.founding else None
        group = self._host.create_replica(
            group_id=row.group_id,
            replica_id=replica_id,
            log=log,
            snapshots=CheckpointStore(self._engine, row.group_id),
            machine=replica,
            founding=founding,
            options=self._raft_options,
        )
        local = LocalPartition(group, replica, log, row.topic, row.partition)
        self._partitions[row.group_id] = local
        if founding is not None and log.last_index == 0 and row.desired[:1] == (replica_id,):
            self.fresh[row.group_id] = local

    def _delete(self, local: LocalPartition) -> None:
        logger.info("group %d: replica %d is deleted", local.group_id, local.group.replica_id)
        del self._partitions[local.group_id]
        self.fresh.pop(local.group_id, None)
        self._buried(local.group_id, local.log.log_bytes)
        batch = self._engine.new_batch()
        self._host.remove_replica(local.group_id, batch)
        self._purge(batch, local.group_id, local.group.replica_id)

    def _identity(self, group_id: int) -> tuple[int, bool]:
        """The last replica of the group that was here, and whether it was deleted."""
        stored = self._engine.get(keys.group_key(group_id, keys.IDENTITY))
        if stored is None:
            return 0, False
        replica_id, deleted = _IDENTITY.unpack(stored)
        return replica_id, deleted

    def _begin(self, group_id: int, replica_id: int) -> None:
        """What is stored of the group is this replica's: nothing, if it was not here before."""
        known, _ = self._identity(group_id)
        assert known <= replica_id, f"group {group_id}: replica {known} was here after {replica_id}"
        if known == replica_id:
            return
        batch = self._engine.new_batch()
        batch.delete_range(*keys.group_bounds(group_id))
        identity = _IDENTITY.pack(replica_id, False)
        batch.put(keys.group_key(group_id, keys.IDENTITY), identity)
        self._engine.write(batch)

    def _purge(self, batch: WriteBatch, group_id: int, replica_id: int) -> None:
        """Write the batch, after which nothing is left of the group but the memory that this
        replica is gone: both or neither, whenever the node may crash."""
        batch.delete_range(*keys.group_bounds(group_id))
        batch.put(keys.group_key(group_id, keys.IDENTITY), _IDENTITY.pack(replica_id, True))
        self._engine.write(batch)

    def urge_fresh(self) -> None:
        """The preferred leader of a new group campaigns at once, and again until the others have
        created their replicas too: a new topic need not wait for an election timeout."""
        for group_id, local in list(self.fresh.items()):
            if self._host.leader_of(group_id) is not None or local.group.last_index > 0:
                del self.fresh[group_id]
            elif self._host.may_lead(self._host.node_id):
                local.group.campaign()
