"""Scans of the engine and of its snapshots, on the iterators of RocksDB's binding.

Three of the binding's faults (rocksdict 0.3.29) are dealt with here:

  * An iterator keeps a pointer into its read options, which own the upper bound, but does not keep
    the options: once they are freed, the bound is whatever lies there next. So each scan does.
  * An iterator that meets a bad block just ends. So its status is asked after each scan.
  * A snapshot's own iterators do not see the snapshot. So a snapshot is one iterator, which RocksDB
    keeps at the moment of its creation.

Lower bounds of read options have no effect at all, and are checked by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from cluster.interfaces import CorruptRow, StorageError

Row = tuple[bytes, bytes]


class RawIterator(Protocol):
    """rocksdict.RdictIter; here as a Protocol because only engine.py may know that package."""

    def valid(self) -> bool: ...
    def status(self) -> None: ...
    def seek(self, key: bytes) -> None: ...
    def seek_for_prev(self, key: bytes) -> None: ...
    def seek_to_last(self) -> None: ...
    def next(self) -> None: ...
    def prev(self) -> None: ...
    def key(self) -> bytes: ...
    def value(self) -> bytes: ...


def rising(iterator: RawIterator, begin: bytes, options: object) -> Iterator[Row]:
    """From `begin` to the upper bound that `options`, those of the iterator, hold: it does not
    touch what lies beyond."""
    valid, key, value, step = iterator.valid, iterator.key, iterator.value, iterator.next
    iterator.seek(begin)
    while valid():
        yield key(), value()
        step()
    _check_status(iterator)


def falling(iterator: RawIterator, begin: bytes, options: object) -> Iterator[Row]:
    """From the upper bound in `options`, exclusive, down to `begin`."""
    valid, key, value, step = iterator.valid, iterator.key, iterator.value, iterator.prev
    iterator.seek_to_last()
    while valid():
        row = key()
        if row < begin:
            return
        yield row, value()
        step()
    _check_status(iterator)


class PinnedIterator:
    """cluster.interfaces.EngineSnapshot. Several scans may be under way at once: they share the one
    iterator, and each finds its place again when another read moved it."""

    def __init__(self, iterator: RawIterator) -> None:
        self._iterator: RawIterator | None = iterator
        self._moved_by: object = None

    def get(self, key: bytes) -> bytes | None:
        iterator = self._open()
        self._moved_by = None
        iterator.seek(key)
        if not iterator.valid():
            _check_status(iterator)
            return None
        return iterator.value() if iterator.key() == key else None

    def scan(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        scan = object()
        excluded: bytes | None = end if reverse else None
        while True:
            iterator = self._open()
            if self._moved_by is not scan:
                self._moved_by = scan
                _place(iterator, begin, excluded, reverse=reverse)
            elif reverse:
                iterator.prev()
            else:
                iterator.next()
            if not iterator.valid():
                _check_status(iterator)
                return
            key = iterator.key()
            if key < begin or key >= end:
                return
            excluded = key
            row = key, iterator.value()
            del iterator  # so that `close` lets go of it though this scan has not ended
            yield row

    def close(self) -> None:
        self._iterator = None

    def _open(self) -> RawIterator:
        if self._iterator is None:
            raise StorageError("the snapshot is closed")
        return self._iterator


def _place(iterator: RawIterator, begin: bytes, excluded: bytes | None, *, reverse: bool) -> None:
    """At the row after `excluded` in the scan's direction, at `begin` when there is none."""
    if reverse:
        assert excluded is not None
        iterator.seek_for_prev(excluded)
        if iterator.valid() and iterator.key() == excluded:
            iterator.prev()
        return
    iterator.seek(begin if excluded is None else excluded)
    if excluded is not None and iterator.valid() and iterator.key() == excluded:
        iterator.next()


def _check_status(iterator: RawIterator) -> None:
    try:
        iterator.status()
    except Exception as error:
        raise CorruptRow(f"cannot read on: {error}") from error
