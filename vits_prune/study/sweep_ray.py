"""The engine ray: originals and points are measured on a Ray cluster, by the same code and with the same numbers as on one machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from vits_prune.errors import InputError
from vits_prune.study.evaluation import Reference, Settings, Step, prepare_reference
from vits_prune.study.sweep_engines import (
    TRIES,
    Measured,
    Result,
    Task,
    Tell,
    VoiceRef,
    Work,
    load_same,
    measured,
    patient,
)
from vits_prune.threads import torch_threads

PATIENCE = 1.0
"""Seconds after which whoever waits for the cluster is told again, so that they can cancel."""


def import_ray() -> Any:
    """The module ray, an optional install: ray>=2.40,<3.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("The engine ray is not installed: pip install 'ray>=2.40,<3'.") from error
    return ray


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Ray, connected: the cluster of RAY_ADDRESS, or one of this machine alone. One that was connected before stays so."""
    ray = import_ray()
    mine = not ray.is_initialized()
    if mine:
        with patient():
            ray.init(log_to_driver=False, include_dashboard=False, logging_level="warning")
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def lanes(threads: int) -> int:
    """How many tasks of so many threads the connected cluster runs at once."""
    ray = import_ray()
    return max(
        1,
        sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        // max(1, threads),
    )


def reference_on_ray(
    voice: VoiceRef,
    fingerprint: str,
    texts: Sequence[str],
    settings: Settings,
    threads: int,
    tell: Step,
) -> Reference:
    """`prepare_reference` somewhere on the cluster, so that the originals of many voices do not wait for this machine.

    Args:
        voice: the original.
        fingerprint: of its weights.
        texts: what to speak.
        settings: how to measure.
        threads: of torch.
        tell: told that it is under way; it may raise to cancel.

    Raises:
        InputError: nothing can be said, the voice is another one there, or Ray could not run it.
    """
    ray = import_ray()
    task = _task(ray, _prepare, threads).remote(voice, fingerprint, tuple(texts), settings, threads)
    try:
        tell("original", 0.0)
        while not ray.wait([task], timeout=PATIENCE)[0]:
            tell("original", 0.0)
        found = ray.get(task)
    except ray.exceptions.RayError as error:
        raise InputError(_sentence(error)) from error
    except BaseException:
        ray.cancel(task, force=True)
        raise
    if isinstance(found, str):
        raise InputError(found)
    return found


def run_ray(work: Work, tasks: Sequence[Task], tell: Tell) -> Iterator[Result]:
    """The points of a sweep, in the order in which they are done. The cluster's machines need vits_prune and the voice's files."""
    pending: dict[Any, int] = {}
    with cluster() as ray:
        try:
            measure = _task(ray, _measure, work.threads)
            shared = ray.put(work)
            pending = {measure.remote(shared, task): i for i, task in enumerate(tasks)}
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1, timeout=PATIENCE)
                if not done:
                    tell(next(iter(pending.values())), "point", 0.0)
                    continue
                (ready,) = done
                i = pending.pop(ready)
                try:
                    found = ray.get(ready)
                except ray.exceptions.RayError as error:
                    found = _sentence(error)
                tell(i, "point", 1.0)
                yield i, found
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def _task(ray: Any, function: Any, threads: int) -> Any:
    """A function as a Ray task that takes as many cores as its threads, where a machine has so many."""
    cores = max(
        (int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1
    )
    return ray.remote(num_cpus=max(1, min(threads, cores)), max_retries=TRIES - 1)(function)


def _measure(work: Work, task: Task) -> Measured | str:
    with torch_threads(work.threads):
        return measured(work, task)


def _prepare(
    voice: VoiceRef, fingerprint: str, texts: tuple[str, ...], settings: Settings, threads: int
) -> Reference | str:
    with torch_threads(threads):
        try:
            return prepare_reference(load_same(voice, fingerprint), texts, settings)
        except (
            InputError
        ) as error:  # as a sentence: an exception of a task comes back wrapped in its traceback
            return str(error)


def _sentence(error: Exception) -> str:
    return f"Ray could not run it: {str(error).strip().splitlines()[0]}"
