"""Exit codes of `quorumq`, and how an error becomes one line.

    0  done
    1  any other failure
    2  usage: a wrong option, argument or configuration
    3  not found: topic, partition, record, node, operation
    4  refused: the request or the present state forbids it
    5  unavailable: no answer in time, no leader, throttled; nothing was done, try again
    6  outcome unknown: it may or may not have been done

`quorumq serve` has codes of its own above 9, see node/startup.py. 130 = interrupted (Ctrl-C).
"""

from __future__ import annotations

import sys
from typing import NoReturn

OK = 0
OTHER = 1
USAGE = 2
NOT_FOUND = 3
REFUSED = 4
UNAVAILABLE = 5
OUTCOME_UNKNOWN = 6
INTERRUPTED = 130

_OF_REASON = {
    "NO_LEADER": UNAVAILABLE,
    "NODE_DRAINING": UNAVAILABLE,
    "DISK_FULL": UNAVAILABLE,
    "NOT_LEADER": UNAVAILABLE,
    "THROTTLED": UNAVAILABLE,
    "WINDOW_EXCEEDED": UNAVAILABLE,
    "UNAVAILABLE": UNAVAILABLE,
    "TIMEOUT": UNAVAILABLE,
    "OUTCOME_UNKNOWN": OUTCOME_UNKNOWN,
    "UNSPECIFIED": OUTCOME_UNKNOWN,
    "INTERNAL": OTHER,
    "CORRUPT": OTHER,
}


def exit_code_of(reason: str) -> int:
    """For a reason of errors.proto, without its REASON_."""
    if reason in _OF_REASON:
        return _OF_REASON[reason]
    return NOT_FOUND if reason.endswith("_NOT_FOUND") else REFUSED


class CommandFailed(Exception):
    """What a command raises when it knows what to say."""

    def __init__(self, reason: str, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.exit_code = exit_code_of(reason) if exit_code is None else exit_code


def tell(reason: str, message: str) -> None:
    """One line on standard error, whatever the message holds."""
    print(f"error: {reason}: {' '.join(message.split())}", file=sys.stderr)


def fail(reason: str, message: str, exit_code: int) -> NoReturn:
    tell(reason, message)
    sys.exit(exit_code)
