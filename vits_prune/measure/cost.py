"""What speaking costs: latency by stage, multiply-accumulates, processor time and energy.

Energy comes from counters of the machine (RAPL, NVML) and is never estimated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.kernels import chosen_kernels, engine_of, measure_kernels, packed_bytes
from vits_prune.memory import peak_growth
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.layers import uses_of_weights
from vits_prune.pruning.scores import layer_costs
from vits_prune.pruning.spec import PruneSpec
from vits_prune.synthesis.speak import STAGES, Delivery, Speech, join, speak, speak_sentences
from vits_prune.voices.voice import Voice, without_masks

if TYPE_CHECKING:
    from vits_prune.kernels.engine import Choice

DEFAULT_RUNS = 5
RAPL = Path("/sys/class/powercap")
"""Where Linux shows the processor's energy counters."""


@dataclass(frozen=True)
class Spread:
    """Several runs of one quantity."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of at least one run."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class VoiceLatency:
    """Timings of one voice on one text."""

    stage_seconds: dict[str, Spread]
    """Wall-clock seconds by stage (STAGES), and their sum as "total"."""
    real_time_factor: Spread
    """Seconds of computing per second of speech: below 1 is faster than speech."""
    cpu_seconds_per_audio_second: Spread
    """Processor seconds, all threads together, per second of speech."""
    audio_seconds: float
    dense_macs: int
    """Multiply-accumulates of convolutions and linear layers for this text, zeros included."""
    nonzero_macs: int
    """Those with a weight that is not zero: the work of a perfect sparse kernel."""
    sparse: tuple[str, ...] = ()
    """What ran with sparse kernels, such as "flow 1" and "decoder stage 3"."""
    dense_seconds: Spread | None = None
    """Seconds of all stages with dense kernels, in the same runs; None if nothing ran sparse."""
    kernels: tuple[Choice, ...] = ()
    """What "auto" took for each part of the longest sentence, and why; empty with others."""
    first_sound_seconds: Spread | None = None
    """From the text to the samples of its first sentence, the voice being loaded."""
    peak_memory_bytes: int | None = None
    """Weights, sparse kernels, and what speaking held besides at most; None where no system
    tells."""


@dataclass(frozen=True)
class Latency:
    """Two voices timed in turn on the same text, with as many frames, in one process."""

    original: VoiceLatency
    pruned: VoiceLatency
    speed_up: Spread
    """Seconds of the original over seconds of the pruned voice, run by run, each with the kernels
    that are best for it unless others were asked for."""
    runs: int
    threads: int
    device: str


def measure_latency(
    original: Voice,
    pruned: Voice,
    text: str,
    seed: int = 0,
    *,
    delivery: Delivery = Delivery(),
    runs: int = DEFAULT_RUNS,
    kernels: str = "auto",
    progress: Progress = SILENT,
) -> Latency:
    """Time two voices on one text, in turn and in changing order, after one warm-up run of each.

    Both compute the original's number of frames: the pruned voice runs its duration predictor but
    keeps the original's durations. Otherwise a voice whose durations run away would look faster
    per second of speech.

    `runs` counts those of each voice. With "auto" each voice gets the kernels that are faster, part
    by part; where that is not known it is measured first. A voice that runs something sparse is
    also timed dense.

    Raises:
        InputError: the text cannot be spoken, `runs` is below 1, or there are no such kernels.
    """
    if runs < 1:
        raise InputError("runs must be at least 1.")
    voices = original, pruned
    if kernels == "auto":
        for voice in voices:
            measure_kernels(voice, progress.part(0.0, 0.0))
    first, original_macs = count_macs(original, text, seed, delivery=delivery)
    _, pruned_macs = count_macs(pruned, text, seed, timing=first, delivery=delivery)
    frames = [int(one.durations.sum()) for one in first.sentences]
    sparse = [_sparse_units(voice, kernels, frames) for voice in voices]
    jobs = [(which, kernels) for which in (0, 1)]
    jobs += [(which, "dense") for which in (0, 1) if sparse[which]]
    timed: dict[tuple[int, str], list[_Run]] = {job: [] for job in jobs}
    timings: tuple[Any, Any] = ("own", first)
    for which in (0, 1):  # counting warmed the dense kernels up
        if sparse[which]:
            speak(voices[which], text, seed, delivery, timing=timings[which], kernels=kernels)
    for run in progress.track(range(runs), "run"):
        for job in jobs if run % 2 == 0 else reversed(jobs):
            which, chosen = job
            how: dict[str, Any] = {"timing": timings[which], "delivery": delivery}
            timed[job].append(_timed(voices[which], text, seed, kernels=chosen, **how))
    found = []
    for which, macs in enumerate((original_macs, pruned_macs)):
        best, dense = timed[which, kernels], timed.get((which, "dense")) if sparse[which] else None
        voice, how = voices[which], {"timing": timings[which], "kernels": kernels}
        summary = dataclasses.replace(
            _summary(best, *macs, sparse[which]),
            dense_seconds=Spread.of([one.total for one in dense]) if dense else None,
            kernels=tuple(chosen_kernels(voice, max(frames))) if kernels == "auto" else (),
            peak_memory_bytes=_peak_memory(voice, text, seed, delivery, how),
        )
        found.append(summary)
    pairs = zip(timed[0, kernels], timed[1, kernels], strict=True)
    return Latency(
        original=found[0],
        pruned=found[1],
        speed_up=Spread.of([a.total / b.total for a, b in pairs]),
        runs=runs,
        threads=torch.get_num_threads(),
        device=original.device.type,
    )


def _sparse_units(voice: Voice, kernels: str, frames: list[int]) -> tuple[str, ...]:
    """Return what of a voice runs sparse in any of some sentences."""
    engine = engine_of(voice, kernels)
    if engine is None:
        return ()
    named = set().union(*(engine.sparse_units(kernels, one) for one in frames))
    return tuple(unit.name for unit in engine.units if unit.name in named)


class _Run(NamedTuple):
    """One run of a voice."""

    speech: Speech
    cpu_seconds: float
    first_sound_seconds: float

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.speech.seconds.values())


def _timed(voice: Voice, text: str, seed: int, **how: Any) -> _Run:
    """Speak with the duration predictor running, and look at the clocks."""
    begun, cpu = time.perf_counter(), time.process_time()
    pieces: list[Speech] = []
    first = math.nan
    for piece in speak_sentences(voice, text, seed, always_predict=True, **how):
        first = first if pieces else time.perf_counter() - begun
        pieces.append(piece)
    return _Run(join(pieces), time.process_time() - cpu, first)


def _peak_memory(
    voice: Voice, text: str, seed: int, delivery: Delivery, how: dict[str, Any]
) -> int | None:
    if voice.device.type != "cpu":
        return None
    growth = peak_growth(lambda: speak(voice, text, seed, delivery, **how))
    if growth is None:
        return None
    held = sum(one.numel() * one.element_size() for one in voice.model.parameters())
    return held + packed_bytes(voice) + growth


def _summary(
    runs: list[_Run], dense_macs: int, nonzero_macs: int, sparse: tuple[str, ...]
) -> VoiceLatency:
    stages = {stage: Spread.of([run.speech.seconds[stage] for run in runs]) for stage in STAGES}
    seconds = runs[0].speech.audio_seconds
    return VoiceLatency(
        stage_seconds={**stages, "total": Spread.of([run.total for run in runs])},
        real_time_factor=Spread.of([run.total / seconds for run in runs]),
        cpu_seconds_per_audio_second=Spread.of([run.cpu_seconds / seconds for run in runs]),
        audio_seconds=seconds,
        dense_macs=dense_macs,
        nonzero_macs=nonzero_macs,
        sparse=sparse,
        first_sound_seconds=Spread.of([run.first_sound_seconds for run in runs]),
    )


def count_macs(
    voice: Voice,
    text: str,
    seed: int = 0,
    *,
    timing: Literal["own"] | Speech = "own",
    delivery: Delivery = Delivery(),
) -> tuple[Speech, tuple[int, int]]:
    """Speak once and count the multiply-accumulates of every Conv1d, ConvTranspose1d and Linear.

    See `uses_of_weights`. Products of activations (attention) and additions of biases are not
    counted.

    Returns:
        The Speech and (all, those with a weight that is not zero).
    """
    voice = without_masks(voice)
    how: dict[str, Any] = {"timing": timing, "delivery": delivery, "kernels": "dense"}
    spoken: list[Speech] = []
    uses = uses_of_weights(
        voice, lambda copy: spoken.append(_timed(copy, text, seed, **how).speech)
    )
    weights = {name: voice.model.get_parameter(f"{name}.weight") for name in uses}
    dense = sum(count * weights[name].numel() for name, count in uses.items())
    nonzero = sum(count * int(weights[name].count_nonzero()) for name, count in uses.items())
    return spoken[0], (dense, nonzero)


_per_weight: Bounded[str, Mapping[str, float]] = Bounded(1, lambda _: 0)


def macs_per_weight(voice: Voice) -> Mapping[str, float]:
    """Return the multiply-accumulates of one weight of each prunable layer, per frame.

    By parameter name, counted on a built-in sentence once, and kept as long as the model lives.

    Raises:
        InputError: the voice can speak none of the sentences.
    """
    every = PruneSpec(method="activation", cost="macs")
    return _per_weight.get_or_make("", lambda: layer_costs(voice, every) or {}, owner=voice.model)


@dataclass(frozen=True)
class Energy:
    """Energy between two readings."""

    joules: float | None
    """None where no counter can be read."""
    method: str
    """Which counter and what it counts, or why there is none."""


class EnergyMeter:
    """Reads the machine's energy counters: RAPL for the processor, NVML for an NVIDIA GPU."""

    def __init__(self, device: str = "cpu", powercap: Path = RAPL) -> None:
        self._gpu = _nvml_device() if device == "cuda" else None
        self._packages = [] if device == "cuda" else _packages(powercap)
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._before = self._read()

    def read(self) -> Energy:
        """Return the energy since the last restart."""
        now, before = self._read(), self._before
        if now is None or before is None:
            where = "neither RAPL under /sys/class/powercap nor NVML"
            return Energy(None, f"no energy counter can be read on this machine ({where})")
        if self._gpu is not None:
            what = "NVML: the whole GPU, other programs on it included"
            return Energy((now[0] - before[0]) / 1e3, what)
        wraps = [limit + 1 for _, limit in self._packages]
        micro = sum((b - a) % wrap for a, b, wrap in zip(before, now, wraps, strict=True))
        what = "RAPL: the whole processor package, other programs on it included"
        return Energy(micro / 1e6, what)

    def _read(self) -> list[int] | None:
        """Return microjoules by package, or millijoules of the GPU."""
        if self._gpu is not None:
            import pynvml

            try:
                return [pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)]
            except pynvml.NVMLError:  # the driver has no counter
                return None
        try:
            return [int((folder / "energy_uj").read_text()) for folder, _ in self._packages] or None
        except (OSError, ValueError):  # the file is for root only
            return None


