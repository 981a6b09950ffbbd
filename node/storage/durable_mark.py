"""The file that remembers how much an engine had made durable, outside of the engine.

RocksDB opens without an error when a bit of its log has flipped, and drops what came after: from
inside, a disk that forgot looks like one that never knew. So after each flush, before anybody is
answered, the number of the last durable batch is written here (house §4.13).

The file is mapped: setting the mark is a store into a shared page, which outlives the process
without a system call, so the writer thread does not give up the interpreter lock once more per
flush. It reaches the disk once a second at most. After a power cut it may therefore lag, and can
never lead: the flush came first.

Two slots are written in turn, each with a CRC, so that a torn write costs one of them.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from pathlib import Path

_SLOT = struct.Struct("<4sQI")  # magic, number, crc of both
_MAGIC = b"QQDM"
_SLOT_OFFSETS = (0, 2048)
_FILE_BYTES = 4096


class DurableMark:
    """Used by one thread at a time. `number` is the highest one set."""

    def __init__(self, file: int, number: int) -> None:
        self.number = number
        self._file = file
        self._map = mmap.mmap(file, _FILE_BYTES)
        self._turn = 0

    @classmethod
    def create(cls, path: Path) -> DurableMark:
        """A new file with mark 0, durable with its directory entry. Raises OSError."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            # Real blocks, not a hole: a store into a mapped hole of a full disk kills the process.
            os.pwrite(file, _slot(0).ljust(_FILE_BYTES, b"\0"), 0)
            os.fsync(file)
            _sync_directory(path.parent)
            return cls(file, 0)
        except BaseException:
            os.close(file)
            raise

    @classmethod
    def open(cls, path: Path) -> DurableMark:
        """Raises OSError, and ValueError when no slot is intact."""
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            content = os.pread(file, _FILE_BYTES, 0)
            numbers = [n for at in _SLOT_OFFSETS if (n := _number(content, at)) is not None]
            if not numbers or len(content) != _FILE_BYTES:
                raise ValueError(f"{path} is damaged: it holds no intact mark")
            return cls(file, max(numbers))
        except BaseException:
            os.close(file)
            raise

    def set(self, number: int) -> None:
        """Visible to whoever opens the file after this process is gone."""
        assert number >= self.number, f"mark {number} after {self.number}"
        self._turn ^= 1
        at = _SLOT_OFFSETS[self._turn]
        self._map[at : at + _SLOT.size] = _slot(number)
        self.number = number

    def sync(self) -> None:
        """Raises OSError."""
        os.fdatasync(self._file)

    def close(self) -> None:
        self._map.close()
        os.close(self._file)


def _slot(number: int) -> bytes:
    crc = zlib.crc32(_MAGIC + number.to_bytes(8, "little"))
    return _SLOT.pack(_MAGIC, number, crc)


def _number(content: bytes, at: int) -> int | None:
    """The number of an intact slot."""
    slot = content[at : at + _SLOT.size]
    if len(slot) < _SLOT.size:
        return None
    number: int = _SLOT.unpack(slot)[1]
    return number if slot == _slot(number) else None


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
