"""Soft knowledge of the other nodes: who is alive, where replicas live, who leads what, whose clock
says what. All of it is learned anew after a restart and none of it decides safety.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import median

from cluster.interfaces import NodeBeat, Peer

RECONNECT_TICKS = 3


class PeerState:
    """What was heard of one node. `silent_ticks` counts ticks that a running loop saw."""

    __slots__ = (
        "alive",
        "boot_id",
        "clock_offset_ms",
        "leads_known",
        "leads_version_sent",
        "reluctant",
        "silent_ticks",
    )

    def __init__(self) -> None:
        self.alive = False
        self.silent_ticks = 0
        self.boot_id = ""
        self.clock_offset_ms = 0
        self.reluctant = False
        self.leads_known = False  # what it told last was heard, and nothing of it forgotten since
        self.leads_version_sent = -1


class Peers:
    def __init__(self, node_id: int, *, silence_ticks: int) -> None:
        self.node_id = node_id
        self.silence_ticks = silence_ticks
        self._nodes: dict[int, PeerState] = {}
        self._node_of_replica: dict[int, int] = {}
        self._leaders: dict[int, tuple[int, int]] = {}  # group -> (term, node); 0 = nobody known
        self._my_leads: dict[int, int] = {}  # group -> term
        self._leads_version = 0
        self._watchers: dict[int, list[asyncio.Future[tuple[int, int] | None]]] = {}

    # --- nodes -----------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[int]:
        return list(self._nodes)

    def set_node(self, node_id: int) -> None:
        if node_id != self.node_id:
            self._nodes.setdefault(node_id, PeerState())

    def forget_node(self, node_id: int) -> None:
        self._nodes.pop(node_id, None)

    def is_alive(self, node_id: int) -> bool:
        state = self._nodes.get(node_id)
        return state is not None and state.alive

    def may_lead(self, node_id: int) -> bool:
        """It is alive, and has not said that it should not lead."""
        state = self._nodes.get(node_id)
        return state is not None and state.alive and not state.reluctant

    def heard(self, peer: Peer, beat: NodeBeat | None, *, wall_ms: int) -> bool:
        """True if this is a new run of the node, or its return after a silence."""
        state = self._nodes.get(peer.node_id)
        if state is None:
            state = self._nodes[peer.node_id] = PeerState()
        news = not state.alive or state.boot_id != peer.boot_id
        if state.boot_id != peer.boot_id:
            state.leads_known, state.leads_version_sent = False, -1
        state.alive, state.silent_ticks, state.boot_id = True, 0, peer.boot_id
        if beat is not None:
            state.clock_offset_ms = beat.wall_ms - wall_ms
            state.reluctant = beat.reluctant
            if beat.asks_leads:
                state.leads_version_sent = -1
            if beat.leads is not None:
                state.leads_known = True
                self._take_leads(peer.node_id, beat.leads)
        return news

    def connection_lost(self, node_id: int) -> None:
        """Its process may have ended. A network that only hiccuped is connected again before
        RECONNECT_TICKS are over."""
        state = self._nodes.get(node_id)
        if state is not None and state.alive:
            state.silent_ticks = max(state.silent_ticks, self.silence_ticks - RECONNECT_TICKS)

    def tick(self) -> list[int]:
        """One tick passed: the nodes that count as gone from now on."""
        lost = []
        for node_id, state in self._nodes.items():
            state.silent_ticks += 1
            if state.alive and state.silent_ticks >= self.silence_ticks:
                state.alive = False
                lost.append(node_id)
        return lost

    def silent_ticks(self, node_id: int) -> int:
        """How long nothing was heard of the node; 0 for this one and for strangers."""
        state = self._nodes.get(node_id)
        return state.silent_ticks if state is not None else 0

    def clock_offset_ms(self, node_id: int) -> int:
        """The node's wall clock minus this one's, when it was last heard of; 0 when not known."""
        state = self._nodes.get(node_id)
        return state.clock_offset_ms if state is not None else 0

    def clock_ahead_ms(self) -> int:
        """This node's wall clock minus the median of all live nodes' clocks, its own included."""
        offsets = [0] + [s.clock_offset_ms for s in self._nodes.values() if s.alive]
        return -int(median(offsets))

    # --- replicas --------------------------------------------------------------------------------

    def set_replica(self, replica_id: int, node_id: int) -> None:
        """A replica id belongs to one node for ever."""
        known = self._node_of_replica.setdefault(replica_id, node_id)
        assert known == node_id, f"replica {replica_id} is on node {known}, not {node_id}"

    def replica_is_on(self, replica_id: int, node_id: int) -> bool:
        """False if the replica is known to be elsewhere; learns it if it was unknown."""
        return self._node_of_replica.setdefault(replica_id, node_id) == node_id

    def node_of(self, replica_id: int) -> int:
        """0 if unknown."""
        return self._node_of_replica.get(replica_id, 0)

    # --- leaders ---------------------------------------------------------------------------------

    def leader_of(self, group_id: int) -> tuple[int, int] | None:
        """(node id, term), None while nobody is known to lead."""
        term, node_id = self._leaders.get(group_id, (0, 0))
        return (node_id, term) if node_id else None

    def observe(self, group_id: int, *, term: int, node_id: int, leads_here: bool) -> None:
        """What this node's own replica knows. `leads_here`: it leads and is ready to serve."""
        if leads_here:
            self._note(group_id, term, self.node_id)
            if self._my_leads.get(group_id) != term:
                self._my_leads[group_id] = term
                self._leads_version += 1
            return
        if self._my_leads.pop(group_id, None) is not None:
            self._leads_version += 1
        if node_id == self.node_id:
            node_id = 0  # elected, not ready to serve yet
        self._note(group_id, term, node_id)

    def _note(self, group_id: int, term: int, node_id: int) -> None:
        known = self._leaders.get(group_id, (0, 0))
        if (term, node_id) == known or term < known[0]:
            return
        if not node_id and term == known[0] and known[1] != self.node_id:
            return  # a replica that has not heard of the leader does not unseat it
        self._leaders[group_id] = (term, node_id)
        self._tell(group_id)

    def _take_leads(self, node_id: int, leads: Sequence[tuple[int, int]]) -> None:
        now = dict(leads)
        for group_id, (term, leader) in list(self._leaders.items()):
            if leader == node_id and group_id not in now:
                self._leaders[group_id] = (term, 0)
                self._tell(group_id)
        for group_id, term in leads:
            self._note(group_id, term, node_id)

    def forget_leads_of(self, node_id: int) -> None:
        """The node is gone: requests for what it led wait for the next leader."""
        for group_id, (term, leader) in list(self._leaders.items()):
            if leader == node_id:
                self.forget_leader(group_id, node_id=leader, term=term)

    def forget_leader(self, group_id: int, *, node_id: int, term: int) -> None:
        """The node said, or showed by being gone, that it does not lead. It is asked again: it may
        have stood still for a while, lead on, and have no news to tell by itself."""
        if self._leaders.get(group_id) == (term, node_id):
            self._leaders[group_id] = (term, 0)
            self._tell(group_id)
            if node_id in self._nodes:
                self._nodes[node_id].leads_known = False

    def replica_gone(self, group_id: int) -> None:
        """The group has no replica at work here any more. Another node may lead it on, and requests
        for it still come here."""
        if self._my_leads.pop(group_id, None) is not None:
            self._leads_version += 1
        term, leader = self._leaders.get(group_id, (0, 0))
        if leader == self.node_id:
            self._leaders[group_id] = (term, 0)
            self._tell(group_id)

    def group_gone(self, group_id: int) -> None:
        """There is no such group any more."""
        if self._leaders.pop(group_id, None) is not None:
            self._tell(group_id)

    def leads_for(self, node_id: int) -> tuple[tuple[int, int], ...] | None:
        """What to tell a peer in the next beat: None if it knows."""
        state = self._nodes[node_id]
        if state.leads_version_sent == self._leads_version:
            return None
        state.leads_version_sent = self._leads_version
        return tuple(self._my_leads.items())

    def asks_leads(self, node_id: int) -> bool:
        """Whether to ask the peer in the next beat what it leads."""
        return not self._nodes[node_id].leads_known

    def leads_unsent(self) -> bool:
        for state in self._nodes.values():  # asked every turn: no generator for two nodes
            if state.leads_version_sent != self._leads_version:
                return True
        return False

    def resend_leads(self, node_id: int) -> None:
        if node_id in self._nodes:
            self._nodes[node_id].leads_version_sent = -1

    async def leader_change(self, group_id: int, seen: tuple[int, int] | None) -> None:
        """Returns once leader_of(group_id) differs from `seen`, at once if it does already. It may
        be `seen` again by then: who was told NOT_LEADER asks again when the leader is ready."""
        known = self.leader_of(group_id)
        while known == seen:
            future: asyncio.Future[tuple[int, int] | None]
            future = asyncio.get_running_loop().create_future()
            self._watchers.setdefault(group_id, []).append(future)
            try:
                known = await future
            finally:
                waiting = self._watchers.get(group_id)
                if waiting and future in waiting:
                    waiting.remove(future)

    def _tell(self, group_id: int) -> None:
        for future in self._watchers.pop(group_id, ()):
            if not future.done():
                future.set_result(self.leader_of(group_id))
