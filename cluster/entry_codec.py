"""An entry as bytes, the same on disk and on the wire, so that nothing is encoded twice:

    1 byte kind, 4 bytes crc, 8 bytes term (little-endian), data

The index is not in it: the key (disk) or the place (wire) says it, and the CRC covers it.
"""

from __future__ import annotations

import struct

from cluster.raft.messages import Entry, EntryKind

_HEADER = struct.Struct("<BIQ")
_KINDS = {int(kind): kind for kind in EntryKind}
HEADER_BYTES = _HEADER.size


def encode_entry(entry: Entry) -> bytes:
    return _HEADER.pack(entry.kind, entry.crc, entry.term) + entry.data


def encode_header(entry: Entry) -> bytes:
    """What comes before the data: for writers that join the pieces themselves, without a copy."""
    return _HEADER.pack(entry.kind, entry.crc, entry.term)


def decode_entry(index: int, data: bytes) -> Entry:
    """Raises ValueError when `data` is no entry of a kind known here. Does not check the CRC: see
    `Entry.is_intact`."""
    if len(data) < HEADER_BYTES:
        raise ValueError(f"entry {index}: {len(data)} bytes are too few")
    kind, crc, term = _HEADER.unpack_from(data)
    known = _KINDS.get(kind)
    if known is None:
        raise ValueError(f"entry {index}: unknown kind {kind}")
    return Entry(index, term, known, data[HEADER_BYTES:], crc)
