"""A machine's state frozen at one applied index, as named segments of bytes.

A table keeps its own dirty marks. Freezing copies references (tables replace their values and never
change one in place); bytes are made when the iterator is advanced, one segment a step, so that the
owner can spread a checkpoint over many turns. The bytes depend on the state alone, not on the way
it came about: two replicas at one index give equal segments.

Segment names: `core`, `dedup/<block>`, `positions/<bucket>`, `producers/<bucket>`, numbers in
fixed-width hexadecimal so that names sort like numbers. Every segment begins with the format's
version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

FORMAT_VERSION = 1

# A name, and what makes its bytes; None instead: the segment is no more.
FrozenSegment = tuple[bytes, Callable[[], bytes] | None]


class UnknownFormat(ValueError):
    """A segment was written by a version this code does not know, or is damaged."""


class FrozenPartition:
    """Fulfils cluster.interfaces.FrozenState, but for `live_index`, which needs the record index.
    `changed_segments` can be called once."""

    def __init__(self, applied_index: int, segments: Iterable[FrozenSegment]) -> None:
        self.applied_index = applied_index
        self._segments = sorted(segments, key=lambda segment: segment[0])

    def changed_segments(self) -> Iterator[tuple[bytes, bytes | None]]:
        """In rising order of names."""
        segments, self._segments = self._segments, []
        for name, make in segments:
            yield name, make() if make is not None else None


def check_version(name: bytes, data: bytes) -> None:
    """Raises UnknownFormat unless `data` begins with a version this code reads."""
    if not data or data[0] != FORMAT_VERSION:
        raise UnknownFormat(f"segment {name!r} has unknown version {data[:1].hex() or 'none'}")
