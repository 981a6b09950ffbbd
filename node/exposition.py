"""Prometheus metrics of a node, and the small HTTP server that shows them.

    GET /metrics   all of them, read from the parts of the node at this moment
    GET /healthz   200 while the process answers
    GET /readyz    200 while it sees a controller's leader and holds no drain, else 503

The number of time series is bounded: figures are per topic, for at most TOPICS_SHOWN_MAX topics
(the rest are summed as topic="(others)"), and per partition only while this node holds at most
PARTITIONS_SHOWN_MAX of them.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cluster.controller.catalog import Catalog
from cluster.controller.model import CONTROLLER_GROUP_ID
from cluster.frames import address_of
from cluster.group import Group
from cluster.host import Host
from node.metrics import Histogram, NodeCounters
from node.partitions import LocalPartition
from node.storage.engine import RocksEngine

TOPICS_SHOWN_MAX = 200
PARTITIONS_SHOWN_MAX = 256
OTHERS = "(others)"
_REQUEST_BYTES_MAX = 8 << 10
_REQUEST_TIMEOUT_S = 5.0
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts that are read; `is_ready` is what /readyz says."""

    node_id: int
    counters: NodeCounters
    host: Host
    engine: RocksEngine
    catalog: Catalog
    partitions: Callable[[], Iterable[LocalPartition]]
    is_ready: Callable[[], bool]
    disk_full: Callable[[], bool]
    inflight_bytes: Callable[[], int]
    held_requests: Callable[[], int]


