"""Who votes in a group: voters, learners, and the joint configuration between two of them.

A configuration takes effect when its entry is appended (dissertation §4.1), on every replica, and
is taken back if that entry is truncated: `core` keeps the short history that needs. Joint
consensus is that of dissertation §4.3: while `voters_outgoing` is not empty, every decision needs
a majority of both sets, so any set of voters can be swapped for any other without a moment at risk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

_VERSION = 1
_COUNT = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Configuration:
    """Replica ids, each tuple sorted and without repeats. `voters_outgoing` is the old set of
    voters during a joint change, else empty. `learners` get the log and do not count."""

    voters: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for ids in (self.voters, self.voters_outgoing, self.learners):
            assert list(ids) == sorted(set(ids)), f"replica ids not sorted and unique: {ids}"
        both = set(self.learners) & set(self.voters)
        assert not both, f"replicas {sorted(both)} are both voter and learner"

    @classmethod
    def of(cls, voters: Iterable[int], learners: Iterable[int] = ()) -> Configuration:
        return cls(tuple(sorted(set(voters))), (), tuple(sorted(set(learners))))

    @property
    def is_joint(self) -> bool:
        return bool(self.voters_outgoing)

    def all_voters(self) -> tuple[int, ...]:
        """Sorted: incoming and outgoing voters together."""
        if not self.voters_outgoing:
            return self.voters
        return tuple(sorted({*self.voters, *self.voters_outgoing}))

    def members(self) -> tuple[int, ...]:
        """Sorted: everyone the leader replicates to, itself included."""
        return tuple(sorted({*self.voters, *self.voters_outgoing, *self.learners}))

    def is_voter(self, replica_id: int) -> bool:
        return replica_id in self.voters or replica_id in self.voters_outgoing

    def with_learners(self, learners: Iterable[int]) -> Configuration:
        return Configuration(self.voters, self.voters_outgoing, tuple(sorted(set(learners))))

    def joint_to(self, voters: Iterable[int]) -> Configuration:
        """The joint configuration on the way to `voters`; learners that become voters leave the
        learners at once (they count in the incoming majority)."""
        assert not self.is_joint, f"already joint: {self}"
        incoming = tuple(sorted(set(voters)))
        learners = tuple(r for r in self.learners if r not in incoming)
        return Configuration(incoming, self.voters, learners)

    def leave_joint(self) -> Configuration:
        assert self.is_joint, f"not joint: {self}"
        return Configuration(self.voters, (), self.learners)

    def encode(self) -> bytes:
        parts = [bytes((_VERSION,))]
        for ids in (self.voters, self.voters_outgoing, self.learners):
            parts.append(_COUNT.pack(len(ids)))
            parts.append(struct.pack(f"<{len(ids)}Q", *ids))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """Raises ValueError when `data` is not an encoded configuration of a version known here."""
        try:
            if data[0] != _VERSION:
                raise ValueError(f"configuration of unknown version {data[0]}")
            at, sets = 1, []
            for _ in range(3):
                (count,) = _COUNT.unpack_from(data, at)
                sets.append(struct.unpack_from(f"<{count}Q", data, at + _COUNT.size))
                at += _COUNT.size + 8 * count
        except (struct.error, IndexError) as error:
            raise ValueError(f"not a configuration: {error}") from error
        if at != len(data):
            raise ValueError(f"configuration has {len(data) - at} bytes too many")
        return cls(sets[0], sets[1], sets[2])
