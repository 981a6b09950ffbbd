"""Addresses of hosts, asked for once at a time: a name whose resolver takes long to answer must not
take all of the event loop's few resolver threads, and hold up the names of healthy hosts."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from cluster.interfaces import PeerError
from cluster.tasks import TaskGroup


class Lookups:
    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._under_way: dict[str, asyncio.Task[list[str]]] = {}

    async def addresses(self, host: str) -> list[str]:
        """In the resolver's order, at least one. Raises PeerError UNREACHABLE."""
        if _is_address(host):
            return [host]
        task = self._under_way.get(host)
        if task is None:
            try:
                task = self._tasks.start(self._ask(host), name=f"look up {host}")
            except RuntimeError as error:  # the owner is closing
                raise PeerError("UNREACHABLE", str(error)) from None
            self._under_way[host] = task
        await asyncio.wait([task])  # goes on for others when this one is cancelled
        found = [] if task.cancelled() else task.result()
        if not found:
            raise PeerError("UNREACHABLE", f"{host} has no address")
        return found

    async def _ask(self, host: str) -> list[str]:
        try:
            loop = asyncio.get_running_loop()
            infos = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return []
        finally:
            del self._under_way[host]
        return list(dict.fromkeys(str(info[4][0]) for info in infos))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
