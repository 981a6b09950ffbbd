"""A Channel carries a client's stories the same way over gRPC, between nodes and in process:
statuses, streams, cancellation, broken connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import grpc
import pytest

from quorumq import methods
from quorumq.channel import CallFailed, Channel
from quorumq.errors import ConnectionLost, QuorumqError, Unreachable, from_status
from quorumq.in_process import Handler
from quorumq.produce_link import ProduceLink
from quorumq.v1 import messaging_pb2 as pb
from tests.client_bed.model import Refused
from tests.client_bed.worlds import Bed, Run, all_worlds, both_worlds, in_process


def _commit(subscription: str) -> pb.CommitRequest:
    return pb.CommitRequest(topic="t", subscription=subscription)


async def _channel(bed: Bed, *handlers: Handler) -> Channel:
    await bed.world.serve(9, {handler.method.path: handler for handler in handlers})
    return bed.world.channel(bed.world.endpoint(9))


async def _echo(request: pb.CommitRequest, _call: Any) -> pb.CommitResponse:
    results = [pb.CommitResult(partition=at.partition) for at in request.positions]
    return pb.CommitResponse(results=results)


async def _never(*_: Any) -> Any:
    await asyncio.get_running_loop().create_future()


async def _produced(requests: Any, call: Any) -> None:
    async for request in requests:
        answer = pb.ProduceResponse(request_id=request.produce.request_id)
        await call.write(pb.ProduceStreamResponse(produced=answer))


@both_worlds
def test_unary(run: Run) -> None:
    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.COMMIT, _echo))
        await channel.ready(5.0)
        request = pb.CommitRequest(positions=[pb.CommitPosition(partition=7)])
        response = await channel.unary(methods.COMMIT, request, timeout_s=5.0)
        assert [result.partition for result in response.results] == [7]
        await channel.close()

    run(story)


@both_worlds
def test_a_refusal_keeps_its_reason_and_policy(run: Run) -> None:
    async def refuse(_request: Any, _call: Any) -> Any:
        raise Refused("THROTTLED", "slowly", retriable=True, retry_after_ms=70)

    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.COMMIT, refuse))
        with pytest.raises(CallFailed) as caught:
            await channel.unary(methods.COMMIT, _commit("s"), timeout_s=5.0)
        failure = caught.value
        error = from_status(failure.code, failure.details, failure.trailers)
        assert (error.reason, error.message) == ("THROTTLED", "slowly")
        assert (error.retriable, error.outcome_known, error.retry_after_ms) == (True, True, 70)
        await channel.close()

    run(story)


@both_worlds
def test_a_call_without_answer_ends_at_its_deadline_with_unknown_outcome(run: Run) -> None:
    remaining: list[float] = []

    async def slow(_request: Any, call: Any) -> Any:
        remaining.append(call.time_remaining())
        await _never()

    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.COMMIT, slow))
        with pytest.raises(CallFailed) as caught:
            await channel.unary(methods.COMMIT, _commit("s"), timeout_s=0.2)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not from_status(caught.value.code, "", ()).outcome_known
        assert 0.0 < remaining[0] <= 0.25  # gRPC counts in whole milliseconds
        await channel.close()

    run(story)


@both_worlds
def test_a_method_nobody_serves(run: Run) -> None:
    async def story(bed: Bed) -> None:
        channel = await _channel(bed)
        with pytest.raises(CallFailed) as caught:
            await channel.unary(methods.COMMIT, _commit("s"), timeout_s=5.0)
        assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
        await channel.close()

    run(story)


@both_worlds
def test_a_handlers_bug_is_unknown(run: Run) -> None:
    async def buggy(_request: Any, _call: Any) -> Any:
        raise KeyError("oops")

    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.COMMIT, buggy))
        with pytest.raises(CallFailed) as caught:
            await channel.unary(methods.COMMIT, _commit("s"), timeout_s=5.0)
        assert caught.value.code is grpc.StatusCode.UNKNOWN
        await channel.close()

    run(story)


@all_worlds
def test_nobody_there_is_told_before_anything_is_sent(run: Run) -> None:
    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.COMMIT, _echo))
        await bed.world.cut(9)
        for _ in range(3):
            async with asyncio.timeout(20.0):  # a refusal is told at once, not when time is up
                with pytest.raises(CallFailed) as caught:
                    await channel.ready(60.0)
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        await channel.close()

    run(story)


@both_worlds
def test_a_server_that_comes_back_is_reached_again(run: Run) -> None:
    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.COMMIT, _echo))
        await channel.unary(methods.COMMIT, _commit("s"), timeout_s=5.0)
        await bed.world.cut(9)
        with pytest.raises(CallFailed):
            await channel.unary(methods.COMMIT, _commit("s"), timeout_s=5.0)
        await bed.world.serve(9, {methods.COMMIT.path: Handler(methods.COMMIT, _echo)})
        async with asyncio.timeout(5.0):
            while True:
                try:
                    await channel.ready(1.0)
                    break
                except CallFailed:
                    await asyncio.sleep(0.05)
        await channel.unary(methods.COMMIT, _commit("s"), timeout_s=5.0)
        await channel.close()

    run(story)


@all_worlds
def test_server_stream_in_order_to_its_end(run: Run) -> None:
    async def counting(_request: Any, _call: Any) -> AsyncIterator[pb.ReadResponse]:
        for number in range(300):
            yield pb.ReadResponse(heartbeat=pb.Heartbeat(sent_at_ms=number))

    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.READ, counting))
        stream = channel.server_stream(methods.READ, pb.ReadRequest(topic="t"))
        seen = [response.heartbeat.sent_at_ms async for response in stream]
        assert seen == list(range(300))
        await channel.close()

    run(story)


@all_worlds
def test_a_stream_that_fails_half_way(run: Run) -> None:
    async def failing(_request: Any, _call: Any) -> AsyncIterator[pb.ReadResponse]:
        yield pb.ReadResponse(heartbeat=pb.Heartbeat(sent_at_ms=1))
        raise Refused("TOPIC_REPLACED", "gone")

    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.READ, failing))
        stream = channel.server_stream(methods.READ, pb.ReadRequest(topic="t"))
        assert (await anext(stream)).heartbeat.sent_at_ms == 1
        with pytest.raises(CallFailed) as caught:
            await anext(stream)
        error = from_status(caught.value.code, caught.value.details, caught.value.trailers)
        assert error.reason == "TOPIC_REPLACED"
        await channel.close()

    run(story)


@all_worlds
def test_cancelling_a_stream_reaches_the_handler(run: Run) -> None:
    cancelled = asyncio.Event()

    async def endless(_request: Any, _call: Any) -> AsyncIterator[pb.ReadResponse]:
        try:
            yield pb.ReadResponse(heartbeat=pb.Heartbeat(sent_at_ms=1))
            await _never()
        finally:
            cancelled.set()

    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.READ, endless))
        stream = channel.server_stream(methods.READ, pb.ReadRequest(topic="t"))
        await anext(stream)
        stream.cancel()
        with pytest.raises(CallFailed) as caught:
            await anext(stream)
        assert caught.value.code is grpc.StatusCode.CANCELLED
        async with asyncio.timeout(5.0):
            await cancelled.wait()
        await channel.close()

    run(story)


@both_worlds
def test_a_cut_breaks_what_is_under_way(run: Run) -> None:
    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.COMMIT, _never))
        call = asyncio.create_task(channel.unary(methods.COMMIT, _commit("s"), timeout_s=30.0))
        await asyncio.sleep(0.1)
        await bed.world.cut(9)
        with pytest.raises(CallFailed) as caught:
            await call
        error = from_status(caught.value.code, caught.value.details, caught.value.trailers)
        assert not error.outcome_known
        await channel.close()

    run(story)


# ------------------------------------------------------------------------------- produce link


def _link(channel: Channel, **options: Any) -> ProduceLink[Any, pb.ProduceStreamResponse]:
    def attach(request: pb.ProduceStreamRequest, number: int) -> pb.ProduceStreamRequest:
        request.produce.request_id = number
        return request

    return ProduceLink(
        channel,
        methods.PRODUCE_STREAM,
        attach_id=attach,
        id_of=lambda response: response.produced.request_id,
        **options,
    )


@all_worlds
def test_a_link_matches_answers_in_any_order(run: Run) -> None:
    async def backwards(requests: Any, call: Any) -> None:
        held = []
        async for request in requests:
            held.append(request.produce)
            if len(held) == 5:
                for produce in reversed(held):
                    answer = pb.ProduceResponse(
                        request_id=produce.request_id, base_offset=produce.partition
                    )
                    await call.write(pb.ProduceStreamResponse(produced=answer))
                held.clear()

    async def story(bed: Bed) -> None:
        link = _link(await _channel(bed, Handler(methods.PRODUCE_STREAM, backwards)))
        requests = [
            link.request(pb.ProduceStreamRequest(produce=pb.ProduceRequest(partition=number)))
            for number in range(20)
        ]
        answers = await asyncio.gather(*requests)
        assert [answer.produced.base_offset for answer in answers] == list(range(20))
        assert link.outstanding == 0
        await link.close()

    run(story)


@all_worlds
def test_a_broken_link_tells_what_was_certainly_not_sent(run: Run) -> None:
    async def story(bed: Bed) -> None:
        ends: list[QuorumqError] = []
        channel = await _channel(bed, Handler(methods.PRODUCE_STREAM, _never))
        link = _link(channel, on_end=ends.append)
        request = link.request(pb.ProduceStreamRequest())
        sent = asyncio.create_task(request)
        await asyncio.sleep(0.2)
        await bed.world.cut(9)
        with pytest.raises(ConnectionLost) as caught:
            await sent
        assert not caught.value.outcome_known
        assert not link.alive
        assert len(ends) == 1
        with pytest.raises(Unreachable):
            link.send(pb.ProduceStreamRequest(), ends.append)

        unconnected = _link(channel)
        with pytest.raises(Unreachable) as never_sent:
            await unconnected.request(pb.ProduceStreamRequest())
        assert never_sent.value.outcome_known
        await link.close()
        await unconnected.close()
        await channel.close()

    run(story)


@all_worlds
def test_a_link_fails_what_is_outstanding_in_order(run: Run) -> None:
    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.PRODUCE_STREAM, _never))
        link = _link(channel)
        failed: list[int] = []
        for number in range(10):
            link.send(
                pb.ProduceStreamRequest(), lambda _error, number=number: failed.append(number)
            )
        await asyncio.sleep(0.1)
        link.break_off("no more")
        assert failed == list(range(10))
        await link.close()
        await channel.close()

    run(story)


@both_worlds
def test_a_link_is_bounded(run: Run) -> None:
    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.PRODUCE_STREAM, _produced))
        link = _link(channel, outstanding_max=3)
        answers: asyncio.Queue[Any] = asyncio.Queue()
        for _ in range(3):
            link.send(pb.ProduceStreamRequest(), answers.put_nowait)
        with pytest.raises(QuorumqError) as caught:
            link.send(pb.ProduceStreamRequest(), answers.put_nowait)
        assert caught.value.reason == "WINDOW_EXCEEDED"
        async with asyncio.timeout(5.0):
            for _ in range(3):
                await answers.get()
        link.send(pb.ProduceStreamRequest(), answers.put_nowait)
        await link.close()
        await channel.close()

    run(story)


@both_worlds
def test_an_answer_nobody_asked_for_breaks_the_link(run: Run) -> None:
    async def inventing(requests: Any, call: Any) -> None:
        async for _ in requests:
            answer = pb.ProduceResponse(request_id=4711)
            await call.write(pb.ProduceStreamResponse(produced=answer))

    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.PRODUCE_STREAM, inventing))
        link = _link(channel)
        with pytest.raises(ConnectionLost, match="what was not asked"):
            await link.request(pb.ProduceStreamRequest())
        await link.close()
        await channel.close()

    run(story)


def test_latency_delays_and_keeps_the_order() -> None:
    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.PRODUCE_STREAM, _produced))
        link = _link(channel)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        order: asyncio.Queue[int] = asyncio.Queue()
        for number in range(50):
            link.send(pb.ProduceStreamRequest(), lambda _answer, n=number: order.put_nowait(n))
        assert [await order.get() for _ in range(50)] == list(range(50))
        assert loop.time() - begin >= 0.01
        await link.close()
        await channel.close()

    in_process(story, latency_s=lambda rng: rng.uniform(0.001, 0.1))


def test_a_simulated_run_repeats_itself() -> None:
    def once() -> list[float]:
        times: list[float] = []

        async def story(bed: Bed) -> None:
            client = await bed.client()
            bed.cluster.create("t", 3)
            async with client.producer("t") as producer:
                for number in range(100):
                    await producer.send_and_wait(b"%d" % number, key=b"%d" % (number % 7))
                    times.append(asyncio.get_running_loop().time())

        in_process(story, seed=5, latency_s=lambda rng: rng.uniform(0.001, 0.02))
        return times

    assert once() == once()
    assert Random(5).random() == Random(5).random()


@all_worlds
def test_a_stream_that_nobody_serves(run: Run) -> None:
    async def story(bed: Bed) -> None:
        channel = await _channel(bed)
        await channel.ready(5.0)
        stream = channel.server_stream(methods.READ, pb.ReadRequest(topic="t"))
        with pytest.raises(CallFailed) as caught:
            await anext(stream)
        assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
        await channel.close()

    run(story)


@all_worlds
def test_a_slow_reader_holds_the_handler_back(run: Run) -> None:
    sent = 0

    async def pouring(_request: Any, _call: Any) -> AsyncIterator[pb.ReadResponse]:
        nonlocal sent
        while sent < 200:
            sent += 1
            yield pb.ReadResponse(delivery=pb.Delivery(topic_id="t" * (1 << 20)))

    async def story(bed: Bed) -> None:
        channel = await _channel(bed, Handler(methods.READ, pouring))
        stream = channel.server_stream(methods.READ, pb.ReadRequest(topic="t"))
        await anext(stream)
        await asyncio.sleep(3.0)  # a reader that takes a break is not dead
        assert sent < 100, "the handler ran ahead of its reader"
        assert len([response async for response in stream]) == 199
        await channel.close()

    run(story)
