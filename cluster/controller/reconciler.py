"""The controller's leader at work on members, replica sets, operations and the balance of leaders.

One task on every node; it acts only while this node leads the controller. It is level-triggered:
on each change of the catalog and on each tick it asks the plan what to command next (plan.py),
proposes that, and looks again. It keeps nothing but since when nodes have been silent, so a new
leader goes on where the former one stopped; two that both believe to lead do no harm, because a
wish decided from an older state is refused as STALE.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cluster.controller import commands as c
from cluster.controller.access import ControllerUnavailable
from cluster.controller.machine import CatalogMachine
from cluster.controller.model import MemberState
from cluster.controller.plan import PlanOptions, Sight, plan, plan_leaders
from cluster.controller.plan_operations import plan_operations
from cluster.controller.tables import Changes
from cluster.host import Host
from cluster.interfaces import PeerError

logger = logging.getLogger(__name__)

Propose = Callable[[c.Command], Awaitable[c.Reply]]
# (node that leads, group id, node that should): may raise PeerError.
AskTransfer = Callable[[int, int, int], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcilerOptions:
    """tick_s           between two looks when nothing changes
    pause_s          between two looks at least
    dead_after_s     silence after which another node votes in the controller instead, and
                     replicas that were on their way to the node go elsewhere
    balance_s        between two rounds of handing leaderships over; 1/5 of it while a node drains
    """

    tick_s: float = 1.0
    pause_s: float = 0.05
    dead_after_s: float = 30.0
    balance_s: float = 5.0
    plan: PlanOptions = field(default_factory=PlanOptions)


class Reconciler:
    """`propose` returns when this node's catalog shows the result (ControllerAccess.propose)."""

    def __init__(
        self,
        host: Host,
        machine: CatalogMachine,
        propose: Propose,
        ask_transfer: AskTransfer,
        options: ReconcilerOptions,
    ) -> None:
        self._host = host
        self._machine = machine
        self._catalog = machine.catalog
        self._propose = propose
        self._ask_transfer = ask_transfer
        self._options = options
        self._silent_since: dict[int, float] = {}
        self._balance_at = 0.0
        self._quiet: object = None  # what was seen when there was nothing to do
        self._awake = asyncio.Event()
        machine.on_change(self._catalog_changed)
        machine.on_leadership(self._leadership_changed)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._machine.is_leader:
                try:
                    await self._round()
                except ControllerUnavailable as error:
                    logger.warning("reconciling stopped short: %s", error)
            await asyncio.sleep(self._options.pause_s)
            try:
                async with asyncio.timeout(self._options.tick_s):
                    await self._awake.wait()
            except TimeoutError:
                pass
            self._awake.clear()

    def _catalog_changed(self, changes: Changes) -> None:
        self._awake.set()

    def _leadership_changed(self, term: int, is_leader: bool) -> None:
        # A new leader gives every node the full time, and leaders a moment to come up everywhere.
        self._silent_since.clear()
        self._quiet = None
        self._balance_at = asyncio.get_running_loop().time() + self._options.balance_s
        if is_leader:
            self._awake.set()

    async def _round(self) -> None:
        sight = self._look()
        seen = (self._catalog.version, sight.alive, sight.dead)
        busy = self._catalog.unsettled_groups() or self._catalog.running_operations()
        if busy or seen != self._quiet:
            # Operations first: their totals should count what the plan is about to move.
            commands = plan_operations(self._catalog, sight.alive)
            commands += plan(self._catalog, sight, self._options.plan)
            for command in commands:
                await self._command(command)
            self._quiet = None if commands else seen
            if commands:
                self._awake.set()
        now = asyncio.get_running_loop().time()
        if now >= self._balance_at:
            await self._balance(sight)
            draining = any(m.state == MemberState.DRAINING for m in self._catalog.members())
            wait_s = self._options.balance_s / 5 if draining else self._options.balance_s
            self._balance_at = asyncio.get_running_loop().time() + wait_s

    async def _command(self, command: c.Command) -> None:
        reply = await self._propose(command)
        if not isinstance(reply, c.Refused):
            logger.info("reconciled: %s", command)
        elif reply.reason is c.Reason.STALE:
            logger.info("%s: %s", command, reply.message)
        else:
            logger.warning("%s refused: %s", command, reply.message)

    async def _balance(self, sight: Sight) -> None:
        for group_id, node_id, to_node in plan_leaders(self._catalog, sight, self._options.plan):
            try:
                await self._ask_transfer(node_id, group_id, to_node)
            except PeerError as error:
                logger.info("group %d does not move to node %d: %s", group_id, to_node, error)

    def _look(self) -> Sight:
        now = asyncio.get_running_loop().time()
        alive, dead = [], []
        for member in self._catalog.members():
            if self._host.node_alive(member.node_id):
                self._silent_since.pop(member.node_id, None)
                alive.append(member.node_id)
            elif now - self._silent_since.setdefault(member.node_id, now) >= (
                self._options.dead_after_s
            ):
                dead.append(member.node_id)
        return Sight(
            alive=frozenset(alive),
            dead=frozenset(dead),
            reluctant=frozenset(n for n in alive if not self._host.may_lead(n)),
            leader_of=self._leader_of,
        )

    def _leader_of(self, group_id: int) -> int:
        known = self._host.leader_of(group_id)
        return known[0] if known else 0
