"""run_voices: the same grid for many voices, a folder each, and one table of all."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.evaluation import Settings, Step
from vits_prune.sweep.cluster import cluster, lanes
from vits_prune.sweep.engines import VoiceRef, failure_words
from vits_prune.sweep.grid import Grid
from vits_prune.sweep.run import SweepResult, check_choices, run_sweep
from vits_prune.sweep.store import MANIFEST, TABLE, csv_of, write_atomically

MAX_AT_ONCE = 32
"""Voices that are under way at once on a cluster: each is held in this machine's memory."""


@dataclass(frozen=True)
class VoicesResult:
    """Sweeps of many voices that came to their end."""

    folder: Path
    sweeps: dict[str, SweepResult]
    """By what the voice was given as."""
    failures: dict[str, str]
    """Voices of which there is no sweep, and why; the same command tries them again."""

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """Of all voices, one after the other."""
        return tuple(row for sweep in self.sweeps.values() for row in sweep.rows)


def run_voices(
    refs: Iterable[VoiceRef],
    grid: Grid,
    texts: Sequence[str],
    settings: Settings | None,
    out: str | Path,
    *,
    jobs: int = 1,
    engine: str = "local",
    on_step: Step | None = None,
) -> VoicesResult:
    """Sweep every voice into a folder of its own below `out`, and all rows into one `sweep.csv` there.

    With the engine ray as many voices are under way at once as the cluster has room for; else one after the other.

    Args:
        refs: the voices.
        grid, texts, settings, jobs, engine: as in `run_sweep`.
        out: folder: new, or of the same command.
        on_step: told how far it is; it may raise to cancel, and what is done stays.

    Raises:
        InputError: bad input, or the table could not be written. What became of a voice is in `failures`; the others go on.
    """
    refs, out = tuple(dict.fromkeys(refs)), Path(out)
    check_choices(jobs, engine)
    if not refs:
        raise InputError("There is no voice to sweep: name at least one.")
    if (out / MANIFEST).exists():
        raise InputError(f"{out} is the folder of one voice's sweep: give another for several voices.")
    folders, progress = _folders(refs), _Progress(on_step, len(refs))
    sweeps: dict[VoiceRef, SweepResult] = {}
    failures: dict[VoiceRef, str] = {}

    def one(ref: VoiceRef) -> SweepResult:
        tell = progress.of(ref)
        tell("loading", 0.0)  # those that still wait when the sweep is cancelled end here
        return run_sweep(ref, grid, texts, settings, out / folders[ref], jobs=jobs, engine=engine, on_step=tell)

    table = _Table(out)
    try:
        with _each(refs, one, engine, progress) as ends:
            for ref, result in ends:
                try:
                    sweeps[ref] = result()
                except Exception as error:  # whatever became of one voice, the others go on
                    if progress.cancelled:
                        raise
                    failures[ref] = failure_words(error)
                progress.of(ref)("done", 1.0)
                table.write(_rows(refs, sweeps), last=False)
    finally:
        table.write(_rows(refs, sweeps), last=True)
    return VoicesResult(
        out, {named(ref): sweeps[ref] for ref in refs if ref in sweeps}, {named(ref): failures[ref] for ref in refs if ref in failures}
    )


Run = Callable[[VoiceRef], SweepResult]


@contextlib.contextmanager
def _each(refs: Sequence[VoiceRef], run: Run, engine: str, progress: _Progress) -> Iterator[Iterable[tuple[VoiceRef, Any]]]:
    """(voice, function that returns its sweep or raises), each as it comes to its end."""
    if engine != "ray":
        yield ((ref, functools.partial(run, ref)) for ref in refs)
        return
    with cluster():
        room = min(MAX_AT_ONCE, 1 + lanes(1))
        with concurrent.futures.ThreadPoolExecutor(room) as pool:
            waiting = {pool.submit(run, ref): ref for ref in refs}
            try:
                yield ((waiting[done], done.result) for done in concurrent.futures.as_completed(waiting))
            except BaseException:
                progress.cancel()
                raise


def _rows(refs: Sequence[VoiceRef], sweeps: Mapping[VoiceRef, SweepResult]) -> list[dict[str, Any]]:
    return [row for ref in refs if ref in sweeps for row in sweeps[ref].rows]


def named(ref: VoiceRef) -> str:
    """What a voice was given as."""
    return ref.ref + (f"@{ref.revision}" if ref.revision else "") + (f":{ref.speaker}" if ref.speaker is not None else "")


def _folders(refs: Sequence[VoiceRef]) -> dict[VoiceRef, str]:
    """A name for each voice's folder: readable, safe on any disk, and the same in the next run whatever the order."""
    import hashlib

    found = {}
    for ref in refs:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", named(ref)).strip("-.")[-60:] or "voice"
        found[ref] = f"{plain}-{hashlib.sha256(repr(ref).encode()).hexdigest()[:8]}"
    return found


class _Table:
    """The table of all voices: written anew as voices are done, though never for more than a part of the time."""

    def __init__(self, folder: Path) -> None:
        self._path, self._next = folder / TABLE, 0.0

    def write(self, rows: Sequence[dict[str, Any]], last: bool) -> None:
        start = time.monotonic()
        if not rows or (start < self._next and not last):
            return
        try:
            write_atomically(self._path, csv_of(rows))
        except OSError as error:
            raise InputError(
                f"{self._path} could not be written: {error.strerror or error}. The folders of the voices are there."
            ) from error
        self._next = time.monotonic() + 20 * (time.monotonic() - start)


class _Progress:
    """The share of all voices that is done, told from any thread; once whoever is told raised, it raises in every thread."""

    def __init__(self, on_step: Step | None, voices: int) -> None:
        self._tell, self._voices = on_step or (lambda _what, _share: None), voices
        self._shares: dict[VoiceRef, float] = {}
        self._lock, self._cancelled = threading.Lock(), threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()

    def of(self, ref: VoiceRef) -> Step:
        return lambda what, share: self._note(ref, f"{named(ref)}: {what}", share)

    def _note(self, ref: VoiceRef, what: str, share: float) -> None:
        with self._lock:
            if self.cancelled:
                raise InputError("The sweep was stopped.")
            self._shares[ref] = share
            try:
                self._tell(what, sum(self._shares.values()) / self._voices)
            except BaseException:
                self.cancel()
                raise
