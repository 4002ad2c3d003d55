"""The page's tabs for evidence: the curve of quality against sparsity, and the fader."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.measure import measure_sparsity
from vits_prune.measure.quality import FAMILIES, METRICS
from vits_prune.measure.recognition import spoken_language
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import in_words
from vits_prune.studio.forecast import reachable
from vits_prune.studio.jobs import Doing, in_background
from vits_prune.studio.workbench import Request, listens, trace
from vits_prune.study.evaluation import (
    Evaluation,
    Reference,
    Settings,
    evaluate_against,
    prepare_reference,
)
from vits_prune.study.knee import LIMITS, RULE, Knee, Limit, bisect, last_before
from vits_prune.synthesis.speak import speak
from vits_prune.synthesis.texts import load_texts
from vits_prune.ui import steps
from vits_prune.ui.controls import at_amount
from vits_prune.ui.curve import curve, curve_value
from vits_prune.ui.fader import fader, fader_value
from vits_prune.voices.hf_text import split_sentences
from vits_prune.voices.voice import Voice

FADER_AMOUNTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FEWER_AMOUNTS = (0.0, 0.3, 0.5, 0.7, 0.9)
"""For methods that listen first: each takes seconds to a minute."""
MAX_FADER_SECONDS = 12.0
MAX_CURVE_TEXTS = 20

Point = tuple[PruneSpec, float, Evaluation]


class Measured(NamedTuple):
    """What a measured original depends on: the key of the caches."""

    reference: str
    visitor: str
    """Digest of the token that the voice was loaded with."""
    speaker: int | None
    texts: tuple[str, ...]
    settings: Settings


_references: Bounded[Measured, Reference] = Bounded(8, lambda _: 1)
_points: Bounded[tuple[Measured, PruneSpec], Point] = Bounded(400, lambda _: 1)


def curve_tab() -> dict[str, Any]:
    """The Curve tab's components."""
    made: dict[str, Any] = {}
    gr.Markdown(
        "How quality falls as weights go: the voice is pruned by the method on the left at a row of amounts, and measured on held-out "
        "sentences by a speech recogniser and a naturalness predictor, against the original and against the original with other seeds."
    )
    with gr.Row():
        made["curve_texts"] = gr.Slider(
            2, MAX_CURVE_TEXTS, value=5, step=1, label="Sentences", elem_id="curve-texts"
        )
        made["curve_step"] = gr.Dropdown(
            [("every 10%", 0.1), ("every 20%", 0.2), ("every 5%", 0.05)], value=0.1, label="Amounts"
        )
        made["curve_last"] = gr.Slider(
            0.2, 0.9, value=0.6, step=0.1, label="Up to", elem_id="curve-last"
        )
    made["curve_metrics"] = gr.CheckboxGroup(
        list(FAMILIES),
        value=["intelligibility", "naturalness", "rhythm"],
        label="Measures",
        elem_id="curve-metrics",
    )
    made["curve_start"] = gr.Button("Measure the curve", elem_id="curve-start")
    made["curve"] = curve()
    made["curve_csv"] = gr.DownloadButton(
        "Download curve.csv", size="sm", interactive=False, elem_id="curve-csv"
    )
    gr.Markdown(
        "**Knee finder**: the largest amount that stays within limits, by bisection on as many sentences as above."
    )
    with gr.Row():
        made["knee_cer"] = gr.Number(
            2.0,
            label="Character errors: points that may be lost",
            minimum=0,
            step=0.5,
            elem_id="knee-cer",
        )
        made["knee_dnsmos"] = gr.Number(
            0.1,
            label="DNSMOS, overall: how much may be lost",
            minimum=0,
            step=0.05,
            elem_id="knee-dnsmos",
        )
    made["knee_start"] = gr.Button("Find the knee", elem_id="knee-start")
    made["knee_words"] = gr.Markdown("", elem_id="knee-words")
    made["knee"] = gr.Dataframe(
        visible=False, interactive=False, label="Amounts that were tried", elem_id="knee-table"
    )
    made["knee_csv"] = gr.DownloadButton(
        "Download knee.csv", size="sm", interactive=False, visible=False, elem_id="knee-csv"
    )
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
    amounts = [round(step * i, 4) for i in range(round(last / step) + 1)]
    voice = steps.bench.voice(request.reference, request.speaker, token, device="cpu")
    specs = reachable(voice, [at_amount(request.spec, amount) for amount in amounts])
    for points, note, what in measured_points(request, token, specs, int(texts), families):
        if what:
            yield {"status": what}
        else:
            yield _shown(points, note, done=len(points) == len(specs))


