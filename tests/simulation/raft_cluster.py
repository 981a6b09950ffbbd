"""A cluster of pure cores under random schedules: everything that may happen to a group happens to
this one, in an order that the seed decides, and after every step raft_invariants.py looks on.

What a schedule is made of: messages lost, doubled, reordered and cut off in one direction or both;
writes that reach the disk late, and crashes that forget those that did not; proposals, reads,
transfers, learners and joint changes; checkpoints, compaction and catch-up; clocks that run apart;
quiescence. Which of it a seed uses, and how much, is drawn first, so that seeds differ in kind.

`storm` is the safety phase. `calm` heals everything and expects progress: one leader, everything
proposed from then on committed, all replicas equal, the group asleep.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.simulation.raft_invariants import Invariants
from tests.simulation.raft_replica import MemoryLog, RaftCode, Replica

NETWORK_MAX = 400  # messages on the way; the oldest are lost beyond it
REPLICAS_MAX = 7
CALM_TICKS = 400

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
    "cut": 1,
    "heal": 2,
    "checkpoint": 2,
    "learners": 2,
    "voters": 2,
    "transfer": 2,
    "whisper": 1,
    "coup": 2,
}
RARE = ("crash", "cut", "checkpoint", "learners", "voters", "transfer", "read", "coup", "whisper")
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
        self.network: list[Any] = []
        self.cuts: dict[tuple[int, int], bool] = {}
        self.proposed = 0
        self.trace: list[str] = []
        self.invariants = Invariants(code, self.replicas, self.options)
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
        actions: dict[str, Callable[[], None]] = {n: getattr(self, f"_{n}") for n in names}
        for name in self.random.choices(names, weights, k=steps):
            actions[name]()

    def _up(self) -> list[Replica]:
        return [r for r in self.replicas.values() if r.is_up]

    def _any_up(self) -> Replica | None:
        up = self._up()
        return self.random.choice(up) if up else None

    def _leader(self) -> Replica | None:
        """Someone who thinks it leads."""
        leaders = [r for r in self._up() if r.core.role.value == "leader"]
        return self.random.choice(leaders) if leaders else None

    def _touched(self, replica: Replica, *, now: bool = False) -> None:
        if now or self.random.random() >= self.laziness:
            self._settle(replica)
        self.invariants.check(replica)

    def _settle(self, replica: Replica) -> None:
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
        self._hand(message)

    def _hand(self, message: Any) -> None:
        replica = self.replicas.get(message.to)
        if replica is None or not replica.is_up:
            return
        self._note(f"{message}")
        replica.core.step(message)
        self._touched(replica)

    def _tick(self) -> None:
        for replica in self._up():
            if self.random.random() < 0.9:
                replica.core.tick()
                self._touched(replica)

    def _sync(self) -> None:
        writing = [r for r in self._up() if r.pending]
        if not writing:
            return
        replica = self.random.choice(writing)
        slow = replica.replica_id % 2 == 1 and self.random.random() < self.slow_disks
        if not slow:
            self._sync_replica(replica, self.random.choice((1, 2, None)))

    def _sync_replica(self, replica: Replica, count: int | None) -> None:
        self._note(f"sync {replica.replica_id} {count}")
        self._send(replica, replica.sync(count))
        self._touched(replica)

    def _drain(self) -> None:
        replica = self._any_up()
        if replica is not None:
            self._touched(replica, now=True)

    def _ask(self, replica: Replica | None, method: str, *arguments: Any) -> bool:
        if replica is None:
            return False
        self._note(f"{replica.replica_id}.{method}{arguments}")
        try:
            getattr(replica.core, method)(*arguments)
        except self.code.errors.RaftRefused:
            return False
        finally:
            self._touched(replica)
        return True

    def _propose(self) -> None:
        datas = []
        for _ in range(self.random.choice((1, 1, 1, 3))):
            self.proposed += 1
            datas.append(b"%d" % self.proposed + b"." * self.random.choice((0, 10)))
        self._ask(self._leader(), "propose", datas)

    def _read(self) -> None:
        self._ask(self._leader(), "read_index", self.invariants.read_asked())

    def _crash(self) -> None:
        replica = (self.random.random() < 0.5 and self._leader()) or self._any_up()
        if replica:
            keep = self.random.choice((0, 1, 2, 3, 100))
            self._note(f"crash {replica.replica_id} keep={keep}")
            replica.crash(keep=keep)

    def _restart(self) -> None:
        down = [r for r in self.replicas.values() if not r.is_up]
        if down:
            self._start(self.random.choice(down))

    def _start(self, replica: Replica) -> None:
        self._note(f"restart {replica.replica_id}")
        replica.start()
        self.invariants.started(replica)
        self._touched(replica)

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

    def _fetch(self) -> None:
        waiting = [r for r in self._up() if r.install is not None]
        if not waiting:
            return
        replica = self.random.choice(waiting)
        order = replica.install
        sources = [
            r.log.state.checkpoint
            for r in self._up()
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
        self._touched(replica)

    def _transfer(self) -> None:
        self._ask(self._leader(), "transfer_leadership", self.random.choice(sorted(self.replicas)))

    def _learners(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        learners = [r for r in leader.core.configuration.learners if self.random.random() < 0.7]
        if len(self.replicas) < REPLICAS_MAX and self.random.random() < 0.7:
            fresh = max(self.replicas) + 1
            self._create(fresh, [])
            learners.append(fresh)
        self._ask(leader, "propose_learners", learners)

    def _voters(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        configuration = leader.core.configuration
        known = [*configuration.voters, *configuration.learners]
        voters = [r for r in known if self.random.random() < 0.7]
        self._ask(leader, "propose_voters", voters)

    def _whisper(self) -> None:
        """What a host tells a core out of the blue."""
        replica = self._any_up()
        if replica is None:
            return
        method = self.random.choice(("wake", "leader_lost", "campaign", "unreachable"))
        other = [self.random.choice(sorted(self.replicas))] if method == "unreachable" else []
        self._ask(replica, method, *other)

    def _coup(self) -> None:
        """Cut off from their leader, the others elect a new one; both may go on for a while."""
        leader = self._leader()
        if leader is None:
            return
        self.cuts.clear()
        for name in self.replicas:
            if name != leader.replica_id and self.random.random() < 0.9:
                self.cuts[leader.replica_id, name] = self.cuts[name, leader.replica_id] = True
        others = [r for r in self._up() if r is not leader]
        for replica in others:
            self._ask(replica, "leader_lost")
        if others:
            self._ask(self.random.choice(others), "campaign")

    # --- the calm after --------------------------------------------------------------------------

    def calm(self) -> None:
        """Everything works from now on. Raises AssertionError when the group does not recover."""
        self.cuts.clear()
        self.loss = self.doubling = self.reordering = self.laziness = 0.0
        for replica in list(self.replicas.values()):
            if not replica.is_up:
                self._start(replica)
        leader = self._until(self._settled_leader, "no stable leader")
        self._part_with_strangers(leader)
        for _ in range(3):
            self.proposed += 1
            data = b"calm %d" % self.proposed
            self._until(lambda data=data: self._accepted(data), "a proposal is not accepted")
        self._until(self._all_equal, "the replicas do not become equal")
        if self.options.quiesce_ticks:
            self._until(self._all_asleep, "the group does not quiesce")
            self._restart_asleep()
        self.invariants.finish()

    def _restart_asleep(self) -> None:
        """One that restarts while the others sleep finds its leader again, without an election."""
        follower = next((r for r in self._up() if r.core.role.value == "follower"), None)
        if follower is None:
            return
        leaders = self.invariants.facts["leaders"]
        follower.crash(keep=0)
        self._start(follower)
        if not follower.core.state.is_promotable:
            for replica in self._up():
                replica.core.wake()  # a learner does not ask: hosts see its node start anew
        self._until(self._all_asleep, "the group does not quiesce after a restart")
        assert self.invariants.facts["leaders"] == leaders, (
            "a restart woke the group to an election"
        )

    def _until(self, condition: Callable[[], Any], complaint: str) -> Any:
        for _ in range(CALM_TICKS):
            self._flow()
            found = condition()
            if found:
                return found
            for replica in self._up():
                replica.core.tick()
                self._settle(replica)
        raise AssertionError(f"{complaint}: {[str(r.core.role) for r in self._up()]}")

    def _flow(self) -> None:
        """Deliver, sync and fetch until nothing moves."""
        for _ in range(2000):
            batch, self.network = self.network, []
            for message in batch:
                self._hand(message)
            moving = bool(batch)
            for replica in self._up():
                if replica.pending:
                    self._sync_replica(replica, None)
                if replica.install is not None:
                    self._fetch()
                self._settle(replica)
                self.invariants.check(replica)
                moving = moving or bool(replica.pending or self.network)
            if not moving:
                return
        raise AssertionError("messages without end")

    def _settled_leader(self) -> Replica | None:
        """A leader with a committed entry of its own term, out of joint, all members following."""
        for replica in self._up():
            core = replica.core
            if (
                core.role.value == "leader"
                and core.log.applied_index >= core.leads_since_index
                and not core.configuration.is_joint
                and core.state.configuration_index <= core.log.commit_index
                and all(
                    self.replicas[m].core.leader_id == replica.replica_id
                    for m in core.configuration.members()
                )
            ):
                return replica
        return None

    def _part_with_strangers(self, leader: Replica) -> None:
        """The controller drops the replicas that are not members any more."""
        members = leader.core.configuration.members()
        for replica in self._up():
            if replica.replica_id not in members:
                replica.crash(keep=0)

    def _accepted(self, data: bytes) -> bool:
        leader = self._settled_leader()
        return leader is not None and self._ask(leader, "propose", [data])

    def _all_equal(self) -> bool:
        """Everything proposed in the calm is applied by everyone."""
        up = self._up()
        first = up[0].applied
        return any(e.data == b"calm %d" % self.proposed for e in first[-4:]) and all(
            r.applied == first and r.core.log.last_index == r.core.log.applied_index for r in up
        )

    def _all_asleep(self) -> bool:
        return all(r.core.quiesced for r in self._up())


def run(code: RaftCode, seed: int, *, steps: int) -> Cluster:
    """One seed, whole. An AssertionError tells seed and the last events."""
    cluster = Cluster(code, seed)
    try:
        cluster.storm(steps)
        cluster.calm()
    except Exception as error:
        raise AssertionError(
            f"seed {seed}: {type(error).__name__}: {error}\n  " + "\n  ".join(cluster.trace[-25:])
        ) from error
    return cluster
