"""Healing on the page: from an order to the healed voice, and what is said and measured of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.healing import best
from vits_prune.healing.plan import judging_seconds
from vits_prune.healing.storage import Curve
from vits_prune.progress import SILENT, Cancelled, Progress
from vits_prune.studio import heal_stretch, workbench
from vits_prune.studio.descriptions import check_size
from vits_prune.studio.evidence import Points, gaps, measure_points, measured_original
from vits_prune.studio.heal_stretch import Checkpoint, StepMade, Stretch, StretchEnd
from vits_prune.studio.jobs import Update, calls_are_limited, until_halted
from vits_prune.studio.renditions import timed_text
from vits_prune.studio.request import Order, Request
from vits_prune.study.evaluation import Evaluation, Settings
from vits_prune.study.judge import CheckpointJudge, JudgeSettings, judging_settings, tuning_texts
from vits_prune.synthesis.speak import Speech
from vits_prune.voices.sentences import split_sentences
from vits_prune.voices.voice import Voice, spoken_language

EVALUATIONS = JudgeSettings.evaluations
"""How often quality is measured on the way."""
_BYTES = 512 << 20
_STATUS_SECONDS, _PICTURE_SECONDS = 0.25, 1.0
"""How often the page is told: a GPU makes more steps a second than it can show."""

work = tempfile.TemporaryDirectory(prefix="vits_prune-heal-")
"""A folder for each healing under way."""


@dataclass(eq=False)
class HealJob:
    """A healing and what is known of it so far."""

    order: Order
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of the training curve."""
    checkpoints: list[Checkpoint] = field(default_factory=list)
    step: int = 0
    of: int | None = None
    seconds: float = 0.0
    why: str = ""
    """Why it ended early; empty if it did not."""
    kept: int = 0
    """Step of the voice that is kept."""
    voice: Voice | None = None
    note: str = ""
    """Which sentences it is measured on."""
    unmeasured: str = ""
    """What is not measured and why, and what limits the rest, in sentences."""
    signature: str = ""
    """Of what is measured of the checkpoints."""

    @property
    def complete(self) -> bool:
        """Whether the healing ended with a voice and was not stopped."""
        return self.voice is not None and not self.why

    def curve(self, measured: Callable[[Checkpoint], dict[str, float | None]]) -> Curve:
        """Return losses and what was measured, one row a step.

        Args:
            measured: of a checkpoint, by metric.
        """
        rows = {row["step"]: dict(row) for row in self.rows}
        for one in self.checkpoints:
            found = {f"measured_{name}": value for name, value in measured(one).items()}
            rows.setdefault(one.step, {"step": one.step}).update(found)
        curve = Curve(signature=self.signature)
        curve.rows = [rows[step] for step in sorted(rows)]
        return curve

    def __str__(self) -> str:
        if not self.of:
            return f"step {self.step}: finding out how many steps there is time for"
        left = round((self.of - self.step) * self.seconds / max(1, self.step))
        return f"step {self.step} of {self.of}, about {left // 60}:{left % 60:02} left"


def _bytes(job: HealJob) -> float:
    speeches = [one.speech.waveform.nbytes for one in job.checkpoints if one.speech]
    return (workbench.voice_bytes(job.voice) if job.voice else 0) + sum(speeches)


jobs: Bounded[Order, HealJob] = Bounded(_BYTES, _bytes)
"""By Order.key and, once they are complete, by Order.learnt."""


def recall(order: Order | None) -> HealJob:
    """Return the healing of an order.

    Raises:
        InputError: it is not kept any more.
    """
    found = jobs.get(order.key) if isinstance(order, Order) else None
    if found is None:
        raise InputError("This healing is no longer kept here: press Heal again.")
    return found


def voice_of(order: Order | None) -> Voice:
    """Return the healed voice of an order.

    Raises:
        InputError: nothing was healed, it is not done yet, or it is forgotten.
    """
    if not isinstance(order, Order):
        raise InputError("Nothing is healed yet: press Heal in the Heal tab first.")
    voice = recall(order).voice
    if voice is None:
        raise InputError(
            "This voice is still being healed: wait for its end, or press Stop in the Heal tab."
        )
    return voice


def staged(order: Order | None, said: Request) -> Request:
    """Return the request for the healed voice of an order.

    Args:
        order: what was healed.
        said: has the text and how it is spoken.

    Raises:
        InputError: there is no such voice.
    """
    job, mine = recall(order), recall(order).order.request
    workbench.bench.keep_healed(job.order.key, voice_of(order))
    what: dict[str, Any] = {"reference": mine.reference, "speaker": mine.speaker}
    return dataclasses.replace(said, spec=mine.spec, healed=job.order.key, **what)


