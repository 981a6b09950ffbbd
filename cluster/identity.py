"""How nodes name themselves to each other, and who may speak to whom.

A connection begins with a Hello from the one who opened it. Every frame that comes back begins with
one byte: GOOD and an answer, or REFUSED and a Refusal.
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError

from cluster.interfaces import Peer, PeerError
from cluster.v1 import peer_pb2 as pb

PROTOCOL = 1
GOOD, REFUSED = b"\0", b"\1"
# Calls that nodes of no cluster yet may make and answer.
OPEN_METHODS_PREFIX = "founding."


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

    def hello(self, to_node_id: int, purpose: pb.Purpose) -> bytes:
        """`to_node_id` 0: whoever answers at the endpoint."""
        return pb.Hello(
            protocol=PROTOCOL,
            purpose=purpose,
            cluster_id=self._cluster_id,
            node_id=self.node_id,
            incarnation=self.incarnation,
            boot_id=self.boot_id,
            endpoint=self.endpoint,
            to_node_id=to_node_id,
        ).SerializeToString()

    def admit(self, hello: pb.Hello, *, is_open: bool = False) -> Peer:
        """Who says hello. Raises PeerError for a stranger, and for one who takes this node for
        another. `is_open`: for what is done also while one of the two belongs to no cluster yet."""
        if not may_talk(self._cluster_id, hello.cluster_id, is_open=is_open):
            raise PeerError(
                "WRONG_CLUSTER",
                f"node {self.node_id} belongs to {_named(self._cluster_id)}, "
                f"node {hello.node_id} to {_named(hello.cluster_id)}",
            )
        if hello.to_node_id not in (0, self.node_id):
            raise PeerError(
                "WRONG_NODE", f"this is node {self.node_id}, not node {hello.to_node_id}"
            )
        return Peer(hello.node_id, hello.incarnation, hello.boot_id, hello.endpoint)


def decode_hello(frame: bytes) -> pb.Hello:
    """Raises ValueError."""
    try:
        hello = pb.Hello.FromString(frame)
    except DecodeError as error:
        raise ValueError(f"no hello: {error}") from error
    if hello.protocol != PROTOCOL or not (hello.node_id and hello.incarnation and hello.boot_id):
        raise ValueError(f"a hello of protocol {hello.protocol} that names node {hello.node_id}")
    return hello


def may_talk(mine: str, theirs: str, *, is_open: bool) -> bool:
    """Between nodes of these clusters, "" = of none yet. Never between two clusters: a node that
    was given another one's folder or peers would be taken for a member that lost its disk."""
    return mine == theirs != "" or (is_open and not (mine and theirs))


def refusal(error: PeerError) -> bytes:
    return REFUSED + pb.Refusal(code=error.code, message=error.message).SerializeToString()


def answer_of(frame: bytes) -> bytes:
    """What the peer said. Raises PeerError if it refused, or CORRUPT."""
    if frame[:1] == GOOD:
        return frame[1:]
    if frame[:1] != REFUSED:
        raise PeerError("CORRUPT", f"an answer that begins with {frame[:1]!r}")
    try:
        refused = pb.Refusal.FromString(frame[1:])
    except DecodeError as error:
        raise PeerError("CORRUPT", str(error)) from error
    raise PeerError(refused.code, refused.message)


def _named(cluster_id: str) -> str:
    return f"cluster {cluster_id}" if cluster_id else "no cluster yet"
