"""The composition root: one node on a real disk, real ports and real time.

data folder -> engine -> peer server -> Broker.start (finds its cluster) -> client server
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import secrets
import signal
import time
from importlib.metadata import version
from typing import Any

import grpc

from cluster.controller import commands as c
from cluster.host_options import HostOptions
from cluster.identity import Identity
from cluster.interfaces import CorruptEntry, Receiver, StorageError, Transport
from cluster.peer_server import PeerServer
from cluster.raft.state import RaftOptions
from cluster.tasks import TaskGroup
from cluster.transport import TcpTransport
from node import startup
from node.broker import Broker, BrokerOptions, NotAMember
from node.config import NodeConfig
from node.disk_watch import DiskWatch
from node.exposition import MetricsServer, Sources
from node.health import Health
from node.metrics import NodeCounters
from node.services.admin_cluster import DiskRoom
from node.services.errors import status_of
from node.services.front import Front, FrontOptions
from node.services.peer_channel import PeerChannel, PeerServices
from node.services.producing import ProduceLimits
from node.services.serving import SERVER_OPTIONS, Serving
from node.storage.checkpoints import CorruptCheckpoint
from node.storage.engine import EngineSettings
from node.storage.folder import (
    FORMAT_VERSION,
    DataFolder,
    EngineNotOpened,
    FolderError,
    FolderInUse,
    FolderLimits,
    NewerFormat,
    NoDiskRoom,
    OtherCluster,
    OtherNode,
)
from node.storage.reclaim import ReclaimOptions

logger = logging.getLogger(__name__)

_TOLD_AS: tuple[tuple[type[FolderError], type[startup.StartupError]], ...] = (
    (FolderInUse, startup.DataFolderInUse),
    (NewerFormat, startup.NewerFormat),
    (OtherNode, startup.WrongDataFolder),
    (OtherCluster, startup.WrongDataFolder),
    (NoDiskRoom, startup.NoDiskRoom),
    (EngineNotOpened, startup.DataFolderUnusable),
    (FolderError, startup.DataFolderUnusable),
)
_SERVER_GRACE_S = 1.0
# What clients are told of this node's configuration (GetCluster).
_SHOWN_LIMITS = (
    "inflight_bytes_max",
    "connection_inflight_bytes_max",
    "connection_inflight_requests_max",
    "calls_max",
    "read_streams_max",
)


class SystemClock:
    """cluster.interfaces.Clock."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


