"""HealPlan: how a pruned voice is trained back, a frozen, JSON-able value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vits_prune.errors import InputError
from vits_prune.synthesis import checked_seed

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
                raise InputError(f"{name} must be {what} from {low:g} to {high:g}, not {str(value)[:40]!r}.")
        for name, choices in (("precision", PRECISIONS), ("speakers", SPEAKERS)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, not {str(getattr(self, name))[:40]!r}.")
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
            raise InputError(f"A HealPlan has no {str(unknown[0])[:40]!r}: it has {', '.join(sorted(known))}.")
        return cls(**values)
