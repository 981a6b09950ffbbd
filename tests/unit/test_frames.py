"""Connections between nodes: frames stay whole however they are cut, strangers are turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hypothesis import given
from hypothesis import strategies as st

from cluster.frames import FRAME_BYTES_MAX, Frames, connect
from cluster.identity import GOOD, Identity, answer_of
from cluster.interfaces import PeerError
from cluster.peer_server import SERVICES_MAX, STRANGERS_MAX, PeerServer
from cluster.v1 import peer_pb2 as pb
from tests.conformance.transport_worlds import Listener

IDENTITY = Identity(node_id=1, incarnation="inc-1", boot_id="boot-1", cluster_id="cluster-1")


def framed(*payloads: bytes) -> bytes:
    return b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(0, 60)))
def test_frames_come_whole_however_the_bytes_are_cut(
    payloads: list[bytes], cuts: list[int]
) -> None:
    frames, got = Frames(), list[bytes]()
    frames.sink = got.append
    rest = framed(*payloads)
    for cut in cuts:
        frames.data_received(rest[:cut])
        rest = rest[cut:]
    frames.data_received(rest)
    assert got == payloads


Services = Callable[[Frames], Awaitable[None]]
Story = Callable[[int], Awaitable[None]]


async def with_server(story: Story, services: Services | None = None) -> None:
    """`story` is told the port."""
    failures: list[str] = []
    server = PeerServer(
        Listener(), IDENTITY, on_failure=lambda name, error: failures.append(f"{name}: {error!r}")
    )
    server.services = services
    port = await server.listen("127.0.0.1:0")
    try:
        async with asyncio.timeout(60):
            await story(port)
    finally:
        await server.close()
    assert not failures


async def connected(port: int, hello: bytes | None = None) -> Frames:
    frames = await connect(["127.0.0.1"], port, timeout_s=5)
    if hello is not None:
        frames.send(hello)
    return frames


async def told(frames: Frames) -> str:
    try:
        answer_of(await frames.receive())
    except PeerError as error:
        return error.code
    except ConnectionError:
        return "ENDED"
    return "ACCEPTED"


STREAM = IDENTITY.hello(1, pb.PURPOSE_STREAM)
SERVICE = IDENTITY.hello(1, pb.PURPOSE_SERVICE)


async def test_what_is_no_hello_is_refused_and_the_connection_ended() -> None:
    async def story(port: int) -> None:
        later = pb.Hello(protocol=2, node_id=2, incarnation="i", boot_id="b")
        nobody = pb.Hello(protocol=1, purpose=pb.PURPOSE_STREAM, cluster_id="cluster-1")
        for frame in (b"\xff" * 20, later.SerializeToString(), nobody.SerializeToString(), b""):
            frames = await connected(port, frame)
            assert await told(frames) == "CORRUPT"
            assert await told(frames) == "ENDED"

    await with_server(story)


async def test_a_refusal_arrives_though_its_reader_is_still_writing() -> None:
    async def story(port: int) -> None:
        other = Identity(node_id=2, incarnation="i", boot_id="b", cluster_id="cluster-2")
        frames = await connected(port, other.hello(1, pb.PURPOSE_STREAM))
        for _ in range(64):
            frames.send(bytes(1 << 20))
        assert await told(frames) == "WRONG_CLUSTER"
        frames.abort()

    await with_server(story)


async def test_a_frame_that_is_too_long_ends_the_connection_before_it_is_read() -> None:
    async def story(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((FRAME_BYTES_MAX + 1).to_bytes(4, "little"))
        assert await reader.read() == b""
        writer.close()

    await with_server(story)


async def test_strangers_are_bounded_and_room_is_given_back() -> None:
    async def story(port: int) -> None:
        held = [await connected(port) for _ in range(STRANGERS_MAX)]
        held[-1].send(STREAM)
        assert await told(held[-1]) == "ACCEPTED", "all of them were taken in"
        await connected(port)
        assert await told(await connected(port, STREAM)) == "ENDED"
        for frames in held:
            frames.abort()
        while await told(await connected(port, STREAM)) != "ACCEPTED":
            pass

    await with_server(story)


async def test_services_are_bounded_and_take_no_room_from_streams() -> None:
    async def story(port: int) -> None:
        held = [await connected(port, SERVICE) for _ in range(SERVICES_MAX)]
        for frames in held:
            assert await told(frames) == "ACCEPTED"
        assert await told(await connected(port, SERVICE)) == "RESOURCE_EXHAUSTED"
        assert await told(await connected(port, STREAM)) == "ACCEPTED"
        held.pop().abort()
        while await told(await connected(port, SERVICE)) != "ACCEPTED":
            pass
        for frames in held:
            frames.abort()

    async def idle(frames: Frames) -> None:
        await frames.receive()

    await with_server(story, idle)


async def test_one_task_reads_while_another_one_waits_for_room() -> None:
    """As both ends of a stream of requests and answers do."""
    may_read = asyncio.Event()

    async def reluctant(frames: Frames) -> None:
        await may_read.wait()
        for _ in range(64):
            size = len(await frames.receive())
        frames.send(GOOD, size.to_bytes(4, "little"))

    async def story(port: int) -> None:
        frames = await connected(port, SERVICE)
        assert await told(frames) == "ACCEPTED"
        answer = asyncio.ensure_future(frames.receive())
        for _ in range(64):
            frames.send(bytes(1 << 20))
        room = asyncio.ensure_future(frames.drained())
        await asyncio.sleep(0.2)
        assert not answer.done()
        assert not room.done(), "the other end takes nothing"
        may_read.set()
        await room
        assert answer_of(await answer) == (1 << 20).to_bytes(4, "little")
        frames.abort()

    await with_server(story, reluctant)


async def test_what_stands_still_for_a_peer_ends_with_its_stream() -> None:
    async def idle(frames: Frames) -> None:
        await frames.receive()

    async def story(port: int) -> None:
        stream = await connected(port, STREAM)
        assert await told(stream) == "ACCEPTED"
        service = await connected(port, SERVICE)
        assert await told(service) == "ACCEPTED"
        stream.abort()
        assert await told(service) == "ENDED"

    await with_server(story, idle)
