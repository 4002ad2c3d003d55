"""prune: a Voice and a PruneSpec become another Voice; prune_steps: the same, step by step."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice

Step = Callable[[str, float], None]
AfterStep = Callable[[int, Voice], Voice]
"""Given the number of a step, from 0, and the voice that it pruned: the voice that the next step goes on from."""


def prune(voice: Voice, spec: PruneSpec, *, progress: Step | None = None) -> Voice:
    """A pruned copy of a voice. The voice given stays as it is; tensors that were not pruned are shared.

    Args:
        voice: what to prune.
        spec: which parts, how much, by which method.
        progress: told what is being done and the share that is done (0 to 1), by methods that take long; it may raise to cancel.

    Raises:
        InputError: `spec` is not a PruneSpec (its own fields were checked when it was made), or it asks for what this voice cannot give.
    """
    *_, (_, last) = prune_steps(voice, spec, progress=progress)
    return last


def prune_steps(
    voice: Voice,
    spec: PruneSpec,
    *,
    progress: Step | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[tuple[float, Voice]]:
    """The steps of gradual pruning, as they are done: (amount, pruned voice). Leave the loop to stop at one.

    Each step starts from the one before, whose zeros stay zeros: calibrated anew on it, its layers aim at what
    the original's would make of the same inputs.

    Args:
        voice: what to prune.
        spec: its `steps` and `schedule` say which amounts.
        progress: told how far the whole is; it may raise to cancel.
        after_step: what is done to each step's voice before it is given out and pruned further, such as healing.

    Raises:
        InputError: as `prune`.
    """
    if not isinstance(spec, PruneSpec):
        raise InputError("prune takes a PruneSpec: PruneSpec(scope='global', amount=0.3).")
    method, amounts = METHODS[spec.method], spec.schedule_amounts()
    module: Any = importlib.import_module(method.module)
    tell = _rising(progress)
    current = voice
    for index, amount in enumerate(amounts):
        done = (
            spec
            if index + 1 == len(amounts)
            else dataclasses.replace(spec, amount=amount, steps=1, amounts=amounts[: index + 1])
        )
        recipe = MappingProxyType(
            {**current.recipe, "pruned": [*voice.recipe.get("pruned", ()), done.to_dict()]}
        )

        def _told(what: str, share: float, index: int = index) -> None:
            where = f"step {index + 1} of {len(amounts)}: " if len(amounts) > 1 else ""
            tell(where + what, (index + share) / len(amounts))

        now = dataclasses.replace(spec, amount=amount, steps=1, amounts=())
        if method.structured:
            current = module.prune_voice(
                current, now, progress=_told, original=voice, recipe=recipe
            )
        else:
            more = {"original": voice} if method.recovers else {}
            current = current.with_weights(
                module.prune_weights(current, now, progress=_told, **more), recipe=recipe
            )
        _told("pruned", 1.0)
        if after_step:
            current = after_step(index, current)
        yield amount, current


def _rising(progress: Step | None) -> Step:
    """An progress whose share never falls: covariances that do not fit are listened to twice, in between other work."""
    highest = 0.0

    def _tell(what: str, share: float) -> None:
        nonlocal highest
        highest = min(1.0, max(highest, share))
        if progress:
            progress(what, highest)

    return _tell