def measured_points(
    request: Request,
    token: str | None,
    specs: Sequence[PruneSpec],
    texts: int,
    families: Sequence[str],
    called: str = "point",
) -> Iterator[tuple[list[Point], str, str]]:
    """Points one by one: (all so far, on which texts, what is being done; empty where a point was just added).

    `called` is what the visitor knows a point as.

    Raises:
        InputError: no measure was chosen, or the voice can say nothing of the texts.
    """
    if not families:
        raise InputError("Choose at least one measure.")
    settings = Settings(
        seed=request.seed, metrics=tuple(families), noise_seeds=1, delivery=request.delivery
    )
    voice = steps.bench.voice(request.reference, request.speaker, token)
    said, note = texts_for(voice, request.text, texts)
    points: list[Point] = []
    for reference in measured_original(request, token, voice, said, settings):
        if isinstance(reference, Doing):
            yield points, note, f"{reference.what} … {100 * reference.share:.0f}%"
    for i, spec in enumerate(specs):
        for found in _point(
            _key(request, token, voice, said, settings), reference, request, spec, token
        ):
            if isinstance(found, Doing):
                at = f"{called} {i + 1} of {len(specs)}, {in_words(spec)}"
                yield points, note, f"{at}: {found.what} … {100 * found.share:.0f}%"
            else:
                points.append(found)
        yield points, note, ""


def _key(
    request: Request, token: str | None, voice: Voice, said: tuple[str, ...], settings: Settings
) -> Measured:
    return Measured(request.reference, trace(token), voice.speaker, said, settings)


def measured_original(
    request: Request, token: str | None, voice: Voice, said: tuple[str, ...], settings: Settings
) -> Iterator[Doing | Reference]:
    """The original measured on these texts, from the cache where it was measured before; it comes last."""
    key = _key(request, token, voice, said, settings)
    reference = _references.get(key)
    if reference is not None:
        yield reference
        return
    yield from in_background(
        lambda tell: _references.get_or_make(
            key,
            lambda: prepare_reference(voice, said, settings, progress=tell),
            lambda: tell("waiting for another measurement of the original", 0.0),
        )
    )


def knee_steps(
    request: Request, token: str | None, texts: float, cer: float | None, dnsmos: float | None
) -> Iterator[dict[str, Any]]:
    """Bisect the amount within the limits; the last update shows what was tried.

    Args:
        request: whose voice, scope and parts.
        token: the visitor's.
        texts: how many sentences.
        cer: points of character error rate that may be lost, None for no such limit.
        dnsmos: how far DNSMOS may fall, None for no such limit.
    """
    limits = [Limit("cer", float(cer) / 100)] if cer is not None else []
    limits += [Limit("dnsmos_ovrl", -float(dnsmos))] if dnsmos is not None else []
    if not limits:
        raise InputError(
            "Give at least one limit: how many points of character errors, or how much DNSMOS may be lost."
        )
    voice = steps.bench.voice(request.reference, request.speaker, token)
    said, note = texts_for(voice, request.text, int(texts))
    settings = Settings(
        seed=request.seed,
        noise_seeds=0,
        delivery=request.delivery,
        metrics=tuple({METRICS[one.metric].family for one in limits}),
    )
    for reference in measured_original(request, token, voice, said, settings):
        if isinstance(reference, Doing):
            yield {"status": f"{reference.what} … {100 * reference.share:.0f}%"}
    for family in settings.metrics:
        if family not in reference.listener.families:
            raise InputError(
                reference.unmeasured.get(family)
                or f"This voice cannot be measured for {family}: leave its limit empty."
            )
    for found in in_background(
        lambda tell: _bisected(request, token, voice, reference, limits, tell)
    ):
        if isinstance(found, Doing):
            yield {"status": f"looking for the knee: {found.what} … {100 * found.share:.0f}%"}
    rows = found.rows()
    rule = RULE.replace(" (with --strict: its whole 95% interval)", "")
    words = f"**Knee: amount {found.amount:.2f}** ({in_words(found.spec, amount=False)}, {note}). {rule}"
    yield {
        "knee_words": words,
        "knee": gr.Dataframe(
            _tried(rows), visible=True, column_widths=["90px", "200px", "90px", "220px", "200px"]
        ),
        "knee_csv": gr.DownloadButton(
            value=steps.csv(pd.DataFrame(rows), "knee"), interactive=True, visible=True
        ),
        "status": f"Done. The largest amount within the limits is {found.amount:.2f}.",
    }


