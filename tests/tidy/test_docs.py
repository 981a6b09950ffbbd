"""The pages say what is so: links lead somewhere, commands and their options exist, tables and
examples are the code's. RECORD=1 writes the README's configuration table anew."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from node import config, startup
from node.cli import failures
from node.cli.root import cli
from node.config_values import parse_bytes
from node.exposition import NodeCollector
from node.metrics import FLUSH_BOUNDS_MS, Histogram, NodeCounters
from tests.tidy.source import ROOT, all_sources

README = ROOT / "README.md"
BEGIN = "<!-- configuration: begin (RECORD=1 pytest tests/tidy/test_docs.py) -->\n"
END = "<!-- configuration: end -->"
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_CALL = re.compile(r"(?:^|[\s|/])quorumq ([^|`#\n>]*)", re.MULTILINE)


def pages() -> Iterator[tuple[str, str, Path]]:
    for path in PAGES:
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"), path


# --- links ----------------------------------------------------------------------------------------


def anchors(text: str) -> list[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings]


def broken_links(text: str, page: Path) -> list[str]:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", text)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (
            anchor and anchor not in anchors(text if path == page else path.read_text())
        ):
            broken.append(target)
    return broken


def test_links_lead_to_files_and_headings() -> None:
    broken = [
        f"{name}: {link}" for name, text, path in pages() for link in broken_links(text, path)
    ]
    assert broken == []


# --- commands -------------------------------------------------------------------------------------


def shell_code(text: str) -> str:
    """Fenced shell, indented blocks, and spans."""
    fenced = [code for _, language, code in _FENCE.findall(text) if language in ("sh", "")]
    rest = _FENCE.sub("", text)
    indented = re.findall(r"^ {4,}\S.*$", rest, re.MULTILINE)
    return "\n".join([*fenced, *indented, *re.findall(r"`([^`\n]+)`", rest)])


def wrong_call(words: list[str]) -> str:
    """What is wrong with these arguments of `quorumq`; "" = nothing."""
    context, command = click.Context(cli), cli
    words = list(words)
    while words:
        word = words.pop(0)
        if word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            option = next(
                (p for p in command.get_params(context) if name in (*p.opts, *p.secondary_opts)),
                None,
            )
            if option is None:
                return f"{command.name} has no {name}"
            if not equals and isinstance(option, click.Option) and not option.is_flag and words:
                words.pop(0)
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            if found is None:
                return f"{command.name} has no {word}"
            command = found
    return ""


def test_the_commands_of_the_pages_exist() -> None:
    calls = [
        (name, shlex.split(call))
        for name, text, _ in pages()
        for call in _CALL.findall(shell_code(text))
    ]
    assert len(calls) > 30
    assert [f"{name}: {' '.join(words)}" for name, words in calls if wrong_call(words)] == []


def test_the_make_targets_of_the_pages_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [
        (name, target)
        for name, text, _ in pages()
        for target in re.findall(r"(?:^|[`\s])make ([a-z]+)\b", shell_code(text))
    ]
    assert named
    assert [found for found in named if found[1] not in targets] == []


# --- tables ---------------------------------------------------------------------------------------


def test_the_configuration_table_is_the_codes() -> None:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    if os.environ.get("RECORD"):
        README.write_text(before + BEGIN + config.table() + END + after, encoding="utf-8")
        return
    assert table == config.table(), "RECORD=1 pytest tests/tidy/test_docs.py writes it anew"


def test_the_tables_of_exit_codes_are_whole() -> None:
    text = README.read_text(encoding="utf-8")
    of_serve, of_others = text.split("## Exit codes")[1].split("| other commands |")
    row = re.compile(r"^\| (\d+) \| (?:`(\w+)`)?", re.MULTILINE)
    kinds = [
        kind
        for _, kind in inspect.getmembers(startup, inspect.isclass)
        if kind is not startup.StartupError and issubclass(kind, startup.StartupError)
    ]
    named = {int(code): reason for code, reason in row.findall(of_serve) if reason}
    assert named == {kind.exit_code: kind.reason for kind in kinds}
    codes = [value for name, value in vars(failures).items() if name.isupper() and name[0] != "_"]
    assert sorted(int(code) for code, _ in row.findall(of_others)) == sorted(codes)


def test_the_table_of_limits_has_the_codes_values() -> None:
    text = (ROOT / "node/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)\.([A-Z_]+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert len(rows) > 20
    for module, name, shown in rows:
        value = getattr(importlib.import_module(module), name)
        assert parse_bytes(0)(shown.replace(",", "")) == value, f"{module}.{name} is {value}"


def test_what_comments_refer_to_is_in_the_pages() -> None:
    house = (ROOT / "node/README.md").read_text(encoding="utf-8").split("## House rules")[1]
    classes = (ROOT / "tests/README.md").read_text(encoding="utf-8").split("## Bug classes")[1]
    stories = [path.read_text() for path in (ROOT / "tests/scenarios").glob("*.txt")]
    for text in [source.text for source in all_sources()] + stories:
        for number in re.findall(r"house §(4\.\d+)", text):
            assert f"| §{number} |" in house, f"house §{number}"
        for number in re.findall(r"bug class (\d+)", text):
            assert f"| {number} |" in classes, f"bug class {number}"


# --- deploy/ --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_example_settings_are_good(number: int) -> None:
    loaded = config.load(environment={}, file=ROOT / f"deploy/node-{number}.toml")
    assert loaded.node_id == number
    assert loaded.peer_advertise == loaded.peers[number]
    assert loaded.metrics_listen


def test_the_unit_knows_the_exit_codes_that_a_restart_does_not_mend() -> None:
    unit = (ROOT / "deploy/quorumq.service").read_text()
    (listed,) = re.findall(r"^RestartPreventExitStatus=(.+)$", unit, re.MULTILINE)
    known = [kind.exit_code for kind in startup.StartupError.__subclasses__()]
    assert [int(code) for code in listed.split()] == sorted([startup.EXIT_CONFIG, *known])
    (timeout_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    grace_ms = next(s.default for s in config.SETTINGS if s.name == "grace_ms")
    assert int(timeout_s) * 1000 > 2 * grace_ms


def exposed() -> dict[str, str]:
    """Type of each metric, by the name of its samples."""
    nothing: dict[int, Any] = {}
    sources: Any = SimpleNamespace(
        node_id=1,
        counters=NodeCounters(),
        host=SimpleNamespace(
            peers=SimpleNamespace(nodes=(), is_alive=nothing.get, clock_ahead_ms=lambda: 0),
            groups=nothing,
        ),
        engine=SimpleNamespace(
            disk_free_bytes=lambda: 0,
            pressure=0.0,
            flush_running_ms=lambda: 0.0,
            flushes=SimpleNamespace(histogram=Histogram(FLUSH_BOUNDS_MS), mean_ms=0.0, max_ms=0.0),
            properties=lambda: nothing,
        ),
        catalog=None,
        partitions=lambda: (),
        is_ready=lambda: True,
        disk_full=lambda: False,
        inflight_bytes=lambda: 0,
        held_requests=lambda: 0,
    )
    suffixes = {"gauge": ("",), "counter": ("_total",), "histogram": ("_sum", "_count", "_bucket")}
    return {
        family.name + suffix: family.type
        for family in NodeCollector(sources).collect()
        for suffix in suffixes[family.type]
    }


def test_alerts_are_about_metrics_that_there_are() -> None:
    text = (ROOT / "deploy/alerts.yml").read_text()
    expressions = re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)
    assert len(expressions) == text.count("- alert:") > 10
    types = exposed()
    for expression in expressions:
        for name in re.findall(r"\bquorumq_\w+", expression):
            assert name in types, f"{name} in {expression}"
            is_rate = bool(re.search(rf"(rate|increase)\({name}[{{[]", expression))
            assert is_rate == (types[name] != "gauge"), f"{types[name]} {name} in {expression}"


# --- the rules themselves -------------------------------------------------------------------------


def test_the_rules_of_pages_can_fail() -> None:
    assert broken_links("[a](no-such-file) [b](#none)\n# Other", README) == [
        "no-such-file",
        "#none",
    ]
    assert (
        broken_links("[a](README.md) [b](#some-thing) [c](https://x)\n# Some thing", README) == []
    )
    assert wrong_call(["topic", "make"]) == "topic has no make"
    assert wrong_call(["read", "orders", "--until", "3"]) == "read has no --until"
    assert wrong_call(["--server", "a:1", "topic", "create", "x", "--partitions=3"]) == ""
    assert "quorumq x" not in shell_code("```python\nquorumq x\n```\n")
    assert _CALL.findall(
        shell_code("text `quorumq read x` and\n\n    seq 1 | quorumq produce y")
    ) == [
        "produce y",
        "read x",
    ]
