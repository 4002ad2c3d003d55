"""HealPlan: how a pruned voice is trained back, a frozen, JSON-able value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from vits_prune.errors import InputError
from vits_prune.synthesis.speak import checked_seed
from vits_prune.voices.voice import Voice

PRECISIONS = ("no", "bf16")

SPEAKERS = ("all", "own")

_RANGES: dict[str, tuple[float, float]] = {
    "minutes": (0.05, 100_000),
    "steps": (1, 10_000_000),
    "lessons": (1, 5_000),
    "batch": (1, 256),
    "segment": (8, 512),
    "learning_rate": (1e-7, 0.1),
    "joint": (0.0, 1.0),
    "adversarial_from": (0.0, 1.0),
    "adversarial_width": (0.03125, 1.0),
    "checkpoint_every": (1, 1_000_000),
}

_WHOLE = ("steps", "lessons", "batch", "segment", "checkpoint_every")


@dataclass(frozen=True)
class HealPlan:
    """How long, on how much, and how fast a pruned voice learns.

    Raises:
        InputError: a value is out of range.
    """

    minutes: float | None = 15.0
    """Wall-clock minutes, lessons included; turned into a number of steps after the first few. Of no effect where `steps` is given."""
    steps: int | None = None
    """Training steps, instead of minutes: exact from the start."""
    seed: int = 0
    """Of the noise, of the sentences and of what each step sees of them."""
    lessons: int = 400
    """Most sentences that the teacher speaks, made little by little, one to four steps."""
    batch: int = 4
    """Sentences of a step, of each process."""
    segment: int = 64
    """Frames of each of them that the decoder speaks."""
    learning_rate: float = 5e-4
    """Of AdamW at its highest, for the decoder; the other parts' are in proportion."""
    joint: float = 0.25
    """Share of the steps, at the end, in which the decoder is given what the pruned parts before it make."""
    speakers: str = "all"
    """Whose voice the sentences are in, where there are several: "all" (every second sentence is the chosen speaker's) or "own"."""
    adversarial: bool = False
    """Whether discriminators join in."""
    adversarial_from: float = 0.5
    """Share of the steps that is over when they do."""
    adversarial_width: float = 0.25
    """Their channels, as a share of HiFi-GAN's."""
    precision: str = "no"
    """"no" for float32 throughout, "bf16" for bfloat16 arithmetic where torch's autocast holds it safe."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed))
        if self.minutes is None and self.steps is None:
            raise InputError("Healing needs a budget: give minutes, or a number of steps.")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("minutes", "steps"):
                continue
            kinds = int if name in _WHOLE else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                what = "a whole number" if name in _WHOLE else "a number"
                raise InputError(
                    f"{name} must be {what} from {low:g} to {high:g}, not {str(value)[:40]!r}."
                )
        for name, choices in (("precision", PRECISIONS), ("speakers", SPEAKERS)):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} must be one of {', '.join(choices)}, not {str(getattr(self, name))[:40]!r}."
                )
        if not isinstance(self.adversarial, bool):
            raise InputError("adversarial is True or False.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HealPlan:
        """The plan that `to_dict` made these of.

        Raises:
            InputError: a field is unknown or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise InputError(
                f"A HealPlan has no {str(unknown[0])[:40]!r}: it has {', '.join(sorted(known))}."
            )
        return cls(**values)


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
        return Told, (
            self.step,
            self.of,
            dict(self.losses),
            self.seconds,
        )  # a mappingproxy itself cannot be pickled


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
    return (
        (total if math.isinf(total) else math.floor(total / _TOLD + 1e-9) * _TOLD)
        if shares
        else None
    )
