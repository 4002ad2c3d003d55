"""The judge of checkpoints, the same for the library, the command line and the page."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vits_prune.errors import UnmeasurableError
from vits_prune.fields import check_options, option
from vits_prune.healing import run as training
from vits_prune.healing.plan import HealData, HealPlan, HealResult, HealRun, Judge
from vits_prune.healing.student import parts_to_train
from vits_prune.healing.teacher import other_texts
from vits_prune.healing.training import is_main_process
from vits_prune.measure.quality import Figure
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import PruneSpec
from vits_prune.study.evaluation import Reference, Settings, evaluate_against, prepare_reference
from vits_prune.study.knee import seeds_for, usual_limits
from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.voice import Voice, spoken_language, without_masks

JUDGED_FAMILIES = ("intelligibility", "naturalness", "closeness", "rhythm")
_SCORE_STEP = 0.5
"""Scores are multiples of it: in ten sentences one vowel is half a limit of CER, and of voices
between which such a vowel would decide the one that learnt longest is kept."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgeSettings:
    """How often and on how much checkpoints are judged; InputError if out of range."""

    evaluations: int = option(
        4,
        "how often to measure quality, evenly over the training; 0 keeps the last checkpoint",
        int,
        low=0,
        high=1_000,
    )
    texts: int = option(
        10,
        "on how many tuning sentences to measure",
        int,
        low=1,
        high=1_000,
        noun="number of sentences",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class TuningTexts:
    """Sentences that checkpoints are judged on, and in words, which they are."""

    texts: tuple[str, ...]
    words: str


def tuning_texts(
    voice: Voice, count: int = JudgeSettings.texts, own: Sequence[str] | None = None, seed: int = 0
) -> TuningTexts:
    """Return sentences in the language of a voice to choose a checkpoint by.

    The built-in ones are English. Other voices get at most `count` of their `own`, such as those
    that they are healed on, or random sentences if there are none.

    Raises:
        InputError: the count is out of range, or the voice has no symbols to draw from.
    """
    JudgeSettings(texts=count)  # checks the count
    if spoken_language(voice) == "en":
        return TuningTexts(load_texts(count, "tuning"), f"{count} tuning sentences")
    given = tuple(text for text in own or () if text.strip())[:count]
    if given:
        return TuningTexts(given, "sentences of your own text, since the built-in ones are English")
    words = "sentences drawn from the voice's symbols, since the built-in ones are English"
    return TuningTexts(other_texts(voice, None, count, seed), words)


def score_of(changes: Mapping[str, float]) -> float | None:
    """Return how far a voice is from the original, as a sum of shares of the knee's limits.

    An improvement does not make up for anything. The score is rounded down to halves, infinity
    where a change is NaN, None if no metric with a limit was measured.
    """
    shares = [changes[limit.metric] / limit.change for limit in usual_limits(changes)]
    if not shares:
        return None
    total = sum(max(0.0, share) for share in shares)
    if any(map(math.isnan, shares)) or math.isinf(total):
        return math.inf
    return math.floor(total / _SCORE_STEP + 1e-9) * _SCORE_STEP


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was measured of one checkpoint."""

    step: int
    of: int | None
    figures: dict[str, Figure]
    score: float | None

    def changes(self) -> dict[str, float]:
        """Return the changes from the original in what is scored, and in length, by metric."""
        names = (*(limit.metric for limit in usual_limits(self.figures)), "duration_ratio")
        found = {name: self.figures[name] for name in names if name in self.figures}
        return {name: one.difference.value for name, one in found.items() if one.difference}


@dataclass(frozen=True, eq=False)
class CheckpointJudge:
    """Scores checkpoints by the strictest predictors; without callbacks it can be pickled."""

    reference: Reference | None
    """The original, measured. None where it cannot be, or where another process judges: then no
    checkpoint has a score."""
    evaluations: int
    """Checkpoints that are judged, evenly over the training."""
    seconds: float = 0.0
    """Of measuring the original and all checkpoints."""
    measured_on: str = ""
    """Which sentences, for people."""
    unmeasured: tuple[str, ...] = ()
    """What cannot be measured and why, one sentence each."""
    observer: Callable[[Judgement, Voice], None] | None = None
    progress: Progress = SILENT

    @property
    def signature(self) -> str:
        """All that the judgements depend on besides the voices, "" where nothing is measured."""
        return self.reference.signature if self.reference else ""

    def wants(self, step: int, of: int | None) -> bool:
        """Return whether a step is judged: evenly over the training, the last one at its end."""
        count = self.evaluations
        return of is not None and step * count // of > (step - 1) * count // of

    def score(self, step: int, of: int | None, voice: Voice) -> float | None:
        """Return the score of a checkpoint; None if it is not one to be judged."""
        if self.reference is None or not self.wants(step, of):
            return None
        found = self.judgement(step, voice, of)
        if self.observer:
            self.observer(found, voice)
        return found.score

    def judgement(
        self, step: int, voice: Voice, of: int | None = None, name: str = ""
    ) -> Judgement:
        """Measure the voice of a step against the original; `name` is for the progress.

        Raises:
            UnmeasurableError: there is no reference.
        """
        if self.reference is None:
            raise UnmeasurableError("The original was not measured: there is nothing to compare.")
        share, before = step / of if of else 0.0, f"measuring {name or f'step {step}'}: "

        def report(message: str, _fraction: float) -> None:
            self.progress.report(before + message.removeprefix("pruned: "), share)

        figures = evaluate_against(self.reference, voice, progress=Progress(report)).figures
        found = Judgement(step, of, figures, None)
        return dataclasses.replace(found, score=score_of(found.changes()))


def judging_settings(seed: int = 0, delivery: Delivery = Delivery()) -> Settings:
    """Return how checkpoints, and what is healed, are measured."""
    seeds = seeds_for(usual_limits())
    return Settings(seed=seed, metrics=JUDGED_FAMILIES, noise_seeds=seeds, delivery=delivery)


def judge_of(
    voice: Voice,
    texts: Sequence[str] | None = None,
    settings: JudgeSettings = JudgeSettings(),
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> CheckpointJudge | None:
    """Measure the original, and return the judge of what is healed towards it.

    `texts` are what the voice is healed on, None for built-in or random sentences by `seed`.
    Without evaluations there is no judge.

    Raises:
        InputError: the recogniser cannot be loaded.
    """
    if settings.evaluations == 0:
        return None
    said = tuning_texts(voice, settings.texts, texts, seed)
    if not is_main_process():
        return CheckpointJudge(None, settings.evaluations, measured_on=said.words)
    start, how = time.perf_counter(), judging_settings()
    try:
        reference = prepare_reference(voice, said.texts, how, progress=progress.part(0.0, 0.5))
    except UnmeasurableError as error:
        why = f"Checkpoints are not measured, and the last one is kept: {error}"
        return CheckpointJudge(None, settings.evaluations, 0.0, said.words, (why,))
    middle = time.perf_counter()
    evaluate_against(reference, voice, progress=progress.part(0.5, 1.0))
    end = time.perf_counter()
    seconds = end - start + settings.evaluations * (end - middle)
    unmeasured = (*reference.unmeasured.values(), *reference.notes)
    return CheckpointJudge(reference, settings.evaluations, seconds, said.words, unmeasured)


def heal(
    pruned: Voice,
    teacher: Voice,
    plan: HealPlan = HealPlan(),
    *,
    data: HealData = HealData(),
    run: HealRun = HealRun(),
    judge: Judge | JudgeSettings | None = JudgeSettings(),
) -> HealResult:
    """Train a pruned voice on what the original says, and keep the best checkpoint.

    This is `vits_prune.healing.heal` with a judge by default: character errors, naturalness and
    closeness by the strictest predictors here, at even distances on tuning sentences. A warning in
    the log says what cannot be measured.

    Args:
        pruned, teacher: the voice to heal, which stays as it is, and the voice it was made of.
        plan: how long and how.
        data: what to learn from. No recordings are needed.
        run: folder of checkpoints, device, observer.
        judge: your own, or how often and on how much to judge; None keeps the last checkpoint.

    Raises:
        InputError: as `vits_prune.healing.heal`, or the recogniser cannot be loaded.

    Example:
        >>> result = heal(pruned, voice, HealPlan(minutes=15))  # doctest: +SKIP
        >>> result.step, result.of  # doctest: +SKIP
        (450, 600)
    """
    pruned, teacher = without_masks(pruned), without_masks(teacher)
    parts_to_train(pruned, teacher)  # raises before the original is measured
    judge = _as_judge(judge, teacher, data, plan)
    return training.heal(pruned, teacher, plan, data=data, run=run, judge=judge)


def heal_steps(
    voice: Voice,
    spec: PruneSpec,
    plan: HealPlan = HealPlan(),
    *,
    data: HealData = HealData(),
    run: HealRun = HealRun(),
    judge: Judge | JudgeSettings | None = JudgeSettings(),
) -> Iterator[tuple[float, HealResult]]:
    """Prune gradually and heal after each step; the last healing keeps its best checkpoint.

    This is `vits_prune.healing.heal_steps` with the judge of `heal`. It yields amount and result of
    each step that `spec` asks for; `plan` is of all healings together.

    Raises:
        InputError: as `vits_prune.healing.heal_steps`, or the recogniser cannot be loaded.
    """
    judge = _as_judge(judge, voice, data, plan)
    yield from training.heal_steps(voice, spec, plan, data=data, run=run, judge=judge)


def _as_judge(
    judge: Judge | JudgeSettings | None, original: Voice, data: HealData, plan: HealPlan
) -> Judge | None:
    if not isinstance(judge, JudgeSettings):
        return judge
    found = judge_of(original, data.texts, judge, seed=plan.seed)
    for sentence in found.unmeasured if found else ():
        log.warning("%s", sentence)
    return found
