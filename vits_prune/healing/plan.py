"""What a healing takes and gives: HealPlan, HealData and HealRun in, HealResult out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.synthesis.speak import checked_seed
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from vits_prune.healing.batches import RecordedPair
    from vits_prune.healing.teacher import TeacherSpeech

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
_INTEGERS = ("steps", "lessons", "batch", "segment", "checkpoint_every")
_CHOICES = {"precision": ("no", "bf16"), "speakers": ("all", "own")}


@dataclass(frozen=True)
class HealPlan:
    """How long, on how much, and how fast a pruned voice learns.

    Raises:
        InputError: a value is out of range.
    """

    minutes: float | None = 15.0
    """Wall-clock minutes in all. The first steps are timed to turn them into a number of steps."""
    steps: int | None = None
    """Training steps. They take the place of the minutes."""
    seed: int = 0
    lessons: int = 400
    """Sentences that the teacher speaks, at most."""
    batch: int = 4
    """Sentences of a training step, in each process."""
    segment: int = 64
    """Frames of each sentence that the decoder speaks in a step."""
    learning_rate: float = 5e-4
    """AdamW's highest rate; `training.RATES` are the parts' shares of it."""
    joint: float = 0.25
    """Share of the steps, at the end, in which the decoder is fed by the student's other parts."""
    speakers: str = "all"
    """"all" (every second sentence is the chosen speaker's) or "own"."""
    adversarial: bool = False
    """Whether discriminators take part."""
    adversarial_from: float = 0.5
    """Share of the steps after which they do."""
    adversarial_width: float = 0.25
    """Their channels, as a share of HiFi-GAN's."""
    precision: str = "no"
    """"no" for float32, "bf16" for bfloat16 where torch's autocast thinks it safe."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed))
        if self.minutes is None and self.steps is None:
            raise InputError("Healing needs a budget: give minutes, or a number of steps.")
        for name, (low, high) in _RANGES.items():
            value, whole = getattr(self, name), name in _INTEGERS
            if value is None and name in ("minutes", "steps"):
                continue
            kinds = int if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                raise InputError(
                    f"{name} must be {'a whole' if whole else 'a'} number from {low:g} to "
                    f"{high:g}, not {str(value)[:40]!r}."
                )
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(
                    f"{name} must be one of {', '.join(choices)}, not {str(value)[:40]!r}."
                )
        if not isinstance(self.adversarial, bool):
            raise InputError("adversarial is True or False.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HealPlan:
        """Return the plan that `to_dict` gave these values of.

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

    def share(self, index: int, count: int) -> HealPlan:
        """Return the plan of one healing of several; the last is twice as long as the others."""
        share = (2 if index + 1 == count else 1) / (count + 1) if count > 1 else 1.0
        return dataclasses.replace(
            self,
            minutes=None if self.minutes is None else max(0.05, self.minutes * share),
            steps=None if self.steps is None else max(1, round(self.steps * share)),
        )


@dataclass(frozen=True, eq=False)
class HealData:
    """What a voice learns from."""

    texts: Sequence[str] | None = None
    """What the teacher says; None for built-in sentences or, in other languages, random ones."""
    recordings: Sequence[RecordedPair] = ()
    """Recorded speech, each (latents [flow_size, frames], waveform [frames * hop])."""
    speech: TeacherSpeech | None = None
    """The teacher's speech of the texts, where several healings share it."""


@dataclass(frozen=True)
class TrainingStep:
    """One step of the training, for whoever watches it."""

    step: int
    """Steps that are done."""
    of: int | None
    """Steps in all; None until the minutes have been turned into steps."""
    losses: Mapping[str, float]
    """Losses of this step by name, and their weighted sum as "total"."""
    seconds: float
    """Since the healing began, over all its runs."""


@dataclass(frozen=True)
class HealRun:
    """Where a healing runs and who watches it. Nothing here changes what is learnt."""

    folder: str | Path | None = None
    """Keeps the teacher's speech and the checkpoints; None for memory alone."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder, if there is one."""
    cpu: bool = False
    """Stay on the CPU although there is a GPU."""
    observer: Callable[[TrainingStep], object] | None = None
    """Is given each step. If it raises, a checkpoint is written and the error goes on."""
    progress: Progress = SILENT
    """Of the pruning between the healings of `heal_steps`."""

    @property
    def path(self) -> Path | None:
        return None if self.folder is None else Path(self.folder)


@dataclass(frozen=True, eq=False)
class HealResult:
    """A healed voice and how it came about."""

    voice: Voice
    step: int
    """Training step of the voice; 0 if no step gave a better voice than the pruned one."""
    of: int | None
    """Steps of the whole training."""
    sentences: int
    """Sentences that the teacher had spoken by then."""
    trained: tuple[str, ...]
    """Parts of the voice that learnt."""
    score: float | None = None
    """The judge's score of the voice; None where nobody judged."""
    seconds: float = 0.0
    """Of training, over all runs."""
    recordings: int = 0
    stopped: str = ""
    """Why the training ended early; empty if it did not."""

    @classmethod
    def from_entry(
        cls, voice: Voice, entry: Mapping[str, Any], score: float | None, seconds: float
    ) -> HealResult:
        """Return the result that an entry of a recipe's "healed" describes.

        Args:
            voice: with the recipe of the pruned voice; the entry is added to it.
            entry: JSON values, as `heal` writes them.
            score: of the voice.
            seconds: of training.
        """
        earlier = voice.recipe.get("healed", ())
        recipe = MappingProxyType({**voice.recipe, "healed": [*earlier, dict(entry)]})
        return cls(
            dataclasses.replace(voice, recipe=recipe),
            step=entry["steps"],
            of=entry.get("of"),
            sentences=entry.get("lessons", 0),
            trained=tuple(entry.get("trained", ())),
            score=score,
            seconds=seconds,
            recordings=entry.get("recordings", 0),
            stopped=entry.get("stopped", ""),
        )


class Judge(Protocol):
    """Scores checkpoints, so that the best one is kept."""

    @property
    def seconds(self) -> float:
        """Seconds of the plan's minutes that judging takes."""

    def wants(self, step: int, of: int | None) -> bool:
        """Return whether there must be a checkpoint at a step, besides the plan's own."""

    def score(self, step: int, of: int | None, voice: Voice) -> float | None:
        """Return the score of a checkpoint, lower is better; None if it has none."""
