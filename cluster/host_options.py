"""What a host is told about time, sizes and counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostOptions:
    """tick_ms                  one tick of every group's clock
    beat_ticks                  between two signs of life to each peer
    peer_silence_ticks          a peer not heard from for so long counts as gone
    checkpoint_entries_max      applied since the last checkpoint: the next one is due,
    checkpoint_bytes_max        whichever comes first
    tail_bytes_max              newest entries kept, trimmed or not, for replicas that are behind;
                                never more than what came after the checkpoint before the last
    trimmed_bytes_max           entries below that tail that hold nothing live any more: beyond it a
                                checkpoint is due, too
    posted_bytes_max            of entries that wait to leave for one node, of all groups: many at
                                once may have much for a node that was away. The rest is built again
                                when that node has answered
    catch_ups_max               checkpoints fetched, and as many served, at a time
    catch_up_chunk_bytes        of entries or segments in one message
    """

    tick_ms: int = 50
    beat_ticks: int = 2
    peer_silence_ticks: int = 10
    checkpoint_entries_max: int = 10_000
    checkpoint_bytes_max: int = 64 << 20
    tail_bytes_max: int = 32 << 20
    trimmed_bytes_max: int = 1 << 20
    posted_bytes_max: int = 8 << 20  # heartbeats wait behind them
    catch_ups_max: int = 2
    catch_up_chunk_bytes: int = 1 << 20
