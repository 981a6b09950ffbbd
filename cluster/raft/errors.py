"""Why a group refuses a request. Raised before anything was appended: certainly not stored."""

from __future__ import annotations


class RaftRefused(Exception):
    """Base of the refusals. `leader_id` is the replica believed to lead, 0 if unknown."""

    def __init__(self, message: str, *, leader_id: int = 0) -> None:
        super().__init__(message)
        self.leader_id = leader_id


class NotLeader(RaftRefused):
    """This replica does not lead (or not in the term that the request was decided in, rule R17)."""


class Transferring(RaftRefused):
    """Leadership is being handed over; ask the new leader in a moment."""


class Throttled(RaftRefused):
    """uncommitted_bytes_max is reached (rule R19); retry after a commit."""


class ChangeRefused(RaftRefused):
    """A membership change that may not start now (rule R8) or is not a change."""


class Compacted(Exception):
    """The log no longer serves this index; the reader needs a checkpoint."""
