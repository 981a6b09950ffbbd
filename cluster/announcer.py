"""Tells followers of commits that no later append will tell them soon.

Under load the commit index travels with the next append. On a quiet partition it would travel with
the next heartbeat, 100 ms later, and whoever reads from a follower would see a record that late. To
announce each commit at once would double the messages of a busy partition; so it is announced when
nothing was appended for a moment after it.
"""

from __future__ import annotations

import asyncio

from cluster.group import Group

QUIET_S = 0.005


class CommitAnnouncer:
    """One for a host. `stop` when nothing is applied any more."""

    def __init__(self) -> None:
        self._unannounced: dict[Group, int] = {}  # and its last index when something was applied
        self._timer: asyncio.TimerHandle | None = None

    def applied(self, group: Group) -> None:
        """This leader applied what was committed."""
        self._unannounced[group] = group.last_index
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(QUIET_S, self._announce)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _announce(self) -> None:
        self._timer = None
        unannounced, self._unannounced = self._unannounced, {}
        for group, last_index in unannounced.items():
            # If the log went on, the commit index went along with it.
            if group.failure is None and group.last_index == last_index == group.commit_index:
                group.announce_commit()
