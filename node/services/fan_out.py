"""The same question to many partitions, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from cluster.tasks import TaskGroup
from node.services.errors import Refused

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE_MAX = 32


async def ask_all(items: Sequence[T], ask: Callable[[T], Awaitable[R]]) -> list[R | Refused]:
    """One answer an item, in order. A refusal is an answer too; other errors are raised."""
    answers: list[R | Refused | None] = [None] * len(items)
    numbered = iter(enumerate(items))

    async def work(numbered: Iterator[tuple[int, T]]) -> None:
        for number, item in numbered:  # shared by all workers
            try:
                answers[number] = await ask(item)
            except Refused as refused:
                answers[number] = refused

    async with TaskGroup("ask-all") as tasks:
        for number in range(min(AT_ONCE_MAX, len(items))):
            tasks.start(work(numbered), name=str(number))
    return [answer for answer in answers if answer is not None]