class NodeDisk:
    """node.disk_watch.Disk."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder

    def disk_free_bytes(self) -> int:
        return self._folder.disk_free_bytes()

    def flush_mean_ms(self) -> tuple[int, float]:
        flushes = self._folder.engine.flushes
        return flushes.count, flushes.mean_ms

    def restore_ballast(self) -> None:
        self._folder.restore_ballast()


class Node:
    """`start` returns when the node serves; `stopped` ends when it must stop, with the error that
    forces it to or None."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.clock = SystemClock()
        self.random = random.Random(secrets.randbits(64))
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.folder: DataFolder | None = None
        self.broker: Broker | None = None
        self.front: Front | None = None
        self.counters = NodeCounters()
        self.transport: TcpTransport
        self._peer_server: PeerServer
        self._health = Health()
        self._serving: Serving
        self._metrics: MetricsServer | None = None
        self._tasks = TaskGroup("node", on_failure=self._task_failed)
        self._server: grpc.aio.Server | None = None  # of clients

    async def start(self) -> None:
        """Raises StartupError."""
        config = self.config
        folder = self.folder = _open_folder(config)
        if folder.lost_durable_data:
            logger.critical("this node starts anew: %s", folder.lost_durable_data)
        identity = Identity(
            node_id=config.node_id,
            incarnation=folder.incarnation,
            boot_id=secrets.token_hex(8),
            endpoint=config.peer_advertise,
        )

        def new_transport(receiver: Receiver) -> Transport:
            self._peer_server = PeerServer(receiver, identity, on_failure=self._task_failed)
            self.transport = TcpTransport(
                receiver, identity, self.random, on_failure=self._task_failed
            )
            return self.transport

        def bind_cluster(cluster_id: str) -> None:
            folder.bind_cluster(cluster_id)
            identity.cluster_id = cluster_id

        self.broker = Broker(
            me=_announcement(config, folder.incarnation),
            may_found=folder.former_cluster_id is None,
            initial_peers=dict(config.peers),
            engine=folder.engine,
            new_transport=new_transport,
            clock=self.clock,
            random=self.random,
            options=_broker_options(config),
            counters=self.counters,
            new_cluster_id=lambda: secrets.token_hex(16),
            bind_cluster=bind_cluster,
            failed=self._failed,
        )
        await self._listen_to_peers(config.peer_listen)
        try:
            await self.broker.start()
        except FolderError as error:
            raise _startup_error(error) from error
        await self._serve_clients(self.broker, folder)

    async def _serve_clients(self, broker: Broker, folder: DataFolder) -> None:
        config = self.config
        watch = DiskWatch(
            NodeDisk(folder),
            disk_free_bytes_min=config.disk_free_bytes_min,
            flush_slow_ms=config.flush_slow_ms,
            hand_over=lambda: broker.hand_over_leaderships(within_s=config.grace_ms / 1000),
            set_reluctant=lambda reluctant: broker.host.set_reluctant(reluctant or broker.draining),
        )
        self.front = front = Front(
            host=broker.host,
            places=broker.places,
            controller=broker.controller,
            producer_ids=broker.producer_ids,
            ask_transfer=broker.driver.ask_transfer,
            channels=lambda node_id: PeerChannel(self.transport, node_id),
            random=self.random,
            counters=self.counters,
            disk_full=lambda: watch.full,
            disk_room=lambda: DiskRoom(watch.free_bytes, folder.disk_total_bytes(), watch.full),
            failed=self._task_failed,
            options=_front_options(config),
        )
        broker.peer_functions = front.peer_functions()
        self._peer_server.services = PeerServices(front.peer_handlers(), status_of=status_of)
        self._serving = Serving(self.counters, calls_max=config.calls_max)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers(self._serving.generic_handlers(front.handlers()))
        self._health.add_to(server)
        await self._serve(server, config.listen)
        self._tasks.start(watch.run(), name="disk watch")
        self._tasks.start(self._health.follow(broker.host, broker.controller), name="health")
        await self._show_metrics(broker, folder, watch, front)
        logger.info("serves clients at %s", config.listen)

    async def _show_metrics(
        self, broker: Broker, folder: DataFolder, watch: DiskWatch, front: Front
    ) -> None:
        if not self.config.metrics_listen:
            return
        sources = Sources(
            node_id=self.config.node_id,
            counters=self.counters,
            host=broker.host,
            engine=folder.engine,
            catalog=broker.controller.catalog,
            partitions=broker.partitions.all,
            is_ready=lambda: self._health.is_ready,
            disk_full=lambda: watch.full,
            inflight_bytes=lambda: front.inflight_bytes,
            held_requests=lambda: front.held_requests,
        )
        self._metrics = MetricsServer(sources)
        try:
            await self._metrics.start(self.config.metrics_listen)
        except OSError as error:
            raise startup.PortInUse(
                f"cannot listen on {self.config.metrics_listen}: {error}"
            ) from error

    async def stop(self) -> None:
        """Hand over, end calls, close the disk. Safe after a failure and after half a start."""
        grace_s = 0.0 if self.failure.done() else self.config.grace_ms / 1000
        if self.front is not None and self.broker is not None:
            await self._health.drain()
            self.front.start_draining()
            self.broker.start_draining()
            await self.broker.hand_over_leaderships(within_s=grace_s)
            await self.front.stop(grace_s=min(grace_s, _SERVER_GRACE_S))
            await self._serving.fall_quiet(within_s=min(grace_s, _SERVER_GRACE_S))
            if self._server is not None:
                await self._server.stop(_SERVER_GRACE_S if grace_s else None)
        await self._tasks.cancel_and_wait()
        if self._metrics is not None:
            await self._metrics.close()
        if self.broker is not None:
            await self.broker.stop(grace_s=grace_s)
            await self.transport.close()
            await self._peer_server.close()
        if self.folder is not None:
            self.folder.close()

    def set_aside(self, reason: str) -> None:
        """After `stop`: what the folder holds is damaged."""
        folder = _open_folder(self.config)
        folder.set_aside(reason)
        folder.close()

    async def _listen_to_peers(self, endpoint: str) -> None:
        try:
            await self._peer_server.listen(endpoint)
        except OSError as error:
            raise startup.PortInUse(f"cannot listen on {endpoint}: {error}") from error

    async def _serve(self, server: grpc.aio.Server, endpoint: str) -> None:
        try:
            port = server.add_insecure_port(endpoint)
        except RuntimeError as error:
            raise startup.PortInUse(f"cannot listen on {endpoint}: {error}") from error
        if not port:
            raise startup.PortInUse(f"cannot listen on {endpoint}")
        await server.start()
        self._server = server

    def _task_failed(self, name: str, error: BaseException) -> None:
        logger.critical("task %s failed: %r", name, error, exc_info=error)
        self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_result(error)


