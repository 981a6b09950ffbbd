"""The exit code of a node that had to stop is what a supervisor goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.interfaces import StorageError
from node import startup
from node.broker import NotAMember
from node.config import NodeConfig
from node.server import stopped_by


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (StorageError("fsync failed"), startup.StorageFailed.exit_code),
        (OSError(5, "Input/output error"), startup.StorageFailed.exit_code),
        (NotAMember("node 3 was removed"), startup.WrongDataFolder.exit_code),
        (AssertionError("a bug"), startup.EXIT_FAILED),
        (KeyError("another"), startup.EXIT_FAILED),
    ],
)
def test_only_a_failed_disk_keeps_a_node_from_being_started_again(
    error: BaseException, exit_code: int, tmp_path: Path
) -> None:
    config = NodeConfig(node_id=1, data_dir=tmp_path)
    assert stopped_by(error, config).exit_code == exit_code
    unit = (Path(__file__).parents[2] / "deploy/quorumq.service").read_text()
    prevented = unit.partition("RestartPreventExitStatus=")[2].splitlines()[0].split()
    assert (str(exit_code) in prevented) == (exit_code != startup.EXIT_FAILED)
