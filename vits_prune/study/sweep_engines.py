"""Where the points of a sweep are measured: here, in several processes, or on a Ray cluster.

The numbers are the same everywhere.
"""

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
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

from vits_prune.errors import InputError
from vits_prune.measure.weights import measure_sparsity
from vits_prune.progress import SILENT, Pieces, Progress
from vits_prune.study.evaluation import Reference, Settings, evaluate_against, prepare_reference
from vits_prune.study.sweep_grid import Point
from vits_prune.threads import ForkSafeLock, available_cores, torch_threads
from vits_prune.voices.load import load_voice
from vits_prune.voices.voice import Voice

ENGINES = ("local", "ray")
TRIES = 2
"""How often a point is started whose process was killed."""
RAY_POLL_SECONDS = 1.0
"""How often waiting for the cluster reports, so that it can be cancelled."""
_DETAILS = (
    *("figures", "claim", "speaker_similarity_of_another_voice", "alarms", "alarms_of_original"),
    *("sentences", "unmeasured", "notes", "cost"),
)

log = logging.getLogger(__name__)
_environment = ForkSafeLock()


@dataclass(frozen=True)
class VoiceRef:
    """What `load_voice` takes, so that another process can load the voice too."""

    ref: str
    speaker: int | str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.ref + revision + (f":{self.speaker}" if self.speaker is not None else "")

    def load(self) -> Voice:
        """Load the voice; raise InputError if there is none."""
        return load_voice(self.ref, self.speaker, revision=self.revision)


@dataclass(frozen=True, eq=False)
class Work:
    """What every point of a sweep needs. It can be pickled."""

    voice: VoiceRef
    fingerprint: str
    reference: Reference
    threads: int
    """Of torch: sums depend on it, so it is the same in each process."""


@dataclass(frozen=True)
class PointResult:
    """What was measured of one point: columns of its row, and more for its record."""

    columns: dict[str, Any]
    details: dict[str, Any]


Outcome = tuple[int, PointResult | str]
"""Index of a point, and what was measured, or a sentence that says why nothing was."""


