"""heal_steps: prune a little, heal, prune a little more: the classical recipe (Han et al. 2015, arXiv:1506.02626, section 3)."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vits_prune.heal.corpus import corpus
from vits_prune.heal.heal import OnCheckpoint, OnStep, heal
from vits_prune.heal.lessons import Lessons
from vits_prune.heal.plan import HealPlan
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.registry import METHODS
from vits_prune.voices.voice import Voice

LAST_SHARE = 2
"""The last step is healed so many times as long as each before it: nothing comes after it."""


def heal_steps(
    voice: Voice,
    spec: PruneSpec,
    plan: HealPlan | None = None,
    *,
    texts: Sequence[str] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_prune: Callable[[str, float], None] | None = None,
    on_step: OnStep | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    reserve: float = 0.0,
    cpu: bool = False,
) -> Iterator[tuple[float, Voice]]:
    """Gradual pruning with healing behind each step: (amount, healed voice) as they are done. Leave the loop to stop at one.

    Each step prunes the voice that was healed last; what is calibrated aims at the original, which is the teacher of every step.

    Args:
        voice: what to prune.
        spec: its `steps` and `schedule` say which amounts.
        plan: its minutes or steps are those of all healings together; pruning comes on top.
        texts, resume, on_step, on_checkpoint, reserve, cpu: as in `heal`; `on_checkpoint` and `reserve` belong to the last healing.
        folder: where lessons and checkpoints are kept, each step's in a folder of its own.
        on_prune: told how far the pruning of a step is; it may raise to cancel.

    Raises:
        InputError: as `prune` and `heal`.
    """
    plan = plan or HealPlan()
    method, amounts = METHODS[spec.method], spec.schedule_amounts()
    module: Any = importlib.import_module(method.module)
    place = None if folder is None else Path(folder)
    said = corpus(voice, texts, plan.lessons, plan.seed)
    lessons = Lessons(
        voice, said, seed=plan.seed, segment=plan.segment, speakers=plan.speakers, folder=None if place is None else place / "lessons"
    )
    current = voice
    for index, amount in enumerate(amounts):
        last = index + 1 == len(amounts)
        done = spec if last else dataclasses.replace(spec, amount=amount, steps=1, amounts=amounts[: index + 1])
        recipe = MappingProxyType({**current.recipe, "pruned": [*voice.recipe.get("pruned", ()), done.to_dict()]})
        now = dataclasses.replace(spec, amount=amount, steps=1, amounts=())
        if method.structured:
            pruned = module.prune_voice(current, now, on_step=on_prune, original=voice, recipe=recipe)
        else:
            more = {"original": voice} if method.recovers else {}
            pruned = current.with_weights(module.prune_weights(current, now, on_step=on_prune, **more), recipe=recipe)
        current = heal(
            pruned, voice, plan=share_of(plan, index, len(amounts)), folder=None if place is None else place / f"step-{index + 1}",
            resume=resume, lessons=lessons, on_step=on_step, on_checkpoint=on_checkpoint if last else None,
            reserve=reserve if last else 0.0, cpu=cpu,
        )  # fmt: skip
        yield amount, current


def share_of(plan: HealPlan, index: int, steps: int) -> HealPlan:
    """The plan of one healing of several."""
    share = (LAST_SHARE if index + 1 == steps else 1) / (steps - 1 + LAST_SHARE) if steps > 1 else 1.0
    return dataclasses.replace(
        plan,
        minutes=None if plan.minutes is None else max(0.05, plan.minutes * share),
        steps=None if plan.steps is None else max(1, round(plan.steps * share)),
    )
