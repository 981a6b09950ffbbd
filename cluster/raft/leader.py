"""What the leader of a term does: replicate, commit, confirm reads, change members, hand over.

Replication is lazy: nothing is sent when something is proposed; `collect` sends what each
replica lacks when the host collects a turn, so that all proposals of the turn share one message.
"""

from __future__ import annotations

from collections import deque

from cluster.raft import follower
from cluster.raft.configuration import Configuration
from cluster.raft.errors import ChangeRefused, Compacted, NotLeader, Throttled, Transferring
from cluster.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    InstallSnapshotReply,
    TimeoutNow,
)
from cluster.raft.progress import Progress, ProgressState
from cluster.raft.quorum import quorum_index
from cluster.raft.state import RaftState, Role


class Leadership:
    """What exists only while a replica leads. Dropped whole when it no longer does."""

    def __init__(self, first_index_of_term: int) -> None:
        self.first_index_of_term = first_index_of_term  # the no-op: nothing is decided before it
        self.progress: dict[int, Progress] = {}
        self.uncommitted: deque[tuple[int, int]] = deque()  # (index, data bytes)
        self.uncommitted_bytes = 0
        self.heartbeat_elapsed = 0
        self.idle_ticks = 0
        self.transferee = 0
        self.transfer_elapsed = 0
        self.new_reads: list[object] = []  # contexts that no round covers yet
        self.reads: deque[tuple[int, int, object]] = deque()  # (round, read index, context)
        self.read_round = 0

    def stay_awake(self, *, heartbeat_elapsed: int) -> None:
        """Someone did not hear this leader: speak up with this turn, and stop the clocks only after
        an idle time has passed anew."""
        self.heartbeat_elapsed = heartbeat_elapsed
        self.idle_ticks = 0

    def abandon_reads(self) -> list[object]:
        return [context for _, _, context in self.reads] + self.new_reads


def become_leader(state: RaftState) -> None:
    state.change_role(Role.LEADER)
    state.leader_id = state.replica_id
    log = state.log
    state.leadership = Leadership(log.last_index + 1)
    _follow_configuration(state)
    _append(state, EntryKind.NOOP, [b""])


def leadership_of(state: RaftState) -> Leadership:
    assert state.leadership is not None, f"replica {state.replica_id} does not lead"
    return state.leadership


def _follow_configuration(state: RaftState) -> None:
    """One Progress per member, in order of replica ids."""
    lead = leadership_of(state)
    known = lead.progress
    lead.progress = {}
    for member in state.configuration.members():
        progress = known.get(member) or Progress(state.log.last_index + 1)
        if member == state.replica_id:
            progress.matched(state.log.durable_index)
        if member not in known:
            progress.recent_active = True  # a full period to answer before it counts as silent
        lead.progress[member] = progress
    if not state.configuration.is_voter(lead.transferee):
        lead.transferee = 0  # it was to take over and is being removed


def _append(state: RaftState, kind: EntryKind, datas: list[bytes]) -> int:
    """Append own entries; the index of the first."""
    lead = leadership_of(state)
    index = first = state.log.last_index + 1
    entries = []
    for data in datas:
        entries.append(Entry.create(index=index, term=state.term, kind=kind, data=data))
        lead.uncommitted.append((index, len(data)))
        lead.uncommitted_bytes += len(data)
        index += 1
    follower.append(state, entries)
    lead.idle_ticks = 0
    return first


# --- requests ------------------------------------------------------------------------------------


def check_leads(state: RaftState, *, expected_term: int = 0) -> Leadership:
    if state.leadership is None:
        raise NotLeader("this replica does not lead", leader_id=state.leader_id)
    if expected_term not in (0, state.term):
        raise NotLeader(f"decided in term {expected_term}, now {state.term}", leader_id=0)
    if state.leadership.transferee:
        raise Transferring("leadership is being handed over", leader_id=state.leadership.transferee)
    return state.leadership


def propose(state: RaftState, datas: list[bytes], *, expected_term: int) -> int:
    lead = check_leads(state, expected_term=expected_term)
    if lead.uncommitted_bytes >= state.options.uncommitted_bytes_max:
        raise Throttled(
            f"{lead.uncommitted_bytes} bytes wait for a quorum, at most "
            f"{state.options.uncommitted_bytes_max}",
            leader_id=state.replica_id,
        )
    state.wake()
    return _append(state, EntryKind.COMMAND, datas)


