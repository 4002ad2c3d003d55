"""Quality against pruning: the curve, the sensitivity by part, the knee, and the fader."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import soundfile

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.measure import measure_sparsity
from vits_prune.measure.quality import METRICS, Figure
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import in_words
from vits_prune.studio import workbench
from vits_prune.studio.descriptions import check_feasible
from vits_prune.studio.request import Request, at_amount
from vits_prune.studio.workbench import listens, trace
from vits_prune.study.evaluation import (
    Evaluation,
    Reference,
    Settings,
    evaluate_against,
    prepare_reference,
)
from vits_prune.study.knee import LIMITS, Knee, Limit, bisect, compared, last_before
from vits_prune.study.sweep_grid import DEFAULT_AMOUNTS, part_points
from vits_prune.study.tables import PART_NAMES
from vits_prune.synthesis.speak import Speech, speak
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.hf_text import split_sentences
from vits_prune.voices.language import spoken_language
from vits_prune.voices.voice import PARTS, Voice

FADER_AMOUNTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FEWER_AMOUNTS = (0.0, 0.3, 0.5, 0.7, 0.9)
"""For methods that listen first: each amount takes seconds to a minute."""
MAX_FADER_SECONDS = 12.0
_FADER_NUMBERS = {
    "cer": "CER",
    "wer": "WER",
    "dnsmos_ovrl": "DNSMOS",
    "duration_ratio": "duration ×",
}


class Point(NamedTuple):
    """One measured pruning."""

    spec: PruneSpec
    sparsity: float
    """Share of the original's weights that are zero or gone, 0 to 1."""
    evaluation: Evaluation


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


@dataclass(frozen=True)
class Points:
    """The points that are measured so far."""

    points: tuple[Point, ...]
    total: int
    note: str
    """On which sentences they are measured."""

    @property
    def complete(self) -> bool:
        return len(self.points) == self.total

    @property
    def unmeasured(self) -> str:
        """What cannot be measured and why, in sentences."""
        return " ".join(self.points[0].evaluation.unmeasured.values())

    @property
    def knee(self) -> float | None:
        """Sparsity of the last point before a limit of LIMITS is lost, None where none is."""
        limits = [one for one in LIMITS if one.metric in self.points[0].evaluation.figures]
        rows = [{"sparsity": one.sparsity, **one.evaluation.to_row()} for one in self.points]
        knee = last_before(rows, lambda row: any(limit.breaks(row) for limit in limits))
        return knee["sparsity"] if knee else None

    def table(self, parts: str = "parts") -> pd.DataFrame:
        """Return one row a point; `parts` names the column of the pruned parts."""
        return pd.DataFrame([
            {
                "method": one.spec.method,
                "scope": one.spec.scope,
                parts: "+".join(one.spec.parts),
                "amount": one.spec.amount,
                "sparsity": one.sparsity,
                **one.evaluation.to_row(),
            }
            for one in self.points
        ])  # fmt: skip


def texts_for(voice: Voice, text: str, count: int) -> tuple[tuple[str, ...], str]:
    """Return sentences to measure on, and what they are."""
    if spoken_language(voice) == "en":
        return load_texts(count), f"{count} held-out Harvard sentences"
    own = tuple(split_sentences(text))[:count]
    return own, "the sentences of your own text, since the built-in ones are English"


def measured_original(
    request: Request,
    token: str | None,
    voice: Voice,
    texts: tuple[str, ...],
    settings: Settings,
    progress: Progress = SILENT,
) -> Reference:
    """Return the original measured on these texts, from the cache where it was measured before."""
    return _references.get_or_make(
        _key(request, token, voice, texts, settings),
        lambda: prepare_reference(voice, texts, settings, progress=progress),
        lambda: progress.report("waiting for another measurement of the original", 0.0),
    )


