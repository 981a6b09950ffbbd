"""A reader that follows the log while it is written, and keeps what it read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from quorumq import Reader


class OffsetsWrong(Exception):
    """The reader was given an offset twice, or one was left out."""


class Follower:
    """`values`: by key, in the order they were read."""

    def __init__(self, reader: Reader) -> None:
        self.values: dict[bytes, list[bytes]] = {}
        self.count = 0
        self.reached = asyncio.Event()
        self._reader = reader
        self._next: dict[int, int] = {}
        self._ends: Mapping[int, int] | None = None

    def read_up_to(self, ends: Mapping[int, int]) -> None:
        """`reached` is set once everything below these offsets, by partition, has been read."""
        self._ends = ends
        self._check_end()

    async def run(self) -> None:
        """Until it is cancelled. Raises OffsetsWrong, and what the reader raises."""
        async for batch in self._reader.batches():
            expected = self._next.get(batch.partition, 0)
            for record in batch.records():
                if record.offset != expected:
                    raise OffsetsWrong(
                        f"partition {record.partition}: read offset {record.offset}, and"
                        f" {expected} is next"
                    )
                expected += 1
                assert record.key is not None
                assert record.value is not None
                self.values.setdefault(record.key, []).append(record.value)
            self.count += len(batch)
            self._next[batch.partition] = expected
            if self._ends is not None:
                self._check_end()

    def _check_end(self) -> None:
        assert self._ends is not None
        if all(self._next.get(partition, 0) >= end for partition, end in self._ends.items()):
            self.reached.set()
