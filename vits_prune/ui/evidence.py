"""The page's tabs for evidence: the curve of quality against sparsity, and the fader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.errors import InputError
from vits_prune.evaluation import Evaluation, Reference, Settings, evaluate_against, prepare_reference
from vits_prune.measure import measure_sparsity
from vits_prune.measure.quality import FAMILIES
from vits_prune.measure.recognition import spoken_language
from vits_prune.pruning import PruneSpec
from vits_prune.sweep.knee import LIMITS
from vits_prune.synthesis import speak
from vits_prune.texts import load_texts
from vits_prune.ui import steps
from vits_prune.ui.background import in_background
from vits_prune.ui.curve import curve, curve_value
from vits_prune.ui.fader import fader, fader_value
from vits_prune.voices.hf_text import split_sentences
from vits_prune.workbench import Bounded, Doing, Request, trace

FADER_AMOUNTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MAX_FADER_SECONDS = 12.0
MAX_CURVE_TEXTS = 20

Point = tuple[PruneSpec, float, Evaluation]
_references: Bounded[tuple[Any, ...], Reference] = Bounded(8, lambda _: 1)
_points: Bounded[tuple[Any, ...], Point] = Bounded(400, lambda _: 1)


def curve_tab() -> dict[str, Any]:
    """The Curve tab's components."""
    made: dict[str, Any] = {}
    gr.Markdown(
        "How quality falls as weights go: the voice on the left is pruned at a row of amounts and measured on held-out sentences by a "
        "speech recogniser and a naturalness predictor, against the original and against the original with other seeds."
    )
    with gr.Row():
        made["curve_texts"] = gr.Slider(2, MAX_CURVE_TEXTS, value=5, step=1, label="Sentences", elem_id="curve-texts")
        made["curve_step"] = gr.Dropdown([("every 10%", 0.1), ("every 20%", 0.2), ("every 5%", 0.05)], value=0.1, label="Amounts")
        made["curve_last"] = gr.Slider(0.2, 0.9, value=0.6, step=0.1, label="Up to", elem_id="curve-last")
    made["curve_metrics"] = gr.CheckboxGroup(list(FAMILIES), value=["intelligibility", "naturalness", "rhythm"], label="Measures")
    made["curve_start"] = gr.Button("Measure the curve", elem_id="curve-start")
    made["curve"] = curve()
    made["curve_csv"] = gr.DownloadButton("Download curve.csv", size="sm", interactive=False, elem_id="curve-csv")
    return made


def fader_tab() -> dict[str, Any]:
    """The Fader tab's components."""
    made: dict[str, Any] = {}
    gr.Markdown(
        "One sentence, spoken at a row of amounts with the original's durations, so that all renditions are sample-aligned: it loops, and "
        "as you drag, one fades into the next."
    )
    made["fader_start"] = gr.Button("Speak at a row of amounts", elem_id="fader-start")
    made["fader"] = fader()
    return made


def curve_steps(
    request: Request, token: str | None, texts: float, step: float, last: float, families: list[str]
) -> Iterator[dict[str, Any]]:
    """Measure point after point; each update shows all points so far."""
    if not families:
        raise InputError("Choose at least one measure.")
    settings = Settings(seed=request.seed, metrics=tuple(families), noise_seeds=1, delivery=request.delivery)
    voice = steps.bench.voice(request.reference, request.speaker, token)
    said, note = _texts(voice, request.text, int(texts))
    key = (request.reference, trace(token), voice.speaker, said, settings)
    reference = _references.get(key)
    if reference is None:
        for found in in_background(lambda tell: prepare_reference(voice, said, settings, on_step=tell)):
            if isinstance(found, Doing):
                yield {"status": f"{found.what} … {100 * found.share:.0f}%"}
            else:
                reference = found
        _references.put(key, reference)
    amounts = [round(step * i, 4) for i in range(round(last / step) + 1)]
    points: list[Point] = []
    for i, amount in enumerate(amounts):
        spec = PruneSpec(scope=request.spec.scope, amount=amount, parts=request.spec.parts)
        for found in _point(key, reference, request, spec, token):
            if isinstance(found, Doing):
                yield {"status": f"{amount:.0%}: {found.what} … point {i + 1} of {len(amounts)}"}
            else:
                points.append(found)
        yield _shown(points, note, done=i + 1 == len(amounts))


