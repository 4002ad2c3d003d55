"""A lossless encoding of tensors with many zeros, inside a safetensors file.

A tensor becomes a bitmask of its non-zero places and the surviving values, split into planes of
first, second, ... bytes ("byte shuffle", as in HDF5 and Blosc) after a rotation that moves the sign
behind the mantissa, so that exponents have a plane of their own. Each plane and mask is a Zstandard
frame, if that is shorter; small tensors share one. A CRC-32 over everything reveals damage.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vits_prune.errors import InputError

_FORMAT = "vits_prune.sparse.2"
_LEVEL = 3
_WORDS = {"float32": np.uint32, "float16": np.uint16}
_GROUP_ELEMENTS = 1 << 15
"""Smaller tensors share frames with their neighbours: a frame's tables take a hundred bytes."""
MAX_ELEMENTS = 300_000_000
"""Of all tensors together, against a small file that claims the memory of a large machine."""
_MAX_INDEX_BYTES = 1 << 24

_BROKEN = (
    *(SafetensorError, zstandard.ZstdError),
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
)
Shapes = dict[str, tuple[int, ...]]


def encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return float32 or float16 tensors as the bytes of a sparse-encoded safetensors file.

    `decode` makes the same tensors from it to the bit, except that -0.0 becomes 0.0.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    frames: list[bytes] = []
    index = []
    for dtype, shapes in _groups(tensors):
        values = np.concatenate(
            [tensors[name].detach().cpu().contiguous().numpy().reshape(-1) for name in shapes]
        )
        nonzero = values != 0
        survivors = int(nonzero.sum())
        masks = [] if survivors == values.size else [np.packbits(nonzero)]
        plain = [part.tobytes() for part in (*masks, *_planes(values[nonzero]))]
        packed = [min(part, compressor.compress(part), key=len) for part in plain]
        frames += packed
        lengths = [len(frame) for frame in packed]
        entry = {"dtype": dtype, "tensors": shapes, "survivors": survivors, "frames": lengths}
        index.append(entry)
    described = compressor.compress(json.dumps(index, separators=(",", ":")).encode())
    blobs = {
        "frames": np.frombuffer(b"".join(frames), np.uint8),
        "index": np.frombuffer(described, np.uint8),
    }
    # The checksum is a tensor: safetensors writes several entries of metadata in random order.
    checksum = np.array([_checksum(blobs)], np.uint32)
    return save({**blobs, "crc32": checksum}, metadata={"format": _FORMAT})


def _groups(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Shapes]]:
    """Yield type and shapes of the neighbouring tensors that share frames, in order."""
    group, shapes = "", Shapes()
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _WORDS:
            raise TypeError(f"{name} is {dtype}, not float32 or float16.")
        full = max(tensor.numel(), _elements(shapes)) >= _GROUP_ELEMENTS
        if shapes and (full or group != dtype):
            yield group, shapes
            shapes = {}
        group, shapes[name] = dtype, tuple(tensor.shape)
    if shapes:
        yield group, shapes


def _elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def _checksum(blobs: Mapping[str, np.ndarray]) -> int:
    return zlib.crc32(blobs["frames"].tobytes(), zlib.crc32(blobs["index"].tobytes()))


def decode(data: bytes, most_elements: int = MAX_ELEMENTS) -> dict[str, torch.Tensor]:
    """Return the tensors that `encode` wrote; InputError if the bytes are not such a file.

    `most_elements` bounds all tensors together: a small file may claim to hold many.
    """
    try:
        blobs = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if header["format"] != _FORMAT:
            raise InputError("This is no sparse-encoded voice of this version: encode it again.")
        if blobs["crc32"].tolist() != [_checksum(blobs)]:
            raise ValueError("the checksum does not fit")
        described = blobs["index"].tobytes()
        if not 0 <= zstandard.frame_content_size(described) <= _MAX_INDEX_BYTES:
            raise ValueError("too large an index")
        index = json.loads(zstandard.ZstdDecompressor().decompress(described))
        return _decode_groups(index, blobs["frames"], min(most_elements, MAX_ELEMENTS))
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError("This sparse-encoded file is damaged: fetch or write it again.") from error


def _decode_groups(index: list[dict], frames: np.ndarray, most: int) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    begin = elements = 0
    for entry in index:
        shapes = {name: tuple(map(int, shape)) for name, shape in entry["tensors"].items()}
        elements += _elements(shapes)
        if elements > most or any(side < 0 for shape in shapes.values() for side in shape):
            raise ValueError("tensors of an impossible size")
        pieces = []
        for length in entry["frames"]:
            pieces.append(frames[begin : begin + length])
            begin += length
        size, start = _elements(shapes), 0
        values = _decode_group(entry["dtype"], size, int(entry["survivors"]), pieces)
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            tensors[name] = torch.from_numpy(values[start:end].reshape(shape))
            start = end
    if begin != frames.size:
        raise ValueError("frames that belong to no tensor")
    return tensors


def _decode_group(dtype: str, size: int, survivors: int, pieces: list[np.ndarray]) -> np.ndarray:
    """Return the values of a group, end to end."""
    word = np.dtype(_WORDS[dtype])
    masked = survivors != size
    if not 0 <= survivors <= size or len(pieces) != masked + word.itemsize:
        raise ValueError("another number of frames than the group has")
    if masked:
        # The mask comes first: before it is checked, nothing of the stated size is allocated.
        mask = np.unpackbits(_unpacked(pieces[0], -(-size // 8)), count=size).view(bool)
        if np.count_nonzero(mask) != survivors:
            raise ValueError("a mask with another number of survivors")
    values = _joined([_unpacked(piece, survivors) for piece in pieces[masked:]], word).view(dtype)
    if not masked:
        return values
    whole = np.zeros(size, dtype=dtype)
    whole[mask] = values
    return whole


def _planes(values: np.ndarray) -> list[np.ndarray]:
    """Return the bytes of the values, the most significant first, the sign in the lowest bit."""
    words: np.ndarray = values.view(_WORDS[str(values.dtype)])
    bits = 8 * words.itemsize
    words = (words << 1) | (words >> (bits - 1))
    return [(words >> shift).astype(np.uint8) for shift in range(bits - 8, -1, -8)]


def _joined(planes: list[np.ndarray], word: np.dtype) -> np.ndarray:
    """Return the words that `_planes` took apart."""
    words = np.stack(planes[::-1], axis=1)  # the lowest byte comes first in memory
    words = words.reshape(-1).view(word.newbyteorder("<")).astype(word, copy=False)
    return (words >> 1) | (words << (8 * word.itemsize - 1))


def _unpacked(piece: np.ndarray, size: int) -> np.ndarray:
    """Return the bytes of a frame: exactly `size`, so no crafted file unpacks to more."""
    if piece.size < size and zstandard.frame_content_size(piece.tobytes()) == size:
        unpacked = zstandard.ZstdDecompressor().decompress(piece.tobytes(), max_output_size=size)
        piece = np.frombuffer(unpacked, np.uint8)
    if piece.size != size:
        raise ValueError("a frame of another size than its tensors")
    return piece
