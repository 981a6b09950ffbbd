"""The receiving half of the transport: PeerService of proto/cluster/v1, and how peers name
themselves.

    identity = Identity(node_id=3, incarnation=..., boot_id=..., cluster_id="" until it is known)
    service = peer_handlers(receiver, identity)
    server = grpc.aio.server(options=PEER_OPTIONS); server.add_generic_rpc_handlers((service,))
    ...
    service.close()          ends the streams, so that server.stop() has nothing to wait for

Bytes go through gRPC untouched; cluster/wire.py decodes them once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cluster.interfaces import CatchUpChunk, Peer, PeerError, Receiver
from cluster.v1 import peer_pb2 as pb
from cluster.wire import decode_catch_up_request, decode_stream_request, encode_chunk

logger = logging.getLogger(__name__)

SERVICE = "cluster.v1.PeerService"
STREAM_METHOD = f"/{SERVICE}/Stream"
CALL_METHOD = f"/{SERVICE}/Call"
CATCH_UP_METHOD = f"/{SERVICE}/CatchUp"

ERROR_TRAILER = "quorumq-peer-error"
# Calls that nodes of no cluster yet may make and answer.
OPEN_METHODS_PREFIX = "founding."

_MESSAGE_BYTES_MAX = 256 << 20

# For channels and servers alike. A peer that fell silent without a word (power, network) is noticed
# within 2 s: until then TCP would keep retrying with growing pauses, and go on pausing long after
# the peer is back. gRPC sets TCP_NODELAY itself, and TCP_USER_TIMEOUT to the keepalive timeout.
PEER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),  # what the wait for a ping's answer really goes by
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 250),
    # A fixed, large window: finding the window by probes costs the first large batches.
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second listener
)


class Identity:
    """Who this node is to its peers, and the `endpoint` by which they reach it. `cluster_id` is ""
    until the cluster is founded or joined; set once, and streams begin then. The rest never changes
    in a process's life."""

    def __init__(
        self,
        *,
        node_id: int,
        incarnation: str,
        boot_id: str,
        endpoint: str = "",
        cluster_id: str = "",
    ) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.boot_id = boot_id
        self.endpoint = endpoint
        self._cluster_id = ""
        self.has_cluster = asyncio.Event()
        if cluster_id:
            self.cluster_id = cluster_id

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    @cluster_id.setter
    def cluster_id(self, cluster_id: str) -> None:
        assert cluster_id, "a cluster has a name"
        assert self._cluster_id in ("", cluster_id), f"{self._cluster_id} -> {cluster_id}"
        self._cluster_id = cluster_id
        self.has_cluster.set()

    @property
    def peer(self) -> Peer:
        return Peer(self.node_id, self.incarnation, self.boot_id, self.endpoint)

    def metadata(self, to_node_id: int) -> tuple[tuple[str, str], ...]:
        """`to_node_id` 0: whoever answers at the endpoint."""
        me = (
            ("quorumq-cluster-id", self._cluster_id),
            ("quorumq-node-id", str(self.node_id)),
            ("quorumq-incarnation", self.incarnation),
            ("quorumq-boot-id", self.boot_id),
            ("quorumq-endpoint", self.endpoint),
        )
        return (*me, ("quorumq-to-node-id", str(to_node_id))) if to_node_id else me


def peer_handlers(receiver: Receiver, identity: Identity) -> PeerService:
    """The handlers for a grpc.aio server made with PEER_OPTIONS."""
    return PeerService(receiver, identity)


