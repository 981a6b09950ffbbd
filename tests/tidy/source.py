"""The source tree as the tidy tests see it: files, modules, parsed code and imports."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Folder -> what its files' dotted names are relative to.
PACKAGES = {
    "cluster": ROOT,
    "node": ROOT,
    "clients/python/quorumq": ROOT / "clients/python",
    "bench": ROOT,
    "jepsen": ROOT,
}
GENERATED = ("clients/python/quorumq/v1", "cluster/v1", "node/v1")


@dataclass(frozen=True)
class Source:
    """One Python file. `path` is relative to the repository, `module` its dotted name."""

    path: str
    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def package(self) -> str:
        """What relative imports are relative to."""
        if self.path.endswith("__init__.py"):
            return self.module
        return self.module.rpartition(".")[0]

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """(line, dotted name) of everything imported anywhere in the file, under TYPE_CHECKING and
        in functions too. `from a import b` counts as `a.b`: whether b is a module or a name, the
        prefix decides."""
        found = []
        for item in ast.walk(self.tree):
            if isinstance(item, ast.Import):
                found += [(item.lineno, alias.name) for alias in item.names]
            elif isinstance(item, ast.ImportFrom):
                base = self._absolute(item)
                found += [(item.lineno, f"{base}.{alias.name}") for alias in item.names]
        return found

    def _absolute(self, item: ast.ImportFrom) -> str:
        if not item.level:
            return item.module or ""
        parts = self.package.split(".")
        base = parts[: len(parts) - item.level + 1]
        return ".".join([*base, item.module] if item.module else base)


def snippet(text: str, module: str = "cluster.snippet") -> Source:
    """A file that does not exist, for tests that a rule can fail."""
    return Source(path=module.replace(".", "/") + ".py", module=module, text=text)


@lru_cache(maxsize=1)
def product_sources() -> tuple[Source, ...]:
    """All hand-written files of the product, in order of path."""
    return tuple(
        source for folder, base in PACKAGES.items() for source in _folder(ROOT / folder, base)
    )


@lru_cache(maxsize=1)
def all_sources() -> tuple[Source, ...]:
    """The product's files and the tests."""
    return (*product_sources(), *_folder(ROOT / "tests", ROOT))


def _folder(folder: Path, base: Path) -> Iterator[Source]:
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(ROOT).as_posix()
        if relative.startswith(tuple(f"{name}/" for name in GENERATED)):
            continue
        parts = path.relative_to(base).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        yield Source(relative, ".".join(parts), path.read_text(encoding="utf-8"))


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of these or inside one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