def curve_points(
    request: Request,
    token: str | None,
    texts: int,
    step: float,
    last: float,
    families: Sequence[str],
    progress: Progress = SILENT,
) -> Iterator[Points]:
    """Measure the request's method at amounts from 0 to `last`; yield all Points so far each time.

    Args:
        request: whose voice and spec.
        token: the visitor's.
        texts: how many sentences.
        step: from amount to amount.
        last: the last amount.
        families: of metrics.
        progress: gets the progress of each point.

    Raises:
        InputError: no measure was chosen, or the voice cannot say the texts.
    """
    amounts = [round(step * i, 4) for i in range(round(last / step) + 1)]
    voice = workbench.bench.voice(request.reference, request.speaker, token, device="cpu")
    specs = _reachable(voice, [at_amount(request.spec, amount) for amount in amounts])
    yield from _measure(request, token, specs, texts, families, "point", progress)


def part_cells(
    request: Request,
    token: str | None,
    texts: int,
    amounts: Sequence[float],
    families: Sequence[str],
    progress: Progress = SILENT,
) -> Iterator[Points]:
    """Measure each part pruned alone at each amount; arguments and errors as in `curve_points`."""
    wanted = [
        at_amount(request.spec, one.spec.amount, one.spec.parts) for one in part_points(amounts)
    ]
    voice = workbench.bench.voice(request.reference, request.speaker, token, device="cpu")
    specs = _reachable(voice, wanted)
    lost = [
        PART_NAMES[part]
        for part in PARTS
        if sum(spec.parts == (part,) for spec in specs) < len(amounts)
    ]
    more = "; left out where the method protects it or it cannot lose so much: " + ", ".join(lost)
    for found in _measure(request, token, specs, texts, families, "cell", progress):
        yield dataclasses.replace(found, note=found.note + more) if lost else found


def sensitivity_amounts(amounts: Sequence[float]) -> list[float]:
    """Return the chosen amounts in order, the usual ones where none is chosen."""
    return sorted(float(amount) for amount in amounts) or list(DEFAULT_AMOUNTS)


def _reachable(voice: Voice, specs: Sequence[PruneSpec]) -> list[PruneSpec]:
    """Return the specs that the voice can be pruned by. Raises InputError if there is none."""
    found, reasons = [], []
    for spec in specs:
        try:
            check_feasible(voice, spec)
            found.append(spec)
        except InputError as error:
            reasons.append(error)
    if reasons and not found:
        raise reasons[0]
    return found


def _measure(
    request: Request,
    token: str | None,
    specs: Sequence[PruneSpec],
    texts: int,
    families: Sequence[str],
    what: str,
    progress: Progress,
) -> Generator[Points, None, None]:
    if not families:
        raise InputError("Choose at least one measure.")
    settings = Settings(
        seed=request.seed, metrics=tuple(families), noise_seeds=1, delivery=request.delivery
    )
    voice = workbench.bench.voice(request.reference, request.speaker, token)
    said, note = texts_for(voice, request.text, texts)
    reference = measured_original(request, token, voice, said, settings, progress)
    key, points = _key(request, token, voice, said, settings), []
    for i, spec in enumerate(specs):
        at = f"{what} {i + 1} of {len(specs)}, {in_words(spec)}: "
        told = progress.part(0.0, 1.0, at)
        points.append(_point(key, reference, request.at(spec), token, told))
        yield Points(tuple(points), len(specs), note)


def _key(
    request: Request, token: str | None, voice: Voice, texts: tuple[str, ...], settings: Settings
) -> Measured:
    return Measured(request.reference, trace(token), voice.speaker, texts, settings)


def _point(
    key: Measured, reference: Reference, request: Request, token: str | None, progress: Progress
) -> Point:
    """Return one measured point, from the cache where it was measured before."""

    def make() -> Point:
        pruned = workbench.bench.pruned(request, token, progress)
        voice = workbench.bench.voice(request.reference, request.speaker, token)
        sparsity = _taken(measure_sparsity(voice).weights(), pruned)
        return Point(request.spec, sparsity, evaluate_against(reference, pruned, progress=progress))

    return _points.get_or_make(
        (key, request.spec),
        make,
        lambda: progress.report("waiting for another measurement of this point", 0.0),
    )


def _taken(weights: int, pruned: Voice) -> float:
    """Return the share of the original's weights that are zero or gone, 0 to 1."""
    left = measure_sparsity(pruned)
    if left.weights() == weights:
        return left.overall
    return 1 - (left.weights() - left.zeros()) / weights


# The knee


