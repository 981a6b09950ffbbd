"""Campaigns: pre-vote first, then the real election (dissertation §9.6, §3.4).

A pre-vote changes nothing anywhere: a replica cut off from the others never raises its term, so it
does not depose the leader when it comes back.

A real campaign waits for the disk before it asks anyone (rule R1). Asked earlier, the others could
vote for a log that a crash then shortens, in a term that it makes forgotten: the replica could
campaign in the same term again and win by votes given to the longer log.
"""

from __future__ import annotations

from cluster.raft import leader
from cluster.raft.messages import PreVote, PreVoteReply, RequestVote, RequestVoteReply
from cluster.raft.quorum import Vote, vote_result
from cluster.raft.state import RaftState, Role


def campaign(state: RaftState, *, leadership_transfer: bool = False) -> None:
    """Start an election. With leadership_transfer the leader has asked for it: no pre-vote."""
    if not state.is_promotable or state.role is Role.LEADER:
        return
    state.wake()
    if leadership_transfer:
        _request_votes(state, leadership_transfer=True)
        return
    state.change_role(Role.PRE_CANDIDATE)
    state.leader_id = 0
    state.votes = {state.replica_id: True}
    log = state.log
    for voter in state.configuration.all_voters():
        if voter != state.replica_id:
            state.outbox.append(
                PreVote(state.replica_id, voter, state.term + 1, log.last_index, log.last_term)
            )
    _count_pre_votes(state)


def _request_votes(state: RaftState, *, leadership_transfer: bool) -> None:
    state.change_role(Role.CANDIDATE)
    state.term += 1
    state.voted_for = state.replica_id
    state.leader_id = 0
    log = state.log
    for voter in state.configuration.all_voters():
        if voter == state.replica_id:
            state.after_sync.append(
                RequestVoteReply(state.replica_id, state.replica_id, state.term, granted=True)
            )
            continue
        state.after_sync.append(
            RequestVote(
                state.replica_id,
                voter,
                state.term,
                log.last_index,
                log.last_term,
                leadership_transfer,
            )
        )


def _count_pre_votes(state: RaftState) -> None:
    result = vote_result(state.configuration, state.votes)
    if result is Vote.WON:
        _request_votes(state, leadership_transfer=False)
    elif result is Vote.LOST:
        state.become_follower(term=state.term, leader_id=0)


def on_pre_vote_reply(state: RaftState, message: PreVoteReply) -> None:
    if state.role is not Role.PRE_CANDIDATE:
        return
    if message.granted and message.term != state.term + 1:
        return  # of an earlier campaign
    state.votes.setdefault(message.sender, message.granted)
    _count_pre_votes(state)


def on_request_vote_reply(state: RaftState, message: RequestVoteReply) -> None:
    if state.role is not Role.CANDIDATE:
        return
    state.votes.setdefault(message.sender, message.granted)
    result = vote_result(state.configuration, state.votes)
    if result is Vote.WON:
        leader.become_leader(state)
    elif result is Vote.LOST:
        state.become_follower(term=state.term, leader_id=0)


def tick(state: RaftState) -> None:
    state.election_elapsed += 1
    if state.election_elapsed >= state.election_timeout:
        campaign(state)
