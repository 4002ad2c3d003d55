"""prune_until_knee: gradual pruning that stops at the last step that keeps given limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vits_prune.errors import InputError
from vits_prune.evaluation import Reference, Step, evaluate_against
from vits_prune.pruning.prune import prune_steps
from vits_prune.pruning.spec import PruneSpec
from vits_prune.sweep.knee import LIMITS, KneeStep, Limit, check_measured, decided
from vits_prune.voices.voice import Voice


@dataclass(frozen=True, eq=False)
class Gradual:
    """Gradual pruning that came to its end, or to a step that breaks a limit."""

    steps: tuple[KneeStep, ...]
    """In order; only the last can have broken a limit."""
    voice: Voice | None
    """Of the last step that kept the limits; None where the first broke one already."""

    @property
    def amount(self) -> float:
        """Of that step; 0 where there is none."""
        return max((step.amount for step in self.steps if step.kept), default=0.0)


def prune_until_knee(
    voice: Voice,
    spec: PruneSpec,
    reference: Reference,
    limits: Sequence[Limit] = LIMITS,
    *,
    on_voice: Callable[[int, Voice], None] | None = None,
    on_step: Step | None = None,
) -> Gradual:
    """Prune step by step, measure each, and stop where a limit breaks.

    Args:
        voice: the original.
        spec: of at least two steps.
        reference: the original measured on sentences that it is not calibrated on.
        limits: what must be kept.
        on_voice: given each step's number, from 1, and its voice.
        on_step: told how far it is; it may raise to cancel.

    Raises:
        InputError: one step only, a limit that the reference cannot check, or as `prune`.
    """
    count, tell = len(spec.schedule_amounts()), on_step or (lambda _what, _share: None)
    if count < 2:
        raise InputError("Stopping at the knee takes gradual pruning: give the number of steps, or their amounts.")
    check_measured(limits, reference)
    steps, last = [], None
    for amount, pruned in prune_steps(voice, spec, on_step=lambda what, share: tell(what, 0.8 * share)):
        done = len(steps) + 1
        if on_voice:
            on_voice(done, pruned)
        figures = evaluate_against(
            reference, pruned, on_step=lambda what, share, done=done: tell(what, (0.8 + 0.2 * share) * done / count)
        ).figures
        steps.append(decided(amount, limits, figures))
        if not steps[-1].kept:
            break
        last = pruned
    tell("done", 1.0)
    return Gradual(tuple(steps), last)
