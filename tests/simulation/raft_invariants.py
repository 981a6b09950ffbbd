"""What must be true of a group at every moment, whatever happens to it (Raft figure 3 and more).

Checked from the outside, against facts of its own: what was ever committed, who ever led, what
every disk has really synced. Nothing here trusts a core's word about itself.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.raft_replica import DiskState, RaftCode, Replica


def _disk_term(disk: DiskState, index: int) -> int | None:
    """Term of the entry that the disk holds at `index`; None when it holds none."""
    at = index - disk.base_index - 1
    if at == -1:
        return disk.base_term
    return int(disk.entries[at].term) if 0 <= at < len(disk.entries) else None


def _holds(disk: DiskState, index: int, term: int) -> bool:
    return disk.base_index >= index or _disk_term(disk, index) == term


class Invariants:
    def __init__(
        self, code: RaftCode, replicas: dict[int, Replica], options: Any, founding: Any
    ) -> None:
        self._code = code
        self._replicas = replicas
        self._options = options
        # By place (index, term): the configuration in force there, and the index of its entry.
        self._history: dict[tuple[int, int], tuple[Any, int]] = {(0, 0): (founding, 0)}
        self._committed_configuration_index = 0
        self._boots: dict[int, int] = {}
        self._leaders: dict[int, tuple[int, int]] = {}  # term -> (replica, its boot)
        # By place: the entry there, and the place before it.
        self._entries: dict[tuple[int, int], tuple[Any, tuple[int, int]]] = {}
        self._committed: list[Any] = [None]  # by index: the entry, once anyone knew it committed
        self._commit_terms: list[tuple[int, int]] = [(0, 0)]  # (index, term of who knew), rising
        self._commit_index: dict[int, int] = {}
        self._message_term: dict[int, int] = {}
        self._votes: dict[int, dict[int, int]] = {}  # term -> voter -> candidate
        self._proposals: dict[tuple[int, int], tuple[bytes, tuple[int, int]]] = {}
        self._acknowledged: dict[bytes, int] = {}  # data -> index
        self._reads: dict[int, int] = {}  # number -> lowest index that is a right answer
        self._seen_last: dict[int, tuple[int, int]] = {}
        self.facts = dict.fromkeys(
            ("leaders", "committed", "acknowledged", "reads", "installed", "changes"), 0
        )

    # --- told by the cluster ---------------------------------------------------------------------

    def started(self, replica: Replica) -> None:
        name = replica.replica_id
        self._boots[name] = self._boots.get(name, 0) + 1
        self._commit_index[name] = replica.core.log.commit_index
        self._message_term[name] = replica.core.term

    def proposed(self, replica: Replica, first_index: int, datas: list[bytes]) -> None:
        me = (replica.replica_id, self._boots[replica.replica_id])
        for index, data in enumerate(datas, start=first_index):
            self._proposals[index, replica.core.term] = (data, me)

    def installed(self, replica: Replica) -> None:
        self.facts["installed"] += 1

    def read_asked(self) -> int:
        number = len(self._reads) + 1
        self._reads[number] = len(self._committed) - 1
        return number

    def read_answered(self, number: object, index: int) -> None:
        """Linearizable: everything that anyone knew committed when the read was asked for."""
        assert isinstance(number, int)
        assert index >= self._reads[number], f"read {number} at {index} < {self._reads[number]}"
        self.facts["reads"] += 1

    def applied(self, replica: Replica, entries: list[Any]) -> None:
        """State-machine safety: everyone applies the same entries in the same places."""
        self._check_commit(replica)
        me = (replica.replica_id, self._boots[replica.replica_id])
        for entry in entries:
            assert entry.index < len(self._committed), f"applied {entry}, not known committed"
            known = self._committed[entry.index]
            assert entry == known, f"{replica.replica_id} applied {entry}, committed is {known}"
            data, proposer = self._proposals.get((entry.index, entry.term), (b"", (0, 0)))
            if proposer == me:  # whoever proposed it is told now
                self._acknowledged[data] = entry.index
                self.facts["acknowledged"] += 1

    def sent(self, replica: Replica, message: Any) -> None:
        messages = self._code.messages
        name, disk = replica.replica_id, replica.log.synced_state
        assert message.sender == name, f"{name} sends {message}"
        kind = type(message)
        if kind is messages.RequestVoteReply and message.granted:
            self._vote(name, message.term, message.to)
            assert disk.term > message.term or (
                (disk.term, disk.voted_for) == (message.term, message.to)
            ), f"{message} before its vote is on disk: {disk.term}, {disk.voted_for}"
        elif kind is messages.RequestVote:
            assert disk.term >= message.term, f"{message} before its term is on disk: {disk.term}"
            self._vote(name, message.term, name)
        elif kind is messages.AppendEntriesReply:
            assert disk.term >= message.term, f"{message} before its term is on disk: {disk.term}"
            if message.success and disk.term == message.term:
                assert _disk_term(disk, message.match_index) is not None or (
                    message.match_index <= disk.base_index
                ), f"{message} before the entries are on disk"
        elif kind is messages.PreVote:
            assert message.term == self._message_term[name] + 1 or message.term <= replica.core.term

    def _vote(self, voter: int, term: int, candidate: int) -> None:
        known = self._votes.setdefault(term, {}).setdefault(voter, candidate)
        assert known == candidate, f"{voter} votes for {known} and for {candidate} in term {term}"

    # --- checked after every step ----------------------------------------------------------------

    def check(self, replica: Replica) -> None:
        core = replica.core
        self._check_commit(replica)
        self._check_log(replica)
        self._check_disk(replica)
        assert core.term >= self._message_term[replica.replica_id], "a term went back"
        self._message_term[replica.replica_id] = core.term
        if core.role.value == "leader":
            self._check_leader(replica)
        for other in self._replicas.values():
            if other.is_up and other is not replica:
                self._check_match(other, replica)

    def _check_log(self, replica: Replica) -> None:
        """Log matching: an index and a term name one entry, with one predecessor."""
        log, name = replica.core.log, replica.replica_id
        last = (log.last_index, log.last_term)
        if self._seen_last.get(name) == last:
            return
        self._seen_last[name] = last
        fresh: list[tuple[Any, tuple[int, int]]] = []
        for index in range(log.last_index, log.first_index - 1, -1):
            place = (index, log.term(index))
            entry = log.entries(index, index, 1 << 30)[0]
            before = (index - 1, log.term(index - 1))
            known = self._entries.setdefault(place, (entry, before))
            assert known == (entry, before), f"{name}: {place} is {entry}, elsewhere {known}"
            if place in self._history:
                break  # below it, all was compared when it was seen first
            fresh.append((entry, before))
        for entry, before in reversed(fresh):
            self._check_configuration(entry, before)
        mine, real = replica.core.configuration, self._history[last][0]
        assert mine == real or not mine.members(), f"{name} believes in {mine}, its log says {real}"

    def _check_configuration(self, entry: Any, before: tuple[int, int]) -> None:
        """One change at a time, from voters to joint to voters; learners come and go."""
        old, old_index = self._history[before]
        if entry.kind != self._code.messages.EntryKind.CONFIGURATION:
            self._history[entry.index, entry.term] = (old, old_index)
            return
        new = self._code.configuration.Configuration.decode(entry.data)
        self._history[entry.index, entry.term] = (new, entry.index)
        self.facts["changes"] += 1
        assert old_index < len(self._committed), f"{new} while {old} of {old_index} is pending"
        if new.is_joint:
            assert not old.is_joint, f"{old} becomes {new}"
            assert new.voters_outgoing == old.voters, f"{old} becomes {new}"
        else:
            assert new.voters == old.voters, f"{old} becomes {new}"

    def _check_disk(self, replica: Replica) -> None:
        """What a core believes to be durable is, and it applies nothing else."""
        log, disk = replica.core.log, replica.log.synced_state
        durable = log.durable_index
        if durable >= log.first_index and replica.log.state.base_index == disk.base_index:
            assert _disk_term(disk, durable) == log.term(durable), (
                f"{replica.replica_id} believes {durable} durable, disk has "
                f"{_disk_term(disk, durable)}, log {log.term(durable)}"
            )
        assert log.applied_index <= min(durable, log.commit_index), (
            f"applied {log.applied_index}, durable {durable}, commit {log.commit_index}"
        )

    def _check_commit(self, replica: Replica) -> None:
        log, name = replica.core.log, replica.replica_id
        before = self._commit_index[name]
        commit = log.commit_index
        assert commit >= before, f"{name}: commit went back from {before} to {commit}"
        if commit == before:
            return
        self._commit_index[name] = commit
        if commit >= len(self._committed) and replica.core.role.value == "leader":
            self._check_quorum(replica, commit)
        for index in range(max(before + 1, log.first_index), commit + 1):
            entry = log.entries(index, index, 1 << 30)[0]
            if index == len(self._committed):
                self._committed.append(entry)
                self._commit_terms.append((index, replica.core.term))
                self.facts["committed"] += 1
                if entry.kind == self._code.messages.EntryKind.CONFIGURATION:
                    self._committed_configuration_index = index
            else:
                known = self._committed[index]
                assert known == entry, f"{name} commits {entry}, elsewhere {known}"

    def _check_quorum(self, leader: Replica, index: int) -> None:
        """What a leader commits is of its own term and on the disks of a quorum (Raft §5.4.2)."""
        term = leader.core.log.term(index)
        assert term == leader.core.term, f"{leader.replica_id} commits {index} of term {term}"
        configuration = leader.core.configuration
        for voters in filter(None, (configuration.voters, configuration.voters_outgoing)):
            holders = [v for v in voters if _holds(self._replicas[v].log.synced_state, index, term)]
            assert 2 * len(holders) > len(voters), (
                f"{leader.replica_id} commits {index}, of {voters} only {holders} have it"
            )

    def _check_election(self, leader: Replica) -> None:
        """Elected by a majority of the voters, and of the outgoing ones too."""
        core, name = leader.core, leader.replica_id
        votes = self._votes.get(core.term, {})
        for voters in filter(None, (core.configuration.voters, core.configuration.voters_outgoing)):
            yes = [v for v in voters if v == name or votes.get(v) == name]
            assert 2 * len(yes) > len(voters), (
                f"{name} leads term {core.term}, of {voters} only {yes} voted for it"
            )

    def _check_leader(self, replica: Replica) -> None:
        core, name = replica.core, replica.replica_id
        me = (name, self._boots[name])
        first_look = core.term not in self._leaders
        leader = self._leaders.setdefault(core.term, me)
        assert leader == me, f"term {core.term} is led by {leader} and {me} (replica, boot)"
        if first_look:
            self.facts["leaders"] += 1
            self._check_election(replica)
            self._check_completeness(replica)
        lead, options = core.state.leadership, self._options
        assert lead.uncommitted_bytes <= options.uncommitted_bytes_max + 3 * 30 + 200
        for member, progress in core.progress.items():
            assert len(progress.inflight) <= options.inflight_messages_max
            if member in self._replicas:
                self._check_match(replica, self._replicas[member])
        if core.quiesced:
            assert core.log.applied_index == core.log.last_index, f"{name} sleeps with work to do"

    def _check_completeness(self, replica: Replica) -> None:
        """Everything committed in earlier terms is in the log of a new leader."""
        log, term = replica.core.log, replica.core.term
        for index, known_term in reversed(self._commit_terms):
            if known_term < term:
                assert log.last_index >= index, f"leader of {term} ends before committed {index}"
                if index >= log.first_index - 1 and index:
                    committed = self._committed[index].term
                    assert log.term(index) == committed, f"leader of {term} lacks {index}"
                return

    def _check_match(self, leader: Replica, follower: Replica) -> None:
        """A leader never believes a replica of its term to hold more than its disk does."""
        if leader.core.role.value != "leader":
            return
        progress = leader.core.progress.get(follower.replica_id)
        disk = follower.log.synced_state
        if progress is None or not progress.match_index or disk.term > leader.core.term:
            return
        if follower.is_up and follower.core.term > leader.core.term:
            return
        match = progress.match_index
        if match <= disk.base_index:
            return
        term = _disk_term(disk, match)
        assert term is not None, (
            f"leader {leader.replica_id} of term {leader.core.term} believes {follower.replica_id} "
            f"to hold {match}, its disk ends at {disk.base_index + len(disk.entries)}"
        )
        if match >= leader.core.log.first_index:
            assert term == leader.core.log.term(match), f"another entry at match {match}"

    # --- at the end ------------------------------------------------------------------------------

    def voter_sets(self) -> list[tuple[int, ...]]:
        """Of every configuration that some log holds and that may be in force."""
        sets: dict[tuple[int, ...], None] = {}
        for replica in self._replicas.values():
            source = replica.core.state if replica.is_up else replica.log
            for index, configuration in source.configurations:
                if index >= self._committed_configuration_index:
                    sets |= dict.fromkeys((configuration.voters, configuration.voters_outgoing))
        return [voters for voters in sets if voters]

    def finish(self) -> None:
        """Nothing that was committed is lost, nothing acknowledged is elsewhere or there twice, and
        nothing is there that nobody proposed."""
        committed = self._committed[1:]
        longest = 0
        for replica in self._replicas.values():
            if replica.is_up:
                known = committed[: len(replica.applied)]
                assert replica.applied == known, f"{replica.replica_id} applied something else"
                longest = max(longest, len(known))
        assert longest == len(committed), f"{longest} applied, {len(committed)} were committed"
        places: dict[bytes, int] = {}
        for entry in committed:
            if entry.kind == self._code.messages.EntryKind.COMMAND:
                proposed, _ = self._proposals[entry.index, entry.term]
                assert entry.data == proposed, f"{entry}, proposed was {proposed!r}"
                assert entry.data not in places, f"{entry.data!r} at {places} and {entry.index}"
                places[entry.data] = entry.index
        for data, index in self._acknowledged.items():
            assert places.get(data) == index, f"{data!r} was acknowledged at {index}"
