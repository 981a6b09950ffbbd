"""What the tests of the Raft log over both engines share."""

from __future__ import annotations

from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, EntryKind
from node.storage import keys
from node.storage.raft_log import RaftLog
from tests.conformance.storage_rigs import Rig

GROUP = 7
BIG = 1 << 30
TINY = 1  # a budget that keeps nothing but what is not written


def opened(rig: Rig) -> RaftLog:
    return RaftLog(rig.engine, GROUP)


def append(rig: Rig, log: RaftLog, entries: list[Entry]) -> None:
    batch = rig.engine.new_batch()
    log.append(batch, entries)
    rig.engine.write(batch)


def compact(rig: Rig, log: RaftLog, index: int) -> None:
    batch = rig.engine.new_batch()
    log.compact(batch, index)
    rig.engine.write(batch)


def configuration_entry(index: int, term: int, configuration: Configuration) -> Entry:
    return Entry.create(
        index=index, term=term, kind=EntryKind.CONFIGURATION, data=configuration.encode()
    )


def contents(log: RaftLog) -> tuple[object, ...]:
    """What must be the same after the log was opened again."""
    first, last = log.first_index, log.last_index
    return (
        first,
        last,
        [log.term(index) for index in range(first - 1, last + 1)],
        log.entries(first, last, BIG) if first <= last else [],
        list(log.configurations),
        log.hard_state,
        log.staged_index,
        [log.entry(index) for index in range(1, first)],
    )


def entry_key(index: int, generation: int = 0) -> bytes:
    return keys.index_key(keys.entry_prefix(GROUP, generation), index)
