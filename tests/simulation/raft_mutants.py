"""The raft modules with one deliberate mistake: what the invariants must be able to notice.

A mutant is made by importing changed copies of the modules under another package name. The real
modules are not touched.
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
    """In `module`, `right` (which must be there exactly once) becomes `wrong`."""

    name: str
    module: str
    right: str
    wrong: str

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
        "            progress.quiesced = False\n\n    def abandon_reads",
        "            pass\n\n    def abandon_reads",
    ),
    Mutant(
        "removed_replicas_never_campaign",  # dissertation §4.2.2
        "state",
        "            if index <= self.log.commit_index:\n                return False",
        "            return False",
    ),
    Mutant(
        "never_gives_up_a_transfer",  # dissertation §3.10
        "leader",
        "            lead.transferee = 0  # it did not take over: lead on",
        "            pass",
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
)
