"""Tensors and JSON facts in one safetensors file with a checksum, and checkpoints made of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import replaced_file

WEIGHTS_PREFIX = "weights."
"""Prefix of the student's weights in a checkpoint, next to the optimiser's tensors."""
_FORMAT = 1
_KEPT = 2
_MAX_BYTES = 8 << 30
_MAX_FACTS = 1 << 20
_BEST, _SCORED = "best.safetensors", "scored.safetensors"
_NAME = re.compile(r"checkpoint-\d{8}\.safetensors$")
_UNFINISHED = re.compile(r"\.(checkpoint-\d{8}|best|scored)\.safetensors\.")

Tensors: TypeAlias = Mapping[str, torch.Tensor]
StoredState: TypeAlias = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors by name, and facts."""

log = logging.getLogger(__name__)


def write_tensors(path: Path, tensors: Tensors, facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON values to a file that is there whole or as it was before.

    Raises:
        InputError: the disk does not take it.
    """
    plain = _plain(tensors)
    words = json.dumps({"format": _FORMAT, **facts})
    about = {"facts": words, "checksum": _checksum(plain, words)}
    try:
        with replaced_file(path) as beside:
            save_file(plain, beside, metadata=about)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> InputError:
    """Return the error for a file that the disk does not take."""
    reason = str(getattr(error, "strerror", None) or error).rstrip(".")
    return InputError(
        f"{path.name} could not be written to {path.parent}: {reason}. Free some space."
    )


def read_tensors(path: Path, max_bytes: int) -> StoredState | None:
    """Return what `write_tensors` wrote; None if it is missing, too large, damaged or foreign."""
    try:
        if not path.is_file() or path.stat().st_size > max_bytes:
            return None
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            words = about.get("facts", "")
            if len(words) > _MAX_FACTS:
                return None
            tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
        facts = json.loads(words)
    except (OSError, SafetensorError, ValueError, RuntimeError, RecursionError):
        return None
    known = isinstance(facts, dict) and facts.get("format") == _FORMAT
    whole = known and about.get("checksum") == _checksum(tensors, words)
    return (tensors, facts) if whole else None


def digest(tensors: Tensors, *facts: Any) -> str:
    """Return 32 hexadecimal digits that stand for tensors and JSON values."""
    return _checksum(_plain(tensors), json.dumps(facts))[:32]


def _plain(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _checksum(tensors: Tensors, words: str) -> str:
    found = hashlib.blake2b(words.encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()


class Checkpoints:
    """The checkpoints in a folder. Writing raises InputError if the disk is full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove all but the last two."""
        name = f"checkpoint-{step:08}.safetensors"
        write_tensors(self.folder / name, tensors, {**facts, "step": step})
        _remove(*self._paths()[:-_KEPT])

    def save_best(self, step: int, weights: Tensors, facts: Mapping[str, Any]) -> None:
        """Write the weights that were best so far, with their score among the facts."""
        write_tensors(self.folder / _BEST, weights, {**facts, "step": step})

    def save_scored(self, step: int) -> None:
        """Note that the voice of a step has been judged."""
        write_tensors(self.folder / _SCORED, {}, {"step": step})

    def scored(self) -> int:
        """Return the step that was judged last, 0 if none was."""
        found = read_tensors(self.folder / _SCORED, _MAX_FACTS)
        return int(found[1].get("step", 0)) if found else 0

    def newest(self) -> StoredState | None:
        """Return the newest checkpoint that is whole, None if there are no checkpoints.

        Raises:
            DamagedFileError: there are checkpoints, and none of them can be read.
        """
        paths = self._paths()
        found = next(filter(None, (read_tensors(path, _MAX_BYTES) for path in paths[::-1])), None)
        if paths and found is None:
            raise DamagedFileError(
                f"The checkpoints in {self.folder} are damaged: put whole copies in their place, "
                "or start anew in another folder."
            )
        return found

    def best(self) -> StoredState | None:
        """Return the best weights, None if none were judged.

        Raises:
            DamagedFileError: there are such weights, and they cannot be read.
        """
        path = self.folder / _BEST
        found = read_tensors(path, _MAX_BYTES)
        if found is None and path.exists():
            words = "put a whole copy in its place, or remove it to go on without"
            raise DamagedFileError(f"{path} is damaged: {words}.")
        return found

    def kept(self) -> StoredState | None:
        """Return the best weights, or the newest if none can be read as the best.

        Raises:
            DamagedFileError: there are checkpoints, and none of them can be read.
        """
        try:
            if best := self.best():
                return best
        except DamagedFileError as error:
            log.warning("%s The newest is taken.", error)
        newest = self.newest()
        if newest is None:
            return None
        start, tensors = len(WEIGHTS_PREFIX), newest[0].items()
        return {
            name[start:]: one for name, one in tensors if name.startswith(WEIGHTS_PREFIX)
        }, newest[1]

    def require(self, facts: Mapping[str, Any], owner: Mapping[str, Any]) -> None:
        """Raise InputError if a checkpoint with such facts is of another healing.

        `owner` is what a healing writes under "recordings", "belongs" and "processes".
        """
        if facts.get("recordings", "") != owner["recordings"]:
            raise InputError(
                f"The checkpoints in {self.folder} were made with other recordings: give the "
                "recordings that the healing began with, or another folder."
            )
        if any(facts.get(name) != owner[name] for name in ("belongs", "processes")):
            raise InputError(
                f"The checkpoints in {self.folder} belong to another healing (voice, speaker, "
                "texts, plan or number of processes): give the same options, or another folder."
            )

    def clear(self) -> None:
        """Remove what an earlier healing left."""
        _remove(*self._paths(), self.folder / _BEST, self.folder / _SCORED)

    def tidy(self) -> None:
        """Remove files that were never finished."""
        _remove(*self._paths(_UNFINISHED))

    def _paths(self, name: re.Pattern[str] = _NAME) -> list[Path]:
        """Return files by the pattern of their names: the checkpoints, oldest first."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in paths if name.match(path.name))


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