def _voices(
    request: Request, token: str | None, progress: Progress = SILENT
) -> tuple[Voice, Voice]:
    """Return the original and the pruned voice."""
    pruned = workbench.bench.pruned(request, token, progress)
    return workbench.bench.voice(request.reference, request.speaker, token), pruned


def _healed(job: HealJob) -> Voice:
    assert job.voice is not None, "this healing is not done"
    return job.voice


def _settings(request: Request) -> Settings:
    return judging_settings(request.seed, request.delivery)


def claim_settings(request: Request) -> Settings:
    """Return how a voice is measured for what is said of it: with a noise floor, and who speaks."""
    how = _settings(request)
    return dataclasses.replace(how, metrics=(*how.metrics, "speaker"), noise_seeds=1)


def _shortened(request: Request) -> Request:
    """Return the request for the beginning of its text, which checkpoints speak."""
    return dataclasses.replace(request, text=timed_text(request.text))


# Healing


def heal(
    order: Order,
    token: str | None,
    halted: Callable[[], bool],
    progress: Progress = SILENT,
    refusals: tuple[type[Exception], ...] = (),
) -> Iterator[HealJob]:
    """Heal, and yield the job whenever there is more to see of it, at the end with its voice.

    Args:
        order: what and how.
        token: the visitor's.
        halted: whether to end with the best so far. Halted before the training, it yields nothing.
        progress: gets each step.
        refusals: errors of a service that lends no more GPU time. What is learnt by then is kept.

    Raises:
        InputError: there is nothing to heal, the voice is too large, or it ended before there was
            anything to keep.
    """
    known, learnt = jobs.get(order.key), jobs.get(order.learnt)
    if known is not None and known.complete:
        yield known
    elif learnt is not None and learnt.complete:
        again = until_halted(partial(_speak_again, learnt, order, token), halted, progress)
        if again is not None:
            jobs.put(order.key, again)
            yield again
    else:
        job = HealJob(order)
        ready = until_halted(partial(_prepare, job, token), halted, progress)
        if ready is not None:
            jobs.put(order.key, job)
            yield job
            yield from _train(job, *ready, token, halted, progress, refusals)
            jobs.put(order.key, job)  # weighs more now
            if (
                spoken_language(_healed(job)) == "en"
            ):  # else the visitor's text chose the checkpoint
                jobs.put(order.learnt, job)
            yield job


def _speak_again(known: HealJob, order: Order, token: str | None, progress: Progress) -> HealJob:
    """Return a job that is done for another text, which the voices at hand speak.

    What the others said stays with the visitor who asked for it.
    """
    request, (voice, pruned) = _shortened(order.request), _voices(order.request, token, progress)
    original = workbench.say(voice, request, "own", progress.part(0.0, 0.3, "original: "))
    speeches = {}
    for step, one in ((0, pruned), (known.kept, _healed(known))):
        part = progress.part(0.3, 1.0, f"step {step}: ")
        speeches[step] = workbench.say(one, request, original, part)
    heard = [dataclasses.replace(one, speech=speeches.get(one.step)) for one in known.checkpoints]
    return dataclasses.replace(known, order=order, checkpoints=heard)


def _prepare(job: HealJob, token: str | None, progress: Progress) -> tuple[CheckpointJudge, Speech]:
    """Prune; measure and hear the pruned voice, which also shows how long that takes."""
    order, request = job.order, job.order.request
    if request.spec.idle:
        raise InputError(
            "Nothing is pruned yet, so there is nothing to heal: set the amount above 0 first."
        )
    on_cpu = workbench.bench.voice(request.reference, request.speaker, token, device="cpu")
    check_size(on_cpu, "heal", "heal")
    voice, pruned = _voices(request, token, progress)
    said = tuning_texts(voice, order.texts, split_sentences(request.text))
    reference = measured_original(request, token, voice, said.texts, _settings(request), progress)
    job.note, job.signature = said.words, reference.signature
    job.unmeasured = gaps(reference)
    original = workbench.say(
        voice, _shortened(request), "own", progress.part(0.0, 1.0, "original: ")
    )
    judge, start = CheckpointJudge(reference, EVALUATIONS, progress=progress), time.perf_counter()
    judgement = judge.judgement(0, pruned, name="the pruned voice")
    job.checkpoints.append(heal_stretch.heard(judgement, pruned, _shortened(request), original))
    seconds = EVALUATIONS * (time.perf_counter() - start)
    return CheckpointJudge(reference, EVALUATIONS, judging_seconds(order.plan, seconds)), original


