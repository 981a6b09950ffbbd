"""A catalog with a cluster in it, for the tests of its commands."""

from __future__ import annotations

from typing import TypeVar

from cluster.controller import commands as c
from cluster.controller import model as m
from cluster.controller.catalog import Catalog

ReplyT = TypeVar("ReplyT", bound=c.Reply)


def node(node_id: int, incarnation: str = "a", zone: str = "") -> c.Announcement:
    return c.Announcement(
        node_id=node_id,
        incarnation=f"{incarnation}{node_id}",
        peer_endpoint=f"peer{node_id}:1",
        client_endpoint=f"client{node_id}:1",
        zone=zone,
    )


class Cluster:
    """A catalog with a clock, and the leaders of its groups."""

    def __init__(self, *node_ids: int) -> None:
        self.catalog = Catalog()
        self.now_ms = 0
        if node_ids:
            members = tuple(node(n) for n in node_ids)
            self.ok(c.Found(cluster_id="c1", members=members), c.Founded)

    def apply(self, command: c.Command) -> c.Reply:
        self.now_ms += 10
        return self.catalog.apply(
            command, c.Stamp(log_time_ms=self.now_ms, wall_ms=1_000_000 + self.now_ms)
        )

    def ok(self, command: c.Command, kind: type[ReplyT]) -> ReplyT:
        reply = self.apply(command)
        assert isinstance(reply, kind), reply
        return reply

    def refused(self, command: c.Command) -> c.Reason:
        before = self.catalog.version
        reply = self.apply(command)
        assert isinstance(reply, c.Refused), reply
        assert self.catalog.version == before
        assert reply.message
        return reply.reason

    def topic(self, name: str = "default/t", *sets: tuple[int, ...]) -> m.Topic:
        sets = sets or ((1, 2, 3),)
        self.ok(
            c.CreateTopic(
                name=name,
                partitions=len(sets),
                replication_factor=len(sets[0]),
                settings=b"s",
                assignment=tuple(n for node_ids in sets for n in node_ids),
            ),
            c.TopicCreated,
        )
        topic = self.catalog.topic_by_name(name)
        assert topic is not None
        return topic

    def group(self, group_id: int) -> m.Group:
        group = self.catalog.group(group_id)
        assert group is not None
        return group

    def member(self, node_id: int) -> m.Member:
        member = self.catalog.member(node_id)
        assert member is not None
        return member

    def report(
        self, group_id: int, *voters: int, index: int = 0, learners: tuple[int, ...] = ()
    ) -> c.GroupWish:
        """As a leader that knows the present wish does it."""
        group = self.group(group_id)
        return self.ok(
            c.ReportConfiguration(
                group_id=group_id,
                index=index or group.reality.index + 1,
                term=1,
                generation=group.generation,
                voters=tuple(sorted(voters)),
                learners=learners,
            ),
            c.GroupWish,
        )

    def settle(self, group_id: int) -> None:
        group = self.group(group_id)
        self.report(group_id, *group.desired, learners=group.desired_learners)
