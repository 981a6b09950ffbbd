"""How many bytes a log holds, history and tail, without reading it again.

Sizes are kept by blocks of neighbouring entries, so that deleting a part of the history takes off
what that part held: exactly for whole blocks, in proportion within one.
"""

from __future__ import annotations

import struct

_BLOCK_BYTES = 1 << 20
_BLOCK_ENTRIES = 4096
_LOW = struct.Struct("<Q")
_BLOCK = struct.Struct("<QQ")  # last index, bytes


class LogSizes:
    """Blocks are contiguous from `low` on: the lowest index that may still be stored."""

    def __init__(self, low: int) -> None:
        self.low = low
        self.bytes = 0
        self._blocks: list[list[int]] = []  # [last index, bytes]

    def add(self, last_index: int, size: int) -> None:
        """Entries up to last_index, all that are not counted yet, have `size` bytes together."""
        self.bytes += size
        if self._blocks:
            block = self._blocks[-1]
            first = self._first(len(self._blocks) - 1)
            if block[1] < _BLOCK_BYTES and last_index - first < _BLOCK_ENTRIES:
                block[0] = last_index
                block[1] += size
                return
        self._blocks.append([last_index, size])

    def below(self, index: int) -> int:
        """Bytes of the entries below `index`."""
        size = 0
        for at, (last, block_size) in enumerate(self._blocks):
            if last >= index:
                return size + (self._share(at, index) if self._first(at) < index else 0)
            size += block_size
        return size

    def start_of_last(self, bytes_max: int) -> int:
        """The lowest index from which all entries together have at most bytes_max."""
        room = bytes_max
        for at in range(len(self._blocks) - 1, -1, -1):
            last, size = self._blocks[at]
            if size > room:
                return last + 1 - (last + 1 - self._first(at)) * room // size
            room -= size
        return self.low

    def truncate(self, index: int) -> None:
        """Nothing from `index` on is stored any more."""
        while self._blocks and self._first(len(self._blocks) - 1) >= index:
            self.bytes -= self._blocks.pop()[1]
        if self._blocks and self._blocks[-1][0] >= index:
            at = len(self._blocks) - 1
            kept = self._share(at, index)
            self.bytes -= self._blocks[at][1] - kept
            self._blocks[at] = [index - 1, kept]

    def delete_below(self, index: int) -> None:
        if index <= self.low:
            return
        self._split(index)
        while self._blocks and self._blocks[0][0] < index:
            self.bytes -= self._blocks.pop(0)[1]
        self.low = index

    def delete(self, first: int, last: int) -> None:
        """[first, last] are not stored any more, a hole."""
        self._split(first)
        self._split(last + 1)
        for block in self._blocks:
            if first <= block[0] <= last:
                self.bytes -= block[1]
                block[1] = 0

    def encode(self, below: int) -> bytes:
        """What is known of the entries below `below`."""
        self._split(below)
        blocks = [_BLOCK.pack(last, size) for last, size in self._blocks if last < below]
        return _LOW.pack(min(self.low, below)) + b"".join(blocks)

    @classmethod
    def decode(cls, data: bytes) -> LogSizes:
        """Raises ValueError."""
        try:
            sizes = cls(_LOW.unpack_from(data)[0])
            sizes._blocks = [[last, size] for last, size in _BLOCK.iter_unpack(data[_LOW.size :])]
        except struct.error as error:
            raise ValueError(f"not the sizes of a log: {error}") from error
        sizes.bytes = sum(size for _, size in sizes._blocks)
        return sizes

    def _first(self, at: int) -> int:
        return self._blocks[at - 1][0] + 1 if at else self.low

    def _share(self, at: int, index: int) -> int:
        """The bytes of block `at` below `index`, as if its entries had equal sizes."""
        first = self._first(at)
        last, size = self._blocks[at]
        return size * (index - first) // (last + 1 - first)

    def _split(self, index: int) -> None:
        """Let a block begin at `index`."""
        for at, (last, size) in enumerate(self._blocks):
            if last >= index:
                if self._first(at) < index:
                    below = self._share(at, index)
                    self._blocks[at : at + 1] = [[index - 1, below], [last, size - below]]
                return
