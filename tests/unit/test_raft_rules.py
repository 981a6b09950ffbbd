"""Rules R1 to R7 of the core: disks, commitment, reads, elections. Each test names its rule and the
section it rests on: Raft = "In Search of an Understandable Consensus Algorithm (extended version)",
dissertation = "Consensus: Bridging Theory and Practice".
"""

from __future__ import annotations

from typing import Any

from cluster.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
)
from cluster.raft.state import Role
from tests.simulation.raft_group import RaftGroup


def led(voters: int = 3, **options: Any) -> RaftGroup:
    """A group that 1 leads in term 1, its no-op committed everywhere."""
    group = RaftGroup(range(1, voters + 1), **options)
    group.elect(1)
    group.beat(1)
    return group


def win(group: RaftGroup, candidate: int) -> None:
    """Elected; the appends of its term are on their way."""
    group.core(candidate).campaign()
    group.turn(candidate)
    for kind in (PreVote, PreVoteReply, RequestVote, RequestVoteReply):
        group.deliver(kind)
    assert group.core(candidate).role is Role.LEADER


def entry(index: int, term: int, data: bytes = b"x") -> Entry:
    return Entry.create(index=index, term=term, kind=EntryKind.COMMAND, data=data)


# --- R1: persist, then answer ---------------------------------------------------------------------


def test_r1_a_vote_is_told_after_it_is_on_disk() -> None:
    """Raft figure 2, "persistent state ... updated on stable storage before responding to RPCs"."""
    group = RaftGroup([1, 2, 3])
    group.slow = [2]
    group.step(RequestVote(1, 2, 1, 0, 0))
    assert not group.sent(RequestVoteReply)
    group.sync(2)
    assert [reply.granted for reply in group.sent(RequestVoteReply)] == [True]


def test_r1_a_restarted_voter_votes_for_nobody_else_in_that_term() -> None:
    """Raft §5.2: at most one vote a term (bug class 19)."""
    group = RaftGroup([1, 2, 3])
    group.step(RequestVote(1, 2, 1, 0, 0))
    group.crash(2)
    group.waiting.clear()
    group.step(RequestVote(3, 2, 1, 0, 0))
    group.step(RequestVote(1, 2, 1, 0, 0))
    assert [(r.to, r.granted) for r in group.sent(RequestVoteReply)] == [(3, False), (1, True)]


def test_r1_entries_are_acknowledged_after_they_are_on_disk() -> None:
    """Raft figure 2."""
    group = led()
    group.slow = [2]
    group.propose(1, b"a")
    group.deliver(AppendEntries, to=2)
    assert not group.sent(AppendEntriesReply, by=2)
    group.sync(2)
    (reply,) = group.sent(AppendEntriesReply, by=2)
    assert (reply.success, reply.match_index) == (True, 2)


def test_r1_an_answer_waits_for_earlier_writes_too() -> None:
    """What a refusal or a repeat says may rest on a write that is still on its way."""
    group = led()
    group.slow = [2]
    group.propose(1, b"a")
    (append,) = group.deliver(AppendEntries, to=2)
    group.step(append)
    assert not group.sent(AppendEntriesReply, by=2)
    group.sync(2)
    assert [r.match_index for r in group.sent(AppendEntriesReply, by=2)] == [2, 2]


def test_r1_a_candidate_asks_after_its_term_is_on_disk() -> None:
    """Raft figure 2; without it a crash could let it campaign twice in one term."""
    group = RaftGroup([1, 2, 3])
    group.slow = [1]
    group.core(1).campaign()
    group.turn(1)
    group.deliver(PreVote)
    group.deliver(PreVoteReply)
    assert group.core(1).role is Role.CANDIDATE
    assert not group.sent(RequestVote)
    group.sync(1)
    assert len(group.sent(RequestVote)) == 2


def test_r1_a_leader_sends_before_its_own_disk_and_counts_itself_after() -> None:
    """Dissertation §10.2.1: the leader writes to its disk in parallel with its followers."""
    group = led()
    group.slow = [1]
    group.propose(1, b"a")
    assert len(group.sent(AppendEntries)) == 2
    group.deliver(AppendEntries, to=2)
    group.deliver(AppendEntriesReply)
    assert group.core(1).log.commit_index == 1, "one follower is no majority"
    group.sync(1)
    assert group.core(1).log.commit_index == 2


def test_r1_the_followers_may_commit_without_the_leaders_disk() -> None:
    """Dissertation §10.2.1; the leader applies only what its own disk has (house §4.12)."""
    group = led()
    group.slow = [1]
    group.propose(1, b"a")
    group.flow()
    log = group.core(1).log
    assert (log.commit_index, log.durable_index, log.applied_index) == (2, 1, 1)
    group.sync(1)
    assert log.applied_index == 2


