"""What a press of Speak sets off: both voices speak, and what is measured of what they said."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import pandas as pd

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.measure import Latency, Sparsity, measure_latency, measure_sparsity
from vits_prune.measure.weights import (
    MatrixPair,
    WeightHistogram,
    measure_layer_weights,
    measure_matrix,
)
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.pruning.spec import METHODS
from vits_prune.pruning.structured.cut import Survivor, choice_for, survivor
from vits_prune.studio import workbench
from vits_prune.studio.jobs import on_gpu
from vits_prune.studio.request import Request
from vits_prune.studio.workbench import Spoken, listens, trace
from vits_prune.synthesis.speak import Speech, write_wav
from vits_prune.threads import WaitingLine
from vits_prune.voices.saved import save_voice
from vits_prune.voices.sentences import split_sentences
from vits_prune.voices.voice import Voice

MAX_TIMED_CHARACTERS = 300
RUNS = 5
_PREFERRED = (
    "decoder.resblocks.0.convs",
    "decoder.upsampler.0",
    "text_encoder.encoder.layers.0.feed_forward.conv_1",
)
"""Beginnings of the names of layers that show well what happens, the best first."""
_speaking, measuring = WaitingLine(), WaitingLine()


@contextlib.contextmanager
def _turn(request: Request, token: str | None, progress: Progress) -> Iterator[None]:
    """Wait to speak; a voice that is listened to first is pruned before, so that others go on."""
    bench = workbench.bench
    with bench.hearing():
        if listens(request.spec):
            bench.pruned(request, token, progress)
        with _speaking.turn(progress, "waiting to speak"):
            bench.pruned(request, token, progress)  # in this process, for all that follows
            yield


def giving_way(progress: Progress, longest_seconds: float = 60.0) -> Progress:
    """Return a progress that lets those who wait to hear pass at each report."""

    def report(message: str, fraction: float) -> None:
        workbench.bench.let_hearing_pass(longest_seconds)
        progress.report(message, fraction)

    return Progress(report)


@on_gpu(60)
def _hear_pruned(request: Request, token: str | None, progress: Progress) -> Speech:
    workbench.bench.use_gpu()
    with workbench.bench.hearing():
        return workbench.bench.hear_pruned(request, token, progress)


def hear_pruned(request: Request, token: str | None, progress: Progress = SILENT) -> Speech:
    """Let the pruned voice speak alone, which is sooner than both."""
    with _turn(request, token, progress):
        return _hear_pruned(request, token, progress)


@on_gpu(60)
def _hear(request: Request, token: str | None, pruned: Speech | None, progress: Progress) -> Spoken:
    workbench.bench.use_gpu()
    with workbench.bench.hearing():
        return workbench.bench.hear(request, token, progress, pruned)


def hear(
    request: Request,
    token: str | None,
    progress: Progress = SILENT,
    pruned: Speech | None = None,
) -> Spoken:
    """Let both voices speak, or the original where the pruned one has; remember what they said."""
    with _turn(request, token, progress):
        spoken = _hear(request, token, pruned, progress)
    workbench.bench.remember(request, spoken, token)
    return spoken


def heard_before(request: Request, token: str | None, progress: Progress = SILENT) -> Spoken:
    """Return what both voices said for a request; let them speak again if it is forgotten."""
    return workbench.bench.recall(request, token) or hear(request, token, progress)


@on_gpu(90)
def time_both(request: Request, token: str | None, progress: Progress) -> Latency:
    """Time both voices in turn, on the beginning of the text."""
    bench = workbench.bench
    bench.use_gpu()
    progress.report("timing both voices in turn", 0.0)
    return measure_latency(
        bench.voice_of(request, token),
        bench.pruned(request, token),
        timed_text(request.text),
        request.seed,
        delivery=request.delivery,
        runs=RUNS,
        kernels=request.kernels,
        progress=giving_way(progress.part(0.0, 1.0, "timing both voices in turn: ")),
    )


_latencies: Bounded[tuple[Request, str], Latency] = Bounded(256, lambda _: 1)


def latency(
    request: Request, token: str | None, progress: Progress = SILENT, anew: bool = False
) -> Latency:
    """Return the latency of both voices, as it was measured before unless it is wanted anew."""
    key = (request, trace(token))
    found = None if anew else _latencies.get(key)
    if found is None:
        found = time_both(request, token, progress)
        _latencies.put(key, found)
    return found


def timed_text(text: str) -> str:
    """Return the first sentences of a text, about MAX_TIMED_CHARACTERS of them."""
    sentences = split_sentences(text)
    lengths = accumulate(map(len, sentences))
    count = max(1, sum(length <= MAX_TIMED_CHARACTERS for length in lengths))
    return text.strip() if count >= len(sentences) else " ".join(sentences[:count])


def hear_step(
    request: Request, index: int, token: str | None, progress: Progress = SILENT
) -> Speech:
    """Return what the voice of one step of gradual pruning says, with the original's durations.

    Raises:
        InputError: there is no such step; the first is 0.
    """
    original = heard_before(request, token, progress).original
    steps = workbench.bench.steps(request, token, progress)
    if not 0 <= index < len(steps):
        raise InputError(f"This voice was pruned in {len(steps)} steps: choose one of them.")
    part = progress.part(0.0, 1.0, f"step {index + 1}: ")
    with _speaking.turn(part, "waiting to speak"):
        return workbench.say(steps[index][1], request, original, part)


# Layers


@dataclass(frozen=True)
class LayerChange:
    """One of the original's layers and what pruning did to it."""

    layer: Layer
    share: float
    """Of its weights that are zero or gone, 0 to 1."""
    cut: bool
    """Whether weights are gone, not only zero."""
    note: str
    """Why it was left alone."""


