"""One stretch of a healing's training, in a thread or in a worker that has a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.healing import HealPlan, HealRun, TrainingStep, heal
from vits_prune.healing.storage import Curve
from vits_prune.progress import Cancelled, Progress
from vits_prune.studio import workbench
from vits_prune.studio.jobs import Update, calls_are_limited, in_background, on_zero_gpu
from vits_prune.studio.request import Request
from vits_prune.study.judge import CheckpointJudge, Judgement
from vits_prune.synthesis.speak import Speech
from vits_prune.threads import ForkSafeLock, WaitingLine
from vits_prune.voices.voice import Voice

STRETCH_SECONDS = 60.0
"""On ZeroGPU a call trains so long, then leaves a checkpoint for the next."""
STRETCH_LIMIT = 120
"""Seconds that such a call may take: a measurement may begin just before its end."""
ROW_EVERY = 5
_HALT = "halt"
_LONGEST_PAUSE = 5.0

one_at_a_time = WaitingLine()
"""Held while a voice trains."""
_held: Counter[Path] = Counter()
"""How many hold each folder of a healing, in this process."""
_held_lock = ForkSafeLock()


@dataclass(frozen=True)
class Stretch:
    """A stretch of training. It can be pickled, like all that comes out of it."""

    request: Request
    """Whose text the checkpoints speak."""
    plan: HealPlan
    folder: Path
    judge: CheckpointJudge
    original: Speech
    """The text, spoken by the original."""
    seconds: float | None
    """How long it may train; None for to the end."""
    resume: bool = False


@dataclass(frozen=True, eq=False)
class Checkpoint(Judgement):
    """What was measured of a checkpoint, step 0 for the pruned voice, and what it says."""

    speech: Speech | None
    """The visitor's text with the original's durations. None if the voice is not kept and spoke
    another visitor's text."""


@dataclass(frozen=True)
class StepMade:
    """A training step is done."""

    step: int
    of: int | None
    seconds: float
    row: dict[str, Any] | None
    """Of the training curve, with every ROW_EVERYth step."""


@dataclass(frozen=True)
class StretchEnd:
    """A stretch is over."""

    paused: bool = False
    """Whether there is more to do."""
    why: str = ""
    """Why the training ended early by itself."""


class _Pause(Exception):
    pass


class _Halt(Exception):
    pass


News = Update | StepMade | Checkpoint | StretchEnd


@on_zero_gpu(STRETCH_LIMIT)
def train(stretch: Stretch, token: str | None) -> Generator[News, None, None]:
    """Train for one stretch; yield what happens as it happens, the StretchEnd last.

    On ZeroGPU this runs in a worker, and the stretch's folder is all that stays.
    """
    workbench.bench.use_gpu()
    news: deque[StepMade | Checkpoint] = deque()
    for found in in_background(lambda progress: _train(stretch, token, news.append, progress)):
        while news:
            yield news.popleft()
        yield found


def _train(
    stretch: Stretch,
    token: str | None,
    tell: Callable[[StepMade | Checkpoint], None],
    progress: Progress,
) -> StretchEnd:
    """Train until the training is done, the stretch is over, it is halted, or nobody listens."""
    request, curve = stretch.request, Curve(ROW_EVERY)

    def observe(made: TrainingStep) -> None:
        row = curve.rows.pop() if curve.add(made) else None
        tell(StepMade(made.step, made.of, made.seconds, row))
        progress.report(f"step {made.step}", made.step / made.of if made.of else 0.0)
        if (stretch.folder / _HALT).exists():
            raise _Halt
        unfinished = made.of is not None and made.step < made.of
        late = stretch.seconds is not None and time.perf_counter() - start > stretch.seconds
        if late and unfinished:
            raise _Pause
        workbench.bench.let_hearing_pass(_LONGEST_PAUSE)

    def judged(found: Judgement, voice: Voice) -> None:
        tell(heard(found, voice, request, stretch.original))

    turn = one_at_a_time.turn(progress, "waiting for another healing to end")
    with holding(stretch.folder), turn:
        start = time.perf_counter()
        try:
            teacher = workbench.bench.voice(request.reference, request.speaker, token)
            pruned = workbench.bench.pruned(request, token)
            on_cpu = workbench.bench.device == "cpu"
            run = HealRun(stretch.folder, stretch.resume, on_cpu, observe)
            judge = dataclasses.replace(stretch.judge, observer=judged, progress=progress)
            return StretchEnd(why=heal(pruned, teacher, stretch.plan, run=run, judge=judge).stopped)
        except _Pause:
            return StretchEnd(paused=True)
        except _Halt:
            return StretchEnd()
        except InputError as error:  # as a value: a worker's errors lose their message on the way
            return StretchEnd(why=str(error))
        except Cancelled:
            # Not before the last checkpoint is written, which is now.
            shutil.rmtree(stretch.folder, ignore_errors=True)
            raise


def heard(found: Judgement, voice: Voice, request: Request, original: Speech) -> Checkpoint:
    """Let the voice of a checkpoint speak."""
    speech = workbench.say(voice, request, original, Progress())
    return Checkpoint(found.step, found.of, found.figures, found.score, speech)


# Folders


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep `remove_left` from a folder that somebody may still write to."""
    with _held_lock:
        _held[folder] += 1
    try:
        yield
    finally:
        with _held_lock:
            _held[folder] -= 1
            if not _held[folder]:
                del _held[folder]


def remove_left(work: Path) -> None:
    """Remove the folders of healings that ended without their visitor.

    A thread that nobody waits for works on until its next report, so a folder that it holds stays.
    A ZeroGPU worker is another process. It ends STRETCH_LIMIT seconds after its folder was touched
    at the latest.
    """
    with _held_lock:
        held = set(_held)
    for folder in work.iterdir():
        working = calls_are_limited() and time.time() - folder.stat().st_mtime < 2 * STRETCH_LIMIT
        if folder not in held and not working:
            shutil.rmtree(folder, ignore_errors=True)


def halt(folder: Path) -> None:
    """End the training in a folder after the current step, wherever it runs."""
    (folder / _HALT).touch()