class NodeCollector(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read before somebody asks

    def collect(self) -> Iterator[Metric]:
        yield from self._node()
        yield from _requests(self._sources.counters)
        yield _gauge("inflight_bytes", "Produced and not answered.", self._sources.inflight_bytes())
        yield _gauge(
            "held_requests_waiting", "Waiting for a leader.", self._sources.held_requests()
        )
        yield from self._groups()
        yield from self._topics()
        yield from self._partitions()
        yield from self._disk()

    def _node(self) -> Iterator[Metric]:
        sources, peers = self._sources, self._sources.host.peers
        info = GaugeMetricFamily("quorumq_node_info", "Who this is.", labels=["node_id", "version"])
        info.add_metric([str(sources.node_id), version("quorumq")], 1)
        yield info
        yield _gauge("ready", "Sees a controller's leader, holds no drain.", sources.is_ready())
        yield _gauge("resident_bytes", "Memory in use.", _resident_bytes())
        yield _counter("cpu_seconds", "Of this process.", sum(os.times()[:2]))
        alive = GaugeMetricFamily(
            "quorumq_peer_alive", "1 while heard of lately.", labels=["peer_id"]
        )
        for node_id in peers.nodes:
            alive.add_metric([str(node_id)], peers.is_alive(node_id))
        yield alive
        yield _gauge(
            "peers_alive", "Other nodes heard of lately.", sum(map(peers.is_alive, peers.nodes))
        )
        yield _gauge(
            "clock_skew_ms",
            "This node's wall clock less the nodes' median.",
            peers.clock_ahead_ms(),
        )

    def _groups(self) -> Iterator[Metric]:
        groups = list(self._sources.host.groups.values())
        controller = self._sources.host.groups.get(CONTROLLER_GROUP_ID)
        yield _gauge("replicas", "Replicas here, the controller's included.", len(groups))
        yield _gauge("leaders", "Groups led from here.", sum(g.is_leader for g in groups))
        yield _gauge(
            "replicas_failed",
            "Replicas that stopped after an error.",
            sum(g.failure is not None for g in groups),
        )
        yield _gauge(
            "terms_sum", "Of all groups: its rate is that of elections.", _sum_terms(groups)
        )
        yield _gauge(
            "commit_lag_entries_max",
            "Entries in a log here and not committed.",
            max(map(_commit_lag, groups), default=0),
        )
        yield _gauge(
            "apply_lag_entries_max",
            "Entries committed and not applied here.",
            max(map(_apply_lag, groups), default=0),
        )
        yield _gauge(
            "awake_groups", "Groups whose clocks run.", sum(not g.core.quiesced for g in groups)
        )
        if controller is not None:
            yield _gauge("controller_term", "Term of the controller.", controller.term)
            yield _gauge("controller_leader", "1 if it is here.", controller.is_leader)

    def _topics(self) -> Iterator[Metric]:
        rows = _TopicRows()
        for local in self._sources.partitions():
            topic = self._sources.catalog.topic(local.topic)
            is_short = topic is not None and self._live_voters(local) < topic.replication_factor
            rows.add(topic.name if topic else f"#{local.topic}", local, is_short=is_short)
        yield from rows.families()

    def _live_voters(self, local: LocalPartition) -> int:
        host = self._sources.host
        voters = local.group.configuration.voters
        return sum(host.node_alive(host.peers.node_of(voter)) for voter in voters)

    def _partitions(self) -> Iterator[Metric]:
        held = list(self._sources.partitions())
        if len(held) > PARTITIONS_SHOWN_MAX:
            return
        labels = ["topic", "partition"]
        term = GaugeMetricFamily("quorumq_partition_term", "Raft term.", labels=labels)
        leads = GaugeMetricFamily("quorumq_partition_leader", "1 if led from here.", labels=labels)
        for local in held:
            topic = self._sources.catalog.topic(local.topic)
            names = [topic.name if topic else f"#{local.topic}", str(local.partition)]
            term.add_metric(names, local.group.term)
            leads.add_metric(names, local.group.is_leader)
        yield term
        yield leads

    def _disk(self) -> Iterator[Metric]:
        engine = self._sources.engine
        yield _gauge("disk_free_bytes", "Room on the data folder's disk.", engine.disk_free_bytes())
        yield _gauge("disk_full", "1 while appends are refused.", self._sources.disk_full())
        yield _gauge("storage_pressure", "1 and above: no appends.", engine.pressure)
        yield _gauge("flush_running_ms", "Age of the flush under way.", engine.flush_running_ms())
        yield _histogram("flush_ms", "Flush of the write-ahead log.", engine.flushes.histogram)
        yield _gauge("flush_mean_ms", "Moving average of ten flushes.", engine.flushes.mean_ms)
        yield _gauge("flush_max_ms", "Slowest flush so far.", engine.flushes.max_ms)
        properties = GaugeMetricFamily(
            "quorumq_storage_property", "RocksDB's own figures.", labels=["name"]
        )
        for name, value in engine.properties().items():
            properties.add_metric([name], value)
        yield properties


class _TopicRows:
    """Sums by topic over the replicas here; offsets and bytes only where they are led, so that
    summing over nodes counts each partition once."""

    FIGURES = (
        ("topic_replicas", "Replicas here."),
        ("topic_leaders", "Partitions led from here."),
        ("topic_under_replicated", "Partitions led from here with too few voters on live nodes."),
        ("topic_backlog_records", "Records stored, of the partitions led from here."),
        ("topic_backlog_bytes", "Bytes of their batches, of the partitions led from here."),
        ("topic_commit_lag_entries", "Entries in the logs here and not committed."),
        ("topic_apply_lag_entries", "Entries committed and not applied here."),
        ("topic_producers", "Producers known, of the partitions led from here."),
    )

    def __init__(self) -> None:
        self._sums: dict[str, list[int]] = {}

    def add(self, topic: str, local: LocalPartition, *, is_short: bool) -> None:
        if topic not in self._sums and len(self._sums) >= TOPICS_SHOWN_MAX:
            topic = OTHERS
        sums = self._sums.setdefault(topic, [0] * len(self.FIGURES))
        group, machine, leads = local.group, local.replica.machine, local.group.is_leader
        figures = (
            1,
            leads,
            leads and is_short,
            machine.next_offset - machine.first_offset if leads else 0,
            local.replica.stored_bytes() if leads else 0,
            _commit_lag(group),
            _apply_lag(group),
            machine.producers.count if leads else 0,
        )
        for i, figure in enumerate(figures):
            sums[i] += figure

    def families(self) -> Iterator[Metric]:
        for i, (name, meaning) in enumerate(self.FIGURES):
            family = GaugeMetricFamily(f"quorumq_{name}", meaning, labels=["topic"])
            for topic, sums in self._sums.items():
                family.add_metric([topic], sums[i])
            yield family


def _requests(counters: NodeCounters) -> Iterator[Metric]:
    for name, meaning in (
        ("produce_requests", "Batches stored or found stored, where their leader is."),
        ("produce_records", "Records stored."),
        ("produce_bytes", "Bytes of their batches."),
        ("producer_duplicates", "Batches found stored already, by producer sequence."),
        ("dedup_id_hits", "Records found stored already, by dedup_id."),
        ("producers_opened", "Producers opened."),
        ("read_records", "Records sent to readers."),
        ("read_bytes", "Bytes sent to readers."),
        ("forwarded_requests", "Requests sent on to the node that leads."),
        ("held_requests", "Requests that waited for a leader."),
        ("throttled_requests", "Requests refused because a bound was reached."),
        ("elections_won", "Leaderships that began here."),
        ("elections_lost", "Leaderships that ended here."),
        ("leaders_handed_over", "Leaderships handed over on purpose."),
        ("trimmed_records", "Records that retention removed."),
        ("skewed_stamps", "Times taken from the median, this node's clock being off."),
    ):
        yield _counter(name, meaning, getattr(counters, name))
    yield _gauge("calls", "Calls and streams under way.", counters.calls_now)
    yield _gauge("read_streams", "Read streams under way.", counters.read_streams_now)
    errors = CounterMetricFamily("quorumq_errors", "Errors answered.", labels=["reason"])
    for reason, count in counters.errors.items():
        errors.add_metric([reason], count)
    yield errors
    yield _histogram("produce_ms", "From a produce's arrival to its answer.", counters.produce_ms)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"quorumq_{name}", meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"quorumq_{name}", meaning, value=value)


