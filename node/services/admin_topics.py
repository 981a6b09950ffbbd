"""AdminService: topics."""

from __future__ import annotations

from dataclasses import replace

from cluster.controller import commands as c
from cluster.controller.model import MemberState, Topic, is_short_name
from cluster.controller.plan import assign_topic
from cluster.host import Host
from node.services.admin_rows import topic_config, topic_info
from node.services.call import HOLD_S, Call, Deadline
from node.services.catalog_access import CatalogAccess, full_limit
from node.services.errors import Refused
from node.services.field_masks import merged, refuse_unknown_fields
from node.services.paging import page
from node.services.places import Places, full_name
from node.services.topic_settings import FEATURE_LEVEL, violations, with_defaults
from quorumq.v1 import admin_pb2 as pb

REPLICATION_FACTOR = 3  # by default, if there are as many nodes


class AdminTopics:
    def __init__(self, *, access: CatalogAccess, places: Places, host: Host) -> None:
        self._access = access
        self._places = places
        self._host = host

    # --- create ----------------------------------------------------------------------------------

    async def create_topic(
        self, request: pb.CreateTopicRequest, call: Call
    ) -> pb.CreateTopicResponse:
        deadline = Deadline.of(call)
        name, config = full_name(request.name), request.config
        refuse_unknown_fields(config, "config")
        _refuse_violations(violations(config))
        await self._access.current(deadline)
        catalog = self._access.catalog
        topic, created_id = catalog.topic_by_name(name), ""
        if topic is None:
            if request.validate_only:
                return pb.CreateTopicResponse(topic=self._would_be(name, config))
            created_id = await self._create(name, config, deadline)
            topic = catalog.topic_by_name(name)
            if topic is None:
                raise Refused("TOPIC_NOT_FOUND", f"topic {name} was deleted as it was created")
        existed = topic.topic_id != created_id
        if existed:
            _refuse_other_settings(topic, config)
        if not request.validate_only:
            await self._leaders(topic, Deadline(min(HOLD_S, deadline.left_s())))
        return pb.CreateTopicResponse(topic=topic_info(topic), already_existed=existed)

    async def _create(self, name: str, config: pb.TopicConfig, deadline: Deadline) -> str:
        """The new topic's id; "" if somebody was quicker."""
        try:
            reply = await self._access.command(
                lambda: self._create_command(name, config), c.TopicCreated, deadline
            )
        except Refused as refused:
            if refused.reason == "ALREADY_EXISTS":
                return ""  # whether with equal settings is for the caller to look at
            raise
        return "" if reply.already_existed else reply.topic_id

    def _create_command(self, name: str, config: pb.TopicConfig) -> c.CreateTopic:
        """Raises Refused NOT_ENOUGH_NODES."""
        partitions = config.partitions if config.HasField("partitions") else 1
        factor = self._replication_factor(config)
        try:
            assignment = assign_topic(
                self._access.catalog,
                partitions=partitions,
                replication_factor=factor,
                alive=self._alive(),
            )
        except ValueError as error:
            raise Refused("NOT_ENOUGH_NODES", str(error)) from error
        return c.CreateTopic(
            name=name,
            partitions=partitions,
            replication_factor=factor,
            settings=_settings(config),
            assignment=assignment,
        )

    def _would_be(self, name: str, config: pb.TopicConfig) -> pb.TopicInfo:
        """Raises Refused NOT_ENOUGH_NODES, QUOTA."""
        command = self._create_command(name, config)
        full = full_limit(self._access.catalog, command)
        if full is not None:
            limit, value = full
            raise Refused("QUOTA", f"{value} {limit} at most", metadata={"limit": limit})
        return topic_info(
            Topic(
                number=0,
                topic_id="",
                name=name,
                partitions=command.partitions,
                replication_factor=command.replication_factor,
                settings=command.settings,
                settings_version=0,
                created_at_ms=0,
                group_ids=(),
            )
        )

    def _replication_factor(self, config: pb.TopicConfig) -> int:
        if config.HasField("replication_factor"):
            return config.replication_factor
        members = self._access.catalog.members()
        active = sum(member.state == MemberState.ACTIVE for member in members)
        return max(1, min(REPLICATION_FACTOR, active))

    def _alive(self) -> frozenset[int]:
        members = self._access.catalog.members()
        return frozenset(m.node_id for m in members if self._host.node_alive(m.node_id))

    async def _leaders(self, topic: Topic, deadline: Deadline) -> None:
        """Returns when every partition has one, or at the deadline."""
        for group_id in topic.group_ids:
            try:
                await self._places.hold(group_id, deadline)
            except Refused:
                return

    # --- alter -----------------------------------------------------------------------------------

    async def alter_topic(self, request: pb.AlterTopicRequest, call: Call) -> pb.AlterTopicResponse:
        deadline = Deadline.of(call)
        refuse_unknown_fields(request.config, "config")
        name, topic_id = full_name(request.name), _topic_id(request)
        await self._access.current(deadline)
        if request.validate_only:
            topic, command = self._alter_command(name, topic_id, request)
            return pb.AlterTopicResponse(topic=_altered(topic, command))
        reply = await self._access.command(
            lambda: self._alter_command(name, topic_id, request)[1], c.TopicAltered, deadline
        )
        topic = self._access.topic_here(name, topic_id)
        return pb.AlterTopicResponse(
            topic=topic_info(topic), operation_id=reply.operation_id or None
        )

    def _alter_command(
        self, name: str, topic_id: str | None, request: pb.AlterTopicRequest
    ) -> tuple[Topic, c.AlterTopic]:
        """Raises Refused TOPIC_NOT_FOUND, TOPIC_REPLACED, BAD_CONFIG, BAD_REQUEST,
        NOT_ENOUGH_NODES."""
        topic = self._access.topic_here(name, topic_id)
        old = pb.TopicConfig.FromString(topic.settings)
        old.partitions, old.replication_factor = topic.partitions, topic.replication_factor
        new = merged(old, request.config, request.update_mask)
        wrong = violations(new)
        if new.partitions != topic.partitions or not new.HasField("partitions"):
            wrong.append(("config.partitions", f"fixed at creation: {topic.partitions}"))
        level = with_defaults(old).feature_level
        if with_defaults(new).feature_level < level:
            wrong.append(("config.feature_level", f"may only rise, from {level}"))
        _refuse_violations(wrong)
        factor = self._replication_factor(new)
        members = self._access.catalog.members()
        active = sum(member.state == MemberState.ACTIVE for member in members)
        if factor > max(active, topic.replication_factor):
            raise Refused("NOT_ENOUGH_NODES", f"{factor} replicas on {active} active nodes")
        return topic, c.AlterTopic(
            topic_id=topic.topic_id,
            settings_version=topic.settings_version,
            settings=_settings(new),
            replication_factor=factor,
        )

    # --- delete, list ----------------------------------------------------------------------------

    async def delete_topic(
        self, request: pb.DeleteTopicRequest, call: Call
    ) -> pb.DeleteTopicResponse:
        """With topic_id a repeat is OK: what it names is gone."""
        deadline = Deadline.of(call)
        name, topic_id = full_name(request.name), _topic_id(request)
        await self._access.current(deadline)
        catalog = self._access.catalog
        is_gone = catalog.topic_by_name(name) is None
        if is_gone and topic_id is not None and catalog.was_deleted(topic_id):
            return pb.DeleteTopicResponse(topic_id=topic_id)
        # Decided once: a second try must not delete a topic that took the name meanwhile.
        command = c.DeleteTopic(topic_id=self._access.topic_here(name, topic_id).topic_id)
        await self._access.command(lambda: command, c.Done, deadline)
        return pb.DeleteTopicResponse(topic_id=command.topic_id)

    async def list_topics(self, request: pb.ListTopicsRequest, call: Call) -> pb.ListTopicsResponse:
        namespace = request.namespace if request.HasField("namespace") else None
        if namespace is not None and not is_short_name(namespace):
            raise Refused("BAD_NAME", f"{namespace!r} is no namespace: 1 to 200 of A-Za-z0-9._-")
        await self._access.fresh(Deadline.of(call))
        topics = []
        for topic in self._access.catalog.topics():
            its_namespace, _, short = topic.name.partition("/")
            if namespace in (None, its_namespace) and short.startswith(request.name_prefix):
                topics.append(topic)
        topics.sort(key=lambda topic: topic.name)
        chosen, token = page(
            topics, lambda topic: topic.name, size=request.page_size, token=request.page_token
        )
        return pb.ListTopicsResponse(topics=map(topic_info, chosen), next_page_token=token)


