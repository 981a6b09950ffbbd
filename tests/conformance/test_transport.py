"""What cluster.interfaces.Transport and Receiver promise, told over real connections and over
the simulated network: the simulator may not be kinder or harsher than what it replaces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cluster.interfaces import (
    CatchUpRequest,
    Envelope,
    NodeBeat,
    Peer,
    PeerError,
)
from cluster.raft.messages import AppendEntries, Entry, EntryKind, Heartbeat
from tests.conformance.transport_worlds import (
    Listener,
    Story,
    World,
    introduce,
    refused,
    run_on_simulation,
    run_on_tcp,
)

Run = Callable[[Story], None]
REQUEST = CatchUpRequest(group_id=1, from_replica=1, to_replica=2, applied_index=0, staged_index=0)


@pytest.fixture(params=[run_on_tcp, run_on_simulation], ids=["tcp", "simulation"])
def run(request: pytest.FixtureRequest) -> Run:
    runner: Run = request.param
    return runner


def append(number: int, size: int = 100) -> Envelope:
    data = number.to_bytes(8, "big") + bytes(max(0, size - 8))
    entry = Entry.create(index=number + 1, term=1, kind=EntryKind.COMMAND, data=data)
    return Envelope(None, [(7, AppendEntries(1, 2, 1, number, 1, 0, [entry]))])


def numbers(listener: Listener) -> list[int]:
    """Of the appends heard so far."""
    heard = []
    for _, envelope in listener.received:
        for _, message in envelope.messages:
            assert isinstance(message, AppendEntries)
            heard.append(message.prev_log_index)
    return heard


def test_envelopes_arrive_whole_in_order_and_once(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        for number in range(1000):
            one.transport.send(2, append(number))
            if number % 100 == 0:
                await asyncio.sleep(0.001)
        await two.listener.until(lambda: len(two.listener.received) == 1000)
        assert [envelope for _, envelope in two.listener.received] == [
            append(n) for n in range(1000)
        ]
        assert {peer for peer, _ in two.listener.received} == {Peer(1, "inc-1", "boot-1")}
        assert one.listener.received == []

    run(story)


def test_a_beat_travels_with_the_heartbeats(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        sent = Envelope(
            NodeBeat(12345, ((1, 2), (3, 4))), [(g, Heartbeat(1, 2, 3, 4)) for g in (1, 3)]
        )
        one.transport.send(2, sent)
        one.transport.send(2, Envelope(NodeBeat(12346), []))
        await two.listener.until(lambda: len(two.listener.received) == 2)
        assert [envelope for _, envelope in two.listener.received] == [
            sent,
            Envelope(NodeBeat(12346), []),
        ]

    run(story)


def test_both_directions_are_independent(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        for number in range(100):
            one.transport.send(2, append(number))
            two.transport.send(1, append(number))
        for node in (one, two):
            await node.listener.until(lambda node=node: len(numbers(node.listener)) == 100)  # type: ignore[misc]
            assert numbers(node.listener) == list(range(100))

    run(story)


def test_a_big_envelope_passes_between_small_ones(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        sent = [append(0), append(1, 32 << 20), append(2)]
        for envelope in sent:
            one.transport.send(2, envelope)
        await two.listener.until(lambda: len(numbers(two.listener)) == 3, timeout_s=30)
        assert [envelope for _, envelope in two.listener.received] == sent

    run(story)


def test_an_overflowing_queue_is_a_break_and_the_next_stream_works(run: Run) -> None:
    """Rule R19: bounded, and what was dropped is told."""

    async def story(world: World) -> None:
        one, two = await world.start(1, queue_bytes_max=4 << 20), await world.start(2)
        await introduce(one, two)
        for number in range(64):
            one.transport.send(2, append(number, 1 << 20))
        await one.listener.until(lambda: one.listener.events[-2:] == ["lost 2", "connected 2"])
        one.transport.send(2, append(1000))
        await two.listener.until(lambda: 1000 in numbers(two.listener))
        heard = numbers(two.listener)
        assert heard == sorted(set(heard))
        assert len(heard) <= 32, "more than the queue and the network hold got through"

    run(story)


def test_without_a_stream_sending_drops(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        one.transport.send(2, append(0))  # a node nobody told it of
        one.transport.set_peer(2, await world.unused_endpoint())
        await asyncio.sleep(0.3)
        one.transport.send(2, append(1))  # one that nobody listens for
        assert one.listener.events == []
        one.transport.set_peer(2, two.endpoint)
        await one.listener.until(lambda: one.listener.events == ["connected 2"])
        one.transport.send(2, append(2))
        await two.listener.until(lambda: bool(two.listener.received))
        assert numbers(two.listener) == [2]

    run(story)


def test_a_restarted_peer_is_reached_within_half_a_second_as_a_new_boot(run: Run) -> None:
    async def story(world: World) -> None:
        loop = asyncio.get_running_loop()
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        await world.stop(two)
        await one.listener.until(lambda: one.listener.events == ["connected 2", "lost 2"])
        one.transport.send(2, append(1))
        await asyncio.sleep(2.5)  # long enough for every back-off to have grown to its cap
        again = await world.start(2, boot_id="boot-2", at=two.endpoint)
        began = loop.time()
        await introduce(again, one)
        await one.listener.until(lambda: one.listener.events[2:] == ["connected 2"])
        assert loop.time() - began < 0.5
        one.transport.send(2, append(2))
        again.transport.send(1, append(3))
        await again.listener.until(lambda: bool(again.listener.received))
        await one.listener.until(lambda: bool(one.listener.received))
        assert numbers(again.listener) == [2], "what was sent while it was down came late"
        assert one.listener.received[0][0] == Peer(2, "inc-2", "boot-2")

    run(story)


def test_a_newer_run_of_a_node_supersedes_the_stream_of_the_older(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        newer = await world.start(1, boot_id="boot-2")
        newer.transport.set_peer(2, two.endpoint)
        await newer.listener.until(lambda: newer.listener.events == ["connected 2"])
        await one.listener.until(lambda: one.listener.events[:2] == ["connected 2", "lost 2"])
        newer.transport.send(2, append(5))
        await two.listener.until(lambda: bool(two.listener.received))
        assert two.listener.received == [(Peer(1, "inc-1", "boot-2"), append(5))]

    run(story)


def test_a_silent_peer_is_noticed_and_found_again_soon_after(run: Run) -> None:
    """No reset, no answer: as behind a dead switch. TCP alone would wait for minutes."""

    async def story(world: World) -> None:
        loop = asyncio.get_running_loop()
        one, two = await world.start(1), await world.start(2)
        one.transport.set_peer(2, await world.silence(two, seen_from=one))
        await one.listener.until(lambda: one.listener.events == ["connected 2"])
        world.mute(two, seen_from=one)
        began = loop.time()
        one.transport.send(2, append(1))
        await one.listener.until(lambda: one.listener.events[1:] == ["lost 2"])
        assert loop.time() - began < 3.0
        await asyncio.sleep(2.0)
        world.unmute(two, seen_from=one)
        began = loop.time()
        await one.listener.until(lambda: one.listener.events[2:] == ["connected 2"])
        assert loop.time() - began < 0.7
        one.transport.send(2, append(2))
        await two.listener.until(lambda: 2 in numbers(two.listener))

    run(story)


def test_a_forgotten_peer_hears_nothing_more(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        one.transport.set_peer(2, None)
        await one.listener.until(lambda: one.listener.events == ["connected 2", "lost 2"])
        one.transport.send(2, append(1))
        assert await refused(one.transport.call(2, "x", b"", timeout_ms=500)) == "UNREACHABLE"
        await asyncio.sleep(0.5)
        assert two.listener.received == []
        assert one.listener.events == ["connected 2", "lost 2"]

    run(story)


def test_a_peer_that_moved_is_followed(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        await world.stop(two)
        moved = await world.start(2, boot_id="boot-2")
        one.transport.set_peer(2, moved.endpoint)
        one.transport.set_peer(2, moved.endpoint)  # again: no change
        await one.listener.until(lambda: one.listener.events[-2:] == ["lost 2", "connected 2"])
        one.transport.send(2, append(1))
        await moved.listener.until(lambda: numbers(moved.listener) == [1])

    run(story)


def test_another_cluster_is_refused(run: Run) -> None:
    """Everywhere; founding is for nodes that belong to none yet."""

    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2, cluster_id="cluster-2")
        two.listener.calls = echo
        one.transport.set_peer(2, two.endpoint)
        call = one.transport.call
        assert await refused(call(2, "status", b"", timeout_ms=2000)) == "WRONG_CLUSTER"
        assert await refused(anext(one.transport.fetch_catch_up(2, REQUEST))) == "WRONG_CLUSTER"
        assert await refused(call(2, "founding.hello", b"", timeout_ms=2000)) == "WRONG_CLUSTER"
        three = await world.start(3, cluster_id="")
        ask = three.transport.call(0, "founding.x", b"", timeout_ms=2000, endpoint=two.endpoint)
        assert await ask == b"3 founding.x "
        await asyncio.sleep(0.5)
        one.transport.send(2, append(1))
        assert one.listener.events == []
        assert two.listener.received == []

    run(story)


def test_another_node_at_the_address_is_refused(run: Run) -> None:
    async def story(world: World) -> None:
        one, three = await world.start(1), await world.start(3)
        three.listener.calls = echo
        one.transport.set_peer(2, three.endpoint)
        assert await refused(one.transport.call(2, "x", b"", timeout_ms=2000)) == "WRONG_NODE"
        await asyncio.sleep(0.5)
        assert one.listener.events == []

    run(story)


def test_streams_begin_when_the_cluster_is_known_and_founding_calls_before(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1, cluster_id=""), await world.start(2, cluster_id="")
        two.listener.calls = echo
        for node, peer in ((one, two), (two, one)):
            node.transport.set_peer(peer.identity.node_id, peer.endpoint)
        ask = one.transport.call(0, "founding.hello", b"x", timeout_ms=2000, endpoint=two.endpoint)
        assert await ask == b"1 founding.hello x"
        assert await refused(one.transport.call(2, "x", b"", timeout_ms=2000)) == "WRONG_CLUSTER"
        assert one.listener.events == []
        one.identity.cluster_id = two.identity.cluster_id = "founded"
        await introduce(one, two)
        one.transport.send(2, append(1))
        await two.listener.until(lambda: numbers(two.listener) == [1])

    run(story)


async def echo(node_id: int, method: str, request: bytes) -> bytes:
    return f"{node_id} {method} ".encode() + request


def test_calls_are_answered_or_say_why_not(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)

        async def answer(node_id: int, method: str, request: bytes) -> bytes:
            if method == "busy":
                raise PeerError("BUSY", "later")
            return await echo(node_id, method, request)

        two.listener.calls = answer
        call = one.transport.call
        assert (
            await call(2, "status", b"x" * 100_000, timeout_ms=2000)
            == b"1 status " + b"x" * 100_000
        )
        with pytest.raises(PeerError, match="BUSY: later"):
            await call(2, "busy", b"", timeout_ms=2000)
        elsewhere = await world.unused_endpoint()
        unreachable = call(2, "status", b"", timeout_ms=2000, endpoint=elsewhere)
        assert await refused(unreachable) == "UNREACHABLE"
        assert await refused(call(9, "status", b"", timeout_ms=2000)) == "UNREACHABLE"
        await world.stop(two)
        assert await refused(call(2, "status", b"", timeout_ms=2000)) == "UNREACHABLE"

    run(story)


def test_a_call_times_out_and_its_handler_is_stopped(run: Run) -> None:
    async def story(world: World) -> None:
        loop = asyncio.get_running_loop()
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        stopped = asyncio.Event()

        async def never(node_id: int, method: str, request: bytes) -> bytes:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            raise AssertionError("unreachable")

        two.listener.calls = never
        began = loop.time()
        assert await refused(one.transport.call(2, "x", b"", timeout_ms=200)) == "TIMEOUT"
        assert 0.19 < loop.time() - began < 1.0
        async with asyncio.timeout(2):
            await stopped.wait()

    run(story)


def test_an_idle_connection_costs_nothing(run: Run) -> None:
    async def story(world: World) -> None:
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        await asyncio.sleep(0.2)
        before = world.work_done()
        await asyncio.sleep(2)
        assert world.work_done() - before < 2.0
        one.transport.send(2, append(1))
        await two.listener.until(lambda: numbers(two.listener) == [1])

    run(story)


def test_after_close_nothing_is_heard_or_left_running(run: Run) -> None:
    async def story(world: World) -> None:
        loop = asyncio.get_running_loop()
        one, two = await world.start(1), await world.start(2)
        await introduce(one, two)
        for number in range(100):
            one.transport.send(2, append(number, 100_000))
        began = loop.time()
        await world.stop(one)
        assert loop.time() - began < 2.0
        events = list(one.listener.events)
        one.transport.send(2, append(1000))
        one.transport.set_peer(3, two.endpoint)
        await two.listener.until(lambda: two.listener.events == ["connected 1", "lost 1"])
        await asyncio.sleep(0.2)
        assert one.listener.events == events == ["connected 2"]

    run(story)
