"""The engine of a voice: runs each unit of it with the kernels that were chosen.

Which are faster depends on the machine, the shapes, the density and the length. It is measured once
for a machine and a shape, kept on disk, and predicted from that for every density: the time of a
sparse program grows evenly with the weights that are not zero.
"""

from __future__ import annotations

import functools
import itertools
import os
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
from vits_prune.kernels.programs import Program
from vits_prune.kernels.units import Conditioning, Unit, decoder_units, flow_units, turned_at_end
from vits_prune.progress import SILENT, Progress
from vits_prune.threads import ForkSafeLock, renew_in_forks

LENGTHS = (100, 500)
"""Frames, about 1 and 6 seconds of joe, at which kernels are timed."""
_DENSITIES = (0.4, 0.1)
_RUNS = 3
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


class Engine:
    """Flow and decoder of one model, each unit with dense or sparse kernels."""

    def __init__(self, model: torch.nn.Module) -> None:
        # It must not own the model: the model's end is the engine's.
        self._flow = list(flow_units(model.flow))
        self._decoder = list(decoder_units(model.decoder, model.config.leaky_relu_slope))
        self._turned = turned_at_end(model.flow)
        self.units = (*self._flow, *self._decoder)
        self._densities = {unit.name: unit.density for unit in self.units}
        self._programs: dict[str, Program] = {}
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
            if unit.name in sparse:
                x = run_sparse(unit, self._program(unit), x, conditioning)
            else:
                x = unit.dense(x, conditioning)
        return x

    def _program(self, unit: Unit) -> Program:
        with self._lock:
            if unit.name not in self._programs:
                self._programs[unit.name] = unit.make()
            return self._programs[unit.name]

    def measure(self, progress: Progress = SILENT) -> None:
        """Time the units whose shapes were never measured on this machine, and keep the result."""
        jobs = []
        for units in (self._flow, self._decoder):
            rate = 1
            for unit in units:
                jobs += [(unit, frames, rate) for frames in LENGTHS]
                rate *= unit.rate
        missing = [one for one in jobs if store.find(_key(*one[:2])) is None]
        for unit, frames, rate in progress.track(missing, "timing kernels"):
            store.keep(_key(unit, frames), self._times(unit, frames * rate))

    @torch.inference_mode()
    def _times(self, unit: Unit, frames: int) -> store.Times:
        x = torch.randn(1, unit.inputs, frames, generator=torch.Generator().manual_seed(0))
        program, density = unit.make(), self._densities[unit.name]  # of a whole voice: large
        weights = sum(layer.weight.numel() for layer in unit.layers)
        thin = [program.thinned(one / max(one, density)) for one in _DENSITIES]
        jobs: list[Callable[[], Any]] = [lambda: unit.dense(x, None)]
        jobs += [functools.partial(run_sparse, unit, one, x, None) for one in thin]
        best = [float("inf")] * len(jobs)
        for attempt in range(1 + _RUNS):
            for index, job in enumerate(jobs):
                begun = time.perf_counter()
                job()
                if attempt:  # the first one warms up
                    best[index] = min(best[index], time.perf_counter() - begun)
        points = [(one.nonzero / weights, best[at]) for at, one in enumerate(thin, 1)]
        return store.Times(best[0], *points[0], *points[1])


def _key(unit: Unit, frames: int) -> str:
    length = min(LENGTHS, key=lambda one: abs(one - frames))
    return f"{_machine()}, {torch.get_num_threads()} threads, {length} frames, {unit.shape}"


@functools.cache
def _machine() -> str:
    return f"{binding.get_host_cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}"


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
