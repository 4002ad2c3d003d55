"""Chunked storage (xet) on the loopback interface: files of a LoopbackHub from what hf_xet sends.

The formats are those of https://huggingface.co/docs/xet: a xorb is a sequence of chunks, a shard
says which chunks of which xorbs make a file. Only chunks that were stored uncompressed are read, so
the tests' files are noise.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

_ENTRY = 48
_END = b"\xff" * 32
_HAS_VERIFICATION, _HAS_METADATA = 1 << 31, 1 << 30


def hash_of(text: str) -> bytes:
    """The 32 bytes of a hash in an address, where each 8 are a little-endian number."""
    return b"".join(bytes.fromhex(text[start : start + 16])[::-1] for start in range(0, 64, 16))


def chunks_of(xorb: bytes) -> list[bytes]:
    """The chunks of a xorb.

    Raises:
        ValueError: one is compressed.
    """
    chunks, at = [], 0
    while at + 8 <= len(xorb) and xorb[at] == 0:
        stored, kind = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        if kind != 0:
            raise ValueError("a compressed chunk: give the tests noise")
        chunks.append(xorb[at + 8 : at + 8 + stored])
        at += 8 + stored
    return chunks


@dataclass
class LoopbackXet:
    """What was sent."""

    xorbs: dict[bytes, list[bytes]] = field(default_factory=dict)
    """Chunks by the hash of their xorb."""
    shards: int = 0

    def put_xorb(self, address: str, body: bytes) -> None:
        self.xorbs[hash_of(address)] = chunks_of(body)

    def files_of(self, shard: bytes) -> dict[str, bytes]:
        """The files that a shard describes, by their SHA-256."""
        self.shards += 1
        found, at = {}, _ENTRY
        while shard[at : at + 32] != _END:
            flags, count = struct.unpack_from("<II", shard, at + 32)
            at += _ENTRY
            content = b""
            for _ in range(count):
                _, _, first, last = struct.unpack_from("<IIII", shard, at + 32)
                content += b"".join(self.xorbs[shard[at : at + 32]][first:last])
                at += _ENTRY
            at += _ENTRY * count * bool(flags & _HAS_VERIFICATION) + _ENTRY * bool(
                flags & _HAS_METADATA
            )
            found[hashlib.sha256(content).hexdigest()] = content
        return found
