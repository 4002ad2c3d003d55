"""The judge of checkpoints, the same for the library, the command line and the page; and healing that keeps the best by it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vits_prune.errors import InputError, UnmeasurableError
from vits_prune.healing import HealPlan, Lessons
from vits_prune.healing import heal as train
from vits_prune.healing import heal_steps as train_steps
from vits_prune.healing.batches import Clip
from vits_prune.healing.corpus import other_texts
from vits_prune.healing.plan import Judge, OnStep, is_check, score
from vits_prune.healing.student import parts_to_train
from vits_prune.healing.training import is_main_process
from vits_prune.measure.quality import Figure
from vits_prune.pruning import PruneSpec
from vits_prune.study.evaluation import (
    Reference,
    Settings,
    evaluate_against,
    prepare_reference,
)
from vits_prune.study.knee import LIMITS
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.language import spoken_language
from vits_prune.voices.voice import Voice

EVALUATIONS, EVALUATION_TEXTS = 4, 10
MOST_EVALUATIONS = 1_000
METRICS = ("intelligibility", "naturalness", "rhythm")

log = logging.getLogger(__name__)
Step = Callable[[str, float], None]


@dataclass(frozen=True)
class TuningTexts:
    """Sentences that checkpoints are judged on."""

    texts: tuple[str, ...]
    words: str
    """Which sentences they are, for people."""


def tuning_texts(
    voice: Voice, count: int = EVALUATION_TEXTS, own: Sequence[str] | None = None, seed: int = 0
) -> TuningTexts:
    """Return sentences in the language of a voice to choose a checkpoint by.

    Args:
        voice: the original.
        count: how many sentences at most.
        own: sentences in the voice's language, such as those it is healed on. They serve where the voice does not speak English, the
            language of the built-in ones; where there are none either, sentences are drawn from the voice's symbols.
        seed: of the draws.

    Raises:
        InputError: the count is out of range, or the voice has no symbols to draw from.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(
            f"The number of sentences must be a whole number from 1, not {str(count)[:40]!r}."
        )
    if spoken_language(voice) == "en":
        return TuningTexts(load_texts(count, "tuning"), f"{count} tuning sentences")
    given = tuple(text for text in own or () if text.strip())[:count]
    if given:
        return TuningTexts(given, "sentences of your own text, since the built-in ones are English")
    drawn = other_texts(voice, None, count, seed)
    return TuningTexts(
        drawn, "sentences drawn from the voice's symbols, since the built-in ones are English"
    )


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was measured of one checkpoint."""

    step: int
    of: int
    figures: dict[str, Figure]
    score: float | None
    """How far the voice is from the original, in limits of the knee, 0 or more; None where nothing of that can be measured."""

    def changes(self) -> dict[str, float]:
        """Return the changes from the original in what is scored, and in length, by metric."""
        names = (*(limit.metric for limit in LIMITS), "duration_ratio")
        return {name: self.figures[name].difference.value for name in names if name in self.figures}


@dataclass(frozen=True, eq=False)
class CheckpointJudge:
    """Scores checkpoints by character errors and DNSMOS on tuning sentences. Without its callbacks it can be pickled."""

    reference: Reference | None
    """The original, measured; None where it cannot be, or where another process judges. Then no checkpoint has a score."""
    checks: int
    """How many checkpoints are judged, at even distances."""
    reserve: float = 0.0
    """Seconds that measuring takes, of the original and of all checkpoints."""
    measured_on: str = ""
    """Which sentences, for people."""
    unmeasured: tuple[str, ...] = ()
    """What cannot be measured and why, one sentence each."""
    on_judgement: Callable[[Judgement, Voice], None] | None = None
    progress: Step | None = None
    """Told what is measured and the share of the training that is done."""

    def __call__(self, step: int, voice: Voice) -> float | None:
        """Return the score of a checkpoint, the lower the better; None where it is not one to be judged."""
        of = voice.recipe["healed"][-1]["of"]
        if self.reference is None or not is_check(step, of, self.checks):
            return None
        found = self.judgement(step, voice, of)
        if self.on_judgement:
            self.on_judgement(found, voice)
        return found.score

    def judgement(self, step: int, voice: Voice, of: int = 0, name: str = "") -> Judgement:
        """Measure the voice of a step against the original.

        Args:
            step: steps done, 0 for the voice as it was pruned.
            voice: the voice of that step.
            of: steps in all.
            name: what the progress calls the voice.
        """
        what, share = f"measuring {name or f'step {step}'}", step / of if of else 0.0

        def _tell(at: str, _share: float) -> None:
            if self.progress:
                self.progress(f"{what}: {at.removeprefix('pruned: ')}", share)

        figures = evaluate_against(self.reference, voice, progress=_tell).figures
        changes = {
            name: figure.difference.value for name, figure in figures.items() if figure.difference
        }
        return Judgement(
            step, of, figures, score(changes, {limit.metric: limit.change for limit in LIMITS})
        )


def judge_of(
    voice: Voice,
    texts: Sequence[str] | None = None,
    evaluations: int = EVALUATIONS,
    evaluation_texts: int = EVALUATION_TEXTS,
    *,
    seed: int = 0,
    progress: Step | None = None,
) -> CheckpointJudge | None:
    """Measure the original, and return the judge of what is healed towards it; None for no evaluations.

    Args:
        voice: the original.
        texts: what the voice is healed on, None for built-in sentences or draws.
        evaluations: how many checkpoints are judged, 0 to MOST_EVALUATIONS.
        evaluation_texts: on how many sentences.
        seed: of sentences that are drawn.
        progress: told what is being measured and the share that is done (0 to 1).

    Raises:
        InputError: a number is out of range, or the recogniser cannot be loaded.
    """
    if (
        isinstance(evaluations, bool)
        or not isinstance(evaluations, int)
        or not 0 <= evaluations <= MOST_EVALUATIONS
    ):
        raise InputError(
            f"The evaluations must be a whole number from 0 to {MOST_EVALUATIONS}, not {str(evaluations)[:40]!r}."
        )
    if evaluations == 0:
        return None
    said = tuning_texts(voice, evaluation_texts, texts, seed)
    if not is_main_process():
        return CheckpointJudge(None, evaluations, measured_on=said.words)
    tell, start = progress or (lambda _what, _share: None), time.perf_counter()
    try:
        settings = Settings(metrics=METRICS, noise_seeds=0)
        reference = prepare_reference(
            voice, said.texts, settings, progress=lambda what, share: tell(what, 0.5 * share)
        )
    except UnmeasurableError as error:
        why = f"Checkpoints are not measured, and the last one is kept: {error}"
        return CheckpointJudge(None, evaluations, measured_on=said.words, unmeasured=(why,))
    middle = time.perf_counter()
    evaluate_against(reference, voice, progress=lambda what, share: tell(what, 0.5 + 0.5 * share))
    end = time.perf_counter()
    why_not = (*reference.unmeasured.values(), *reference.notes)
    return CheckpointJudge(
        reference, evaluations, end - start + evaluations * (end - middle), said.words, why_not
    )


def heal(
    pruned: Voice,
    teacher: Voice,
    texts: Sequence[str] | None = None,
    plan: HealPlan | None = None,
    folder: str | Path | None = None,
    *,
    evaluations: int = EVALUATIONS,
    evaluation_texts: int = EVALUATION_TEXTS,
    judge: Judge | None = None,
    resume: bool = False,
    recordings: Sequence[Clip] = (),
    lessons: Lessons | None = None,
    on_step: OnStep | None = None,
    cpu: bool = False,
) -> Voice:
    """Train a pruned voice on what the original says, and return the best checkpoint. No recordings are needed.

    This is `vits_prune.healing.heal` with a judge. What the judge cannot measure is logged as a warning.

    Args:
        pruned, teacher, texts, plan, folder, resume, recordings, lessons, on_step, cpu: as in `vits_prune.healing.heal`.
        evaluations: how many checkpoints are judged, at even distances; 0 to keep the last one.
        evaluation_texts: on how many tuning sentences.
        judge: who scores checkpoints instead.

    Raises:
        InputError: as `vits_prune.healing.heal` and `judge_of`.
    """
    parts_to_train(
        pruned, teacher
    )  # what cannot be healed is refused before the original is measured
    judge = judge or _warned(
        judge_of(teacher, texts, evaluations, evaluation_texts, seed=plan.seed if plan else 0)
    )
    return train(
        pruned,
        teacher,
        texts,
        plan,
        folder,
        judge=judge,
        resume=resume,
        recordings=recordings,
        lessons=lessons,
        on_step=on_step,
        cpu=cpu,
    )


def heal_steps(
    voice: Voice,
    spec: PruneSpec,
    plan: HealPlan | None = None,
    *,
    evaluations: int = EVALUATIONS,
    evaluation_texts: int = EVALUATION_TEXTS,
    judge: Judge | None = None,
    texts: Sequence[str] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_prune: Callable[[str, float], None] | None = None,
    on_step: OnStep | None = None,
    cpu: bool = False,
) -> Iterator[tuple[float, Voice]]:
    """Prune gradually and heal behind each step; the last healing gives its best checkpoint. Yields (amount, healed voice).

    This is `vits_prune.healing.heal_steps` with a judge. What the judge cannot measure is logged as a warning.

    Args:
        voice, spec, plan, texts, folder, resume, on_prune, on_step, cpu: as in `vits_prune.healing.heal_steps`.
        evaluations, evaluation_texts, judge: as in `heal`, for the last healing.

    Raises:
        InputError: as `vits_prune.healing.heal_steps` and `judge_of`.
    """
    judge = judge or _warned(
        judge_of(voice, texts, evaluations, evaluation_texts, seed=plan.seed if plan else 0)
    )
    yield from train_steps(
        voice,
        spec,
        plan,
        texts=texts,
        folder=folder,
        resume=resume,
        on_prune=on_prune,
        on_step=on_step,
        judge=judge,
        cpu=cpu,
    )


def _warned(judge: CheckpointJudge | None) -> CheckpointJudge | None:
    for sentence in judge.unmeasured if judge else ():
        log.warning("%s", sentence)
    return judge
