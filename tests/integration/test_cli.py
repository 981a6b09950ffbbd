"""The `quorumq` command as a person uses it, on three processes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

from node.cli import failures
from node.local_cluster import LocalCluster

WITHIN_S = 60.0


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == failures.OK, self
        return json.loads(self.out)

    @property
    def jsonl(self) -> list[Any]:
        assert self.code == failures.OK, self
        return [json.loads(line) for line in self.out.splitlines()]


_HEED_INTERRUPTS = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


async def begun(cluster: LocalCluster, *arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "node", "--server", cluster.servers, *arguments)
    # Tests run in the background inherit that Ctrl-C is ignored.
    heeding = (sys.executable, "-c", _HEED_INTERRUPTS, *command)
    return await asyncio.create_subprocess_exec(*heeding, stdin=pipe, stdout=pipe, stderr=pipe)


async def quorumq(cluster: LocalCluster, *arguments: str, given: bytes = b"") -> Ended:
    process = await begun(cluster, *arguments)
    async with asyncio.timeout(WITHIN_S):
        out, err = await process.communicate(given)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def test_a_topic_from_its_creation_to_its_end(cluster: LocalCluster, topic: str) -> None:
    create = ("topic", "create", topic, "--partitions", "2", "--retention-bytes", "64MiB")
    created = (await quorumq(cluster, "-o", "json", *create)).json
    assert created["name"] == f"default/{topic}"
    assert (created["partitions"], created["retention_bytes"]) == (2, 64 << 20)
    again = (await quorumq(cluster, "-o", "json", *create)).json
    assert again["topic_id"] == created["topic_id"]
    other = await quorumq(cluster, "topic", "create", topic)
    assert (other.code, other.out) == (failures.REFUSED, "")
    assert other.err.startswith("error: ALREADY_EXISTS: ")
    assert "partitions is 2, not 1" in other.err

    alter = ("topic", "alter", topic, "--reset", "retention_bytes", "--retention-ms", "60000")
    altered = (await quorumq(cluster, "-o", "json", *alter)).json
    assert altered["retention_ms"] == 60_000
    assert "retention_bytes" not in altered

    listed = (await quorumq(cluster, "-o", "jsonl", "topic", "list", "--prefix", topic)).jsonl
    assert [row["name"] for row in listed] == [f"default/{topic}"]
    described = (await quorumq(cluster, "-o", "json", "topic", "describe", topic)).json
    assert [row["partition"] for row in described["partitions"]] == [0, 1]
    assert all(len(row["replicas"]) == 3 for row in described["partitions"])
    shown = await quorumq(cluster, "topic", "describe", topic)
    assert "1* 2* 3*" in shown.out

    deleted = await quorumq(cluster, "topic", "delete", topic, "--yes")
    assert (deleted.code, deleted.out, deleted.err) == (failures.OK, "", "")
    gone = await quorumq(cluster, "topic", "describe", topic)
    assert gone.code == failures.NOT_FOUND
    assert gone.err == f"error: TOPIC_NOT_FOUND: there is no topic default/{topic}\n"


async def test_lines_in_and_records_out(cluster: LocalCluster, topic: str, tmp_path: Path) -> None:
    await quorumq(cluster, "topic", "create", topic, "--partitions", "3")
    file = tmp_path / "lines"
    file.write_bytes(b"".join(b"key %d=value %d\n" % (n % 7, n) for n in range(5_000)))
    produce = ("produce", topic, str(file), "--key-separator", "=", "--header", "from=file")
    sent = (await quorumq(cluster, "-o", "json", *produce)).json
    assert (sent["records"], sent["bytes"]) == (5_000, 48_890)

    records = (await quorumq(cluster, "-o", "jsonl", "read", topic)).jsonl
    assert len(records) == 5_000
    for n in range(7):
        of_key = [row["value"] for row in records if row["key"] == f"key {n}"]
        assert of_key == [f"value {m}" for m in range(n, 5_000, 7)], "in order, each once"
    assert records[0]["headers"] == [{"name": "from", "value": "file"}]

    place = records[1_234]
    get = ("record", "get", topic, str(place["partition"]), str(place["offset"]))
    assert (await quorumq(cluster, "-o", "json", *get)).json == place
    only = await quorumq(cluster, *get, "--value")
    assert only.out == place["value"]
    beyond = await quorumq(cluster, "record", "get", topic, "0", "99999")
    assert (beyond.code, beyond.out) == (failures.REFUSED, "")
    assert beyond.err.startswith("error: OFFSET_OUT_OF_RANGE: ")

    await quorumq(cluster, "produce", topic, "--partition", "1", given=b"last\nof all")
    tail = ("read", topic, "--partition", "1", "--value", "--from")
    end = sum(row["partition"] == 1 for row in records)
    assert (await quorumq(cluster, *tail, str(end))).out == "last\nof all\n"
    assert (await quorumq(cluster, *tail, str(end), "--count", "1")).out == "last\n"
    assert (await quorumq(cluster, *tail, "latest")).out == ""
    assert len((await quorumq(cluster, *tail, "2020-01-01")).out.splitlines()) == end + 2


async def test_a_reader_that_follows_a_producer_line_by_line(
    cluster: LocalCluster, topic: str
) -> None:
    await quorumq(cluster, "topic", "create", topic)
    reader = await begun(cluster, "read", topic, "--follow", "--value")
    producer = await begun(cluster, "produce", topic, "--rate", "1000")
    assert reader.stdout is not None
    assert producer.stdin is not None
    async with asyncio.timeout(WITHIN_S):
        for number in range(3):
            producer.stdin.write(b"%d\n" % number)
            assert await reader.stdout.readline() == b"%d\n" % number
        await producer.communicate(b"")  # the end of its input
        assert producer.returncode == failures.OK
        reader.send_signal(signal.SIGINT)
        _, err = await reader.communicate()
    assert (reader.returncode, err.strip()) == (failures.INTERRUPTED, b"")


async def test_what_produce_and_read_are_refused_for(cluster: LocalCluster, topic: str) -> None:
    for command in ("produce", "read"):
        ended = await quorumq(cluster, command, "nothing", given=b"a\n")
        assert ended.code == failures.NOT_FOUND
        assert ended.err.startswith("error: TOPIC_NOT_FOUND: ")
        assert ended.err.count("\n") == 1
    await quorumq(cluster, "topic", "create", topic, "--config", "record_bytes_max=1000")
    ended = await quorumq(cluster, "produce", topic, given=b"small\n" + b"x" * 2_000)
    assert ended.code == failures.REFUSED
    assert ended.err.startswith("error: RECORD_TOO_LARGE: line 2: ")
    assert (await quorumq(cluster, "read", topic, "--value")).out == "small\n"
    ended = await quorumq(cluster, "produce", topic, "--partition", "5", given=b"a\n")
    assert ended.code == failures.NOT_FOUND
    assert ended.err.startswith("error: PARTITION_NOT_FOUND: line 1: ")
    ended = await quorumq(cluster, "produce", topic, "--header", "quorumq-mine=1", given=b"a\n")
    assert ended.code == failures.USAGE


async def test_the_cluster_is_shown_and_leaderships_are_moved(
    cluster: LocalCluster, topic: str
) -> None:
    await quorumq(cluster, "topic", "create", topic)
    status = (await quorumq(cluster, "-o", "json", "cluster", "status")).json
    assert [node["node_id"] for node in status["nodes"]] == [1, 2, 3]
    for node in status["nodes"]:
        assert node["state"] == "ACTIVE"
        assert node["disk_total_bytes"] > node["disk_free_bytes"] > 0
    shown = await quorumq(cluster, "cluster", "status")
    assert shown.out.count("ACTIVE") == 3
    health = await quorumq(cluster, "cluster", "health")
    assert (health.code, health.out) == (failures.OK, "healthy\n")

    transfer = ("cluster", "transfer-leader")
    for to_node in (1, 3):
        moved = await quorumq(cluster, "-o", "json", *transfer, topic, "0", "--to", str(to_node))
        assert moved.json["node_id"] == to_node
    before = status["controller"]["node_id"]
    moved = await quorumq(cluster, "-o", "json", *transfer, "--controller")
    assert moved.json["node_id"] != before
    unknown = await quorumq(cluster, *transfer, topic, "0", "--to", "9")
    assert unknown.code == failures.NOT_FOUND
    assert unknown.err == "error: NODE_NOT_FOUND: the cluster has no node 9\n"


async def test_operations_are_begun_and_refused(cluster: LocalCluster) -> None:
    refused = await quorumq(cluster, "cluster", "remove-node", "3")
    assert refused.code == failures.REFUSED
    assert refused.err.startswith("error: OPERATION_CONFLICT: ")
    unknown = await quorumq(cluster, "cluster", "drain", "9")
    assert unknown.code == failures.NOT_FOUND
    nobody = await quorumq(cluster, "cluster", "add-node", "9", "127.0.0.1:1")
    assert nobody.code == failures.REFUSED
    assert nobody.err.startswith("error: BAD_REQUEST: peer_endpoint: no node answers")
    again = await quorumq(
        cluster, "-o", "json", "cluster", "add-node", "3", cluster.nodes[3].peer_endpoint
    )
    assert again.json["state"] == "SUCCEEDED", "it is there already"
    assert "succeeded" in again.err, "progress goes to standard error"
    listed = (await quorumq(cluster, "-o", "json", "cluster", "operations")).json
    assert again.json["operation_id"] in [row["operation_id"] for row in listed]


async def test_a_cluster_that_is_not_healthy(cluster: LocalCluster) -> None:
    cluster.kill(2)
    health = await quorumq(cluster, "-o", "json", "cluster", "health")
    async with asyncio.timeout(WITHIN_S):
        while health.code == failures.OK:  # it takes a moment until a silent node counts as dead
            health = await quorumq(cluster, "-o", "json", "cluster", "health")
    assert health.code == failures.OTHER
    told = json.loads(health.out)
    assert not told["healthy"]
    assert "node 2 is dead" in told["problems"]


async def test_without_a_majority_one_can_read_and_nothing_is_stored_within_the_time_given(
    cluster: LocalCluster, topic: str
) -> None:
    assert (await quorumq(cluster, "topic", "create", topic)).code == failures.OK
    assert (await quorumq(cluster, "produce", topic, given=b"1\n2\n")).code == failures.OK
    everything = ("read", topic, "--follow", "--count", "2", "--value")
    at_node_1 = ("--server", cluster.nodes[1].client_endpoint)  # from its own replica: it has them
    assert (await quorumq(cluster, *at_node_1, *everything)).out == "1\n2\n"
    for node_id in (2, 3):
        cluster.kill(node_id)
    async with asyncio.timeout(20.0):
        assert (await quorumq(cluster, *everything)).out == "1\n2\n"
    async with asyncio.timeout(20.0):  # opening a producer has 30 s of its own
        ended = await quorumq(cluster, "--timeout", "3", "produce", topic, given=b"a\nb\n")
    # The node may have identities in store: then the records are on their way to a leader.
    assert ended.code in (failures.UNAVAILABLE, failures.OUTCOME_UNKNOWN), ended
    assert ended.err.startswith("error: ")
