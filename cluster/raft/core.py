"""RaftCore: one replica of one group, as a machine that is fed and drained.

    step(message), tick(), propose(...), ...     feed it; it changes only memory
    ready() -> Ready                             drain it: what to write, send, answer
    synced(ready)                                entries and hard state of `ready` are on disk
    take_committed() -> entries                  what to apply now
    applied(index)                               the state machine is that far

The owner gives `ready.entries` to the store before it touches the core again. It may drain many
times before the first `synced`, which comes in the order of the readies. It writes
`ready.entries`, then `ready.hard_state` (rule R2) in one batch, sends `ready.messages` at once and
`ready.after_sync` not before its write and all earlier ones of the group are on disk (rule R1).
The core has no clock, no IO and no randomness of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.raft import candidate, follower, leader
from cluster.raft.configuration import Configuration
from cluster.raft.errors import ChangeRefused
from cluster.raft.log import Log, LogReader
from cluster.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    InstallSnapshotReply,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from cluster.raft.progress import Progress
from cluster.raft.state import RaftOptions, RaftState, RandomSource, Role


@dataclass(slots=True)
class Ready:
    """What one drain found. `number` rises by one per Ready of a core; `term` is the core's at that
    moment. `hard_state` is None when unchanged since the last Ready. `reads` are (context, index):
    answer once applied that far; `failed_reads` are contexts whose leader is gone. `install` orders
    a checkpoint fetch."""

    number: int
    term: int
    entries: list[Entry]
    hard_state: HardState | None
    messages: list[Message]
    after_sync: list[Message]
    reads: list[tuple[object, int]]
    failed_reads: list[object]
    install: InstallSnapshot | None

    @property
    def must_sync(self) -> bool:
        """A changed commit_index alone is a hint and does not need the disk."""
        return bool(self.entries) or self.hard_state is not None


class RaftCore:
    def __init__(
        self,
        *,
        replica_id: int,
        store: LogReader,
        hard_state: HardState,
        configurations: Sequence[tuple[int, Configuration]],
        applied_index: int,
        options: RaftOptions,
        random: RandomSource,
    ) -> None:
        """`configurations`: (index, configuration) rising, the base first; see LogStore. Everything
        the store holds counts as durable."""
        assert replica_id > 0, "replica ids start at 1"
        log = Log(
            store,
            commit_index=min(hard_state.commit_index, store.last_index),
            applied_index=applied_index,
        )
        self.state = RaftState(replica_id, log, hard_state, configurations, options, random)
        self._handed_hard_state = (hard_state.term, hard_state.voted_for)
        self._handed_committed = applied_index
        self._handed_install: InstallSnapshot | None = None
        self._number = 0

    # --- what it is ------------------------------------------------------------------------------

    @property
    def replica_id(self) -> int:
        return self.state.replica_id

    @property
    def term(self) -> int:
        return self.state.term

    @property
    def role(self) -> Role:
        return self.state.role

    @property
    def leader_id(self) -> int:
        return self.state.leader_id

    @property
    def log(self) -> Log:
        return self.state.log

    @property
    def configuration(self) -> Configuration:
        return self.state.configuration

    @property
    def quiesced(self) -> bool:
        return self.state.quiesced

    @property
    def progress(self) -> dict[int, Progress]:
        """Of every member while leading, else empty."""
        return self.state.leadership.progress if self.state.leadership else {}

    @property
    def transferee(self) -> int:
        return self.state.leadership.transferee if self.state.leadership else 0

    @property
    def has_output(self) -> bool:
        """Would `ready` find anything? (Reads and appends that are due are asked for by the caller
        that made them due.)"""
        state = self.state
        return bool(
            state.outbox
            or state.after_sync
            or state.log.unstable
            or state.failed_reads
            or (state.term, state.voted_for) != self._handed_hard_state
        )

    @property
    def is_at_rest(self) -> bool:
        """A leader that has nothing to say, to store, to confirm or to apply."""
        state = self.state
        if state.leadership is None or self.has_output or self.has_committed:
            return False
        return not leader.has_due(state)

    @property
    def leads_since_index(self) -> int:
        """Index of the no-op that opened this leader's term; 0 when not leading."""
        return self.state.leadership.first_index_of_term if self.state.leadership else 0

    # --- requests --------------------------------------------------------------------------------

    def propose(self, datas: list[bytes], *, expected_term: int = 0) -> int:
        """Append commands; the index of the first. Raises NotLeader, Transferring, Throttled: then
        nothing was appended."""
        return leader.propose(self.state, datas, expected_term=expected_term)

    def propose_learners(self, learners: Sequence[int]) -> int:
        """Raises NotLeader, Transferring, ChangeRefused."""
        current = self.state.configuration
        if any(current.is_voter(r) for r in learners):
            raise ChangeRefused(f"{sorted(learners)}: a voter of {current} can not be a learner")
        return leader.propose_configuration(self.state, current.with_learners(learners))

    def propose_voters(self, voters: Sequence[int]) -> int:
        """Start the joint change to `voters`; the leader leaves the joint state by itself once that
        is committed. Raises NotLeader, Transferring, ChangeRefused."""
        current = self.state.configuration
        if current.is_joint or tuple(sorted(set(voters))) == current.voters:
            return leader.propose_configuration(self.state, current)  # refused, with the reason
        return leader.propose_configuration(self.state, current.joint_to(voters))

    def read_index(self, context: object) -> None:
        """Ask for a linearizable read; answered in Ready.reads or Ready.failed_reads."""
        if self.state.leadership is None:
            self.state.failed_reads.append(context)
        else:
            leader.read_index(self.state, context)

    def transfer_leadership(self, target: int) -> None:
        """Raises NotLeader, ChangeRefused. Ends by itself after an election timeout."""
        leader.check_leads(self.state)
        leader.transfer_leadership(self.state, target)

    def campaign(self) -> None:
        """Start an election (with pre-vote) now, e.g. on the first replica of a new group."""
        if self.state.role is not Role.LEADER and not self.state.hears_leader:
            candidate.campaign(self.state)

    def set_reluctant(self, reluctant: bool) -> None:
        """Whether this replica should rather not lead. It still votes, goes on leading if it does,
        and campaigns when the others have let two election timeouts pass."""
        if reluctant != self.state.reluctant:
            self.state.reluctant = reluctant
            self.state.draw_election_timeout()

    # --- events ----------------------------------------------------------------------------------

    def tick(self) -> None:
        state = self.state
        if state.quiesced:
            return
        if state.role is Role.LEADER:
            leader.tick(state)
        elif state.role is Role.FOLLOWER:
            follower.tick(state)
        else:
            candidate.tick(state)

    def wake(self) -> None:
        """A node that this group counts on may be gone: start the clocks again (rule R20)."""
        self.state.wake()

    def leader_lost(self, *, rank: int = 0) -> None:
        """The leader's node is gone: no lease of its counts any more. The voters that are left
        campaign one after the other, in the order of their `rank` (0 is first). A turn is longer
        than the clocks of two nodes are apart, and the first one waits until the others know, too:
        random timeouts would take longer, and two would campaign at once and split the votes."""
        state = self.state
        state.wake()
        if state.role is Role.FOLLOWER:
            ticks = state.options.election_ticks
            turn = max(2, ticks // 4)
            state.election_elapsed = ticks
            state.election_timeout = ticks + 2 + rank * turn

    def announce_commit(self) -> None:
        """A leader's next turn tells all followers the commit index."""
        if self.state.leadership is not None:
            self.state.leadership.heartbeat_elapsed = self.state.options.heartbeat_ticks

    def unreachable(self, replica_id: int) -> None:
        if self.state.role is Role.LEADER:
            leader.unreachable(self.state, replica_id)

    def not_sent(self, message: AppendEntries) -> None:
        """The message, which `ready` gave, was not sent; nor were those after it to that replica
        that have entries."""
        if self.state.role is Role.LEADER:
            leader.not_sent(self.state, message)

    def step(self, message: Message) -> None:
        state = self.state
        assert message.to == state.replica_id, f"{message} is not for replica {state.replica_id}"
        if not (
            (isinstance(message, Heartbeat) and message.quiesce)
            or (isinstance(message, HeartbeatReply) and message.quiesced)
        ):
            state.wake()
        if message.term > state.term:
            if not self._accept_higher_term(message):
                return
        elif message.term < state.term:
            self._answer_lower_term(message)
            return
        self._dispatch(message)

    def _accept_higher_term(self, message: Message) -> bool:
        """Step down if the sender's term is real. False: the message ends here."""
        state = self.state
        if isinstance(message, PreVote):
            return True  # asks about a term that nobody is in yet
        if isinstance(message, PreVoteReply) and message.granted:
            return True  # carries the term that the campaign asked for
        if isinstance(message, RequestVote):
            if state.hears_leader and not message.leadership_transfer:
                return False  # a removed or cut-off replica must not disrupt (rule R7)
            state.become_follower(term=message.term, leader_id=0)
            return True
        from_leader = isinstance(message, AppendEntries | Heartbeat | InstallSnapshot)
        state.become_follower(term=message.term, leader_id=message.sender if from_leader else 0)
        return True

    def _answer_lower_term(self, message: Message) -> None:
        state = self.state
        if isinstance(message, AppendEntries | Heartbeat | InstallSnapshot):
            # Tells a leader of an older term that it is one; frees a replica that is stuck with a
            # higher term behind pre-vote (rule R6).
            state.after_sync.append(
                AppendEntriesReply(state.replica_id, message.sender, state.term, False, 0)
            )
        elif isinstance(message, PreVote):
            state.after_sync.append(
                PreVoteReply(state.replica_id, message.sender, state.term, False)
            )

    def _dispatch(self, message: Message) -> None:
        state = self.state
        match message:
            case AppendEntries():
                follower.follow(state, message.sender)
                follower.on_append_entries(state, message)
            case AppendEntriesReply():
                if state.role is Role.LEADER:
                    leader.on_append_reply(state, message)
            case Heartbeat():
                follower.follow(state, message.sender)
                follower.on_heartbeat(state, message)
            case HeartbeatReply():
                if state.role is Role.LEADER:
                    leader.on_heartbeat_reply(state, message)
            case PreVote():
                follower.on_pre_vote(state, message)
            case PreVoteReply():
                candidate.on_pre_vote_reply(state, message)
            case RequestVote():
                follower.on_request_vote(state, message)
            case RequestVoteReply():
                candidate.on_request_vote_reply(state, message)
            case InstallSnapshot():
                follower.follow(state, message.sender)
                follower.on_install_snapshot(state, message)
            case InstallSnapshotReply():
                if state.role is Role.LEADER:
                    leader.on_install_reply(state, message)
            case TimeoutNow():
                follower.on_timeout_now(state, message)
            case _:
                raise AssertionError(f"unknown message {message!r}")

    # --- draining --------------------------------------------------------------------------------

    def ready(self) -> Ready:
        """Everything that is due. The store must have `entries` before the next call to the
        core."""
        state, log = self.state, self.state.log
        self._number += 1
        reads = leader.collect(state) if state.leadership is not None else []
        hard_state = install = None
        hard = (state.term, state.voted_for)
        if hard != self._handed_hard_state or log.unstable:
            # With entries the commit index rides along for free: it spares replay after a restart.
            hard_state = HardState(state.term, state.voted_for, log.commit_index)
            self._handed_hard_state = hard
        if state.install is not self._handed_install:
            install = self._handed_install = state.install
        ready = Ready(
            self._number,
            state.term,
            log.hand_over(self._number),
            hard_state,
            state.outbox,
            state.after_sync,
            reads,
            state.failed_reads,
            install,
        )
        state.outbox, state.after_sync, state.failed_reads = [], [], []
        return ready

    def take_committed(self) -> list[Entry]:
        """Entries to apply: committed, on this replica's own disk, not handed out before."""
        committed = self.state.log.applicable(
            self._handed_committed, self.state.options.apply_bytes_max
        )
        if committed:
            self._handed_committed = committed[-1].index
        return committed

    def synced(self, ready: Ready) -> None:
        """`ready` and all before it are on disk. A claim of an older term about entries that were
        overwritten since counts only up to the overwriting (rule R11)."""
        self.state.log.synced(ready.number)
        if self.state.role is Role.LEADER:
            leader.synced(self.state)

    def applied(self, index: int) -> None:
        log = self.state.log
        assert log.applied_index <= index <= min(log.commit_index, log.durable_index), (
            f"applied {index}, was {log.applied_index}, commit {log.commit_index}, "
            f"durable {log.durable_index}"
        )
        log.applied_index = index

    def wants_checkpoint(self, *, index: int, term: int) -> bool:
        """To be asked right before the store switches to a fetched checkpoint. False when the log
        holds all of it by now: a switch would throw away entries after it, which this replica may
        have acknowledged. Then call `snapshot_refused`."""
        log = self.state.log
        return index > log.commit_index and not log.matches(index, term)

    def snapshot_installed(self, *, index: int, configuration: Configuration) -> None:
        """The store has switched to a checkpoint of `index` (in the batch of the next `synced`)."""
        state = self.state
        assert index > state.log.commit_index, f"checkpoint {index} <= {state.log.commit_index}"
        install, state.install = state.install, None
        self._handed_install = None
        state.log.reset_to(index)
        self._handed_hard_state = (-1, -1)  # the answer must wait for the disk: make a write of it
        state.configurations = [(index, configuration)]
        self._handed_committed = index
        if install is not None:
            state.after_sync.append(
                InstallSnapshotReply(state.replica_id, install.sender, state.term, True, index)
            )

    @property
    def has_committed(self) -> bool:
        """Would `take_committed` find something?"""
        log, handed = self.state.log, self._handed_committed
        return log.commit_index > handed and log.durable_index > handed

    def snapshot_refused(self) -> None:
        """The checkpoint is not needed any more, or can not be had from that sender."""
        state = self.state
        install, state.install = state.install, None
        self._handed_install = None
        if install is not None:
            state.after_sync.append(
                InstallSnapshotReply(
                    state.replica_id, install.sender, state.term, False, state.log.commit_index
                )
            )
