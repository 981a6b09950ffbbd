"""A group of pure cores whose messages and disks a test moves by hand.

group = RaftGroup([1, 2, 3])
group.elect(1)                        a settled leader; everything delivered and synced
group.slow = [2]                      2's writes wait for `group.sync(2)`
group.core(1).propose([b"a"]); group.turn(1)
group.deliver(AppendEntries, to=2)    what waits of that kind for that replica
group.flow()                          everything, until nothing moves
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from cluster.raft.configuration import Configuration
from cluster.raft.core import RaftCore
from cluster.raft.messages import Entry, Message
from cluster.raft.state import RaftOptions, Role
from tests.simulation.raft_replica import REAL, MemoryLog, Replica

MessageT = TypeVar("MessageT", bound=Message)
_ROUNDS_MAX = 100


class ShortestTimeout:
    """Every election timeout is the shortest there is."""

    def randrange(self, start: int, stop: int) -> int:
        return start


class RaftGroup:
    """`waiting` are the messages on their way; those of and for replicas in `cut_off` are lost."""

    def __init__(
        self, voters: Sequence[int], *, learners: Sequence[int] = (), **options: int
    ) -> None:
        self.options = RaftOptions(**{"quiesce_ticks": 0, **options})  # type: ignore[arg-type]
        self.replicas: dict[int, Replica] = {}
        self.waiting: list[Message] = []
        self.slow: list[int] = []
        self.cut_off: list[int] = []
        founding = Configuration.of(voters, learners)
        for replica_id in founding.members():
            self.add(replica_id, [(0, founding)])

    def add(
        self, replica_id: int, configurations: Sequence[tuple[int, Configuration]] = ()
    ) -> None:
        log = MemoryLog(REAL, configurations)
        self.replicas[replica_id] = Replica(REAL, replica_id, log, self.options, ShortestTimeout())
        self.replicas[replica_id].start()

    def core(self, replica_id: int) -> RaftCore:
        core: Any = self.replicas[replica_id].core
        assert isinstance(core, RaftCore), f"replica {replica_id} is down"
        return core

    def log_of(self, replica_id: int) -> list[Entry]:
        log = self.core(replica_id).log
        return log.entries(log.first_index, log.last_index, 1 << 30) if log.last_index else []

    def datas(self, replica_id: int) -> list[bytes]:
        """Of the commands in its log."""
        return [entry.data for entry in self.log_of(replica_id) if entry.kind == 2]

    # --- moving ----------------------------------------------------------------------------------

    def turn(self, replica_id: int) -> None:
        """Drain the replica, sync unless it is slow, apply what may be applied."""
        replica = self.replicas[replica_id]
        while True:
            before = len(replica.pending)
            self._send(replica.drain())
            fresh = len(replica.pending) > before
            if fresh and replica_id not in self.slow:
                self._send(replica.sync())
            if not replica.apply() and not fresh:
                return

    def sync(self, replica_id: int, count: int | None = None) -> None:
        """The first `count` writes (None: all) of a slow replica reach its disk."""
        self._send(self.replicas[replica_id].sync(count))
        self.turn(replica_id)

    def step(self, message: Message) -> None:
        replica = self.replicas.get(message.to)
        if replica is not None and replica.is_up:
            replica.core.step(message)
            self.turn(message.to)

    def sent(self, kind: type[MessageT], *, to: int = 0, by: int = 0) -> list[MessageT]:
        """What waits of that kind."""
        return [
            m
            for m in self.waiting
            if isinstance(m, kind) and to in (0, m.to) and by in (0, m.sender)
        ]

    def deliver(self, kind: type[MessageT], *, to: int = 0, by: int = 0) -> list[MessageT]:
        """Hands over what waits of that kind now, and returns it."""
        chosen = self.drop(kind, to=to, by=by)
        for message in chosen:
            self.step(message)
        return chosen

    def drop(self, kind: type[MessageT], *, to: int = 0, by: int = 0) -> list[MessageT]:
        chosen = self.sent(kind, to=to, by=by)
        self.waiting = [m for m in self.waiting if not any(m is c for c in chosen)]
        return chosen

    def flow(self) -> None:
        for _ in range(_ROUNDS_MAX):
            if not self.waiting:
                return
            waiting, self.waiting = self.waiting, []
            for message in waiting:
                self.step(message)
        raise AssertionError(f"messages without end: {self.waiting}")

    def tick(self, replica_id: int, count: int = 1) -> None:
        for _ in range(count):
            self.core(replica_id).tick()
            self.turn(replica_id)

    def beat(self, leader: int) -> None:
        """A heartbeat interval of the leader passes, and all it says arrives."""
        self.tick(leader, self.options.heartbeat_ticks)
        self.flow()

    def crash(self, replica_id: int, *, keep: int = 0) -> None:
        """And restart at once. `keep`: how many of its unsynced writes survive."""
        self.replicas[replica_id].crash(keep=keep)
        self.replicas[replica_id].start()
        self.turn(replica_id)

    def _send(self, messages: list[Message]) -> None:
        for message in messages:
            if message.sender not in self.cut_off and message.to not in self.cut_off:
                self.waiting.append(message)

    # --- getting somewhere -----------------------------------------------------------------------

    def elect(self, replica_id: int) -> None:
        """The others have forgotten whoever led before."""
        for replica in self.replicas.values():
            if replica.is_up and replica.replica_id not in self.cut_off:
                replica.core.leader_lost()
        self.core(replica_id).campaign()
        self.turn(replica_id)
        self.flow()
        assert self.core(replica_id).role is Role.LEADER, f"{self.core(replica_id).role}"

    def hand_over(self, leader: int, *, to: int) -> None:
        self.core(leader).transfer_leadership(to)
        self.turn(leader)
        self.flow()
        assert self.core(to).role is Role.LEADER, f"{self.core(to).role}"

    def propose(self, leader: int, *datas: bytes) -> int:
        """The index of the first."""
        index = self.core(leader).propose(list(datas))
        self.turn(leader)
        return index
