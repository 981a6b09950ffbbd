"""AdminService: its RPCs, each from the part that has its job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from cluster.controller.reconciler import AskTransfer
from cluster.host import Host
from node.services.admin_cluster import CLUSTER_METHOD, NODE_METHOD, AdminCluster, DiskRoom
from node.services.admin_leaders import AdminLeaders
from node.services.admin_operations import AdminOperations
from node.services.admin_partitions import AdminPartitions
from node.services.admin_subscriptions import AdminSubscriptions
from node.services.admin_topics import AdminTopics
from node.services.call import Call
from node.services.catalog_access import CatalogAccess
from node.services.errors import not_enabled
from node.services.metadata import Metadata
from node.services.offsets import Offsets
from node.services.partition_views import PartitionViews
from node.services.places import Places
from node.services.subscription_views import SubscriptionViews
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
        access: CatalogAccess,
        host: Host,
        offsets: Offsets,
        ask_transfer: AskTransfer,
        disk_room: Callable[[], DiskRoom],
        limits: Mapping[str, int],
    ) -> None:
        views = PartitionViews(places=places, host=host)
        self._topics = AdminTopics(access=access, places=places, host=host)
        self._metadata = Metadata(access=access, places=places, host=host)
        self._cluster = AdminCluster(
            access=access, places=places, host=host, disk_room=disk_room, limits=limits
        )
        self._operations = AdminOperations(
            access=access, places=places, host=host, cluster=self._cluster
        )
        self._partitions = AdminPartitions(
            access=access, places=places, host=host, offsets=offsets, views=views
        )
        self._leaders = AdminLeaders(
            access=access, places=places, host=host, views=views, ask_transfer=ask_transfer
        )
        self._subscriptions = AdminSubscriptions(
            access=access, places=places, views=SubscriptionViews(places)
        )

    def functions(self) -> list[tuple[Method[Any, Any], Function]]:
        """What clients may call."""
        topics, partitions, operations = self._topics, self._partitions, self._operations
        subscriptions = self._subscriptions
        return [
            (methods.CREATE_TOPIC, topics.create_topic),
            (methods.ALTER_TOPIC, topics.alter_topic),
            (methods.DELETE_TOPIC, topics.delete_topic),
            (methods.DESCRIBE_TOPIC, partitions.describe_topic),
            (methods.LIST_TOPICS, topics.list_topics),
            (methods.CREATE_SUBSCRIPTION, subscriptions.create_subscription),
            (methods.ALTER_SUBSCRIPTION, subscriptions.alter_subscription),
            (methods.DELETE_SUBSCRIPTION, subscriptions.delete_subscription),
            (methods.DESCRIBE_SUBSCRIPTION, subscriptions.describe_subscription),
            (methods.LIST_SUBSCRIPTIONS, subscriptions.list_subscriptions),
            (methods.GET_METADATA, self._metadata.get_metadata),
            (methods.LIST_OFFSETS, partitions.list_offsets),
            (methods.GET_RECORD, partitions.get_record),
            (methods.LIST_PRODUCERS, partitions.list_producers),
            (methods.LIST_LEASES, _not_yet("ListLeases")),
            (methods.LIST_SESSIONS, _not_yet("ListSessions")),
            (methods.KICK_SESSION, _not_yet("KickSession")),
            (methods.SEEK, _not_yet("Seek")),
            (methods.PURGE, _not_yet("Purge")),
            (methods.REDRIVE, _not_yet("Redrive")),
            (methods.GET_CLUSTER, self._cluster.get_cluster),
            (methods.ADD_NODE, operations.add_node),
            (methods.DRAIN_NODE, operations.drain_node),
            (methods.REMOVE_NODE, operations.remove_node),
            (methods.MOVE_REPLICA, operations.move_replica),
            (methods.TRANSFER_LEADER, self._leaders.transfer_leader),
            (methods.GET_OPERATION, operations.get_operation),
            (methods.LIST_OPERATIONS, operations.list_operations),
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
