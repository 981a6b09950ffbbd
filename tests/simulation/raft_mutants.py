"""The raft modules with one deliberate mistake each: what the tests must be able to notice.

A mutant is made by importing changed copies of the modules under another package name. The real
modules are not touched. test_raft_mutants.py lets every mutant loose on the random schedules, or on
the story that it names: mistakes that only a rare order of events brings out, and those that cost
no safety but a promise of liveness, fairness or a bound.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.raft_replica import MODULES, RaftCode

RAFT = Path(__file__).resolve().parents[2] / "cluster" / "raft"


@dataclass(frozen=True, slots=True)
class Mutant:
    """In `module`, `right` (which must be there exactly once) becomes `wrong`. `story`: the one of
    tests/scenarios that ends otherwise then; without it, random schedules must notice."""

    name: str
    module: str
    right: str
    wrong: str
    story: str = ""

    def load(self) -> RaftCode:
        package = f"mutant_{self.name}"
        with tempfile.TemporaryDirectory() as folder:
            for module in MODULES:
                text = (RAFT / f"{module}.py").read_text(encoding="utf-8")
                if module == self.module:
                    found = text.count(self.right)
                    assert found == 1, f"{self.name}: {found} times in {module}: {self.right!r}"
                    text = text.replace(self.right, self.wrong)
                copy = Path(folder) / f"{module}.py"
                copy.write_text(text.replace("cluster.raft", package), encoding="utf-8")
            root = types.ModuleType(package)
            root.__path__ = [folder]
            sys.modules[package] = root
            importlib.invalidate_caches()
            return RaftCode(package)

    def unload(self) -> None:
        package = f"mutant_{self.name}"
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            del sys.modules[name]


MUTANTS = (
    Mutant(
        "commits_old_terms_by_counting",  # rule R3, Raft figure 8
        "leader",
        "if index <= log.commit_index or log.term(index) != state.term:",
        "if index <= log.commit_index:",
    ),
    Mutant(
        "votes_before_sync",  # rule R1
        "follower",
        "    state.after_sync.append(RequestVoteReply(",
        "    state.outbox.append(RequestVoteReply(",
    ),
    Mutant(
        "acknowledges_before_sync",  # rule R1
        "follower",
        "    state.after_sync.append(AppendEntriesReply(state.replica_id, to, state.term, True,",
        "    state.outbox.append(AppendEntriesReply(state.replica_id, to, state.term, True,",
    ),
    Mutant(
        "asks_for_votes_before_sync",  # rule R1
        "candidate",
        "        state.after_sync.append(\n            RequestVote(",
        "        state.outbox.append(\n            RequestVote(",
    ),
    Mutant(
        "counts_itself_before_sync",  # rule R1, bug class 5
        "leader",
        "            progress.matched(state.log.durable_index)\n        if member not in known",
        "            progress.matched(state.log.last_index)\n        if member not in known",
    ),
    Mutant(
        "votes_twice_in_a_term",  # bug class 19
        "follower",
        "free = state.voted_for == message.sender or (",
        "free = True or (",
    ),
    Mutant(
        "votes_for_shorter_logs",  # Raft §5.4.1
        "log",
        "last_log_term == mine and last_log_index >= self.last_index",
        "last_log_term == mine",
    ),
    Mutant(
        "claims_survive_truncation",  # rule R11, bug class 21
        "log",
        "            claim[1] = min(claim[1], first - 1)",
        "            pass",
        story="async_append_aba",
    ),
    Mutant(
        "truncation_leaves_durable_index",  # bug class 20
        "log",
        "        self.durable_index = min(self.durable_index, first - 1)\n",
        "",
    ),
    Mutant(
        "applies_before_sync",  # house §4.12, bug class 8
        "log",
        "high = min(self.commit_index, self.durable_index)",
        "high = self.commit_index",
    ),
    Mutant(
        "heartbeat_commits_beyond_match",  # rule R3
        "leader",
        "commit = min(progress.match_index, state.log.commit_index)",
        "commit = state.log.commit_index",
    ),
    Mutant(
        "append_commits_beyond_entries",  # Raft figure 2, AppendEntries 5
        "follower",
        "min(message.leader_commit, last_new)",
        "min(message.leader_commit, log.last_index)",
        story="commit_never_beyond_what_matches",
    ),
    Mutant(
        "does_not_check_previous_entry",  # Raft §5.3
        "log",
        "        return self.term(index) == term\n",
        "        return True\n",
    ),
    Mutant(
        "reads_without_a_round",  # rule R4, bug class 27
        "leader",
        "    while lead.reads and lead.reads[0][0] <= done:",
        "    while lead.reads:",
    ),
    Mutant(
        "reads_before_own_term_commits",  # rule R4
        "leader",
        "if lead.new_reads and state.log.commit_index >= lead.first_index_of_term:",
        "if lead.new_reads:",
    ),
    Mutant(
        "counts_one_half_of_a_joint_quorum",  # dissertation §4.3
        "quorum",
        "index = min(index, _majority_index(configuration.voters_outgoing, index_of))",
        "pass",
    ),
    Mutant(
        "elects_by_one_half_of_a_joint_quorum",  # dissertation §4.3
        "quorum",
        "if not configuration.voters_outgoing:\n        return incoming",
        "if incoming is Vote.WON or not configuration.voters_outgoing:\n        return incoming",
    ),
    Mutant(
        "keeps_truncated_configurations",  # rule R8, bug class 22
        "state",
        "            self.configurations.pop()",
        "            break",
    ),
    Mutant(
        "switches_to_an_unwanted_checkpoint",  # rule R10
        "core",
        "return index > log.commit_index and not log.matches(index, term)",
        "return index > log.commit_index",
        story="snapshot_overtaken",
    ),
    Mutant(
        "believes_in_checkpoints_beyond_its_log",  # found by a random schedule
        "leader",
        "    if message.snapshot_index > state.log.last_index:\n        return",
        "    if False:\n        return",
        story="snapshot_ahead_of_a_deposed_leader",
    ),
    Mutant(
        "ignores_the_leaders_of_later_terms",  # rule R6: a stuck higher term
        "core",
        "AppendEntriesReply(state.replica_id, message.sender, state.term, False, 0)",
        "AppendEntriesReply(state.replica_id, message.sender, message.term, False, 0)",
    ),
    Mutant(
        "falls_asleep_over_old_answers",  # rule R20
        "leader",
        "            progress.quiesced = False  # an earlier answer",
        "            pass  # an earlier answer",
        story="quiesce_asks_everyone_anew",
    ),
    Mutant(
        "removed_replicas_never_campaign",  # dissertation §4.2.2
        "state",
        "            if index <= self.log.commit_index:\n                return False",
        "            return False",
        story="joint_removed_leader_is_needed",
    ),
    Mutant(
        "never_gives_up_a_transfer",  # dissertation §3.10
        "leader",
        "            lead.transferee = 0  # it did not take over: lead on",
        "            pass",
        story="leader_transfer_given_up",
    ),
    Mutant(
        "never_notices_lost_appends",
        "leader",
        "        progress.become_probe()  # it hears us, yet",
        "        pass  # it hears us, yet",
    ),
    Mutant(
        "forgets_to_leave_the_joint_state",
        "leader",
        "        _append_configuration(state, configuration.leave_joint())",
        "        pass",
    ),
    Mutant(
        "acknowledges_its_whole_log",  # Raft figure 2: the tail may be another leader's
        "follower",
        "_reply_success(state, message.sender, last_new)",
        "_reply_success(state, message.sender, log.last_index)",
        story="commit_never_beyond_what_matches",
    ),
    Mutant(
        "takes_back_a_commit",
        "follower",
        "max(log.commit_index, min(message.leader_commit, log.last_index))",
        "min(message.leader_commit, log.last_index)",
    ),
    Mutant(
        "follows_leaders_of_earlier_terms",  # Raft §5.1
        "core",
        "            self._answer_lower_term(message)\n            return\n",
        "            self._answer_lower_term(message)\n",
    ),
    Mutant(
        "forgets_its_vote_within_the_term",  # bug class 19
        "state",
        "        if term > self.term:\n            self.term = term\n",
        "        if True:\n            self.term = term\n",
        story="split_vote_of_two",
    ),
    Mutant(
        "counts_the_votes_of_strangers",  # bug class 24
        "quorum",
        "granted = sum(1 for v in voters if votes.get(v) is True)",
        "granted = sum(1 for yes in votes.values() if yes)",
    ),
    Mutant(
        "pre_votes_raise_terms",  # rule R6, bug class 25
        "core",
        "        if isinstance(message, PreVote):\n            return True",
        "        if False:\n            return True",
        story="pre_vote",
    ),
    Mutant(
        "pre_votes_in_spite_of_a_leader",  # rule R6
        "follower",
        "        and not state.hears_leader\n",
        "",
        story="partition_in_one_direction",
    ),
    Mutant(
        "votes_in_spite_of_a_leader",  # rule R7
        "core",
        "if state.hears_leader and not message.leadership_transfer:",
        "if False:",
        story="removed_replica_does_not_disrupt",
    ),
    Mutant(
        "changes_members_while_a_change_is_pending",  # rule R8
        "leader",
        "    if state.configuration_index > state.log.commit_index:\n        raise",
        "    if False:\n        raise",
    ),
    Mutant(
        "changes_members_before_its_term_commits",  # rule R8, bug class 23
        "leader",
        "    if state.log.commit_index < lead.first_index_of_term:\n        raise",
        "    if False:\n        raise",
        story="refused_changes",
    ),
    Mutant(
        "changes_voters_without_a_joint_state",  # dissertation §4.3
        "configuration",
        "return Configuration(incoming, self.voters, learners)",
        "return Configuration(incoming, (), learners)",
        story="joint_change",
    ),
    Mutant(
        "forgets_the_configuration_of_a_checkpoint",  # rule R8
        "core",
        "state.configurations = [(index, configuration)]",
        "pass",
        story="wiped_node",
    ),
    Mutant(
        "leads_on_after_its_removal",  # rule R9
        "leader",
        "        _leave(state)\n\n",
        "        pass\n\n",
        story="removed_leader",
    ),
    Mutant(
        "leads_on_without_a_quorum",  # check-quorum, bug class 30
        "leader",
        "if not _hears_quorum(state):",
        "if False:",
        story="check_quorum",
    ),
    Mutant(
        "loses_reads_with_leadership",  # rule R4
        "state",
        "self.failed_reads.extend(self.leadership.abandon_reads())",
        "pass",
        story="read_index",
    ),
    Mutant(
        "takes_proposals_while_handing_over",  # dissertation §3.10
        "leader",
        "    if state.leadership.transferee:\n        raise",
        "    if False:\n        raise",
        story="leader_transfer",
    ),
    Mutant(
        "forgets_the_term_of_a_decision",  # rule R17
        "leader",
        "if expected_term not in (0, state.term):",
        "if False:",
        story="proposals_decided_in_another_term",
    ),
    Mutant(
        "lets_proposals_pile_up",  # rule R19
        "leader",
        "if lead.uncommitted_bytes >= state.options.uncommitted_bytes_max:",
        "if False:",
        story="throttled",
    ),
    Mutant(
        "floods_a_replica",  # rule R19
        "progress",
        " or len(self.inflight) >= messages_max or self.inflight_bytes >= bytes_max",
        "",
    ),
    Mutant(
        "sleeps_while_a_replica_is_behind",  # rule R20
        "leader",
        "        and all(p.match_index == last for p in lead.progress.values())\n",
        "",
        story="quiesce_only_when_all_agree",
    ),
)
