"""How an empty node finds its place (house §4.14): it founds a cluster, or joins the one there is.

It asks all initial peers who they are, again and again, until one of these holds:

    a peer belongs to a cluster whose founding record names this very incarnation  -> adopt it
    a peer belongs to a cluster                                                    -> join as new
    all peers answered, all are empty, all name the same peers, and this node has
    the lowest id                                                                  -> found one
    otherwise                                                                      -> wait, loudly

Only one node can found: the lowest. It has its record on disk before it shows it to anybody, and a
record names incarnations, so a node that was wiped in between does not take a founder's place but
joins as new, and is then given replicas of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.controller import commands as c
from cluster.controller.codec import decode_reply, encode_command
from cluster.interfaces import PeerError, Transport

logger = logging.getLogger(__name__)

HELLO_METHOD = "founding.hello"
REGISTER_METHOD = "founding.register"
_CALL_TIMEOUT_MS = 2_000
_REGISTER_TIMEOUT_MS = 10_000
_PAUSE_S = 0.2
_LOUD_EVERY = 25  # rounds between two warnings


@dataclass(frozen=True, slots=True)
class Membership:
    """This node's place in a cluster, kept on its disk. `founders`: the members named by the
    founding record, in order of node ids; empty for a node that joined later."""

    cluster_id: str
    controller_replica_id: int
    founders: tuple[c.Announcement, ...] = ()

    def encode(self) -> bytes:
        return json.dumps(
            {
                "cluster_id": self.cluster_id,
                "controller_replica_id": self.controller_replica_id,
                "founders": [asdict(founder) for founder in self.founders],
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> Membership:
        """Raises ValueError."""
        try:
            row = json.loads(data)
            founders = tuple(c.Announcement(**founder) for founder in row["founders"])
            return cls(row["cluster_id"], row["controller_replica_id"], founders)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a membership: {error!r}") from error


class Founding:
    """Answers peers' hellos from the start, and finds this node's place if it has none yet."""

    def __init__(
        self,
        *,
        me: c.Announcement,
        may_found: bool,
        peers: Mapping[int, str],
        transport: Transport,
        membership: Membership | None,
        keep: Callable[[Membership], Awaitable[None]],
        new_cluster_id: Callable[[], str],
    ) -> None:
        """`may_found`: False for a node that lost its data: it belongs to a cluster and waits to
        see it again. `peers`: node id -> peer endpoint of all initial members, this node's too.
        `keep` stores
        a membership, durably when it returns."""
        assert me.node_id in peers, f"node {me.node_id} is not among its peers {sorted(peers)}"
        self._me = me
        self._may_found = may_found
        self._peers = dict(sorted(peers.items()))
        self._transport = transport
        self._keep = keep
        self._new_cluster_id = new_cluster_id
        self.membership = membership

    def answer_hello(self) -> bytes:
        """Who this node is, for HELLO_METHOD."""
        return json.dumps(
            {
                "member": asdict(self._me),
                "peers": list(self._peers),
                "may_found": self._may_found,
                "membership": self.membership.encode().decode() if self.membership else None,
            }
        ).encode()

    async def find_place(self) -> Membership:
        """Returns when this node belongs to a cluster, however long that takes."""
        rounds = 0
        while self.membership is None:
            found = await self._look_around(loud=rounds % _LOUD_EVERY == _LOUD_EVERY - 1)
            if found is not None:
                await self._keep(found)
                self.membership = found
                break
            rounds += 1
            await asyncio.sleep(_PAUSE_S)
        return self.membership

    async def _look_around(self, *, loud: bool) -> Membership | None:
        empty: list[c.Announcement] = [self._me]
        trouble: list[str] = []
        for node_id, endpoint in self._peers.items():
            if node_id == self._me.node_id:
                continue
            try:
                hello = await self._ask(endpoint)
                if hello["membership"] is not None:
                    theirs = Membership.decode(hello["membership"].encode())
                    return await self._adopt_or_join(theirs, endpoint)
                member = c.Announcement(**hello["member"])
                if member.node_id != node_id:
                    trouble.append(f"{endpoint} is node {member.node_id}, not {node_id}")
                elif not hello["may_found"]:
                    trouble.append(f"node {node_id} has lost the data of a cluster")
                elif hello["peers"] != list(self._peers):
                    trouble.append(f"node {node_id} was told other peers: {hello['peers']}")
                else:
                    empty.append(member)
            except (PeerError, ValueError, KeyError, TypeError) as error:
                trouble.append(f"node {node_id} at {endpoint}: {error}")
        if not self._may_found:
            trouble.append("this node lost its data and belongs to a cluster that it does not see")
        if not trouble and self._me.node_id == min(self._peers):
            return self._found(empty)
        if loud:
            what = "; ".join(trouble) or f"node {min(self._peers)} founds the cluster"
            logger.warning("node %d waits to find its cluster: %s", self._me.node_id, what)
        return None

    async def _ask(self, endpoint: str) -> dict[str, Any]:
        answer = await self._transport.call(
            0, HELLO_METHOD, b"", timeout_ms=_CALL_TIMEOUT_MS, endpoint=endpoint
        )
        hello = json.loads(answer)
        if not isinstance(hello, dict):
            raise ValueError(f"not a hello: {hello!r}")
        return hello

    def _found(self, empty: list[c.Announcement]) -> Membership:
        founders = tuple(sorted(empty, key=lambda member: member.node_id))
        logger.info("founding a cluster of nodes %s", [f.node_id for f in founders])
        return Membership(self._new_cluster_id(), _rank(founders, self._me), founders)

    async def _adopt_or_join(self, theirs: Membership, endpoint: str) -> Membership | None:
        rank = _rank(theirs.founders, self._me)
        if rank:
            return Membership(theirs.cluster_id, rank, theirs.founders)
        answer = await self._transport.call(
            0,
            REGISTER_METHOD,
            encode_command(c.RegisterMember(member=self._me), None),
            timeout_ms=_REGISTER_TIMEOUT_MS,
            endpoint=endpoint,
        )
        reply = decode_reply(answer)
        if not isinstance(reply, c.MemberRegistered):
            logger.error("node %d may not join: %s", self._me.node_id, reply)
            return None
        logger.info("joining cluster %s", reply.cluster_id)
        return Membership(reply.cluster_id, reply.controller_replica_id)


def _rank(founders: tuple[c.Announcement, ...], me: c.Announcement) -> int:
    """The controller replica id of a founder, 0 if this incarnation is none."""
    for number, founder in enumerate(founders, start=1):
        if (founder.node_id, founder.incarnation) == (me.node_id, me.incarnation):
            return number
    return 0
