"""A lossless encoding of tensors with many zeros, inside a safetensors file.

Tensors become a bitmask of where they are not zero and the surviving values. Those are taken apart into planes, all first bytes, all second
bytes and so on ("byte shuffle", as in HDF5 and Blosc), after a rotation that moves the sign behind the mantissa: exponents, which repeat,
then have a plane to themselves, and mantissas, which do not, cannot spoil it. Each plane and each mask of a tensor is a Zstandard frame of
its own, for two tensors seldom have the same statistics; small tensors share one. What would get no shorter is kept as it is. A CRC-32
over all of it tells damage.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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
"""Tensors smaller than this share frames with their neighbours: a frame's own tables take a hundred bytes."""
MAX_ELEMENTS = 300_000_000
"""Of all tensors together, against a small file that claims to hold the memory of a large machine."""
_MAX_INDEX_BYTES = 1 << 24


@dataclass
class _Group:
    """Neighbouring tensors of one type that share frames."""

    dtype: str
    shapes: dict[str, tuple[int, ...]]
    """By the tensors' names."""

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of a sparse-encoded safetensors file, from which `decode` makes the same tensors to the bit (-0.0 is written as 0.0).

    Args:
        tensors: float32 or float16 of any shape, by name.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    frames: list[bytes] = []
    index = []
    for group in _grouped(tensors):
        values = np.concatenate(
            [tensors[name].detach().cpu().contiguous().numpy().reshape(-1) for name in group.shapes]
        )
        nonzero = values != 0
        survivors = int(nonzero.sum())
        parts = [] if survivors == values.size else [np.packbits(nonzero)]
        parts += _planes(values if survivors == values.size else values[nonzero])
        packed = [_shorter(compressor, part) for part in parts]
        entry = {
            "dtype": group.dtype,
            "tensors": group.shapes,
            "survivors": survivors,
            "frames": [len(frame) for frame in packed],
        }
        frames += packed
        index.append(entry)
    described = compressor.compress(json.dumps(index, separators=(",", ":")).encode())
    blobs = {
        "frames": np.frombuffer(b"".join(frames), np.uint8),
        "index": np.frombuffer(described, np.uint8),
    }
    # The checksum is a tensor too: safetensors writes several entries of metadata in an order of chance.
    return save(
        {**blobs, "crc32": np.array([_checksum(blobs)], np.uint32)}, metadata={"format": _FORMAT}
    )


def _grouped(tensors: Mapping[str, torch.Tensor]) -> Iterator[_Group]:
    """The tensors in their order, as groups."""
    group: _Group | None = None
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _WORDS:
            raise TypeError(f"{name} is {dtype}, not float32 or float16.")
        large = tensor.numel() >= _GROUP_ELEMENTS
        if group is not None and (
            large or group.dtype != dtype or group.elements >= _GROUP_ELEMENTS
        ):
            yield group
            group = None
        group = group or _Group(dtype, {})
        group.shapes[name] = tuple(tensor.shape)
    if group is not None:
        yield group