def _histogram(name: str, meaning: str, histogram: Histogram) -> Metric:
    cumulative, buckets = 0, list[tuple[str, float]]()
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        cumulative += count
        buckets.append((str(bound), cumulative))
    return HistogramMetricFamily(
        f"quorumq_{name}", meaning, buckets=buckets, sum_value=histogram.sum
    )


def _sum_terms(groups: list[Group]) -> int:
    return sum(group.term for group in groups)


def _commit_lag(group: Group) -> int:
    return max(0, group.last_index - group.commit_index)


def _apply_lag(group: Group) -> int:
    return max(0, group.commit_index - group.applied_index)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * _PAGE_BYTES


class MetricsServer:
    """HTTP/1.1, GET and HEAD, one request a connection."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(NodeCollector(sources))
        self._server: asyncio.Server | None = None

    async def start(self, endpoint: str) -> None:
        """`host:port`. Raises OSError when it cannot listen there."""
        host, port = address_of(endpoint)
        self._server = await asyncio.start_server(
            self._serve, host or None, port, limit=_REQUEST_BYTES_MAX
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(request))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # not worth a line: scanners and half-open connections do this all day
        finally:
            writer.close()

    def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        path = rest.split(" ", 1)[0].split("?", 1)[0]
        status, body = (
            self._page(path)
            if method in ("GET", "HEAD")
            else ("405 Method Not Allowed", b"only GET and HEAD\n")
        )
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {_CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else body)

    def _page(self, path: str) -> tuple[str, bytes]:
        if path == "/metrics":
            return "200 OK", generate_latest(self._registry)
        if path == "/healthz":
            return "200 OK", b"ok\n"
        if path == "/readyz":
            if self._sources.is_ready():
                return "200 OK", b"ready\n"
            return "503 Service Unavailable", b"sees no controller's leader, or is being drained\n"
        return "404 Not Found", b"there is /metrics, /healthz and /readyz\n"