def layer_changes(
    request: Request, token: str | None, progress: Progress = SILENT
) -> tuple[tuple[LayerChange, ...], Sparsity]:
    """Return what pruning did to each layer, in the order of the model, and the zeros left."""
    pruned = workbench.bench.pruned(request, token, progress)
    before, after = map(measure_sparsity, (workbench.bench.voice_of(request, token), pruned))
    stays = _survivors(request, token, progress)
    there = {row.layer.name: row for row in after.layers}
    found = []
    for row in before.layers:
        left = stays(row.layer.name) if row.layer.prunable else Survivor(row.layer.name, {})
        now = there.get(left.name) if left else None
        weights = now.layer.weights - now.zeros if now else 0
        share = 1 - weights / row.layer.weights if row.layer.prunable else 0.0
        cut = now is None or now.layer.weights != row.layer.weights
        found.append(LayerChange(row.layer, share, cut, now.note if now else ""))
    return tuple(found), after


def telling_layer(names: list[str]) -> str:
    """Return the layer that shows best what pruning does."""
    return next((one for begin in _PREFERRED for one in names if one.startswith(begin)), names[0])


def layer_weights(
    request: Request, token: str | None, layer: str, progress: Progress = SILENT
) -> tuple[MatrixPair, WeightHistogram]:
    """Return a corner of one layer's matrix before and after, and the histogram of its weights.

    Raises:
        InputError: there is no such layer that can be pruned.
    """
    original = workbench.bench.voice_of(request, token, "cpu")
    pruned = workbench.bench.pruned(request, token, progress).to("cpu")
    known = layer in {one.name for one in prunable_layers(original)}
    left = _survivors(request, token, progress)(layer) if known else None
    name, kept = (left.name, left.kept) if left else (None, {})
    pair = measure_matrix(original, pruned, layer, name, kept)
    return pair, measure_layer_weights(original, pruned, layer, name, kept)


def _survivors(
    request: Request, token: str | None, progress: Progress
) -> Callable[[str], Survivor | None]:
    """Return the function that says what stays of one of the original's layers."""
    spec = request.spec
    if not METHODS[spec.method].structured or not (spec.amount or spec.shape):
        return lambda layer: Survivor(layer, {})
    original = workbench.bench.voice_of(request, token, "cpu")
    pruned = workbench.bench.pruned(request, token, progress)
    choice = choice_for(original, spec, progress=progress)
    return lambda layer: survivor(original, pruned, choice, layer)


# Files for the visitor


def wav(speech: Speech, name: str) -> str:
    """Return the path of a 16-bit WAV file: Gradio would bring samples to full level."""
    path = workbench.scratch.folder() / f"{name}.wav"
    write_wav(speech, path)
    return str(path)


def csv(table: pd.DataFrame, name: str) -> str:
    """Return the path of a table as a CSV file."""
    path = workbench.scratch.folder() / f"{name}.csv"
    table.to_csv(path, index=False)
    return str(path)


def zipped(voice: Voice, how: str) -> str:
    """Return the path of a voice's folder as a zip file, named after the voice and `how`."""
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in voice.name)[:60] or "voice"
    folder, name = workbench.scratch.folder(), f"{safe}-{how}"
    save_voice(voice, folder / name)
    archive = shutil.make_archive(str(folder / f"{name}-voice"), "zip", folder, name)
    shutil.rmtree(folder / name)
    return archive
