"""The calm after a storm: what is still able to work must work again, and in the end everything.

First a part of the group stays down, as much as the Raft promise allows (a majority of every
configuration that may be in force is up); then all come back. Each time: one leader, what is
proposed is committed, and at the end all replicas are equal and the group falls asleep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.raft_cluster import Cluster
from tests.simulation.raft_replica import Replica

TICKS_MAX = 400
FLOW_MAX = 2000


def calm(cluster: Cluster) -> None:
    """Raises AssertionError when the group does not recover."""
    cluster.cuts.clear()
    cluster.loss = cluster.doubling = cluster.reordering = cluster.laziness = 0.0
    missing = _may_be_missing(cluster)
    for replica in list(cluster.replicas.values()):
        if replica.replica_id in missing:
            if replica.is_up:
                replica.crash(keep=0)
        elif not replica.is_up:
            cluster.start(replica)
    _until(cluster, lambda: _settled_leader(cluster), f"no stable leader without {missing}")
    _commits(cluster)
    for replica_id in missing:
        if replica_id not in cluster.lost:
            cluster.start(cluster.replicas[replica_id])
    leader = _until(cluster, lambda: _leader_without_the_lost(cluster), "no stable leader")
    _part_with_strangers(cluster, leader)
    for _ in range(3):
        last = _commits(cluster)
    _until(cluster, lambda: _all_equal(cluster, last), "the replicas do not become equal")
    if cluster.options.quiesce_ticks:
        _until(cluster, lambda: _all_asleep(cluster), "the group does not quiesce")
        _restart_asleep(cluster)
    cluster.invariants.finish()


def _may_be_missing(cluster: Cluster) -> list[int]:
    """Replicas that the others can do without: those that are lost, and more by dice."""
    missing = list(cluster.lost)
    for replica_id in cluster.random.sample(sorted(cluster.replicas), len(cluster.replicas)):
        if replica_id not in missing and cluster.can_spare([*missing, replica_id]):
            missing.append(replica_id)
    return missing


def _commits(cluster: Cluster) -> bytes:
    """Something new is proposed and committed; what it was."""
    data = cluster.new_data()
    accepted = _until(cluster, lambda: _accepted(cluster, data), "a proposal is not accepted")
    _until(cluster, lambda: _has_applied(accepted, data), "a proposal is not committed")
    return data


def _accepted(cluster: Cluster, data: bytes) -> Replica | None:
    leader = _settled_leader(cluster)
    return leader if cluster.ask(leader, "propose", [data]) else None


def _has_applied(replica: Replica, data: bytes) -> bool:
    return any(entry.data == data for entry in replica.applied[-4:])


def _until(cluster: Cluster, condition: Callable[[], Any], complaint: str) -> Any:
    for _ in range(TICKS_MAX):
        _flow(cluster)
        found = condition()
        if found:
            return found
        for replica in cluster.up():
            replica.core.tick()
            cluster.settle(replica)
    raise AssertionError(f"{complaint}: {[str(r.core.role) for r in cluster.up()]}")


def _flow(cluster: Cluster) -> None:
    """Deliver, sync and fetch until nothing moves."""
    for _ in range(FLOW_MAX):
        batch, cluster.network = cluster.network, []
        for message in batch:
            cluster.hand(message)
        moving = bool(batch)
        for replica in cluster.up():
            if replica.pending:
                cluster.sync_replica(replica, None)
            if replica.install is not None:
                cluster.fetch()
            cluster.settle(replica)
            cluster.invariants.check(replica)
            moving = moving or bool(replica.pending or cluster.network)
        if not moving:
            return
    raise AssertionError("messages without end")


def _settled_leader(cluster: Cluster) -> Replica | None:
    """A leader with a committed entry of its own term, out of joint, its members following."""
    for replica in cluster.up():
        core = replica.core
        members = [cluster.replicas[m] for m in core.configuration.members()]
        if (
            core.role.value == "leader"
            and core.log.applied_index >= core.leads_since_index
            and not core.configuration.is_joint
            and core.state.configuration_index <= core.log.commit_index
            and all(m.core.leader_id == replica.replica_id for m in members if m.is_up)
        ):
            return replica
    return None


def _leader_without_the_lost(cluster: Cluster) -> Replica | None:
    """A settled leader whose members all can come back; it is asked to remove the others."""
    leader = _settled_leader(cluster)
    if leader is None:
        return None
    configuration, lost = leader.core.configuration, cluster.lost
    if not any(member in lost for member in configuration.members()):
        return leader
    cluster.ask(leader, "propose_voters", [v for v in configuration.voters if v not in lost])
    cluster.ask(leader, "propose_learners", [r for r in configuration.learners if r not in lost])
    return None


def _part_with_strangers(cluster: Cluster, leader: Replica) -> None:
    """The controller drops the replicas that are not members any more."""
    members = leader.core.configuration.members()
    for replica in cluster.up():
        if replica.replica_id not in members:
            replica.crash(keep=0)


def _all_equal(cluster: Cluster, last: bytes) -> bool:
    up = cluster.up()
    return _has_applied(up[0], last) and all(
        r.applied == up[0].applied and r.core.log.last_index == r.core.log.applied_index for r in up
    )


def _all_asleep(cluster: Cluster) -> bool:
    return all(r.core.quiesced for r in cluster.up())


def _restart_asleep(cluster: Cluster) -> None:
    """One that restarts while the others sleep finds its leader again, without an election."""
    follower = next((r for r in cluster.up() if r.core.role.value == "follower"), None)
    if follower is None:
        return
    leaders = cluster.invariants.facts["leaders"]
    follower.crash(keep=0)
    cluster.start(follower)
    if not follower.core.state.is_promotable:
        for replica in cluster.up():
            replica.core.wake()  # a learner does not ask: hosts see its node start anew
    _until(cluster, lambda: _all_asleep(cluster), "the group does not quiesce after a restart")
    assert cluster.invariants.facts["leaders"] == leaders, "a restart woke the group to an election"
