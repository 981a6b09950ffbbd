"""AdminService: subscriptions."""

from __future__ import annotations

import logging

from cluster.controller import commands as c
from cluster.controller.model import Subscription, SubscriptionKind, Topic, is_short_name
from node.services import subscription_settings as settings
from node.services.admin_rows import subscription_info
from node.services.call import Call, Deadline
from node.services.catalog_access import CatalogAccess
from node.services.errors import Refused
from node.services.fan_out import ask_all
from node.services.field_masks import merged
from node.services.paging import page
from node.services.places import Operation, Places
from node.services.subscription_views import SubscriptionViews
from quorumq.channel import Q, R
from quorumq.v1 import admin_pb2 as pb

logger = logging.getLogger(__name__)

DESCRIBE_S = 2.0  # as with topics: one partition without a leader must not hide the others
FORGET_S = 2.0


class AdminSubscriptions:
    def __init__(self, *, access: CatalogAccess, places: Places, views: SubscriptionViews) -> None:
        self._access = access
        self._places = places
        self._views = views

    # --- create ----------------------------------------------------------------------------------

    async def create_subscription(
        self, request: pb.CreateSubscriptionRequest, call: Call
    ) -> pb.CreateSubscriptionResponse:
        """A repeat goes on where the first try stopped: the position of each partition is set
        once."""
        deadline = Deadline.of(call)
        if not is_short_name(request.name):
            raise Refused("BAD_NAME", f"{request.name!r} is no name: 1 to 200 of A-Za-z0-9._-")
        settings.check(request.config)
        settings.check_start(request.start)
        topic = await self._access.topic(request.topic, None, deadline)
        reply = await self._create(topic, request, deadline)
        row = self._access.catalog.subscription_by_name(topic.number, request.name)
        if row is None:
            raise Refused("SUBSCRIPTION_NOT_FOUND", f"{request.name} was deleted meanwhile")
        _refuse_other_settings(row, request.config)
        # As the catalog has it: a repeat does not begin elsewhere.
        start = pb.StartPosition.FromString(row.start)
        begin = pb.CreateSubscriptionRequest(name=row.subscription_id, start=start)
        for answer in await self._ask_all(topic, self._views.begin, begin, deadline):
            if isinstance(answer, Refused):
                raise Refused(
                    "OUTCOME_UNKNOWN",
                    f"{request.name} is created, but not in every partition: {answer}",
                    retriable=True,
                ) from answer
        return pb.CreateSubscriptionResponse(
            subscription=subscription_info(topic, row), already_existed=reply is None
        )

    async def _create(
        self, topic: Topic, request: pb.CreateSubscriptionRequest, deadline: Deadline
    ) -> c.SubscriptionCreated | None:
        """None if it is there already, with whichever settings."""
        if self._access.catalog.subscription_by_name(topic.number, request.name) is not None:
            return None
        command = c.CreateSubscription(
            topic_id=topic.topic_id,
            name=request.name,
            kind=SubscriptionKind(request.config.kind),
            settings=settings.stored(request.config),
            start=request.start.SerializeToString(),
        )
        try:
            reply = await self._access.command(lambda: command, c.SubscriptionCreated, deadline)
        except Refused as refused:
            if refused.reason == "ALREADY_EXISTS":
                return None
            raise
        return None if reply.already_existed else reply

    # --- alter, delete ---------------------------------------------------------------------------

    async def alter_subscription(
        self, request: pb.AlterSubscriptionRequest, call: Call
    ) -> pb.AlterSubscriptionResponse:
        deadline = Deadline.of(call)
        subscription_id = request.subscription_id if request.HasField("subscription_id") else None
        topic, row = await self._access.subscription(
            request.topic, request.name, subscription_id, deadline
        )
        await self._access.command(
            lambda: self._alter_command(row.subscription_id, request),
            c.SubscriptionAltered,
            deadline,
        )
        row = self._row(row.subscription_id)
        return pb.AlterSubscriptionResponse(subscription=subscription_info(topic, row))

    def _alter_command(
        self, subscription_id: str, request: pb.AlterSubscriptionRequest
    ) -> c.AlterSubscription:
        """Raises Refused SUBSCRIPTION_NOT_FOUND, BAD_CONFIG, BAD_REQUEST, FEATURE_NOT_ENABLED."""
        row = self._row(subscription_id)
        old = pb.SubscriptionConfig(kind=pb.SubscriptionKind.Name(row.kind))
        old.MergeFromString(row.settings)
        new = merged(old, request.config, request.update_mask)
        if new.kind != old.kind:
            raise settings.bad_config("config.kind", "is fixed at creation")
        settings.check(new)
        return c.AlterSubscription(
            subscription_id=subscription_id,
            settings_version=row.settings_version,
            settings=settings.stored(new),
        )

    def _row(self, subscription_id: str) -> Subscription:
        row = self._access.catalog.subscription_by_id(subscription_id)
        if row is None:
            raise Refused("SUBSCRIPTION_NOT_FOUND", f"{subscription_id} was deleted")
        return row

    async def delete_subscription(
        self, request: pb.DeleteSubscriptionRequest, call: Call
    ) -> pb.DeleteSubscriptionResponse:
        """A partition that does not answer keeps the position for now: nobody can read it any more,
        for identities are never given again, and its leader drops it (node/duties.py)."""
        deadline = Deadline.of(call)
        subscription_id = request.subscription_id if request.HasField("subscription_id") else None
        topic, row = await self._access.subscription(
            request.topic, request.name, subscription_id, deadline
        )
        command = c.DeleteSubscription(subscription_id=row.subscription_id)
        await self._access.command(lambda: command, c.Done, deadline)
        forget = pb.DeleteSubscriptionRequest(name=row.subscription_id)
        within = Deadline(min(FORGET_S, deadline.left_s()))
        for answer in await self._ask_all(topic, self._views.forget, forget, within):
            if isinstance(answer, Refused):
                logger.info("a position of %s stays: %s", row.subscription_id, answer)
        return pb.DeleteSubscriptionResponse(subscription_id=row.subscription_id)

    # --- describe, list --------------------------------------------------------------------------

    async def describe_subscription(
        self, request: pb.DescribeSubscriptionRequest, call: Call
    ) -> pb.DescribeSubscriptionResponse:
        deadline = Deadline.of(call)
        topic, row = await self._access.subscription(request.topic, request.name, None, deadline)
        within = Deadline(min(DESCRIBE_S, deadline.left_s()))
        wanted = pb.DescribeSubscriptionRequest(name=row.subscription_id)
        answers = await self._ask_all(topic, self._views.describe, wanted, within)
        return pb.DescribeSubscriptionResponse(
            subscription=subscription_info(topic, row),
            partitions=[
                pb.SubscriptionPartition(partition=partition, error=answer.error)
                if isinstance(answer, Refused)
                else answer
                for partition, answer in enumerate(answers)
            ],
        )

    async def list_subscriptions(
        self, request: pb.ListSubscriptionsRequest, call: Call
    ) -> pb.ListSubscriptionsResponse:
        deadline = Deadline.of(call)
        if request.topic:
            topics = [await self._access.topic(request.topic, None, deadline)]
        else:
            await self._access.fresh(deadline)
            topics = sorted(self._access.catalog.topics(), key=lambda topic: topic.name)
        rows = [
            (topic, row)
            for topic in topics
            for row in self._access.catalog.subscriptions_of(topic.number)
        ]
        # The separator sorts before everything that names are made of.
        chosen, token = page(
            rows,
            lambda pair: f"{pair[0].name}\0{pair[1].name}",
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListSubscriptionsResponse(
            subscriptions=[subscription_info(topic, row) for topic, row in chosen],
            next_page_token=token,
        )

    async def _ask_all(
        self, topic: Topic, operation: Operation[Q, R], request: Q, deadline: Deadline
    ) -> list[R | Refused]:
        """Every partition, in order."""

        async def ask(group_id: int) -> R:
            return await self._places.ask(group_id, operation, request, deadline)

        return await ask_all(topic.group_ids, ask)


def _refuse_other_settings(row: Subscription, config: pb.SubscriptionConfig) -> None:
    """Raises Refused ALREADY_EXISTS unless the settings asked for are those that hold."""
    there = settings.with_defaults(row.kind, row.settings)
    asked = settings.with_defaults(config.kind, settings.stored(config))
    if asked != there:
        raise Refused("ALREADY_EXISTS", f"subscription {row.name} has other settings")
