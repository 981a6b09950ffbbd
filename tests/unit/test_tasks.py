"""Every task has an owner, every exception a reader, and the order is that of creation."""

from __future__ import annotations

import asyncio

import pytest

from cluster.tasks import TaskGroup


async def forever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def fail(message: str, *, after_s: float = 0.0) -> None:
    await asyncio.sleep(after_s)
    raise ValueError(message)


async def test_children_are_cancelled_in_creation_order() -> None:
    ended: list[str] = []
    group = TaskGroup("order")
    names = [f"task-{number}" for number in range(200)]
    for name in names:
        group.start(forever(ended, name), name=name)
    await asyncio.sleep(0)
    assert group.task_names == [f"order/{name}" for name in names]
    await group.cancel_and_wait()
    assert ended == names
    assert len(group) == 0


async def test_the_scope_waits_for_its_children() -> None:
    done: list[int] = []

    async def work(number: int) -> int:
        await asyncio.sleep(0.01)
        done.append(number)
        return number

    async with TaskGroup("scope") as group:
        task = group.start(work(1), name="one")
        group.start(work(2), name="two")
    assert done == [1, 2]
    assert task.result() == 1


async def test_a_child_may_start_siblings_while_the_scope_is_joined() -> None:
    done: list[str] = []

    async def parent(group: TaskGroup) -> None:
        await asyncio.sleep(0.01)
        group.start(child(), name="child")

    async def child() -> None:
        await asyncio.sleep(0.01)
        done.append("child")

    async with TaskGroup("scope") as group:
        group.start(parent(group), name="parent")
    assert done == ["child"]


async def test_the_first_failure_cancels_the_siblings_and_the_body_and_is_raised() -> None:
    ended: list[str] = []

    async def scope() -> None:
        async with TaskGroup("scope") as group:
            group.start(forever(ended, "sibling"), name="sibling")
            group.start(fail("first"), name="failing")
            await forever(ended, "body")

    with pytest.raises(ValueError, match="first") as caught:
        await scope()
    assert sorted(ended) == ["body", "sibling"]
    assert caught.value.__notes__ == ["in task scope/failing"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # no cancellation is left over


async def test_later_failures_are_noted_on_the_first() -> None:
    async def fail_in_cleanup() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("second")

    async def scope() -> None:
        async with TaskGroup("scope") as group:
            group.start(fail_in_cleanup(), name="untidy")
            group.start(fail("first"), name="failing")

    with pytest.raises(ValueError, match="first") as caught:
        await scope()
    assert "then scope/untidy failed: KeyError('second')" in caught.value.__notes__


async def test_the_bodys_own_exception_wins_and_carries_the_childs() -> None:
    ended: list[str] = []

    async def fail_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("late")

    async def scope() -> None:
        async with TaskGroup("scope") as group:
            group.start(forever(ended, "child"), name="child")
            group.start(fail_when_cancelled(), name="untidy")
            await asyncio.sleep(0)
            raise ValueError("body")

    with pytest.raises(ValueError, match="body") as caught:
        await scope()
    assert ended == ["child"]
    assert "KeyError('late')" in caught.value.__notes__[0]


async def test_on_failure_reads_every_exception_at_once_and_the_others_go_on() -> None:
    read: list[tuple[str, str]] = []
    ended: list[str] = []
    group = TaskGroup("node", on_failure=lambda name, error: read.append((name, str(error))))
    group.start(forever(ended, "other"), name="other")
    group.start(fail("one"), name="a")
    group.start(fail("two"), name="b")
    await asyncio.sleep(0.01)
    assert read == [("node/a", "one"), ("node/b", "two")]
    assert ended == []
    await group.cancel_and_wait()
    assert ended == ["other"]


async def test_a_cancelled_child_is_no_failure() -> None:
    ended: list[str] = []
    async with TaskGroup("scope") as group:
        child = group.start(forever(ended, "child"), name="child")
        await asyncio.sleep(0)
        child.cancel()
    assert ended == ["child"]


async def test_a_cancelled_join_cancels_the_children_and_waits_for_them() -> None:
    ended: list[str] = []

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            ended.append("slow")

    async def owner() -> None:
        async with TaskGroup("inner") as group:
            group.start(slow_to_end(), name="slow")

    outer = TaskGroup("outer")
    task = outer.start(owner(), name="owner")
    await asyncio.sleep(0.01)
    await outer.cancel_and_wait()
    assert ended == ["slow"]
    assert task.cancelled()


async def test_a_cancellation_from_outside_is_not_swallowed_by_a_failing_child() -> None:
    async def owner() -> None:
        async with TaskGroup("inner") as group:
            group.start(fail("child"), name="failing")
            await asyncio.Event().wait()

    outer = TaskGroup("outer")
    task = outer.start(owner(), name="owner")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_closing_group_starts_nothing() -> None:
    group = TaskGroup("closed")
    await group.cancel_and_wait()
    with pytest.raises(RuntimeError, match="closed is closing: late"):
        group.start(fail("never run"), name="late")


async def test_cancel_and_wait_raises_what_nobody_read_once() -> None:
    group = TaskGroup("loose")
    group.start(fail("unread"), name="failing")
    await asyncio.sleep(0.01)
    with pytest.raises(ValueError, match="unread"):
        await group.cancel_and_wait()
    await group.cancel_and_wait()


async def test_a_group_does_not_wait_for_itself() -> None:
    group = TaskGroup("loop")

    async def suicidal() -> None:
        await group.cancel_and_wait()

    group.start(suicidal(), name="suicidal")
    with pytest.raises(AssertionError, match="would wait for itself"):
        await group.join()
