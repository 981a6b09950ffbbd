"""Generated code is what proto/ says now."""

import subprocess
import sys
from pathlib import Path

from tests.tidy.source import GENERATED, ROOT


def stale(made: Path, present: Path) -> list[str]:
    """Files of the generated folders that differ between two trees, or are in one only."""
    differing = []
    for folder in GENERATED:
        names = {path.name for tree in (made, present) for path in (tree / folder).glob("*.py*")}
        for name in sorted(names):
            files = [tree / folder / name for tree in (made, present)]
            contents = [file.read_bytes() if file.is_file() else None for file in files]
            if contents[0] != contents[1]:
                differing.append(f"{folder}/{name}")
    return differing


def generate(into: Path) -> None:
    command = [
        "make",
        "-s",
        "--no-print-directory",
        "generate",
        f"OUT={into}",
        f"PY={sys.executable}",
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL)


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    generate(tmp_path)
    assert (tmp_path / "clients/python/quorumq/v1/messaging_pb2.py").is_file()
    assert stale(tmp_path, ROOT) == [], "run `make proto`"


def test_the_freshness_rule_can_fail(tmp_path: Path) -> None:
    made, present = tmp_path / "made", tmp_path / "present"
    for tree in (made, present):
        (tree / "node/v1").mkdir(parents=True)
        (tree / "node/v1/same_pb2.py").write_text("same")
        (tree / "node/v1/other_pb2.py").write_text(tree.name)
    (present / "node/v1/left_over_pb2.pyi").write_text("")
    assert stale(made, present) == ["node/v1/left_over_pb2.pyi", "node/v1/other_pb2.py"]