def fingerprint(voice: Voice) -> str:
    """Return the SHA-256 of a voice's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(voice.model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def load_same(ref: VoiceRef, expected: str) -> Voice:
    """Load the voice once per process; raise InputError if its fingerprint is another one."""
    voice = ref.load()
    if fingerprint(voice) != expected:
        raise InputError(
            f"{ref.ref} is another voice here than where the sweep was started: "
            "give all machines the same files."
        )
    return voice


def measure_point(
    reference: Reference, voice: Voice, point: Point, progress: Progress = SILENT
) -> PointResult:
    """Prune the voice and measure it against the original."""
    pruned = point.apply(voice)
    found = evaluate_against(reference, pruned, progress=progress)
    sparsity, whole = measure_sparsity(pruned), found.to_dict()
    details = {name: whole[name] for name in _DETAILS}
    details["sparsity"] = {"overall": sparsity.overall, **sparsity.parts}
    return PointResult({"sparsity": sparsity.overall, **found.to_row()}, details)


def failure_words(error: Exception) -> str:
    """Return why there is no result, in one line; log the traceback of an unexpected error."""
    if isinstance(error, InputError):
        return str(error)
    log.error("Unexpected error in a sweep", exc_info=error)
    return f"{type(error).__name__}: {error}"


def prepare_work(
    engine: str,
    ref: VoiceRef,
    voice: Voice,
    texts: Sequence[str],
    settings: Settings,
    threads: int,
    progress: Progress,
) -> Work:
    """Measure the original, with `threads` of torch; `voice` is what `ref` loads."""
    weights = fingerprint(voice)
    if engine == "ray":
        reference = reference_on_ray(ref, weights, texts, settings, threads, progress)
    else:
        with torch_threads(threads):
            reference = prepare_reference(voice, texts, settings, progress=progress)
    return Work(ref, weights, reference, threads)


def measure_points(
    engine: str, jobs: int, work: Work, voice: Voice, points: Sequence[Point], pieces: Pieces
) -> Iterator[Outcome]:
    """Measure points, each of which is a piece of the progress, in any order."""
    if engine == "ray":
        yield from run_ray(work, points, pieces)
        return
    if jobs > 1:
        yield from run_processes(work, points, jobs, pieces)
        return
    for i, point in enumerate(points):
        found: PointResult | str
        try:
            with torch_threads(work.threads):
                found = measure_point(work.reference, voice, point, pieces.of(i))
        except Exception as error:
            if pieces.stopped:
                raise
            found = failure_words(error)
        yield i, found


def run_processes(
    work: Work, points: Sequence[Point], jobs: int, pieces: Pieces
) -> Iterator[Outcome]:
    """Measure in several processes. One that is killed is replaced, and its point tried again."""
    # A fork would copy the locks of torch's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    work = dataclasses.replace(work, reference=_sharing_cores(work.reference, jobs))
    waiting, tries = deque(range(len(points))), Counter[int]()
    workers = [_Worker(context, work) for _ in range(min(jobs, len(points)))]
    try:
        while waiting or any(worker.index is not None for worker in workers):
            for worker in workers:
                if worker.index is None and waiting:
                    worker.give(waiting.popleft(), points)
            for ready in multiprocessing.connection.wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is ready)
                kind, value = worker.receive()
                index = worker.index
                if kind == "progress" and index is not None:
                    pieces.of(index).report(*value)
                    continue
                worker.index = None
                if kind == "done" and index is not None:
                    yield index, value
                    continue
                workers[workers.index(worker)] = _Worker(context, work)
                worker.stop()
                if index is None:
                    continue
                tries[index] += 1
                if tries[index] < TRIES:
                    waiting.appendleft(index)
                else:
                    words = f"its process was killed {TRIES} times ({value}): "
                    yield index, words + "most often memory ran out, so try fewer --jobs"
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process at the other end of a pipe."""

    def __init__(self, context: SpawnContext, work: Work) -> None:
        self.pipe, theirs = context.Pipe()
        self.index: int | None = None
        """Of the point that it measures."""
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with passive_waiting():
            self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def give(self, index: int, points: Sequence[Point]) -> None:
        self.index = index
        with contextlib.suppress(OSError):  # the process is gone: `receive` says so
            self.pipe.send(points[index])

    def receive(self) -> tuple[str, Any]:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            return "killed", f"signal {-code}" if code and code < 0 else f"exit code {code}"

    def stop(self) -> None:
        self.pipe.close()  # an idle process ends by itself
        if self.index is None:
            self.process.join(3)
        for end in (self.process.terminate, self.process.kill):
            end()
            self.process.join(5)


def _serve(pipe: Connection, work: Work) -> None:
    """Measure what comes through the pipe, until the parent closes it or is gone."""
    # Ctrl+C reaches all processes of a terminal: the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def report(message: str, fraction: float) -> None:
        with contextlib.suppress(OSError):  # the parent is gone: sending the result says so
            pipe.send(("progress", (message, fraction)))

    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(("done", _measure(work, pipe.recv(), Progress(report))))


def _measure(work: Work, point: Point, progress: Progress = SILENT) -> PointResult | str:
    """Measure a point with the voice loaded where this runs."""
    try:
        with torch_threads(work.threads):
            voice = load_same(work.voice, work.fingerprint)
            return measure_point(work.reference, voice, point, progress)
    except Exception as error:  # one point fails, the others go on
        return failure_words(error)


