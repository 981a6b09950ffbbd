"""Functions fit a screen, files have one job, tasks have owners, order is never a set's."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from tests.tidy.rooms import room_of
from tests.tidy.source import ROOT, Source, all_sources, product_sources, snippet

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500
VAGUE_NAMES = re.compile(r"(utils?|helpers?|managers?|commons?|misc)")
UNFINISHED = re.compile(r"#.*\b(TODO|FIXME|XXX)\b")

# The client library knows nothing of cluster/, so it has a task group of its own.
TASK_OWNERS = ("cluster/tasks.py", "clients/python/quorumq/tasks.py")

SET_METHODS = ("union", "intersection", "difference", "symmetric_difference")
ORDER_KEEPING = ("list", "tuple", "enumerate", "reversed", "iter", "zip", "map", "filter")


def long_functions(source: Source) -> Iterator[str]:
    for item in ast.walk(source.tree):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (item.end_lineno or item.lineno) - item.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{source.path}:{item.lineno}: {item.name} has {lines} lines"


def long_file(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > FILE_LINES_MAX:
        yield f"{source.path}: {lines} lines"


def vague_names(source: Source) -> Iterator[str]:
    for part in source.module.split("."):
        if VAGUE_NAMES.fullmatch(part):
            yield f"{source.path}: a file or folder called {part} has no job"


def bare_excepts(source: Source) -> Iterator[str]:
    for item in ast.walk(source.tree):
        if isinstance(item, ast.ExceptHandler) and item.type is None:
            yield f"{source.path}:{item.lineno}: bare except"


def ownerless_tasks(source: Source) -> Iterator[str]:
    if source.path in TASK_OWNERS:
        return
    for item in ast.walk(source.tree):
        if isinstance(item, ast.Call) and _starts_task(item.func):
            yield f"{source.path}:{item.lineno}: a task without an owner"
        if isinstance(item, ast.ImportFrom) and item.module == "asyncio":
            for alias in item.names:
                if alias.name in ("create_task", "ensure_future"):
                    yield f"{source.path}:{item.lineno}: imports {alias.name}"


def _starts_task(function: ast.expr) -> bool:
    """asyncio.create_task, loop.create_task and ensure_future; not create_task of a task group."""
    if not isinstance(function, ast.Attribute):
        return False
    if function.attr not in ("create_task", "ensure_future"):
        return False
    owner = ast.unparse(function.value)
    return owner == "asyncio" or bool(re.search(r"loop(\(\))?$", owner))


def set_iterations(source: Source) -> Iterator[str]:
    for item in ast.walk(source.tree):
        if isinstance(item, ast.For | ast.AsyncFor | ast.comprehension) and _is_set(item.iter):
            yield f"{source.path}:{item.iter.lineno}: iterates over a set: sort it, or use a dict"


def _is_set(value: ast.expr) -> bool:
    """Whether an expression is, on its face, a set or something in the order of one."""
    if isinstance(value, ast.Set | ast.SetComp):
        return True
    if isinstance(value, ast.BinOp):
        is_set_operator = isinstance(value.op, ast.BitAnd | ast.BitOr | ast.Sub | ast.BitXor)
        return is_set_operator and (_is_set(value.left) or _is_set(value.right))
    if not isinstance(value, ast.Call):
        return False
    if isinstance(value.func, ast.Name):
        if value.func.id in ("set", "frozenset"):
            return True
        return value.func.id in ORDER_KEEPING and any(_is_set(a) for a in value.args)
    return (
        isinstance(value.func, ast.Attribute)
        and value.func.attr in SET_METHODS
        and _is_set(value.func.value)
    )


def unfinished(source: Source) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT and UNFINISHED.search(token.string):
            yield f"{source.path}:{token.start[0]}: {token.string}"


def test_functions_fit_a_screen() -> None:
    assert [long for source in all_sources() for long in long_functions(source)] == []


def test_files_have_one_job() -> None:
    assert [long for source in all_sources() for long in long_file(source)] == []


def test_names_say_what_a_file_is_for() -> None:
    assert [name for source in all_sources() for name in vague_names(source)] == []


def test_no_bare_except() -> None:
    assert [bare for source in all_sources() for bare in bare_excepts(source)] == []


def test_every_task_has_an_owner() -> None:
    assert [task for source in product_sources() for task in ownerless_tasks(source)] == []


def test_pure_rooms_never_iterate_over_a_set() -> None:
    pure = [s for s in product_sources() if (room := room_of(s.module)) and room.pure]
    assert pure
    assert [found for source in pure for found in set_iterations(source)] == []


def test_nothing_is_left_for_later_in_a_comment() -> None:
    assert [left for source in all_sources() for left in unfinished(source)] == []


def test_every_package_says_what_it_is() -> None:
    packages = [s for s in product_sources() if s.path.endswith("__init__.py")]
    assert [s.path for s in packages if not ast.get_docstring(s.tree)] == []


def test_the_tree_is_seen() -> None:
    seen = [source.path for source in product_sources()]
    for path in ("cluster/__init__.py", "node/__init__.py", "clients/python/quorumq/__init__.py"):
        assert path in seen
        assert (ROOT / path).is_file()


def test_the_length_rules_can_fail() -> None:
    body = "    x = 1\n" * 60
    assert len(list(long_functions(snippet(f"def f():\n{body}")))) == 1
    assert len(list(long_functions(snippet(f"class C:\n  async def f():\n{body}")))) == 1
    assert list(long_functions(snippet("def f():\n" + "    x = 1\n" * 59))) == []
    assert len(list(long_file(snippet("x = 1\n" * 501)))) == 1
    assert list(long_file(snippet("x = 1\n" * 500))) == []


def test_the_name_rule_can_fail() -> None:
    for module in ("node.utils", "node.common.log", "node.session.manager", "bench.helper"):
        assert len(list(vague_names(snippet("", module)))) == 1
    assert list(vague_names(snippet("", "node.partition.commands"))) == []


def test_the_except_and_task_rules_can_fail() -> None:
    assert len(list(bare_excepts(snippet("try:\n  f()\nexcept:\n  pass")))) == 1
    for text in (
        "import asyncio\nt = asyncio.create_task(f())",
        "import asyncio\nasyncio.ensure_future(f())",
        "import asyncio\nasyncio.get_running_loop().create_task(f())",
        "self._loop.create_task(f())",
        "from asyncio import create_task",
    ):
        assert len(list(ownerless_tasks(snippet(text)))) == 1, text
    assert list(ownerless_tasks(snippet("async def g(tasks):\n  tasks.create_task(f())"))) == []
    assert list(ownerless_tasks(snippet("asyncio.create_task(f())", "cluster.tasks"))) == []


def test_the_set_rule_can_fail() -> None:
    for text in (
        "for x in {1, 2}: pass",
        "for x in set(a): pass",
        "for x in set(a) - b: pass",
        "for x in a | {1}: pass",
        "for i, x in enumerate(frozenset(a)): pass",
        "y = [x for x in {z for z in a}]",
        "y = {x: 1 for x in set(a).union(b)}",
        "for x in list(set(a)): pass",
    ):
        assert len(list(set_iterations(snippet(text)))) >= 1, text
    for text in ("for x in sorted(set(a)): pass", "for x in a - b: pass", "for x in {1: 2}: pass"):
        assert list(set_iterations(snippet(text))) == [], text


def test_the_comment_rule_can_fail() -> None:
    for word in ("TODO", "FIXME", "XXX"):
        assert len(list(unfinished(snippet(f"x = 1  # {word}: later\n")))) == 1
    assert list(unfinished(snippet("x = '# TODO'\n"))) == []
