"""Bounds on what was taken in and is not answered yet (rule R19)."""

from __future__ import annotations

import asyncio


class Budget:
    """So many bytes and requests at most; one request always fits into an empty budget."""

    def __init__(self, *, bytes_max: int, requests_max: int = 1 << 30) -> None:
        self.bytes_max = bytes_max
        self.requests_max = requests_max
        self.bytes = 0
        self.requests = 0
        self._waiting: list[asyncio.Future[None]] = []

    def fits(self, size: int) -> bool:
        if not self.requests:
            return True
        return self.bytes + size <= self.bytes_max and self.requests < self.requests_max

    def take(self, size: int) -> None:
        self.bytes += size
        self.requests += 1

    def give(self, size: int) -> None:
        self.bytes -= size
        self.requests -= 1
        assert self.bytes >= 0, f"{size} bytes given back, {self.bytes} are left"
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def empty(self) -> None:
        """Returns when nothing is taken."""
        while self.requests:
            await self.given()

    async def given(self) -> None:
        """Returns after something was given back."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter
