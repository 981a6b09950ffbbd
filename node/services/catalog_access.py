"""The catalog for the services: as fresh as a request needs it, changed by commands, its refusals
in the words of the public contract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cluster.controller import commands as c
from cluster.controller.access import ControllerAccess, ControllerUnavailable
from cluster.controller.catalog import Catalog
from cluster.controller.model import (
    MEMBERS_MAX,
    OPERATIONS_MAX,
    PARTITIONS_MAX,
    REPLICAS_MAX,
    RUNNING_OPERATIONS_MAX,
    SUBSCRIPTIONS_MAX,
    SUBSCRIPTIONS_PER_TOPIC_MAX,
    TOPICS_MAX,
    Subscription,
    Topic,
    is_short_name,
)
from node.services.call import Deadline
from node.services.errors import Refused
from node.services.places import full_name

R = TypeVar("R", bound=c.Reply)
T = TypeVar("T")

# How long an answer from the catalog may wait for the controller's leader; then this node answers
# from what it knows: metadata stays available without a controller.
FRESH_S = 1.0

_REASONS: dict[c.Reason, str] = {
    c.Reason.BAD_REQUEST: "BAD_REQUEST",
    c.Reason.BAD_NAME: "BAD_NAME",
    c.Reason.BAD_CONFIG: "BAD_CONFIG",
    c.Reason.QUOTA: "QUOTA",
    c.Reason.ALREADY_EXISTS: "ALREADY_EXISTS",
    c.Reason.NOT_ENOUGH_NODES: "NOT_ENOUGH_NODES",
    c.Reason.OPERATION_CONFLICT: "OPERATION_CONFLICT",
    c.Reason.TOPIC_NOT_FOUND: "TOPIC_NOT_FOUND",
    c.Reason.TOPIC_REPLACED: "TOPIC_REPLACED",
    c.Reason.PARTITION_NOT_FOUND: "PARTITION_NOT_FOUND",
    c.Reason.SUBSCRIPTION_NOT_FOUND: "SUBSCRIPTION_NOT_FOUND",
    c.Reason.NODE_NOT_FOUND: "NODE_NOT_FOUND",
    c.Reason.OPERATION_NOT_FOUND: "OPERATION_NOT_FOUND",
    c.Reason.GROUP_NOT_FOUND: "PARTITION_NOT_FOUND",
    c.Reason.NOT_FOUNDED: "NO_LEADER",  # its leader has not written the first entry yet
    c.Reason.MEMBER_GONE: "OPERATION_CONFLICT",
    c.Reason.STALE: "OPERATION_CONFLICT",  # still so after trying anew until the deadline
}


class CatalogAccess:
    """One per node."""

    def __init__(self, controller: ControllerAccess) -> None:
        self.controller = controller

    @property
    def catalog(self) -> Catalog:
        return self.controller.catalog

    # --- as fresh as needed ----------------------------------------------------------------------

    async def current(self, deadline: Deadline) -> None:
        """Returns when the catalog here shows all that was committed before. Raises Refused
        NO_LEADER at the deadline."""
        try:
            await self.controller.refresh(timeout_ms=int(deadline.left_s() * 1000))
        except ControllerUnavailable as error:
            raise Refused("NO_LEADER", str(error)) from error

    async def fresh(self, deadline: Deadline) -> bool:
        """The same for at most FRESH_S; False if this node must answer from what it knows."""
        try:
            await self.current(Deadline(min(FRESH_S, deadline.left_s())))
        except Refused:
            return False
        return True

    async def topic(self, name: str, topic_id: str | None, deadline: Deadline) -> Topic:
        """As fresh as can be had. Raises Refused BAD_NAME, TOPIC_NOT_FOUND, TOPIC_REPLACED;
        NO_LEADER if it is not known here and the controller does not answer."""
        full = full_name(name)
        is_fresh = await self.fresh(deadline)
        return _found(lambda: self.topic_here(full, topic_id), is_fresh=is_fresh)

    def topic_here(self, full: str, topic_id: str | None) -> Topic:
        """The same as the catalog is now, by the full name."""
        topic = self.catalog.topic_by_name(full)
        if topic is None:
            raise Refused("TOPIC_NOT_FOUND", f"there is no topic {full}")
        if topic_id not in (None, topic.topic_id):
            raise Refused("TOPIC_REPLACED", f"topic {full} is {topic.topic_id}, not {topic_id}")
        return topic

    async def subscription(
        self, topic_name: str, name: str, subscription_id: str | None, deadline: Deadline
    ) -> tuple[Topic, Subscription]:
        """The same of a subscription, its identity guarded by TOPIC_REPLACED too."""
        if not is_short_name(name):
            raise Refused("BAD_NAME", f"{name!r} is no subscription name: 1 to 200 of A-Za-z0-9._-")
        full = full_name(topic_name)
        is_fresh = await self.fresh(deadline)
        return _found(
            lambda: self._subscription_here(full, name, subscription_id), is_fresh=is_fresh
        )

    def _subscription_here(
        self, full: str, name: str, subscription_id: str | None
    ) -> tuple[Topic, Subscription]:
        topic = self.topic_here(full, None)
        found = self.catalog.subscription_by_name(topic.number, name)
        if found is None:
            raise Refused("SUBSCRIPTION_NOT_FOUND", f"{topic.name} has no subscription {name}")
        if subscription_id not in (None, found.subscription_id):
            raise Refused(
                "TOPIC_REPLACED",
                f"subscription {name} is {found.subscription_id}, not {subscription_id}",
            )
        return topic, found

    # --- commands --------------------------------------------------------------------------------

    async def command(
        self, make: Callable[[], c.Command], reply_type: type[R], deadline: Deadline
    ) -> R:
        """Propose what `make` decides from the catalog as it is then, anew whenever that has become
        stale. The catalog here shows the result. Raises Refused: what `make` raises, what the
        catalog refuses, NO_LEADER (nothing was done), OUTCOME_UNKNOWN (may be repeated)."""
        await self.current(deadline)
        while True:
            command = make()
            timeout_ms = int(deadline.left_s() * 1000)
            reply = await self.controller.propose(command, timeout_ms=timeout_ms)
            if isinstance(reply, reply_type):
                return reply
            assert isinstance(reply, c.Refused), f"{command} was answered by {reply}"
            if reply.reason is not c.Reason.STALE or deadline.left_s() <= 0:
                raise self._refused(command, reply)
            # `propose` returned when this catalog shows what made it stale: `make` sees it.

    def _refused(self, command: c.Command, reply: c.Refused) -> Refused:
        metadata = None
        if reply.reason is c.Reason.QUOTA:
            limit, _ = full_limit(self.catalog, command) or ("", 0)
            metadata = {"limit": limit} if limit else None
        return Refused(
            _REASONS[reply.reason],
            reply.message,
            metadata=metadata,
            retriable=True if reply.reason is c.Reason.STALE else None,
        )


def _found(look: Callable[[], T], *, is_fresh: bool) -> T:
    """What is not here may only not have come here yet."""
    try:
        return look()
    except Refused as refused:
        if is_fresh:
            raise
        raise Refused(
            "NO_LEADER", f"{refused.error.message}, as far as known here: no controller leader"
        ) from refused


def full_limit(catalog: Catalog, command: c.Command) -> tuple[str, int] | None:
    """(name, value) of the limit that leaves no room for the command; None = there is room."""
    rows: list[tuple[str, int, int]] = []  # name, value, what there would be
    match command:
        case c.CreateTopic():
            replicas = command.partitions * command.replication_factor
            rows = [
                ("topics", TOPICS_MAX, catalog.topic_count + 1),
                ("partitions", PARTITIONS_MAX, catalog.partition_count + command.partitions),
                ("replicas", REPLICAS_MAX, catalog.replica_count + replicas),
            ]
        case c.AlterTopic():
            topic = catalog.topic_by_id(command.topic_id)
            if topic is not None and command.replication_factor:
                more = (command.replication_factor - topic.replication_factor) * topic.partitions
                rows = [("replicas", REPLICAS_MAX, catalog.replica_count + more)]
            rows += _operation_rows(catalog)
        case c.CreateSubscription():
            topic = catalog.topic_by_id(command.topic_id)
            of_topic = len(catalog.subscriptions_of(topic.number)) if topic is not None else 0
            rows = [
                ("subscriptions_per_topic", SUBSCRIPTIONS_PER_TOPIC_MAX, of_topic + 1),
                ("subscriptions", SUBSCRIPTIONS_MAX, catalog.subscription_count + 1),
            ]
        case c.RegisterMember():
            rows = [("nodes", MEMBERS_MAX, len(catalog.members()) + 1)]
        case c.StartOperation():
            rows = _operation_rows(catalog)
    for name, value, wanted in rows:
        if wanted > value:
            return name, value
    return None


def _operation_rows(catalog: Catalog) -> list[tuple[str, int, int]]:
    return [
        ("running_operations", RUNNING_OPERATIONS_MAX, len(catalog.running_operations()) + 1),
        ("operations", OPERATIONS_MAX, len(catalog.operations()) + 1),
    ]