class _Incoming:
    """One accepted stream of a peer."""

    __slots__ = ("ended_because", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.ended_because = ""

    def end(self, why: str) -> None:
        if not self.ended_because:
            self.ended_because = why
            self.task.cancel()


class PeerService(grpc.GenericRpcHandler):
    """At most one stream a peer: a newer one supersedes what is left of the older, so that nothing
    of a node's former run, or from before a break, is heard after what came later."""

    def __init__(self, receiver: Receiver, identity: Identity) -> None:
        self._receiver = receiver
        self._identity = identity
        self._incoming: dict[int, _Incoming] = {}
        self._closed = False
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            STREAM_METHOD: grpc.stream_unary_rpc_method_handler(self._stream),
            CALL_METHOD: grpc.unary_unary_rpc_method_handler(self._call),
            CATCH_UP_METHOD: grpc.unary_stream_rpc_method_handler(self._catch_up),
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)

    def close(self) -> None:
        """End all streams and accept no more. What has been received has been handed over."""
        self._closed = True
        for incoming in list(self._incoming.values()):
            incoming.end("the node is closing")

    async def _stream(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        peer = await self._admitted(context)
        task = asyncio.current_task()
        assert task is not None
        incoming = _Incoming(task)
        if (older := self._incoming.get(peer.node_id)) is not None:
            older.end("superseded by a newer stream")
        self._incoming[peer.node_id] = incoming
        try:
            await context.send_initial_metadata(self._identity.metadata(peer.node_id))
            receive = self._receiver.receive
            async for request in requests:
                if incoming.ended_because:
                    break
                for envelope in decode_stream_request(request):
                    receive(peer, envelope)
        except asyncio.CancelledError:
            # Ours, to end a stream whose reader waits; one of gRPC's own goes on its way.
            if not incoming.ended_because:
                raise
            task.uncancel()
        except ValueError as error:
            logger.error("node %d sent what is no message: %s", peer.node_id, error)
            await _refuse(context, "CORRUPT", str(error), grpc.StatusCode.DATA_LOSS)
        finally:
            if self._incoming.get(peer.node_id) is incoming:
                del self._incoming[peer.node_id]
        if incoming.ended_because:
            await _refuse(context, "CLOSED", incoming.ended_because, grpc.StatusCode.ABORTED)
        return b""

    async def _call(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            call = pb.CallRequest.FromString(request)
        except DecodeError as error:
            await _refuse(context, "CORRUPT", str(error), grpc.StatusCode.DATA_LOSS)
        is_open = call.method.startswith(OPEN_METHODS_PREFIX)
        peer = await self._admitted(context, is_open=is_open)
        try:
            body = await self._receiver.call(peer.node_id, call.method, call.body)
        except PeerError as error:
            refusal = pb.CallResponse(error_code=error.code, error_message=error.message)
            return refusal.SerializeToString()
        return pb.CallResponse(body=body).SerializeToString()

    async def _catch_up(
        self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        await self._admitted(context)
        try:
            wanted = decode_catch_up_request(request)
        except ValueError as error:
            await _refuse(context, "CORRUPT", str(error), grpc.StatusCode.DATA_LOSS)
        try:
            # Written here and not yielded to gRPC, so that the receiver's iterator (which holds
            # an engine snapshot) is closed at once when the peer goes away.
            async with closing(self._receiver.catch_up(wanted)) as chunks:
                async for chunk in chunks:
                    await context.write(encode_chunk(chunk))
        except PeerError as error:
            await _refuse(context, error.code, error.message)

    async def _admitted(
        self, context: grpc.aio.ServicerContext[bytes, bytes], *, is_open: bool = False
    ) -> Peer:
        """The caller. Ends the RPC when it is a stranger or takes this node for another. `is_open`:
        to be made also while one of the two belongs to no cluster yet."""
        told = {key: str(value) for key, value in context.invocation_metadata() or ()}
        mine = self._identity
        if self._closed:
            await _refuse(context, "CLOSED", "the node is closing", grpc.StatusCode.UNAVAILABLE)
        try:
            peer = _peer(told)
        except ValueError as error:
            await _refuse(context, "CORRUPT", str(error))
        theirs = told.get("quorumq-cluster-id", "")
        if not may_talk(mine.cluster_id, theirs, is_open=is_open):
            await _refuse(
                context,
                "WRONG_CLUSTER",
                f"node {mine.node_id} belongs to {_named(mine.cluster_id)}, "
                f"node {peer.node_id} to {_named(theirs)}",
            )
        to_node_id = told.get("quorumq-to-node-id", str(mine.node_id))
        if to_node_id != str(mine.node_id):
            await _refuse(
                context, "WRONG_NODE", f"this is node {mine.node_id}, not node {to_node_id}"
            )
        return peer


@contextlib.asynccontextmanager
async def closing(
    chunks: AsyncIterator[CatchUpChunk],
) -> AsyncIterator[AsyncIterator[CatchUpChunk]]:
    """Closes a generator on the way out; other iterators have nothing to close."""
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def may_talk(mine: str, theirs: str, *, is_open: bool) -> bool:
    """Between nodes of these clusters, "" = of none yet. Never between two clusters: a node that
    was given another one's folder or peers would be taken for a member that lost its disk."""
    return mine == theirs != "" or (is_open and not (mine and theirs))


def _peer(told: Mapping[str, str]) -> Peer:
    try:
        return Peer(
            int(told["quorumq-node-id"]),
            told["quorumq-incarnation"],
            told["quorumq-boot-id"],
            told.get("quorumq-endpoint", ""),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"metadata names no node: {error}") from error


def _named(cluster_id: str) -> str:
    return f"cluster {cluster_id}" if cluster_id else "no cluster yet"


async def _refuse(
    context: grpc.aio.ServicerContext[bytes, bytes],
    code: str,
    message: str,
    status: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION,
) -> None:
    await context.abort(status, message, ((ERROR_TRAILER, code),))
