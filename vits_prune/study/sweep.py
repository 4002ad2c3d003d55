"""run_sweep: a grid of pruned voices measured against one original, into a folder that outlives kills; sweep_points: the same, unkept."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning.spec import PruneSpec
from vits_prune.study.evaluation import (
    Evaluation,
    Reference,
    Settings,
    Step,
    evaluate_against,
    prepare_reference,
)
from vits_prune.study.sweep_engines import (
    ENGINES,
    Result,
    Task,
    Tell,
    VoiceRef,
    Work,
    fingerprint,
    run_here,
    run_processes,
)
from vits_prune.study.sweep_grid import Grid, Point
from vits_prune.study.sweep_ray import cluster, import_ray, reference_on_ray, run_ray
from vits_prune.study.sweep_store import Store
from vits_prune.threads import torch_threads
from vits_prune.voices.voice import Voice

MAX_JOBS = 256
VARYING = ("cpu_", "joules_")
"""Columns that begin like this differ from run to run; all others are the same for the same seed."""
PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "faster-whisper",
    "ctranslate2",
    "jiwer",
    "whisper-normalizer",
    "onnxruntime",
    "soxr",
)
PACKAGES += ("speechmos", "pyloudnorm", "swift-f0", "auraloss", "scipy")
"""What the numbers come from, as far as it is installed."""


@dataclass(frozen=True)
class Failure:
    """A point of which nothing could be measured."""

    point: Point
    reason: str


@dataclass(frozen=True, eq=False)
class SweepResult:
    """A sweep that came to its end."""

    folder: Path
    rows: tuple[dict[str, Any], ...]
    """One a point, in the order of the grid, those of earlier runs included."""
    failures: tuple[Failure, ...]
    """Points that are missing: the same sweep started again tries them again."""
    measured: int
    """Points that this run added."""
    seconds: float


def run_sweep(
    voice_ref: VoiceRef | str | os.PathLike[str],
    grid: Grid | Sequence[Point],
    texts: Sequence[str],
    settings: Settings | None,
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    engine: str = "local",
    kind: str = "sweep",
    on_point: Callable[[dict[str, Any]], None] | None = None,
    progress: Step | None = None,
) -> SweepResult:
    """Measure every point of a grid, each kept on the disk as soon as it is done. Started again it goes on where it was stopped.

    Args:
        voice_ref: the original, by what `load_voice` takes.
        grid: which pruned voices.
        texts: what all speak.
        settings: how to measure; None for the usual.
        out: folder for sweep.json, sweep.jsonl and sweep.csv: new, empty, or of the same sweep.
        jobs: processes of this machine. No number depends on it, but those of VARYING.
        engine: "local", or "ray" for a Ray cluster.
        kind: what the folder is of: only a sweep of the same kind goes on there.
        on_point: told of each row that was added.
        progress: told how far it is; it may raise to cancel, and what is done stays.

    Raises:
        InputError: bad input, a folder of another sweep, or a full disk; what was done stays.
    """
    start, settings = time.perf_counter(), settings or Settings()
    check_choices(jobs, engine)
    points = grid.points() if isinstance(grid, Grid) else tuple(grid)
    ref = voice_ref if isinstance(voice_ref, VoiceRef) else VoiceRef(os.fspath(voice_ref))
    voice = ref.load()
    ref = dataclasses.replace(
        ref, revision=voice.origin.revision or ref.revision
    )  # a branch may move while the sweep runs
    manifest = _manifest(kind, voice, texts, settings, points)
    failures: list[Failure] = []
    with Store(out, manifest, points) as store, contextlib.ExitStack() as connected:
        before, threads = len(store.records), store.manifest["threads"]
        tasks = _tasks([point for point in points if point not in store.records])
        if tasks:
            progress = _Progress(progress, 1 + settings.noise_seeds, len(tasks))
            weights = manifest["voice"]["weights_sha256"]
            if engine == "ray":
                connected.enter_context(cluster())
                reference = reference_on_ray(
                    ref, weights, texts, settings, threads, progress.reference
                )
            else:
                with torch_threads(threads):
                    reference = prepare_reference(
                        voice, texts, settings, progress=progress.reference
                    )
            work = Work(ref, weights, reference, threads)
            for index, found in _run(work, voice, tasks, jobs, engine, progress.task):
                for position, point in enumerate(tasks[index]):
                    if isinstance(found, str):
                        failures.append(Failure(point, found))
                        continue
                    row = store.append(point, *found[position])
                    if on_point:
                        on_point(row)
        wanted = [store.records[point]["row"] for point in points if point in store.records]
        added = len(store.records) - before
    return SweepResult(
        Path(out), tuple(wanted), tuple(failures), added, time.perf_counter() - start
    )


def sweep_points(
    voice: Voice,
    grid: Grid | Sequence[PruneSpec],
    texts: Sequence[str],
    settings: Settings | None = None,
    *,
    reference: Reference | None = None,
    progress: Step | None = None,
) -> Iterator[tuple[PruneSpec, Evaluation]]:
    """The points of a grid one by one as they are measured, kept nowhere. Leave the loop to stop between two.

    Args:
        voice: the original.
        grid: which pruned voices.
        texts: what all speak.
        settings: how to measure; None for the usual.
        reference: the original measured before with these texts and settings; None to measure it now.
        progress: told how far it is; it may raise to cancel within a point.

    Raises:
        InputError: nothing can be said, or a predictor cannot be had.
    """
    settings = settings or Settings()
    specs = grid.specs() if isinstance(grid, Grid) else tuple(grid)
    tasks = _tasks([Point(spec) for spec in specs])
    progress = _Progress(progress, 0 if reference else 1 + settings.noise_seeds, len(tasks))
    reference = reference or prepare_reference(voice, texts, settings, progress=progress.reference)
    known: dict[PruneSpec, Evaluation] = {}
    same = {point: i for i, task in enumerate(tasks) for point in task}
    for spec in specs:
        if spec not in known:
            i = same[Point(spec)]
            found = evaluate_against(
                reference,
                Point(spec).apply(voice),
                progress=lambda what, share, i=i: progress.task(i, what, share),
            )
            known |= {point.spec: found for point in tasks[i]}
        yield spec, known.pop(spec)


def _run(
    work: Work, voice: Voice, tasks: Sequence[Task], jobs: int, engine: str, tell: Tell
) -> Iterator[Result]:
    if engine == "ray":
        return run_ray(work, tasks, tell)
    return (
        run_here(work, voice, tasks, tell) if jobs == 1 else run_processes(work, tasks, jobs, tell)
    )


def _tasks(points: Sequence[Point]) -> list[Task]:
    """What is to be measured: every point with amount 0 is the original, whatever its method, scope and parts."""
    untouched = tuple(point for point in points if point.untouched)
    return [
        *([untouched] if untouched else []),
        *((point,) for point in points if not point.untouched),
    ]


class _Progress:
    """The share of a whole sweep that is done: a round of the reference weighs as much as a task."""

    def __init__(self, progress: Step | None, rounds: int, tasks: int) -> None:
        self._tell = progress or (lambda _what, _share: None)
        self._rounds, self._tasks = rounds, tasks
        self._shares: dict[int, float] = {}

    def reference(self, what: str, share: float) -> None:
        self._tell(what, share * self._rounds / (self._rounds + self._tasks))

    def task(self, index: int, what: str, share: float) -> None:
        self._shares[index] = max(
            share, self._shares.get(index, 0.0)
        )  # a task that is tried again does not go back
        done = sum(self._shares.values())
        self._tell(
            f"point {min(int(done) + 1, self._tasks)} of {self._tasks}",
            (self._rounds + done) / (self._rounds + self._tasks),
        )


def check_choices(jobs: object, engine: object) -> None:
    """Refuse what cannot be, before anything is spoken.

    Raises:
        InputError: the number of jobs or the engine.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= MAX_JOBS:
        raise InputError(
            f"The number of jobs must be a whole number from 1 to {MAX_JOBS}, not {str(jobs)[:40]!r}."
        )
    if engine not in ENGINES:
        raise InputError(
            f"There is no engine {str(engine)[:40]!r}: choose one of {', '.join(ENGINES)}."
        )
    if engine == "ray":
        import_ray()


def _manifest(
    kind: str, voice: Voice, texts: Sequence[str], settings: Settings, points: Sequence[Point]
) -> dict[str, Any]:
    """What the numbers depend on, and what is to be visited."""
    import torch

    chosen = dataclasses.asdict(settings)
    del chosen["threads"], chosen["recogniser"]["threads"]  # no number depends on those
    return {
        "kind": kind,
        "voice": {
            "name": voice.name,
            "reference": voice.origin.reference,
            "revision": voice.origin.revision,
            "licence": voice.origin.licence,
            "speaker": voice.speaker,
            "recipe": dict(voice.recipe),
            "weights_sha256": fingerprint(voice),
        },
        "texts": list(texts),
        "settings": chosen,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "points": [point.to_dict() for point in points],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
