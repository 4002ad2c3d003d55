"""What a healing tells of itself while it runs, and when its quality is to be measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from vits_prune.voices.voice import Voice

_TOLD = 0.5
"""Limits by which scores differ."""


@dataclass(frozen=True)
class Told:
    """How far a healing is. It can be pickled, for a worker to hand it on."""

    step: int
    """Steps done."""
    of: int | None
    """Steps in all; None while minutes are being turned into steps."""
    losses: Mapping[str, float]
    """Of the last step, by name, and their weighted sum as "total"; read-only."""
    seconds: float
    """Since healing began, of all its runs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", MappingProxyType(dict(self.losses)))

    def __reduce__(self) -> tuple[type[Told], tuple[int, int | None, dict[str, float], float]]:
        return Told, (self.step, self.of, dict(self.losses), self.seconds)  # a mappingproxy itself cannot be pickled


OnStep = Callable[[Told], None]
"""Called after each step; it may raise to stop, and a checkpoint is written before what it raised goes on."""


class Judge(Protocol):
    """Who scores checkpoints, so that the best is kept."""

    @property
    def checks(self) -> int:
        """So many checkpoints besides the plan's, evenly over the training: those for which `is_check` says so."""

    @property
    def reserve(self) -> float:
        """Seconds of the plan's minutes that judging takes."""

    def __call__(self, step: int, voice: Voice) -> float | None:
        """Return the score of a checkpoint, the lower the better; None where it has none. Called at each checkpoint."""


def is_check(step: int, of: int | None, checks: int) -> bool:
    """Whether a step is one of those at which quality is measured: so many lie evenly over the training, the last of them at its end.

    Args:
        step: steps done.
        of: steps in all, None while that is not known.
        checks: how many there are to be, 0 for none.
    """
    return of is not None and step * checks // of > (step - 1) * checks // of


def score(changes: Mapping[str, float], limits: Mapping[str, float]) -> float | None:
    """Return the answer of a Judge: how far a voice is from the original, summed up in limits; an improvement makes up for nothing.

    It is told in whole halves of a limit, rounded down: in ten sentences one vowel is a percent of CER, half a limit, and of voices between
    which such a vowel would choose the one that learnt longest is kept.

    Args:
        changes: by metric, from the original.
        limits: metric -> the change that counts as 1.

    Returns:
        0 or more, infinity where a change is no number; None where nothing was measured that is limited.
    """
    shares = [changes[name] / limit for name, limit in limits.items() if name in changes]
    if any(map(math.isnan, shares)):
        return math.inf
    total = sum(max(0.0, share) for share in shares)
    return (total if math.isinf(total) else math.floor(total / _TOLD + 1e-9) * _TOLD) if shares else None
