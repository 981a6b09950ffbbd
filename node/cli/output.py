"""Results as a table for people, one JSON document, or a JSON line an item.

JSON has the field names of the public contract, numbers as numbers, enums by name without their
prefix. Bytes are text where they are UTF-8; where not, the field is called `..._base64`.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from rich import box
from rich.console import Console
from rich.table import Table

from quorumq.records import Record


def as_dict(message: Message) -> dict[str, Any]:
    """Fields without presence always, the others when set."""
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            out[field.name] = dict(value)
        elif field.is_repeated:
            out[field.name] = [_plain(field, item) for item in value]
        elif isinstance(value, bytes):
            put_bytes(out, field.name, value)
        else:
            out[field.name] = _plain(field, value)
    return out


def _plain(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return as_dict(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """Without the prefix that protobuf wants: NODE_STATE_ACTIVE is ACTIVE."""
    known = enum.values_by_number.get(number)
    if known is None:
        return str(number)
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_") + "_"
    return known.name.removeprefix(prefix)


def put_bytes(out: dict[str, Any], name: str, value: bytes | None) -> None:
    if value is None:
        out[name] = None
        return
    try:
        out[name] = value.decode()
    except UnicodeDecodeError:
        out[f"{name}_base64"] = base64.b64encode(value).decode()


def record_dict(record: Record) -> dict[str, Any]:
    out: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
    }
    put_bytes(out, "key", record.key)
    put_bytes(out, "value", record.value)
    headers = []
    for header in record.headers:
        shown: dict[str, Any] = {"name": header.name}
        if isinstance(header.value, bytes):
            put_bytes(shown, "value", header.value)
        else:
            shown["value"] = header.value
        headers.append(shown)
    out["headers"] = headers
    out["timestamp_ms"] = record.timestamp_ms
    out["append_time_ms"] = record.append_time_ms
    return out


class Output:
    """`form` is table, json or jsonl. Everything goes to standard output."""

    def __init__(self, form: str) -> None:
        self.form = form

    def items(
        self,
        items: Sequence[Mapping[str, Any]],
        columns: Sequence[tuple[str, str]],
        *,
        title: str = "",
    ) -> None:
        """`columns` of the table: (heading, key of the item)."""
        if self.form == "json":
            self._json(list(items))
        elif self.form == "jsonl":
            for item in items:
                self.line(item)
        else:
            table(
                [[shown(item.get(key)) for _, key in columns] for item in items],
                [heading for heading, _ in columns],
                title=title,
            )

    def one(self, item: Mapping[str, Any]) -> None:
        """A single thing: in the table, a line a field."""
        if self.form == "json":
            self._json(item)
        elif self.form == "jsonl":
            self.line(item)
        else:
            width = max((len(key) for key in item), default=0)
            for key, value in item.items():
                print(f"{key:<{width}}  {shown(value)}")

    def line(self, item: Mapping[str, Any]) -> None:
        print(json.dumps(item, ensure_ascii=False))

    def _json(self, document: object) -> None:
        print(json.dumps(document, indent=2, ensure_ascii=False))


def table(rows: Iterable[Sequence[str]], headings: Sequence[str], *, title: str = "") -> None:
    out = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    rows = list(rows)
    for i, heading in enumerate(headings):
        numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        out.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        out.add_row(*row)
    # Into a pipe it is as wide as it needs to be: nobody wants lines cut for grep.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 400, markup=False)
    console.print(out, crop=False)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(",", "").replace(".", "").isdigit()


def shown(value: object) -> str:
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    return str(value)


def shown_time(ms: int) -> str:
    """Local time; "-" for 0."""
    if not ms:
        return "-"
    return (
        datetime.fromtimestamp(ms / 1000).astimezone().isoformat(sep=" ", timespec="milliseconds")
    )


def shown_bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
