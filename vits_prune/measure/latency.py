"""How long two voices take to speak, measured so that the comparison holds on a noisy machine; and the arithmetic behind it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from vits_prune.errors import InputError
from vits_prune.synthesis.speak import STAGES, Delivery, Speech, join, speak_sentences
from vits_prune.voices.voice import Voice

DEFAULT_RUNS = 5


@dataclass(frozen=True)
class Spread:
    """Several runs of one quantity."""

    median: float
    low: float
    """Smallest run."""
    high: float
    """Largest run."""

    @classmethod
    def of(cls, values: list[float]) -> Spread:
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
    """Length of what was spoken."""
    dense_macs: int
    """Multiply-accumulates of the convolutions and linear layers for this text, zeros included: what a dense kernel computes."""
    nonzero_macs: int
    """Those with a weight that is not zero: what a perfect sparse kernel would compute."""


@dataclass(frozen=True)
class Latency:
    """Two voices timed in turn on the same text, with the same number of frames, in one process."""

    original: VoiceLatency
    pruned: VoiceLatency
    speed_up: Spread
    """Seconds of the original over seconds of the pruned voice, run by run: above 1 the pruned voice is faster."""
    runs: int
    threads: int
    device: str


@dataclass(frozen=True)
class _Run:
    seconds: dict[str, float]
    cpu_seconds: float
    audio_seconds: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def measure_latency(
    original: Voice,
    pruned: Voice,
    text: str,
    seed: int = 0,
    *,
    delivery: Delivery = Delivery(),
    runs: int = DEFAULT_RUNS,
    on_run: Callable[[int, int], None] | None = None,
) -> Latency:
    """Time two voices on one text, run by run in turn and in changing order, after one run of each that does not count.

    Both compute the original's number of frames (the pruned voice runs its duration predictor, but is held to the original's durations):
    a voice whose rhythm runs away would otherwise look faster per second of speech for having more seconds to say.

    Args:
        original: the voice that is the measure.
        pruned: the voice compared with it.
        text: what both speak.
        seed: their noise.
        delivery: speaking rate and noise scales.
        runs: counted runs of each voice, at least 1.
        on_run: called with (runs done, runs in all) before each pair; it may raise to cancel.

    Raises:
        InputError: the text cannot be spoken, or there are no runs.
    """
    for step in latency_steps(original, pruned, text, seed, delivery=delivery, runs=runs):
        if isinstance(step, Latency):
            return step
        if on_run:
            on_run(step, runs)
    raise AssertionError("latency_steps ends with a Latency")


def latency_steps(
    original: Voice,
    pruned: Voice,
    text: str,
    seed: int = 0,
    *,
    delivery: Delivery = Delivery(),
    runs: int = DEFAULT_RUNS,
) -> Iterator[int | Latency]:
    """The same as `measure_latency` in steps: the number of runs done, before each pair, and at last the Latency."""
    if runs < 1:
        raise InputError("runs must be at least 1.")
    yield 0
    first, original_macs = count_macs(original, text, seed, delivery=delivery)
    _, pruned_macs = count_macs(pruned, text, seed, timing=first, delivery=delivery)
    timed: tuple[list[_Run], list[_Run]] = ([], [])
    for run in range(runs):
        if run:
            yield run
        pair = [(0, original, "own"), (1, pruned, first)]
        for which, voice, its_timing in pair if run % 2 == 0 else reversed(pair):
            timed[which].append(_timed(voice, text, seed, its_timing, delivery))
    ratios = [a.total / b.total for a, b in zip(*timed, strict=True)]
    yield Latency(
        original=_summary(timed[0], *original_macs),
        pruned=_summary(timed[1], *pruned_macs),
        speed_up=Spread.of(ratios),
        runs=runs,
        threads=torch.get_num_threads(),
        device=original.device.type,
    )


def _timed(voice: Voice, text: str, seed: int, timing: Speech | str, delivery: Delivery) -> _Run:
    cpu = time.process_time()
    speech = join(
        list(
            speak_sentences(
                voice, text, seed, timing=timing, delivery=delivery, always_predict=True
            )
        )
    )
    return _Run(speech.seconds, time.process_time() - cpu, speech.audio_seconds)


def _summary(runs: list[_Run], dense_macs: int, nonzero_macs: int) -> VoiceLatency:
    stages = {stage: Spread.of([run.seconds[stage] for run in runs]) for stage in STAGES}
    return VoiceLatency(
        stage_seconds={**stages, "total": Spread.of([run.total for run in runs])},
        real_time_factor=Spread.of([run.total / run.audio_seconds for run in runs]),
        cpu_seconds_per_audio_second=Spread.of(
            [run.cpu_seconds / run.audio_seconds for run in runs]
        ),
        audio_seconds=runs[0].audio_seconds,
        dense_macs=dense_macs,
        nonzero_macs=nonzero_macs,
    )


def count_macs(
    voice: Voice,
    text: str,
    seed: int = 0,
    *,
    timing: Speech | str = "own",
    delivery: Delivery = Delivery(),
) -> tuple[Speech, tuple[int, int]]:
    """Speak once and count the multiply-accumulates of every Conv1d, ConvTranspose1d and Linear: (Speech, (dense, non-zero)).

    Each weight of a convolution is used once an output frame, of a transposed one once an input frame, of a linear layer once a row.
    Attention's products of activations and the additions of biases are not counted.
    """
    counts = [0, 0]
    copy = voice.with_weights(
        {}
    )  # hooks go on a copy: another thread may be speaking with this voice
    with _counting(copy.model, counts):
        speech = join(
            list(
                speak_sentences(
                    copy, text, seed, timing=timing, delivery=delivery, always_predict=True
                )
            )
        )
    return speech, (counts[0], counts[1])


@contextmanager
def _counting(model: nn.Module, counts: list[int]) -> Iterator[None]:
    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, nn.Linear):
            positions = output.numel() // output.shape[-1]
        else:
            frames = inputs[0] if isinstance(module, nn.ConvTranspose1d) else output
            positions = frames.shape[0] * frames.shape[-1]
        counts[0] += positions * module.weight.numel()
        counts[1] += positions * int(torch.count_nonzero(module.weight))

    hooks = [
        m.register_forward_hook(count)
        for m in model.modules()
        if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
