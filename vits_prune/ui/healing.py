"""Healing behind the page: trained in stretches that fit a GPU's time limit, measured and heard at checkpoints, the best of them kept."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.healing import HealPlan, HealRun, TrainingStep, heal
from vits_prune.healing.training_curve import Curve
from vits_prune.measure.quality import Figure
from vits_prune.progress import Cancelled
from vits_prune.progress import Progress as WorkProgress
from vits_prune.studio import workbench
from vits_prune.studio.jobs import Update, calls_are_limited, in_background, on_zero_gpu
from vits_prune.studio.request import Request
from vits_prune.study.judge import CheckpointJudge, Judgement
from vits_prune.synthesis.speak import Speech, speak
from vits_prune.threads import ForkSafeLock
from vits_prune.voices.voice import Voice

STRETCH_SECONDS = 60.0
"""On ZeroGPU a call trains so long, then leaves a checkpoint for the next."""
STRETCH_LIMIT = 120
"""Seconds that such a call may take: a measurement may begin just before its end."""
CHECKS = 5
"""How often quality is measured on the way."""
ROW_EVERY = 5
LEAST_MINUTES, MOST_MINUTES = 0.5, 30.0
MAX_PARAMETERS = 100_000_000
"""Largest voice that the page heals: training takes about seven times a voice's memory."""
_HALT = "halt"
_LONGEST_PAUSE = 5.0

_training = ForkSafeLock()
_folders: Counter[Path] = Counter()
"""How many hold each folder of a healing, in this process."""
_folders_lock = ForkSafeLock()


@dataclass(frozen=True)
class Order:
    """What is to be healed, and how."""

    request: Request
    plan: HealPlan
    texts: int
    """Sentences that quality is measured on."""
    owner: str
    """What stands for the visitor's token."""

    @property
    def key(self) -> Order:
        """The same for all timings: what is heard of checkpoints is the visitor's own text."""
        return dataclasses.replace(self, request=dataclasses.replace(self.request, timing="own"))

    @property
    def learnt(self) -> Order:
        """The same for all texts too: what is spoken does not change what is learnt."""
        return dataclasses.replace(self.key, request=dataclasses.replace(self.key.request, text=""))


@dataclass(frozen=True, eq=False)
class Check:
    """What a checkpoint is like. Like all that comes out of a stretch it can be pickled."""

    step: int
    """0 for the voice as it was pruned."""
    figures: dict[str, Figure]
    score: float | None
    """How far it is from the original, in limits of the knee; None where nothing of that can be measured."""
    speech: Speech | None
    """The visitor's text, with the original's durations; None where the voice was not kept and had said another visitor's."""


@dataclass(frozen=True)
class Task:
    """One stretch of training, which a worker with a GPU can be given."""

    order: Order
    folder: Path
    judge: CheckpointJudge
    text: str
    original: Speech
    resume: bool
    seconds: float | None
    """How long it may train; None for to the end."""


@dataclass(frozen=True)
class Progress:
    """A step was made."""

    step: int
    of: int | None
    seconds: float
    row: dict[str, Any] | None
    """Of the curve, with every ROW_EVERYth step."""


@dataclass(frozen=True)
class Ended:
    """A stretch is over."""

    paused: bool = False
    """Whether there is more to do."""
    why: str = ""
    """Why it ended early, if it did by itself."""


class _Pause(Exception):
    pass


class _Halt(Exception):
    pass


def plan_of(minutes: Any, adversarial: Any, seed: int) -> HealPlan:
    """The plan for the page's controls.

    Raises:
        InputError: the minutes are out of range.
    """
    import torch

    known = (
        isinstance(minutes, (int, float))
        and not isinstance(minutes, bool)
        and LEAST_MINUTES <= minutes <= MOST_MINUTES
    )
    if not known:
        raise InputError(
            f"Give {LEAST_MINUTES:g} to {MOST_MINUTES:g} minutes: the command line heals longer."
        )
    fast = torch.cuda.is_available()
    # Writing a checkpoint takes about a second: every ten seconds or so is often enough, and sets how much a stop may lose.
    every = round(max(20, 15 * minutes)) * (10 if fast else 1)
    lessons = 400 if fast else round(min(400, max(40, 40 * minutes)))
    return HealPlan(
        minutes=float(minutes),
        seed=seed,
        adversarial=bool(adversarial),
        lessons=lessons,
        checkpoint_every=every,
    )


