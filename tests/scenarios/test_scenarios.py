"""Every story of this folder ends as it was recorded. RECORD=1 records anew: read the difference
before committing it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scenarios.runner import Story, parse, record

STORIES = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=[p.stem for p in STORIES])
def test_story(path: Path) -> None:
    told = path.read_text(encoding="utf-8")
    happened = record(path)
    if os.environ.get("RECORD"):
        path.write_text(happened, encoding="utf-8")
        return
    assert happened == told


def test_there_are_stories() -> None:
    assert len(STORIES) >= 5


def test_a_changed_recording_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "changed.txt"
    path.write_text(STORIES[0].read_text(encoding="utf-8").replace("t=1", "t=2"), encoding="utf-8")
    assert record(path) != path.read_text(encoding="utf-8")


def test_a_story_says_what_it_shows() -> None:
    for path in STORIES:
        first = next(iter(parse(path.read_text(encoding="utf-8"))))
        assert first.comment, f"{path.name} begins without saying which rule it shows"
        assert first.comment[0].startswith("# "), f"{path.name} begins with an empty line"


def test_commands_are_refused_when_unknown() -> None:
    with pytest.raises(AttributeError):
        Story().run("no_such_command 1")
