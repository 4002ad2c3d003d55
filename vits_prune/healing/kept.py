"""best: the voice that a healing's folder holds, whether the healing came to its end or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vits_prune.errors import InputError
from vits_prune.healing.checkpoints import Checkpoints
from vits_prune.healing.zeros import restored
from vits_prune.voices.voice import Voice


def best(folder: str | Path, pruned: Voice, *, stopped: str = "") -> Voice | None:
    """The voice of the best checkpoint in a folder, of the newest where none was measured; None where there is none.

    Its recipe says which: `voice.recipe["healed"][-1]["steps"]`.

    Args:
        folder: that `heal` was given.
        pruned: the voice that `heal` was given.
        stopped: why the healing ended early, for the recipe; empty if it did not.

    Raises:
        InputError: the checkpoints are of another voice.
    """
    found = Checkpoints(Path(folder) / "checkpoints").kept()
    if found is None:
        return None
    weights, facts = found
    shapes = {name: tensor.shape for name, tensor in pruned.model.named_parameters()}
    if any(shapes.get(name) != tensor.shape for name, tensor in weights.items()):
        raise InputError(f"The checkpoints in {folder} belong to another voice than {pruned.name}: give the pruned voice that was healed.")
    done = {**facts.get("healed", {}), "steps": facts["step"], **({"stopped": stopped} if stopped else {})}
    weights = restored({name: tensor.to(pruned.device) for name, tensor in weights.items()}, pruned)
    return pruned.with_weights(weights, recipe=healed_recipe(pruned, done))


def healed_recipe(pruned: Voice, done: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe of a healed voice: that of the pruned one, and behind earlier healings what was done now."""
    return MappingProxyType({**pruned.recipe, "healed": [*pruned.recipe.get("healed", ()), dict(done)]})
