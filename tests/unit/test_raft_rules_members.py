"""Rules R8 to R20 as far as they are the core's: members, checkpoints, late answers, bounds, sleep.
Each test names its rule and the section it rests on, as in test_raft_rules.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from cluster.raft.configuration import Configuration
from cluster.raft.errors import ChangeRefused, NotLeader, Throttled, Transferring
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
from cluster.raft.progress import ProgressState
from cluster.raft.state import Role
from tests.simulation.raft_group import RaftGroup


def led(*, learners: tuple[int, ...] = (), **options: Any) -> RaftGroup:
    """Voters 1, 2 and 3; 1 leads in term 1, its no-op committed everywhere."""
    group = RaftGroup([1, 2, 3], learners=learners, **options)
    group.elect(1)
    group.beat(1)
    return group


def change_voters(group: RaftGroup, leader: int, *voters: int) -> None:
    group.core(leader).propose_voters(voters)
    group.turn(leader)


# --- R8: changes of members -----------------------------------------------------------------------


def test_r8_one_change_at_a_time() -> None:
    """Dissertation §4.1; bug class 22."""
    group = led()
    group.core(1).propose_learners([4])
    with pytest.raises(ChangeRefused, match="not committed yet"):
        group.core(1).propose_learners([4, 5])
    with pytest.raises(ChangeRefused, match="not committed yet"):
        group.core(1).propose_voters([1, 2])
    assert [e.kind for e in group.log_of(1)] == [EntryKind.NOOP, EntryKind.CONFIGURATION]


def test_r8_a_new_leader_commits_an_own_entry_before_it_changes_members() -> None:
    """The correction of 2015 to single-server changes (bug class 23)."""
    group = RaftGroup([1, 2, 3])
    group.core(1).campaign()
    group.turn(1)
    for kind in (PreVote, PreVoteReply, RequestVote, RequestVoteReply):
        group.deliver(kind)
    with pytest.raises(ChangeRefused, match="no entry of this term"):
        group.core(1).propose_learners([4])
    group.flow()
    group.core(1).propose_learners([4])


def test_r8_a_configuration_holds_from_its_append() -> None:
    """Dissertation §4.1: "used ... as soon as it is added to the log"."""
    group = led()
    change_voters(group, 1, 1, 2)
    joint = Configuration((1, 2), (1, 2, 3), ())
    assert group.core(1).configuration == joint
    group.deliver(AppendEntries, to=3)
    assert group.core(3).configuration == joint


def test_r8_a_truncated_configuration_is_undone() -> None:
    """Dissertation §4.1: a server must be able to fall back to the previous one."""
    group = led()
    group.cut_off = [2, 3]
    change_voters(group, 1, 1, 2)
    group.cut_off = [1]
    group.elect(2)
    group.cut_off = []
    group.beat(2)
    assert group.core(1).configuration == Configuration.of([1, 2, 3])
    group.crash(1)
    assert group.core(1).configuration == Configuration.of([1, 2, 3]), "on disk, too"


def test_r8_a_configuration_survives_a_restart() -> None:
    """Bug class 22: forgetting an uncommitted configuration on restart."""
    group = led()
    change_voters(group, 1, 1, 2)
    group.crash(1)
    assert group.core(1).configuration == Configuration((1, 2), (1, 2, 3), ())


def test_r8_a_checkpoint_carries_the_configuration_of_its_place_joint_ones_too() -> None:
    """Raft §7: the snapshot includes the latest configuration as of its last entry. One that is
    not committed yet is not in it; a joint one is whole."""
    group = led(learners=(4,))
    group.cut_off = [4]
    change_voters(group, 1, 1, 2)
    assert group.replicas[1].checkpoint().configuration == Configuration.of([1, 2, 3], [4])
    group.deliver(AppendEntries, to=2)
    group.deliver(AppendEntriesReply)
    assert group.core(1).log.applied_index == 2
    joint = Configuration((1, 2), (1, 2, 3), (4,))
    checkpoint = group.replicas[1].checkpoint()
    assert checkpoint.configuration == joint
    assert group.replicas[4].install_from(checkpoint)
    assert group.core(4).configuration == joint


def test_r8_a_joint_change_needs_both_majorities_to_commit() -> None:
    """Raft §6, dissertation §4.3."""
    group = led(learners=(4, 5))
    change_voters(group, 1, 1, 4, 5)
    group.deliver(AppendEntries, to=2)
    group.deliver(AppendEntries, to=3)
    group.deliver(AppendEntriesReply)
    assert group.core(1).log.commit_index == 1, "all old voters have it, of the new ones only 1"
    group.deliver(AppendEntries, to=4)
    group.deliver(AppendEntriesReply)
    assert group.core(1).log.commit_index == 2


def test_r8_the_leader_leaves_the_joint_state_by_itself() -> None:
    """Raft §6: once C-old,new is committed the leader creates C-new."""
    group = led()
    change_voters(group, 1, 1, 2)
    group.flow()
    assert group.core(1).configuration == Configuration.of([1, 2])
    assert group.core(1).log.commit_index == 3


def test_r8_a_vote_is_given_by_the_candidates_log_and_not_by_the_own_configuration() -> None:
    """Dissertation §4.1: servers grant votes to candidates that are not in their configuration
    (bug class 24)."""
    group = RaftGroup([1, 2, 3])
    group.step(RequestVote(9, 2, 1, 0, 0))
    assert [reply.granted for reply in group.sent(RequestVoteReply)] == [True]


# --- R9: learners, and leaders that are removed ---------------------------------------------------


def test_r9_a_learner_counts_neither_for_commits_nor_for_elections() -> None:
    """Dissertation §4.2.1."""
    group = led(learners=(4, 5))
    group.cut_off = [2, 3]
    group.propose(1, b"a")
    group.flow()
    assert group.core(1).progress[4].match_index == 2
    assert group.core(1).log.commit_index == 1
    group.tick(4, 10 * group.options.election_ticks)
    assert group.core(4).role is Role.FOLLOWER


def test_r9_a_group_stays_available_while_a_learner_catches_up() -> None:
    """Dissertation §4.2.1; bug class 35."""
    group = led()
    group.core(1).propose_learners([4])
    group.turn(1)
    group.flow()
    group.propose(1, b"a")
    group.flow()
    assert group.core(1).log.commit_index == 3, "nobody waits for 4, which is not there yet"
    group.add(4)
    group.beat(1)
    group.beat(1)
    assert group.datas(4) == [b"a"]


def test_r9_a_removed_leader_replicates_without_counting_itself_and_then_steps_down() -> None:
    """Dissertation §4.2.2."""
    group = led()
    change_voters(group, 1, 2, 3)
    group.deliver(AppendEntries)
    group.deliver(AppendEntriesReply)
    assert group.core(1).configuration == Configuration.of([2, 3])
    group.deliver(AppendEntries, to=2)
    group.deliver(AppendEntriesReply)
    assert group.core(1).role is Role.LEADER, "of 2 and 3 one alone is no majority"
    group.deliver(AppendEntries, to=3)
    group.deliver(AppendEntriesReply)
    assert group.core(1).role is Role.FOLLOWER
    assert [m.to for m in group.sent(TimeoutNow)] == [2]
    group.flow()
    assert group.core(3).leader_id == 2


# --- R10: checkpoints -----------------------------------------------------------------------------


def far_behind(**options: Any) -> RaftGroup:
    """3 lacks entries 2 and 3, which 1 has compacted; the order to fetch is on its way."""
    group = led(**options)
    group.cut_off = [3]
    group.propose(1, b"a", b"b")
    group.flow()
    group.replicas[1].checkpoint(compact_to=3)
    group.cut_off = []
    for _ in range(2):
        group.tick(1, group.options.heartbeat_ticks)
        group.deliver(Heartbeat)
        group.deliver(HeartbeatReply)
    assert group.core(1).progress[3].state is ProgressState.SNAPSHOT
    return group


def install(group: RaftGroup, replica_id: int, source: int) -> bool:
    checkpoint = group.replicas[source].log.state.checkpoint
    assert checkpoint is not None
    wanted = group.replicas[replica_id].install_from(checkpoint)
    group.turn(replica_id)
    return wanted


def test_r10_a_replica_below_the_leaders_log_is_told_to_fetch_a_checkpoint() -> None:
    """Raft §7."""
    group = far_behind()
    (order,) = group.sent(InstallSnapshot)
    assert (order.to, order.snapshot_index, order.snapshot_term) == (3, 3, 1)


def test_r10_the_leader_hears_of_a_checkpoint_when_it_is_on_disk() -> None:
    """Rule R1 for checkpoints."""
    group = far_behind()
    group.deliver(InstallSnapshot)
    group.slow = [3]
    assert install(group, 3, 1)
    assert not group.sent(InstallSnapshotReply)
    group.sync(3)
    assert [reply.snapshot_index for reply in group.sent(InstallSnapshotReply)] == [3]
    group.flow()
    assert group.core(3).log.commit_index == 3
    assert group.core(1).progress[3].state is ProgressState.REPLICATE


def test_r10_a_checkpoint_below_the_commit_index_is_refused() -> None:
    """Raft figure 13, 5 to 7: what is here already stays."""
    group = led()
    group.propose(1, b"a")
    group.flow()
    group.beat(1)
    core = group.core(2)
    assert not core.wants_checkpoint(index=2, term=1)
    group.step(InstallSnapshot(1, 2, 1, 2, 1))
    assert core.state.install is None
    assert [r.success for r in group.sent(InstallSnapshotReply)] == [True]


def test_r10_entries_behind_a_checkpoint_that_came_too_late_are_kept() -> None:
    """Raft §7: with the entry of the snapshot in the log, the entries after it are retained."""
    group = led()
    entries = [
        Entry.create(index=index, term=1, kind=EntryKind.COMMAND, data=b"x") for index in (2, 3, 4)
    ]
    group.step(AppendEntries(1, 2, 1, 1, 1, 1, entries))
    assert group.core(2).log.commit_index == 1
    assert not group.core(2).wants_checkpoint(index=3, term=1), "4 was acknowledged"


def test_r10_a_failed_fetch_is_ordered_again_with_the_next_heartbeat_and_not_before() -> None:
    """Bug class 32: snapshot loops."""
    group = far_behind()
    group.deliver(InstallSnapshot)
    group.core(3).snapshot_refused()
    group.turn(3)
    assert [reply.success for reply in group.deliver(InstallSnapshotReply)] == [False]
    assert not group.sent(InstallSnapshot)
    group.tick(1, group.options.heartbeat_ticks)
    assert len(group.sent(InstallSnapshot)) == 1


# --- R11, R12: who said what ----------------------------------------------------------------------


def test_r11_an_answer_of_an_older_term_vouches_for_nothing() -> None:
    """Bug class 21 (etcd-io/raft: async_storage_writes_append_aba_race)."""
    group = led()
    group.cut_off = [2, 3]
    group.propose(1, b"a")
    group.cut_off = []
    group.step(AppendEntriesReply(2, 1, 0, True, 2))
    assert group.core(1).progress[2].match_index == 1


def test_r11_the_end_of_an_overwritten_write_makes_nothing_durable() -> None:
    """Bug classes 20 and 21: a write of term 1, overwritten in term 2, written again in term 3."""
    group = RaftGroup([1, 2, 3])
    group.slow = [2]
    first, other = (
        Entry.create(index=1, term=term, kind=EntryKind.COMMAND, data=b"x") for term in (1, 2)
    )
    for sender, term, entry in ((1, 1, first), (3, 2, other), (1, 3, first)):
        group.step(AppendEntries(sender, 2, term, 0, 0, 0, [entry]))
    log = group.core(2).log
    durable = []
    for _ in range(3):
        group.sync(2, 1)
        durable.append(log.durable_index)
    assert durable == [0, 0, 1]
    assert [r.term for r in group.sent(AppendEntriesReply)] == [1, 2, 3]


def test_r12_a_replica_takes_no_message_for_another() -> None:
    """Bug class 16: a wiped node's new replica has a new id, and its core answers to no other."""
    group = led()
    with pytest.raises(AssertionError, match="is not for replica 2"):
        group.core(2).step(Heartbeat(1, 3, 1, 1))


