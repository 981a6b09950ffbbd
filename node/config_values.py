"""How one value of the configuration is written, in a flag, a variable or the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

_SIZE = re.compile(r"([0-9]+) ?(B|KiB|MiB|GiB|TiB)?")
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_NUMBER_MAX = (1 << 53) - 1
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._*-]*)")


class ValueRefused(Exception):
    """What is wrong with a value, without the setting's name."""


def parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueRefused(f"{value!r} is not text")
    if any(not c.isprintable() for c in value):
        raise ValueRefused(f"{value!r} has unprintable characters")
    return value


def parse_path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    text = parse_text(value)
    if not text:
        raise ValueRefused("is empty")
    return Path(text).expanduser()


def parse_number(least: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        return _bounded(_integer(value), least)

    return parse


def parse_bytes(least: int) -> Callable[[object], int]:
    """A number of bytes, or a number with B, KiB, MiB, GiB or TiB."""

    def parse(value: object) -> int:
        if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            return _bounded(int(match[1]) * _UNITS[match[2]], least)
        if isinstance(value, str):
            raise ValueRefused(f"{value!r} is not a size such as 65536, 64KiB or 1GiB")
        return _bounded(_integer(value), least)

    return parse


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value.strip()):
        return int(value)
    raise ValueRefused(f"{value!r} is not a whole number")


def _bounded(number: int, least: int) -> int:
    if number < least:
        raise ValueRefused(f"{number} is below {least}")
    if number > _NUMBER_MAX:
        raise ValueRefused(f"{number} is above {_NUMBER_MAX}")
    return number


def parse_endpoint(value: object) -> str:
    """`host:port`, `[v6]:port`; empty stays empty."""
    text = parse_text(value).strip()
    if not text:
        return ""
    host, colon, port = text.rpartition(":")
    if not colon or not _HOST.fullmatch(host):
        raise ValueRefused(f"{text!r} is not host:port")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise ValueRefused(f"{text!r} has no port between 1 and 65535")
    return f"{host}:{int(port)}"


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def parse_peers(value: object) -> dict[int, str]:
    """`1=host:port,2=host:port`, or a table of the file or a mapping. Ids rise in the result."""
    pairs: list[tuple[object, object]]
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip()]
        pairs = [(part.partition("=")[0].strip(), part.partition("=")[2]) for part in parts]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise ValueRefused(f"{value!r} is not of the form 1=host:port,2=host:port")
    peers: dict[int, str] = {}
    for key, endpoint in pairs:
        node_id = _bounded(_integer(key), 1)
        if node_id in peers:
            raise ValueRefused(f"node {node_id} is there twice")
        peers[node_id] = parse_endpoint(endpoint)
        if not peers[node_id]:
            raise ValueRefused(f"node {node_id} has no endpoint")
    if not peers:
        raise ValueRefused("is empty")
    return dict(sorted(peers.items()))


def show(value: object, name: str) -> str:
    """A default as people write it: sizes with their unit."""
    if isinstance(value, int) and "bytes" in name:
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if value and value % _UNITS[unit] == 0:
                return f"{value // _UNITS[unit]} {unit}"
    return str(value)
