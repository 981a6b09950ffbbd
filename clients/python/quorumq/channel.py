"""The seam between this library and how bytes travel: methods, and the Channel that calls them.

    GrpcChannel        grpc_channel.py   real connections
    InProcessChannel   in_process.py     straight to handlers, on virtual time if the loop is so

A Method carries its codecs, so that a node can forward with the same classes and its own messages
of the same wire form, or with bare bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, Self, TypeVar

import grpc

from quorumq.errors import Metadata

Q = TypeVar("Q")  # a request
R = TypeVar("R")  # a response
Q_contra = TypeVar("Q_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class WireMessage(Protocol):
    """What generated messages can do."""

    def SerializeToString(self) -> bytes: ...
    @classmethod
    def FromString(cls, data: bytes) -> Self: ...


M = TypeVar("M", bound=WireMessage)
N = TypeVar("N", bound=WireMessage)


class Kind(Enum):
    UNARY = "unary"
    SERVER_STREAM = "server stream"
    BIDI_STREAM = "bidi stream"


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, R]):
    """One RPC. `path` is `/package.Service/Name`. `repeatable`: a request whose outcome is unknown
    may be sent again, because twice is the same as once."""

    path: str
    kind: Kind
    encode_request: Callable[[Q], bytes]
    decode_request: Callable[[bytes], Q]
    encode_response: Callable[[R], bytes]
    decode_response: Callable[[bytes], R]
    repeatable: bool = False


def method(
    path: str, kind: Kind, request: type[M], response: type[N], *, repeatable: bool = False
) -> Method[M, N]:
    """The Method of two generated messages."""
    return Method(
        path,
        kind,
        request.SerializeToString,
        request.FromString,
        response.SerializeToString,
        response.FromString,
        repeatable,
    )


class CallFailed(Exception):
    """How a call ended when not with its answer: a gRPC status. errors.from_status reads it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: Metadata = ()) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details
        self.trailers = tuple(trailers)


class ResponseStream(Protocol[R_co]):
    """The answers of a stream. Iterating raises CallFailed when it breaks; it ends when the server
    ended it well."""

    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> R_co: ...
    def cancel(self) -> None:
        """End it at once. Whoever iterates sees CallFailed CANCELLED."""


class RequestStream(ResponseStream[R_co], Protocol[Q_contra, R_co]):
    """Both directions of a stream. One writer at a time."""

    async def write(self, request: Q_contra) -> None:
        """Returns when the request was taken over, waiting while the transport has no room. Raises
        CallFailed."""

    async def done_writing(self) -> None: ...


class Channel(Protocol):
    """Calls to one endpoint. Every failure is a CallFailed."""

    @property
    def endpoint(self) -> str: ...

    async def ready(self, timeout_s: float) -> None:
        """Returns when connected. Raises CallFailed UNAVAILABLE when the attempt fails or the time
        is over: nothing was sent."""

    async def unary(self, method: Method[Q, R], request: Q, *, timeout_s: float) -> R: ...
    def server_stream(self, method: Method[Q, R], request: Q) -> ResponseStream[R]: ...
    def bidi_stream(self, method: Method[Q, R]) -> RequestStream[Q, R]: ...
    async def close(self) -> None:
        """Ends all calls."""


ChannelFactory = Callable[[str], Channel]