def test_r12_a_replica_that_is_no_member_is_not_counted() -> None:
    """An answer of a removed replica, or of one that was never added."""
    group = led()
    group.cut_off = [2, 3]
    group.propose(1, b"a")
    group.step(AppendEntriesReply(9, 1, 1, True, 2))
    group.step(AppendEntriesReply(8, 1, 1, True, 2))
    assert group.core(1).log.commit_index == 1


# --- R17, R18, R19: proposals ---------------------------------------------------------------------


def test_r17_a_proposal_decided_in_another_term_is_refused() -> None:
    """Redpanda's expected term: what it was decided on may be gone."""
    group = led()
    group.core(1).propose([b"a"], expected_term=1)
    group.turn(1)
    group.flow()
    group.hand_over(1, to=2)
    group.hand_over(2, to=1)
    with pytest.raises(NotLeader, match="decided in term 1, now 3"):
        group.core(1).propose([b"b"], expected_term=1)
    assert group.datas(1) == [b"a"]


def test_r18_a_refused_proposal_is_certainly_not_stored() -> None:
    """Only what was appended can have an unknown outcome (bug class 39)."""
    group = led(uncommitted_bytes_max=1)
    with pytest.raises(NotLeader):
        group.core(2).propose([b"a"])
    group.core(1).propose([b"b"])
    with pytest.raises(Throttled):
        group.core(1).propose([b"c"])
    group.core(1).transfer_leadership(2)
    with pytest.raises(Transferring):
        group.core(1).propose([b"d"])
    assert [group.datas(r) for r in (1, 2)] == [[b"b"], []]