def check_order(order: Order, voice: Voice) -> None:
    """Whether there is something to heal, and the page can bear it.

    Raises:
        InputError: it cannot.
    """
    spec = order.request.spec
    if spec.amount == 0 and spec.shape is None:
        raise InputError(
            "Nothing is pruned yet, so there is nothing to heal: set the amount above 0 first."
        )
    count = sum(parameter.numel() for parameter in voice.model.parameters())
    if count > MAX_PARAMETERS:
        raise InputError(
            f"This voice has {count / 1e6:.0f} M parameters and the page heals at most {MAX_PARAMETERS / 1e6:.0f} M: "
            "heal it on your own machine, with `python -m vits_prune heal`."
        )


@on_zero_gpu(STRETCH_LIMIT)
def training_steps(task: Task, token: str | None) -> Iterator[Update | Progress | Check | Ended]:
    """One stretch: what happens, as it happens; Ended comes last. On ZeroGPU it runs in a worker, and `task.folder` is all that stays."""
    workbench.bench.use_gpu()
    stretch = _Stretch(task, token)
    for found in in_background(stretch.run):
        while stretch.news:
            yield stretch.news.popleft()
        yield found


class _Stretch:
    """The training of one call, in a thread."""

    def __init__(self, task: Task, token: str | None) -> None:
        self._task, self._token = task, token
        self.news: deque[Progress | Check] = deque()
        self._curve = Curve(ROW_EVERY)
        self._tell: Callable[[str, float], None] = lambda _what, _share: None

    def run(self, tell: Callable[[str, float], None]) -> Ended:
        """Train until it is done, the stretch is over, it is halted, or nobody listens."""
        with holding(self._task.folder):
            return self._trained(tell)

    def _trained(self, tell: Callable[[str, float], None]) -> Ended:
        self._tell, task, request = tell, self._task, self._task.order.request
        while not _training.acquire(timeout=0.2):
            tell("waiting for another healing to end", 0.0)
        try:
            self._start = time.perf_counter()
            teacher = workbench.bench.voice(request.reference, request.speaker, self._token)
            judge = dataclasses.replace(
                task.judge, observer=self._on_judgement, progress=WorkProgress.of(tell)
            )
            healed = heal(
                workbench.bench.pruned(request, self._token),
                teacher,
                task.order.plan,
                run=HealRun(
                    task.folder, task.resume, workbench.bench.device == "cpu", self._on_step
                ),
                judge=judge,
            )
            return Ended(why=healed.stopped)
        except _Pause:
            return Ended(paused=True)
        except _Halt:
            return Ended()
        except InputError as error:  # as a value: a worker's errors lose their words on the way
            return Ended(why=str(error))
        except Cancelled:
            shutil.rmtree(
                task.folder, ignore_errors=True
            )  # here, after the last checkpoint was written
            raise
        finally:
            _training.release()

    def _on_step(self, told: TrainingStep) -> None:
        made = self._curve.add(told)
        self.news.append(
            Progress(told.step, told.of, told.seconds, self._curve.rows.pop() if made else None)
        )
        self._tell(f"step {told.step}", told.step / told.of if told.of else 0.0)
        if (self._task.folder / _HALT).exists():
            raise _Halt
        unfinished = told.of is not None and told.step < told.of
        if (
            self._task.seconds is not None
            and unfinished
            and time.perf_counter() - self._start > self._task.seconds
        ):
            raise _Pause
        workbench.bench.let_hearing_pass(_LONGEST_PAUSE)

    def _on_judgement(self, found: Judgement, voice: Voice) -> None:
        self.news.append(
            spoken_check(
                found, voice, self._task.order.request, self._task.text, self._task.original
            )
        )


def spoken_check(
    found: Judgement, voice: Voice, request: Request, text: str, original: Speech
) -> Check:
    """Let the voice of a checkpoint that was measured speak."""
    speech = speak(voice, text, request.seed, timing=original, delivery=request.delivery)
    return Check(found.step, found.figures, found.score, speech)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep `remove_left` from a folder that somebody may still write to."""
    with _folders_lock:
        _folders[folder] += 1
    try:
        yield
    finally:
        with _folders_lock:
            _folders[folder] -= 1
            if not _folders[folder]:
                del _folders[folder]


def remove_left(work: Path) -> None:
    """Remove the folders of healings that ended without their visitor.

    A thread that nobody waits for any more works on until it next says how far it is: a folder that
    it holds stays. A ZeroGPU worker is another process, which ends STRETCH_LIMIT seconds after its
    folder was touched at the latest.
    """
    with _folders_lock:
        held = set(_folders)
    for folder in work.iterdir():
        working = calls_are_limited() and time.time() - folder.stat().st_mtime < 2 * STRETCH_LIMIT
        if folder not in held and not working:
            shutil.rmtree(folder, ignore_errors=True)


def halt(folder: Path) -> None:
    """End the training in a folder after the step that is under way, wherever it runs."""
    (folder / _HALT).touch()
