"""What a healing takes and gives: HealPlan, HealData and HealRun in, HealResult out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from vits_prune.errors import InputError
from vits_prune.fields import Options, check_options, option
from vits_prune.progress import SILENT, Progress
from vits_prune.synthesis.speak import MAX_SEED
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from vits_prune.healing.batches import RecordedPair
    from vits_prune.healing.teacher import TeacherSpeech


@dataclass(frozen=True)
class HealPlan(Options):
    """How long, on how much, and how fast a pruned voice learns.

    Each field's `metadata` has its help, choices and limits (see `fields.option`).

    Raises:
        InputError: a value is out of range.
    """

    minutes: float | None = option(
        15.0, "wall-clock minutes, measuring included", float, low=0.05, high=100_000
    )
    steps: int | None = option(
        None, "training steps, in place of minutes", int, low=1, high=10_000_000
    )
    seed: int = option(0, "seed of noise, sentences and batches", int, low=0, high=MAX_SEED)
    lessons: int = option(400, "sentences that the original speaks, at most", int, low=1, high=5000)
    batch: int = option(4, "sentences of a training step, in each process", int, low=1, high=256)
    segment: int = option(
        64, "frames of each sentence that the decoder speaks in a step", int, low=8, high=512
    )
    learning_rate: float = option(
        5e-4,
        "the highest rate of AdamW; `training.RATES` are the parts' shares of it",
        float,
        low=1e-7,
        high=0.1,
    )
    joint: float = option(
        0.25, "share of the steps, at the end, with all parts in a row", float, low=0, high=1
    )
    speakers: str = option(
        "all",
        "whose voices are learnt where there are several; with all, every second sentence is the "
        "chosen speaker's",
        choices=("all", "own"),
    )
    adversarial: bool = option(False, "let discriminators take part: for a GPU", bool)
    adversarial_from: float = option(
        0.5, "share of the steps after which they do", float, low=0, high=1
    )
    adversarial_width: float = option(
        0.25, "their channels, as a share of HiFi-GAN's", float, low=1 / 32, high=1
    )
    precision: str = option(
        "no",
        "no for float32, bf16 for bfloat16 where torch's autocast thinks it safe",
        choices=("no", "bf16"),
    )
    checkpoint_every: int = option(
        200, "training steps between two checkpoints", int, low=1, high=1_000_000
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.minutes is None and self.steps is None:
            raise InputError("Healing needs a budget: give minutes, or a number of steps.")

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
