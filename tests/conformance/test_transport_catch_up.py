"""Catch-up streams of both transports: whole, in order, resumable, held back by a slow reader."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from cluster.interfaces import (
    CatchUpChunk,
    CatchUpRequest,
    CheckpointMeta,
    PeerError,
)
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, EntryKind
from tests.conformance.transport_worlds import (
    Node,
    Story,
    World,
    refused,
    run_on_simulation,
    run_on_tcp,
)

Run = Callable[[Story], None]

REQUEST = CatchUpRequest(group_id=1, from_replica=1, to_replica=2, applied_index=0, staged_index=0)
META = CheckpointMeta(index=40, term=2, configuration=Configuration.of([1, 2]), live_index=3)


@pytest.fixture(params=[run_on_tcp, run_on_simulation], ids=["tcp", "simulation"])
def run(request: pytest.FixtureRequest) -> Run:
    runner: Run = request.param
    return runner


class Sender:
    """Serves entries 1..40 above what the receiver has, then a segment; notes what it did."""

    def __init__(self, *, size: int = 100, stop_at: int = 1 << 30) -> None:
        self.sent: list[int] = []
        self.requests: list[CatchUpRequest] = []
        self.closed = asyncio.Event()
        self._size = size
        self._stop_at = stop_at

    async def __call__(self, request: CatchUpRequest) -> AsyncIterator[CatchUpChunk]:
        self.requests.append(request)
        try:
            yield CatchUpChunk(meta=META)
            for index in range(max(request.applied_index, request.staged_index) + 1, 41):
                if index == self._stop_at:
                    await asyncio.Event().wait()
                self.sent.append(index)
                data = bytes(self._size)
                entry = Entry.create(index=index, term=2, kind=EntryKind.COMMAND, data=data)
                rows = [(b"row", index.to_bytes(2, "big"))]
                yield CatchUpChunk(entries=[entry], rows=rows)
            yield CatchUpChunk(segments=[(b"a", b"state")])
            yield CatchUpChunk(done=True)
        finally:
            self.closed.set()


async def fetch(node: Node, request: CatchUpRequest, into: list[CatchUpChunk]) -> None:
    async for chunk in node.transport.fetch_catch_up(1, request):
        into.append(chunk)


def test_a_catch_up_comes_whole_and_in_order(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        one.listener.chunks = sender = Sender()
        two.transport.set_peer(1, one.endpoint)
        chunks: list[CatchUpChunk] = []
        await fetch(two, REQUEST, chunks)
        assert chunks[0].meta == META
        assert [chunk.entries[0].index for chunk in chunks[1:41]] == list(range(1, 41))
        assert chunks[40].rows == [(b"row", b"\x00\x28")]
        assert chunks[41].segments == [(b"a", b"state")]
        assert chunks[42].done
        assert len(chunks) == 43
        assert sender.requests == [REQUEST]
        await sender.closed.wait()

    run(story)


def test_a_catch_up_breaks_with_its_sender_and_resumes_from_another_run(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        one.listener.chunks = Sender(stop_at=21)
        two.transport.set_peer(1, one.endpoint)
        chunks: list[CatchUpChunk] = []

        async def broken() -> None:
            async for chunk in two.transport.fetch_catch_up(1, REQUEST):
                chunks.append(chunk)
                if len(chunks) == 21:
                    await world.stop(one)

        assert await refused(broken()) == "UNREACHABLE"
        again = await world.start(1, boot_id="boot-2", at=one.endpoint)
        again.listener.chunks = sender = Sender()
        staged = chunks[-1].entries[0].index
        rest = CatchUpRequest(1, 1, 2, applied_index=0, staged_index=staged)
        await fetch(two, rest, chunks)
        entries = [entry.index for chunk in chunks for entry in chunk.entries]
        assert entries == list(range(1, 41))
        assert sender.sent == list(range(21, 41))

    run(story)


def test_a_catch_up_may_be_refused_or_left_early(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        two.transport.set_peer(1, one.endpoint)

        async def refuse(request: CatchUpRequest) -> AsyncIterator[CatchUpChunk]:
            raise PeerError("NOT_FOUND", f"no group {request.group_id}")
            yield CatchUpChunk(done=True)

        one.listener.chunks = refuse
        with pytest.raises(PeerError, match="NOT_FOUND: no group 1"):
            await fetch(two, REQUEST, [])
        one.listener.chunks = sender = Sender(stop_at=5)
        chunks = two.transport.fetch_catch_up(1, REQUEST)
        async with contextlib.aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.entries:
                    break
        async with asyncio.timeout(2):
            await sender.closed.wait()
        assert await refused(anext(two.transport.fetch_catch_up(9, REQUEST))) == "UNREACHABLE"

    run(story)


def test_a_slow_reader_holds_the_sender_back(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        one.listener.chunks = sender = Sender(size=4 << 20)
        two.transport.set_peer(1, one.endpoint)
        chunks = two.transport.fetch_catch_up(1, REQUEST)
        async with contextlib.aclosing(chunks):  # type: ignore[type-var]
            await anext(chunks)
            await asyncio.sleep(0.5)
            assert len(sender.sent) <= 6, f"{len(sender.sent)} chunks of 4 MiB are on the way"
        async with asyncio.timeout(2):
            await sender.closed.wait()

    run(story)