def test_r18_a_proposal_of_a_leader_that_was_replaced_may_still_commit() -> None:
    """Losing leadership decides nothing: the next leader may have the entry."""
    group = led()
    group.propose(1, b"a")
    group.deliver(AppendEntries, to=2)
    group.waiting.clear()
    group.cut_off = [1]
    group.elect(2)
    assert group.datas(3) == [b"a"]
    assert group.core(2).log.commit_index == 3


def test_r19_uncommitted_bytes_are_bounded() -> None:
    """MaxUncommittedEntriesSize of etcd-io/raft."""
    group = led(uncommitted_bytes_max=4)
    group.propose(1, b"12345")
    with pytest.raises(Throttled, match="5 bytes wait for a quorum, at most 4"):
        group.propose(1, b"6")
    group.flow()
    group.propose(1, b"6")


@pytest.mark.parametrize("bound", [{"inflight_messages_max": 2}, {"inflight_bytes_max": 2}])
def test_r19_what_is_on_the_way_to_a_replica_is_bounded(bound: dict[str, Any]) -> None:
    """Dissertation §10.2.1 pipelines; the window bounds it."""
    group = led(**bound)
    for data in (b"a", b"b", b"c", b"d"):
        group.propose(1, data)
    assert len(group.sent(AppendEntries, to=2)) == 2
    group.deliver(AppendEntries)
    group.deliver(AppendEntriesReply)
    assert [[e.data for e in m.entries] for m in group.sent(AppendEntries, to=2)] == [[b"c", b"d"]]


