"""Every line of the Python standard library's source files, keyed by module."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

RECORDS_MIN = 300_000
_NOT_STANDARD = ("site-packages", "dist-packages", "__pycache__")


class SourceTooSmall(Exception):
    """This Python came without (most of) its source files."""


@dataclass(frozen=True, slots=True)
class Source:
    """`modules`: lines in order by module name, with their line ends, so that the lines of a
    module joined are its file."""

    root: Path
    modules: dict[bytes, list[bytes]]
    records: int
    bytes: int

    def content_hash(self) -> str:
        return content_hash(self.modules)


def content_hash(modules: dict[bytes, list[bytes]]) -> str:
    """SHA-256 over all modules in order of their names: name, number of lines, content."""
    whole = hashlib.sha256()
    for name in sorted(modules):
        lines = modules[name]
        whole.update(b"%s\n%d\n" % (name, len(lines)))
        whole.update(b"".join(lines))
    return whole.hexdigest()


def read_standard_library() -> Source:
    """Raises SourceTooSmall."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules: dict[bytes, list[bytes]] = {}
    records = size = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _NOT_STANDARD)
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            path = Path(folder) / name
            content = path.read_bytes()
            lines = content.split(b"\n")
            last = lines.pop()
            lines = [line + b"\n" for line in lines]
            if last:
                lines.append(last)
            if lines:
                modules[_module_name(path.relative_to(root))] = lines
                records += len(lines)
                size += len(content)
    if records < RECORDS_MIN:
        raise SourceTooSmall(
            f"{root} has {records} lines of Python, and {RECORDS_MIN} are needed: this Python came"
            " without the sources of its standard library"
        )
    return Source(root, modules, records, size)


def _module_name(path: Path) -> bytes:
    parts = path.with_suffix("").parts
    return ".".join(parts).encode()
