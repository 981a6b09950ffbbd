"""What was read against what was to be published: nothing is taken from the producers' word."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from node.demo.source import Source, content_hash


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of records, over all keys."""

    read: int
    lost: int
    duplicated: int
    out_of_order: int
    source_hash: str
    read_hash: str

    @property
    def is_good(self) -> bool:
        return (
            self.lost == self.duplicated == self.out_of_order == 0
            and self.source_hash == self.read_hash
        )


def compare(source: Source, read: dict[bytes, list[bytes]]) -> Verdict:
    """`read`: values by key in the order they were read."""
    lost = duplicated = out_of_order = 0
    for key in sorted({*source.modules, *read}):
        expected, seen = source.modules.get(key, []), read.get(key, [])
        if expected == seen:
            continue
        missing, surplus = Counter(expected), Counter(seen)
        missing.subtract(seen)
        surplus.subtract(expected)
        lost += sum((+missing).values())
        duplicated += sum((+surplus).values())
        out_of_order += _misplaced(expected, seen)
    return Verdict(
        read=sum(map(len, read.values())),
        lost=lost,
        duplicated=duplicated,
        out_of_order=out_of_order,
        source_hash=source.content_hash(),
        read_hash=content_hash(read),
    )


def _misplaced(expected: list[bytes], seen: list[bytes]) -> int:
    """How many records that were rightly read stand elsewhere than in the source, those that are
    missing or surplus left out."""
    common = Counter(expected) & Counter(seen)
    first, second = _first_of_each(expected, common), _first_of_each(seen, common)
    return sum(a != b for a, b in zip(first, second, strict=True))


def _first_of_each(values: list[bytes], wanted: Counter[bytes]) -> list[bytes]:
    left, taken = wanted.copy(), list[bytes]()
    for value in values:
        if left[value] > 0:
            left[value] -= 1
            taken.append(value)
    return taken
