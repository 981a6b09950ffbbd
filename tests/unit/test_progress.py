"""What a leader does about appends that did not leave (cluster/raft/progress.py)."""

from __future__ import annotations

from cluster.raft.progress import Progress, ProgressState

LIMITS = {"messages_max": 8, "bytes_max": 1_000}


def replicating(match_index: int) -> Progress:
    progress = Progress(match_index + 1)
    progress.matched(match_index)
    progress.become_replicate()
    return progress


def test_what_did_not_leave_is_next_again_and_waits_for_an_answer() -> None:
    progress = replicating(10)
    for last_index in (12, 14, 16):
        progress.sent(last_index, 100)
    progress.not_sent(prev_index=12)  # 13-14, and with it 15-16
    assert progress.next_index == 13
    assert list(progress.inflight) == [(12, 100)]
    assert progress.inflight_bytes == 100
    assert progress.is_paused(**LIMITS)
    assert progress.state is ProgressState.REPLICATE, "nothing was lost on the way"
    progress.matched(12)
    assert not progress.is_paused(**LIMITS)
    assert (progress.next_index, progress.inflight_bytes) == (13, 0)


def test_what_is_told_late_changes_nothing() -> None:
    progress = replicating(10)
    progress.sent(12, 100)
    progress.not_sent(prev_index=12)
    assert progress.next_index == 13
    assert not progress.is_paused(**LIMITS)


def test_a_probe_that_did_not_leave_is_repeated_like_one_that_was_lost() -> None:
    progress = Progress(11)
    progress.sent(10, 0)
    progress.not_sent(prev_index=10)
    assert progress.is_paused(**LIMITS), "until the replica answers a heartbeat"
    assert progress.next_index == 11
