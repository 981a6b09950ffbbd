"""Members come and go under load: every story ends with the wished replicas being real, nothing
acknowledged lost, and nothing left of what was moved away (rules R8, R9, R12; house §4.14)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

import pytest

from cluster.controller import commands as c
from cluster.controller import model as m
from cluster.controller.catalog import Catalog
from cluster.tasks import TaskGroup
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.loop import run_simulation
from tests.simulation.test_cluster import Writer, agreed, check_exactly_once

ReplyT = TypeVar("ReplyT", bound=c.Reply)


class Members(SimCluster):
    """A cluster whose members change, with writers at work on every partition of one topic."""

    group_ids: tuple[int, ...] = ()

    def add(self, node_id: int) -> SimNode:
        self.initial_peers = {**self.initial_peers, node_id: f"node-{node_id}:9500"}
        node = self.nodes[node_id] = SimNode(self, node_id)
        node.start()
        return node

    @property
    def catalog(self) -> Catalog:
        """The furthest of all nodes that are up."""
        catalogs = [broker.controller.catalog for broker in self.brokers()]
        return max(catalogs, key=lambda catalog: catalog.version)

    async def ask(self, command: c.Command, kind: type[ReplyT]) -> ReplyT:
        reply = await self.brokers()[0].controller.propose(command, timeout_ms=30_000)
        assert isinstance(reply, kind), f"{command}: {reply}"
        return reply

    async def operate(self, kind: m.OperationKind, node_id: int, *, force: bool = False) -> str:
        command = c.StartOperation(kind=kind, node_id=node_id, force=force)
        return (await self.ask(command, c.OperationStarted)).operation_id

    async def succeeded(self, operation_id: str, within_s: float = 120.0) -> None:
        def ended() -> bool:
            operation = self.catalog.operation(operation_id)
            return operation is not None and operation.state != m.OperationState.RUNNING

        await self.until(ended, f"an end of {operation_id}", within_s=within_s)
        operation = self.catalog.operation(operation_id)
        assert operation is not None
        assert operation.state == m.OperationState.SUCCEEDED, operation

    async def topic(self, partitions: int) -> None:
        await self.create_topic("default/t", partitions=partitions)
        row = self.catalog.topic_by_name("default/t")
        assert row is not None
        self.group_ids = row.group_ids

    def holders(self, group_id: int) -> list[int]:
        group = self.catalog.group(group_id)
        assert group is not None
        return sorted(group.desired_nodes())

    def is_at_rest(self) -> bool:
        """Wish, catalog, Raft and disks agree, and nothing is left to delete."""
        catalog = self.catalog
        for broker in self.brokers():
            if broker.controller.catalog.version != catalog.version:
                return False
            if catalog.tombstones_on(broker.me.node_id, broker.me.incarnation):
                return False
        for group in catalog.groups():
            if not group.is_settled() or group.unneeded():
                return False
        for group_id in self.group_ids:
            leader = self.leader(group_id)
            if leader is None or len(self.replicas(group_id)) != len(self.holders(group_id)):
                return False
            row = catalog.group(group_id)
            assert row is not None
            if leader.group.configuration.voters != tuple(sorted(row.desired)):
                return False
        return True

    async def at_rest(self) -> None:
        await self.until(self.is_at_rest, "rest", within_s=120.0)

    async def check(self, writers: list[Writer]) -> None:
        """Every replica holds the same, and exactly what was acknowledged."""
        await self.at_rest()
        for group_id in self.group_ids:
            await agreed(self, group_id, copies=len(self.holders(group_id)))
            mine = [writer for writer in writers if writer.group_id == group_id]
            check_exactly_once(self, group_id, mine)


def play(
    story: Callable[[Members], Coroutine[Any, Any, None]],
    *,
    seed: int,
    nodes: int = 3,
    partitions: int = 4,
    records: int = 150,
) -> None:
    """The story while a writer fills each partition; then all is checked."""

    async def main(random: Random) -> None:
        cluster = Members(random, nodes=nodes)
        await cluster.start()
        await cluster.topic(partitions)
        writers = [
            Writer(cluster, group_id, number)
            for number, group_id in enumerate(cluster.group_ids, start=1)
        ]
        async with TaskGroup("story") as tasks:
            for writer in writers:
                tasks.start(writer.write(records), name=f"writer-{writer.producer_id}")
            await asyncio.sleep(0.2)
            await story(cluster)
        await cluster.check(writers)
        await cluster.close()

    run_simulation(main, seed)


SEEDS = pytest.mark.parametrize("seed", range(4))


@SEEDS
def test_an_added_node_gets_its_share_under_load(seed: int) -> None:
    async def story(cluster: Members) -> None:
        cluster.add(4)
        await cluster.until(lambda: cluster.catalog.member(4), "node 4 to join")
        await cluster.succeeded(await cluster.operate(m.OperationKind.ADD_NODE, 4))
        counts = Counter(n for g in cluster.group_ids for n in cluster.holders(g))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert counts[4] == 3

    play(story, seed=seed)


@SEEDS
def test_a_drained_node_holds_nothing_and_may_be_removed(seed: int) -> None:
    async def story(cluster: Members) -> None:
        await cluster.succeeded(await cluster.operate(m.OperationKind.DRAIN_NODE, 1))
        assert all(1 not in cluster.holders(g) for g in cluster.group_ids)
        await cluster.succeeded(await cluster.operate(m.OperationKind.REMOVE_NODE, 1))
        assert cluster.catalog.member(1) is None
        await cluster.nodes.pop(1).stop()

    play(story, seed=seed, nodes=4)


@SEEDS
def test_a_node_hears_that_it_was_removed(seed: int) -> None:
    """It may be the one that was asked for it, and owes the answer. (Found by seed 109 of the story
    above.)"""

    async def story(cluster: Members) -> None:
        await cluster.succeeded(await cluster.operate(m.OperationKind.DRAIN_NODE, 1))
        broker = cluster.nodes[1].broker
        assert broker is not None
        command = c.StartOperation(kind=m.OperationKind.REMOVE_NODE, node_id=1)
        reply = await broker.controller.propose(command, timeout_ms=5_000)
        assert isinstance(reply, c.OperationStarted), reply
        await cluster.until(
            lambda: broker.controller.catalog.member(1) is None, "the removed node to know"
        )
        await cluster.nodes.pop(1).stop()

    play(story, seed=seed, nodes=4)


@SEEDS
def test_a_drain_goes_on_through_crashes_of_the_nodes_that_lead(seed: int) -> None:
    async def story(cluster: Members) -> None:
        operation_id = await cluster.operate(m.OperationKind.DRAIN_NODE, 2)
        for _ in range(3):
            await asyncio.sleep(cluster.random.uniform(0.1, 1.0))
            node_id = cluster.brokers()[0].controller.leader_node or 1
            await cluster.nodes[node_id].crash()
            await asyncio.sleep(cluster.random.uniform(0.1, 2.0))
            cluster.nodes[node_id].start()
        await cluster.succeeded(operation_id)
        assert all(2 not in cluster.holders(g) for g in cluster.group_ids)

    play(story, seed=seed, nodes=4)


@SEEDS
def test_a_wiped_node_comes_back_as_somebody_new_and_is_filled_again(seed: int) -> None:
    """Rule R12."""

    async def story(cluster: Members) -> None:
        await cluster.nodes[2].crash(wipe=True)
        await asyncio.sleep(cluster.random.uniform(0.0, 3.0))
        cluster.nodes[2].start()
        await cluster.until(lambda: cluster.catalog.is_gone(2, "i2.1"), "the old node 2 to be gone")

    play(story, seed=seed)


@SEEDS
def test_a_dead_node_is_replaced_by_another(seed: int) -> None:
    async def story(cluster: Members) -> None:
        await cluster.nodes[3].crash()
        operation_id = await cluster.operate(m.OperationKind.REMOVE_NODE, 3, force=True)
        cluster.add(5)
        await cluster.succeeded(operation_id)
        assert [cluster.holders(g) for g in cluster.group_ids] == [[1, 2, 5]] * 4
        del cluster.nodes[3]

    play(story, seed=seed)


@SEEDS
def test_a_node_joins_though_it_was_not_told_of_the_one_that_leads(seed: int) -> None:
    """Founders go, and those who join are still told of them only."""

    async def story(cluster: Members) -> None:
        cluster.add(4)
        await cluster.until(lambda: cluster.catalog.member(4), "node 4 to join")
        await cluster.succeeded(await cluster.operate(m.OperationKind.DRAIN_NODE, 1))
        await cluster.succeeded(await cluster.operate(m.OperationKind.REMOVE_NODE, 1))
        await cluster.nodes.pop(1).stop()
        await lead_controller(cluster, 4)
        cluster.initial_peers = {3: "node-3:9500"}
        cluster.add(5)
        await cluster.until(lambda: knows_itself(cluster, 5), "node 5 to hear of the cluster")

    play(story, seed=seed)


async def lead_controller(cluster: Members, node_id: int) -> None:
    def leads() -> bool:
        for broker in cluster.brokers():
            group = broker.host.groups[m.CONTROLLER_GROUP_ID]
            if not group.is_leader or group.core.transferee:
                continue
            if broker.me.node_id == node_id:
                return True
            member = broker.controller.catalog.member(node_id)
            assert member is not None
            if group.configuration.is_voter(member.controller_replica_id):
                group.transfer_leadership(member.controller_replica_id)
        return False

    await cluster.until(leads, f"node {node_id} to lead the controller")


def knows_itself(cluster: Members, node_id: int) -> bool:
    broker = cluster.nodes[node_id].broker
    return broker is not None and broker.controller.catalog.member(node_id) is not None


@SEEDS
def test_leaders_come_home_after_a_rolling_restart(seed: int) -> None:
    async def story(cluster: Members) -> None:
        for node in list(cluster.nodes.values()):
            await node.stop()
            node.start()
            await cluster.until(
                lambda: all(cluster.leader(g) is not None for g in cluster.group_ids), "leaders"
            )

        def balanced() -> bool:
            leaders = [cluster.leader(g) for g in cluster.group_ids]
            nodes = Counter(
                local.group.replica_id and cluster.catalog.node_of_replica(local.group.replica_id)
                for local in leaders
                if local is not None
            )
            return sum(nodes.values()) == 6 and set(nodes.values()) == {2}

        await cluster.until(balanced, "an even share of leaders", within_s=60.0)

    play(story, seed=seed, partitions=6)


@pytest.mark.parametrize("nodes", [4, 5, 6])
def test_the_controller_keeps_an_odd_number_of_voters(nodes: int) -> None:
    async def story(cluster: Members) -> None:
        def voters() -> int:
            group = cluster.brokers()[0].host.groups[m.CONTROLLER_GROUP_ID]
            return len(group.configuration.voters) * (not group.configuration.is_joint)

        await cluster.until(lambda: voters() in (3, 5), "an odd number of voters")
        assert voters() == (3 if nodes == 4 else 5)

    play(story, seed=nodes, nodes=nodes, records=20)


def test_after_a_power_cut_nothing_that_was_moved_away_comes_back() -> None:
    """The catalog replays the past on every node at once; replicas of the past must not wake up and
    elect a leader of their own (node/partitions.py)."""

    async def story(cluster: Members) -> None:
        await cluster.succeeded(await cluster.operate(m.OperationKind.DRAIN_NODE, 1))
        await cluster.at_rest()
        voters = {g: cluster.catalog.group(g).desired for g in cluster.group_ids}  # type: ignore[union-attr]
        for node in cluster.nodes.values():
            await node.crash()
        for node in cluster.nodes.values():
            node.start()
        for _ in range(300):
            await asyncio.sleep(0.01)
            for broker in cluster.brokers():
                for local in broker.partitions.all():
                    assert local.group.replica_id in voters[local.group_id]

    play(story, seed=11, nodes=4)
