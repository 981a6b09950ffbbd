"""The state of one replica and the transitions between its roles.

    FOLLOWER -> PRE_CANDIDATE -> CANDIDATE -> LEADER         (timeouts and votes)
        ^___________|_______________|__________|             (higher term, lost election, no quorum)
    FOLLOWER -> CANDIDATE                                    (TimeoutNow: leadership transfer)

What each role does is in follower.py, candidate.py and leader.py; core.py dispatches. Outgoing
messages collect in `outbox` (may leave now) and `after_sync` (may leave once everything changed so
far is on disk, rule R1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from cluster.raft.configuration import Configuration
from cluster.raft.log import Log
from cluster.raft.messages import HardState, InstallSnapshot, Message

if TYPE_CHECKING:
    from cluster.raft.leader import Leadership


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


TRANSITIONS: dict[Role, tuple[Role, ...]] = {
    Role.FOLLOWER: (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE),
    Role.PRE_CANDIDATE: (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE),
    Role.CANDIDATE: (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER),
    Role.LEADER: (Role.FOLLOWER,),
}


class RandomSource(Protocol):
    """The one thing a core needs of random.Random; injected, so that a seed replays a run."""

    def randrange(self, start: int, stop: int) -> int: ...


@dataclass(frozen=True, slots=True)
class RaftOptions:
    """Bounds and clocks of one group. Ticks are the host's (`tick_ms`); bytes are entry data bytes.

    election_ticks          shortest silence after which a follower campaigns; the real one is drawn
                            from [election_ticks, 2 * election_ticks) for each campaign
    heartbeat_ticks         between two heartbeats of a leader
    inflight_*_max          AppendEntries on the way to one replica
    append_bytes_max        entries of one AppendEntries
    apply_bytes_max         committed entries handed out in one turn
    uncommitted_bytes_max   proposed and not committed; beyond it proposals are refused: Throttled
    quiesce_ticks           idle time after which a group whose replicas all agree stops its clocks;
                            0 = never
    announce_commit         tell followers of every commit at once, not with the next message; for
                            the controller group, whose followers act on what they apply
    """

    election_ticks: int = 10
    heartbeat_ticks: int = 2
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 8 << 20
    append_bytes_max: int = 1 << 20
    apply_bytes_max: int = 4 << 20
    uncommitted_bytes_max: int = 32 << 20
    quiesce_ticks: int = 20
    announce_commit: bool = False


class RaftState:
    """Data of one replica, shared by the rooms of the roles. `leader_id` is 0 when unknown."""

    def __init__(
        self,
        replica_id: int,
        log: Log,
        hard_state: HardState,
        configurations: Sequence[tuple[int, Configuration]],
        options: RaftOptions,
        random: RandomSource,
    ) -> None:
        self.replica_id = replica_id
        self.log = log
        self.term = hard_state.term
        self.voted_for = hard_state.voted_for
        self.configurations = list(configurations)
        self.options = options
        self.random = random
        self.role = Role.FOLLOWER
        self.leader_id = 0
        self.election_elapsed = 0
        self.election_timeout = 0
        self.quiesced = False
        self.reluctant = False  # should not lead: campaigns after all others had their chance
        self.votes: dict[int, bool] = {}
        self.leadership: Leadership | None = None
        self.install: InstallSnapshot | None = None  # the checkpoint being fetched
        self.outbox: list[Message] = []
        self.after_sync: list[Message] = []
        self.failed_reads: list[object] = []
        self.draw_election_timeout()

    @property
    def configuration(self) -> Configuration:
        """The latest in the log, committed or not (dissertation §4.1)."""
        return self.configurations[-1][1] if self.configurations else Configuration()

    @property
    def configuration_index(self) -> int:
        return self.configurations[-1][0] if self.configurations else 0

    @property
    def is_promotable(self) -> bool:
        """May this replica campaign? Not while it waits for a checkpoint. One that an uncommitted
        configuration leaves out still may: it can be the only one alive that holds that entry, so
        that no other can win (dissertation §4.2.2). Its vote for itself does not count then."""
        if self.install is not None:
            return False
        for index, configuration in reversed(self.configurations):
            if configuration.is_voter(self.replica_id):
                return True
            if index <= self.log.commit_index:
                return False
        return False

    @property
    def hears_leader(self) -> bool:
        """Within the lease that keeps disruptive candidates out (rules R6, R7)."""
        if self.role is Role.LEADER:
            return True  # check-quorum ends it when it no longer should
        return self.leader_id != 0 and (
            self.quiesced or self.election_elapsed < self.options.election_ticks
        )

    def draw_election_timeout(self) -> None:
        ticks = self.options.election_ticks
        shortest = 3 * ticks if self.reluctant else ticks
        self.election_timeout = self.random.randrange(shortest, shortest + ticks)

    def wake(self) -> None:
        if self.quiesced:
            self.quiesced = False
            self.election_elapsed = 0
            if self.leadership is not None:
                self.leadership.stay_awake(heartbeat_elapsed=self.options.heartbeat_ticks)

    def change_role(self, role: Role) -> None:
        assert role in TRANSITIONS[self.role], f"{self.role.value} may not become {role.value}"
        if self.role is Role.LEADER and self.leadership is not None:
            self.failed_reads.extend(self.leadership.abandon_reads())
            self.leadership = None
        self.role = role
        self.election_elapsed = 0
        self.quiesced = False
        self.votes = {}
        self.draw_election_timeout()

    def become_follower(self, *, term: int, leader_id: int) -> None:
        assert term >= self.term, f"term going back from {self.term} to {term}"
        if term > self.term:
            self.term = term
            self.voted_for = 0
        self.change_role(Role.FOLLOWER)
        self.leader_id = leader_id

    def truncate_configurations(self, first: int) -> None:
        """Entries from `first` on are gone, and the configurations among them with them."""
        while self.configurations and self.configurations[-1][0] >= first:
            self.configurations.pop()
        # The base (compaction point or founding configuration) is committed and never truncated.
