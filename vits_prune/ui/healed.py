"""A healing from its order to the healed voice: what it stands at while it runs, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.healing import best
from vits_prune.progress import Progress as WorkProgress
from vits_prune.studio import speaking, workbench
from vits_prune.studio.evidence import measured_original, texts_for
from vits_prune.studio.jobs import Update, calls_are_limited, in_background
from vits_prune.studio.request import Request
from vits_prune.study.evaluation import Evaluation, Settings, evaluate_against
from vits_prune.study.judge import METRICS, CheckpointJudge, tuning_texts
from vits_prune.synthesis.speak import Speech, speak
from vits_prune.ui import healing
from vits_prune.ui.healing import Check, Ended, Order, Progress, Task
from vits_prune.voices.hf_text import split_sentences
from vits_prune.voices.voice import Voice, spoken_language

_BYTES = 512 << 20
_TOLD_SECONDS, _REDRAWN_SECONDS = 0.25, 1.0
"""A GPU makes more steps a second than a page can show."""

_work = tempfile.TemporaryDirectory(prefix="vits_prune-heal-")


@dataclass(eq=False)
class Healing:
    """How a healing stands; it grows while it runs."""

    order: Order
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of the curve of losses."""
    checks: list[Check] = field(default_factory=list)
    step: int = 0
    of: int | None = None
    seconds: float = 0.0
    why: str = ""
    """Why it ended early, empty where it did not."""
    kept: int = 0
    """Step of the voice that was kept."""
    voice: Voice | None = None
    note: str = ""
    """On which sentences it is measured."""
    unmeasured: str = ""
    """What cannot be measured and why, in sentences."""

    @property
    def complete(self) -> bool:
        return self.voice is not None and not self.why

    def words(self) -> str:
        """How far it is, in a line."""
        if not self.of:
            return f"step {self.step}: finding out how many steps there is time for"
        left = round((self.of - self.step) * self.seconds / max(1, self.step))
        return f"step {self.step} of {self.of}, about {left // 60}:{left % 60:02} left"


def _bytes(one: Healing) -> float:
    weights = (
        sum(t.numel() * t.element_size() for t in one.voice.model.parameters()) if one.voice else 0
    )
    return weights + sum(check.speech.waveform.nbytes for check in one.checks if check.speech)


_healings: Bounded[Order, Healing] = Bounded(_BYTES, _bytes)


def recall(order: Order | None) -> Healing:
    """What came of an order.

    Raises:
        InputError: it is not kept any more.
    """
    found = _healings.get(order.key) if isinstance(order, Order) else None
    if found is None:
        raise InputError("This healing is no longer kept here: press Heal again.")
    return found


def pruning(request: Request, token: str | None) -> Generator[Update, None, Voice]:
    """Make the pruned voice of a request, and return it."""
    for step in in_background(lambda told: workbench.bench.pruned(request, token, told)):
        if isinstance(step, Update):
            yield step
    return step


