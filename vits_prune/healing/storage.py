"""Tensors and facts in one safetensors file that is whole or not there, with a checksum: lessons and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vits_prune.errors import InputError

FORMAT = 1
_MAX_FACTS = 1 << 20


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write beside, then rename.

    Args:
        path: the file; its folder is made where there is none.
        tensors: by name; taken to the CPU.
        facts: JSON-able values that go with them.

    Raises:
        InputError: the disk does not take it; a file of that name that was there before is untouched.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    words = json.dumps({"format": FORMAT, **facts})
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        beside = Path(name)
        save_file(plain, beside, metadata={"facts": words, "checksum": _checksum(plain, words)})
        with beside.open("rb") as file:
            os.fsync(file.fileno())  # some file systems tell of a full disk only now
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise InputError(
            f"{path.name} could not be written to {path.parent}: {reason}. Free some space; what was saved before is whole."
        ) from error
    finally:
        if beside is not None:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def read_tensors(path: Path, most_bytes: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """What `write_tensors` wrote, None where the file is missing, too large, damaged or of another format."""
    try:
        if not path.is_file() or path.stat().st_size > most_bytes:
            return None
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            words = about.get("facts", "")
            if len(words) > _MAX_FACTS:
                return None
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        facts = json.loads(words)
    except (OSError, SafetensorError, ValueError, RuntimeError, RecursionError):
        return None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or about.get("checksum") != _checksum(tensors, words):
        return None
    return tensors, facts


def digest(tensors: Mapping[str, torch.Tensor], *facts: Any) -> str:
    """A name for tensors and JSON-able facts: 32 hexadecimal digits."""
    return _checksum({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, json.dumps(facts))[:32]


def _checksum(tensors: Mapping[str, torch.Tensor], words: str) -> str:
    found = hashlib.blake2b(words.encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()
