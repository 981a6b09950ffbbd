"""Disks: how much is used, and small ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_BLOCK_BYTES = 512  # what st_blocks counts


def disk_use(folder: Path) -> int:
    """Bytes, as du tells them. Files may go while it looks."""
    used = 0
    for top, _, names in os.walk(folder):
        for name in names:
            try:
                used += os.lstat(os.path.join(top, name)).st_blocks * _BLOCK_BYTES
            except FileNotFoundError:
                continue
    return used


@contextmanager
def small_disk(path: Path, *, megabytes: int) -> Iterator[Path]:
    """A file system of that size at `path`; the test is skipped where this user may make none."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "quorumq-test", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)
