"""The small rows of a log: where it begins, what its hard state is, which generation of stored
entries serves which indexes. Each row carries a CRC of its own."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from cluster.raft.configuration import Configuration
from cluster.raft.messages import HardState

_VERSION = 1
_CRC = struct.Struct("<I")
_META = struct.Struct("<BQQQH")  # version, first index, base term, configuration index, segments
_SEGMENT = struct.Struct("<IQ")
_HARD_STATE = struct.Struct("<BQQQ")
_LAST_INDEX = struct.Struct("<BQ")


@dataclass(frozen=True, slots=True)
class Segment:
    """Entries from first_index on, up to where the next segment begins, are stored under
    `generation`."""

    generation: int
    first_index: int


@dataclass(frozen=True, slots=True)
class LogMeta:
    """`base_term` is the term of entry first_index - 1, and `base` the configuration in force
    there, with the index of its entry (0: given when the group was founded). `segments` rise in
    generation and in first_index; the first begins at 1; the last holds the whole tail."""

    first_index: int = 1
    base_term: int = 0
    base: tuple[int, Configuration] = (0, Configuration())
    segments: tuple[Segment, ...] = (Segment(0, 1),)

    @property
    def generation(self) -> int:
        """Where the tail is stored, and what is appended. The next one is for staging."""
        return self.segments[-1].generation

    def generation_of(self, index: int) -> int:
        for segment in reversed(self.segments):
            if index >= segment.first_index:
                return segment.generation
        return self.segments[0].generation

    def encode(self) -> bytes:
        index, configuration = self.base
        count = len(self.segments)
        header = _META.pack(_VERSION, self.first_index, self.base_term, index, count)
        segments = [_SEGMENT.pack(s.generation, s.first_index) for s in self.segments]
        return seal(header + b"".join(segments) + configuration.encode())

    @classmethod
    def decode(cls, data: bytes) -> LogMeta:
        """Raises ValueError."""
        data = unseal(data)
        try:
            version, first_index, base_term, index, count = _META.unpack_from(data)
            _check_version(version)
            at = _META.size + count * _SEGMENT.size
            segments = tuple(Segment(*s) for s in _SEGMENT.iter_unpack(data[_META.size : at]))
        except struct.error as error:
            raise ValueError(f"not the meta row of a log: {error}") from error
        return cls(first_index, base_term, (index, Configuration.decode(data[at:])), segments)


def encode_hard_state(hard_state: HardState) -> bytes:
    state = hard_state
    return seal(_HARD_STATE.pack(_VERSION, state.term, state.voted_for, state.commit_index))


def decode_hard_state(data: bytes) -> HardState:
    """Raises ValueError."""
    try:
        version, term, voted_for, commit_index = _HARD_STATE.unpack(unseal(data))
    except struct.error as error:
        raise ValueError(f"not a hard state: {error}") from error
    _check_version(version)
    return HardState(term, voted_for, commit_index)


def encode_last_index(index: int) -> bytes:
    return seal(_LAST_INDEX.pack(_VERSION, index))


def decode_last_index(data: bytes) -> int:
    """Raises ValueError."""
    try:
        version, index = _LAST_INDEX.unpack(unseal(data))
    except struct.error as error:
        raise ValueError(f"not a last index: {error}") from error
    _check_version(version)
    last_index: int = index
    return last_index


def seal(data: bytes) -> bytes:
    """`data` with its CRC-32 before it."""
    return _CRC.pack(zlib.crc32(data)) + data


def unseal(data: bytes) -> bytes:
    """What `seal` was given. Raises ValueError when it is not that any more."""
    content = data[_CRC.size :]
    if len(data) < _CRC.size or _CRC.unpack_from(data)[0] != zlib.crc32(content):
        raise ValueError("the CRC is wrong")
    return content


def _check_version(version: int) -> None:
    if version != _VERSION:
        raise ValueError(f"version {version} is not known here")
