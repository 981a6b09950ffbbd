"""Settings in requests: which fields are meant, and none that this node does not know."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from node.services.errors import Refused, bad_request

M = TypeVar("M", bound=Message)


def refuse_unknown_fields(message: Message, field: str) -> None:
    """A setting of a newer contract must not be ignored. Raises Refused FEATURE_NOT_ENABLED."""
    fields = UnknownFieldSet(message)
    unknown = [fields[i].field_number for i in range(len(fields))]
    if unknown:
        raise Refused(
            "FEATURE_NOT_ENABLED",
            f"field {unknown[0]} of {message.DESCRIPTOR.name} is not known to this node",
            metadata={"feature": f"{field}.{unknown[0]}"},
        )


def merged(old: M, new: M, mask: FieldMask | None) -> M:
    """`old` with the masked fields of `new`; one that is masked but absent becomes absent. `mask`
    None or empty: the fields present in `new`. Raises Refused BAD_REQUEST for an unknown path."""
    result = type(old)()
    result.CopyFrom(old)
    paths = list(mask.paths) if mask is not None else []
    for path in paths:
        if path not in old.DESCRIPTOR.fields_by_name:
            raise bad_request("update_mask", f"{path!r} is no field of {old.DESCRIPTOR.name}")
    for name in paths or [field.name for field, _ in new.ListFields()]:
        if new.HasField(name):
            setattr(result, name, getattr(new, name))
        else:
            result.ClearField(name)
    return result
