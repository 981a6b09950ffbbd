"""The page of the client library: its examples run and print what it says, its tables are whole."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import time
from pathlib import Path
from typing import Any

import quorumq
from quorumq import errors
from tests.client_bed.worlds import Bed, over_grpc

README = Path(__file__).resolve().parents[2] / "clients/python/README.md"
TEXT = README.read_text(encoding="utf-8")
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)


async def _run(source: str, names: dict[str, Any]) -> str:
    """What it prints."""
    source = source.replace("asyncio.run(main())", "await main()")
    code = compile(source, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result
    return printed.getvalue()


def test_the_examples_do_what_the_page_says() -> None:
    async def story(bed: Bed) -> None:
        names: dict[str, Any] = {}
        bed.cluster.now_ms = int(time.time() * 1000)
        text = TEXT
        for number in range(3):  # where the page's nodes are
            text = text.replace(f"localhost:900{number + 1}", bed.world.endpoint(number))
        examples = EXAMPLE.findall(text)
        assert len(examples) == text.count("```python") > 8
        for source, expected in examples:
            assert await _run(source, names) == expected, source
            names.setdefault("client", await bed.client())

    over_grpc(story)


def test_every_error_is_in_the_table_with_its_policy() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.+ \| .+) \|$", TEXT, re.MULTILINE))
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if kind.__module__ != errors.__name__ or name.startswith("_") or name == "QuorumqError":
            continue
        retriable = "yes" if kind.retriable else "no"
        known = "yes" if kind.outcome_known else "no"
        known = "it says" if kind is errors.DeliveryTimeout else known
        assert rows.pop(name) == f"{retriable} | {known}", name
    assert not rows


def test_every_option_is_in_a_table_with_its_default() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| ([^|]+) \|", TEXT[TEXT.index("## Tuning") :], re.MULTILINE)
    )
    for method in (quorumq.Client.producer, quorumq.Client.reader):
        for option in list(inspect.signature(method).parameters.values())[2:]:
            told = rows.pop(option.name)
            shown = {"all": "None", "no limit": "None"}.get(told, told)
            default = shown.replace("`", "").replace(",", "").replace('"', "")
            assert str(option.default).removesuffix(".0") == default, option.name
    assert not rows


def test_every_public_call_is_listed() -> None:
    listed = TEXT[TEXT.index("## All calls") :]
    for kind in (quorumq.Client, quorumq.Producer, quorumq.Reader, quorumq.Admin):
        for name in vars(kind):
            if not name.startswith("_"):
                assert re.search(rf"\.{name}\b", listed), f"{kind.__name__}.{name}"