def _sharing_cores(reference: Reference, jobs: int) -> Reference:
    """Let the predictors leave cores to the other processes; no number depends on it."""
    listener, threads = reference.listener, max(1, available_cores() // jobs)
    if listener.threads is not None:
        return reference
    recogniser = listener.recogniser
    recogniser = dataclasses.replace(recogniser, threads=recogniser.threads or threads)
    listener = dataclasses.replace(listener, threads=threads, recogniser=recogniser)
    return dataclasses.replace(reference, listener=listener)


@contextlib.contextmanager
def passive_waiting() -> Iterator[None]:
    """Let processes that start in the block sleep while they wait, instead of taking a core."""
    name = "OMP_WAIT_POLICY"
    with _environment, contextlib.ExitStack() as after:  # it belongs to all threads
        if name not in os.environ:
            os.environ[name] = "PASSIVE"
            after.callback(os.environ.pop, name, None)
        yield


def import_ray() -> Any:
    """Return the module ray; raise InputError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise InputError("The engine ray is not installed: pip install 'ray>=2.40,<3'.") from error
    return ray


@contextlib.contextmanager
def ray_cluster() -> Iterator[Any]:
    """Connect Ray to the cluster of RAY_ADDRESS, or to a new one here; keep a connection."""
    ray = import_ray()
    ours = not ray.is_initialized()
    if ours:
        with passive_waiting():
            ray.init(log_to_driver=False, include_dashboard=False, logging_level="warning")
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def reference_on_ray(
    voice: VoiceRef,
    fingerprint: str,
    texts: Sequence[str],
    settings: Settings,
    threads: int,
    progress: Progress = SILENT,
) -> Reference:
    """Measure the original on the cluster, so that many voices do not wait for this machine."""
    ray = import_ray()
    progress.report("original", 0.0)
    task = _ray_task(ray, _prepare, threads).remote(voice, fingerprint, texts, settings, threads)
    results = _ray_results(ray, {task: 0}, lambda _: progress.report("original", 0.0))
    with contextlib.closing(results):
        _, found = next(results)
    if isinstance(found, str):
        raise InputError(found)
    return found


def run_ray(work: Work, points: Sequence[Point], pieces: Pieces) -> Iterator[Outcome]:
    """Measure on the cluster. Its machines need vits_prune and the voice's files."""
    with ray_cluster() as ray:
        measure, shared = _ray_task(ray, _measure, work.threads), ray.put(work)
        tasks = {measure.remote(shared, point): i for i, point in enumerate(points)}
        results = _ray_results(ray, tasks, lambda index: pieces.of(index).report("point", 0.0))
        with contextlib.closing(results):
            for index, found in results:
                pieces.of(index).report("point", 1.0)
                yield index, found


def _ray_results(
    ray: Any, tasks: dict[Any, int], waiting: Callable[[int], None]
) -> Generator[tuple[int, Any], None, None]:
    """Yield each task's index and its result, or why there is none; cancel what is left."""
    try:
        while tasks:
            done, _ = ray.wait(list(tasks), num_returns=1, timeout=RAY_POLL_SECONDS)
            if not done:
                waiting(next(iter(tasks.values())))
                continue
            index = tasks.pop(done[0])
            try:
                found = ray.get(done[0])
            except ray.exceptions.RayError as error:
                found = f"Ray could not run it: {str(error).strip().splitlines()[0]}"
            yield index, found
    finally:
        for task in tasks:
            ray.cancel(task, force=True)


def ray_cores(ray: Any) -> list[int]:
    """Return the cores of each machine of the cluster."""
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def _ray_task(ray: Any, function: Any, threads: int) -> Any:
    """Return a function as a Ray task with a core per thread, where a machine has so many."""
    cores = max(1, min(threads, max(ray_cores(ray), default=1)))
    return ray.remote(num_cpus=cores, max_retries=TRIES - 1)(function)


def _prepare(
    voice: VoiceRef, fingerprint: str, texts: Sequence[str], settings: Settings, threads: int
) -> Reference | str:
    try:
        with torch_threads(threads):
            return prepare_reference(load_same(voice, fingerprint), texts, settings)
    except InputError as error:  # Ray would wrap the exception in its traceback
        return str(error)
