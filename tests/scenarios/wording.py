"""How entries, messages and replicas read in a recorded story: short, and the same every time."""

from __future__ import annotations

from typing import Any

from tests.simulation.raft_replica import REAL, RaftCode, Replica

# Fields of a message in the order and under the short names they are told by.
FIELDS = {
    "PreVote": {"last_log_index": "last", "last_log_term": "last_term"},
    "PreVoteReply": {"granted": "granted"},
    "RequestVote": {
        "last_log_index": "last",
        "last_log_term": "last_term",
        "leadership_transfer": "transfer",
    },
    "RequestVoteReply": {"granted": "granted"},
    "AppendEntries": {
        "prev_log_index": "prev",
        "prev_log_term": "prev_term",
        "leader_commit": "commit",
    },
    "AppendEntriesReply": {
        "success": "success",
        "match_index": "match",
        "conflict_index": "conflict",
        "conflict_term": "conflict_term",
    },
    "Heartbeat": {"leader_commit": "commit", "read_round": "round", "quiesce": "quiesce"},
    "HeartbeatReply": {"read_round": "round", "quiesced": "quiesced", "last_log_index": "last"},
    "InstallSnapshot": {"snapshot_index": "index", "snapshot_term": "index_term"},
    "InstallSnapshotReply": {"success": "success", "snapshot_index": "index"},
    "TimeoutNow": {},
}
QUIET = ("transfer", "round", "quiesce", "quiesced", "conflict", "conflict_term")  # told if not 0


def message_words(message: Any) -> str:
    name = type(message).__name__
    words = [name, f"t={message.term}"]
    for attribute, short in FIELDS[name].items():
        value = getattr(message, attribute)
        if value or short not in QUIET:
            words.append(f"{short}={'yes' if value is True else 'no' if value is False else value}")
    if name == "AppendEntries":
        words.append(f"[{' '.join(entry_words(e) for e in message.entries)}]")
    return " ".join(words)


def message_from_words(
    code: RaftCode, link: tuple[int, int], kind: str, entries: list[str], fields: dict[str, str]
) -> Any:
    """The inverse of `message_words`."""
    names = {short: attribute for attribute, short in FIELDS[kind].items()}
    values = {
        names[short]: {"yes": True, "no": False}.get(word, int(word) if word.isdigit() else None)
        for short, word in fields.items()
        if short != "t"
    }
    if kind == "AppendEntries":
        values["entries"] = [_entry_from_words(code, words) for words in entries]
    return getattr(code.messages, kind)(*link, int(fields["t"]), **values)


def _entry_from_words(code: RaftCode, words: str) -> Any:
    place, data = words.split(":", 1)
    index, term = map(int, place.split("/"))
    kind = code.messages.EntryKind.COMMAND
    return code.messages.Entry.create(index=index, term=term, kind=kind, data=data.encode())


def entry_words(entry: Any) -> str:
    """index/term and what it is."""
    if entry.kind == REAL.messages.EntryKind.NOOP:
        content = "noop"
    elif entry.kind == REAL.messages.EntryKind.CONFIGURATION:
        c = REAL.configuration.Configuration.decode(entry.data)
        content = "(" + ",".join(map(str, c.voters))
        if c.voters_outgoing:
            content += " out " + ",".join(map(str, c.voters_outgoing))
        if c.learners:
            content += " learn " + ",".join(map(str, c.learners))
        content += ")"
    else:
        content = entry.data.decode() if len(entry.data) < 20 else f"{len(entry.data)}B"
    return f"{entry.index}/{entry.term}:{content}"


def progress_words(progress: Any) -> str:
    words = f"{progress.state.value} match={progress.match_index} next={progress.next_index}"
    if progress.inflight:
        words += f" inflight={len(progress.inflight)}"
    if progress.snapshot_index:
        words += f" snapshot={progress.snapshot_index}"
    return words


def status_words(replica: Replica) -> str:
    if not replica.is_up:
        return f"{replica.replica_id} down"
    core = replica.core
    log = core.log
    return (
        f"{replica.replica_id} {core.role.value} t={core.term} leader={core.leader_id} "
        f"last={log.last_index} commit={log.commit_index} durable={log.durable_index} "
        f"applied={log.applied_index}" + (" quiesced" if core.quiesced else "")
    )


def configuration_words(configuration: Any) -> str:
    words = "voters=" + ",".join(map(str, configuration.voters))
    if configuration.voters_outgoing:
        words += " outgoing=" + ",".join(map(str, configuration.voters_outgoing))
    if configuration.learners:
        words += " learners=" + ",".join(map(str, configuration.learners))
    return words
