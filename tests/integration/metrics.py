"""A node's HTTP port, as a scraper sees it."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from node.local_node import LocalNode
from tests.integration.load import WITHIN_S


async def get(node: LocalNode, path: str) -> tuple[int, str]:
    """Status and body."""
    host, port = node.metrics_endpoint.split(":")
    async with asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


async def metrics(node: LocalNode) -> dict[str, float]:
    """Every sample's value; of those with labels, their sum."""
    status, body = await get(node, "/metrics")
    assert status == 200
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values
