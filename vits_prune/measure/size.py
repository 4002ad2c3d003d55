"""What a voice weighs: parameters, bytes of the files it can be written to, bytes in memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from vits_prune.voices.sparse_file import write_sparse
from vits_prune.voices.voice import Voice


@dataclass(frozen=True)
class Size:
    """Sizes of one voice. File sizes are those of files that were written to disk and removed again."""

    parameters: int
    """All parameters that run at inference, zeros included."""
    nonzero_parameters: int
    dense_fp32_bytes: int
    """A safetensors file of float32."""
    dense_fp16_bytes: int
    """A safetensors file of float16."""
    sparse_fp32_bytes: int
    """The lossless sparse encoding of `voices/sparse_file.py`, float32 values."""
    memory_bytes: int
    """What the tensors take in memory when the voice is ready to speak."""


def measure_size(voice: Voice) -> Size:
    """Write a voice in each format, read off the sizes, remove the files."""
    held = dict(voice.model.named_parameters())
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in held.items()}
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(prefix="vits_prune-size-") as name:
        folder = Path(name)
        sparse = write_sparse(tensors, folder / "sparse.safetensors")
        save_file(tensors, folder / "fp32.safetensors")
        save_file(halves, folder / "fp16.safetensors")
        dense, half = ((folder / f"{kind}.safetensors").stat().st_size for kind in ("fp32", "fp16"))
    return Size(
        parameters=sum(t.numel() for t in tensors.values()),
        nonzero_parameters=sum(int(torch.count_nonzero(t)) for t in tensors.values()),
        dense_fp32_bytes=dense,
        dense_fp16_bytes=half,
        sparse_fp32_bytes=sparse,
        memory_bytes=sum(t.numel() * t.element_size() for t in held.values()),
    )
