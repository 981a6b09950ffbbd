"""The README's five minutes, run as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from node.local_cluster import LocalCluster
from quorumq import connect

README = Path(__file__).resolve().parents[2] / "README.md"
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TOLD = re.compile(r"# (\d+)$")  # what a command is said to print
_TIMEOUT_S = 60


def output(cluster: LocalCluster, *command: str) -> str:
    """Of a command that must succeed, with this environment's `quorumq`."""
    environment = {
        **os.environ,
        "QUORUMQ_SERVERS": cluster.servers,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
    )
    assert ran.returncode == 0, f"{command}: {ran.stderr}"
    return ran.stdout


def run_blocks(text: str, cluster: LocalCluster) -> Iterator[str]:
    """Each command and program of the text; programs twice, as the README says. Gives what the
    last run of each printed."""
    for language, code in _BLOCK.findall(text):
        if language == "python":
            output(cluster, sys.executable, "-c", code)
            yield output(cluster, sys.executable, "-c", code)
            continue
        for line in code.splitlines():
            printed = output(cluster, "bash", "-o", "pipefail", "-c", line)
            if told := _TOLD.search(line):
                assert printed.split() == [told[1]], line
            yield printed


async def leader_of(cluster: LocalCluster, topic: str, partition: int) -> int:
    async with await connect(cluster.servers) as client:
        described = await client.admin.describe_topic(topic)
        return int(described.partitions[partition].leader.node_id)


async def test_the_five_minutes_of_the_readme() -> None:
    section = README.read_text().split("## Five minutes")[1].split("\n## ")[0]
    before, after = section.split("**Kill a leader.**")
    async with LocalCluster() as cluster:
        printed = list(run_blocks(before, cluster))
        assert len(printed[3].splitlines()) == 3
        cluster.kill(await leader_of(cluster, "orders", 2))
        printed = list(run_blocks(after, cluster))
        assert len(printed) == 6
        assert printed[3].endswith("\n5 b'payment 5'\n")