def _topic_id(request: pb.AlterTopicRequest | pb.DeleteTopicRequest) -> str | None:
    return request.topic_id if request.HasField("topic_id") else None


def _refuse_violations(wrong: list[tuple[str, str]]) -> None:
    if wrong:
        field, description = wrong[0]
        raise Refused("BAD_CONFIG", f"{field}: {description}", violations=wrong)


def _refuse_other_settings(topic: Topic, config: pb.TopicConfig) -> None:
    """Raises Refused ALREADY_EXISTS unless the settings asked for are those that hold. Without a
    replication factor any will do: the default depends on how many nodes there were."""
    asked, there = with_defaults(config), with_defaults(topic_config(topic))
    if not config.HasField("replication_factor"):
        asked.replication_factor = there.replication_factor
    names = [field.name for field in pb.TopicConfig.DESCRIPTOR.fields]
    wrong = [
        (f"config.{name}", f"is {getattr(there, name)}, not {getattr(asked, name)}")
        for name in names
        if getattr(asked, name) != getattr(there, name)
    ]
    if wrong:
        fields = ", ".join(f"{field.removeprefix('config.')} {what}" for field, what in wrong)
        raise Refused("ALREADY_EXISTS", f"topic {topic.name}: {fields}", violations=wrong)


def _settings(config: pb.TopicConfig) -> bytes:
    """What the catalog keeps: the fields that were given, and the feature level, so that it does
    not rise with the software."""
    kept = pb.TopicConfig()
    kept.CopyFrom(config)
    kept.ClearField("partitions")
    kept.ClearField("replication_factor")
    if not kept.HasField("feature_level"):
        kept.feature_level = FEATURE_LEVEL
    return kept.SerializeToString(deterministic=True)


def _altered(topic: Topic, command: c.AlterTopic) -> pb.TopicInfo:
    """As it would be."""
    return topic_info(
        replace(topic, settings=command.settings, replication_factor=command.replication_factor)
    )
