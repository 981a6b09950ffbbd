"""What a service sees of a call, real or in process, and how long it may take."""

from __future__ import annotations

import asyncio
from typing import Protocol

# Before the caller's own deadline: then it reads the node's answer and not its own timeout.
MARGIN_S = 0.05
HOLD_S = 10.0  # without a deadline


class Call(Protocol):
    """The part of grpc.aio.ServicerContext that services need; quorumq.in_process has it too."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None = it has none."""

    def peer(self) -> str: ...


class Deadline:
    """When a request has to be answered, in the loop's time."""

    __slots__ = ("at",)

    def __init__(self, within_s: float) -> None:
        self.at = asyncio.get_running_loop().time() + within_s

    @classmethod
    def of(cls, call: Call) -> Deadline:
        """Of the caller, with a margin to answer in; HOLD_S if it has none."""
        remaining = call.time_remaining()
        return cls(HOLD_S if remaining is None else max(0.0, remaining - MARGIN_S))

    def left_s(self) -> float:
        return max(0.0, self.at - asyncio.get_running_loop().time())
