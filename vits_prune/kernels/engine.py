"""The engine of a voice: runs each unit of it with the kernels that were chosen.

Which are faster depends on the machine, the shapes, the density and the length. It is measured once
for a machine and a shape, kept on disk, and predicted from that for every density: the time of a
sparse program grows evenly with the weights that are not zero.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llvmlite import binding

from vits_prune.kernels import store
from vits_prune.kernels.programs import Program, ProgramBuilder
from vits_prune.kernels.units import Conditioning, Unit, decoder_units, flow_units, turned_at_end
from vits_prune.progress import SILENT, Progress
from vits_prune.threads import ForkSafeLock, renew_in_forks

LENGTHS = (100, 500)
"""Frames, about 1 and 6 seconds of joe, at which kernels are timed."""
_DENSITIES = (0.4, 0.1)
_RUNS, _ATTEMPTS, _STEADY = 5, 3, 1.4
"""Of a timing: runs, how often it is tried, and by how much median and best run may differ."""
_BUSY = 0.8
"""Share of the dense time in which the thread that calls torch must compute: it always does, unless
it waits for the processor. Other work may slow every run down alike."""
_GAIN = 0.95
"""A unit runs sparse if that takes at most this share of the dense time."""
_ROUND = 64
"""Tiles are a multiple of so many frames."""


@dataclass(frozen=True)
class Choice:
    """The kernels of one unit of a voice, and why."""

    unit: str
    density: float
    """Share of the weights that are not zero."""
    sparse: bool
    dense_seconds: float
    sparse_seconds: float
    """Predicted for this density."""

    @property
    def seconds(self) -> float:
        """Those of the kernels that were chosen."""
        return self.sparse_seconds if self.sparse else self.dense_seconds


class Engine:
    """Flow and decoder of one model, each unit with dense or sparse kernels."""

    def __init__(self, model: torch.nn.Module) -> None:
        # It must not own the model: the model's end is the engine's.
        self._flow = list(flow_units(model.flow))
        self._decoder = list(decoder_units(model.decoder, model.config.leaky_relu_slope))
        self._turned = turned_at_end(model.flow)
        self.units = (*self._flow, *self._decoder)
        self._densities = {unit.name: unit.density for unit in self.units}
        self._programs: dict[str, Program | None] = {}
        self._lock = ForkSafeLock()

    def choices(self, frames: int) -> list[Choice] | None:
        """Return the choice for each unit at so many frames; None if one was never measured."""
        found = []
        for unit in self.units:
            times = store.find(_key(unit, frames))
            if times is None:
                return None
            density = self._densities[unit.name]
            sparse = times.sparse(density)
            fast = sparse < _GAIN * times.dense
            found.append(Choice(unit.name, density, fast, times.dense, sparse))
        return found

    def sparse_units(self, kernels: str, frames: int) -> frozenset[str]:
        """Return the names of the units that are to run sparse."""
        if kernels == "sparse":
            return frozenset(self._densities)
        found = self.choices(frames) if kernels == "auto" else None
        return frozenset(one.unit for one in found or () if one.sparse)

    def run_flow(
        self, latents: torch.Tensor, conditioning: Conditioning, sparse: frozenset[str]
    ) -> torch.Tensor:
        """Run the flow backwards over a sample of the prior, [1, flow_size, frames]."""
        latents = self._run(self._flow, latents.clone(), conditioning, sparse)
        return latents.flip(1) if self._turned else latents

    def run_decoder(
        self, latents: torch.Tensor, conditioning: Conditioning, sparse: frozenset[str]
    ) -> torch.Tensor:
        """Return the waveform, [1, 1, samples]."""
        return self._run(self._decoder, latents, conditioning, sparse)

    def _run(
        self,
        units: Iterable[Unit],
        x: torch.Tensor,
        conditioning: Conditioning,
        sparse: frozenset[str],
    ) -> torch.Tensor:
        for unit in units:
            program = self._program(unit) if unit.name in sparse else None
            if program is None:
                x = unit.dense(x, conditioning)
            else:
                x = run_sparse(unit, program, x, conditioning)
        return x

    def _program(self, unit: Unit) -> Program | None:
        """Return the packed program; the weights of a Voice do not change, so it is packed once."""
        with self._lock:
            if unit.name not in self._programs:
                self._programs[unit.name] = unit.make(False)
            return self._programs[unit.name]

    @property
    def nbytes(self) -> int:
        """Bytes of the programs that were packed so far."""
        with self._lock:
            return sum(one.nbytes for one in self._programs.values() if one)

    def measure(self, progress: Progress = SILENT) -> None:
        """Time the units whose shapes were never measured on this machine, and keep the result."""
        jobs: dict[str, tuple[Unit, int]] = {}
        for units in (self._flow, self._decoder):
            rate = 1
            for unit in units:
                for frames in LENGTHS:
                    key = _key(unit, frames)
                    if key not in jobs and store.find(key) is None:
                        jobs[key] = (unit, frames * rate)
                rate *= unit.rate
        for key in progress.track(list(jobs), "timing kernels"):
            store.keep(key, *_times(*jobs[key]))


@torch.inference_mode()
def _times(unit: Unit, frames: int) -> tuple[store.Times, bool]:
    """Return how long a unit takes, and whether nothing else seems to have run meanwhile."""
    full = unit.make(True)  # other voices of this shape may have any density
    x = torch.randn(1, unit.inputs, frames, generator=torch.Generator().manual_seed(0))
    jobs: list[Callable[[], Any]] = [lambda: unit.dense(x, None)]
    if full is not None:
        jobs += [functools.partial(run_sparse, unit, full.thinned(d), x, None) for d in _DENSITIES]
    for _ in range(_ATTEMPTS):
        runs: list[list[float]] = [[] for _ in jobs]
        busy = 0.0
        for attempt in range(1 + _RUNS):
            for job, seconds in zip(jobs, runs, strict=True):
                begun, computed = time.perf_counter(), time.thread_time()
                job()
                if attempt:  # the first one warms up
                    seconds.append(time.perf_counter() - begun)
                    if job is jobs[0]:
                        busy += time.thread_time() - computed
        steady = busy >= _BUSY * sum(runs[0]) and all(
            statistics.median(one) <= _STEADY * min(one) for one in runs
        )
        if steady:
            break
    best = [*map(min, runs), math.inf, math.inf]
    high, low = _DENSITIES
    if full is None:
        return store.Times(0.0, high, 1.0, low, 1.0), True
    return store.Times(best[0], high, best[1], low, best[2]), steady


def _key(unit: Unit, frames: int) -> str:
    length = min(LENGTHS, key=lambda one: abs(one - frames))
    return f"{_machine()}, {torch.get_num_threads()} threads, {length} frames, {unit.shape}"


@functools.cache
def _machine() -> str:
    return f"{binding.get_host_cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}"


def try_out() -> None:
    """Compile the kernels, or load what was compiled before, and run them once."""
    builder = ProgramBuilder()
    builder.load("x", 1)
    builder.convolve(torch.nn.Conv1d(1, 1, 1), "x", "y")
    builder.store("y", 1)
    program, x = builder.build(), np.ones((1, 1), np.float32)
    assert program is not None
    _run_tiles(program, x, np.empty((1, 1), np.float32), program.bias, 1)


def run_sparse(
    unit: Unit, program: Program, x: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    """Return what the unit makes of [1, rows, frames], by its sparse program.

    What runs in place changes x.
    """
    array, bias = x[0].contiguous().numpy(), program.bias
    if conditioning is not None and unit.shift is not None:
        bias = bias + unit.shift(conditioning)
    frames = array.shape[1] * unit.rate + unit.tail
    out = array if unit.in_place else np.empty((unit.rows, frames), np.float32)
    _run_tiles(program, array, out, bias, torch.get_num_threads())
    return torch.from_numpy(out)[None]


def _run_tiles(
    program: Program, x: np.ndarray, out: np.ndarray, bias: np.ndarray, threads: int
) -> None:
    """Run a program over all frames of `out`, in tiles that threads take in turn."""
    frames = out.shape[1]
    if not frames:
        return
    tile = min(program.tile, -(-frames // (threads * _ROUND)) * _ROUND)
    count = -(-frames // tile)
    tile, turn = -(-frames // count), itertools.count()

    def work() -> None:
        memory = _memory(program.numbers)
        while (index := next(turn)) < count:
            begin = index * tile
            program.run(memory, x, out, begin, min(frames, begin + tile), bias)

    helpers = [_threads.pool().submit(work) for _ in range(min(threads, count) - 1)]
    try:
        work()
    finally:
        for one in helpers:
            if not one.cancel():  # else it had not begun, and nothing is left to do
                one.result()


_own = threading.local()


def _memory(numbers: int) -> np.ndarray:
    """Return this thread's memory for tiles, as large as it was ever needed."""
    found = getattr(_own, "memory", None)
    if found is None or len(found) < numbers:
        found = _own.memory = np.zeros(numbers, np.float32)
    return found


class _Threads:
    """Threads that compute tiles, made when first needed, and again in a fork."""

    def __init__(self) -> None:
        self.after_fork()
        renew_in_forks(self)

    def after_fork(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(os.cpu_count() or 1, "kernels")
            return self._pool


_threads = _Threads()
