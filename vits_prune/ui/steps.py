"""What the page's buttons do: read the inputs, ask the workbench, show what it found."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import gradio as gr
import pandas as pd

from vits_prune.caches import Scratch
from vits_prune.errors import InputError
from vits_prune.measure import Latency, latency, measure_weights
from vits_prune.measure.signals import measure_spectrogram
from vits_prune.measure.weights import MatrixPair, measure_matrix
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import in_words
from vits_prune.pruning.structured.shrink import Survivor, choice_for, survivor
from vits_prune.studio.forecast import forecast_words
from vits_prune.studio.hardware import on_gpu
from vits_prune.studio.jobs import Doing, in_background
from vits_prune.studio.workbench import Request, Spoken, Steps, Workbench
from vits_prune.study import tables
from vits_prune.synthesis.speak import Delivery, Speech, write_wav
from vits_prune.synthesis.stages import MAX_SENTENCE_SECONDS
from vits_prune.ui import flip, plots
from vits_prune.voices.hf_text import split_sentences
from vits_prune.voices.voice import PARTS, Voice

MAX_PAGE_CHARACTERS = 2_000
MAX_TIMED_CHARACTERS = 300
RUNS = 5

log = logging.getLogger(__name__)
bench = Workbench()
scratch = Scratch()
F = TypeVar("F", bound=Callable[..., Any])


def request_of(
    voice: str,
    speaker: str | None,
    text: str,
    spec: PruneSpec,
    seed: float,
    timing: str,
    speaking_rate: float | None = None,
    noise_scale: float | None = None,
    noise_scale_duration: float | None = None,
) -> Request:
    """The inputs of the page, with the PruneSpec of its controls, as one checked value.

    Raises:
        InputError: one of them cannot be used.
    """
    delivery = Delivery(speaking_rate, noise_scale, noise_scale_duration)
    request = Request(
        (voice or "").strip(),
        text or "",
        spec,
        seed if seed is not None else 0,
        timing,
        delivery,
        speaker or None,
    )
    return request.checked(MAX_PAGE_CHARACTERS)


def plainly(function: F) -> F:
    """Show an InputError as its sentence, and anything unforeseen as a sentence that gives nothing of the server away."""

    @functools.wraps(function)
    def stepwise(*arguments: Any, **named: Any) -> Iterator[Any]:
        with _sentences():
            yield from function(*arguments, **named)

    @functools.wraps(function)
    def at_once(*arguments: Any, **named: Any) -> Any:
        with _sentences():
            return function(*arguments, **named)

    return stepwise if inspect.isgeneratorfunction(function) else at_once  # type: ignore[return-value]


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except InputError as error:
        raise gr.Error(str(error), title="That cannot be done", print_exception=False) from error
    except Exception as error:
        log.exception("unexpected error on the page")
        sentence = "Something went wrong on the server; your settings are kept. Try again, or with a shorter text."
        raise gr.Error(sentence, title="Error", print_exception=False) from error


def pruning_steps(request: Request, token: str | None) -> Generator[Doing, None, Steps]:
    """Make the pruned voice, on the CPU and in this process, so that every later step finds it; returns its Steps."""
    for step in bench.pruning(request, token):
        if isinstance(step, Doing):
            yield step
    return step


# On ZeroGPU these two run in a worker with a GPU; requests go in and results come out by pickle.


@on_gpu(60)
def hear_steps(request: Request, token: str | None) -> Iterator[Doing | Spoken]:
    """Both voices speak: progress, then Spoken."""
    bench.use_gpu()
    with bench.hearing():
        yield from bench.hear(request, token)


@on_gpu(90)
def latency_steps(request: Request, token: str | None) -> Iterator[Doing | Latency]:
    """Both voices are timed: progress between the runs, so that it can be cancelled there, then Latency."""
    bench.use_gpu()
    yield Doing("timing both voices in turn", 0.0)
    original, pruned = (
        bench.voice(request.reference, request.speaker, token),
        bench.pruned(request, token),
    )
    text = timed_text(request.text)
    for step in latency.latency_steps(
        original, pruned, text, request.seed, delivery=request.delivery, runs=RUNS
    ):
        bench.let_hearing_pass()
        if isinstance(step, Latency):
            yield step
        elif step:
            yield Doing(f"timing both voices in turn: {step} of {RUNS} runs", step / RUNS)


def timed_text(text: str) -> str:
    """What latency is measured on: the first sentences, about MAX_TIMED_CHARACTERS of them."""
    taken: list[str] = []
    for sentence in split_sentences(text):
        if taken and sum(map(len, taken)) + len(sentence) > MAX_TIMED_CHARACTERS:
            break
        taken.append(sentence)
    return (
        " ".join(taken) if sum(map(len, taken)) < len(text.strip()) - len(taken) else text.strip()
    )


def stopped_words() -> str:
    """Said once more, after what a stopped step had still under way to the page."""
    time.sleep(0.5)
    return "Stopped."


def visitor_token(oauth: gr.OAuthToken | None) -> str | None:
    """The visitor's own token, None for one who is not logged in. The server's own is never used for what a visitor names."""
    return oauth.token if oauth is not None else None


def wav(speech: Speech, name: str) -> str:
    """A 16-bit WAV file for gr.Audio, which would bring float samples to full level and hide that a voice became quieter."""
    path = scratch.folder() / f"{name}.wav"
    write_wav(speech, path)
    return str(path)


def aligned(original: Speech, pruned: Speech) -> bool:
    """Whether the two can be switched at the same position."""
    return (
        len(original.waveform) == len(pruned.waveform)
        and (original.durations == pruned.durations).all()
    )


def flip_value(spoken: Spoken) -> dict[str, Any]:
    return flip.LOCKED if aligned(spoken.original, spoken.pruned) else flip.OWN


def heard_words(request: Request, spoken: Spoken) -> str:
    """One line on what was spoken."""
    before, after = spoken.original.audio_seconds, spoken.pruned.audio_seconds
    before_weights, after_weights = (found.weights() for found in spoken.sparsity)
    gone = 100 * (1 - after_weights / max(1, before_weights))
    what = f"**{100 * spoken.sparsity[1].overall:.1f}%** of the voice's weights are zero"
    if gone:
        what = f"**{gone:.1f}%** of the voice's weights are gone with their channels and layers ({after_weights / 1e6:.1f} M are left)"
    words = [
        f"{what}, by {in_words(request.spec)}.",
        f"Original {before:.2f} s, pruned {after:.2f} s ({100 * (after / before - 1):+.0f}%).",
    ]
    if request.timing == "locked":
        words[1] = f"Both last {before:.2f} s: the pruned voice uses the original's durations."
    if spoken.original.dropped:
        words.append(
            f"The voice has no symbol for: {' '.join(symbol.strip() or '␣' for symbol in spoken.original.dropped[:40])}"
        )
    if spoken.pruned.cut_short:
        words.append(
            f"The pruned voice's durations ran away: a sentence was ended at {MAX_SENTENCE_SECONDS:.0f} seconds."
        )
    return " ".join(words)


def spoken_before(request: Request, token: str | None) -> Spoken:
    """What both voices said for a request, spoken again where it is forgotten."""
    spoken = bench.recall(request, token)
    if spoken is None:
        for _ in pruning_steps(request, token):
            pass
        spoken = next(step for step in hear_steps(request, token) if isinstance(step, Spoken))
        bench.remember(request, spoken, token)
    return spoken


def pictures(request: Request, token: str | None) -> tuple[Any, Any, Any]:
    """Spectrograms, sparsity by layer, histogram of the weights."""
    spoken = spoken_before(request, token)
    original, pruned = measure_spectrogram(spoken.original), measure_spectrogram(spoken.pruned)
    weights = measure_weights(
        bench.voice(request.reference, request.speaker, token), bench.pruned(request, token)
    )
    return (
        plots.spectrograms(original, pruned, aligned(spoken.original, spoken.pruned)),
        plots.layer_bars(spoken.sparsity[1]),
        plots.weight_histogram(weights),
    )


def csv(table: pd.DataFrame, name: str) -> str:
    """A table as a CSV file for a download button."""
    path = scratch.folder() / f"{name}.csv"
    table.to_csv(path, index=False)
    return str(path)


def free_cut_words(voice: Voice) -> str:
    """What loading alone saved, where the voice came from, and its licence."""
    cut, origin = voice.free_cut, voice.origin
    total = sum(parameter.numel() for parameter in voice.model.parameters())
    words = [
        f"**{plain(voice.name)}**: {total / 1e6:.1f} M parameters run when it speaks, {voice.sampling_rate / 1000:g} kHz."
    ]
    if cut.parameters:
        share = 100 * cut.parameters / (total + cut.parameters)
        words.append(
            f"Free cut: {cut.parameters / 1e6:.1f} M parameters ({cut.bytes / 1e6:.0f} MB, {share:.0f}%) never run at inference"
            " and were left out; the sound is the same to the bit."
        )
    else:
        words.append("Free cut: nothing to save, this export had already left out what never runs.")
    words.append(
        f"Licence of the weights: {origin.licence}."
        if origin.licence
        else "Licence of the weights: not stated; look it up before use."
    )
    return " ".join(words)


def plain(text: str, longest: int = 120) -> str:
    """Text from outside, so that Markdown shows it and does nothing else."""
    return "".join(
        f"\\{c}" if c in "\\`*_{}[]()<>#+!|~$&" else " " if c.isspace() else c
        for c in text[:longest]
    )


def readout(voice: str, spec: PruneSpec, token: str | None) -> str:
    """The live line under the slider: sparsity where the weights alone tell it, else what is known before pruning. Never calibrates."""
    reference = (voice or "").strip()
    if not bench.is_loaded(reference, token):
        return "Sparsity is shown once the voice is loaded."
    found = bench.preview(reference, spec, token)
    if found is None:
        return forecast_words(bench.voice(reference, token=token, device="cpu"), spec)
    shares = [
        f"{tables.PART_NAMES[part]} {100 * found[part]:.1f}%" for part in PARTS if part in found
    ]
    return f"Sparsity: **{100 * found['overall']:.1f}%** of the whole voice  \n{' · '.join(shares)}"


def matrix_choices(request: Request, token: str | None) -> list[str]:
    """The layers whose matrix can be shown: those of the parts that were pruned, what was left alone last."""
    layers = prunable_layers(
        bench.voice(request.reference, request.speaker, token, device="cpu"), request.spec.parts
    )
    matrices = [layer.name for layer in layers if min(layer.shape[:2]) > 1]
    return sorted(matrices, key=request.spec.protects)


def matrix_steps(request: Request, token: str | None, layer: str) -> Iterator[Doing | MatrixPair]:
    """One weight matrix before and after, last."""
    original = bench.voice(request.reference, request.speaker, token, device="cpu")
    pruned = (yield from pruning_steps(request, token))[-1][1].to("cpu")
    left: Survivor | None = Survivor(layer, {})
    if METHODS[request.spec.method].structured and (request.spec.amount or request.spec.shape):
        for found in in_background(lambda tell: choice_for(original, request.spec, progress=tell)):
            if isinstance(found, Doing):
                yield found
            else:
                left = (
                    survivor(original, pruned, found, layer)
                    if layer in matrix_choices(request, token)
                    else None
                )
    yield measure_matrix(
        original, pruned, layer, left.name if left else None, left.kept if left else {}
    )


def rendition_steps(request: Request, token: str | None, index: int) -> Iterator[Doing | Speech]:
    """What the voice of one step of gradual pruning says, with the original's durations; it comes last."""
    yield from bench.hear_step(request, index, spoken_before(request, token).original, token)


def zipped(voice: Voice, how: str) -> str:
    """A voice's folder as a zip file that is named after the voice and what was done to it."""
    from vits_prune.voices.saved import save_voice

    folder, name = scratch.folder(), f"{_file_name(voice.name)}-{how}"
    save_voice(voice, folder / name)
    archive = shutil.make_archive(
        str(folder / f"{name}-voice"), "zip", root_dir=folder, base_dir=name
    )
    shutil.rmtree(folder / name)
    return archive


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60] or "voice"