def healing_steps(
    order: Order, token: str | None, halted: Callable[[], bool]
) -> Iterator[Update | Healing]:
    """Heal: how far it is, and the Healing whenever there is more to see of it, last with its voice.

    Args:
        order: what and how.
        token: the visitor's.
        halted: whether it is to end with what it has.

    Raises:
        InputError: there is nothing to heal, the page cannot bear it, or it ended before there was anything to keep.
    """
    known = _healings.get(order.key)
    if known is not None and known.complete:
        yield known
        return
    known = _healings.get(order.learnt)
    if known is not None and known.complete:
        yield from _retold(known, order, token)
        return
    request = order.request
    healing.check_order(
        order, workbench.bench.voice(request.reference, request.speaker, token, device="cpu")
    )
    yield from pruning(request, token)
    voice, pruned = (
        workbench.bench.voice(request.reference, request.speaker, token),
        workbench.bench.pruned(request, token),
    )
    found = Healing(order)
    said = tuning_texts(voice, order.texts, split_sentences(request.text))
    for reference in in_background(
        lambda told: measured_original(request, token, voice, said.texts, _settings(request), told)
    ):
        if isinstance(reference, Update):
            yield reference
    judge = CheckpointJudge(reference, healing.CHECKS)
    found.note, found.unmeasured = (
        said.words,
        " ".join((*reference.unmeasured.values(), *reference.notes)),
    )
    for task in in_background(lambda tell: _prepared(found, judge, voice, pruned, tell)):
        if isinstance(task, Update):
            yield task
    with healing.holding(task.folder):
        _healings.put(order.key, found)
        yield found
        try:
            why = yield from _trained(found, task, token, halted)
            kept = best(task.folder, pruned, stopped=why)
        except GeneratorExit:  # whoever trains removes it, after a last checkpoint
            raise
        except BaseException:
            shutil.rmtree(task.folder, ignore_errors=True)
            raise
    shutil.rmtree(task.folder, ignore_errors=True)
    if kept is None:
        raise InputError(
            why
            if why and not halted()
            else "Healing was stopped before its first checkpoint: there is nothing to keep yet."
        )
    found.why, found.voice, found.kept = why, kept.voice, kept.step
    _healings.put(order.key, found)  # weighs more now
    if (
        spoken_language(voice) == "en"
    ):  # in other languages the best was chosen by what the visitor's text is like
        _healings.put(order.learnt, found)
    yield found


def _retold(known: Healing, order: Order, token: str | None) -> Iterator[Update | Healing]:
    """A healing that is done, for another text: the voices that are at hand speak it; what others said stays with who asked for it."""
    request = order.request
    yield from pruning(request, token)
    voice, pruned = (
        workbench.bench.voice(request.reference, request.speaker, token),
        workbench.bench.pruned(request, token),
    )

    def _speak(tell: Callable[[str, float], None]) -> Healing:
        text, choices = speaking.timed_text(request.text), {"delivery": request.delivery}
        tell("speaking: original", 0.0)
        original = speak(voice, text, request.seed, **choices)
        speeches = {}
        for number, (step, one) in enumerate(((0, pruned), (known.kept, known.voice)), 1):
            tell(f"speaking: step {step}", number / 3)
            speeches[step] = speak(one, text, request.seed, timing=original, **choices)
        checks = [
            dataclasses.replace(check, speech=speeches.get(check.step)) for check in known.checks
        ]
        return dataclasses.replace(known, order=order, checks=checks)

    for step in in_background(_speak):
        if isinstance(step, Healing):
            _healings.put(order.key, step)
        yield step


def _settings(request: Request) -> Settings:
    return Settings(seed=request.seed, metrics=METRICS, noise_seeds=0, delivery=request.delivery)


def _prepared(
    found: Healing,
    judge: CheckpointJudge,
    voice: Voice,
    pruned: Voice,
    tell: Callable[[str, float], None],
) -> Task:
    """Measure and hear the voice as it was pruned, which also tells how long that takes."""
    request = found.order.request
    text = speaking.timed_text(request.text)
    tell("speaking: original", 0.0)
    original = speak(voice, text, request.seed, request.delivery)
    start = time.perf_counter()
    judgement = dataclasses.replace(judge, progress=WorkProgress.of(tell)).judgement(
        0, pruned, name="the pruned voice"
    )
    found.checks.append(healing.spoken_check(judgement, pruned, request, text, original))
    reserve = min(
        healing.CHECKS * (time.perf_counter() - start), 30.0 * (found.order.plan.minutes or 0.0)
    )
    healing.remove_left(Path(_work.name))
    folder = Path(tempfile.mkdtemp(dir=_work.name))
    seconds = healing.STRETCH_SECONDS if calls_are_limited() else None
    return Task(
        found.order,
        folder,
        dataclasses.replace(judge, seconds=reserve),
        text,
        original,
        False,
        seconds,
    )


