"""A lossless encoding of tensors with many zeros, inside a safetensors file.

A tensor becomes a bitmask of its non-zero places and the surviving values, split into planes of
first, second, ... bytes ("byte shuffle", as in HDF5 and Blosc) after a rotation that moves the sign
behind the mantissa, so that exponents have a plane of their own. Of weights on a grid (grid.py) the
whole numbers are one plane, and the scales have their own. Each plane and mask is a Zstandard
frame, if that is shorter; small tensors share one. A CRC-32 over everything reveals damage.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vits_prune.errors import InputError
from vits_prune.voices.grid import Grid, along, find_grid

_FORMAT = "vits_prune.sparse.3"
_READ = (_FORMAT, "vits_prune.sparse.2")
"""The second format is the third without grids."""
_LEVEL = 3
_WORDS = {"float32": np.uint32, "float16": np.uint16}
_GRID, _SCALE_PLANES = "grid", 4
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


@dataclass(frozen=True)
class _Group:
    """Neighbouring tensors of one kind, which share frames."""

    kind: str
    """float32, float16 or _GRID."""
    shapes: Shapes
    values: list[np.ndarray]
    """Of each tensor; of a grid its whole numbers."""
    grids: list[Grid]

    @property
    def elements(self) -> int:
        return _elements(self.shapes)


def encode(tensors: Mapping[str, torch.Tensor], *, half: bool = False) -> bytes:
    """Return float32 or float16 tensors as the bytes of a sparse-encoded safetensors file.

    `decode` makes the same tensors from it to the bit, except that -0.0 becomes 0.0. With `half`,
    what is on no grid is stored as float16.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    frames: list[bytes] = []
    index = []
    for group in _groups(tensors, half):
        values = np.concatenate([one.reshape(-1) for one in group.values])
        nonzero = values != 0
        survivors = int(nonzero.sum())
        parts = [] if survivors == values.size else [np.packbits(nonzero)]
        entry = {"dtype": group.kind, "tensors": group.shapes, "survivors": survivors}
        if group.grids:
            scales = np.concatenate([grid.scales for grid in group.grids])
            parts += [values[nonzero].view(np.uint8), *_planes(scales)]
            entry["axes"] = [grid.axis for grid in group.grids]
        else:
            parts += _planes(values[nonzero])
        plain = [part.tobytes() for part in parts]
        # Of equal lengths the plain one: the length tells them apart.
        packed = [min(part, compressor.compress(part), key=len) for part in plain]
        frames += packed
        index.append({**entry, "frames": [len(frame) for frame in packed]})
    described = compressor.compress(json.dumps(index, separators=(",", ":")).encode())
    blobs = {
        "frames": np.frombuffer(b"".join(frames), np.uint8),
        "index": np.frombuffer(described, np.uint8),
    }
    # The checksum is a tensor: safetensors writes several entries of metadata in random order.
    checksum = np.array([_checksum(blobs)], np.uint32)
    return save({**blobs, "crc32": checksum}, metadata={"format": _FORMAT})


def _groups(tensors: Mapping[str, torch.Tensor], half: bool) -> Iterator[_Group]:
    """Yield the groups in order; smaller tensors share one."""
    group = _Group("", {}, [], [])
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in _WORDS:
            raise TypeError(f"{name} is {kind}, not float32 or float16.")
        values = tensor.detach().cpu().contiguous().numpy()
        grid = find_grid(values)
        if grid is not None:
            kind, values = _GRID, grid.numbers
        elif half:
            kind, values = "float16", values.astype(np.float16)
        full = max(values.size, group.elements) >= _GROUP_ELEMENTS
        if group.shapes and (full or group.kind != kind):
            yield group
            group = _Group("", {}, [], [])
        if not group.shapes:
            group = _Group(kind, {}, [], [])
        group.shapes[name] = tuple(tensor.shape)
        group.values.append(values)
        group.grids.extend([grid] if grid else [])
    if group.shapes:
        yield group