def propose_configuration(state: RaftState, configuration: Configuration) -> int:
    """Rule R8: one change at a time, and only after an entry of the own term is committed."""
    lead = check_leads(state)
    current = state.configuration
    if state.configuration_index > state.log.commit_index:
        raise ChangeRefused(f"the change at {state.configuration_index} is not committed yet")
    if state.log.commit_index < lead.first_index_of_term:
        raise ChangeRefused("no entry of this term is committed yet")
    if current.is_joint:
        raise ChangeRefused(f"a joint change is under way: {current}")
    if not configuration.voters:
        raise ChangeRefused("a group needs a voter")
    if configuration.is_joint:
        if configuration.voters_outgoing != current.voters:
            raise ChangeRefused(f"joint change from {configuration.voters_outgoing}, not {current}")
    elif configuration.voters != current.voters:
        raise ChangeRefused("voters change only through a joint configuration")
    if configuration == current:
        raise ChangeRefused(f"already so: {configuration}")
    state.wake()
    return _append_configuration(state, configuration)


def _append_configuration(state: RaftState, configuration: Configuration) -> int:
    index = _append(state, EntryKind.CONFIGURATION, [configuration.encode()])
    _follow_configuration(state)
    return index


def read_index(state: RaftState, context: object) -> None:
    """Answered as (context, index) once a round of heartbeats that began after this call came back
    from a quorum, and the first entry of this term is committed (rule R4)."""
    lead = leadership_of(state)
    state.wake()
    lead.idle_ticks = 0
    lead.new_reads.append(context)


def transfer_leadership(state: RaftState, target: int) -> None:
    lead = leadership_of(state)
    if not state.configuration.is_voter(target):
        raise ChangeRefused(f"replica {target} is not a voter")
    if target == state.replica_id or lead.transferee == target:
        return
    if lead.transferee:
        raise ChangeRefused(f"already handing over to {lead.transferee}")
    state.wake()
    lead.transferee = target
    lead.transfer_elapsed = 0
    lead.idle_ticks = 0
    _maybe_hand_over(state, lead)


def _maybe_hand_over(state: RaftState, lead: Leadership) -> None:
    """To the transferee, once it has the whole log."""
    if lead.progress[lead.transferee].match_index == state.log.last_index:
        state.outbox.append(TimeoutNow(state.replica_id, lead.transferee, state.term))


# --- time ----------------------------------------------------------------------------------------


def tick(state: RaftState) -> None:
    lead = leadership_of(state)
    state.election_elapsed += 1
    if state.election_elapsed >= state.options.election_ticks:
        state.election_elapsed = 0
        if not _hears_quorum(state):
            state.become_follower(term=state.term, leader_id=0)
            return
    if lead.transferee:
        lead.transfer_elapsed += 1
        if lead.transfer_elapsed >= state.options.election_ticks:
            lead.transferee = 0  # it did not take over: lead on
    if state.election_elapsed % state.options.heartbeat_ticks == 0:
        for progress in lead.progress.values():
            progress.watch()
    lead.idle_ticks += 1
    lead.heartbeat_elapsed += 1
    if lead.heartbeat_elapsed >= state.options.heartbeat_ticks:
        _send_heartbeats(state)


def _hears_quorum(state: RaftState) -> bool:
    """Check-quorum: heard from a majority since the last check? (bug class 30)"""
    lead = leadership_of(state)

    def active(member: int) -> int:
        return int(member == state.replica_id or lead.progress[member].recent_active)

    hears = quorum_index(state.configuration, active) == 1
    for progress in lead.progress.values():
        progress.recent_active = False
    return hears


def _agrees_everywhere(state: RaftState) -> bool:
    log, lead = state.log, leadership_of(state)
    last = log.last_index
    return (
        log.commit_index == last
        and log.applied_index == last
        and not state.configuration.is_joint
        and not lead.transferee
        and not lead.reads
        and not lead.new_reads
        and all(p.match_index == last for p in lead.progress.values())
    )


