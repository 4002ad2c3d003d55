"""Checkpoints of a healing: everything that the next steps depend on, in one file each; the last two and the best are kept."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vits_prune.healing.storage import read_tensors, write_tensors

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
        """The newest checkpoint that is whole, None where there is none."""
        found = (read_tensors(path, MAX_BYTES) for path in reversed(self._paths()))
        return next((state for state in found if state is not None), None)

    def kept(self) -> State | None:
        """Weights by the model's names: the best, the newest where none were measured, None where there is nothing."""
        best = self.best()
        if best is not None:
            return best
        newest = self.newest()
        if newest is None:
            return None
        return {name.removeprefix(WEIGHTS): one for name, one in newest[0].items() if name.startswith(WEIGHTS)}, newest[1]

    def best(self) -> State | None:
        """The weights that were best, None where none were measured."""
        return read_tensors(self.folder / _BEST, MAX_BYTES)

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
