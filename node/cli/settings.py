"""What stands before the command's name and holds for all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """`output` is table, json or jsonl."""

    servers: str
    output: str
    timeout_s: float