def _elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def _checksum(blobs: Mapping[str, np.ndarray]) -> int:
    return zlib.crc32(blobs["frames"].data, zlib.crc32(blobs["index"].data))


def decode(data: bytes, most_elements: int = MAX_ELEMENTS) -> dict[str, torch.Tensor]:
    """Return the tensors that `encode` wrote; InputError if the bytes are not such a file.

    `most_elements` bounds all tensors together: a small file may claim to hold many.
    """
    try:
        blobs = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if header["format"] not in _READ:
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
        size, start, kind = _elements(shapes), 0, entry["dtype"]
        scales = []
        if kind == _GRID:
            scales, pieces = _scales(entry, shapes, pieces), pieces[:-_SCALE_PLANES]
        values = _decode_group(kind, size, int(entry["survivors"]), pieces)
        for number, (name, shape) in enumerate(shapes.items()):
            end = start + math.prod(shape)
            whole = values[start:end].reshape(shape)
            if scales:
                whole = whole * scales[number]
            elif len(shapes) > 1:  # no two tensors share memory
                whole = whole.copy()
            tensors[name] = torch.from_numpy(whole)
            start = end
    if begin != frames.size:
        raise ValueError("frames that belong to no tensor")
    return tensors


def _scales(entry: dict, shapes: Shapes, pieces: list[np.ndarray]) -> list[np.ndarray]:
    """Return each tensor's scales, in a shape that multiplies it; `pieces` ends with theirs."""
    axes = list(map(int, entry["axes"]))
    pairs = list(zip(axes, shapes.values(), strict=True))
    if any(not 0 <= axis < len(shape) for axis, shape in pairs) or len(pieces) < _SCALE_PLANES:
        raise ValueError("scales of no axis")
    counts = [shape[axis] for axis, shape in pairs]
    if sum(counts) > _elements(shapes):
        raise ValueError("more scales than numbers")
    planes = [_unpacked(piece, sum(counts)) for piece in pieces[-_SCALE_PLANES:]]
    every = _joined(planes, np.dtype(np.uint32)).view(np.float32)
    each = np.split(every, np.cumsum(counts)[:-1])
    return [along(one, axis, len(shape)) for one, (axis, shape) in zip(each, pairs, strict=True)]


def _decode_group(dtype: str, size: int, survivors: int, pieces: list[np.ndarray]) -> np.ndarray:
    """Return the values of a group, end to end."""
    word = np.dtype(np.uint8 if dtype == _GRID else _WORDS[dtype])
    masked = survivors != size
    if not 0 <= survivors <= size or len(pieces) != masked + word.itemsize:
        raise ValueError("another number of frames than the group has")
    if masked:
        # The mask comes first: before it is checked, nothing of the stated size is allocated.
        mask = np.unpackbits(_unpacked(pieces[0], -(-size // 8)), count=size).view(bool)
        if np.count_nonzero(mask) != survivors:
            raise ValueError("a mask with another number of survivors")
    planes = [_unpacked(piece, survivors) for piece in pieces[masked:]]
    values = planes[0].view(np.int8) if dtype == _GRID else _joined(planes, word).view(dtype)
    if not masked:
        return values
    whole = np.zeros(size, dtype=values.dtype)
    whole[np.flatnonzero(mask)] = values  # three times as fast as by the mask
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
    signs = words << (8 * word.itemsize - 1)
    words >>= 1
    words |= signs
    return words


def _unpacked(piece: np.ndarray, size: int) -> np.ndarray:
    """Return the bytes of a frame: exactly `size`, so no crafted file unpacks to more."""
    if piece.size < size and zstandard.frame_content_size(piece.data) == size:
        unpacked = zstandard.ZstdDecompressor().decompress(piece.data, max_output_size=size)
        piece = np.frombuffer(unpacked, np.uint8)
    if piece.size != size:
        raise ValueError("a frame of another size than its tensors")
    return piece
