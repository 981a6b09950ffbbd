"""What the leader knows of one other replica, and how much it may have on the way to it.

PROBE      next_index is a guess: one AppendEntries at a time until one is answered.
REPLICATE  pipelined: next_index runs ahead of match_index, bounded by inflight messages and bytes.
SNAPSHOT   what it needs is compacted: nothing is sent until it has installed a checkpoint.

PROBE --success--> REPLICATE --refusal, loss--> PROBE --compacted--> SNAPSHOT --installed--> PROBE
"""

from __future__ import annotations

from collections import deque
from enum import Enum


class ProgressState(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """Invariant: match_index < next_index. `recent_active`: heard from since the last quorum
    check."""

    __slots__ = (
        "acked_round",
        "held",
        "inflight",
        "inflight_bytes",
        "match_index",
        "match_watched",
        "next_index",
        "probe_sent",
        "quiesced",
        "recent_active",
        "sent_watched",
        "snapshot_index",
        "stalled",
        "state",
    )

    def __init__(self, next_index: int, *, match_index: int = 0) -> None:
        self.state = ProgressState.PROBE
        self.match_index = match_index
        self.next_index = next_index
        self.probe_sent = False
        self.held = False  # something did not leave: nothing more until the replica answers
        self.inflight: deque[tuple[int, int]] = deque()  # (last index, data bytes) per message
        self.inflight_bytes = 0
        self.recent_active = False
        self.snapshot_index = 0
        self.acked_round = 0  # latest ReadIndex round answered
        self.quiesced = False
        self.match_watched = 0  # match_index and the last index sent, at the last `watch`
        self.sent_watched = 0
        self.stalled = False

    def is_paused(self, *, messages_max: int, bytes_max: int) -> bool:
        if self.state is ProgressState.PROBE:
            return self.probe_sent
        if self.state is ProgressState.REPLICATE:
            return (
                self.held or len(self.inflight) >= messages_max or self.inflight_bytes >= bytes_max
            )
        return True

    def become_probe(self) -> None:
        if self.state is ProgressState.SNAPSHOT:
            self.next_index = max(self.match_index + 1, self.snapshot_index + 1)
        else:
            self.next_index = self.match_index + 1
        self._reset(ProgressState.PROBE)

    def become_replicate(self) -> None:
        self._reset(ProgressState.REPLICATE)
        self.next_index = self.match_index + 1

    def become_snapshot(self, snapshot_index: int) -> None:
        self._reset(ProgressState.SNAPSHOT)
        self.snapshot_index = snapshot_index

    def _reset(self, state: ProgressState) -> None:
        self.state = state
        self.probe_sent = self.held = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.snapshot_index = 0
        self.sent_watched = 0
        self.stalled = False

    def watch(self) -> None:
        """Called once a heartbeat interval. `stalled`: for a whole interval there was something on
        the way and no answer to any of it. Less than that is the follower's disk at work: it
        answers heartbeats at once and appends after its sync."""
        self.stalled = (
            self.state is ProgressState.REPLICATE
            and self.match_index == self.match_watched
            and self.match_index < self.sent_watched
        )
        self.match_watched = self.match_index
        self.sent_watched = self.next_index - 1

    def sent(self, last_index: int, data_bytes: int) -> None:
        """An AppendEntries up to last_index left."""
        if self.state is ProgressState.REPLICATE:
            self.next_index = last_index + 1
            self.inflight.append((last_index, data_bytes))
            self.inflight_bytes += data_bytes
        else:
            self.probe_sent = True

    def not_sent(self, prev_index: int) -> None:
        """The AppendEntries after prev_index, and what came after it, did not leave. (A probe that
        did not is repeated as one that was lost.)"""
        if self.state is ProgressState.REPLICATE and prev_index + 1 < self.next_index:
            self.next_index = prev_index + 1
            while self.inflight and self.inflight[-1][0] > prev_index:
                self.inflight_bytes -= self.inflight.pop()[1]
            self.held = True

    def matched(self, index: int) -> bool:
        """The replica has everything up to `index`, durable. True if that is news."""
        news = index > self.match_index
        self.held = False
        if news:
            self.match_index = index
            self.stalled = False
        if index >= self.next_index:
            self.next_index = index + 1
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        assert self.match_index < self.next_index, (
            f"match {self.match_index} >= next {self.next_index}"
        )
        return news

    def refused(self, *, prev_index: int, probe_index: int) -> bool:
        """The AppendEntries after prev_index was refused; probe_index is the next guess for
        prev_log_index. False if the refusal is old news."""
        if prev_index <= self.match_index:
            return False
        if self.state is ProgressState.REPLICATE:
            self.become_probe()
            return True
        if self.state is ProgressState.SNAPSHOT or self.next_index - 1 != prev_index:
            return False
        self.next_index = max(min(prev_index, probe_index + 1), self.match_index + 1)
        self.probe_sent = False
        return True
