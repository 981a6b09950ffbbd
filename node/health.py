"""What a node says about itself to balancers and tools: gRPC health, and reflection.

`` = the process is up. `quorumq.v1.MessagingService` = it sees a leader of the controller and holds
no drain; AdminService is the same, for clients that ask by service.
"""

from __future__ import annotations

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from cluster.controller.access import ControllerAccess
from cluster.controller.model import CONTROLLER_GROUP_ID
from cluster.host import Host
from quorumq.v1 import admin_pb2, messaging_pb2

_SERVICES = tuple(
    file.services_by_name[name].full_name
    for file, name in (
        (messaging_pb2.DESCRIPTOR, "MessagingService"),
        (admin_pb2.DESCRIPTOR, "AdminService"),
    )
)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    def __init__(self) -> None:
        self._servicer = health.HealthServicer()
        self._draining = False
        self.is_ready = False

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        names = (*_SERVICES, SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    async def follow(self, host: Host, controller: ControllerAccess) -> None:
        """Say at any time what is so, from the cluster's founding on."""
        await self._servicer.set("", _SERVING)
        await controller.shows(1)
        while True:
            leader = host.leader_of(CONTROLLER_GROUP_ID)
            await self._say(leader is not None)
            await host.peers.leader_change(CONTROLLER_GROUP_ID, leader)

    async def drain(self) -> None:
        """From now on it is not ready, whatever it sees."""
        self._draining = True
        await self._say(False)

    async def _say(self, sees_leader: bool) -> None:
        self.is_ready = sees_leader and not self._draining
        for service in _SERVICES:
            await self._servicer.set(service, _SERVING if self.is_ready else _NOT_SERVING)