def _trained(
    found: Healing, task: Task, token: str | None, halted: Callable[[], bool]
) -> Iterator[Update | Healing]:
    """Stretch after stretch until it is done or halted; returns why it ended early, empty where it did not."""
    while True:
        before = found.step
        try:
            ended = yield from _stretch(found, task, token, halted)
        except gr.Error as error:  # no GPU any more: what there is is kept
            if not found.step:
                raise
            ended = Ended(why=str(error.message))
        if ended.why:
            return ended.why
        if halted() and found.step != found.of:
            return f"stopped by hand at step {found.step}"
        if not ended.paused:
            return ""
        if found.step == before:
            raise InputError(
                "Healing makes no headway within the time of one call: heal it on your own machine, with the command line."
            )
        task = dataclasses.replace(task, resume=True)


def _stretch(
    found: Healing, task: Task, token: str | None, halted: Callable[[], bool]
) -> Iterator[Update | Healing]:
    """One stretch; returns how it Ended."""
    os.utime(task.folder)  # see `healing.remove_left`
    told = drawn = 0.0
    rows = len(found.rows)
    with contextlib.closing(healing.training_steps(task, token)) as happens:
        for news in happens:
            if halted():
                healing.halt(task.folder)
            if isinstance(news, Progress):
                found.step, found.of, found.seconds = news.step, news.of, news.seconds
                if news.row:
                    found.rows.append(news.row)
            elif isinstance(news, Check):
                found.checks.append(news)
                yield found
            elif isinstance(news, Update):
                if time.monotonic() - told > _TOLD_SECONDS:
                    told = time.monotonic()
                    yield Update(
                        found.words() if news.message.startswith("step") else news.message,
                        news.fraction,
                    )
                if len(found.rows) > rows and time.monotonic() - drawn > _REDRAWN_SECONDS:
                    drawn, rows = time.monotonic(), len(found.rows)
                    yield found
            else:
                return news
    return Ended(why="the training ended without a word")


def spoken_steps(
    found: Healing, request: Request, token: str | None
) -> Iterator[Update | tuple[Speech, Speech, Speech]]:
    """Original, pruned and healed voice speak the visitor's text, with the timing that is chosen; they come last."""
    voice, pruned = (
        workbench.bench.voice(request.reference, request.speaker, token),
        workbench.bench.pruned(request, token),
    )

    def _say(tell: Callable[[str, float], None]) -> tuple[Speech, Speech, Speech]:
        speeches: list[Speech] = []
        for i, (who, one) in enumerate(
            (("original", voice), ("pruned", pruned), ("healed", found.voice))
        ):
            timing = speeches[0] if speeches and request.timing == "locked" else "own"
            progress = WorkProgress.of(tell).part(i / 3, (i + 1) / 3, f"speaking: {who}, ")
            speeches.append(
                speak(
                    one,
                    request.text,
                    request.seed,
                    request.delivery,
                    timing=timing,
                    progress=progress,
                )
            )
        return speeches[0], speeches[1], speeches[2]

    yield from in_background(_say)


def compared_steps(
    found: Healing, request: Request, token: str | None
) -> Iterator[Update | tuple[Evaluation, Evaluation, str]]:
    """Pruned and healed voice against the original on sentences that nothing was chosen by: both evaluations and on which, last."""
    voice, pruned = (
        workbench.bench.voice(request.reference, request.speaker, token),
        workbench.bench.pruned(request, token),
    )
    said, note = texts_for(voice, request.text, found.order.texts)
    for reference in in_background(
        lambda told: measured_original(request, token, voice, said, _settings(request), told)
    ):
        if isinstance(reference, Update):
            yield reference

    def _compare(tell: Callable[[str, float], None]) -> tuple[Evaluation, Evaluation, str]:
        def _measured(one: Voice, when: str, start: float) -> Evaluation:
            return evaluate_against(
                reference,
                one,
                progress=lambda at, share: tell(at.replace("pruned", when), start + share / 2),
            )

        return (
            _measured(pruned, "before healing", 0.0),
            _measured(found.voice, "after healing", 0.5),
            note,
        )

    yield from in_background(_compare)
