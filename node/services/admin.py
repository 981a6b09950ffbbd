"""AdminService: its RPCs, each from the part that has its job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from cluster.controller.access import ControllerAccess
from cluster.controller.reconciler import AskTransfer
from cluster.host import Host
from node.services.admin_cluster import CLUSTER_METHOD, NODE_METHOD, AdminCluster, DiskRoom
from node.services.admin_topics import AdminTopics
from node.services.call import Call
from node.services.catalog_access import CatalogAccess
from node.services.errors import not_enabled
from node.services.metadata import Metadata
from node.services.places import Places
from quorumq import methods
from quorumq.channel import Method

Function = Callable[[Any, Call], Awaitable[Any]]
PeerFunction = Callable[[bytes], Awaitable[bytes]]


class Admin:
    """One per node. `limits`: the node's own, by name, for GetCluster."""

    def __init__(
        self,
        *,
        places: Places,
        controller: ControllerAccess,
        host: Host,
        ask_transfer: AskTransfer,
        disk_room: Callable[[], DiskRoom],
        limits: Mapping[str, int],
    ) -> None:
        access = CatalogAccess(controller)
        self._ask_transfer = ask_transfer
        self._topics = AdminTopics(access=access, places=places, host=host)
        self._metadata = Metadata(access=access, places=places, host=host)
        self._cluster = AdminCluster(
            access=access, places=places, host=host, disk_room=disk_room, limits=limits
        )

    def functions(self) -> list[tuple[Method[Any, Any], Function]]:
        """What clients may call."""
        topics, cluster = self._topics, self._cluster
        return [
            (methods.CREATE_TOPIC, topics.create_topic),
            (methods.ALTER_TOPIC, topics.alter_topic),
            (methods.DELETE_TOPIC, topics.delete_topic),
            (methods.LIST_TOPICS, topics.list_topics),
            (methods.GET_METADATA, self._metadata.get_metadata),
            (methods.GET_CLUSTER, cluster.get_cluster),
            (methods.LIST_LEASES, _not_yet("ListLeases")),
            (methods.LIST_SESSIONS, _not_yet("ListSessions")),
            (methods.KICK_SESSION, _not_yet("KickSession")),
            (methods.SEEK, _not_yet("Seek")),
            (methods.PURGE, _not_yet("Purge")),
            (methods.REDRIVE, _not_yet("Redrive")),
        ]

    def peer_functions(self) -> dict[str, PeerFunction]:
        """What other nodes may call, by method."""
        return {
            CLUSTER_METHOD: self._cluster.serve_cluster,
            NODE_METHOD: self._cluster.serve_node,
        }


def _not_yet(name: str) -> Function:
    async def refuse(_request: Any, _call: Call) -> NoReturn:
        raise not_enabled(name)

    return refuse
