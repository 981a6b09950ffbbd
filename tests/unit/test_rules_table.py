"""tests/README.md says which tests stand for which rule: each rule has some, and all that are named
there exist. RECORD=1 writes the table anew from the tests and stories there are."""

from __future__ import annotations

import os
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
README = TESTS / "README.md"
BEGIN, END = "<!-- rules: begin -->\n", "<!-- rules: end -->\n"
RULES = range(1, 21)

_FUNCTION = re.compile(r"^(?:async )?def (test_r(\d+)_\w+)\(", re.MULTILINE | re.IGNORECASE)
_ROW = re.compile(r"^\| R(\d+) \| `(\w+)` \| `([\w/.]+)` \|$", re.MULTILINE)


def found() -> list[tuple[int, str, str]]:
    """(rule, name, file below tests/), sorted: tests by their names, stories by their comments."""
    rows = []
    for path in TESTS.rglob("test_*.py"):
        for name, rule in _FUNCTION.findall(path.read_text(encoding="utf-8")):
            rows.append((int(rule), name, str(path.relative_to(TESTS))))
    for path in (TESTS / "scenarios").glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        rules = {int(number) for number in re.findall(r"\bR(\d+)\b", text)}
        rows += [(rule, path.stem, str(path.relative_to(TESTS))) for rule in sorted(rules)]
    return sorted(rows)


def table(rows: list[tuple[int, str, str]]) -> str:
    lines = ["| rule | test or story | where |", "|---|---|---|"]
    lines += [f"| R{rule} | `{name}` | `{where}` |" for rule, name, where in rows]
    return "\n".join(lines) + "\n"


def test_every_rule_has_a_test_and_every_test_of_the_table_exists() -> None:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    listed, after = rest.split(END)
    there = found()
    if os.environ.get("RECORD"):
        README.write_text(before + BEGIN + table(there) + END + after, encoding="utf-8")
        return
    rows = [(int(rule), name, where) for rule, name, where in _ROW.findall(listed)]
    assert sorted({rule for rule, _, _ in rows}) == list(RULES)
    gone = [row for row in rows if row not in there]
    assert not gone, f"the table names tests that are not there: {gone}"
