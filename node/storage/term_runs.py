"""The term of every entry of a tail, kept as runs: terms never fall along a log and change only
with its leaders, so that a tail of any length has a handful of runs."""

from __future__ import annotations

from bisect import bisect_right


class TermRuns:
    def __init__(self) -> None:
        self._firsts: list[int] = []  # rising
        self._terms: list[int] = []

    def append(self, index: int, term: int) -> None:
        """The entry after all others."""
        terms = self._terms
        if not terms or terms[-1] != term:
            assert not terms or terms[-1] < term, f"term {term} after {terms[-1]} at {index}"
            self._firsts.append(index)
            terms.append(term)

    def at(self, index: int) -> int:
        """`index` is one of those appended and not dropped."""
        if index >= self._firsts[-1]:
            return self._terms[-1]
        return self._terms[bisect_right(self._firsts, index) - 1]

    def truncate(self, index: int) -> None:
        """Forget everything from `index` on."""
        while self._firsts and self._firsts[-1] >= index:
            self._firsts.pop()
            self._terms.pop()

    def drop_below(self, index: int) -> None:
        """Forget what lies below `index`."""
        runs = bisect_right(self._firsts, index) - 1
        if runs > 0:
            del self._firsts[:runs]
            del self._terms[:runs]