def _send_heartbeats(state: RaftState) -> None:
    lead = leadership_of(state)
    lead.heartbeat_elapsed = 0
    limit = state.options.quiesce_ticks
    quiesce = bool(limit) and lead.idle_ticks >= limit and _agrees_everywhere(state)
    if quiesce and all(p.quiesced for m, p in lead.progress.items() if m != state.replica_id):
        state.quiesced = True  # everyone stopped its clock: node liveness watches now (rule R20)
        return
    for member, progress in lead.progress.items():
        if member == state.replica_id:
            continue
        if not quiesce:
            progress.quiesced = False  # an earlier answer may be forgotten by now
        commit = min(progress.match_index, state.log.commit_index)
        state.outbox.append(
            Heartbeat(state.replica_id, member, state.term, commit, lead.read_round, quiesce)
        )
        if progress.state is ProgressState.SNAPSHOT:
            _send_install(
                state, member, progress
            )  # the first order may be lost; repeats are no-ops


# --- answers -------------------------------------------------------------------------------------


def on_append_reply(state: RaftState, message: AppendEntriesReply) -> None:
    lead = leadership_of(state)
    progress = lead.progress.get(message.sender)
    if progress is None:
        return
    progress.recent_active = True
    if not message.success:
        probe, _ = state.log.find_last_at_most(message.conflict_index, message.conflict_term)
        progress.refused(prev_index=message.match_index, probe_index=probe)
        return
    if message.match_index > state.log.last_index:
        return  # cannot be of this log; never count it
    news = progress.matched(message.match_index)
    if progress.state is ProgressState.PROBE:
        progress.become_replicate()
    elif (
        progress.state is ProgressState.SNAPSHOT and progress.match_index >= progress.snapshot_index
    ):
        progress.become_probe()
    if news:
        _maybe_commit(state, progress)
        if state.leadership is lead and lead.transferee == message.sender:
            _maybe_hand_over(state, lead)


def on_heartbeat_reply(state: RaftState, message: HeartbeatReply) -> None:
    lead = leadership_of(state)
    progress = lead.progress.get(message.sender)
    if progress is None:
        return
    progress.recent_active = True
    progress.held = False
    progress.quiesced = message.quiesced
    if progress.state is ProgressState.PROBE:
        progress.probe_sent = False
    elif progress.stalled:
        progress.become_probe()  # it hears us, yet nothing comes of what was sent: it was lost
    if message.read_round > progress.acked_round:
        progress.acked_round = message.read_round


def on_install_reply(state: RaftState, message: InstallSnapshotReply) -> None:
    lead = leadership_of(state)
    progress = lead.progress.get(message.sender)
    if progress is None:
        return
    progress.recent_active = True
    if message.snapshot_index > state.log.last_index:
        return  # of a newer leader: this one is deposed and does not know
    if progress.state is ProgressState.SNAPSHOT and message.success:
        progress.snapshot_index = max(progress.snapshot_index, message.snapshot_index)
        progress.become_probe()
    # After a failure the next heartbeat repeats the order: no tight loop of orders and refusals.


def unreachable(state: RaftState, replica_id: int) -> None:
    """The transport lost messages to this replica: go back to one at a time."""
    lead = leadership_of(state)
    progress = lead.progress.get(replica_id)
    if progress is not None and progress.state is ProgressState.REPLICATE:
        progress.become_probe()


def not_sent(state: RaftState, message: AppendEntries) -> None:
    lead = leadership_of(state)
    progress = lead.progress.get(message.to)
    if progress is not None and message.term == state.term:
        progress.not_sent(message.prev_log_index)


def synced(state: RaftState) -> None:
    """The own disk caught up: the leader now counts itself that far (rule R1)."""
    lead = leadership_of(state)
    progress = lead.progress.get(state.replica_id)
    if progress is not None and progress.matched(state.log.durable_index):
        _maybe_commit(state, progress)


# --- commit --------------------------------------------------------------------------------------


