"""Where the points of a sweep are measured: in this process or in several (cluster.py has the third way). The numbers are the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vits_prune import forks
from vits_prune.errors import InputError
from vits_prune.measure.signals import available_cores
from vits_prune.study.evaluation import Reference, evaluate_against
from vits_prune.study.sweep_grid import Point
from vits_prune.threads import torch_threads
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnContext

log = logging.getLogger(__name__)

ENGINES = ("local", "ray")
_starting = forks.Lock()
TRIES = 2
"""How often a point is begun whose process was killed."""

Task = tuple[Point, ...]
"""Points that are one and the same voice: measured once, kept as a row each."""
Measured = tuple[tuple[dict[str, Any], dict[str, Any]], ...]
"""A task's (row, details), one a point."""
Result = tuple[int, Measured | str]
"""Index of a task, and what was found or why nothing was, in a sentence."""
Tell = Callable[[int, str, float], None]
"""Told of a task, what is being done, and the share of it that is done."""


@dataclass(frozen=True)
class VoiceRef:
    """A voice by what `load_voice` takes, so that another process can load it too."""

    ref: str
    speaker: int | str | None = None
    revision: str | None = None

    def load(self) -> Voice:
        """The voice.

        Raises:
            InputError: there is no such voice.
        """
        from vits_prune.voices.load import load_voice

        return load_voice(self.ref, self.speaker, revision=self.revision)


@dataclass(frozen=True, eq=False)
class Work:
    """What every task of a sweep needs. It can be pickled."""

    voice: VoiceRef
    fingerprint: str
    """Of the voice's weights."""
    reference: Reference
    threads: int
    """Of torch: its sums depend on their number, so it is the same in each process."""


def fingerprint(voice: Voice) -> str:
    """SHA-256 of a voice's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(voice.model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def measure_task(
    reference: Reference,
    voice: Voice,
    task: Task,
    progress: Callable[[str, float], None] | None = None,
) -> Measured:
    """Measure the voice of a task."""
    from vits_prune.measure import measure_sparsity

    pruned = task[0].apply(voice)
    evaluation = evaluate_against(reference, pruned, progress=progress)
    found = evaluation.to_dict()
    details = {
        name: found[name]
        for name in (
            "figures",
            "alarms",
            "alarms_of_original",
            "sentences",
            "unmeasured",
            "notes",
            "cost",
        )
    }
    sparsity = measure_sparsity(pruned)
    details["sparsity"] = {"overall": sparsity.overall, **sparsity.parts}
    row = evaluation.to_row()
    return tuple(
        ({"voice": voice.name, **point.columns(), "sparsity": sparsity.overall, **row}, details)
        for point in task
    )


def run_here(work: Work, voice: Voice, tasks: Sequence[Task], tell: Tell) -> Iterator[Result]:
    """One task after another in this process."""
    stopped = False

    def step(index: int, what: str, share: float) -> None:
        nonlocal stopped
        stopped = True
        tell(index, what, share)
        stopped = False

    for i, task in enumerate(tasks):
        try:
            with torch_threads(work.threads):
                found: Measured | str = measure_task(
                    work.reference, voice, task, functools.partial(step, i)
                )
        except Exception as error:
            if stopped:  # whoever is told of the steps raised, to cancel
                raise
            found = failure_words(error)
        yield i, found


def run_processes(work: Work, tasks: Sequence[Task], jobs: int, tell: Tell) -> Iterator[Result]:
    """Several processes, each with its own copy of the voice and the predictors. A killed one is replaced, its task tried again."""
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork would copy the locks of torch's threads as they happen to be
    work = dataclasses.replace(work, reference=_sharing(work.reference, jobs))
    waiting, tries = deque(range(len(tasks))), Counter()
    workers = [_Worker(context, work) for _ in range(min(jobs, len(tasks)))]
    try:
        while waiting or any(worker.task is not None for worker in workers):
            for worker in workers:
                if worker.task is None and waiting:
                    worker.give(waiting.popleft(), tasks)
            for ready in multiprocessing.connection.wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is ready)
                kind, value = worker.hear()
                task = worker.task
                if kind == "step":
                    tell(task, *value)
                    continue
                worker.task = None
                if kind == "done":
                    yield task, value
                    continue
                workers[workers.index(worker)] = _Worker(context, work)
                worker.stop()
                if task is None:
                    continue
                tries[task] += 1
                if tries[task] < TRIES:
                    waiting.appendleft(task)
                else:
                    yield (
                        task,
                        f"its process was killed {TRIES} times ({value}): most often memory ran out, so try fewer --jobs",
                    )
    finally:
        for worker in workers:
            worker.stop()


def _sharing(reference: Reference, jobs: int) -> Reference:
    """The same with predictors that leave cores to the other processes; no number depends on their threads."""
    if not isinstance(reference, Reference) or reference.listener.threads is not None:
        return reference
    threads = max(1, available_cores() // jobs)
    recogniser = reference.listener.recogniser
    recogniser = dataclasses.replace(recogniser, threads=recogniser.threads or threads)
    return dataclasses.replace(
        reference,
        listener=dataclasses.replace(reference.listener, threads=threads, recogniser=recogniser),
    )


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Processes that start now have threads that sleep while they wait: spinning ones take the cores from the other processes."""
    name = "OMP_WAIT_POLICY"
    with _starting:  # the environment belongs to all threads
        before = os.environ.get(name)
        os.environ.setdefault(name, "PASSIVE")
        try:
            yield
        finally:
            if before is None:
                os.environ.pop(name, None)