def _train(
    job: HealJob,
    judge: CheckpointJudge,
    original: Speech,
    token: str | None,
    halted: Callable[[], bool],
    progress: Progress,
    refusals: tuple[type[Exception], ...],
) -> Iterator[HealJob]:
    """Train in a folder of its own, and put the best voice into the job."""
    heal_stretch.remove_left(Path(work.name))
    folder, request = Path(tempfile.mkdtemp(dir=work.name)), job.order.request
    seconds = heal_stretch.STRETCH_SECONDS if calls_are_limited() else None
    stretch = Stretch(_shortened(request), job.order.plan, folder, judge, original, seconds)
    with heal_stretch.holding(folder):
        try:
            why = yield from _stretches(job, stretch, token, halted, progress, refusals)
            kept = best(folder, workbench.bench.pruned(request, token), stopped=why)
        except (GeneratorExit, Cancelled):  # the thread that trains removes the folder
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)
    if kept is None:
        early = "Healing was stopped before its first checkpoint: there is nothing to keep yet."
        raise InputError(why if why and not halted() else early)
    job.why, job.voice, job.kept = why, kept.voice, kept.step


def _stretches(
    job: HealJob,
    stretch: Stretch,
    token: str | None,
    halted: Callable[[], bool],
    progress: Progress,
    refusals: tuple[type[Exception], ...],
) -> Generator[HealJob, None, str]:
    """Train stretch after stretch; return why it ended early, empty if it did not."""
    while True:
        before = job.step
        try:
            end = yield from _follow(job, stretch, token, halted, progress)
        except refusals as error:
            if not job.step:
                raise
            end = StretchEnd(why=str(getattr(error, "message", error)))
        if end.why:
            return end.why
        if halted() and job.step != job.of:
            return f"stopped by hand at step {job.step}"
        if not end.paused:
            return ""
        if job.step == before:
            raise InputError(
                "One call is too short for a step of this training: heal this voice on your own"
                " machine, with `python -m vits_prune heal`."
            )
        stretch = dataclasses.replace(stretch, resume=True)


def _follow(
    job: HealJob,
    stretch: Stretch,
    token: str | None,
    halted: Callable[[], bool],
    progress: Progress,
) -> Generator[HealJob, None, StretchEnd]:
    """Take what happens in a stretch into the job; return how it ended."""
    os.utime(stretch.folder)  # for `remove_left`
    told = drawn = 0.0
    rows = len(job.rows)
    with contextlib.closing(heal_stretch.train(stretch, token)) as happens:
        for news in happens:
            if halted():
                heal_stretch.halt(stretch.folder)
            if isinstance(news, StepMade):
                job.step, job.of, job.seconds = news.step, news.of, news.seconds
                job.rows += [news.row] if news.row else []
            elif isinstance(news, Checkpoint):
                job.checkpoints.append(news)
                yield job
            elif isinstance(news, Update):
                now = time.monotonic()
                if now - told > _STATUS_SECONDS:
                    told = now
                    message = str(job) if news.message.startswith("step") else news.message
                    progress.report(message, news.fraction)
                if len(job.rows) > rows and now - drawn > _PICTURE_SECONDS:
                    drawn, rows = now, len(job.rows)
                    yield job
            else:
                return news
    return StretchEnd(why="the training ended unexpectedly")


# The healed voice


def speak_all(
    job: HealJob, request: Request, token: str | None, progress: Progress = SILENT
) -> list[Speech]:
    """Let the original, the pruned and the healed voice speak, in the timing of the request."""
    voice, pruned = _voices(request, token)
    speeches: list[Speech] = []
    for i, (who, one) in enumerate(
        (("original", voice), ("pruned", pruned), ("healed", _healed(job)))
    ):
        timing: Any = speeches[0] if speeches and request.timing == "locked" else "own"
        part = progress.part(i / 3, (i + 1) / 3, f"speaking: {who}, ")
        speeches.append(workbench.say(one, request, timing, part))
    return speeches


def compare(
    job: HealJob, token: str | None, progress: Progress = SILENT
) -> tuple[Evaluation, Evaluation, str]:
    """Measure the pruned and the healed voice on sentences that no checkpoint was chosen by.

    Returns:
        The evaluation of each against the original, and which sentences they are.
    """
    request, families = job.order.request, claim_settings(job.order.request).metrics

    def measured(one: Request, when: str, start: float) -> Points:
        def report(message: str, fraction: float) -> None:
            words = message.rpartition("pruned: ")[2]
            progress.report(f"{when} healing: {words}", start + fraction / 2)

        (found,) = measure_points(
            one, token, [one.spec], job.order.texts, families, Progress(report)
        )
        return found

    before = measured(request, "before", 0.0)
    after = measured(staged(job.order, request), "after", 0.5)
    return before.points[0].evaluation, after.points[0].evaluation, after.note