def _maybe_commit(state: RaftState, news: Progress) -> None:
    """A replica got further: perhaps a quorum did by it."""
    lead, log = leadership_of(state), state.log
    if news.match_index <= log.commit_index:
        return
    index = quorum_index(state.configuration, lambda m: lead.progress[m].match_index)
    if index <= log.commit_index or log.term(index) != state.term:
        return  # only entries of the own term commit by counting (rule R3)
    log.commit_index = index
    while lead.uncommitted and lead.uncommitted[0][0] <= index:
        lead.uncommitted_bytes -= lead.uncommitted.popleft()[1]
    if state.options.announce_commit:
        lead.heartbeat_elapsed = state.options.heartbeat_ticks  # sent when this turn is collected
    configuration = state.configuration
    if state.configuration_index > index:
        return
    if configuration.is_joint:
        _append_configuration(state, configuration.leave_joint())
    elif not configuration.is_voter(state.replica_id):
        _leave(state)


def _leave(state: RaftState) -> None:
    """This replica led its own removal (dissertation §4.2.2): ask the best voter to take over."""
    lead = leadership_of(state)
    best = max(state.configuration.voters, key=lambda v: (lead.progress[v].match_index, -v))
    state.outbox.append(TimeoutNow(state.replica_id, best, state.term))
    state.become_follower(term=state.term, leader_id=0)


# --- collecting a turn ---------------------------------------------------------------------------


def collect(state: RaftState) -> list[tuple[object, int]]:
    """Build the messages of this turn into the outbox. Returns the reads confirmed by now."""
    lead = leadership_of(state)
    confirmed = _confirm_reads(state, lead)
    _build_appends(state, lead)
    if lead.heartbeat_elapsed >= state.options.heartbeat_ticks and not state.quiesced:
        _send_heartbeats(state)
    return confirmed


def has_due(state: RaftState) -> bool:
    """Might `collect` do something? True also for appends that have to wait for room."""
    lead = leadership_of(state)
    return (
        bool(lead.reads or lead.new_reads)
        or lead.heartbeat_elapsed >= state.options.heartbeat_ticks
        or any(
            _has_news(progress, state.log.last_index)
            for member, progress in lead.progress.items()
            if member != state.replica_id
        )
    )


def _confirm_reads(state: RaftState, lead: Leadership) -> list[tuple[object, int]]:
    if lead.new_reads and state.log.commit_index >= lead.first_index_of_term:
        lead.read_round += 1
        for context in lead.new_reads:
            lead.reads.append((lead.read_round, state.log.commit_index, context))
        lead.new_reads = []
        lead.heartbeat_elapsed = state.options.heartbeat_ticks  # the round leaves with this turn
    if not lead.reads:
        return []

    def acked(member: int) -> int:
        return lead.read_round if member == state.replica_id else lead.progress[member].acked_round

    done = quorum_index(state.configuration, acked)
    confirmed = []
    while lead.reads and lead.reads[0][0] <= done:
        _, index, context = lead.reads.popleft()
        confirmed.append((context, index))
    return confirmed


def _build_appends(state: RaftState, lead: Leadership) -> None:
    options, last_index = state.options, state.log.last_index
    for member, progress in lead.progress.items():
        if member == state.replica_id:
            continue
        while _has_news(progress, last_index) and not progress.is_paused(
            messages_max=options.inflight_messages_max, bytes_max=options.inflight_bytes_max
        ):
            if not _send_append(state, member, progress):
                break


def _has_news(progress: Progress, last_index: int) -> bool:
    if progress.state is ProgressState.PROBE:
        return progress.match_index < last_index
    return progress.next_index <= last_index


def _send_append(state: RaftState, member: int, progress: Progress) -> bool:
    log = state.log
    prev = progress.next_index - 1
    try:
        prev_term = log.term(prev)
        entries: list[Entry] = []
        # A probe carries entries too: most probes succeed, and one round trip is saved.
        if progress.next_index <= log.last_index:
            entries = log.entries(
                progress.next_index, log.last_index, state.options.append_bytes_max
            )
    except Compacted:
        progress.become_snapshot(log.first_index - 1)
        _send_install(state, member, progress)
        return False
    state.outbox.append(
        AppendEntries(
            state.replica_id, member, state.term, prev, prev_term, log.commit_index, entries
        )
    )
    progress.sent(prev + len(entries), sum([len(e.data) for e in entries]))
    return True


def _send_install(state: RaftState, member: int, progress: Progress) -> None:
    index = progress.snapshot_index = state.log.first_index - 1
    state.outbox.append(
        InstallSnapshot(state.replica_id, member, state.term, index, state.log.term(index))
    )