def _point(key: tuple[Any, ...], reference: Reference, request: Request, spec: PruneSpec, token: str | None) -> Iterator[Doing | Point]:
    """One measured point, from the cache where it was measured before."""
    known = _points.get((*key, spec))
    if known is None:
        from vits_prune.pruning import prune

        pruned = prune(steps.bench.voice(request.reference, request.speaker, token), spec)
        for found in in_background(lambda tell: evaluate_against(reference, pruned, on_step=tell)):
            if isinstance(found, Doing):
                yield found
            else:
                known = (spec, measure_sparsity(pruned).overall, found)
        _points.put((*key, spec), known)
    yield known


def _texts(voice: Any, text: str, count: int) -> tuple[tuple[str, ...], str]:
    """Sentences to measure on: the built-in ones for an English voice, else the visitor's own."""
    if spoken_language(voice) == "en":
        return load_texts(count), f"{count} held-out Harvard sentences"
    return tuple(split_sentences(text))[:count], "the sentences of your own text, since the built-in ones are English"


def _shown(points: list[Point], note: str, done: bool) -> dict[str, Any]:
    knee = knee_of(points)
    value = curve_value(points, {points[0][0].scope: knee} if knee is not None else {}, _hint(points, knee, note))
    rows = [{"scope": s.scope, "parts": "+".join(s.parts), "amount": s.amount, "sparsity": found, **e.to_row()} for s, found, e in points]
    table = steps.csv(pd.DataFrame(rows), "curve")
    return {
        "curve": value,
        "curve_csv": gr.DownloadButton(value=table, interactive=True),
        "status": "Done. Press a point to hear it." if done else f"{len(points)} points measured …",
    }


def _hint(points: list[Point], knee: float | None, note: str) -> str:
    left_out = " ".join(points[0][2].unmeasured.values())
    where = "" if knee is None else f"Knee: the last point with at most 2 points more character errors and 0.1 less DNSMOS, at {knee:.0%}. "
    caveat = "DNSMOS was trained on noisy speech, not on synthesis. " if "dnsmos_ovrl" in points[0][2].figures else ""
    return f"{where}Measured on {note}; bars are 95% intervals. {caveat}{left_out}".strip()


def knee_of(points: list[Point]) -> float | None:
    """Sparsity of the last point before a limit of LIMITS is lost; None where neither is measured or none is lost."""
    last = None
    for _, sparsity, evaluation in points:
        measured = [limit for limit in LIMITS if limit.metric in evaluation.figures]
        if not measured:
            return None
        changes = [(limit, evaluation.figures[limit.metric].difference) for limit in measured]
        if any(change and not limit.keeps(change.value) for limit, change in changes):
            return last
        last = sparsity
    return None


def fader_steps(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    """Speak one text at a row of amounts with the original's durations; the fader appears once all are spoken."""
    voice = steps.bench.voice(request.reference, request.speaker, token)
    delivery = {name: getattr(request.delivery, name) for name in ("speaking_rate", "noise_scale", "noise_scale_duration")}
    original = speak(voice, request.text, request.seed, **delivery)
    if original.audio_seconds > MAX_FADER_SECONDS:
        raise InputError(f"The fader loops one sentence of at most {MAX_FADER_SECONDS:.0f} seconds, and this is longer: shorten the text.")
    from vits_prune.pruning import prune

    speeches, numbers = [], []
    for i, amount in enumerate(FADER_AMOUNTS):
        yield {"status": f"speaking at {amount:.0%} … {i + 1} of {len(FADER_AMOUNTS)}"}
        spec = PruneSpec(scope=request.spec.scope, amount=amount, parts=request.spec.parts)
        pruned = prune(voice, spec)
        speeches.append(speak(pruned, request.text, request.seed, timing=original, **delivery))
        numbers.append({"zeros": f"{100 * measure_sparsity(pruned).overall:.1f}%", **_measured_numbers(request, spec)})
    yield {"fader": fader_value(FADER_AMOUNTS, speeches, numbers), "status": "Ready: press play in the fader and drag."}


def _measured_numbers(request: Request, spec: PruneSpec) -> dict[str, str]:
    """What the curve found for this voice and spec, where it was measured."""
    found = next((point for key, point in _points.items() if key[0] == request.reference and key[-1] == spec), None)
    if found is None:
        return {}
    names = {"cer": "CER", "wer": "WER", "dnsmos_ovrl": "DNSMOS", "duration_ratio": "duration ×"}
    return {names[name]: f"{figure.pruned.value:.2f}" for name, figure in found[2].figures.items() if name in names}
