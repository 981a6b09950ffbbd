"""Lists in pages. A page token says after which key the next page begins, so that what is created
or deleted between two pages neither repeats nor hides another item.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from node.services.errors import bad_request

T = TypeVar("T")

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1_000
_VERSION = b"1"  # of the token's form


def page_size(asked: int) -> int:
    """Raises Refused BAD_REQUEST."""
    if asked > PAGE_SIZE_MAX:
        raise bad_request("page_size", f"{asked} is above {PAGE_SIZE_MAX}")
    return asked or PAGE_SIZE


def after_of(token: str) -> str | None:
    """The key that the page before ended with; None = from the beginning. Raises Refused
    BAD_REQUEST for what is no token of this service."""
    if not token:
        return None
    try:
        data = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        version, _, key = data.partition(b":")
        if version != _VERSION:
            raise ValueError("another version")
        return key.decode()
    except (ValueError, binascii.Error) as error:
        raise bad_request("page_token", f"{token[:80]!r} is no page token: {error}") from error


def token_of(key: str) -> str:
    return base64.urlsafe_b64encode(_VERSION + b":" + key.encode()).decode()


def page(
    items: Sequence[T], key: Callable[[T], str], *, size: int, token: str
) -> tuple[list[T], str]:
    """Of items in rising order of keys: those of the page, and the token of the next one."""
    size, after = page_size(size), after_of(token)
    rest = items if after is None else [item for item in items if key(item) > after]
    chosen = list(rest[:size])
    return chosen, token_of(key(chosen[-1])) if len(rest) > size else ""