def test_r1_a_group_of_one_commits_after_its_own_sync() -> None:
    """Bug class 5 (etcd#14370)."""
    group = led(1)
    group.slow = [1]
    group.propose(1, b"a")
    assert group.core(1).log.commit_index == 1
    group.sync(1)
    assert group.core(1).log.commit_index == 2


# --- R2: the order on disk ------------------------------------------------------------------------


def test_r2_entries_and_the_hard_state_they_need_leave_in_one_ready() -> None:
    """The owner writes entries, then hard state, in one batch: never a term without its entries."""
    core = led().core(2)
    core.step(AppendEntries(3, 2, 5, 1, 1, 1, [entry(2, 5)]))
    ready = core.ready()
    assert [e.index for e in ready.entries] == [2]
    assert ready.hard_state is not None
    assert (ready.hard_state.term, ready.hard_state.voted_for) == (5, 0)
    assert ready.must_sync


def test_r2_writing_an_index_discards_what_stood_from_there_on() -> None:
    """Raft §5.3, figure 2, AppendEntries 3."""
    group = led()
    group.cut_off = [2, 3]
    group.propose(1, b"a", b"b", b"c")
    group.cut_off = []
    group.step(AppendEntries(3, 1, 2, 1, 1, 1, [entry(2, 2, b"z")]))
    assert group.datas(1) == [b"z"]
    group.crash(1)
    assert group.datas(1) == [b"z"], "on disk, too"


# --- R3: commitment -------------------------------------------------------------------------------


def test_r3_a_leader_begins_its_term_with_an_entry_of_its_own() -> None:
    """Raft §8: a no-op at the start of its term."""
    group = led()
    assert [(e.index, e.term, e.kind) for e in group.log_of(1)] == [(1, 1, EntryKind.NOOP)]
    assert group.core(1).leads_since_index == 1


def test_r3_entries_of_older_terms_commit_only_with_one_of_the_own_term() -> None:
    """Raft §5.4.2, figure 8."""
    group = led(append_bytes_max=1)
    group.cut_off = [2, 3]
    group.propose(1, b"old")
    group.cut_off = []
    group.crash(1)
    for follower in (2, 3):
        group.core(follower).leader_lost()
    win(group, 1)
    for _ in range(2):  # the first append is refused, the second brings the old entry alone
        group.deliver(AppendEntries)
        group.deliver(AppendEntriesReply)
    assert [group.core(1).progress[r].match_index for r in (1, 2, 3)] == [3, 2, 2]
    assert group.core(1).log.commit_index == 1, "the old entry is everywhere, and not committed"
    group.flow()
    assert group.core(1).log.commit_index == 3


def test_r3_a_heartbeat_commits_no_more_than_its_follower_has_acknowledged() -> None:
    """The follower's log may hold something else there (etcd-io/raft: bcastHeartbeat)."""
    group = led()
    group.cut_off = [3]
    group.propose(1, b"a")
    group.flow()
    group.cut_off = []
    group.tick(1, group.options.heartbeat_ticks)
    assert {h.to: h.leader_commit for h in group.sent(Heartbeat)} == {2: 2, 3: 1}


def test_r3_a_follower_commits_no_further_than_the_entries_it_was_given() -> None:
    """Raft figure 2, AppendEntries 5: min(leaderCommit, index of last new entry)."""
    group = led()
    group.step(AppendEntries(1, 2, 1, 1, 1, 1, [entry(2, 1, b"a"), entry(3, 1, b"tail")]))
    group.step(AppendEntries(3, 2, 2, 1, 1, 3, [entry(2, 1, b"a")]))
    assert group.core(2).log.commit_index == 2


# --- R4, R5: reads --------------------------------------------------------------------------------


def answered(group: RaftGroup) -> list[tuple[object, int]]:
    return group.replicas[1].reads


def test_r4_read_index_waits_for_an_own_term_commit() -> None:
    """Dissertation §6.4, step 1."""
    group = RaftGroup([1, 2, 3])
    win(group, 1)
    group.core(1).read_index("early")
    group.turn(1)
    assert not group.sent(Heartbeat), "no round begins before the commit index is known"
    group.flow()
    assert answered(group) == [("early", 1)]


def test_r4_read_index_needs_a_round_that_began_after_the_request() -> None:
    """Dissertation §6.4, step 3; bug class 27."""
    group = led()
    group.tick(1, group.options.heartbeat_ticks)
    group.deliver(Heartbeat)
    group.core(1).read_index("late")
    group.turn(1)
    group.deliver(HeartbeatReply)
    assert not answered(group), "these answers are older than the request"
    group.flow()
    assert answered(group) == [("late", 1)]


