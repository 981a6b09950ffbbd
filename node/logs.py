"""Logs: one line an event, JSON for machines or text for people, on standard error.

Everything goes one way: cluster/ and libraries log through the standard library, which is routed
through the same processors. Every line has the time, the level, the logger and this node's id.
Neither bodies nor secrets are written: bytes are replaced by their length, and what is named like a
secret by `***`.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SECRET_WORDS = ("password", "secret", "token", "authorization", "credential", "private_key")
_TEXT_LENGTH_MAX = 2_000


def configure(
    *, node_id: int, log_format: str, log_level: str, stream: TextIO | None = None
) -> None:
    """For the whole process; again = anew."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _node_id_adder(node_id),
        structlog.processors.StackInfoRenderer(),
    ]
    if log_format == "json":
        # A traceback is one string in the line, so that a line stays one event.
        last: list[Processor] = [
            structlog.processors.format_exc_info,
            _without_bodies,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        last = [
            _without_bodies,
            structlog.dev.ConsoleRenderer(
                colors=False,
                # The rich one prints local variables, and with them bodies.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(log_level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _node_id_adder(node_id: int) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["node_id"] = node_id
        return event

    return add


def _without_bodies(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if any(word in key.lower() for word in _SECRET_WORDS):
            event[key] = "***"
        elif isinstance(value, bytes | bytearray | memoryview):
            event[key] = f"<{len(value)} bytes>"
        elif isinstance(value, str) and len(value) > _TEXT_LENGTH_MAX and key != "exception":
            event[key] = f"{value[:_TEXT_LENGTH_MAX]}… ({len(value)} characters)"
    return event
