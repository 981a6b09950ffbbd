"""The catalog: what the controller group agrees on. Pure and deterministic.

Every node applies the controller's log and so has all of it: members, topics, replica sets (wish
and reality), subscriptions, producer ids, operations. The lookups are those of Tables; `apply` is
the only way to change anything. A refused command changes nothing but the times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from cluster.controller import apply_groups, apply_members, apply_operations, apply_topics
from cluster.controller import commands as c
from cluster.controller.model import number_of
from cluster.controller.tables import Changes, Tables

_Handler = Callable[[Tables, Any], c.Reply]

_HANDLERS: dict[type[c.Command], _Handler] = {
    c.Found: apply_members.found,
    c.RegisterMember: apply_members.register_member,
    c.SetMemberState: apply_members.set_member_state,
    c.RemoveMember: apply_members.remove_member,
    c.SetMachineVersion: apply_members.set_machine_version,
    c.SetFeatureLevel: apply_members.set_feature_level,
    c.CreateTopic: apply_topics.create_topic,
    c.AlterTopic: apply_topics.alter_topic,
    c.DeleteTopic: apply_topics.delete_topic,
    c.CreateSubscription: apply_topics.create_subscription,
    c.AlterSubscription: apply_topics.alter_subscription,
    c.DeleteSubscription: apply_topics.delete_subscription,
    c.AllocateProducerIds: apply_topics.allocate_producer_ids,
    c.OpenNamedProducer: apply_topics.open_named_producer,
    c.SetDesiredReplicas: apply_groups.set_desired_replicas,
    c.ReportConfiguration: apply_groups.report_configuration,
    c.ConfirmDeleted: apply_groups.confirm_deleted,
    c.StartOperation: apply_operations.start_operation,
    c.UpdateOperation: apply_operations.update_operation,
    c.FinishOperation: apply_operations.finish_operation,
}


class Catalog(Tables):
    """Not for use from more than one thread."""

    def apply(self, command: c.Command, stamp: c.Stamp) -> c.Reply:
        """One committed command. What it changed is in `take_changes` afterwards."""
        self.stamp(log_time_ms=stamp.log_time_ms, wall_ms=stamp.wall_ms)
        self.changed = False
        if not self.cluster_id and not isinstance(command, c.Found):
            reply: c.Reply = c.Refused(
                reason=c.Reason.NOT_FOUNDED, message="the cluster is not founded"
            )
        else:
            reply = _HANDLERS[type(command)](self, command)
        if self.changed:
            assert not isinstance(reply, c.Refused), f"{command} refused, but changed: {reply}"
            self.put_counters(version=self.version + 1)
        return replace(reply, version=self.version)

    def is_deleted(self, subscription_id: str) -> bool:
        """Of a subscription that was there. What this node has not heard of yet is not deleted."""
        number = number_of(subscription_id)
        return 0 < number < self.counters.next_subscription and self.subscription(number) is None

    def take_segments(self) -> list[tuple[str, int, list[Any]]]:
        """(table, block, rows) of each segment that changed since the last call; no rows = the
        segment is no more. Rows are frozen, so they may be serialised later."""
        return [
            (table.name, block, rows)
            for table in self.all_tables()
            for block, rows in table.take_dirty()
        ]

    def restore(self, segments: Iterable[tuple[str, list[Any]]]) -> None:
        """Replace everything by these (table, rows); nothing is dirty afterwards."""
        self._clear()
        tables = {table.name: table for table in self.all_tables()}
        for name, rows in segments:
            tables[name].load(rows)
        self.rebuild_indexes()


__all__ = ["Catalog", "Changes"]