def test_r4_a_read_sees_what_was_committed_before_it() -> None:
    """Dissertation §6.4, steps 2 and 4."""
    group = led()
    group.propose(1, b"a")
    group.flow()
    group.core(1).read_index("r")
    group.turn(1)
    group.flow()
    assert answered(group) == [("r", 2)]


def test_r4_a_leader_that_lost_its_quorum_answers_no_read() -> None:
    """Dissertation §6.4; §6.2 for its stepping down."""
    group = led()
    group.cut_off = [1]
    group.core(1).read_index("stale")
    group.turn(1)
    group.tick(1, 2 * group.options.election_ticks)
    assert not answered(group)
    assert group.replicas[1].failed_reads == ["stale"]


def test_r5_there_are_no_lease_reads() -> None:
    """Dissertation §6.4.1 makes the round optional by clocks; here it is never skipped, however
    recently every follower was heard."""
    group = led()
    group.beat(1)
    group.core(1).read_index("r")
    group.turn(1)
    assert not answered(group)


# --- R6, R7: elections that do not disturb --------------------------------------------------------


def test_r6_a_pre_vote_changes_neither_term_nor_vote() -> None:
    """Dissertation §9.6; bug class 25."""
    group = RaftGroup([1, 2, 3])
    group.step(PreVote(1, 2, 1, 0, 0))
    core = group.core(2)
    assert (core.term, core.state.voted_for, core.leader_id) == (0, 0, 0)
    assert [reply.granted for reply in group.sent(PreVoteReply)] == [True]


def test_r6_a_pre_candidate_keeps_its_term() -> None:
    """Dissertation §9.6: only a majority's leave makes it raise its term."""
    group = led()
    group.cut_off = [3]
    group.tick(3, 10 * group.options.election_ticks)
    assert (group.core(3).role, group.core(3).term) == (Role.PRE_CANDIDATE, 1)


def test_r6_a_pre_vote_is_refused_while_a_leader_is_heard() -> None:
    """Dissertation §9.6 with §4.2.3: by the followers and by the leader itself."""
    group = led()
    group.step(PreVote(3, 2, 2, 1, 1))
    group.step(PreVote(3, 1, 2, 1, 1))
    assert [(r.sender, r.granted) for r in group.sent(PreVoteReply)] == [(2, False), (1, False)]


def test_r6_a_pre_vote_is_refused_to_a_shorter_log() -> None:
    """Raft §5.4.1."""
    group = led()
    group.core(2).leader_lost()
    group.step(PreVote(3, 2, 2, 0, 0))
    assert [reply.granted for reply in group.sent(PreVoteReply)] == [False]


def test_r6_a_leader_of_a_lower_term_is_told_the_term() -> None:
    """Raft §5.1; it frees a replica that is stuck with a higher term behind pre-vote."""
    group = led()
    group.core(3).step(RequestVote(2, 3, 7, 1, 1, True))
    group.turn(3)
    group.waiting.clear()
    group.tick(1, group.options.heartbeat_ticks)
    group.deliver(Heartbeat, to=3)
    (reply,) = group.deliver(AppendEntriesReply, by=3)
    assert (reply.term, reply.success) == (7, False)
    assert (group.core(1).role, group.core(1).term) == (Role.FOLLOWER, 7)


def test_r6_a_pre_vote_of_a_lower_term_is_refused_with_the_own_term() -> None:
    """Silence would leave the asker in its old term for good (etcd-io/raft: MsgPreVote)."""
    group = RaftGroup([1, 2, 3])
    group.step(RequestVote(3, 2, 5, 0, 0))
    group.waiting.clear()
    group.step(PreVote(1, 2, 1, 0, 0))
    assert [(r.term, r.granted) for r in group.sent(PreVoteReply)] == [(5, False)]
    group.flow()
    assert group.core(1).term == 5


def test_r7_a_vote_request_is_ignored_while_a_leader_is_heard() -> None:
    """Dissertation §4.2.3: neither a vote nor a new term."""
    group = led()
    for replica_id in (1, 2):
        group.step(RequestVote(3, replica_id, 9, 9, 9))
    assert not group.sent(RequestVoteReply)
    assert [group.core(r).term for r in (1, 2)] == [1, 1]


def test_r7_a_leadership_transfer_is_voted_for_all_the_same() -> None:
    """Dissertation §4.2.3 with §3.10."""
    group = led()
    group.core(1).transfer_leadership(3)
    group.turn(1)
    group.flow()
    assert [group.core(r).leader_id for r in (1, 2, 3)] == [3, 3, 3]


def test_r7_a_leader_without_a_quorum_steps_down_and_lets_others_be_elected() -> None:
    """Dissertation §6.2; bug class 30: pre-vote without it can keep a dead leader in office."""
    group = led()
    group.cut_off = [1]
    group.tick(1, 2 * group.options.election_ticks)
    assert group.core(1).role is Role.FOLLOWER
    group.elect(2)
