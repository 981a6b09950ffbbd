"""Parts of AdminService by themselves: refusals of the catalog, limits, pages, masks, settings."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from cluster.controller import commands as c
from cluster.controller import model
from cluster.controller.catalog import Catalog
from cluster.controller.model import OperationKind, OperationState, SubscriptionKind
from node.services import catalog_access, topic_settings
from node.services.admin_rows import operation_message
from node.services.catalog_access import full_limit
from node.services.errors import POLICIES, Refused
from node.services.fan_out import AT_ONCE_MAX, ask_all
from node.services.field_masks import merged, refuse_unknown_fields
from node.services.paging import after_of, page, token_of
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import errors_pb2


def test_every_refusal_of_the_catalog_has_its_public_reason() -> None:
    assert set(catalog_access._REASONS) == set(c.Reason)
    for reason, public in catalog_access._REASONS.items():
        assert public in POLICIES
        if reason.value in POLICIES:
            assert public == reason.value


def test_kinds_and_states_of_operations_have_their_public_names() -> None:
    for kind, state in itertools.zip_longest(OperationKind, OperationState):
        row = model.Operation(
            number=1,
            operation_id="o1",
            kind=kind,
            state=state or OperationState.FAILED,
            version=3,
            started_at_ms=5,
        )
        shown = operation_message(row)
        assert shown.kind == kind.value
        assert shown.state == row.state.value
        assert shown.HasField("partition") == (kind is OperationKind.MOVE_REPLICA)
        assert not shown.HasField("ended_at_ms")
        assert not shown.HasField("error")


def test_why_an_operation_failed() -> None:
    row = model.Operation(
        number=1,
        operation_id="o1",
        kind=OperationKind.DRAIN_NODE,
        state=OperationState.FAILED,
        version=3,
        started_at_ms=5,
        ended_at_ms=9,
        reason="NODE_NOT_FOUND",
        message="the node was removed",
    )
    shown = operation_message(row)
    assert shown.error.reason == errors_pb2.REASON_NODE_NOT_FOUND
    assert shown.error.message == "the node was removed"
    assert shown.ended_at_ms == 9
    newer = operation_message(replace(row, reason="OF_A_NEWER_CONTROLLER"))
    assert newer.error.reason == errors_pb2.REASON_UNSPECIFIED


# --- limits ---------------------------------------------------------------------------------------


class Full(Catalog):
    """A catalog that says it holds as much as a test wants."""

    def __init__(self, **counts: int) -> None:
        super().__init__()
        self._counts = counts

    @property
    def topic_count(self) -> int:
        return self._counts.get("topics", 0)

    @property
    def partition_count(self) -> int:
        return self._counts.get("partitions", 0)

    @property
    def replica_count(self) -> int:
        return self._counts.get("replicas", 0)

    @property
    def subscription_count(self) -> int:
        return self._counts.get("subscriptions", 0)


CREATE = c.CreateTopic(
    name="default/t", partitions=2, replication_factor=3, settings=b"", assignment=(1, 2, 3) * 2
)


@pytest.mark.parametrize(
    ("limit", "value", "room_for"),
    [
        ("topics", model.TOPICS_MAX, 1),
        ("partitions", model.PARTITIONS_MAX, 2),
        ("replicas", model.REPLICAS_MAX, 6),
    ],
)
def test_a_full_catalog_names_the_limit_of_topics(limit: str, value: int, room_for: int) -> None:
    assert full_limit(Full(**{limit: value - room_for}), CREATE) is None
    assert full_limit(Full(**{limit: value - room_for + 1}), CREATE) == (limit, value)


def test_a_full_catalog_names_the_limit_of_subscriptions() -> None:
    command = c.CreateSubscription(
        topic_id="t1", name="s", kind=SubscriptionKind.STREAM, settings=b""
    )
    assert full_limit(Full(), command) is None
    limit = model.SUBSCRIPTIONS_MAX
    assert full_limit(Full(subscriptions=limit), command) == ("subscriptions", limit)


def test_a_refusal_for_lack_of_room_names_the_limit() -> None:
    class Controller:
        catalog = Full(topics=model.TOPICS_MAX)

    access = catalog_access.CatalogAccess(Controller())  # type: ignore[arg-type]
    reply = c.Refused(reason=c.Reason.QUOTA, message="10000 topics already")
    refused = access._refused(CREATE, reply)
    assert refused.reason == "QUOTA"
    assert refused.error.metadata == {"limit": "topics"}


# --- pages ----------------------------------------------------------------------------------------


def pages(items: list[str], size: int) -> Iterator[list[str]]:
    token = ""
    while True:
        chosen, token = page(items, str, size=size, token=token)
        yield chosen
        if not token:
            return


def test_pages_hold_every_item_once() -> None:
    items = [f"{number:03}" for number in range(25)]
    for size in (1, 7, 24, 25, 26, 0):
        found = list(pages(items, size))
        assert [item for chosen in found for item in chosen] == items
        assert all(len(chosen) <= (size or 100) for chosen in found)
    assert list(pages([], 5)) == [[]]


def test_a_token_holds_any_key() -> None:
    for key in ("default/t", "a\0b", "7", "ü" * 50):
        assert after_of(token_of(key)) == key


@pytest.mark.parametrize("token", ["x", "§", "AAAA", token_of("a")[:-2], "Mjph", "MTr/"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(Refused) as caught:
        after_of(token)
    assert caught.value.reason == "BAD_REQUEST"
    assert caught.value.error.field_violations[0].field == "page_token"


# --- masks, settings ------------------------------------------------------------------------------


def test_a_mask_decides_which_fields_are_meant() -> None:
    old = pb.TopicConfig(retention_ms=5_000, retention_bytes=7 << 20)
    new = pb.TopicConfig(retention_ms=9_000)
    assert merged(old, new, None) == pb.TopicConfig(retention_ms=9_000, retention_bytes=7 << 20)
    assert merged(old, new, FieldMask()) == merged(old, new, None)
    mask = FieldMask(paths=["retention_bytes"])
    assert merged(old, new, mask) == pb.TopicConfig(retention_ms=5_000)
    assert old.retention_ms == 5_000, "untouched"


@pytest.mark.parametrize("path", ["", "nothing", "config.retention_ms", "retention_ms "])
def test_a_path_that_is_no_field_is_refused(path: str) -> None:
    with pytest.raises(Refused) as caught:
        merged(pb.TopicConfig(), pb.TopicConfig(), FieldMask(paths=[path]))
    assert caught.value.reason == "BAD_REQUEST"


def test_a_field_of_a_newer_contract_is_refused_by_number() -> None:
    config = pb.TopicConfig(retention_ms=5_000)
    refuse_unknown_fields(config, "config")
    config.MergeFromString(b"\xf8\x01\x01")
    with pytest.raises(Refused) as caught:
        refuse_unknown_fields(config, "config")
    assert caught.value.reason == "FEATURE_NOT_ENABLED"
    assert caught.value.error.metadata == {"feature": "config.31"}


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("partitions", (1, 1000), (0, 1001)),
        ("replication_factor", (1, 7), (0, 8)),
        ("retention_bytes", (0, 1_048_576), (1, 1_048_575)),
        ("retention_ms", (0, 1_000), (-1, 999)),
        ("record_bytes_max", (1, 16_777_216), (0, 16_777_217)),
        ("batch_bytes_max", (1_048_576, 16_777_216), (0, 1_048_575, 16_777_217)),
        ("dedup_window_count", (0, 10_000_000), (10_000_001,)),
        ("dedup_overflow", (1, 2), (0, 3)),
        ("dedup_window_ms", (0, 1_000, 604_800_000), (-1, 999, 604_800_001)),
        ("producer_expiry_ms", (3_600_000, 31_536_000_000), (0, 3_599_999, 31_536_000_001)),
        ("feature_level", (1,), (0, 2)),
    ],
)
def test_the_ranges_of_a_topics_settings(
    field: str, good: tuple[int, ...], bad: tuple[int, ...]
) -> None:
    for value in good:
        config = pb.TopicConfig(**{field: value})  # type: ignore[arg-type]
        assert topic_settings.violations(config) == [], value
    for value in bad:
        config = pb.TopicConfig(**{field: value})  # type: ignore[arg-type]
        (violation,) = topic_settings.violations(config)
        assert violation[0] == f"config.{field}", value


def test_every_setting_of_a_topic_has_a_range() -> None:
    names = [field.name for field in pb.TopicConfig.DESCRIPTOR.fields]
    assert sorted(topic_settings.FIELDS) == sorted(names)


# --- many at a time -------------------------------------------------------------------------------


async def test_answers_come_in_order_and_refusals_are_answers() -> None:
    at_work, most = 0, 0

    async def ask(item: int) -> int:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        if item % 10 == 3:
            raise Refused("NO_LEADER", f"{item}")
        return item * item

    answers = await ask_all(range(100), ask)
    assert most == AT_ONCE_MAX
    for item, answer in enumerate(answers):
        if item % 10 == 3:
            assert isinstance(answer, Refused)
        else:
            assert answer == item * item
    assert await ask_all([], ask) == []


async def test_a_bug_in_one_question_is_raised() -> None:
    async def ask(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        await ask_all([1, 0, 2], ask)
