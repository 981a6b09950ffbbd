"""The controller from any node: propose a command to whoever leads it, see the catalog change.

Every node applies the controller's log, so reading is local (`machine.catalog`); only writing goes
to the leader, over the peers' own call. A command whose outcome is unknown is sent again: every
command of the catalog is idempotent or harmless when repeated (commands.py says which).
"""

from __future__ import annotations

import asyncio

from cluster.controller import commands as c
from cluster.controller.catalog import Catalog
from cluster.controller.codec import decode_command, decode_reply, encode_command, encode_reply
from cluster.controller.machine import CatalogMachine
from cluster.controller.model import CONTROLLER_GROUP_ID
from cluster.controller.tables import Changes
from cluster.group import OutcomeUnknown, ProposalLost
from cluster.host import Host
from cluster.interfaces import PeerError
from cluster.raft.errors import RaftRefused

PROPOSE_METHOD = "controller.propose"
VERSION_METHOD = "controller.version"
PRODUCER_ID_BLOCK = 1000
# A block is dropped after this long: ids should rise over time, see house §4.10 on expiry.
PRODUCER_ID_BLOCK_MAX_MS = 3_600_000
_ATTEMPT_MS_MAX = 3_000
_PAUSE_S = 0.05


class ControllerUnavailable(Exception):
    """No leader of the controller answered in time. The command may still take effect."""