def _bisected(
    request: Request,
    token: str | None,
    voice: Voice,
    reference: Reference,
    limits: list[Limit],
    tell: Any,
) -> Knee:
    """The largest amount of the request's own spec that keeps the limits; an amount that the spec cannot reach counts as broken."""
    refused: list[InputError] = []

    def measure(spec: PruneSpec) -> Any:
        at = f"amount {spec.amount:.2f}"
        try:
            pruned = steps.bench.pruned(
                dataclasses.replace(request, spec=spec),
                token,
                lambda what, share: tell(f"{at}: {what}", share),
            )
        except InputError as error:
            refused.append(error)
            return {}
        return evaluate_against(
            reference, pruned, progress=lambda what, share: tell(f"{at}: {what}", share)
        ).figures

    spec, tried = bisect(at_amount(request.spec, 0.0), limits, measure)
    if refused and len(refused) == len(tried):  # it was not the amounts
        raise refused[-1]
    return Knee(
        voice.name, spec, tuple(limits), False, tried, len(reference.texts), reference.settings.seed
    )


def _tried(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """What the bisection tried, to be read: the file has the numbers as they are."""
    shown = []
    for row in rows:
        ends = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
        shown.append({
            "amount": f"{row['amount']:.2f}",
            "metric": METRICS[row["metric"]].title,
            "limit": f"{row['limit']:+g}",
            "change, 95% interval": "not measurable" if row["value"] is None else f"{row['value']:+.3f}{ends}",
            "limit is": ("kept" if row["kept"] else "broken") + ("" if row["certain"] else ", not certain"),
        })  # fmt: skip
    return pd.DataFrame(shown)


def _point(
    key: Measured, reference: Reference, request: Request, spec: PruneSpec, token: str | None
) -> Iterator[Doing | Point]:
    """One measured point, from the cache where it was measured before."""
    known = _points.get((key, spec))
    if known is not None:
        yield known
        return
    pruned = (yield from steps.pruning_steps(dataclasses.replace(request, spec=spec), token))[-1][1]
    weights = measure_sparsity(
        steps.bench.voice(request.reference, request.speaker, token)
    ).weights()
    yield from in_background(
        lambda tell: _points.get_or_make(
            (key, spec),
            lambda: (
                spec,
                _taken(weights, pruned),
                evaluate_against(reference, pruned, progress=tell),
            ),
            lambda: tell("waiting for another measurement of this point", 0.0),
        )
    )


def _taken(weights: int, pruned: Voice) -> float:
    """Share of the original's weights that are zero or gone, 0 to 1."""
    left = measure_sparsity(pruned)
    return (
        left.overall if left.weights() == weights else 1 - (left.weights() - left.zeros()) / weights
    )


def texts_for(voice: Voice, text: str, count: int) -> tuple[tuple[str, ...], str]:
    """Sentences to measure on: the built-in ones for an English voice, else the visitor's own."""
    if spoken_language(voice) == "en":
        return load_texts(count), f"{count} held-out Harvard sentences"
    return tuple(split_sentences(text))[
        :count
    ], "the sentences of your own text, since the built-in ones are English"


def _shown(points: list[Point], note: str, done: bool) -> dict[str, Any]:
    knee = knee_of(points)
    value = curve_value(
        points,
        {in_words(points[0][0], amount=False): knee} if knee is not None else {},
        _hint(points, knee, note),
    )
    rows = [
        {
            "method": s.method,
            "scope": s.scope,
            "parts": "+".join(s.parts),
            "amount": s.amount,
            "sparsity": found,
            **e.to_row(),
        }
        for s, found, e in points
    ]
    table = steps.csv(pd.DataFrame(rows), "curve")
    return {
        "curve": value,
        "curve_csv": gr.DownloadButton(value=table, interactive=True),
        "status": "Done. Press a point to hear it." if done else f"{len(points)} points measured …",
    }


def _hint(points: list[Point], knee: float | None, note: str) -> str:
    left_out = " ".join(points[0][2].unmeasured.values())
    where = (
        ""
        if knee is None
        else f"Knee: the last point with at most 2 points more character errors and 0.1 less DNSMOS, at {knee:.0%}. "
    )
    caveat = (
        "DNSMOS was trained on noisy speech, not on synthesis. "
        if "dnsmos_ovrl" in points[0][2].figures
        else ""
    )
    return f"{where}Measured on {note}; bars are 95% intervals. {caveat}{left_out}".strip()


def knee_of(points: list[Point]) -> float | None:
    """Sparsity of the last point before a limit of LIMITS is lost; None where neither is measured or none is lost."""
    limits = [limit for limit in LIMITS if limit.metric in points[0][2].figures]
    rows = [{"sparsity": sparsity, **evaluation.to_row()} for _, sparsity, evaluation in points]
    knee = last_before(rows, lambda row: any(limit.breaks(row) for limit in limits))
    return knee["sparsity"] if knee else None


def fader_steps(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    """Speak one text at a row of amounts with the original's durations; the fader appears once all are spoken."""
    voice = steps.bench.voice(request.reference, request.speaker, token)
    original = speak(voice, request.text, request.seed, request.delivery)
    if original.audio_seconds > MAX_FADER_SECONDS:
        raise InputError(
            f"The fader loops one sentence of at most {MAX_FADER_SECONDS:.0f} seconds, and this is longer: shorten the text."
        )
    wanted = FEWER_AMOUNTS if listens(request.spec) else FADER_AMOUNTS
    amounts = [
        spec.amount
        for spec in reachable(voice, [at_amount(request.spec, amount) for amount in wanted])
    ]
    specs = [at_amount(request.spec, amount) for amount in amounts]
    known = _measured_points(request, token, voice, specs)
    weights, speeches, numbers = measure_sparsity(voice).weights(), [], []
    for i, spec in enumerate(specs):
        at = f"{in_words(spec)}, {i + 1} of {len(amounts)}"
        pruned = voice
        for found in steps.bench.pruning(dataclasses.replace(request, spec=spec), token):
            if isinstance(found, Doing):
                yield {"status": f"{at}: {found.what} … {100 * found.share:.0f}%"}
            else:
                pruned = found[-1][1]
        yield {"status": f"{at}: speaking …"}
        speeches.append(
            speak(pruned, request.text, request.seed, request.delivery, timing=original)
        )
        word = "zeros or gone" if METHODS[spec.method].structured else "zeros"
        numbers.append(
            {word: f"{100 * _taken(weights, pruned):.1f}%", **_measured_numbers(known.get(spec))}
        )
    yield {
        "fader": fader_value(amounts, speeches, numbers),
        "status": "Ready: press play in the fader and drag.",
    }


def _measured_points(
    request: Request, token: str | None, voice: Voice, specs: Sequence[PruneSpec]
) -> dict[PruneSpec, Point]:
    """Return what the curve last found for this visitor's voice, speaker, text and delivery, by spec."""
    for (key, spec), _ in reversed(_points.items()):
        settings = dataclasses.replace(key.settings, seed=request.seed, delivery=request.delivery)
        same_voice = spec in specs and key == _key(request, token, voice, key.texts, settings)
        if same_voice and key.texts == texts_for(voice, request.text, len(key.texts))[0]:
            return {one: point for (its_key, one), point in _points.items() if its_key == key}
    return {}


def _measured_numbers(point: Point | None) -> dict[str, str]:
    if point is None:
        return {}
    names = {"cer": "CER", "wer": "WER", "dnsmos_ovrl": "DNSMOS", "duration_ratio": "duration ×"}
    return {
        names[name]: f"{figure.pruned.value:.2f}"
        for name, figure in point[2].figures.items()
        if name in names
    }
