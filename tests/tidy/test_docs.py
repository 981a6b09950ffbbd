"""The pages say what is so: links lead somewhere, the tables are the code's, examples load."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from node import config
from node.cli.root import cli
from tests.tidy.source import ROOT

PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
_LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")
_COMMAND = re.compile(
    r"(?<!from )(?<!import )\bquorumq(?: --server \S+)? ([a-z]+)(?: ([a-z][a-z-]+))?"
)


def test_links_lead_to_files() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in _LINK.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_the_configuration_table_is_the_codes() -> None:
    page = (ROOT / "README.md").read_text()
    table = page.split("<!-- configuration: begin (python -m node.config) -->\n")[1]
    assert table.split("<!-- configuration: end -->")[0] == config.table(), (
        "README.md: put the output of `python -m node.config` between the markers"
    )


def test_the_commands_of_the_pages_exist() -> None:
    context = click.Context(cli)
    unknown = []
    for page in PAGES:
        for name, second in _COMMAND.findall(_code(page.read_text())):
            command = cli.get_command(context, name)
            if command is None:
                unknown.append(f"{page.relative_to(ROOT)}: {name}")
            elif (
                isinstance(command, click.Group)
                and second
                and (command.get_command(context, second) is None)
            ):
                unknown.append(f"{page.relative_to(ROOT)}: {name} {second}")
    assert unknown == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_example_settings_are_good(number: int) -> None:
    loaded = config.load(environment={}, file=ROOT / f"deploy/node-{number}.toml")
    assert loaded.node_id == number
    assert loaded.peer_advertise == loaded.peers[number]


def test_alerts_name_metrics_that_there_are() -> None:
    source = (ROOT / "node/exposition.py").read_text()
    names = set(re.findall(r"quorumq_([a-z_]+)", (ROOT / "deploy/alerts.yml").read_text()))
    names = {name.removesuffix("_total") for name in names}
    assert names
    assert [name for name in sorted(names) if f'"{name}"' not in source] == []


def _code(text: str) -> str:
    """Fenced and indented blocks, and spans."""
    return "\n".join(re.findall(r"```.*?```|^    .*$|`[^`\n]+`", text, re.DOTALL | re.MULTILINE))


def test_pages_are_found() -> None:
    assert Path("README.md") in [page.relative_to(ROOT) for page in PAGES]