def _packages(powercap: Path) -> list[tuple[Path, int]]:
    """Return RAPL's packages, without their parts such as DRAM, and where their counters wrap."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        try:
            title = (folder / "name").read_text()
            if folder.name.count(":") == 1 and title.startswith("package"):
                found.append((folder, int((folder / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            continue
    return found


@functools.lru_cache(maxsize=1)
def _nvml_device() -> object | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
    except pynvml.NVMLError:  # no driver
        return None


@dataclass(frozen=True)
class Cost:
    """The cost of speaking a set of texts. Times and joules differ from run to run."""

    audio_seconds: float
    cpu_seconds_per_audio_second: float
    """Processor seconds of this process, all threads together, per second of speech."""
    joules_per_audio_second: float | None
    """None where no counter can be read."""
    energy_method: str
    """Which counter, or why there is none."""


class CostMeter:
    """Speaks texts with a voice and adds up the cost.

    Of several texts the first does not count: it includes loading and compiling.
    """

    def __init__(self, voice: Voice) -> None:
        self._voice, self._meter = voice, EnergyMeter(voice.device.type)
        self._runs: list[tuple[float, float, Energy]] = []

    def speak(self, text: str, seed: int, delivery: Delivery) -> Speech:
        """Speak a text with the voice's own timing, and dense kernels: figures last longer."""
        self._meter.restart()
        before = time.process_time()
        speech = speak(self._voice, text, seed, delivery, kernels="dense")
        cpu, energy = time.process_time() - before, self._meter.read()
        self._runs.append((speech.audio_seconds, cpu, energy))
        return speech

    def cost(self) -> Cost:
        """Return the cost of all texts so far, at least one."""
        seconds, cpu, energy = zip(*(self._runs[1:] or self._runs), strict=True)
        audio, joules = sum(seconds), [one.joules for one in energy]
        per_second = None if None in joules else sum(joules) / audio
        whole = sum(run[0] for run in self._runs)
        return Cost(whole, sum(cpu) / audio, per_second, energy[-1].method)
