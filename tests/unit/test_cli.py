"""The `quorumq` command without a cluster: usage, exit codes, one-line errors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from node.cli import failures, root
from node.cli.session import failed
from quorumq.errors import AlreadyExists, InvalidRequest, OutcomeUnknown, QuorumqError, Unreachable
from quorumq.v1 import errors_pb2

Output = pytest.CaptureFixture[str]


def run(capsys: Output, *arguments: str) -> tuple[int, str, str]:
    code = root.run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


# --- exit codes -----------------------------------------------------------------------------------

UNAVAILABLE = ("NO_LEADER", "NODE_DRAINING", "DISK_FULL", "NOT_LEADER", "THROTTLED")


def test_every_reason_has_its_exit_code() -> None:
    for value in errors_pb2.Reason.DESCRIPTOR.values:
        reason = value.name.removeprefix("REASON_")
        code = failures.exit_code_of(reason)
        if reason.endswith("_NOT_FOUND"):
            assert code == failures.NOT_FOUND, reason
        elif reason in (*UNAVAILABLE, "WINDOW_EXCEEDED"):
            assert code == failures.UNAVAILABLE, reason
        elif reason in ("OUTCOME_UNKNOWN", "UNSPECIFIED"):
            assert code == failures.OUTCOME_UNKNOWN, reason
        elif reason in ("INTERNAL", "CORRUPT"):
            assert code == failures.OTHER, reason
        else:
            assert code == failures.REFUSED, reason


def test_the_exit_codes_are_documented_where_a_person_looks(capsys: Output) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == failures.OK
    text = " ".join(out.split())
    assert "0 done, 2 usage, 3 not found, 4 refused, 5 unavailable or timed out, 6 outcome" in text
    for name in root.COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize(
    ("error", "changes", "code"),
    [
        (Unreachable("nobody"), True, failures.UNAVAILABLE),
        (OutcomeUnknown("lost"), True, failures.OUTCOME_UNKNOWN),
        (OutcomeUnknown("lost"), False, failures.UNAVAILABLE),
        (OutcomeUnknown("never sent", outcome_known=True), True, failures.UNAVAILABLE),
        (AlreadyExists("taken"), True, failures.REFUSED),
        (QuorumqError("?", reason="TOPIC_NOT_FOUND"), False, failures.NOT_FOUND),
    ],
)
def test_what_becomes_of_an_error_of_the_library(
    error: QuorumqError, changes: bool, code: int
) -> None:
    assert failed(error, changes=changes).exit_code == code


def test_what_is_wrong_is_said_once() -> None:
    error = InvalidRequest(
        "config.a: too small",
        reason="BAD_CONFIG",
        violations=[("config.a", "too small"), ("config.b", "too large")],
    )
    assert failed(error, changes=True).message == "config.a: too small (config.b: too large)"


# --- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["--output", "xml", "topic", "list"], "'xml' is not one of"),
        (["--timeout", "0", "topic", "list"], "0.0 is not in the range"),
        (["topic", "create"], "Missing argument 'NAME'"),
        (["topic", "create", "t", "--config", "nothing=3"], "there is no setting 'nothing'"),
        (["topic", "create", "t", "--config", "retention_ms"], "is not NAME=VALUE"),
        (["topic", "create", "t", "--config", "dedup_overflow=ask"], "EVICT_OLDEST, REFUSE"),
        (["topic", "create", "t", "--retention-bytes", "many"], "retention_bytes: 'many'"),
        (["topic", "alter", "t"], "nothing to change"),
        (["topic", "alter", "t", "--reset", "nothing"], "there is no setting 'nothing'"),
        (["record", "get", "t", "0", "-1"], "No such option"),
        (["produce", "t", "--header", "nameless"], "is not NAME=VALUE"),
        (["produce", "t", "--key-separator", ""], "--key-separator is empty"),
        (["produce", "t", "--rate", "0"], "0.0 is not in the range"),
        (["read", "t", "--from", "yesterday"], "'yesterday' is none of"),
        (["read", "t", "--from", "1969-01-01T00:00Z"], "is before 1970"),
        (["read", "t", "--count", "0"], "0 is not in the range"),
        (["cluster", "drain", "0"], "0 is not in the range"),
        (["cluster", "add-node", "4"], "Missing argument 'PEER_ENDPOINT'"),
        (["cluster", "transfer-leader"], "give TOPIC and PARTITION, or --controller"),
        (["cluster", "transfer-leader", "t"], "give TOPIC and PARTITION, or --controller"),
        (["cluster", "transfer-leader", "t", "0", "--controller"], "give TOPIC and PARTITION"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(
    capsys: Output, arguments: list[str], said: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == failures.USAGE
    assert out == ""
    assert err.startswith("error: USAGE: ")
    assert said in err
    assert err.count("\n") == 1


def test_deleting_a_topic_without_a_terminal_must_be_meant(capsys: Output) -> None:
    code, _, err = run(capsys, "topic", "delete", "t")
    assert code == failures.USAGE
    assert "needs --yes" in err


# --- nobody there ---------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> int:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize(
    "arguments", [["cluster", "status"], ["topic", "list"], ["topic", "delete", "t", "--yes"]]
)
def test_without_a_cluster_the_error_is_one_line_and_code_5(
    capsys: Output, closed_port: int, arguments: list[str]
) -> None:
    server = f"127.0.0.1:{closed_port}"
    code, out, err = run(capsys, "--server", server, "--timeout", "0.3", *arguments)
    assert (code, out) == (failures.UNAVAILABLE, "")
    assert err.startswith("error: UNAVAILABLE: ")
    assert server in err
    assert err.count("\n") == 1


def test_servers_come_from_the_environment(closed_port: int) -> None:
    server = f"127.0.0.1:{closed_port}"
    ended = subprocess.run(
        [sys.executable, "-m", "node", "--timeout", "0.3", "topic", "list"],
        env={**os.environ, "QUORUMQ_SERVERS": server},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == failures.UNAVAILABLE
    assert server in ended.stderr


def test_an_endpoint_that_is_none_is_a_usage_error(capsys: Output) -> None:
    code, _, err = run(capsys, "--server", ",", "topic", "list")
    assert code == failures.USAGE
    assert err == "error: USAGE: connect needs at least one host:port\n"