class ControllerAccess:
    """One per node. Needs the controller's replica on the host before `propose` can succeed here;
    other nodes' replicas do as well."""

    def __init__(self, host: Host, machine: CatalogMachine) -> None:
        self._host = host
        self._machine = machine
        self._base_log_ms = 0  # log time and monotonic time when this replica began to lead
        self._base_monotonic_ms = 0
        self._version_waiters: list[tuple[int, asyncio.Future[None]]] = []
        machine.on_leadership(self._leadership_changed)
        machine.on_change(self._catalog_changed)

    @property
    def catalog(self) -> Catalog:
        return self._machine.catalog

    @property
    def leader_node(self) -> int:
        """Node id of the controller's leader, 0 while none is known."""
        known = self._host.leader_of(CONTROLLER_GROUP_ID)
        return known[0] if known else 0

    async def propose(self, command: c.Command, *, timeout_ms: int = 10_000) -> c.Reply:
        """The catalog's reply, which may be Refused. Waits through changes of leader. Returns when
        this node's own catalog shows what the command did. Raises ControllerUnavailable."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        trouble = "no leader is known"
        while (left := deadline - loop.time()) > 0:
            known = self._host.leader_of(CONTROLLER_GROUP_ID)
            try:
                if known is None:
                    await asyncio.wait_for(
                        self._host.peers.leader_change(CONTROLLER_GROUP_ID, None), left
                    )
                    continue
                reply = await self._ask(known[0], command, min(left, _ATTEMPT_MS_MAX / 1000))
                if isinstance(reply, c.Refused) and reply.reason == c.Reason.MEMBER_GONE:
                    return reply  # the catalog here is told of nothing any more
                await asyncio.wait_for(self.shows(reply.version), deadline - loop.time())
                return reply
            except (PeerError, RaftRefused, ProposalLost, OutcomeUnknown) as error:
                trouble = str(error)
                await asyncio.sleep(min(_PAUSE_S, left))
            except TimeoutError:
                trouble = f"{trouble}; the time ran out"
        raise ControllerUnavailable(f"the controller did not answer: {trouble}")

    async def _ask(self, node_id: int, command: c.Command, timeout_s: float) -> c.Reply:
        if node_id == self._host.node_id:
            return await asyncio.wait_for(self._propose_here(command), timeout_s)
        body = await self._host.transport.call(
            node_id,
            PROPOSE_METHOD,
            encode_command(command, None),
            timeout_ms=int(timeout_s * 1000),
        )
        return decode_reply(body)

    async def serve(self, request: bytes) -> bytes:
        """A peer's PROPOSE_METHOD. Raises PeerError."""
        command, _ = decode_command(request)
        try:
            return encode_reply(await self._propose_here(command))
        except RaftRefused as error:
            raise PeerError("NOT_LEADER", str(error)) from error
        except (ProposalLost, OutcomeUnknown) as error:
            raise PeerError("RETRY", str(error)) from error

    async def _propose_here(self, command: c.Command) -> c.Reply:
        group = self._host.groups.get(CONTROLLER_GROUP_ID)
        if group is None:
            raise PeerError("NOT_LEADER", "the controller has no replica here")
        reply = await group.propose(encode_command(command, self._stamp()))
        assert isinstance(reply, c.Reply), f"{reply!r} is not a reply of the catalog"
        return reply

    def _stamp(self) -> c.Stamp:
        clock = self._host.clock
        elapsed = clock.monotonic_ms() - self._base_monotonic_ms
        return c.Stamp(log_time_ms=self._base_log_ms + elapsed, wall_ms=clock.wall_ms())

    def _leadership_changed(self, term: int, is_leader: bool) -> None:
        if is_leader:
            self._base_log_ms = self.catalog.counters.log_time_ms
            self._base_monotonic_ms = self._host.clock.monotonic_ms()

    # --- seeing changes --------------------------------------------------------------------------

    async def refresh(self, *, timeout_ms: int = 10_000) -> None:
        """Returns when the catalog here shows everything that was committed before this call, the
        founding of the cluster at least. Raises ControllerUnavailable."""
        trouble = "no leader is known"
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while True:
                    try:
                        await self.shows(max(1, await self._leaders_version(timeout_ms)))
                        return
                    except (PeerError, RaftRefused) as error:
                        trouble = str(error)
                        await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            raise ControllerUnavailable(f"the controller did not answer: {trouble}") from None

    async def _leaders_version(self, timeout_ms: int) -> int:
        known = self._host.leader_of(CONTROLLER_GROUP_ID)
        while known is None:
            await self._host.peers.leader_change(CONTROLLER_GROUP_ID, None)
            known = self._host.leader_of(CONTROLLER_GROUP_ID)
        if known[0] == self._host.node_id:
            return await self._version_here()
        body = await self._host.transport.call(
            known[0], VERSION_METHOD, b"", timeout_ms=min(timeout_ms, _ATTEMPT_MS_MAX)
        )
        return int.from_bytes(body, "big")

    async def serve_version(self) -> bytes:
        """A peer's VERSION_METHOD. Raises PeerError."""
        try:
            return (await self._version_here()).to_bytes(8, "big")
        except RaftRefused as error:
            raise PeerError("NOT_LEADER", str(error)) from error

    async def _version_here(self) -> int:
        group = self._host.groups.get(CONTROLLER_GROUP_ID)
        if group is None:
            raise PeerError("NOT_LEADER", "the controller has no replica here")
        await group.read_index()
        return self.catalog.version

    async def shows(self, version: int) -> None:
        """Returns when the catalog here is at least at `version`."""
        if self.catalog.version >= version:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._version_waiters.append((version, future))
        await future

    def _catalog_changed(self, changes: Changes) -> None:
        waiting = []
        for version, future in self._version_waiters:
            if future.done():
                continue
            if changes.version >= version:
                future.set_result(None)
            else:
                waiting.append((version, future))
        self._version_waiters = waiting


class ProducerIds:
    """Hands out producer ids from blocks that the controller allocates to this node."""

    def __init__(self, access: ControllerAccess, host: Host) -> None:
        self._access = access
        self._host = host
        self._next = 0
        self._end = 0
        self._taken_at_ms = 0
        self._filling = asyncio.Lock()

    async def next(self) -> int:
        """Raises ControllerUnavailable."""
        async with self._filling:
            now_ms = self._host.clock.monotonic_ms()
            if self._next == self._end or now_ms - self._taken_at_ms > PRODUCER_ID_BLOCK_MAX_MS:
                reply = await self._access.propose(c.AllocateProducerIds(count=PRODUCER_ID_BLOCK))
                if not isinstance(reply, c.ProducerIdsAllocated):
                    raise ControllerUnavailable(f"no producer ids: {reply}")
                self._next, self._end = reply.first, reply.first + reply.count
                self._taken_at_ms = now_ms
            self._next += 1
            return self._next - 1