class _Worker:
    """A process at the other end of a pipe."""

    def __init__(self, context: SpawnContext, work: Work) -> None:
        self.pipe, theirs = context.Pipe()
        self.task: int | None = None
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with patient():
            self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def give(self, index: int, tasks: Sequence[Task]) -> None:
        self.task = index
        with contextlib.suppress(OSError):  # it is gone: `hear` says so
            self.pipe.send(tasks[index])

    def hear(self) -> tuple[str, Any]:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            return (
                "killed",
                f"signal {-code}" if code is not None and code < 0 else f"exit code {code}",
            )

    def stop(self) -> None:
        self.pipe.close()  # an idle one ends by itself
        if self.task is None:
            self.process.join(3)
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection, work: Work) -> None:
    """The life of a worker: until the parent closes the pipe, or is gone."""
    import torch

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl+C reaches all processes of a terminal: the parent ends this one
    torch.set_num_threads(work.threads)
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = pipe.recv()
            pipe.send(("done", measured(work, task, functools.partial(_report, pipe))))


def _report(pipe: Connection, what: str, share: float) -> None:
    with contextlib.suppress(OSError):  # the parent is gone: sending the result says so
        pipe.send(("step", (what, share)))


def measured(
    work: Work, task: Task, progress: Callable[[str, float], None] | None = None
) -> Measured | str:
    """What `measure_task` finds with the work's voice, loaded where this runs; or why nothing was found, in a sentence."""
    try:
        return measure_task(work.reference, load_same(work.voice, work.fingerprint), task, progress)
    except Exception as error:  # whatever became of one point, the others go on
        return failure_words(error)


def failure_words(error: Exception) -> str:
    """Return why there is no result, in one line. The traceback of what is not an InputError goes to the log."""
    if isinstance(error, InputError):
        return str(error)
    log.error("Unexpected error in a sweep", exc_info=error)
    return f"{type(error).__name__}: {error}"


@functools.lru_cache(maxsize=2)
def load_same(ref: VoiceRef, expected: str) -> Voice:
    """The voice, loaded once a process.

    Raises:
        InputError: its weights are not those of the fingerprint.
    """
    voice = ref.load()
    if fingerprint(voice) != expected:
        raise InputError(
            f"{ref.ref} is another voice here than where the sweep was started: give all machines the same files."
        )
    return voice
