"""Connections between nodes: frames stay whole however they are cut, strangers are turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hypothesis import given
from hypothesis import strategies as st

from cluster.frames import FRAME_BYTES_MAX, Frames, connect
from cluster.identity import Identity, answer_of
from cluster.interfaces import PeerError
from cluster.peer_server import CONNECTIONS_MAX, PeerServer
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


async def with_server(story: Callable[[str], Awaitable[None]]) -> None:
    failures: list[str] = []
    server = PeerServer(
        Listener(), IDENTITY, on_failure=lambda name, error: failures.append(f"{name}: {error!r}")
    )
    port = await server.listen("127.0.0.1:0")
    try:
        async with asyncio.timeout(30):
            await story(f"127.0.0.1:{port}")
    finally:
        await server.close()
    assert not failures


async def refused_with(frames: Frames) -> str:
    try:
        answer_of(await frames.receive())
    except PeerError as error:
        return error.code
    except ConnectionError:
        return "ENDED"
    return "ACCEPTED"


async def test_what_is_no_hello_is_refused_and_the_connection_ended() -> None:
    async def story(endpoint: str) -> None:
        later = pb.Hello(protocol=2, node_id=2, incarnation="i", boot_id="b")
        nobody = pb.Hello(protocol=1, purpose=pb.PURPOSE_STREAM, cluster_id="cluster-1")
        for frame in (b"\xff" * 20, later.SerializeToString(), nobody.SerializeToString(), b""):
            frames = await connect(endpoint, timeout_s=5)
            frames.send(frame)
            assert await refused_with(frames) == "CORRUPT"
            assert await refused_with(frames) == "ENDED"

    await with_server(story)


async def test_a_frame_that_is_too_long_ends_the_connection_before_it_is_read() -> None:
    async def story(endpoint: str) -> None:
        host, port = endpoint.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write((FRAME_BYTES_MAX + 1).to_bytes(4, "little"))
        assert await reader.read() == b""
        writer.close()

    await with_server(story)


async def test_more_connections_than_allowed_are_closed_and_room_is_given_back() -> None:
    async def story(endpoint: str) -> None:
        hello = IDENTITY.hello(1, pb.PURPOSE_STREAM)
        held = [await connect(endpoint, timeout_s=5) for _ in range(CONNECTIONS_MAX)]
        held[-1].send(hello)
        assert await refused_with(held[-1]) == "ACCEPTED"
        one_more = await connect(endpoint, timeout_s=5)
        one_more.send(hello)
        assert await refused_with(one_more) == "ENDED"
        for frames in held:
            frames.abort()
        while True:
            again = await connect(endpoint, timeout_s=5)
            again.send(hello)
            if await refused_with(again) == "ACCEPTED":
                break
        again.abort()

    await with_server(story)
