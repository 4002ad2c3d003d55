"""heal_steps: prune a little, heal, prune a little more: the classical recipe (Han et al. 2015, arXiv:1506.02626, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from vits_prune.healing.corpus import corpus
from vits_prune.healing.lessons import Lessons
from vits_prune.healing.plan import HealPlan, Judge, OnStep
from vits_prune.healing.run import MOST_THREADS, heal
from vits_prune.healing.storage import Checkpoints
from vits_prune.pruning import PruneSpec, prune_steps
from vits_prune.threads import torch_threads
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
    judge: Judge | None = None,
    cpu: bool = False,
) -> Iterator[tuple[float, Voice]]:
    """Gradual pruning with healing behind each step: (amount, healed voice) as they are done. Leave the loop to stop at one.

    Each step prunes the voice that was healed last; what is calibrated aims at the original, which is the teacher of every step.

    Args:
        voice: what to prune.
        spec: its `steps` and `schedule` say which amounts.
        plan: its minutes or steps are those of all healings together; pruning comes on top.
        texts, resume, on_step, judge, cpu: as in `heal`; the last healing alone is judged.
        folder: where lessons and checkpoints are kept, each step's in a folder of its own.
        on_prune: told how far the pruning of all steps is; it may raise to cancel.

    Raises:
        InputError: as `prune` and `heal`.
    """
    plan = plan or HealPlan()
    place = None if folder is None else Path(folder)
    lessons = Lessons(
        voice, corpus(voice, texts, plan.lessons, plan.seed), seed=plan.seed, segment=plan.segment, speakers=plan.speakers,
        folder=None if place is None else place / "lessons",
    )  # fmt: skip

    def _healed(index: int, pruned: Voice) -> Voice:
        steps = len(spec.schedule_amounts())
        return heal(
            pruned, voice, texts, plan=share_of(plan, index, steps), folder=None if place is None else place / f"step-{index + 1}",
            resume=resume, lessons=lessons, on_step=on_step, cpu=cpu, judge=judge if index + 1 == steps else None,
        )  # fmt: skip

    first = (
        Checkpoints(place / "step-1" / "checkpoints").newest()
        if place is not None and resume
        else None
    )
    # Calibrated pruning rounds by the number of threads: with another one each step would be of another voice.
    threads = (
        None
        if first is None
        else min(MOST_THREADS, max(1, int(first[1].get("threads", torch.get_num_threads()))))
    )
    steps = prune_steps(voice, spec, progress=on_prune, after_step=_healed)
    while True:
        with torch_threads(
            threads or torch.get_num_threads()
        ):  # not while the caller looks at a step
            step = next(steps, None)
        if step is None:
            return
        yield step


def share_of(plan: HealPlan, index: int, steps: int) -> HealPlan:
    """The plan of one healing of several."""
    share = (
        (LAST_SHARE if index + 1 == steps else 1) / (steps - 1 + LAST_SHARE) if steps > 1 else 1.0
    )
    return dataclasses.replace(
        plan,
        minutes=None if plan.minutes is None else max(0.05, plan.minutes * share),
        steps=None if plan.steps is None else max(1, round(plan.steps * share)),
    )
