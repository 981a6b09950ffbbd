"""A whole cluster in one process on virtual time: real brokers on memory engines and the simulated
network. Used by the tests beside it, and the ground for every larger simulated experiment.

    async def story(random):
        cluster = SimCluster(random, nodes=3)
        await cluster.start()
        ...
    run_simulation(story, seed=7)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from cluster.controller import commands as c
from cluster.host_options import HostOptions
from cluster.identity import Identity
from cluster.interfaces import Receiver, Transport
from cluster.raft.state import RaftOptions
from cluster.tasks import FailureReader
from node.broker import Broker, BrokerOptions
from node.metrics import NodeCounters
from node.partitions import LocalPartition
from node.services.admin_cluster import DiskRoom
from node.services.errors import status_of
from node.services.front import Front, FrontOptions
from quorumq.in_process import InProcessNetwork, InProcessServer
from tests.simulation.loop import SimClock
from tests.simulation.memory_engine import MemoryEngine
from tests.simulation.network import NetworkFaults, SimNetwork, SimTransport


class SimNode:
    """One node through all its runs and disks."""

    def __init__(self, cluster: SimCluster, node_id: int) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.endpoint = f"node-{node_id}:9500"
        self.client_endpoint = f"node-{node_id}:9400"
        self.engine = cluster.new_engine()
        self.incarnation = f"i{node_id}.1"
        self.cluster_id = ""
        self.runs = 0
        self.crashed_run = 0  # the last one that ended so
        self.wipes = 0
        self.broker: Broker | None = None
        self.front: Front
        self._server: InProcessServer
        self._transport: SimTransport
        self._starting: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return self.broker is not None

    def start(self) -> None:
        """Begins to run; finds its cluster in the background."""
        assert self.broker is None, f"node {self.node_id} runs already"
        self.runs = run = self.runs + 1
        identity = Identity(
            node_id=self.node_id,
            incarnation=self.incarnation,
            boot_id=f"{self.incarnation}.{self.runs}",
            endpoint=self.endpoint,
        )

        def task_failed(name: str, error: BaseException) -> None:
            if run != self.crashed_run:  # else: no process is there to fail any more
                self.cluster.task_failed(f"{name} of node {self.node_id}", error)

        def new_transport(receiver: Receiver) -> Transport:
            self._transport = self.cluster.network.attach(
                identity, receiver, self.endpoint, on_failure=task_failed
            )
            return self._transport

        def bind_cluster(cluster_id: str) -> None:
            assert self.cluster_id in ("", cluster_id), f"{self.cluster_id} -> {cluster_id}"
            self.cluster_id = identity.cluster_id = cluster_id

        random = self.cluster.random
        self.broker = Broker(
            me=c.Announcement(
                node_id=self.node_id,
                incarnation=self.incarnation,
                peer_endpoint=self.endpoint,
                client_endpoint=self.client_endpoint,
            ),
            may_found=True,
            initial_peers=self.cluster.initial_peers,
            engine=self.engine,
            new_transport=new_transport,
            clock=self.cluster.clock,
            random=random,
            options=self.cluster.options,
            counters=NodeCounters(),
            new_cluster_id=lambda: f"c{random.getrandbits(64):016x}",
            bind_cluster=bind_cluster,
            failed=lambda error: task_failed("the broker", error),
        )
        self._serve_clients(self.broker, task_failed)
        self._starting = asyncio.get_running_loop().create_task(self.broker.start())

    def _serve_clients(self, broker: Broker, task_failed: FailureReader) -> None:
        self.front = Front(
            host=broker.host,
            places=broker.places,
            controller=broker.controller,
            producer_ids=broker.producer_ids,
            ask_transfer=broker.driver.ask_transfer,
            channels=lambda node_id: self.cluster.clients.channel(
                self.cluster.nodes[node_id].client_endpoint
            ),
            random=self.cluster.random,
            counters=broker.counters,
            disk_full=lambda: broker.disk_full,
            disk_room=lambda: DiskRoom(6 << 30, 8 << 30, broker.disk_full),
            failed=task_failed,
            options=FrontOptions(),
        )
        broker.peer_functions = self.front.peer_functions()
        self._server = self.cluster.clients.serve(
            self.client_endpoint,
            {**self.front.handlers(), **self.front.peer_handlers()},
            status_of=status_of,
        )

    async def crash(self, *, wipe: bool = False) -> None:
        """The process dies, and what was not synced may go with it; `wipe`: the disk as well."""
        broker, self.broker = self.broker, None
        assert broker is not None, f"node {self.node_id} is down already"
        self.crashed_run = self.runs
        self._transport.crash()
        self._server.cut()
        self.engine = self.engine.crash(self.cluster.random)
        await self._end(broker)
        if wipe:
            self.wipes += 1
            self.engine = self.cluster.new_engine()
            self.incarnation = f"i{self.node_id}.{self.wipes + 1}"
            self.cluster_id = ""

    async def stop(self) -> None:
        """Gracefully: hands its leaderships over."""
        broker, self.broker = self.broker, None
        assert broker is not None, f"node {self.node_id} is down already"
        self.front.start_draining()
        broker.start_draining()
        await broker.hand_over_leaderships(within_s=5.0)
        await self.front.stop(grace_s=1.0)
        await self._server.stop()
        await broker.stop(grace_s=0.0)
        await self._transport.close()

    async def _end(self, broker: Broker) -> None:
        assert self._starting is not None
        self._starting.cancel()
        await asyncio.wait([self._starting])
        await self.front.stop(grace_s=0.0)
        await self._server.stop()
        await broker.stop(grace_s=0.0)
        await self._transport.close()


class SimCluster:
    """`options` differ from a real node's only in small checkpoints, so that short stories see
    compaction and catch-up."""

    def __init__(
        self,
        random: Random,
        *,
        nodes: int = 3,
        faults: NetworkFaults | None = None,
        checkpoint_entries_max: int = 50,
        sync_delay_s: Callable[[], float] | None = None,
    ) -> None:
        self.random = random
        self.clock = SimClock()
        self.network = SimNetwork(random, faults)
        self.clients = InProcessNetwork(lambda _endpoint: random.uniform(0.0001, 0.001))
        self.options = BrokerOptions(
            raft=RaftOptions(),
            host=HostOptions(checkpoint_entries_max=checkpoint_entries_max),
        )
        self._sync_delay_s = sync_delay_s or (lambda: random.uniform(0.0001, 0.002))
        self.failures: list[tuple[str, BaseException]] = []
        self.initial_peers = {n: f"node-{n}:9500" for n in range(1, nodes + 1)}
        self.nodes = {n: SimNode(self, n) for n in self.initial_peers}

    def new_engine(self) -> MemoryEngine:
        return MemoryEngine(sync_delay_s=self._sync_delay_s)

    def task_failed(self, name: str, error: BaseException) -> None:
        self.failures.append((name, error))

    def brokers(self) -> list[Broker]:
        return [node.broker for node in self.nodes.values() if node.broker is not None]

    async def start(self) -> None:
        for node in self.nodes.values():
            await asyncio.sleep(self.random.uniform(0.0, 0.1))  # their ticks never fall together
            node.start()
        await self.until(
            lambda: all(
                len(b.controller.catalog.members()) == len(self.nodes) for b in self.brokers()
            ),
            "a founded cluster",
        )

    async def close(self) -> None:
        """End it, and raise what nobody expected to fail."""
        for node in self.nodes.values():
            if node.is_up:
                await node.crash()
        for name, error in self.failures:
            raise AssertionError(f"{name} failed") from error

    async def until(
        self, condition: Callable[[], object], what: str, *, within_s: float = 60.0
    ) -> None:
        """Virtual time passes until the condition holds."""
        deadline = asyncio.get_running_loop().time() + within_s
        while not condition():
            assert not self.failures, f"waiting for {what}: {self.failures}"
            assert asyncio.get_running_loop().time() < deadline, f"no {what} in {within_s} s"
            await asyncio.sleep(0.01)

    async def create_topic(self, name: str, *, partitions: int, replication_factor: int = 3) -> str:
        """The topic's id."""
        broker = self.brokers()[0]
        nodes = [member.node_id for member in broker.controller.catalog.members()]
        assignment = [
            nodes[(partition + copy) % len(nodes)]
            for partition in range(partitions)
            for copy in range(replication_factor)
        ]
        reply = await broker.controller.propose(
            c.CreateTopic(
                name=name,
                partitions=partitions,
                replication_factor=replication_factor,
                settings=b"",
                assignment=tuple(assignment),
            )
        )
        assert isinstance(reply, c.TopicCreated), f"{reply}"
        return reply.topic_id

    def leader(self, group_id: int) -> LocalPartition | None:
        """The replica that leads and is ready, in the newest term if two believe to."""
        leaders = [
            local
            for broker in self.brokers()
            if (local := broker.partitions.get(group_id)) is not None and local.group.is_leader
        ]
        return max(leaders, key=lambda local: local.group.term, default=None)

    def replicas(self, group_id: int) -> list[LocalPartition]:
        found = [broker.partitions.get(group_id) for broker in self.brokers()]
        return [local for local in found if local is not None]
