"""What was measured, for people: as a table, or in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_VERDICTS = {True: "ok", False: "BELOW", None: "-"}


def table(line: Mapping[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    for name, value in line.items():
        if isinstance(value, dict):
            rows += [(f"{name} {key}", _shown(inner)) for key, inner in value.items()]
        else:
            rows.append((name, _shown(value)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def short(line: Mapping[str, Any]) -> str:
    """The figures that are asked for, and whether they were reached."""
    asked = [
        f"{figure} {_shown(line.get(figure, '?'))} ({limit})"
        for figure, limit in line["target"].items()
    ]
    failures = [f"{line['failures']} failures"] if line["failures"] else []
    others = line.get("machine", {}).get("others_cpu_percent")
    noise = [] if others is None else [f"beside {others:g} % of others"]
    told = "  ".join(asked + failures + noise)
    return f"{line['scenario']:<10}  {_VERDICTS[line['ok']]:<5}  {told}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else str(value)
