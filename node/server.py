"""The composition root: one node on a real disk, real ports and real time.

data folder -> engine -> peer server -> Broker.start (finds its cluster) -> client server
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import signal
import time
from importlib.metadata import version
from typing import Any

import grpc

from cluster.controller import commands as c
from cluster.host import HostOptions
from cluster.interfaces import CorruptEntry, Receiver, Transport
from cluster.peer_service import PEER_OPTIONS, Identity, PeerService, peer_handlers
from cluster.raft.state import RaftOptions
from cluster.tasks import TaskGroup
from cluster.transport import GrpcTransport
from node import startup
from node.broker import Broker, BrokerOptions
from node.config import NodeConfig
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


class SystemClock:
    """cluster.interfaces.Clock."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


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
        self.transport: GrpcTransport
        self._peer_service: PeerService
        self._servers: list[grpc.aio.Server] = []

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
        )

        def new_transport(receiver: Receiver) -> Transport:
            self._peer_service = peer_handlers(receiver, identity)
            self.transport = GrpcTransport(
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
            new_cluster_id=lambda: secrets.token_hex(16),
            bind_cluster=bind_cluster,
            failed=self._failed,
        )
        await self._serve(config.peer_listen, [self._peer_service])
        try:
            await self.broker.start()
        except FolderError as error:
            raise _startup_error(error) from error

    async def stop(self) -> None:
        """Hand over, end calls, close the disk. Safe after a failure and after half a start."""
        failed = self.failure.done()
        if self.broker is not None:
            await self.broker.stop(grace_s=0.0 if failed else self.config.grace_ms / 1000)
            self._peer_service.close()
            await self.transport.close()
        for server in reversed(self._servers):
            await server.stop(_SERVER_GRACE_S)
        if self.folder is not None:
            self.folder.close()

    def set_aside(self, reason: str) -> None:
        """After `stop`: what the folder holds is damaged."""
        folder = _open_folder(self.config)
        folder.set_aside(reason)
        folder.close()

    async def _serve(self, endpoint: str, handlers: list[grpc.GenericRpcHandler]) -> None:
        server = grpc.aio.server(options=PEER_OPTIONS)
        server.add_generic_rpc_handlers(handlers)
        try:
            port = server.add_insecure_port(endpoint)
        except RuntimeError as error:
            raise startup.PortInUse(f"cannot listen on {endpoint}: {error}") from error
        if not port:
            raise startup.PortInUse(f"cannot listen on {endpoint}")
        await server.start()
        self._servers.append(server)

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
    raise startup.StorageFailed(f"stopped after a failure: {error}")


async def _run_until(node: Node, signalled: asyncio.Event) -> BaseException | None:
    """The failure that ended it, None for the signal."""
    async with TaskGroup("run") as tasks:
        waiting = tasks.start(signalled.wait(), name="signal")
        starting = tasks.start(node.start(), name="start")
        ends: list[asyncio.Future[Any]] = [waiting, node.failure]
        try:
            await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not starting.exception():
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            starting.cancel()
        finally:
            error = node.failure.result() if node.failure.done() else None
            logger.info("stopping: %s", error or "asked to")
            await node.stop()
        tasks.cancel()
    return error


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
            catch_ups_max=config.catch_ups_max,
        ),
        clock_skew_ms_max=config.clock_skew_ms_max,
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