def _checksum(blobs: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of the index and the frames."""
    return zlib.crc32(blobs["frames"], zlib.crc32(blobs["index"]))


def decode(data: bytes, most_elements: int = MAX_ELEMENTS) -> dict[str, torch.Tensor]:
    """The tensors that `encode` wrote.

    Args:
        data: the file's bytes.
        most_elements: of all tensors together, where it is known how many there are to be: a small file may claim to hold many.

    Raises:
        InputError: the bytes are not such a file, are damaged, or hold more elements.
    """
    try:
        blobs = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if header["format"] != _FORMAT:
            raise InputError(
                "This file is not a sparse-encoded voice of this version: encode it again."
            )
        if blobs["crc32"].tolist() != [_checksum(blobs)]:
            raise ValueError("the checksum does not fit")
        described = blobs["index"].tobytes()
        if not 0 <= zstandard.frame_content_size(described) <= _MAX_INDEX_BYTES:
            raise ValueError("an index that large is none")
        index = json.loads(zstandard.ZstdDecompressor().decompress(described))
        return _decode_groups(index, blobs["frames"], min(most_elements, MAX_ELEMENTS))
    except (
        SafetensorError,
        zstandard.ZstdError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("This sparse-encoded file is damaged: fetch or write it again.") from error


def _decode_groups(
    index: list[dict], frames: np.ndarray, most_elements: int
) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    begin = elements = 0
    for entry in index:
        group = _Group(
            entry["dtype"],
            {name: tuple(int(side) for side in shape) for name, shape in entry["tensors"].items()},
        )
        elements += group.elements
        if elements > most_elements or any(
            side < 0 for shape in group.shapes.values() for side in shape
        ):
            raise ValueError("tensors of such a size are none")
        pieces = []
        for length in entry["frames"]:
            pieces.append(frames[begin : begin + length])
            begin += length
        values, start = _decode_group(group, int(entry["survivors"]), pieces), 0
        for name, shape in group.shapes.items():
            end = start + math.prod(shape)
            tensors[name] = torch.from_numpy(values[start:end].reshape(shape))
            start = end
    if begin != frames.size:
        raise ValueError("frames that belong to no tensor")
    return tensors


def _decode_group(group: _Group, survivors: int, pieces: list[np.ndarray]) -> np.ndarray:
    """The values of a group, end to end."""
    word = np.dtype(_WORDS[group.dtype])
    masked = survivors != group.elements
    if not 0 <= survivors <= group.elements or len(pieces) != masked + word.itemsize:
        raise ValueError("frames of another number than the group's")
    # The mask comes before anything of the size that is claimed is made: a description may lie.
    mask = (
        np.unpackbits(_unpacked(pieces[0], -(-group.elements // 8)), count=group.elements).view(
            bool
        )
        if masked
        else None
    )
    if mask is not None and np.count_nonzero(mask) != survivors:
        raise ValueError("a mask with another number of survivors")
    values = _joined([_unpacked(piece, survivors) for piece in pieces[masked:]], word).view(
        group.dtype
    )
    if mask is None:
        return values
    whole = np.zeros(group.elements, dtype=group.dtype)
    whole[mask] = values
    return whole


def _planes(values: np.ndarray) -> list[np.ndarray]:
    """The bytes of the values by significance, the most significant first, after the sign has gone to the lowest bit."""
    words = values.view(_WORDS[str(values.dtype)])
    bits = 8 * words.itemsize
    words = (words << 1) | (words >> (bits - 1))
    return [(words >> shift).astype(np.uint8) for shift in range(bits - 8, -1, -8)]


def _joined(planes: list[np.ndarray], word: np.dtype) -> np.ndarray:
    """The words whose planes these are, the sign back in its place."""
    words = np.empty((planes[0].size, word.itemsize), np.uint8)
    for place, plane in enumerate(reversed(planes)):  # a word's lowest byte comes first in memory
        words[:, place] = plane
    words = words.reshape(-1).view(word.newbyteorder("<")).astype(word, copy=False)
    return (words >> 1) | (words << (8 * word.itemsize - 1))


def _shorter(compressor: zstandard.ZstdCompressor, data: np.ndarray) -> bytes:
    """The data compressed where that is shorter, else as it is: the length tells which."""
    packed = compressor.compress(data)
    return packed if len(packed) < data.nbytes else data.tobytes()


def _unpacked(piece: np.ndarray, size: int) -> np.ndarray:
    """The bytes behind a frame; more or fewer than `size` is an error, so a crafted file cannot unpack to more than its tensors hold."""
    if piece.size < size:
        if zstandard.frame_content_size(piece) != size:
            raise ValueError("a frame of another size than its tensors")
        piece = np.frombuffer(
            zstandard.ZstdDecompressor().decompress(piece, max_output_size=size), np.uint8
        )
    if piece.size != size:
        raise ValueError("a frame of another size than its tensors")
    return piece


def write_sparse(tensors: Mapping[str, torch.Tensor], path: str | Path) -> int:
    """Write the encoded tensors to a file; the number of bytes that it takes."""
    data = encode(tensors)
    Path(path).write_bytes(data)
    return Path(path).stat().st_size
