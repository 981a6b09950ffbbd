"""Figures of the benchmarks: what is said of latencies, what is asked, how a run is judged."""

from __future__ import annotations

import importlib
import inspect
import os

import pytest

from bench.latencies import Latencies, percentile
from bench.lines import short, table
from bench.targets import SCENARIOS, judge
from bench.usage import CLIENT, UsageMeter, machine_cpu_s


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [(1, 50, 1), (1, 99, 1), (2, 50, 1), (3, 50, 2), (100, 99, 99), (101, 99, 100), (4, 100, 4)],
)
def test_a_percentile_is_a_value_that_was_measured(
    count: int, percent: float, expected: int
) -> None:
    assert percentile(range(1, count + 1), percent) == expected


def test_latencies_are_told_in_milliseconds_and_not_in_the_order_of_arrival() -> None:
    latencies = Latencies()
    for seconds in (0.003, 0.001, 0.002):
        latencies.add(seconds)
    assert latencies.figures() == {"p50_ms": 2.0, "p99_ms": 3.0, "max_ms": 3.0}
    latencies.clear()
    assert (len(latencies), latencies.figures()) == (0, {})


def test_every_scenario_is_there_and_has_a_target() -> None:
    for name, scenario in SCENARIOS.items():
        module = importlib.import_module(f"bench.scenarios.{name.replace('-', '_')}")
        assert inspect.iscoroutinefunction(module.run), name
        assert scenario.targets, name


@pytest.mark.parametrize(
    ("figures", "failures", "verdict"),
    [
        ({"p50_ms": 1.5, "p99_ms": 6.0}, 0, True),
        ({"p50_ms": 1.5, "p99_ms": 6.1}, 0, False),
        ({"p50_ms": 0.5, "p99_ms": 1.0}, 1, False),
        ({"p50_ms": 0.5}, 0, None),
    ],
)
def test_a_run_is_ok_when_every_limit_is_kept_and_nothing_failed(
    figures: dict[str, float], failures: int, verdict: bool | None
) -> None:
    assert judge("latency", figures, failures) is verdict


def test_a_rate_has_to_be_reached() -> None:
    assert judge("produce", {"records_per_s": 100_000}, 0) is True
    assert judge("produce", {"records_per_s": 99_999}, 0) is False


def test_one_line_has_the_figures_that_are_asked_for_and_the_verdict() -> None:
    line = {
        "scenario": "produce",
        "records_per_s": 123_456,
        "p50_ms": 5.0,
        "failures": 0,
        "target": {"records_per_s": ">= 100000"},
        "ok": True,
    }
    assert short(line) == "produce     ok     records_per_s 123,456 (>= 100000)"
    worse = {**line, "failures": 2, "ok": False}
    assert short(worse) == "produce     BELOW  records_per_s 123,456 (>= 100000)  2 failures"
    noisy = {**line, "machine": {"others_cpu_percent": 55.0}}
    assert short(noisy).endswith("(>= 100000)  beside 55 % of others")


def test_the_table_has_a_row_for_each_figure_and_for_each_process() -> None:
    rows = table({"ok": None, "processes": {"client": {"cpu_percent": 2.5, "rss_mb": 1000}}})
    assert rows.splitlines() == [
        "ok                None",
        "processes client  cpu_percent 2.5, rss_mb 1,000",
    ]


def test_a_meter_tells_what_the_client_and_the_nodes_used() -> None:
    meter = UsageMeter({1: os.getpid()})
    meter.begin()
    usages, others_cpu_percent = meter.end()
    assert list(usages) == ["node-1", CLIENT]
    assert usages["node-1"].rss_mb == usages[CLIENT].rss_mb > 1
    assert usages[CLIENT].cpu_percent >= 0
    assert others_cpu_percent >= 0
    assert machine_cpu_s() > 0


def test_a_process_that_is_gone_uses_nothing() -> None:
    meter = UsageMeter({1: 1 << 30})  # no process has such an id
    meter.begin()
    usages, _ = meter.end()
    assert (usages["node-1"].cpu_percent, usages["node-1"].rss_mb) == (0.0, 0.0)
