"""What a healing takes and gives, and the clock that turns its minutes into steps."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from vits_prune.errors import InputError
from vits_prune.fields import Options, check_options, option
from vits_prune.files import expanded
from vits_prune.healing.storage import TrainingStep
from vits_prune.healing.teacher import SHARD, TeacherSpeech
from vits_prune.progress import SILENT, Progress
from vits_prune.synthesis.speak import MAX_SEED
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from vits_prune.healing.batches import RecordedPair


UNTIMED, TIMED = 4, 8
"""Steps in which torch prepares its kernels, and steps that are timed after them."""
_REHEARSALS = 3
_REVISIONS = 10
_TOLERANCE = 0.05
"""Share of the minutes by which a healing may be late."""
STEPS_PER_SENTENCE = 4
"""On two cores to speak a sentence costs as much as a step: one a step would halve the steps."""


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
        "the highest learning rate, of which each part has its share",
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
        minutes = None if self.minutes is None else max(0.05, self.minutes * share)
        steps = None if self.steps is None else max(1, round(self.steps * share))
        return dataclasses.replace(self, minutes=minutes, steps=steps)


@dataclass(frozen=True, eq=False)
class HealData:
    """What a voice learns from.

    The teacher says `texts`; None for built-in sentences or, in other languages, random ones.
    `recordings` are of (latents [flow_size, frames], waveform [frames * hop]). Several healings
    can share the `speech` of the texts.
    """

    texts: Sequence[str] | None = None
    recordings: Sequence[RecordedPair] = ()
    speech: TeacherSpeech | None = None


@dataclass(frozen=True)
class HealRun:
    """Where a healing runs and who watches it. Nothing here changes what is learnt.

    Args:
        folder: keeps the teacher's speech and the checkpoints; None for memory alone.
        resume: go on from the newest checkpoint in the folder, if there is one.
        cpu: stay on the CPU although there is a GPU.
        observer: is given each step. If it raises, a checkpoint is written and the error goes on.
        progress: of the pruning between the healings of `heal_steps`.
    """

    folder: str | Path | None = None
    resume: bool = False
    cpu: bool = False
    observer: Callable[[TrainingStep], object] | None = None
    progress: Progress = SILENT

    @property
    def path(self) -> Path | None:
        """The folder as a path."""
        return None if self.folder is None else expanded(self.folder)


@dataclass(frozen=True, eq=False)
class HealResult:
    """A healed voice and how it came about.

    Args:
        step: training step of the voice; 0 if no step gave a better voice than the pruned one.
        of: steps of the whole training.
        sentences: how many the teacher had spoken by then.
        trained: parts of the voice that learnt.
        score: the judge's; None where nobody judged.
        seconds: of training, over all runs.
        stopped: why the training ended early; empty if it did not.
    """

    voice: Voice
    step: int
    of: int | None
    sentences: int
    trained: tuple[str, ...]
    score: float | None = None
    seconds: float = 0.0
    recordings: int = 0
    stopped: str = ""

    @classmethod
    def from_entry(
        cls, voice: Voice, entry: Mapping[str, Any], score: float | None, seconds: float
    ) -> HealResult:
        """Return the result that an entry of a recipe's "healed" describes, and add it to that."""
        earlier = voice.recipe.get("healed", ())
        recipe = MappingProxyType({**voice.recipe, "healed": [*earlier, dict(entry)]})
        return cls(
            dataclasses.replace(voice, recipe=recipe),
            entry["steps"],
            entry.get("of"),
            entry.get("lessons", 0),
            tuple(entry.get("trained", ())),
            score,
            seconds,
            entry.get("recordings", 0),
            entry.get("stopped", ""),
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


def sentences_at(step: int, sentences: int) -> int:
    """Return the number of sentences that a step may draw from: it grows a file at a time."""
    return min(sentences, SHARD * (1 + step // (SHARD * STEPS_PER_SENTENCE)))


def phases(plan: HealPlan) -> list[tuple[float, float]]:
    """Return the phases in which steps cost the same, (begin, end) as shares of the whole."""
    marks = {0.0, 1.0, 1 - plan.joint} | ({plan.adversarial_from} if plan.adversarial else set())
    return [(low, high) for low, high in itertools.pairwise(sorted(marks)) if high > low]


def judging_seconds(plan: HealPlan, wanted: float) -> float:
    """Return the seconds that are kept for judging: at most half of the plan's minutes."""
    return min(wanted, 30 * (plan.minutes or 0.0))


class Clock:
    """Times the steps of one call of heal; a plan with steps is never cut short."""

    def __init__(self, plan: HealPlan, judging: float) -> None:
        self._plan, self._start = plan, time.perf_counter()
        self._seconds = 60 * (plan.minutes or 0.0)
        self._judging = judging_seconds(plan, judging)
        self._steps: list[float] = []
        self.sentence = 0.0
        """Seconds that the teacher takes for a sentence."""

    def estimate(
        self, took: float, sentences: int, rehearse: Callable[[float], object]
    ) -> int | None:
        """Count a step of `took` seconds; return how many there can be once enough were timed.

        `rehearse` does the work of a step at a share of the training, without learning. The teacher
        will speak so many sentences.
        """
        self._steps.append(took)
        done = len(self._steps)
        if done < UNTIMED + TIMED:
            return None
        spans = phases(self._plan)
        step = sum((high - low) * self._seconds_of(low, high, rehearse) for low, high in spans)
        self._steps = []
        left = self._seconds - self._judging - (time.perf_counter() - self._start)
        to_speak = max(0, sentences - sentences_at(done, sentences))
        steps = (left - to_speak * self.sentence) / step
        if steps < to_speak * STEPS_PER_SENTENCE:  # the teacher speaks until the end
            steps = left / (step + self.sentence / STEPS_PER_SENTENCE)
        return done + max(1, int(steps))

    def _seconds_of(self, low: float, high: float, rehearse: Callable[[float], object]) -> float:
        """Return the median of the steps that were timed, or of rehearsals of a later phase."""
        if low == 0:
            return statistics.median(self._steps[UNTIMED:])
        marks = []
        for _ in range(1 + _REHEARSALS):
            rehearse((low + high) / 2)
            marks.append(time.perf_counter())
        return statistics.median(end - start for start, end in itertools.pairwise(marks))

    def revise(self, took: float, step: int, of: int, seconds: float) -> int | None:
        """Count a step of `took` seconds; return how many there can be, None if not looked at.

        `step` of the planned `of` steps are done, in `seconds` since the healing began. The answer
        is never higher than `of`.
        """
        self._steps.append(took)
        if self._plan.steps is not None or len(self._steps) < max(TIMED, of // _REVISIONS):
            return None
        if step >= of:
            return of
        each, self._steps = statistics.fmean(self._steps), []
        left = self._seconds - seconds - self._judging * (1 - step / of)
        if (of - step) * each <= left + _TOLERANCE * self._seconds:
            return of
        return min(of, step + max(1, int(left / each)))
