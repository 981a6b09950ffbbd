"""Tells the stories of tests/scenarios/*.txt: commands to a small cluster of pure cores, each with
its recorded output, in the manner of etcd-raft's testdata.

A file is comments (#) and blocks: a command, `----`, its output, an empty line. Nothing happens by
itself: messages wait on their link until delivered, writes of a replica under `async` wait until
synced, time stands until ticked. Output lines:

    1->2 Heartbeat t=1 ...          replica 1 sends (the message now waits on the link 1->2)
    2<-1 Heartbeat t=1 ...          replica 2 is given it
    1 leader t=1                    what replica 1 is changed
    1 commits 3                     also: applies, writes, synced, configuration, reads, installs

COMMANDS  (a list of replicas is `1,2,3`; a link is `1->2`, or `1-2` for both directions)
    group voters=1,2,3 [learners=4] [option=value ...]     found a group; options are RaftOptions'
    empty 4                        a replica with nothing, not even a configuration
    tick 1,2 [n] · campaign 1 · propose 1 a b · propose 1 term=2 a · read 1 x
    wake 1,2 · leader_lost 1 [rank=1]      what a host says that watches the nodes
    transfer 1 2 · learners 1 4 · voters 1 2,3,4 · unreachable 1 2
    deliver [link] [n] [Kind]      what waits there now (the first n; of that kind), in order
    drop [link] [n] [Kind]  ·  duplicate link [n]  ·  reorder link
    hold link [Kind]               put aside, out of reach of deliver; `late link` puts them back
    cut link ...  ·  isolate 1  ·  heal                    messages on a cut link are lost
    stabilize                      deliver, sync and fetch until nothing moves
    async 1,2  ·  sync 1 [n]       keep writes pending  ·  the first n (all) reach the disk
    checkpoint 1  ·  compact 1 7   checkpoint the machine  ·  and drop the log up to 7
    install 2 [from=3]  ·  refuse 2                        end the fetch that was ordered
    crash 1 [keep=synced|all|n]  ·  restart 1              what of the unsynced writes survives
    forge 1->2 Kind field=value ... [index/term:data ...]  wait on the link as if it were sent: what
                                   a peer of another version or with another history could say
    status [1,2]  ·  log 1  ·  progress 1  ·  links
    quietly COMMAND                do it, record nothing but refusals

Record anew with `RECORD=1 pytest tests/scenarios`, and read the difference before committing it.
What disks do beyond forgetting what was not synced (a flipped bit, a wipe) and how clusters are
founded is decided above the core: tests/simulation tells those stories on whole nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.scenarios.wording import (
    configuration_words,
    entry_words,
    message_from_words,
    message_words,
    progress_words,
    status_words,
)
from tests.simulation.raft_replica import REAL, Checkpoint, MemoryLog, RaftCode, Replica

STABILIZE_MAX = 200  # deliveries on one link, before a story is called endless


@dataclass
class Block:
    """Comment lines before a command, the command, and what was recorded for it."""

    comment: list[str] = field(default_factory=list)
    command: str = ""
    output: list[str] = field(default_factory=list)


def parse(text: str) -> Iterator[Block]:
    block = Block()
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("#") or not line.strip():
            block.comment.append(line)
            continue
        block.command = line
        assert next(lines, "") == "----", f"no ---- after {line!r}"
        for output in lines:
            if not output.strip():
                break
            block.output.append(output)
        yield block
        block = Block()
    if block.comment:
        yield block


def record(path: Path, code: RaftCode = REAL) -> str:
    """The file as it would be if what happens now were what is expected."""
    story = Story(code)
    parts: list[str] = []
    for block in parse(path.read_text(encoding="utf-8")):
        parts += block.comment
        if block.command:
            parts += [block.command, "----", *(story.run(block.command) or ["ok"]), ""]
    while parts and not parts[-1].strip():
        parts.pop()
    return "\n".join(parts) + "\n"


class Timeouts:
    """Election timeouts without chance: replica 1 is the most impatient."""

    def __init__(self, replica_id: int) -> None:
        self._extra = replica_id - 1

    def randrange(self, start: int, stop: int) -> int:
        return min(start + self._extra, stop - 1)


class Story:
    def __init__(self, code: RaftCode = REAL) -> None:
        self.code = code
        self.replicas: dict[int, Replica] = {}
        self.links: dict[tuple[int, int], list[Any]] = {}
        self.held: dict[tuple[int, int], list[Any]] = {}
        self.cuts: dict[tuple[int, int], bool] = {}
        self.manual: dict[int, bool] = {}  # replicas whose writes wait for `sync`
        self.shown: dict[int, dict[str, str]] = {}
        self.options = code.state.RaftOptions(quiesce_ticks=0)
        self.out: list[str] = []

    def run(self, command: str) -> list[str]:
        """The output of one command."""
        self.out = []
        try:
            self._perform(command.split())
        except self.code.errors.RaftRefused as refusal:
            self.out.append(f"{type(refusal).__name__}: {refusal}")
        return self.out

    def _perform(self, words: list[str]) -> None:
        name, *arguments = words
        if name == "quietly":
            self._perform(arguments)
            self.out = []
            return
        plain = [w for w in arguments if "=" not in w]
        named = dict(w.split("=", 1) for w in arguments if "=" in w)
        getattr(self, f"do_{name}")(*plain, **named)

    # --- what a command did ----------------------------------------------------------------------

    def settle(self, replica_id: int) -> None:
        """Drain the replica, tell what changed, and sync at once unless it is under `async`."""
        replica = self.replicas[replica_id]
        while replica.is_up:
            before = len(replica.pending)
            self._send(replica.drain())
            fresh = len(replica.pending) > before
            if fresh and self.manual.get(replica_id):
                self._tell_write(replica)
            if fresh and not self.manual.get(replica_id):
                self._send(replica.sync())
            applied = replica.apply()
            self._tell_changes(replica, applied)
            if not fresh and not applied and not replica.core.log.unstable:
                return

    def _send(self, messages: list[Any]) -> None:
        for message in messages:
            link = (message.sender, message.to)
            lost = " (lost)" if self.cuts.get(link) else ""
            self.out.append(f"{link[0]}->{link[1]} {message_words(message)}{lost}")
            if not lost:
                self.links.setdefault(link, []).append(message)

    def _tell_write(self, replica: Replica) -> None:
        ready = replica.pending[-1].ready
        parts = [entry_words(e) for e in ready.entries]
        if ready.hard_state is not None:
            parts.append(f"term={ready.hard_state.term} vote={ready.hard_state.voted_for}")
        if parts:
            self.out.append(f"{replica.replica_id} writes {', '.join(parts)}")

    def _tell_changes(self, replica: Replica, applied: list[Any]) -> None:
        core, name = replica.core, replica.replica_id
        now = {
            "role": f"{core.role.value} t={core.term} leader={core.leader_id}"
            + (" quiesced" if core.quiesced else ""),
            "configuration": f"configuration {configuration_words(core.configuration)}",
            "commit": f"commits {core.log.commit_index}",
        }
        before = self.shown.get(name, {"commit": "commits 0"})
        self.out += [f"{name} {now[k]}" for k in now if before.get(k) != now[k]]
        self.shown[name] = now
        if applied:
            self.out.append(f"{name} applies {', '.join(entry_words(e) for e in applied)}")
        if replica.install is not None and before.get("install") != str(replica.install):
            self.out.append(f"{name} is to fetch a checkpoint from {replica.install.sender}")
        now["install"] = str(replica.install)
        self.out += [f"{name} reads {context} at {index}" for context, index in replica.reads]
        self.out += [f"{name} fails read {context}" for context in replica.failed_reads]
        replica.reads.clear()
        replica.failed_reads.clear()

    def step(self, link: tuple[int, int], message: Any, *, told: bool = True) -> None:
        replica = self.replicas.get(link[1])
        if told:
            self.out.append(f"{link[1]}<-{link[0]} {message_words(message)}")
        if replica is not None and replica.is_up:
            replica.core.step(message)
            self.settle(link[1])

    # --- building and breaking replicas ----------------------------------------------------------

    def do_group(self, voters: str, learners: str = "", **options: str) -> None:
        known = {name: int(value) for name, value in options.items()}
        self.options = replace(self.options, **known)
        founding = self.code.configuration.Configuration.of(ids(voters), ids(learners))
        for replica_id in founding.members():
            self._create(replica_id, [(0, founding)])

    def do_empty(self, names: str) -> None:
        for replica_id in ids(names):
            self._create(replica_id, [])

    def _create(self, replica_id: int, configurations: list[tuple[int, Any]]) -> None:
        log = MemoryLog(self.code, configurations)
        replica = Replica(self.code, replica_id, log, self.options, Timeouts(replica_id))
        self.replicas[replica_id] = replica
        replica.start()
        self._tell_changes(replica, [])

    def do_async(self, names: str) -> None:
        self.manual.update(dict.fromkeys(ids(names), True))

    def do_sync(self, name: str, count: str = "") -> None:
        replica = self.replicas[int(name)]
        self._send(replica.sync(int(count) if count else None))
        self.settle(int(name))

    def do_crash(self, names: str, keep: str = "synced") -> None:
        for replica_id in ids(names):
            kept = {"synced": 0, "all": len(self.replicas[replica_id].log.unsynced)}
            self.replicas[replica_id].crash(keep=kept[keep] if keep in kept else int(keep))
            self.shown.pop(replica_id, None)

    def do_restart(self, names: str) -> None:
        for replica_id in ids(names):
            self.replicas[replica_id].start()
            self.settle(replica_id)

    # --- requests and time -----------------------------------------------------------------------

    def do_tick(self, names: str, count: str = "1") -> None:
        for _ in range(int(count)):
            for replica_id in ids(names):
                if self.replicas[replica_id].is_up:
                    self.replicas[replica_id].core.tick()
                    self.settle(replica_id)

    def _ask(self, name: str, method: str, *arguments: Any, **named: Any) -> None:
        getattr(self.replicas[int(name)].core, method)(*arguments, **named)
        self.settle(int(name))

    def do_campaign(self, name: str) -> None:
        self._ask(name, "campaign")

    def do_propose(self, name: str, *datas: str, term: str = "0") -> None:
        self._ask(name, "propose", [d.encode() for d in datas], expected_term=int(term))

    def do_read(self, name: str, context: str) -> None:
        self._ask(name, "read_index", context)

    def do_transfer(self, name: str, target: str) -> None:
        self._ask(name, "transfer_leadership", int(target))

    def do_learners(self, name: str, learners: str = "") -> None:
        self._ask(name, "propose_learners", ids(learners))

    def do_voters(self, name: str, voters: str) -> None:
        self._ask(name, "propose_voters", ids(voters))

    def do_unreachable(self, name: str, other: str) -> None:
        self._ask(name, "unreachable", int(other))

    def do_wake(self, names: str) -> None:
        for replica_id in ids(names):
            self._ask(str(replica_id), "wake")

    def do_leader_lost(self, name: str, rank: str = "0") -> None:
        self._ask(name, "leader_lost", rank=int(rank))

    # --- messages --------------------------------------------------------------------------------

    def _chosen(self, words: tuple[str, ...]) -> Iterator[tuple[tuple[int, int], list[Any]]]:
        """Take the chosen messages off their links."""
        pairs = [pair for w in words for pair in link_pairs(w)]
        count = next((int(w) for w in words if w.isdigit()), None)
        kind = next((w for w in words if w[0].isalpha()), None)
        for link in pairs or sorted(self.links):
            waiting = self.links.get(link, [])
            chosen = [m for m in waiting if kind in (None, type(m).__name__)][:count]
            self.links[link] = [m for m in waiting if not any(m is c for c in chosen)]
            yield link, chosen

    def do_deliver(self, *words: str) -> None:
        for link, chosen in list(self._chosen(words)):
            for message in chosen:
                self.step(link, message)

    def do_drop(self, *words: str) -> None:
        for link, chosen in self._chosen(words):
            self.out += [f"lost {link[0]}->{link[1]} {message_words(m)}" for m in chosen]

    def do_hold(self, *words: str) -> None:
        for link, chosen in self._chosen(words):
            self.held.setdefault(link, []).extend(chosen)
            self.out += [f"held {link[0]}->{link[1]} {message_words(m)}" for m in chosen]

    def do_late(self, word: str) -> None:
        for link in link_pairs(word):
            self.links.setdefault(link, []).extend(self.held.pop(link, []))

    def do_forge(self, word: str, kind: str, *entries: str, **fields: str) -> None:
        for link in link_pairs(word):
            message = message_from_words(self.code, link, kind, list(entries), fields)
            self.links.setdefault(link, []).append(message)

    def do_duplicate(self, word: str, count: str = "") -> None:
        for link in link_pairs(word):
            waiting = self.links.get(link, [])
            waiting += waiting[: int(count)] if count else list(waiting)

    def do_reorder(self, word: str) -> None:
        for link in link_pairs(word):
            self.links.get(link, []).reverse()

    def do_cut(self, *words: str) -> None:
        for word in words:
            for link in link_pairs(word):
                self.cuts[link] = True
                self.links.pop(link, None)

    def do_isolate(self, name: str) -> None:
        for other in self.replicas:
            if other != int(name):
                self.do_cut(f"{name}-{other}")

    def do_heal(self) -> None:
        self.cuts.clear()

    def do_stabilize(self) -> None:
        for _ in range(STABILIZE_MAX):
            moved = False
            for name in sorted(self.replicas):
                if self.manual.get(name) and self.replicas[name].pending:
                    moved = True
                    self.do_sync(str(name))
                if self.replicas[name].install is not None and self._can_fetch(name):
                    moved = True
                    self.do_install(str(name))
            for link in sorted(self.links):
                waiting, self.links[link] = self.links[link], []
                for message in waiting:
                    moved = True
                    self.step(link, message, told=False)
            if not moved:
                return
        self.out.append("endless")

    # --- checkpoints -----------------------------------------------------------------------------

    def do_checkpoint(self, name: str) -> None:
        self.replicas[int(name)].checkpoint()
        self.replicas[int(name)].log.synced(self.replicas[int(name)].log.version)

    def do_compact(self, name: str, index: str) -> None:
        replica = self.replicas[int(name)]
        replica.checkpoint(compact_to=int(index))
        replica.log.synced(replica.log.version)
        self.out.append(f"{name} log begins at {replica.log.first_index}")

    def _source(self, name: int) -> Replica | None:
        install = self.replicas[name].install
        source = self.replicas.get(install.sender) if install is not None else None
        return source if source is not None and source.is_up else None

    def _can_fetch(self, name: int) -> bool:
        source = self._source(name)
        return source is not None and not self.cuts.get((source.replica_id, name))

    def do_install(self, name: str, **named: str) -> None:
        """`from`: fetch from that replica instead of the one that ordered it."""
        replica = self.replicas[int(name)]
        source = self.replicas[int(named["from"])] if named else self._source(int(name))
        assert source is not None, "nobody to fetch from"
        checkpoint = source.log.state.checkpoint
        assert isinstance(checkpoint, Checkpoint), f"{source.replica_id} has no checkpoint"
        wanted = replica.install_from(checkpoint)
        self.out.append(
            f"{name} {'installs' if wanted else 'has no use for'} checkpoint {checkpoint.index} "
            f"of {source.replica_id}"
        )
        self.settle(int(name))

    def do_refuse(self, name: str) -> None:
        self.replicas[int(name)].install = None
        self._ask(name, "snapshot_refused")

    # --- looking ---------------------------------------------------------------------------------

    def do_status(self, names: str = "") -> None:
        for name in ids(names) or sorted(self.replicas):
            self.out.append(status_words(self.replicas[name]))

    def do_log(self, names: str) -> None:
        for name in ids(names):
            log = self.replicas[name].core.log
            found = log.entries(log.first_index, log.last_index, 1 << 30) if log.last_index else []
            words = " ".join(entry_words(e) for e in found)
            self.out.append(f"{name} log from {log.first_index}: {words}")

    def do_progress(self, name: str) -> None:
        for other, progress in self.replicas[int(name)].core.progress.items():
            self.out.append(f"{other} {progress_words(progress)}")

    def do_links(self) -> None:
        for (sender, to), waiting in sorted(self.links.items()):
            self.out += [f"{sender}->{to} {message_words(m)}" for m in waiting]


def ids(words: str) -> list[int]:
    return [int(w) for w in words.split(",") if w]


def link_pairs(word: str) -> list[tuple[int, int]]:
    """The links that a word names; none if it is no link."""
    one_way, both_ways = word.split("->"), word.split("-")
    if len(one_way) == 2:
        return [(int(one_way[0]), int(one_way[1]))]
    if len(both_ways) == 2:
        a, b = int(both_ways[0]), int(both_ways[1])
        return [(a, b), (b, a)]
    return []
