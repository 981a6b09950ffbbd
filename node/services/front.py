"""All services of a node, put together: what clients and other nodes may call, by path.

Built on a Broker's parts and a way to reach other nodes; the gRPC server (serving.py) and the
simulator's network (quorumq/in_process.py) serve the same handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cluster.controller.access import ControllerAccess, ProducerIds
from cluster.controller.reconciler import AskTransfer
from cluster.host import Host
from cluster.raft.state import RandomSource
from cluster.tasks import TaskGroup
from node.metrics import NodeCounters
from node.services import methods as own
from node.services.admin import Admin, PeerFunction
from node.services.admin_cluster import DiskRoom
from node.services.call import Call
from node.services.catalog_access import CatalogAccess
from node.services.errors import Refused, not_enabled
from node.services.lanes import Lanes
from node.services.links import Links
from node.services.offsets import Offsets
from node.services.opening import Opening
from node.services.peer_channel import NodeChannels
from node.services.places import Places
from node.services.positions import Positions
from node.services.producing import ProduceLimits, Producing
from node.services.reading import Reading
from quorumq import methods
from quorumq.channel import Method
from quorumq.in_process import Handler


@dataclass(frozen=True, slots=True)
class FrontOptions:
    produce: ProduceLimits = field(default_factory=ProduceLimits)
    lane_bytes_max: int = 32 << 20
    read_streams_max: int = 2_000
    limits: Mapping[str, int] = field(default_factory=dict)  # shown by GetCluster, by name


class Front:
    """`disk_full`: this node takes no appends now."""

    def __init__(
        self,
        *,
        host: Host,
        places: Places,
        controller: ControllerAccess,
        producer_ids: ProducerIds,
        ask_transfer: AskTransfer,
        channels: NodeChannels,
        random: RandomSource,
        counters: NodeCounters,
        disk_full: Callable[[], bool],
        disk_room: Callable[[], DiskRoom],
        failed: Callable[[str, BaseException], None],
        options: FrontOptions,
    ) -> None:
        self._counters = counters
        self._tasks = TaskGroup("services", on_failure=failed)
        self._links = Links(channels=channels, tasks=self._tasks)
        self._lanes = Lanes(
            places=places,
            links=self._links,
            counters=counters,
            tasks=self._tasks,
            disk_full=disk_full,
            pressure=lambda: host.engine.pressure,
            lane_bytes_max=options.lane_bytes_max,
        )
        self._producing = Producing(
            places=places,
            lanes=self._lanes,
            counters=counters,
            random=random,
            limits=options.produce,
        )
        self.draining = asyncio.Event()
        self._opening = Opening(
            places=places, controller=controller, producer_ids=producer_ids, counters=counters
        )
        self._offsets = Offsets(places)
        self._reading = Reading(
            places=places,
            offsets=self._offsets,
            channels=channels,
            draining=self.draining,
            counters=counters,
            wall_ms=host.clock.wall_ms,
            streams_max=options.read_streams_max,
        )
        access = CatalogAccess(controller)
        self._positions = Positions(places=places, access=access)
        self._admin = Admin(
            host=host,
            places=places,
            access=access,
            offsets=self._offsets,
            ask_transfer=ask_transfer,
            disk_room=disk_room,
            limits=options.limits,
        )

    def handlers(self) -> dict[str, Handler]:
        producing = self._producing
        table: list[tuple[Method[Any, Any], Callable[..., Any]]] = [
            (own.PRODUCE, producing.produce),
            (own.PRODUCE_STREAM, producing.produce_stream),
            (methods.OPEN_PRODUCER, self._opening.open_producer),
            (own.READ, self._reading.read),
            (methods.COMMIT, self._positions.commit),
            (methods.GET_POSITIONS, self._positions.get_positions),
            (methods.CONSUME, _not_yet("Consume")),
            (methods.PULL, _not_yet("Pull")),
            (methods.ACK, _not_yet("Ack")),
            *self._admin.functions(),
        ]
        return {method.path: Handler(method, function) for method, function in table}

    def peer_handlers(self) -> dict[str, Handler]:
        """What other nodes send on to here, by path."""
        table: list[tuple[Method[Any, Any], Callable[..., Any]]] = [
            (own.FORWARDED_PRODUCE, self._producing.produce_forwarded),
            (own.FORWARDED_READ, self._reading.read_forwarded),
        ]
        return {method.path: Handler(method, function) for method, function in table}

    def peer_functions(self) -> dict[str, PeerFunction]:
        """What other nodes may call besides, by method of the peers' own call."""
        return self._admin.peer_functions()

    @property
    def inflight_bytes(self) -> int:
        """Produced and not answered."""
        return self._producing.inflight_bytes

    @property
    def held_requests(self) -> int:
        """Batches that wait for a leader, or for room."""
        return self._lanes.waiting

    def start_draining(self) -> None:
        """Readers are told to go elsewhere; everything is still served."""
        self.draining.set()

    async def stop(self, *, grace_s: float) -> None:
        """Answer what was taken in, for at most `grace_s`; refuse the rest; end."""
        self.draining.set()
        self._producing.stop_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._producing.answered()
        self._lanes.refuse_all(Refused("NODE_DRAINING", "the node is shutting down"))
        await self._links.close()
        await self._reading.close()
        await self._tasks.cancel_and_wait()


def _not_yet(name: str) -> Callable[..., Any]:
    async def refuse(_request: Any, _call: Call) -> NoReturn:
        raise not_enabled(name)

    return refuse
