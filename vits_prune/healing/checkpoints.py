"""Checkpoints of a healing: everything that the next steps depend on, in one file each; the last two and the best are kept."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vits_prune.errors import DamagedFileError
from vits_prune.healing.storage import read_tensors, write_tensors

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

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove all but the last two.

        Raises:
            InputError: the disk does not take it; those from before stay.
        """
        write_tensors(self.folder / f"checkpoint-{step:08}.safetensors", tensors, {**facts, "step": step})
        for path in self._paths()[:-KEPT]:
            with contextlib.suppress(OSError):
                path.unlink()

    def save_best(self, step: int, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
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
        return {name.removeprefix(WEIGHTS): one for name, one in newest[0].items() if name.startswith(WEIGHTS)}, newest[1]

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
