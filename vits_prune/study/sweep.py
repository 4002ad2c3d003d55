"""Sweeps: pruned voices measured one by one against their original, for one voice or many."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vits_prune.errors import InputError
from vits_prune.files import expanded, write_file
from vits_prune.progress import SILENT, Pieces, Progress
from vits_prune.study.evaluation import Settings
from vits_prune.study.sweep_engines import (
    ENGINES,
    Outcome,
    VoiceRef,
    failure_words,
    fingerprint,
    import_ray,
    measure_points,
    prepare_work,
    ray_cluster,
    ray_cores,
)
from vits_prune.study.sweep_grid import Grid, Point
from vits_prune.study.sweep_store import TABLE, Store, check_signatures, csv_of, holds_sweep
from vits_prune.voices.voice import Voice

MAX_JOBS = 256
MAX_VOICES_AT_ONCE = 32
"""On a cluster: each voice is held in this machine's memory."""
VARYING = ("cpu_", "joules_")
"""Columns that begin like this differ from run to run; all others are equal for equal seeds."""
_PACKAGES = (
    *("torch", "transformers", "numpy", "faster-whisper", "ctranslate2", "jiwer"),
    *("whisper-normalizer", "onnxruntime", "soxr", "speechmos", "pyloudnorm", "swift-f0"),
    *("auraloss", "scipy"),
)
"""The numbers depend on the versions of these, as far as they are installed."""


@dataclass(frozen=True)
class FailedPoint:
    """A point of which nothing could be measured."""

    point: Point
    reason: str


@dataclass(frozen=True, eq=False)
class SweepResult:
    """A sweep that is finished."""

    folder: Path
    rows: tuple[dict[str, Any], ...]
    """Of all points in the order of the grid, those of earlier runs included."""
    failures: tuple[FailedPoint, ...]
    """The same sweep, started again, tries them again."""
    measured: int
    """How many points this run added."""
    seconds: float


@dataclass(frozen=True)
class VoicesResult:
    """Sweeps of many voices that are finished."""

    folder: Path
    sweeps: dict[str, SweepResult]
    """By the text of the VoiceRef."""
    failures: dict[str, str]
    """Voices without a sweep, and why; the same command tries them again."""

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """Of all voices, one after the other."""
        return tuple(row for sweep in self.sweeps.values() for row in sweep.rows)


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
    progress: Progress = SILENT,
) -> SweepResult:
    """Measure every point of a grid and keep each on the disk as soon as it is done.

    Started again, a sweep continues where it was stopped.

    Args:
        voice_ref: the original, as `load_voice` takes it.
        grid, texts, settings: which pruned voices, what all of them speak, and how to measure.
        out: folder for sweep.json, sweep.jsonl and sweep.csv: new, empty, or of the same sweep.
        jobs: processes of this machine. Only the numbers of VARYING depend on it.
        engine: "local", or "ray" for a Ray cluster.
        kind: only a sweep of the same kind continues in a folder.
        on_point: called with each row that is added.

    Raises:
        InputError: bad input, a folder of another sweep or with points of another signature, or a
            full disk; what is done stays.
    """
    start, settings = time.perf_counter(), settings or Settings()
    _check_choices(jobs, engine)
    points = grid.points() if isinstance(grid, Grid) else tuple(grid)
    ref, voice = _load(voice_ref)
    manifest = _manifest(kind, voice, texts, settings, points)
    failures: list[FailedPoint] = []
    with Store(out, manifest, points) as store, contextlib.ExitStack() as connected:
        before = len(store.records)
        groups = _groups([point for point in points if point not in store.records])
        found: Iterable[Outcome] = ()
        if groups:
            if engine == "ray":
                connected.enter_context(ray_cluster())
            # A round of the original weighs as much as a point.
            middle = 1 - len(groups) / (1 + settings.noise_seeds + len(groups))
            part, threads = progress.part(0.0, middle), store.manifest["threads"]
            work = prepare_work(engine, ref, voice, texts, settings, threads, part)
            _require_comparable(store, work.reference.signature)
            pieces = Pieces(progress.part(middle, 1.0), len(groups), "point")
            firsts = [group[0] for group in groups]
            found = measure_points(engine, jobs, work, voice, firsts, pieces)
        for point, result in ((point, one) for index, one in found for point in groups[index]):
            if isinstance(result, str):
                failures.append(FailedPoint(point, result))
                continue
            columns = {"voice": voice.name, **point.columns(), **result.columns}
            row = store.append(point, columns, result.details)
            if on_point:
                on_point(row)
        rows = tuple(store.records[point]["row"] for point in points if point in store.records)
    added, seconds = len(store.records) - before, time.perf_counter() - start
    return SweepResult(expanded(out), rows, tuple(failures), added, seconds)


def _load(given: VoiceRef | str | os.PathLike[str]) -> tuple[VoiceRef, Voice]:
    """Load a voice, and name its revision: a branch of a hub may move while the sweep runs."""
    ref = given if isinstance(given, VoiceRef) else VoiceRef(os.fspath(given))
    voice = ref.load()
    return dataclasses.replace(ref, revision=voice.origin.revision or ref.revision), voice


