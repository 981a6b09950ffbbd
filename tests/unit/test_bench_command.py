"""`python -m bench`: what it takes, and profiles read from samples."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from bench.__main__ import main
from bench.profiler import Row, shown, top_functions
from bench.targets import SCENARIOS


def test_help_names_every_scenario() -> None:
    told = CliRunner().invoke(main, ["--help"])
    assert told.exit_code == 0
    assert [name for name in [*SCENARIOS, "all", "profile"] if name not in told.output] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-scenario"],
        ["latency", "--seconds", "0"],
        ["restart", "--scale", "2"],
        ["profile", "failover"],  # its leaders are killed
        ["profile"],
    ],
)
def test_wrong_usage_has_its_own_exit_code(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_functions_own_what_is_on_top_of_the_stack_and_share_what_is_below() -> None:
    rows = top_functions(
        [
            "run (a.py:1);send (b.py:10) 30",
            "run (a.py:2);send (b.py:11);join (b.py:40) 50",
            "run (a.py:2) 20",
        ]
    )
    assert rows == [
        Row(50.0, 50.0, "join (b.py)"),
        Row(30.0, 80.0, "send (b.py)"),
        Row(20.0, 100.0, "run (a.py)"),
    ]


def test_a_recursive_function_is_counted_once_a_stack() -> None:
    assert top_functions(["walk (a.py:1);walk (a.py:2);walk (a.py:2) 4"]) == [
        Row(100.0, 100.0, "walk (a.py)")
    ]


def test_frames_without_a_place_and_names_with_blanks_are_kept() -> None:
    rows = top_functions(["<module> (a b.py:1);epoll_wait 3"])
    assert [row.function for row in rows] == ["epoll_wait", "<module> (a b.py)"]


def test_no_samples_are_no_rows() -> None:
    assert shown(top_functions([])) == " own % total %  function\n"
