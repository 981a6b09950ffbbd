"""Stored and sent forms of what the catalog is told, answers and keeps; see catalog.proto.

Dataclasses and messages have fields of the same names, so one rule serves all: it is worked out
once per class, at import, and asserts there that both sides have the same fields. Fields that are
absent on the wire get the proto's zero value, which is also what the dataclasses mean by "absent".
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import fields
from enum import IntEnum, StrEnum
from typing import Any, get_args, get_origin, get_type_hints

from google.protobuf.message import DecodeError, Message

from cluster.controller import commands as c
from cluster.controller import model as m
from cluster.v1 import catalog_pb2 as pb

COMMANDS: tuple[type[c.Command], ...] = (
    c.Found,
    c.RegisterMember,
    c.SetMemberState,
    c.RemoveMember,
    c.SetMachineVersion,
    c.SetFeatureLevel,
    c.CreateTopic,
    c.AlterTopic,
    c.DeleteTopic,
    c.CreateSubscription,
    c.AlterSubscription,
    c.DeleteSubscription,
    c.AllocateProducerIds,
    c.OpenNamedProducer,
    c.SetDesiredReplicas,
    c.ReportConfiguration,
    c.ConfirmDeleted,
    c.StartOperation,
    c.UpdateOperation,
    c.FinishOperation,
)
REPLIES: tuple[type[c.Reply], ...] = (
    c.Refused,
    c.Done,
    c.Founded,
    c.MemberRegistered,
    c.TopicCreated,
    c.TopicAltered,
    c.SubscriptionCreated,
    c.SubscriptionAltered,
    c.GroupWish,
    c.ProducerIdsAllocated,
    c.NamedProducerOpened,
    c.OperationStarted,
)
TABLES: dict[str, type[Any]] = {
    "counters": m.Counters,
    "members": m.Member,
    "gone": m.GoneMember,
    "groups": m.Group,
    "topics": m.Topic,
    "deleted_topics": m.DeletedTopic,
    "subscriptions": m.Subscription,
    "tombstones": m.Tombstone,
    "producers": m.NamedProducer,
    "operations": m.Operation,
}


def encode_command(command: c.Command, stamp: c.Stamp | None) -> bytes:
    """`stamp` None: on its way to the controller's leader, who sets it."""
    message = pb.Command()
    if stamp is not None:
        message.stamp.log_time_ms = stamp.log_time_ms
        message.stamp.wall_ms = stamp.wall_ms
    _write(getattr(message, _FIELD[type(command)]), command)
    return message.SerializeToString(deterministic=True)


def decode_command(data: bytes) -> tuple[c.Command, c.Stamp | None]:
    """Raises ValueError when it is no command, or one that this version does not know."""
    message = _parse(pb.Command(), data)
    field = message.WhichOneof("command")
    if field is None:
        raise ValueError("a command of an unknown kind")
    command = _read(_COMMAND_OF[field], getattr(message, field))
    if not message.HasField("stamp"):
        return command, None
    return command, c.Stamp(log_time_ms=message.stamp.log_time_ms, wall_ms=message.stamp.wall_ms)


def encode_reply(reply: c.Reply) -> bytes:
    message = pb.Reply()
    _write(getattr(message, _FIELD[type(reply)]), reply)
    return message.SerializeToString(deterministic=True)


def decode_reply(data: bytes) -> c.Reply:
    """Raises ValueError when it is no reply, or one that this version does not know."""
    message = _parse(pb.Reply(), data)
    field = message.WhichOneof("reply")
    if field is None:
        raise ValueError("a reply of an unknown kind")
    reply: c.Reply = _read(_REPLY_OF[field], getattr(message, field))
    return reply


def segment_name(table: str, block: int) -> bytes:
    """Names sort by table, then block."""
    return f"{table}/{block:014x}".encode()


def encode_segment(table: str, rows: Iterable[Any]) -> bytes:
    message = pb.CatalogSegment()
    target = getattr(message, table)
    for row in rows:
        _write(target.add(), row)
    return message.SerializeToString(deterministic=True)


def decode_segment(name: bytes, data: bytes) -> tuple[str, list[Any]]:
    """(table, rows). Raises ValueError when name or data are not a segment known here."""
    table = name.partition(b"/")[0].decode("ascii", "replace")
    row_type = TABLES.get(table)
    if row_type is None:
        raise ValueError(f"segment of an unknown table: {name!r}")
    message = _parse(pb.CatalogSegment(), data)
    return table, [_read(row_type, row) for row in getattr(message, table)]


# ------------------------------------------------------------------------------------- the one rule

_Plan = list[tuple[str, str, Any]]  # (field, how, type); how: plain, enum, one, list, rows


def _snake(name: str) -> str:
    return "".join(f"_{ch.lower()}" if ch.isupper() else ch for ch in name).lstrip("_")


def _parse(message: Any, data: bytes) -> Any:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"not a {message.DESCRIPTOR.name}: {error}") from error
    return message


def _plan(cls: type[Any]) -> _Plan:
    hints = get_type_hints(cls)
    plan: _Plan = []
    for field in fields(cls):
        hint = hints[field.name]
        if isinstance(hint, types.GenericAlias) or get_origin(hint) is tuple:
            (element, _) = get_args(hint)
            plan.append((field.name, "rows" if element in _MESSAGES else "list", element))
        elif hint in _MESSAGES:
            plan.append((field.name, "one", hint))
        elif issubclass(hint, IntEnum | StrEnum):
            plan.append((field.name, "enum", hint))
        else:
            assert hint in (int, str, bytes, bool), f"{cls.__name__}.{field.name}: {hint}"
            plan.append((field.name, "plain", hint))
    stored = sorted(_MESSAGES[cls].DESCRIPTOR.fields_by_name)
    assert stored == sorted(name for name, _, _ in plan), f"{cls.__name__}: proto has {stored}"
    return plan


def _write(message: Any, value: Any) -> None:
    # An empty submessage must show on the wire: it may be the one of a oneof, or a row.
    message.SetInParent()
    for name, how, _ in _PLANS[type(value)]:
        part = getattr(value, name)
        if how == "list":
            getattr(message, name).extend(part)
        elif how == "rows":
            target = getattr(message, name)
            for row in part:
                _write(target.add(), row)
        elif how == "one":
            _write(getattr(message, name), part)
        else:
            setattr(message, name, part)


def _read(cls: type[Any], message: Any) -> Any:
    parts: dict[str, Any] = {}
    for name, how, kind in _PLANS[cls]:
        part = getattr(message, name)
        if how == "list":
            parts[name] = tuple(part)
        elif how == "rows":
            parts[name] = tuple(_read(kind, row) for row in part)
        elif how == "one":
            parts[name] = _read(kind, part)
        elif how == "enum":
            parts[name] = kind(part)  # an unknown value is a ValueError, as it should be
        else:
            parts[name] = part
    return cls(**parts)


_NESTED: tuple[type[Any], ...] = (c.Announcement, m.Replica, m.Reality)
_MESSAGES: dict[type[Any], type[Message]] = {
    cls: getattr(pb, cls.__name__) for cls in (*COMMANDS, *REPLIES, *TABLES.values(), *_NESTED)
}
_PLANS: dict[type[Any], _Plan] = {cls: _plan(cls) for cls in _MESSAGES}
_FIELD: dict[type[Any], str] = {cls: _snake(cls.__name__) for cls in (*COMMANDS, *REPLIES)}
_COMMAND_OF: dict[str, type[Any]] = {_FIELD[cls]: cls for cls in COMMANDS}
_REPLY_OF: dict[str, type[Any]] = {_FIELD[cls]: cls for cls in REPLIES}
