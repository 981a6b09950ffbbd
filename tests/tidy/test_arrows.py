"""Arrows between rooms point one way, and pure rooms are pure."""

import sys

from tests.tidy.rooms import IMPURE, ROOMS, room_of
from tests.tidy.source import Source, product_sources, snippet, within

OURS = ("cluster", "node", "quorumq", "bench", "jepsen", "tests")


def wrong_imports(source: Source) -> list[str]:
    room = room_of(source.module)
    if room is None:
        return [f"{source.path}: in no room of tests/tidy/rooms.py"]
    wrong = []
    for line, name in source.imports:
        where = f"{source.path}:{line}: {room.name} may not import {name}"
        if within(name, OURS):
            if not within(name, room.may_import):
                wrong.append(where)
        elif name.split(".")[0] in sys.stdlib_module_names:
            if room.pure and within(name, IMPURE):
                wrong.append(f"{where}: the room is pure")
        elif not within(name, room.third_party):
            wrong.append(where)
    return wrong


def knows_peer_protobuf_and_raft(source: Source) -> bool:
    parts = [name.split(".") for _, name in source.imports]
    peer = any("peer_pb2" in name for name in parts)
    raft = any(name[:2] == ["cluster", "raft"] for name in parts)
    return peer and raft


def test_every_import_follows_the_table() -> None:
    assert [wrong for source in product_sources() for wrong in wrong_imports(source)] == []


def test_only_wire_knows_both_raft_messages_and_their_protobuf() -> None:
    knowing = [s.path for s in product_sources() if knows_peer_protobuf_and_raft(s)]
    assert [path for path in knowing if path != "cluster/wire.py"] == []


def test_every_room_is_in_the_table_once() -> None:
    modules = [module for room in ROOMS for module in room.modules]
    assert len(modules) == len(set(modules))


def test_the_arrow_rule_can_fail() -> None:
    forbidden = {
        "cluster.group": ["import node.config", "from quorumq import connect", "import structlog"],
        "cluster.raft.core": [
            "import asyncio",
            "from time import monotonic",
            "import os.path",
            "import grpc",
            "from google.protobuf import message",
            "from cluster import interfaces",
            "from .. import transport",
            "from ..v1 import peer_pb2",
            "def f():\n    import random",
        ],
        "cluster.controller.catalog": [
            "import logging",
            "from cluster.controller import reconciler",
        ],
        "node.partition.machine": ["import datetime", "import rocksdict", "import node.codec"],
        "node.storage.raft_log": ["import rocksdict", "from node.services import messaging"],
        "node.dispatcher": ["from node.services import errors"],
        "node.server": ["import rocksdict", "import bench.load"],
        "quorumq.producer": ["import node", "from cluster import tasks"],
        "bench.produce": ["from node import server", "import cluster.raft"],
        "jepsen.client": ["import node.config"],
        "elsewhere": [""],
    }
    for module, texts in forbidden.items():
        for text in texts:
            assert len(wrong_imports(snippet(text, module))) == 1, (module, text)


def test_the_arrow_rule_lets_good_imports_pass() -> None:
    allowed = {
        "cluster.raft.core": "from dataclasses import dataclass\nfrom .log import RaftLog",
        "cluster.controller.reconciler": "import asyncio\nfrom cluster.controller import catalog",
        "node.storage.engine": "import rocksdict\nimport threading",
        "node.services.routing": "import grpc\nfrom quorumq import connect\nimport node.dispatcher",
        "quorumq.producer": "import asyncio\nimport grpc.aio\nfrom quorumq.v1 import records_pb2",
        "bench.produce": "import subprocess\nfrom quorumq import connect",
    }
    for module, text in allowed.items():
        assert wrong_imports(snippet(text, module)) == []


def test_the_wire_rule_can_fail() -> None:
    both = "from cluster.raft import messages\nfrom cluster.v1 import peer_pb2"
    assert knows_peer_protobuf_and_raft(snippet(both, "cluster.transport"))
    assert not knows_peer_protobuf_and_raft(snippet("from cluster.v1 import peer_pb2"))