def find_knee(
    request: Request,
    token: str | None,
    texts: int,
    limits: Sequence[Limit],
    progress: Progress = SILENT,
) -> tuple[Knee, str]:
    """Bisect the amount of the request's own spec within limits; return the knee and on what.

    Raises:
        InputError: there is no limit, one cannot be measured, or no amount can be reached.
    """
    if not limits:
        raise InputError(
            "Give at least one limit: how many points of character errors, or how much DNSMOS may"
            " be lost."
        )
    voice = workbench.bench.voice(request.reference, request.speaker, token)
    said, note = texts_for(voice, request.text, texts)
    families = tuple({METRICS[one.metric].family for one in limits})
    settings = Settings(
        seed=request.seed, noise_seeds=0, delivery=request.delivery, metrics=families
    )
    reference = measured_original(request, token, voice, said, settings, progress)
    for family in families:
        if family not in reference.listener.families:
            raise InputError(
                reference.unmeasured.get(family)
                or f"This voice cannot be measured for {family}: leave its limit empty."
            )
    refused: list[InputError] = []

    def measure(spec: PruneSpec) -> Any:
        told = progress.part(0.0, 1.0, f"looking for the knee: amount {spec.amount:.2f}: ")
        try:
            pruned = workbench.bench.pruned(request.at(spec), token, told)
        except InputError as error:  # it cannot lose so much: the limit counts as broken
            refused.append(error)
            return {}
        return evaluate_against(reference, pruned, progress=told).figures

    spec, tried = bisect(at_amount(request.spec, 0.0), limits, measure)
    if refused and len(refused) == len(tried):  # it was not the amounts
        raise refused[-1]
    return Knee(voice.name, spec, tuple(limits), False, tried, len(said), settings.seed), note


def tried_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return what a bisection tried, in words."""

    def change(row: dict[str, Any]) -> str:
        if row["value"] is None:
            return "not measurable"
        ends = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
        return f"{row['value']:+.3f}{ends}"

    return pd.DataFrame([
        {
            "amount": f"{row['amount']:.2f}",
            "metric": METRICS[row["metric"]].title,
            "limit": f"{row['limit']:+g}",
            "change, 95% interval": change(row),
            "limit is": ("kept" if row["kept"] else "broken")
            + ("" if row["certain"] else ", not certain"),
        }
        for row in rows
    ])  # fmt: skip


# The fader


def fader_renditions(
    request: Request, token: str | None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Speak one text at a row of amounts with the original's durations; return the fader's value.

    Raises:
        InputError: the text is too long to loop.
    """
    voice = workbench.bench.voice(request.reference, request.speaker, token)
    original = speak(voice, request.text, request.seed, request.delivery)
    if original.audio_seconds > MAX_FADER_SECONDS:
        raise InputError(
            f"The fader loops one sentence of at most {MAX_FADER_SECONDS:.0f} seconds, and this is"
            " longer: shorten the text."
        )
    wanted = FEWER_AMOUNTS if listens(request.spec) else FADER_AMOUNTS
    specs = _reachable(voice, [at_amount(request.spec, amount) for amount in wanted])
    known = measured_before(request, token, voice, specs)
    weights, points = measure_sparsity(voice).weights(), []
    for i, spec in enumerate(specs):
        at = f"{in_words(spec)}, {i + 1} of {len(specs)}: "
        told = progress.part(i / len(specs), (i + 1) / len(specs), at)
        pruned = workbench.bench.pruned(request.at(spec), token, told)
        told.report("speaking", 0.5)
        speech = speak(pruned, request.text, request.seed, request.delivery, timing=original)
        word = "zeros or gone" if METHODS[spec.method].structured else "zeros"
        numbers = {word: f"{100 * _taken(weights, pruned):.1f}%"}
        for name, figure in known[spec].evaluation.figures.items() if spec in known else ():
            if name in _FADER_NUMBERS:
                numbers[_FADER_NUMBERS[name]] = f"{figure.pruned.value:.2f}"
        points.append({"amount": round(spec.amount, 4), "wav": _wav(speech), "numbers": numbers})
    hint = "Drag, or use the arrow keys: the sentence loops and pruning is heard as one motion."
    return {"points": points, "hint": hint}


