"""A cluster of pure cores under random schedules: everything that may happen to a group happens to
this one, in an order that the seed decides, and after every step raft_invariants.py looks on.

What a schedule is made of: messages lost, doubled, reordered and cut off in one direction or both;
writes that reach the disk late, crashes that forget those that did not, disks that are lost;
proposals, reads, transfers, learners and joint changes; checkpoints, compaction and catch-up;
clocks that run apart; quiescence. Which of it a seed uses, and how much, is drawn first, so that
seeds differ in kind.

This is the safety phase; raft_calm.py expects progress afterwards, and raft_search.py runs both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.raft_invariants import Invariants
from tests.simulation.raft_replica import MemoryLog, RaftCode, Replica

NETWORK_MAX = 400  # messages on the way; the oldest are lost beyond it
REPLICAS_MAX = 7

# Steps of a storm and how often they are taken, before the seed changes it.
WEIGHTS = {
    "deliver": 120,
    "tick": 10,
    "sync": 60,
    "propose": 14,
    "drain": 10,
    "fetch": 6,
    "read": 3,
    "restart": 14,
    "crash": 1,
    "blackout": 0.2,
    "lose": 0.1,
    "cut": 1,
    "heal": 2,
    "checkpoint": 5,
    "learners": 3,
    "voters": 5,
    "transfer": 2,
    "whisper": 1,
    "coup": 2,
}
RARE = (
    "crash",
    "blackout",
    "lose",
    "cut",
    "checkpoint",
    "learners",
    "voters",
    "transfer",
    "read",
    "coup",
    "whisper",
)
# A third of the seeds leaves membership alone: elections are denser there.
MEMBERSHIP = ("learners", "voters")


class Cluster:
    def __init__(self, code: RaftCode, seed: int) -> None:
        self.code = code
        self.random = random.Random(seed)
        dice = self.random
        self.loss = dice.choice((0.0, 0.0, 0.02, 0.2))
        self.doubling = dice.choice((0.0, 0.02, 0.2))
        self.reordering = dice.choice((0.0, 0.0, 0.1, 0.5, 1.0))
        self.laziness = dice.choice((0.0, 0.2, 0.5))  # how often a Ready is not asked for at once
        self.weights = dict(WEIGHTS)
        for step in RARE:
            self.weights[step] *= dice.choice((0, 1, 1, 3))
        if dice.random() < 0.3:
            self.weights |= dict.fromkeys(MEMBERSHIP, 0)
        self.weights["deliver"] /= dice.choice((1, 1, 2, 6))
        self.weights["fetch"] /= dice.choice((1, 1, 10))
        self.weights["coup"] *= dice.choice((1, 1, 5))
        self.weights["tick"] *= dice.choice((1, 1, 2, 4))
        self.weights["sync"] *= dice.choice((1, 2, 4))
        self.slow_disks = dice.choice((0.0, 0.0, 0.5, 0.9))  # how often a slow disk does nothing
        self.options = code.state.RaftOptions(
            election_ticks=10,
            heartbeat_ticks=dice.choice((1, 2, 4)),
            inflight_messages_max=dice.choice((1, 2, 8)),
            inflight_bytes_max=dice.choice((20, 1000)),
            append_bytes_max=dice.choice((1, 1, 12, 1000)),
            apply_bytes_max=dice.choice((1, 12, 1000)),
            uncommitted_bytes_max=dice.choice((40, 1000)),
            quiesce_ticks=dice.choice((0, 6, 12)),
            announce_commit=dice.random() < 0.3,
        )
        founders = range(1, dice.choice((1, 3, 3, 3, 3, 3, 4, 5, 5)) + 1)
        founding = code.configuration.Configuration.of(founders)
        self.replicas: dict[int, Replica] = {}
        self.lost: list[int] = []  # replicas that never come back
        self.network: list[Any] = []
        self.cuts: dict[tuple[int, int], bool] = {}
        self.proposed = 0
        self.trace: list[str] = []
        self.invariants = Invariants(code, self.replicas, self.options, founding)
        for replica_id in founders:
            self._create(replica_id, [(0, founding)])

    def _create(self, replica_id: int, configurations: list[tuple[int, Any]]) -> None:
        log = MemoryLog(self.code, configurations)
        dice = random.Random(self.random.randrange(1 << 30))
        replica = Replica(self.code, replica_id, log, self.options, dice)
        replica.start()
        self.replicas[replica_id] = replica
        self.invariants.started(replica)

    # --- one step --------------------------------------------------------------------------------

    def storm(self, steps: int) -> None:
        names, weights = list(self.weights), list(self.weights.values())
        actions: dict[str, Callable[[], None]] = {
            n: getattr(self, f"_{n}", None) or getattr(self, n) for n in names
        }
        for name in self.random.choices(names, weights, k=steps):
            actions[name]()

    def up(self) -> list[Replica]:
        return [r for r in self.replicas.values() if r.is_up]

    def _any_up(self) -> Replica | None:
        up = self.up()
        return self.random.choice(up) if up else None

    def _leader(self) -> Replica | None:
        """Someone who thinks it leads."""
        leaders = [r for r in self.up() if r.core.role.value == "leader"]
        return self.random.choice(leaders) if leaders else None

    def touched(self, replica: Replica, *, now: bool = False) -> None:
        if now or self.random.random() >= self.laziness:
            self.settle(replica)
        self.invariants.check(replica)

    def settle(self, replica: Replica) -> None:
        self._send(replica, replica.drain())
        for context, index in replica.reads:
            self.invariants.read_answered(context, index)
        replica.reads.clear()
        replica.failed_reads.clear()
        self.invariants.applied(replica, replica.apply())

    def _send(self, replica: Replica, messages: list[Any]) -> None:
        for message in messages:
            self.invariants.sent(replica, message)
            if not self.cuts.get((message.sender, message.to)):
                self.network.append(message)
        del self.network[: max(0, len(self.network) - NETWORK_MAX)]

    def _note(self, text: str) -> None:
        self.trace.append(text)

    # --- what may happen -------------------------------------------------------------------------

    def _deliver(self) -> None:
        for _ in range(self.random.randrange(1, len(self.replicas) + 1)):
            self._deliver_one()

    def _deliver_one(self) -> None:
        if not self.network:
            return
        dice = self.random
        at = dice.randrange(len(self.network)) if dice.random() < self.reordering else 0
        message = self.network[at]
        if dice.random() >= self.doubling:
            del self.network[at]
        if dice.random() < self.loss or self.cuts.get((message.sender, message.to)):
            return
        self.hand(message)

    def hand(self, message: Any) -> None:
        replica = self.replicas.get(message.to)
        if replica is None or not replica.is_up:
            return
        self._note(f"{message}")
        replica.core.step(message)
        self.touched(replica)

    def _tick(self) -> None:
        for replica in self.up():
            if self.random.random() < 0.9:
                replica.core.tick()
                self.touched(replica)

    def _sync(self) -> None:
        writing = [r for r in self.up() if r.pending]
        if not writing:
            return
        replica = self.random.choice(writing)
        slow = replica.replica_id % 2 == 1 and self.random.random() < self.slow_disks
        if not slow:
            self.sync_replica(replica, self.random.choice((1, 2, None)))

    def sync_replica(self, replica: Replica, count: int | None) -> None:
        self._note(f"sync {replica.replica_id} {count}")
        self._send(replica, replica.sync(count))
        self.touched(replica)

    def _drain(self) -> None:
        replica = self._any_up()
        if replica is not None:
            self.touched(replica, now=True)

    def ask(self, replica: Replica | None, method: str, *arguments: Any, **named: Any) -> bool:
        """False if nobody is there or the core refuses."""
        if replica is None:
            return False
        self._note(f"{replica.replica_id}.{method}{arguments}{named or ''}")
        try:
            answer = getattr(replica.core, method)(*arguments, **named)
        except self.code.errors.RaftRefused:
            return False
        else:
            if method == "propose":
                self.invariants.proposed(replica, answer, *arguments)
            return True
        finally:
            self.touched(replica)

    def new_data(self) -> bytes:
        """Never proposed before."""
        self.proposed += 1
        return b"%d" % self.proposed + b"." * self.random.choice((0, 10))

    def _propose(self) -> None:
        datas = [self.new_data() for _ in range(self.random.choice((1, 1, 1, 3)))]
        self.ask(self._leader(), "propose", datas)

    def _read(self) -> None:
        self.ask(self._leader(), "read_index", self.invariants.read_asked())

    def _crash(self) -> None:
        replica = (self.random.random() < 0.5 and self._leader()) or self._any_up()
        if replica:
            keep = self.random.choice((0, 1, 2, 3, 100))
            self._note(f"crash {replica.replica_id} keep={keep}")
            replica.crash(keep=keep)

    def _blackout(self) -> None:
        """The power fails everywhere."""
        self._note("blackout")
        for replica in self.up():
            replica.crash(keep=self.random.choice((0, 0, 1, 100)))

    def can_spare(self, replica_ids: Sequence[int]) -> bool:
        """Is a majority of every configuration that may be in force among the others?"""
        sets = self.invariants.voter_sets()
        return all(2 * len(set(replica_ids) & set(voters)) < len(voters) for voters in sets)

    def _lose(self) -> None:
        """A disk is gone for good, and with it a replica (rule R12); others must take its place."""
        replica = self._any_up()
        if replica is not None and self.can_spare([*self.lost, replica.replica_id]):
            self._note(f"lose {replica.replica_id}")
            replica.crash(keep=0)
            self.lost.append(replica.replica_id)

    def _restart(self) -> None:
        down = [r for r in self.replicas.values() if not r.is_up and r.replica_id not in self.lost]
        if down:
            self.start(self.random.choice(down))

    def start(self, replica: Replica) -> None:
        self._note(f"restart {replica.replica_id}")
        replica.start()
        self.invariants.started(replica)
        self.touched(replica)

    def _cut(self) -> None:
        """A link, in one direction; or a replica or a random part from the rest, maybe one way."""
        names = sorted(self.replicas)
        dice = self.random
        part = {n: dice.random() < 0.3 for n in names}
        leader = self._leader()
        if leader is not None and dice.random() < 0.6:
            part[leader.replica_id] = True  # the cut that hurts
        both = dice.random() < 0.6
        self.cuts.clear()
        for a in names:
            for b in names:
                if part[a] != part[b] and (both or part[a]) and dice.random() < 0.9:
                    self.cuts[a, b] = True
        self._note(f"cut {sorted(self.cuts)}")

    def _heal(self) -> None:
        self.cuts.clear()

    def _checkpoint(self) -> None:
        replica = self._any_up()
        if replica is None:
            return
        applied = replica.core.log.applied_index
        if applied >= replica.log.first_index:
            self._note(f"checkpoint {replica.replica_id} {applied}")
            replica.checkpoint(compact_to=applied - self.random.choice((0, 0, 1, 4)))
            self.invariants.check(replica)

    def fetch(self) -> None:
        waiting = [r for r in self.up() if r.install is not None]
        if not waiting:
            return
        replica = self.random.choice(waiting)
        order = replica.install
        sources = [
            r.log.state.checkpoint
            for r in self.up()
            if r.log.state.checkpoint and r.log.state.checkpoint.index >= order.snapshot_index
        ]
        if not sources or self.random.random() < 0.1:
            replica.install = None
            self._note(f"{replica.replica_id} refuses")
            replica.core.snapshot_refused()
        else:
            checkpoint = self.random.choice(sources)
            self._note(f"{replica.replica_id} is offered checkpoint {checkpoint.index}")
            if replica.install_from(checkpoint):
                self.invariants.installed(replica)
        self.touched(replica)

    def _transfer(self) -> None:
        self.ask(self._leader(), "transfer_leadership", self.random.choice(sorted(self.replicas)))

    def _learners(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        learners = [r for r in leader.core.configuration.learners if self.random.random() < 0.7]
        if len(self.replicas) < REPLICAS_MAX and self.random.random() < 0.7:
            fresh = max(self.replicas) + 1
            self._create(fresh, [])
            learners.append(fresh)
        self.ask(leader, "propose_learners", learners)

    def _voters(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        configuration = leader.core.configuration
        known = [*configuration.voters, *configuration.learners]
        voters = [r for r in known if r not in self.lost and self.random.random() < 0.7]
        self.ask(leader, "propose_voters", voters)

    def _whisper(self) -> None:
        """What a host tells a core out of the blue."""
        replica = self._any_up()
        if replica is None:
            return
        method = self.random.choice(("wake", "leader_lost", "campaign", "unreachable"))
        if method == "unreachable":
            self.ask(replica, method, self.random.choice(sorted(self.replicas)))
        elif method == "leader_lost":
            self.ask(replica, method, rank=self.random.randrange(4))
        else:
            self.ask(replica, method)

    def _coup(self) -> None:
        """Cut off from their leader, the others elect a new one; both may go on for a while."""
        leader = self._leader()
        if leader is None:
            return
        self.cuts.clear()
        for name in self.replicas:
            if name != leader.replica_id and self.random.random() < 0.9:
                self.cuts[leader.replica_id, name] = self.cuts[name, leader.replica_id] = True
        others = [r for r in self.up() if r is not leader]
        for replica in others:
            self.ask(replica, "leader_lost")
        if others:
            self.ask(self.random.choice(others), "campaign")