def test_r19_a_message_and_a_turn_of_applying_are_bounded() -> None:
    group = led(append_bytes_max=2, apply_bytes_max=2)
    group.propose(1, b"a", b"b", b"c")
    assert [len(m.entries) for m in group.sent(AppendEntries, to=2)] == [2, 1]
    group.flow()
    assert group.core(1).log.applied_index == 4


# --- R20: groups that sleep -----------------------------------------------------------------------


def asleep(**options: Any) -> RaftGroup:
    group = led(quiesce_ticks=4, **options)
    for _ in range(4):
        group.beat(1)
    assert [group.core(r).quiesced for r in (1, 2, 3)] == [True, True, True]
    return group


def test_r20_a_group_sleeps_when_all_agree_and_has_no_clock_then() -> None:
    """TiKV's hibernate, dragonboat's quiesce: an idle group costs nothing."""
    group = asleep()
    for replica_id in (1, 2, 3):
        group.tick(replica_id, 10 * group.options.election_ticks)
    assert not group.waiting
    assert [group.core(r).role for r in (1, 2, 3)] == [Role.LEADER, Role.FOLLOWER, Role.FOLLOWER]


def test_r20_a_group_stays_awake_while_one_replica_lacks_something() -> None:
    group = led(quiesce_ticks=4)
    group.cut_off = [3]
    group.propose(1, b"a")
    group.flow()
    for _ in range(4):
        group.beat(1)
    assert not group.core(1).quiesced


def test_r20_a_follower_stays_awake_while_its_disk_is_behind() -> None:
    group = led(quiesce_ticks=4)
    group.slow = [3]
    group.propose(1, b"a")
    group.flow()
    for _ in range(2):
        group.step(Heartbeat(1, 3, 1, 2, 0, True))
    assert group.core(3).log.commit_index == 2
    assert not group.core(3).quiesced
    group.sync(3)
    group.step(Heartbeat(1, 3, 1, 2, 0, True))
    assert group.core(3).quiesced


def test_r20_a_proposal_wakes_all() -> None:
    group = asleep()
    group.propose(1, b"a")
    group.flow()
    assert [group.core(r).quiesced for r in (1, 2, 3)] == [False, False, False]


def test_r20_a_read_wakes_the_leader_and_is_answered() -> None:
    group = asleep()
    group.core(1).read_index("r")
    group.turn(1)
    group.flow()
    assert group.replicas[1].reads == [("r", 1)]


def test_r20_a_pre_vote_wakes_the_leader_who_speaks_up() -> None:
    group = asleep()
    group.crash(3)
    group.tick(3, group.options.election_ticks)
    group.flow()
    assert group.core(3).leader_id == 1
    assert not group.core(1).quiesced


def test_r20_word_of_a_lost_node_wakes_a_replica_and_ends_the_lease() -> None:
    """Node liveness stands in for the clocks of sleeping groups (house §4, cluster/README.md)."""
    group = asleep()
    group.cut_off = [1]
    for follower in (2, 3):
        group.core(follower).leader_lost(rank=follower - 2)
        assert not group.core(follower).state.hears_leader
    group.tick(2, 3)
    group.flow()
    assert [group.core(r).leader_id for r in (2, 3)] == [2, 2]
