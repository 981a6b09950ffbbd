"""Which room may import which. A change of this table is a design decision."""

from dataclasses import dataclass

from tests.tidy.source import within

# What a PURE room must not touch though it is in the standard library.
IMPURE = (
    "asyncio",
    "concurrent",
    "datetime",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "queue",
    "random",
    "secrets",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
)

# The catalog in files by job, and the policy of placement.
CONTROLLER_PURE = tuple(
    f"cluster.controller.{name}"
    for name in (
        "apply_groups",
        "apply_members",
        "apply_operations",
        "apply_topics",
        "catalog",
        "commands",
        "model",
        "placement",
        "plan",
        "plan_operations",
        "tables",
    )
)

PROTOBUF = ("google.protobuf",)
GRPC = ("grpc", "google.protobuf")
SERVING = (
    *GRPC,
    "google.rpc",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "prometheus_client",
    "structlog",
    "zstandard",
)


@dataclass(frozen=True)
class Room:
    """Files whose module is one of `modules` or inside one. The longest match decides."""

    name: str
    modules: tuple[str, ...]
    may_import: tuple[str, ...]
    third_party: tuple[str, ...] = ()
    pure: bool = False


ROOMS = (
    # cluster/ agrees on bytes.
    Room("raft", ("cluster.raft",), ("cluster.raft",), pure=True),
    Room(
        "controller, pure",
        CONTROLLER_PURE,
        (*CONTROLLER_PURE, "cluster.raft"),
        pure=True,
    ),
    Room("cluster", ("cluster",), ("cluster",), GRPC),
    # node/ gives the bytes meaning.
    Room(
        "partition",
        ("node.partition",),
        ("node.partition", "cluster.raft"),
        pure=True,
    ),
    Room("codec", ("node.codec",), ("node.codec", "node.partition", "node.v1"), PROTOBUF),
    Room(
        "ingest",
        ("node.ingest", "node.batches"),
        ("node.ingest", "node.batches", "node.partition", "node.v1"),
        (*PROTOBUF, "zstandard"),
    ),
    Room(
        "replica",
        ("node.replica", "node.partitions"),
        (
            "node.replica",
            "node.partitions",
            "node.partition",
            "node.storage",
            "node.codec",
            "node.metrics",
            "cluster",
        ),
    ),
    Room(
        "engine",
        ("node.storage.engine",),
        ("node.storage", "node.config", "node.metrics", "cluster"),
        ("rocksdict", "structlog"),
    ),
    Room(
        "storage",
        ("node.storage",),
        ("node.storage", "node.v1", "node.codec", "node.config", "node.metrics", "cluster"),
        (*PROTOBUF, "structlog"),
    ),
    Room(
        "dispatcher",
        ("node.dispatcher",),
        (
            "node.dispatcher",
            "node.partition",
            "node.replica",
            "node.batches",
            "node.storage",
            "node.v1",
            "node.codec",
            "node.config",
            "node.metrics",
            "cluster",
        ),
        (*PROTOBUF, "structlog"),
    ),
    Room(
        "services",
        ("node.services",),
        (
            "node.services",
            "node.dispatcher",
            "node.partition",
            "node.replica",
            "node.partitions",
            "node.ingest",
            "node.batches",
            "node.storage",
            "node.v1",
            "node.codec",
            "node.config",
            "node.metrics",
            "cluster",
            "quorumq",
        ),
        SERVING,
    ),
    # The composition root and the command line see everything; nothing below may import them.
    Room("node", ("node",), ("node", "cluster", "quorumq"), (*SERVING, "click", "rich", "uvloop")),
    # From outside.
    Room("client", ("quorumq",), ("quorumq",), (*GRPC, "google.rpc", "grpc_status", "zstandard")),
    Room("bench", ("bench",), ("bench", "quorumq"), (*GRPC, "click", "rich", "uvloop")),
    Room("jepsen", ("jepsen",), ("jepsen", "quorumq"), (*GRPC, "click", "rich", "uvloop")),
)


def room_of(module: str) -> Room | None:
    """The room that a module is in; None for a module of no room."""
    fitting = [
        (len(prefix), room)
        for room in ROOMS
        for prefix in room.modules
        if within(module, (prefix,))
    ]
    return max(fitting, key=lambda fit: fit[0])[1] if fitting else None
