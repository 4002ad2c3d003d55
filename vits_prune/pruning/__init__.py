"""Voice + PruneSpec -> Voice: `prune`, and `prune_steps`, the same step by step."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.layers import Layer, layers
from vits_prune.pruning.rounding import round_voice
from vits_prune.pruning.spec import METHODS, PruneSpec, Shape
from vits_prune.voices.voice import Voice, without_masks

__all__ = ["Layer", "PruneSpec", "Shape", "layers", "prune", "prune_steps"]

AfterStep = Callable[[int, Voice], Voice]
"""(number of a step, from 0, the voice that it pruned) -> the voice that the next step prunes."""


def prune(voice: Voice, spec: PruneSpec, *, progress: Progress = SILENT) -> Voice:
    """Return a pruned copy of a voice, which stays as it is; tensors that do not change are shared.

    Raises:
        InputError: `spec` is not a PruneSpec, or this voice cannot give what it asks for.
    """
    *_, (_, last) = prune_steps(voice, spec, progress=progress)
    return last


def prune_steps(
    voice: Voice,
    spec: PruneSpec,
    *,
    progress: Progress = SILENT,
    after_step: AfterStep | None = None,
) -> Iterator[tuple[float, Voice]]:
    """Yield (amount, pruned voice) after each step of gradual pruning; leave the loop to stop.

    Each step prunes the voice of the one before, whose zeros stay zeros: calibrated on that voice,
    its layers aim at what the original's would make of the same inputs.

    `after_step` is what each step's voice goes through before it is yielded, such as healing.
    """
    if not isinstance(spec, PruneSpec):
        raise InputError("prune takes a PruneSpec: PruneSpec(scope='global', amount=0.3).")
    voice = without_masks(voice)
    method, amounts = METHODS[spec.method], spec.schedule_amounts()
    module: Any = importlib.import_module(method.module)
    current, count = voice, len(amounts)
    for index, amount in enumerate(amounts):
        last = index + 1 == count
        bits = spec.bits if last else 0
        now = dataclasses.replace(spec, amount=amount, steps=1, amounts=(), bits=bits)
        told = spec if last else dataclasses.replace(now, amounts=amounts[: index + 1])
        history = [*voice.recipe.get("pruned", ()), told.to_dict()]
        recipe = MappingProxyType({**current.recipe, "pruned": history})
        before = f"step {index + 1} of {count}: " if count > 1 else ""
        part = progress.part(index / count, (index + 1) / count, before)
        original = {"original": voice} if method.recovers or method.structured else {}
        if method.structured:
            current = module.prune_voice(current, now, progress=part, recipe=recipe, **original)
        else:
            weights = module.prune_weights(current, now, progress=part, **original)
            current = current.with_weights(weights, recipe=recipe)
        if bits:
            done = weights if method.recovers else ()
            current = current.with_weights(round_voice(current, now, done))
        part.report("pruned", 1.0)
        if after_step:
            current = after_step(index, current)
        yield amount, current
