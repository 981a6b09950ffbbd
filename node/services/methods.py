"""Methods between nodes, and those of the public ones whose batch a node only carries: their
messages are the opaque twins of proto/node/v1/wire.proto."""

from __future__ import annotations

from node.v1 import wire_pb2 as wire
from quorumq.channel import Kind, method
from quorumq.v1 import messaging_pb2 as pb

_MESSAGING = "/quorumq.v1.MessagingService/"
_INTERNAL = "/node.v1.Internal/"

PRODUCE = method(_MESSAGING + "Produce", Kind.UNARY, wire.ProduceRequest, wire.ProduceResponse)
PRODUCE_STREAM = method(
    _MESSAGING + "ProduceStream",
    Kind.BIDI_STREAM,
    wire.ProduceStreamRequest,
    wire.ProduceStreamResponse,
)
READ = method(_MESSAGING + "Read", Kind.SERVER_STREAM, pb.ReadRequest, wire.ReadResponse)

# What comes by these is answered by this node itself or not at all, never sent on: no loops.
FORWARDED_PRODUCE = method(
    _INTERNAL + "ProduceStream",
    Kind.BIDI_STREAM,
    wire.ProduceStreamRequest,
    wire.ProduceStreamResponse,
)
FORWARDED_READ = method(_INTERNAL + "Read", Kind.SERVER_STREAM, pb.ReadRequest, wire.ReadResponse)
