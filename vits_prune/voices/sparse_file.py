"""A lossless encoding of tensors with many zeros, inside a safetensors file.

Each tensor becomes a bitmask of where it is not zero and the surviving values, their bytes sorted by significance ("byte shuffle", as in
HDF5 and Blosc: exponents sit together and compress, mantissas do not disturb them), both compressed by Zstandard. A tensor without zeros
keeps no mask. Plain bytes of a tensor are kept where the encoding would be larger. A CRC-32 over all of it tells damage.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vits_prune.errors import InputError

_FORMAT = "vits_prune.sparse.1"
_LEVEL = 3
_DTYPES = {"float32": np.float32, "float16": np.float16}
_MAX_ELEMENTS = 1 << 30


def encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of a sparse-encoded safetensors file, from which `decode` makes the same tensors to the bit (-0.0 is written as 0.0).

    Args:
        tensors: float32 or float16 of any shape, by name.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    blobs: dict[str, np.ndarray] = {}
    index: dict[str, dict[str, object]] = {}
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous().numpy()
        flat = values.reshape(-1)
        nonzero = flat != 0
        survivors = flat if nonzero.all() else flat[nonzero]
        index[name] = {"shape": list(values.shape), "dtype": str(values.dtype), "masked": survivors.size < flat.size}
        if survivors.size < flat.size:
            blobs[f"{name}.mask"] = _compress(compressor, np.packbits(nonzero))
        blobs[f"{name}.values"] = _compress(compressor, _shuffle(survivors))
    described = json.dumps(index)
    return save(blobs, metadata={"format": _FORMAT, "tensors": described, "crc32": str(_checksum(described, blobs))})


def _checksum(described: str, blobs: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of the description and of every blob, in the order of their names."""
    checksum = zlib.crc32(described.encode())
    for name in sorted(blobs):
        checksum = zlib.crc32(blobs[name].tobytes(), zlib.crc32(name.encode(), checksum))
    return checksum


def decode(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors that `encode` wrote.

    Raises:
        InputError: the bytes are not such a file, or are damaged.
    """
    try:
        blobs = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if header["format"] != _FORMAT:
            raise InputError("This file is not a sparse-encoded voice of this version: encode it again.")
        if int(header["crc32"]) != _checksum(header["tensors"], blobs):
            raise ValueError("the checksum does not fit")
        index = json.loads(header["tensors"])
        return {name: _decode_one(name, entry, blobs) for name, entry in index.items()}
    except (SafetensorError, zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("This sparse-encoded file is damaged: fetch or write it again.") from error


def _decode_one(name: str, entry: Mapping[str, object], blobs: Mapping[str, np.ndarray]) -> torch.Tensor:
    shape, dtype = tuple(int(side) for side in entry["shape"]), np.dtype(_DTYPES[entry["dtype"]])
    size = math.prod(shape)
    if min(shape, default=0) < 0 or size > _MAX_ELEMENTS:
        raise ValueError(f"{name} has {size} elements")
    if not entry["masked"]:
        flat = _unshuffle(_decompress(blobs[f"{name}.values"], size * dtype.itemsize), dtype)
        return torch.from_numpy(flat.reshape(shape).copy())
    bits = _decompress(blobs[f"{name}.mask"], -(-size // 8))  # before anything of that size is made: a description may lie
    mask = np.unpackbits(bits, count=size).view(bool)
    survivors = _unshuffle(_decompress(blobs[f"{name}.values"], int(mask.sum()) * dtype.itemsize), dtype)
    flat = np.zeros(size, dtype=dtype)
    flat[mask] = survivors
    return torch.from_numpy(flat.reshape(shape))


def _shuffle(values: np.ndarray) -> np.ndarray:
    """Bytes of the values, all first bytes first."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(values.size, values.itemsize).T.copy().reshape(-1)


def _unshuffle(data: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.ascontiguousarray(data.reshape(dtype.itemsize, -1).T).reshape(-1).view(dtype)


def _compress(compressor: zstandard.ZstdCompressor, data: np.ndarray) -> np.ndarray:
    """[0, plain bytes] or [1, compressed bytes], whichever is shorter."""
    packed = compressor.compress(data.tobytes())
    kind, payload = (1, packed) if len(packed) < data.nbytes else (0, data.tobytes())
    return np.frombuffer(bytes([kind]) + payload, dtype=np.uint8)


def _decompress(blob: np.ndarray, size: int) -> np.ndarray:
    """The bytes behind a blob; more or fewer than `size` is an error, so a crafted file cannot unpack to more than its tensors hold."""
    raw = blob.tobytes()
    payload = raw[1:]
    if raw[:1] == b"\x01":
        if zstandard.frame_content_size(payload) != size:
            raise ValueError("a blob of another size than its tensor")
        payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=size)
    if len(payload) != size:
        raise ValueError("a blob of another size than its tensor")
    return np.frombuffer(payload, dtype=np.uint8)


def write_sparse(tensors: Mapping[str, torch.Tensor], path: str | Path) -> int:
    """Write the encoded tensors to a file; the number of bytes that it takes."""
    data = encode(tensors)
    Path(path).write_bytes(data)
    return Path(path).stat().st_size
