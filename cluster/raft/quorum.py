"""Majorities, joint ones included: pure arithmetic over a Configuration.

A joint configuration decides only when both of its sets of voters do (dissertation §4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

from cluster.raft.configuration import Configuration


class Vote(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def _majority_index(voters: tuple[int, ...], index_of: Callable[[int], int]) -> int:
    """The highest index that a majority of `voters` has reached."""
    reached = sorted(map(index_of, voters), reverse=True)
    return reached[len(voters) // 2]


def quorum_index(configuration: Configuration, index_of: Callable[[int], int]) -> int:
    """The highest index that a quorum has reached; 0 for a configuration without voters. Serves
    commit (match_index) and ReadIndex (acknowledged round) alike."""
    if not configuration.voters:
        return 0
    index = _majority_index(configuration.voters, index_of)
    if configuration.voters_outgoing:
        index = min(index, _majority_index(configuration.voters_outgoing, index_of))
    return index


def _majority_vote(voters: tuple[int, ...], votes: Mapping[int, bool]) -> Vote:
    needed = len(voters) // 2 + 1
    granted = sum(1 for v in voters if votes.get(v) is True)
    refused = sum(1 for v in voters if votes.get(v) is False)
    if granted >= needed:
        return Vote.WON
    if len(voters) - refused < needed:
        return Vote.LOST
    return Vote.PENDING


def vote_result(configuration: Configuration, votes: Mapping[int, bool]) -> Vote:
    """votes: replica id -> granted. Votes of replicas outside the configuration do not count."""
    if not configuration.voters:
        return Vote.LOST
    incoming = _majority_vote(configuration.voters, votes)
    if not configuration.voters_outgoing:
        return incoming
    outgoing = _majority_vote(configuration.voters_outgoing, votes)
    if Vote.LOST in (incoming, outgoing):
        return Vote.LOST
    if Vote.PENDING in (incoming, outgoing):
        return Vote.PENDING
    return Vote.WON
