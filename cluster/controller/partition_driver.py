"""Makes wishes real: each group's own leader brings its Raft configuration to the catalog's wish.

Every node runs one driver, for the groups that it leads. Level-triggered: it compares wish and
configuration, takes one step, and looks again; a change of leader loses nothing. Steps:

    a replica to come is added as a learner        it counts for nothing yet (rule R9)
    wait until all of them are near                 `lag_entries_max`
    the leader is to go: hand over to a voter that stays
    joint change to the wished voters               Raft leaves the joint state by itself
    report                                          and the catalog drops what is needed no more

Before each change it (1) confirms its leadership, then (2) reports and is told the present wish;
apply_groups.py says why a replica that was dropped can then not be added again.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from cluster.controller import commands as c
from cluster.controller.access import ControllerUnavailable
from cluster.controller.catalog import Catalog
from cluster.controller.model import Group as GroupRow
from cluster.group import Group
from cluster.host import Host
from cluster.interfaces import PeerError
from cluster.raft.configuration import Configuration
from cluster.raft.errors import RaftRefused
from cluster.tasks import TaskGroup

logger = logging.getLogger(__name__)

TRANSFER_METHOD = "leader.transfer"
_TRANSFER = struct.Struct("<QQ")  # group id, node that should lead
_TRANSFER_TIMEOUT_MS = 2_000

Propose = Callable[[c.Command], Awaitable[c.Reply]]


class StepKind(Enum):
    SETTLED = "settled"
    WAIT = "wait"
    LEARNERS = "learners"
    VOTERS = "voters"
    TRANSFER = "transfer"


@dataclass(frozen=True, slots=True)
class Step:
    """`replicas`: the new learners, the new voters, or the one to hand over to."""

    kind: StepKind
    replicas: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverOptions:
    """tick_s            between two looks at the groups led here
    drives_max        groups that are changed at a time
    lag_entries_max   how far behind a learner may be and become a voter all the same
    confirm_s         longest wait for a confirmation of leadership
    pause_s           after a step that failed, before the group is tried again"""

    tick_s: float = 0.2
    drives_max: int = 8
    lag_entries_max: int = 128
    confirm_s: float = 3.0
    pause_s: float = 1.0


def next_step(
    row: GroupRow,
    configuration: Configuration,
    *,
    me: int,
    is_near: Callable[[int], bool],
    is_able: Callable[[int], bool],
) -> Step:
    """What the leader `me` should do next under a committed configuration that is not joint."""
    assert not configuration.is_joint, f"a change is under way: {configuration}"
    voters, wished = configuration.voters, tuple(sorted(row.desired))
    coming = [replica for replica in wished if replica not in voters]
    learners = tuple(
        sorted({*coming, *(r for r in row.desired_learners if r not in voters)}),
    )
    if configuration.learners != learners:
        return Step(StepKind.LEARNERS, learners)
    if voters == wished:
        return Step(StepKind.SETTLED)
    if not all(is_near(replica) for replica in coming):
        return Step(StepKind.WAIT)
    if me in wished:
        return Step(StepKind.VOTERS, wished)
    heirs = [r for r in row.desired if r in voters and is_able(r) and is_near(r)]
    if heirs:
        return Step(StepKind.TRANSFER, (heirs[0],))
    if all(replica in voters for replica in wished):
        return Step(StepKind.WAIT)  # all that stay are dead, behind or unwilling just now
    # Nobody who stays votes yet: they join beside this leader, which hands over then and goes.
    return Step(StepKind.VOTERS, tuple(sorted({*wished, me})))


def report_is_due(row: GroupRow, configuration: Configuration) -> bool:
    """The catalog does not know this configuration, or waits for a report to drop replicas."""
    real = row.reality
    if (real.voters, real.learners) != (configuration.voters, configuration.learners):
        return True
    return bool(real.voters_outgoing or row.unneeded())


class PartitionDriver:
    """`propose` reaches the controller and returns when this node's catalog shows the result; it
    raises ControllerUnavailable (cluster/controller/access.py)."""

    def __init__(
        self, host: Host, catalog: Catalog, propose: Propose, options: DriverOptions
    ) -> None:
        self._host = host
        self._catalog = catalog
        self._propose = propose
        self._options = options
        self._busy: dict[int, None] = {}
        self._not_before: dict[int, float] = {}
        # group id -> (row, configuration) that were found settled and reported: by identity, so
        # that a look at an idle group costs two comparisons.
        self._settled: dict[int, tuple[GroupRow, Configuration]] = {}
        self._awake = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. A group's failure is that group's; anything unforeseen ends the run."""
        async with TaskGroup(f"driver-{self._host.node_id}") as tasks:
            while True:
                self._look(tasks)
                try:
                    async with asyncio.timeout(self._options.tick_s):
                        await self._awake.wait()
                except TimeoutError:
                    pass
                self._awake.clear()

    def wake(self) -> None:
        """Look at once: the catalog changed."""
        self._awake.set()

    async def ask_transfer(self, node_id: int, group_id: int, to_node: int) -> None:
        """Ask the node that leads the group to hand it over. Raises PeerError."""
        if node_id == self._host.node_id:
            self._transfer(group_id, to_node)
            return
        request = _TRANSFER.pack(group_id, to_node)
        await self._host.transport.call(
            node_id, TRANSFER_METHOD, request, timeout_ms=_TRANSFER_TIMEOUT_MS
        )

    async def serve_transfer(self, request: bytes) -> bytes:
        """A peer's TRANSFER_METHOD. Raises PeerError."""
        try:
            group_id, to_node = _TRANSFER.unpack(request)
        except struct.error as error:
            raise PeerError("BAD_REQUEST", str(error)) from error
        self._transfer(group_id, to_node)
        return b""

    def _transfer(self, group_id: int, to_node: int) -> None:
        group, row = self._host.groups.get(group_id), self._catalog.group(group_id)
        if group is None or row is None or not group.is_leader:
            raise PeerError("NOT_LEADER", f"group {group_id} is not led here")
        for replica_id in group.configuration.voters:
            if row.node_of(replica_id) != to_node:
                continue
            if not self._is_near(group, replica_id):
                raise PeerError("BUSY", f"replica {replica_id} is behind")
            try:
                group.transfer_leadership(replica_id)
            except RaftRefused as error:
                raise PeerError("BUSY", str(error)) from error
            return
        raise PeerError("NOT_FOUND", f"node {to_node} has no voter of group {group_id}")

    # --- looking ---------------------------------------------------------------------------------

    def _look(self, tasks: TaskGroup) -> None:
        now = asyncio.get_running_loop().time()
        for group_id, group in self._host.groups.items():
            if len(self._busy) >= self._options.drives_max:
                return
            if not group.is_leader or group.failure is not None or group_id in self._busy:
                continue
            row = self._catalog.group(group_id)
            if row is None or now < self._not_before.get(group_id, 0.0):
                continue
            if self._has_work(group, row):
                self._busy[group_id] = None
                tasks.start(self._drive(group), name=f"group-{group_id}")

    def _has_work(self, group: Group, row: GroupRow) -> bool:
        configuration = group.configuration
        known = self._settled.get(group.group_id)
        if known is not None and known[0] is row and known[1] is configuration:
            return False
        if not _is_steady(group):
            return False
        step = self._step(group, row, configuration)
        if report_is_due(row, configuration):
            return True
        if step.kind is StepKind.SETTLED:
            self._settled[group.group_id] = (row, configuration)
        return step.kind not in (StepKind.SETTLED, StepKind.WAIT)

    def _step(self, group: Group, row: GroupRow, configuration: Configuration) -> Step:
        return next_step(
            row,
            configuration,
            me=group.replica_id,
            is_near=lambda replica_id: self._is_near(group, replica_id),
            is_able=lambda replica_id: self._host.may_lead(row.node_of(replica_id)),
        )

    def _is_near(self, group: Group, replica_id: int) -> bool:
        match_index = group.match_index(replica_id)
        return 0 < match_index >= group.last_index - self._options.lag_entries_max

    # --- one step of one group -------------------------------------------------------------------

    async def _drive(self, group: Group) -> None:
        try:
            done = await self._confirm_report_and_step(group)
        except (RaftRefused, ControllerUnavailable, TimeoutError) as error:
            logger.info("group %d: no step taken: %s", group.group_id, error)
            done = False
        finally:
            del self._busy[group.group_id]
        if done:
            self._not_before.pop(group.group_id, None)
            self._awake.set()
        else:
            pause = asyncio.get_running_loop().time() + self._options.pause_s
            self._not_before[group.group_id] = pause

    async def _confirm_report_and_step(self, group: Group) -> bool:
        """False if it should be tried again later, not at once."""
        row = self._catalog.group(group.group_id)
        if row is None:
            return False
        term, generation = group.term, row.generation
        async with asyncio.timeout(self._options.confirm_s):
            await group.read_index()
        configuration = group.configuration
        if not group.is_leader or group.term != term or not _is_steady(group):
            return False
        reply = await self._propose(
            c.ReportConfiguration(
                group_id=group.group_id,
                index=group.commit_index,
                term=term,
                generation=generation,
                voters=configuration.voters,
                learners=configuration.learners,
            )
        )
        row = self._catalog.group(group.group_id)
        if not isinstance(reply, c.GroupWish) or row is None:
            return False  # the group was deleted meanwhile
        # From here to the step nothing suspends. The wish here is at least the one told just now.
        assert row.generation >= reply.generation, f"{row} is older than {reply}"
        if not group.is_leader or group.term != term or group.configuration is not configuration:
            return False
        return self._take(group, self._step(group, row, configuration))

    def _take(self, group: Group, step: Step) -> bool:
        """Whether there was anything to do. Raises RaftRefused."""
        if step.kind is StepKind.LEARNERS:
            group.change_learners(list(step.replicas))
        elif step.kind is StepKind.VOTERS:
            group.change_voters(list(step.replicas))
        elif step.kind is StepKind.TRANSFER:
            group.transfer_leadership(step.replicas[0])
        else:
            return False
        logger.info(
            "group %d: %s %s under %s",
            group.group_id,
            step.kind.value,
            list(step.replicas),
            group.configuration,
        )
        return True


def _is_steady(group: Group) -> bool:
    """No change of the configuration is under way, and no handing over."""
    return (
        not group.configuration.is_joint
        and group.configuration_index <= group.commit_index
        and not group.core.transferee
    )
