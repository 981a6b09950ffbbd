"""Replica sets and operations: what the catalog grants, refuses and notes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.controller import commands as c
from cluster.controller import model as m
from tests.unit.catalog_bed import Cluster

# --------------------------------------------------------------------------- replica sets (R8, R9)


def test_a_wish_keeps_the_replicas_of_nodes_that_stay() -> None:
    cluster = Cluster(1, 2, 3, 4)
    cluster.topic()
    before = cluster.group(2)
    reply = cluster.ok(
        c.SetDesiredReplicas(group_id=2, generation=1, node_ids=(4, 2, 1)), c.GroupWish
    )
    assert reply.generation == 2
    assert reply.desired[1:] == (before.desired[1], before.desired[0])
    assert cluster.group(2).node_of(reply.desired[0]) == 4
    same = c.SetDesiredReplicas(group_id=2, generation=1, node_ids=(4, 2, 1))
    assert cluster.ok(same, c.GroupWish).generation == 2, "repeated: the same answer"
    other = replace(same, node_ids=(1, 2, 3))
    assert cluster.refused(other) == c.Reason.STALE


def test_a_wish_taken_back_in_time_finds_the_old_replica_as_it_was() -> None:
    cluster = Cluster(1, 2, 3, 4)
    cluster.topic()
    before = cluster.group(2).desired
    cluster.ok(c.SetDesiredReplicas(group_id=2, generation=0, node_ids=(1, 2, 4)), c.GroupWish)
    back = c.SetDesiredReplicas(group_id=2, generation=0, node_ids=(1, 2, 3))
    assert cluster.ok(back, c.GroupWish).desired == before


def test_every_member_keeps_its_part_in_the_controller() -> None:
    cluster = Cluster(1, 2, 3)
    wish = c.SetDesiredReplicas(group_id=1, generation=0, node_ids=(1,), learner_node_ids=(2,))
    assert cluster.refused(wish) == c.Reason.STALE
    cluster.ok(replace(wish, learner_node_ids=(2, 3)), c.GroupWish)
    assert cluster.group(1).desired == (1,)


@pytest.mark.parametrize(
    ("node_ids", "learners"),
    [((), ()), ((1, 1), ()), ((1, 2), (3,)), ((1, 2), (2,)), (tuple(range(1, 9)), ())],
)
def test_a_wish_that_makes_no_sense_is_refused(
    node_ids: tuple[int, ...], learners: tuple[int, ...]
) -> None:
    cluster = Cluster(1, 2, 3)
    cluster.topic()
    wish = c.SetDesiredReplicas(
        group_id=2, generation=0, node_ids=node_ids, learner_node_ids=learners
    )
    assert cluster.refused(wish) == c.Reason.BAD_REQUEST
    assert cluster.refused(replace(wish, group_id=99)) == c.Reason.GROUP_NOT_FOUND


def test_a_replica_is_dropped_only_by_a_report_that_knows_the_wish() -> None:
    cluster = Cluster(1, 2, 3, 4)
    cluster.topic()
    old = cluster.group(2)
    wish = cluster.ok(
        c.SetDesiredReplicas(group_id=2, generation=0, node_ids=(1, 2, 4)), c.GroupWish
    )
    unaware = c.ReportConfiguration(
        group_id=2, index=5, term=1, generation=old.generation, voters=old.desired[:2]
    )
    cluster.ok(unaware, c.GroupWish)
    assert len(cluster.group(2).replicas) == 4
    cluster.report(2, *old.desired, learners=(wish.desired[2],))
    assert len(cluster.group(2).replicas) == 4
    cluster.report(2, *wish.desired)
    assert [r.node_id for r in cluster.group(2).replicas] == [1, 2, 4]
    assert cluster.group(2).is_settled()
    assert [t.group_id for t in cluster.catalog.tombstones_on(3, "a3")] == [2]


def test_a_report_that_was_overtaken_changes_nothing() -> None:
    cluster = Cluster(1, 2, 3)
    cluster.topic()
    cluster.report(2, 4, 5, 6, index=10)
    before = cluster.catalog.version
    cluster.report(2, 4, 5, index=9)
    cluster.report(2, 4, 5, 6, index=11)
    assert cluster.catalog.version == before, "the same news is no change"
    assert cluster.group(2).reality.voters == (4, 5, 6)


# -------------------------------------------------------------------------------------- operations


def test_a_drain_is_an_operation_that_can_be_asked_for_again_and_cancelled() -> None:
    cluster = Cluster(1, 2, 3)
    drain = c.StartOperation(kind=m.OperationKind.DRAIN_NODE, node_id=3)
    started = cluster.ok(drain, c.OperationStarted)
    again = cluster.ok(drain, c.OperationStarted)
    assert (again.operation_id, again.already_running) == (started.operation_id, True)
    assert cluster.member(3).state == m.MemberState.DRAINING
    cluster.ok(
        c.UpdateOperation(
            operation_id=started.operation_id, steps_done=1, steps_total=4, progress="1 of 4"
        ),
        c.Done,
    )
    operation = cluster.catalog.operation(started.operation_id)
    assert operation is not None
    assert (operation.version, operation.steps_done, operation.progress) == (2, 1, "1 of 4")
    cancel = c.FinishOperation(operation_id=started.operation_id, state=m.OperationState.CANCELLED)
    cluster.ok(cancel, c.Done)
    cluster.ok(cancel, c.Done)
    assert cluster.member(3).state == m.MemberState.ACTIVE
    succeeded = replace(cancel, state=m.OperationState.SUCCEEDED)
    assert cluster.refused(succeeded) == c.Reason.OPERATION_CONFLICT
    assert cluster.ok(drain, c.OperationStarted).operation_id != started.operation_id


def test_a_removal_overtakes_a_drain_and_a_forced_one_the_patient_one() -> None:
    cluster = Cluster(1, 2, 3)
    drain = c.StartOperation(kind=m.OperationKind.DRAIN_NODE, node_id=3)
    remove = replace(drain, kind=m.OperationKind.REMOVE_NODE)
    drained = cluster.ok(drain, c.OperationStarted)
    patient = cluster.ok(remove, c.OperationStarted)
    assert cluster.refused(drain) == c.Reason.OPERATION_CONFLICT
    forced = cluster.ok(replace(remove, force=True), c.OperationStarted)
    assert cluster.catalog.member(3) is None
    states = [
        operation.state
        for reply in (drained, patient, forced)
        if (operation := cluster.catalog.operation(reply.operation_id))
    ]
    assert states == [
        m.OperationState.CANCELLED,
        m.OperationState.CANCELLED,
        m.OperationState.RUNNING,
    ]
    assert cluster.refused(replace(drain, node_id=9)) == c.Reason.NODE_NOT_FOUND


def test_moving_a_replica_changes_the_wish() -> None:
    cluster = Cluster(1, 2, 3, 4)
    topic = cluster.topic()
    move = c.StartOperation(
        kind=m.OperationKind.MOVE_REPLICA, topic_id=topic.topic_id, node_id=2, to_node_id=4
    )
    first = cluster.ok(move, c.OperationStarted)
    assert cluster.group(2).desired_nodes() == (1, 4, 3)
    assert cluster.ok(move, c.OperationStarted).operation_id == first.operation_id
    assert cluster.refused(replace(move, node_id=9)) == c.Reason.BAD_REQUEST
    assert cluster.refused(replace(move, partition=7)) == c.Reason.PARTITION_NOT_FOUND
    assert cluster.refused(replace(move, topic_id="t9-0")) == c.Reason.TOPIC_NOT_FOUND


def test_ended_operations_are_kept_for_a_day_and_no_more_than_there_is_room_for() -> None:
    cluster = Cluster(1)
    redrive = c.StartOperation(kind=m.OperationKind.REDRIVE)
    for _ in range(m.OPERATIONS_MAX):
        started = cluster.ok(redrive, c.OperationStarted)
        done = c.FinishOperation(
            operation_id=started.operation_id, state=m.OperationState.SUCCEEDED
        )
        cluster.ok(done, c.Done)
    assert cluster.refused(redrive) == c.Reason.QUOTA
    cluster.now_ms += m.OPERATION_KEPT_MS
    cluster.ok(redrive, c.OperationStarted)
    assert len(cluster.catalog.operations()) == m.OPERATIONS_MAX
    assert cluster.catalog.operations()[0].number == 2
