"""Where the records of a partition are: one row for each batch of records, written when its entry
is applied, found by offset or by time. It can be rebuilt from the entries (house §4.1)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from cluster.interfaces import CorruptRow, EngineReader, WriteBatch
from node.storage import keys

# Version, entry index, record count, append time, lowest and highest creation time.
_ROW = struct.Struct("<BQIqqq")
_VERSION = 1
_pack = _ROW.pack
_unpack = _ROW.unpack_from


class RecordRow(NamedTuple):
    """The records base_offset <= offset < next_offset lie in entry `entry_index`. `columns` is what
    the leader packed at ingest (house §4.11), opaque here."""

    base_offset: int
    entry_index: int
    record_count: int
    append_time_ms: int
    created_min_ms: int
    created_max_ms: int
    columns: bytes

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.record_count


class RecordIndex:
    """Rows of one partition. Rising in base_offset, and append_time_ms never falls along them;
    they do not overlap and may have gaps. A row that was put or deleted is seen once its batch has
    been written. Reads raise CorruptRow, also when a row is not of a known version."""

    def __init__(self, reader: EngineReader, group_id: int) -> None:
        self._reader = reader
        self._prefix = keys.group_key(group_id, keys.RECORD)
        self._end = keys.prefix_end(self._prefix)

    def put(self, batch: WriteBatch, row: RecordRow) -> None:
        batch.put(
            self._prefix + row[0].to_bytes(8, "big"),
            _pack(_VERSION, row[1], row[2], row[3], row[4], row[5]) + row[6],
        )

    def find(self, offset: int, reader: EngineReader | None = None) -> RecordRow | None:
        """The row that holds `offset`, else the next one after it."""
        for row in self.rows(offset, reader):
            return row
        return None

    def rows(self, offset: int, reader: EngineReader | None = None) -> Iterator[RecordRow]:
        """From the row that `find` gives on. Ends when the caller stops asking; a view of the
        moment of the first step."""
        reader = self._reader if reader is None else reader
        key = self._key(offset)
        for found in reader.scan(self._prefix, self._key(offset + 1), reverse=True):
            row = self._row(found)
            if row.next_offset > offset:
                key = found[0]
            break
        for found in reader.scan(key, self._end):
            yield self._row(found)

    def first(self) -> RecordRow | None:
        for found in self._reader.scan(self._prefix, self._end):
            return self._row(found)
        return None

    def last(self) -> RecordRow | None:
        for found in self._reader.scan(self._prefix, self._end, reverse=True):
            return self._row(found)
        return None

    def find_by_time(self, append_time_ms: int) -> RecordRow | None:
        """The first row appended at append_time_ms or later: a binary search over offsets, a seek
        each step."""
        last = self.last()
        if last is None or last.append_time_ms < append_time_ms:
            return None
        found = last
        low, high = 0, last.base_offset
        while low < high:
            middle = (low + high) // 2
            row = self._at_or_after(middle)
            assert row is not None, f"no row at or after {middle} of {high}"
            if row.append_time_ms >= append_time_ms:
                found, high = row, middle
            else:
                low = row.base_offset + 1
        return found

    def delete(self, batch: WriteBatch, base_offset: int) -> None:
        batch.delete(self._key(base_offset))

    def delete_below(self, batch: WriteBatch, offset: int) -> None:
        """Delete the rows with base_offset < offset."""
        batch.delete_range(self._prefix, self._key(offset))

    def delete_from(self, batch: WriteBatch, offset: int) -> None:
        """Delete the rows with base_offset >= offset: what follows is applied again."""
        batch.delete_range(self._key(offset), self._end)

    def drop(self, batch: WriteBatch) -> None:
        batch.delete_range(self._prefix, self._end)

    def _key(self, offset: int) -> bytes:
        return self._prefix + offset.to_bytes(8, "big")

    def _at_or_after(self, offset: int) -> RecordRow | None:
        for found in self._reader.scan(self._key(offset), self._end):
            return self._row(found)
        return None

    def _row(self, found: tuple[bytes, bytes]) -> RecordRow:
        return decode_row(*found)


def decode_row(key: bytes, value: bytes) -> RecordRow:
    """A stored row. Raises CorruptRow."""
    offset = int.from_bytes(key[-8:], "big")
    try:
        version, index, count, appended, created_min, created_max = _unpack(value)
    except struct.error as error:
        raise CorruptRow(f"record row {offset}: {error}") from error
    if version != _VERSION:
        raise CorruptRow(f"record row {offset}: version {version} is not known here")
    columns = value[_ROW.size :]
    return RecordRow(offset, index, count, appended, created_min, created_max, columns)