async def run(config: NodeConfig) -> int:
    """Serve until a signal or a failure; the exit code. A second signal ends the process at once.
    A node that finds its durable data damaged sets it aside and begins anew, as another incarnation
    (rule R14). Raises StartupError."""
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()

    def on_signal() -> None:
        if signalled.is_set():
            raise SystemExit(startup.EXIT_FAILED)
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    while True:
        node = Node(config)
        error = await _run_until(node, signalled)
        if not isinstance(error, CorruptEntry | CorruptCheckpoint):
            break
        node.set_aside(str(error))
    if error is None:
        return startup.EXIT_OK
    raise stopped_by(error, config)


def stopped_by(error: BaseException, config: NodeConfig) -> startup.StartupError:
    """What a node that had to stop ends with. A supervisor starts it again after a bug, and leaves
    it alone after a disk that failed."""
    if isinstance(error, NotAMember):
        return startup.WrongDataFolder(
            f"{config.data_dir}: {error}; to join as a new node, start with an empty folder"
        )
    if isinstance(error, StorageError | OSError):
        return startup.StorageFailed(f"stopped after a failure of the disk: {error}")
    return startup.StartupError(f"stopped after a failure: {error!r}")


async def _run_until(node: Node, signalled: asyncio.Event) -> BaseException | None:
    """The failure that ended it, None for the signal."""
    async with TaskGroup("run") as tasks:
        waiting = tasks.start(signalled.wait(), name="signal")
        starting = tasks.start(node.start(), name="start")
        ends: list[asyncio.Future[Any]] = [waiting, node.failure]
        try:
            await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not starting.exception():
                _spare_the_collector()
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            starting.cancel()
        finally:
            error = node.failure.result() if node.failure.done() else None
            logger.info("stopping: %s", error or "asked to")
            await node.stop()
        tasks.cancel()
    return error


def _spare_the_collector() -> None:
    """What is alive now stays alive: the collector need not look at it again and again, nor come
    after every 700 new objects. (Measured: 3 % of a busy leader's time.)"""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _front_options(config: NodeConfig) -> FrontOptions:
    return FrontOptions(
        produce=ProduceLimits(
            node_bytes_max=config.inflight_bytes_max,
            connection_bytes_max=config.connection_inflight_bytes_max,
            connection_requests_max=config.connection_inflight_requests_max,
        ),
        lane_bytes_max=config.uncommitted_bytes_max,
        read_streams_max=config.read_streams_max,
        limits={name: getattr(config, name) for name in _SHOWN_LIMITS},
    )


def _announcement(config: NodeConfig, incarnation: str) -> c.Announcement:
    return c.Announcement(
        node_id=config.node_id,
        incarnation=incarnation,
        peer_endpoint=config.peer_advertise,
        client_endpoint=config.advertise,
        zone=config.zone,
        software_version=version("quorumq"),
        format_max=FORMAT_VERSION,
    )


def _broker_options(config: NodeConfig) -> BrokerOptions:
    return BrokerOptions(
        raft=RaftOptions(
            election_ticks=config.election_ticks,
            heartbeat_ticks=config.heartbeat_ticks,
            quiesce_ticks=config.quiesce_ticks,
            uncommitted_bytes_max=config.uncommitted_bytes_max,
        ),
        host=HostOptions(
            tick_ms=config.tick_ms,
            beat_ticks=config.heartbeat_ticks,
            peer_silence_ticks=config.election_ticks,
            checkpoint_entries_max=config.checkpoint_entries_max,
            checkpoint_bytes_max=config.checkpoint_bytes_max,
            tail_bytes_max=config.tail_bytes_max,
            catch_ups_max=config.catch_ups_max,
        ),
        # Room is looked for before appends have to be refused.
        reclaim=ReclaimOptions(disk_free_bytes_min=2 * config.disk_free_bytes_min),
        tail_budget_bytes=config.tail_budget_bytes,
        clock_skew_ms_max=config.clock_skew_ms_max,
        retention_interval_ms=config.retention_interval_ms,
    )


def _open_folder(config: NodeConfig) -> DataFolder:
    try:
        return DataFolder.open(
            config.data_dir,
            node_id=config.node_id,
            limits=FolderLimits(
                disk_free_bytes_min=config.disk_free_bytes_min,
                ballast_bytes=config.disk_ballast_bytes,
            ),
            settings=EngineSettings(
                write_buffer_bytes=config.write_buffer_bytes,
                block_cache_bytes=config.block_cache_bytes,
            ),
        )
    except FolderError as error:
        raise _startup_error(error) from error


def _startup_error(error: FolderError) -> startup.StartupError:
    for kind, told in _TOLD_AS:
        if isinstance(error, kind):
            return told(str(error))
    raise error
