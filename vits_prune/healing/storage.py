"""Tensors and facts in one safetensors file that is whole or not there, with a checksum: lessons and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vits_prune.errors import DamagedFileError, InputError

FORMAT = 1

_MAX_FACTS = 1 << 20


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> None:
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


def read_tensors(
    path: Path, most_bytes: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
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
    if (
        not isinstance(facts, dict)
        or facts.get("format") != FORMAT
        or about.get("checksum") != _checksum(tensors, words)
    ):
        return None
    return tensors, facts


def digest(tensors: Mapping[str, torch.Tensor], *facts: Any) -> str:
    """A name for tensors and JSON-able facts: 32 hexadecimal digits."""
    return _checksum(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        json.dumps(facts),
    )[:32]


def _checksum(tensors: Mapping[str, torch.Tensor], words: str) -> str:
    found = hashlib.blake2b(words.encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()


log = logging.getLogger(__name__)

KEPT = 2

MAX_BYTES = 8 << 30

WEIGHTS = "weights."

"""Begins the names of the student's weights in a checkpoint, beside the optimiser's numbers."""

_BEST, _SCORED = "best.safetensors", "scored.safetensors"

_NAME = re.compile(r"checkpoint-(\d{8})\.safetensors")

_UNFINISHED = re.compile(r"\.(checkpoint-\d{8}|best|scored)\.safetensors\.")

_MAX_NOTE = 1 << 16

State = tuple[dict[str, torch.Tensor], dict[str, Any]]


class Checkpoints:
    """The checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self, step: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint, then remove all but the last two.

        Raises:
            InputError: the disk does not take it; those from before stay.
        """
        write_tensors(
            self.folder / f"checkpoint-{step:08}.safetensors", tensors, {**facts, "step": step}
        )
        for path in self._paths()[:-KEPT]:
            with contextlib.suppress(OSError):
                path.unlink()

    def save_best(
        self, step: int, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Write the weights that were best so far, with their score among the facts.

        Raises:
            InputError: the disk does not take them; those from before stay.
        """
        write_tensors(self.folder / _BEST, weights, {**facts, "step": step})

    def newest(self) -> State | None:
        """Return the newest checkpoint that is whole, None where there are no checkpoints.

        Raises:
            DamagedFileError: there are checkpoints, and none of them can be read.
        """
        paths = self._paths()
        found = (read_tensors(path, MAX_BYTES) for path in reversed(paths))
        state = next((state for state in found if state is not None), None)
        if state is None and paths:
            raise DamagedFileError(
                f"The checkpoints in {self.folder} are damaged: put whole copies in their place, or start anew in another folder."
            )
        return state

    def kept(self) -> State | None:
        """Weights by the model's names: the best, the newest where none were measured, None where there is nothing."""
        try:
            best = self.best()
        except DamagedFileError as error:
            log.warning("%s The newest is taken.", error)
            best = None
        if best is not None:
            return best
        newest = self.newest()
        if newest is None:
            return None
        return {
            name.removeprefix(WEIGHTS): one
            for name, one in newest[0].items()
            if name.startswith(WEIGHTS)
        }, newest[1]

    def best(self) -> State | None:
        """Return the weights that were best, None where none were measured.

        Raises:
            DamagedFileError: there are such weights, and they cannot be read.
        """
        path = self.folder / _BEST
        found = read_tensors(path, MAX_BYTES)
        if found is None and path.exists():
            raise DamagedFileError(
                f"{path}, the best weights so far, is damaged: put a whole copy in its place, or remove it to go on without them."
            )
        return found

    def clear(self) -> None:
        """Remove what an earlier healing left."""
        for path in (*self._paths(), self.folder / _BEST, self.folder / _SCORED):
            with contextlib.suppress(OSError):
                path.unlink()
        self.tidy()

    def tidy(self) -> None:
        """Remove what writing left that was killed; nobody else writes here meanwhile."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if _UNFINISHED.match(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def save_scored(self, step: int) -> None:
        """Note that the voice of a step has been measured.

        Raises:
            InputError: the disk does not take it.
        """
        write_tensors(self.folder / _SCORED, {}, {"step": step})

    def scored(self) -> int:
        """The step that was measured last, 0 where none was."""
        found = read_tensors(self.folder / _SCORED, _MAX_NOTE)
        return int(found[1].get("step", 0)) if found else 0

    def _paths(self) -> list[Path]:
        """Oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
