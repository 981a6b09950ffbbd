"""Every message survives the way through bytes, and nothing half or bent gets through."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.entry_codec import HEADER_BYTES, decode_entry, encode_entry
from cluster.interfaces import CatchUpChunk, CatchUpRequest, CheckpointMeta, Envelope, NodeBeat
from cluster.raft.configuration import Configuration
from cluster.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    InstallSnapshotReply,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from cluster.v1 import peer_pb2 as pb
from cluster.wire import (
    decode_catch_up_request,
    decode_chunk,
    decode_stream_request,
    encode_catch_up_request,
    encode_chunk,
    encode_envelope,
)

numbers = st.integers(0, 2**63)
replicas = st.integers(1, 2**63)
header = (replicas, replicas, numbers)  # sender, to, term
flags = st.booleans()


@st.composite
def contiguous_entries(draw: st.DrawFn, first: int) -> list[Entry]:
    contents = draw(
        st.lists(st.tuples(st.sampled_from(EntryKind), numbers, st.binary()), max_size=4)
    )
    return [
        Entry.create(index=first + at, term=term, kind=kind, data=data)
        for at, (kind, term, data) in enumerate(contents)
    ]


@st.composite
def append_entries(draw: st.DrawFn) -> AppendEntries:
    previous = draw(st.integers(0, 2**62))
    sender, to, term = (draw(part) for part in header)
    entries = draw(contiguous_entries(previous + 1))
    return AppendEntries(sender, to, term, previous, draw(numbers), draw(numbers), entries)


MESSAGES: dict[type[Message], st.SearchStrategy[Message]] = {
    PreVote: st.builds(PreVote, *header, numbers, numbers),
    PreVoteReply: st.builds(PreVoteReply, *header, flags),
    RequestVote: st.builds(RequestVote, *header, numbers, numbers, flags),
    RequestVoteReply: st.builds(RequestVoteReply, *header, flags),
    AppendEntries: append_entries(),
    AppendEntriesReply: st.builds(AppendEntriesReply, *header, flags, numbers, numbers, numbers),
    Heartbeat: st.builds(Heartbeat, *header, numbers, numbers, flags),
    HeartbeatReply: st.builds(HeartbeatReply, *header, numbers, flags, numbers),
    InstallSnapshot: st.builds(InstallSnapshot, *header, numbers, numbers),
    InstallSnapshotReply: st.builds(InstallSnapshotReply, *header, flags, numbers),
    TimeoutNow: st.builds(TimeoutNow, *header),
}
messages = st.one_of(*MESSAGES.values())
group_ids = st.integers(0, 4)  # few, so that messages of one group meet in one envelope
leads = st.lists(st.tuples(numbers, numbers), max_size=5).map(tuple)
beats = st.builds(
    NodeBeat, st.integers(-(2**62), 2**62), st.none() | leads, st.booleans(), st.booleans()
)
envelopes = st.builds(
    Envelope, st.none() | beats, st.lists(st.tuples(group_ids, messages), max_size=12)
)


def test_every_kind_of_message_is_covered() -> None:
    assert set(MESSAGES) == set(Message.__subclasses__())


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_each_kind_survives_alone_and_in_company(kind: type[Message]) -> None:
    @settings(max_examples=60, deadline=None)
    @given(MESSAGES[kind], MESSAGES[kind], numbers)
    def check(one: Message, two: Message, group_id: int) -> None:
        alone = Envelope(None, [(group_id, one)])
        assert decode_stream_request(encode_envelope(alone)) == [alone]
        both = Envelope(None, [(1, one), (2, two)])
        assert decode_stream_request(encode_envelope(both)) == [both]

    check()


@settings(deadline=None)
@given(envelopes)
def test_an_envelope_survives_and_each_group_keeps_its_order(envelope: Envelope) -> None:
    (decoded,) = decode_stream_request(encode_envelope(envelope))
    assert decoded.beat == envelope.beat
    assert len(decoded.messages) == len(envelope.messages)
    for group_id in range(5):
        sent = [message for group, message in envelope.messages if group == group_id]
        assert [message for group, message in decoded.messages if group == group_id] == sent


@settings(deadline=None, max_examples=50)
@given(st.lists(envelopes, max_size=5))
def test_joined_envelopes_are_one_request(many: list[Envelope]) -> None:
    decoded = decode_stream_request(b"".join(map(encode_envelope, many)))
    assert [envelope.beat for envelope in decoded] == [envelope.beat for envelope in many]
    assert [len(e.messages) for e in decoded] == [len(e.messages) for e in many]


def test_heartbeats_of_all_groups_travel_as_columns() -> None:
    beats: list[tuple[int, Message]] = [(g, Heartbeat(1, 2, 3, 4, 5)) for g in range(1, 301)]
    encoded = encode_envelope(Envelope(None, beats))
    assert len(encoded) < 300 * 12, f"{len(encoded)} bytes for 300 heartbeats"
    (wire,) = pb.StreamRequest.FromString(encoded).envelopes
    assert not wire.messages
    assert len(wire.heartbeats.group_ids) == 300


@settings(deadline=None)
@given(envelopes, st.data())
def test_a_bent_request_is_refused_or_reads_whole(envelope: Envelope, data: st.DataObject) -> None:
    encoded = bytearray(encode_envelope(envelope))
    if not encoded:
        return
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_stream_request(bytes(encoded))
    except ValueError:
        return
    for bent in decoded:
        for _, message in bent.messages:
            if isinstance(message, AppendEntries):
                assert all(entry.is_intact() for entry in message.entries)


def one_append(data: bytes = b"x" * 100) -> Envelope:
    entry = Entry.create(index=8, term=3, kind=EntryKind.COMMAND, data=data)
    return Envelope(None, [(5, AppendEntries(1, 2, 3, 7, 3, 6, [entry]))])


@pytest.mark.parametrize("size", [0, 100, 114, 115, 127, 128, 16_370, 16_384, 3_000_000])
def test_hand_made_frames_are_right_at_every_width_of_a_length(size: int) -> None:
    envelope = one_append(bytes(size))
    assert decode_stream_request(encode_envelope(envelope)) == [envelope]


def test_a_flipped_bit_in_an_entry_is_refused() -> None:
    encoded = bytearray(encode_envelope(one_append()))
    encoded[-10] ^= 1
    with pytest.raises(ValueError, match="entry 8 of term 3: wrong CRC"):
        decode_stream_request(bytes(encoded))


def test_an_entry_in_the_wrong_place_is_refused() -> None:
    request = pb.StreamRequest.FromString(encode_envelope(one_append()))
    request.envelopes[0].messages[0].index += 1
    with pytest.raises(ValueError, match="wrong CRC"):
        decode_stream_request(request.SerializeToString())


def test_a_cut_request_is_refused() -> None:
    encoded = encode_envelope(one_append())
    for length in range(1, len(encoded)):
        with pytest.raises(ValueError, match="StreamRequest"):
            decode_stream_request(encoded[:length])


def request_of(**fields: object) -> bytes:
    return pb.StreamRequest(envelopes=[pb.Envelope(**fields)]).SerializeToString()  # type: ignore[arg-type]


MALFORMED = {
    "unknown kind": request_of(messages=[pb.GroupMessage(sender=1, recipient=2)]),
    "a kind of the future": request_of(
        messages=[pb.GroupMessage(sender=1, recipient=2, kind=99)]  # type: ignore[arg-type]
    ),
    "no sender": request_of(messages=[pb.GroupMessage(recipient=2, kind=pb.MESSAGE_KIND_PRE_VOTE)]),
    "entries in a vote": request_of(
        messages=[
            pb.GroupMessage(
                sender=1, recipient=2, kind=pb.MESSAGE_KIND_PRE_VOTE, entries=[b"\x01" * 20]
            )
        ]
    ),
    "short entry": request_of(
        messages=[
            pb.GroupMessage(
                sender=1, recipient=2, kind=pb.MESSAGE_KIND_APPEND_ENTRIES, entries=[b"\x01"]
            )
        ]
    ),
    "unequal columns": request_of(heartbeats=pb.Heartbeats(group_ids=[1, 2], senders=[1])),
    "unequal leads": request_of(beat=pb.NodeBeat(leads=pb.Leads(group_ids=[1]))),
}


@pytest.mark.parametrize("encoded", MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests_are_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_stream_request(encoded)


@st.composite
def rising_entries(draw: st.DrawFn) -> list[Entry]:
    indexes = draw(st.lists(st.integers(1, 2**62), unique=True, min_size=1, max_size=5).map(sorted))
    return [
        Entry.create(
            index=index, term=draw(numbers), kind=EntryKind.COMMAND, data=draw(st.binary())
        )
        for index in indexes
    ]


pair = st.tuples(st.binary(), st.binary())
pairs = st.lists(pair, max_size=4)
configurations = st.builds(
    lambda voters, outgoing, learners: Configuration(
        tuple(sorted(voters)), tuple(sorted(outgoing)), tuple(sorted(learners - voters))
    ),
    *[st.frozensets(replicas, max_size=4)] * 3,
)
chunks = st.one_of(
    st.builds(
        lambda *fields: CatchUpChunk(meta=CheckpointMeta(*fields)),
        numbers,
        numbers,
        configurations,
        numbers,
    ),
    st.builds(
        lambda entries, rows: CatchUpChunk(entries=entries, rows=rows), rising_entries(), pairs
    ),
    st.builds(lambda one, more: CatchUpChunk(segments=[one, *more]), pair, pairs),
    st.just(CatchUpChunk(done=True)),
)


@settings(deadline=None)
@given(chunks)
def test_a_catch_up_chunk_survives(chunk: CatchUpChunk) -> None:
    decoded = decode_chunk(encode_chunk(chunk))
    assert (decoded.meta, decoded.done) == (chunk.meta, chunk.done)
    assert list(decoded.entries) == list(chunk.entries)
    assert list(decoded.rows) == list(chunk.rows)
    assert list(decoded.segments) == list(chunk.segments)


@settings(deadline=None, max_examples=50)
@given(chunks, st.data())
def test_a_bent_chunk_is_refused(chunk: CatchUpChunk, data: st.DataObject) -> None:
    encoded = bytearray(encode_chunk(chunk))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"\w"):
        decode_chunk(bytes(encoded))


def test_a_chunk_carries_exactly_one_thing() -> None:
    for chunk in (CatchUpChunk(), CatchUpChunk(segments=[(b"a", b"b")], done=True)):
        with pytest.raises(ValueError, match="one thing"):
            encode_chunk(chunk)
    with pytest.raises(ValueError, match="without the entries"):
        encode_chunk(CatchUpChunk(rows=[(b"a", b"b")], done=True))


def chunk_of(payload: pb.CatchUpPayload) -> bytes:
    encoded = payload.SerializeToString()
    return pb.CatchUpResponse(crc=zlib.crc32(encoded), payload=encoded).SerializeToString()


def test_malformed_chunks_are_refused() -> None:
    entries = [Entry.create(index=i, term=1, kind=EntryKind.COMMAND, data=b"") for i in (2, 1)]
    encoded = [encode_entry(entry) for entry in entries]
    unsorted = Configuration.of([1, 2]).encode()[:5] + b"\2" + bytes(7) + b"\1" + bytes(15)
    for payload in (
        pb.CatchUpPayload(entry_indexes=[2, 1], entries=encoded),
        pb.CatchUpPayload(entry_indexes=[2], entries=encoded),
        pb.CatchUpPayload(meta=pb.CheckpointMeta(configuration=b"\x09")),
        pb.CatchUpPayload(meta=pb.CheckpointMeta(configuration=unsorted)),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            decode_chunk(chunk_of(payload))
    with pytest.raises(ValueError, match="not a catch-up chunk"):
        decode_chunk(b"\xff\xff")


@given(st.builds(CatchUpRequest, *[numbers] * 5))
def test_a_catch_up_request_survives(request: CatchUpRequest) -> None:
    assert decode_catch_up_request(encode_catch_up_request(request)) == request


def test_a_malformed_catch_up_request_is_refused() -> None:
    with pytest.raises(ValueError, match="CatchUpRequest"):
        decode_catch_up_request(b"\xff")


@given(st.integers(1, 2**62), numbers, st.sampled_from(EntryKind), st.binary())
def test_an_entry_survives_and_is_stored_as_written_down(
    index: int, term: int, kind: EntryKind, data: bytes
) -> None:
    entry = Entry.create(index=index, term=term, kind=kind, data=data)
    encoded = encode_entry(entry)
    assert decode_entry(index, encoded) == entry
    assert encoded == (
        bytes([kind]) + entry.crc.to_bytes(4, "little") + term.to_bytes(8, "little") + data
    )


@pytest.mark.parametrize("data", [b"", bytes(HEADER_BYTES), b"\x01" * (HEADER_BYTES - 1)])
def test_what_is_no_entry_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="entry 4"):
        decode_entry(4, data)
