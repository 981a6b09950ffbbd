"""How the `quorumq` command reads lines, words times, and shows what it found."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import click
import pytest

from node.cli import failures
from node.cli.cluster import problems_of
from node.cli.lines import LINE_BYTES_MAX, lines
from node.cli.output import Output, as_dict, enum_name, shown, shown_bytes, table
from node.cli.produce import Wanted
from node.cli.read import Printer, parse_start
from quorumq import Header, Record, Time
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import errors_pb2

# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"\n\na", [b"", b"", b"a"]),
        (b"a\r\nb\r", [b"a", b"b"]),
        (b"\xff\x00\n", [b"\xff\x00"]),
        (b"x" * 200_000 + b"\ny", [b"x" * 200_000, b"y"]),
    ],
)
async def test_the_lines_of_a_file(tmp_path: Path, content: bytes, expected: list[bytes]) -> None:
    path = tmp_path / "lines"
    path.write_bytes(content)
    assert [line async for line in lines(str(path))] == expected


async def test_a_line_that_no_topic_takes_is_refused_before_it_fills_the_memory(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x" * (LINE_BYTES_MAX + 1))
    with pytest.raises(failures.CommandFailed) as caught:
        [line async for line in lines(str(path))]
    assert caught.value.reason == "RECORD_TOO_LARGE"


async def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(failures.CommandFailed) as caught:
            [line async for line in lines(str(path))]
        assert caught.value.exit_code == failures.USAGE
        assert str(path) in caught.value.message


def test_keys_of_lines() -> None:
    def wanted(key: bytes | None, separator: bytes | None) -> Wanted:
        return Wanted(
            key=key,
            key_separator=separator,
            headers=[],
            partition=None,
            rate=None,
            compression=None,
            shows_progress=False,
        )

    assert wanted(None, None).keyed(b"a:b") == (None, b"a:b")
    assert wanted(b"k", None).keyed(b"a:b") == (b"k", b"a:b")
    assert wanted(None, b":").keyed(b"a:b:c") == (b"a", b"b:c")
    assert wanted(b"k", b":").keyed(b"plain") == (b"k", b"plain")
    assert wanted(None, b"::").keyed(b"::v") == (b"", b"v")


# --- starts ---------------------------------------------------------------------------------------


def test_where_reading_begins() -> None:
    context, option = click.Context(click.Command("read")), click.Option(["--from"])

    def start(text: str) -> object:
        return parse_start(context, option, text)

    assert start("earliest") == "earliest"
    assert start("latest") == "latest"
    assert start("42") == 42
    assert start("2026-01-31T12:00:00.250Z") == Time(1_769_860_800_250)
    assert start("2026-01-31T13:00+01:00") == Time(1_769_860_800_000)
    local = datetime(2026, 1, 31).timestamp()
    assert start("2026-01-31") == Time(int(local * 1000))
    for wrong in ("", "now", "-1", "31.1.2026", "2026-13-01"):
        with pytest.raises(click.BadParameter):
            start(wrong)


# --- records --------------------------------------------------------------------------------------


def record(offset: int, key: bytes | None, value: bytes | None) -> Record:
    headers = (Header("kind", "test"),)
    return Record("default/t", 3, offset, key, value, headers, 1_000, 2_000)


RECORDS = [
    record(0, b"k", b"one"),
    record(1, None, None),
    record(2, b"\xff", b"two\tlines\nand a \xc3\xbc"),
]


def printed(capfdbinary: pytest.CaptureFixture[bytes], form: str, *batches: list[Record]) -> bytes:
    printer = Printer(form)
    for batch in batches:
        printer.print(batch)
    printer.end()
    out, _ = capfdbinary.readouterr()
    return out


def test_a_line_a_record(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert printed(capfdbinary, "table", RECORDS[:2], RECORDS[2:]).decode().splitlines() == [
        "3:0\tk\tone",
        "3:1\t-\t-",
        '3:2\tbase64:/w==\t"two\\tlines\\nand a ü"',
    ]


def test_nothing_but_values(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert printed(capfdbinary, "value", RECORDS[:2]) == b"one\n\n"


def test_records_as_json(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    document = json.loads(printed(capfdbinary, "json", RECORDS[:1], RECORDS[1:]))
    assert document[0] == {
        "topic": "default/t",
        "partition": 3,
        "offset": 0,
        "key": "k",
        "value": "one",
        "headers": [{"name": "kind", "value": "test"}],
        "timestamp_ms": 1_000,
        "append_time_ms": 2_000,
    }
    assert document[1]["value"] is None
    assert document[2]["key_base64"] == "/w=="
    lines = printed(capfdbinary, "jsonl", RECORDS).splitlines()
    assert [json.loads(line) for line in lines] == document
    assert json.loads(printed(capfdbinary, "json")) == []
    assert printed(capfdbinary, "jsonl") == b""


# --- answers --------------------------------------------------------------------------------------


def test_messages_as_json() -> None:
    node = pb.NodeInfo(node_id=3, state=pb.NODE_STATE_DRAINING, disk_full=True)
    shown_node = as_dict(node)
    assert shown_node["state"] == "DRAINING"
    assert shown_node["zone"] == "", "a field without presence is always there"
    assert shown_node["disk_full"] is True
    assert "retention_ms" not in as_dict(pb.TopicConfig(partitions=3))
    error = errors_pb2.Error(reason=errors_pb2.REASON_QUOTA, metadata={"limit": "topics"})
    assert as_dict(error)["metadata"] == {"limit": "topics"}
    assert as_dict(error)["reason"] == "QUOTA"
    assert enum_name(pb.NodeState.DESCRIPTOR, 77) == "77"


def test_three_forms_of_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"name": "a", "count": 1_000}, {"name": "b", "count": None}]
    columns = [("topic", "name"), ("records", "count")]
    Output("json").items(items, columns)
    assert json.loads(capsys.readouterr().out) == items
    Output("jsonl").items(items, columns)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == items
    Output("table").items(items, columns)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert rows[0] == ["topic", "records"]
    assert rows[2:] == [["a", "1,000"], ["b", "-"]]


def test_a_table_in_a_pipe_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    table([["x" * 200, "1"]], ["long", "number"])
    assert "x" * 200 in capsys.readouterr().out


def test_how_values_are_shown() -> None:
    assert shown(None) == shown("") == shown([]) == "-"
    assert (shown(True), shown(1234567), shown([1, 2])) == ("yes", "1,234,567", "1, 2")
    assert [shown_bytes(n) for n in (0, 1023, 1024, 3 << 29)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 GiB",
    ]


# --- health ---------------------------------------------------------------------------------------


def healthy() -> pb.GetClusterResponse:
    return pb.GetClusterResponse(
        controller=errors_pb2.Leader(node_id=1),
        nodes=[pb.NodeInfo(node_id=n, state=pb.NODE_STATE_ACTIVE) for n in (1, 2, 3)],
        counts=pb.ClusterCounts(topics=1, partitions=3),
    )


def test_what_is_not_healthy() -> None:
    assert problems_of(healthy()) == []
    cluster = healthy()
    cluster.ClearField("controller")
    cluster.nodes[0].state = pb.NODE_STATE_DEAD
    cluster.nodes[1].disk_full = True
    cluster.nodes[1].disk_free_bytes = 1 << 20
    cluster.nodes[2].clock_skew_ms = -501
    cluster.counts.leaderless_partitions = 2
    cluster.counts.under_replicated_partitions = 3
    assert problems_of(cluster) == [
        "the controller has no leader",
        "node 1 is dead",
        "node 2 takes no appends: 1.0 MiB of disk room are left",
        "node 3 has a clock that is -501 ms off",
        "2 partitions have no leader",
        "3 partitions lack live replicas",
    ]


def test_a_node_that_is_drained_on_purpose_is_healthy() -> None:
    cluster = healthy()
    cluster.nodes[2].state = pb.NODE_STATE_DRAINED
    assert problems_of(cluster) == []