def _require_comparable(store: Store, signature: str) -> None:
    """Raise InputError if points of the folder were measured with another signature."""
    kept = [record["row"] for record in store.records.values()]
    try:
        check_signatures([*kept, {"signature": signature}])
    except InputError as error:
        what = f"{store.folder} holds points that were measured otherwise: give another folder."
        raise InputError(f"{what} {error}") from error


def _groups(points: Sequence[Point]) -> list[list[Point]]:
    """Return points that are measured together: with amount 0 all are the original."""
    same = [point for point in points if point.untouched]
    return [same] * bool(same) + [[point] for point in points if not point.untouched]


def run_voices(
    refs: Iterable[VoiceRef],
    grid: Grid,
    texts: Sequence[str],
    settings: Settings | None,
    out: str | Path,
    *,
    jobs: int = 1,
    engine: str = "local",
    progress: Progress = SILENT,
) -> VoicesResult:
    """Sweep each voice into a folder of its own below `out`, and put all rows into one `sweep.csv`.

    With the engine ray as many voices are measured at once as the cluster has room for, else one
    after the other. A voice that fails does not stop the others. `out` is a new folder, or that of
    the same command; the other arguments are those of `run_sweep`.

    Raises:
        InputError: bad input, or the table cannot be written.
    """
    refs, out = tuple(dict.fromkeys(refs)), expanded(out)
    _check_choices(jobs, engine)
    if not refs:
        raise InputError("There is no voice to sweep: name at least one.")
    if holds_sweep(out):
        raise InputError(f"{out} holds the sweep of one voice: give another folder for several.")
    pieces = Pieces(progress, len(refs))
    sweeps: dict[VoiceRef, SweepResult] = {}
    failures: dict[VoiceRef, str] = {}

    def sweep(ref: VoiceRef) -> SweepResult:
        own, folder = pieces.of(refs.index(ref), f"{ref}: "), out / folder_name(ref)
        own.report("loading", 0.0)  # a voice that still waits when the sweep is cancelled ends here
        how: dict[str, Any] = {"jobs": jobs, "engine": engine, "progress": own}
        return run_sweep(ref, grid, texts, settings, folder, **how)

    with _started(refs, sweep, engine, pieces) as finished:
        for ref, result in finished:
            try:
                sweeps[ref] = result()
            except Exception as error:  # one voice fails, the others go on
                if pieces.stopped:
                    raise
                failures[ref] = failure_words(error)
            else:
                _write_table(out, [sweeps[one] for one in refs if one in sweeps])
            pieces.of(refs.index(ref), f"{ref}: ").report("done", 1.0)
    done = {str(ref): sweeps[ref] for ref in refs if ref in sweeps}
    return VoicesResult(out, done, {str(ref): failures[ref] for ref in refs if ref in failures})


def folder_name(ref: VoiceRef) -> str:
    """Return a name for a voice's folder: readable, safe on any disk, and the same in every run."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", str(ref)).strip("-.")[-60:] or "voice"
    return f"{words}-{hashlib.sha256(repr(ref).encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def _started(
    refs: Sequence[VoiceRef], sweep: Callable[[VoiceRef], SweepResult], engine: str, pieces: Pieces
) -> Iterator[Iterable[tuple[VoiceRef, Callable[[], SweepResult]]]]:
    """Yield each voice once it is finished, and a function that returns its sweep or raises."""
    if engine != "ray":
        yield ((ref, functools.partial(sweep, ref)) for ref in refs)
        return
    with ray_cluster() as ray:
        room = min(MAX_VOICES_AT_ONCE, 1 + max(1, sum(ray_cores(ray))))
        with ThreadPoolExecutor(room) as pool:
            waiting = {pool.submit(sweep, ref): ref for ref in refs}
            try:
                yield ((waiting[done], done.result) for done in as_completed(waiting))
            except BaseException:
                pieces.stop()
                raise


def _write_table(folder: Path, sweeps: Iterable[SweepResult]) -> None:
    try:
        if rows := [row for sweep in sweeps for row in sweep.rows]:
            write_file(folder / TABLE, csv_of(rows))
    except OSError as error:
        words = f"{folder / TABLE} could not be written: {error.strerror or error}. "
        raise InputError(f"{words}The folders of the voices are complete.") from error


def _check_choices(jobs: object, engine: object) -> None:
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= MAX_JOBS:
        raise InputError(f"The number of jobs must be a whole number from 1 to {MAX_JOBS}.")
    if engine not in ENGINES:
        raise InputError(f"There is no such engine: choose one of {', '.join(ENGINES)}.")
    if engine == "ray":
        import_ray()


def _manifest(
    kind: str, voice: Voice, texts: Sequence[str], settings: Settings, points: Sequence[Point]
) -> dict[str, Any]:
    """Return what the numbers depend on, and which points are to be measured."""
    chosen = dataclasses.asdict(settings)
    del chosen["threads"], chosen["recogniser"]["threads"]  # no number depends on those
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
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
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "points": [point.to_dict() for point in points],
    }
