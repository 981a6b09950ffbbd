"""What a replica does for others' sake: vote, and follow a leader's log (Raft figure 2)."""

from __future__ import annotations

from cluster.raft import candidate
from cluster.raft.configuration import Configuration
from cluster.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    InstallSnapshotReply,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from cluster.raft.state import RaftState, Role


def tick(state: RaftState) -> None:
    state.election_elapsed += 1
    if state.election_elapsed < state.election_timeout:
        return
    if state.is_promotable:
        candidate.campaign(state)
    else:
        state.election_elapsed = 0
        state.leader_id = 0  # a learner does not campaign but should know that nobody leads


def on_pre_vote(state: RaftState, message: PreVote) -> None:
    """Grants by the candidate's log and term alone, whatever configuration this replica knows (bug
    class 24). Leaves term, vote and clock as they are (rule R6)."""
    granted = (
        message.term > state.term
        and not state.hears_leader
        and state.log.is_up_to_date(
            last_log_index=message.last_log_index, last_log_term=message.last_log_term
        )
    )
    if state.leadership is not None:
        state.leadership.stay_awake(heartbeat_elapsed=state.options.heartbeat_ticks)
    term = message.term if granted else state.term
    state.after_sync.append(PreVoteReply(state.replica_id, message.sender, term, granted))


def on_request_vote(state: RaftState, message: RequestVote) -> None:
    """message.term == state.term here; a lease that forbids voting was checked by the core."""
    free = state.voted_for == message.sender or (state.voted_for == 0 and state.leader_id == 0)
    granted = free and state.log.is_up_to_date(
        last_log_index=message.last_log_index, last_log_term=message.last_log_term
    )
    if granted:
        state.voted_for = message.sender
        state.election_elapsed = 0
    state.after_sync.append(RequestVoteReply(state.replica_id, message.sender, state.term, granted))


def follow(state: RaftState, leader_id: int) -> None:
    """A message of the leader of this term arrived."""
    assert state.leader_id in (0, leader_id), (
        f"two leaders in term {state.term}: {state.leader_id} and {leader_id}"
    )
    if state.role is not Role.FOLLOWER:
        state.become_follower(term=state.term, leader_id=leader_id)
    state.leader_id = leader_id
    state.election_elapsed = 0


def on_append_entries(state: RaftState, message: AppendEntries) -> None:
    log = state.log
    prev = message.prev_log_index
    if prev < log.commit_index:
        _reply_success(state, message.sender, log.commit_index)  # late or repeated
        return
    if not log.matches(prev, message.prev_log_term):
        conflict_index, conflict_term = log.find_last_at_most(prev, message.prev_log_term)
        state.after_sync.append(
            AppendEntriesReply(
                state.replica_id,
                message.sender,
                state.term,
                False,
                prev,
                conflict_index,
                conflict_term,
            )
        )
        return
    at = log.find_conflict(message.entries)
    if at < len(message.entries):
        append(state, message.entries[at:])
    last_new = prev + len(message.entries)
    log.commit_index = max(log.commit_index, min(message.leader_commit, last_new))
    _reply_success(state, message.sender, last_new)
    if state.install is not None and log.matches(
        state.install.snapshot_index, state.install.snapshot_term
    ):
        state.install = None  # another leader had all that was missing


def append(state: RaftState, entries: list[Entry]) -> None:
    """Into the log, with the configurations among them taking effect and those truncated undone."""
    state.truncate_configurations(entries[0].index)
    state.log.append(entries)
    for entry in entries:
        if entry.kind is EntryKind.CONFIGURATION:
            state.configurations.append((entry.index, Configuration.decode(entry.data)))


def _reply_success(state: RaftState, to: int, match_index: int) -> None:
    state.after_sync.append(AppendEntriesReply(state.replica_id, to, state.term, True, match_index))


def on_heartbeat(state: RaftState, message: Heartbeat) -> None:
    log = state.log
    # The leader never announces more than this replica has acknowledged (rule R3); the minimum
    # guards against one that acknowledged and lost its disk.
    log.commit_index = max(log.commit_index, min(message.leader_commit, log.last_index))
    state.quiesced = (
        message.quiesce
        and log.last_index == message.leader_commit
        and log.applied_index == log.last_index
        and log.durable_index == log.last_index
    )
    state.outbox.append(
        HeartbeatReply(
            state.replica_id,
            message.sender,
            state.term,
            message.read_round,
            state.quiesced,
            log.last_index,
        )
    )


def on_install_snapshot(state: RaftState, message: InstallSnapshot) -> None:
    log = state.log
    if message.snapshot_index <= log.commit_index or log.matches(
        message.snapshot_index, message.snapshot_term
    ):
        # Nothing to install: what it covers is here (and therefore committed).
        log.commit_index = max(log.commit_index, message.snapshot_index)
        state.after_sync.append(
            InstallSnapshotReply(
                state.replica_id, message.sender, state.term, True, log.commit_index
            )
        )
        return
    if state.install is None or state.install.sender != message.sender:
        state.install = message


def on_timeout_now(state: RaftState, message: TimeoutNow) -> None:
    if state.role is Role.FOLLOWER and state.leader_id == message.sender:
        candidate.campaign(state, leadership_transfer=True)