def measured_before(
    request: Request, token: str | None, voice: Voice, specs: Sequence[PruneSpec]
) -> dict[PruneSpec, Point]:
    """Return what the curve last found for this visitor's voice, speaker, text and delivery."""
    for (key, spec), _ in reversed(_points.items()):
        settings = dataclasses.replace(key.settings, seed=request.seed, delivery=request.delivery)
        same_voice = spec in specs and key == _key(request, token, voice, key.texts, settings)
        if same_voice and key.texts == texts_for(voice, request.text, len(key.texts))[0]:
            return {one: point for (its_key, one), point in _points.items() if its_key == key}
    return {}


def _wav(speech: Speech) -> str:
    """Return a 16-bit WAV as base64, to travel inside the component's value."""
    file = io.BytesIO()
    soundfile.write(file, speech.pcm16(), speech.sampling_rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


# What the page draws


def curve_value(found: Points) -> dict[str, Any]:
    """Return Points as the curve's picture: one line for each method and scope."""
    points, knee = found.points, found.knee
    metrics: dict[str, dict[str, Any]] = {}
    series: dict[str, dict[str, Any]] = {}
    for spec, sparsity, evaluation in points:
        figures = evaluation.figures
        for name, figure in figures.items():
            metric = METRICS[name]
            metrics.setdefault(
                name, {"title": metric.title, "unit": metric.unit, "floor": _band(figure)}
            )
        words = in_words(spec, amount=False)
        line = series.setdefault(words, {"name": words, "points": [], "knee": None})
        line["points"].append({
            "spec": spec.to_dict(),
            "amount": spec.amount,
            "sparsity": sparsity,
            "figures": {
                name: [one.pruned.value, one.pruned.low, one.pruned.high]
                for name, one in figures.items()
            },
            "verdicts": {name: figure.verdict for name, figure in figures.items()},
        })  # fmt: skip
    hint = f"Measured on {found.note}; bars are 95% intervals. "
    if "dnsmos_ovrl" in metrics:
        hint += "DNSMOS was trained on noisy speech, not on synthesis. "
    if knee is not None:
        series[in_words(points[0].spec, amount=False)]["knee"] = knee
        hint = (
            "Knee: the last point with at most 2 points more character errors and 0.1 less DNSMOS,"
            f" at {knee:.0%}. {hint}"
        )
    structured = any(METHODS[one.spec.method].structured for one in points)
    axis = "weights that are zero or gone, of the whole voice"
    return {
        "series": list(series.values()),
        "metrics": metrics,
        "hint": f"{hint}{found.unmeasured}".strip(),
        "axis": axis if structured else "sparsity of the whole voice",
    }


def heat_value(found: Points, amounts: Sequence[float]) -> dict[str, Any]:
    """Return Points of one part each as the heat map: one row a part, one column an amount."""
    metrics: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for spec, _, evaluation in found.points:
        (part,) = spec.parts
        intervals = {name: compared(figure) for name, figure in evaluation.figures.items()}
        changes = {name: one.value for name, one in intervals.items() if one}
        for name in changes:
            metric = METRICS[name]
            distance = metric.kind == "distance"
            title = f"{metric.title} ({metric.unit})" if metric.unit else metric.title
            metrics[name] = {
                "title": title if distance else f"{title}, change from the original",
                "better": metric.better,
                "distance": distance,
            }
        empty = {"part": part, "name": PART_NAMES[part], "cells": [None] * len(amounts)}
        rows.setdefault(part, empty)["cells"][list(amounts).index(spec.amount)] = {
            "spec": spec.to_dict(),
            "changes": changes,
            "verdicts": {name: evaluation.figures[name].verdict for name in changes},
        }
    hint = (
        f"Measured on {found.note}. Darker is worse, within the metric shown; a dot: a difference"
        f" is claimed. {found.unmeasured}"
    )
    return {
        "scope": found.points[0].spec.scope,
        "rows": list(rows.values()),
        "amounts": list(amounts),
        "metrics": metrics,
        "hint": hint.strip(),
    }


def _band(figure: Figure) -> list[float] | None:
    """Return the noise floor on the axis of the metric itself."""
    if figure.floor is None:
        return None
    centre = figure.original.value if figure.original else figure.metric.neutral
    return [centre + figure.floor.low, centre + figure.floor.high]
