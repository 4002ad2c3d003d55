"""Quality against pruning: the curve, the sensitivity by part, the knee, and one voice in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.measure import measure_sparsity
from vits_prune.measure.predictors import INSTALL
from vits_prune.measure.quality import METRICS, Figure
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.spec import in_words
from vits_prune.studio import workbench
from vits_prune.studio.descriptions import LABELS, check_feasible, figure_words
from vits_prune.studio.renditions import giving_way, measuring
from vits_prune.studio.request import Request, at_amount
from vits_prune.studio.workbench import trace
from vits_prune.study.evaluation import (
    Evaluation,
    Reference,
    Settings,
    evaluate_against,
    prepare_reference,
)
from vits_prune.study.knee import (
    Knee,
    Limit,
    bisect,
    check_measured,
    last_before,
    seeds_for,
    usual_limits,
)
from vits_prune.study.sweep_grid import DEFAULT_AMOUNTS, Point, layer_points
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.sentences import split_sentences
from vits_prune.voices.voice import PARTS, Voice, spoken_language

FAMILIES = ("intelligibility", "naturalness", "closeness", "speaker")
_NUMBERS = (
    *("original", "pruned", "change", "change, low", "change, high"),
    *("noise floor, low", "noise floor, high", "margin"),
)
_LONGEST_PAUSE, _WAITING = 5.0, "waiting to measure"
COLUMNS = [*("metric", "unit", *_NUMBERS, "verdict", "in words", "sentences", "claim", "signature")]


class CurvePoint(NamedTuple):
    """One measured pruning."""

    spec: PruneSpec
    sparsity: float
    """Share of the original's weights that are zero or gone, 0 to 1."""
    evaluation: Evaluation
    layer: str | None = None
    """The only layer that was pruned; None for all of the spec's parts."""


class MeasurementKey(NamedTuple):
    """What a measured original depends on: the key of the caches."""

    reference: str
    visitor: str
    """Digest of the token that the voice was loaded with."""
    speaker: int | None
    texts: tuple[str, ...]
    settings: Settings


_references: Bounded[MeasurementKey, Reference] = Bounded(8, lambda _: 1)
_points: Bounded[tuple[Any, ...], CurvePoint] = Bounded(400, lambda _: 1)


@dataclass(frozen=True)
class Points:
    """The points that are measured so far."""

    points: tuple[CurvePoint, ...]
    total: int
    note: str
    """On which sentences they are measured."""
    left_out: tuple[Point, ...] = ()
    """By what the voice cannot be pruned."""

    @property
    def complete(self) -> bool:
        """Whether all points are measured."""
        return len(self.points) == self.total

    @property
    def unmeasured(self) -> str:
        """What is not measured and why, and what limits the rest, in sentences."""
        return gaps(self.points[0].evaluation)

    @property
    def knee(self) -> float | None:
        """Sparsity of the last point before a usual limit is lost, None where none is."""
        limits = usual_limits(self.points[0].evaluation.figures)
        rows = [{"sparsity": one.sparsity, **one.evaluation.to_row()} for one in self.points]
        knee = last_before(rows, lambda row: any(limit.breaks(row) for limit in limits))
        return knee["sparsity"] if knee else None

    def table(self, parts: str = "parts") -> pd.DataFrame:
        """Return one row a point; `parts` names the column of the pruned parts."""
        rows = []
        for spec, sparsity, evaluation, layer in self.points:
            row = {"method": spec.method, "scope": spec.scope, parts: "+".join(spec.parts)}
            row |= {"layer": layer} if layer else {}
            rows.append({**row, "amount": spec.amount, "sparsity": sparsity, **evaluation.to_row()})
        return pd.DataFrame(rows)


def measuring_texts(voice: Voice, text: str, count: int) -> tuple[tuple[str, ...], str]:
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
        lambda: prepare_reference(voice, texts, settings, progress=_behind_hearing(progress)),
        lambda: progress.report("waiting for another measurement of the original", 0.0),
    )


def amount_row(spec: PruneSpec, step: float, last: float) -> list[PruneSpec]:
    """Return a spec at amounts from 0 to `last`."""
    return [at_amount(spec, round(step * i, 4)) for i in range(round(last / step) + 1)]


def parts_alone(spec: PruneSpec, amounts: Sequence[float]) -> list[PruneSpec]:
    """Return a spec for each part alone at each amount."""
    return [at_amount(spec, amount, (part,)) for part in PARTS for amount in amounts]


def layers_alone(
    request: Request, token: str | None, part: str, amounts: Sequence[float]
) -> list[Point]:
    """Return a point for each layer of a part alone at each amount.

    Raises:
        InputError: the method removes what layers share.
    """
    voice, spec = workbench.bench.voice_of(request, token), at_amount(request.spec, 0.0)
    points = layer_points(voice, amounts, base=spec)
    return [one for one in points if one.spec.parts == (part,)]


def sensitivity_amounts(amounts: Sequence[float]) -> list[float]:
    """Return the chosen amounts in order, the usual ones where none is chosen."""
    return sorted(float(amount) for amount in amounts) or list(DEFAULT_AMOUNTS)


def _reachable(voice: Voice, points: Sequence[Point]) -> list[Point]:
    """Return the points that the voice can be pruned to. Raises InputError if there is none."""
    found, reasons = [], []
    for one in points:
        try:
            check_feasible(voice, one.spec)
            found.append(one)
        except InputError as error:
            reasons.append(error)
    if reasons and not found:
        raise reasons[0]
    return found


def measure_points(
    request: Request,
    token: str | None,
    wanted: Sequence[PruneSpec | Point],
    texts: int,
    families: Sequence[str],
    progress: Progress = SILENT,
    what: str = "point",
) -> Generator[Points, None, None]:
    """Prune and measure spec by spec; yield all Points so far each time.

    Args:
        request: whose voice.
        token: the visitor's.
        wanted: what to prune; left out is what the voice cannot be pruned by.
        texts: how many sentences.
        families: of metrics.
        progress: gets the progress of each point.
        what: the visitor's word for a point.

    Raises:
        InputError: no measure was chosen, or the voice cannot say the texts.
    """
    if not families:
        raise InputError("Choose at least one measure.")
    settings = _settings(request, tuple(families), noise_seeds=1)
    voice = workbench.bench.voice_of(request, token)
    asked = [one if isinstance(one, Point) else Point(one) for one in wanted]
    able = _reachable(voice, asked)
    left_out = tuple(one for one in asked if one not in able)
    said, note = measuring_texts(voice, request.text, texts)
    with measuring.turn(progress, _WAITING):
        reference = measured_original(request, token, voice, said, settings, progress)
    key, points = _key(request, token, voice, said, settings), []
    for i, one in enumerate(able):
        words = f"{one.layer}, {one.spec.amount:.0%}" if one.layer else in_words(one.spec)
        part = progress.part(0.0, 1.0, f"{what} {i + 1} of {len(able)}, {words}: ")
        with measuring.turn(part, _WAITING):  # one point, so that others measure in between
            points.append(_point(key, reference, request, one, token, part))
        yield Points(tuple(points), len(able), note, left_out)


def _behind_hearing(progress: Progress) -> Progress:
    """Return a progress for what nobody waits for to hear: pruning must not give way to them."""
    return giving_way(progress, _LONGEST_PAUSE)


def _settings(request: Request, metrics: tuple[str, ...], noise_seeds: int) -> Settings:
    seed, delivery = request.seed, request.delivery
    return Settings(seed=seed, metrics=metrics, noise_seeds=noise_seeds, delivery=delivery)


def _key(
    request: Request, token: str | None, voice: Voice, texts: tuple[str, ...], settings: Settings
) -> MeasurementKey:
    return MeasurementKey(request.reference, trace(token), voice.speaker, texts, settings)


def _point(
    key: MeasurementKey,
    reference: Reference,
    request: Request,
    one: Point,
    token: str | None,
    progress: Progress,
) -> CurvePoint:
    """Return one measured point, from the cache where it was measured before."""

    def make() -> CurvePoint:
        voice = workbench.bench.voice_of(request, token)
        pruned = workbench.bench.pruned(request.at(one.spec), token, progress)
        pruned = one.alone(voice, pruned) if one.layer else pruned
        found = evaluate_against(reference, pruned, progress=_behind_hearing(progress))
        return CurvePoint(one.spec, _taken(voice, pruned), found, one.layer)

    place, waiting = (key, one, request.healed), "waiting for another measurement of this point"
    return _points.get_or_make(
        place,
        make,
        lambda: progress.report(waiting, 0.0),
        enough=lambda known: _is_of(known.evaluation, request),
    )


def _is_of(evaluation: Evaluation, request: Request) -> bool:
    """Return whether the voice that was measured is still the request's: it may be healed anew."""
    return not request.healed or evaluation.recipe == workbench.bench.pruned(request).recipe


def claim_words(request: Request, token: str | None) -> str:
    """Return what the largest evaluation of the request's pruned voice claims, "" without one.

    Only one that measured all that a claim stands on will do. Its seed may be another.
    """
    voice, found = workbench.bench.voice_of(request, token), []
    for (key, one, healed), point in _points.items():
        texts, _ = measuring_texts(voice, request.text, len(key.texts))
        settings = dataclasses.replace(key.settings, delivery=request.delivery)
        same = key == _key(request, token, voice, texts, settings)
        same &= (one, healed) == (Point(request.spec), request.healed)
        if same and set(FAMILIES) <= set(settings.metrics) and _is_of(point.evaluation, request):
            found.append(point.evaluation)
    largest = max(found, key=lambda one: len(one.texts), default=None)
    return largest.claim.sentence(len(largest.texts)) if largest else ""


def _taken(voice: Voice, pruned: Voice) -> float:
    """Return the share of the original's weights that are zero or gone, 0 to 1."""
    weights, left = measure_sparsity(voice).weights(), measure_sparsity(pruned)
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
        raise InputError("Give at least one limit: of words, naturalness or closeness.")
    voice = workbench.bench.voice_of(request, token)
    said, note = measuring_texts(voice, request.text, texts)
    families = tuple({METRICS[one.metric].family for one in limits})
    settings = _settings(request, families, seeds_for(limits))
    with measuring.turn(progress, _WAITING):
        reference = measured_original(request, token, voice, said, settings, progress)
    check_measured(limits, reference)

    def measure(spec: PruneSpec) -> Any:
        part = progress.part(0.0, 1.0, f"looking for the knee: amount {spec.amount:.2f}: ")
        with measuring.turn(part, _WAITING):
            pruned = workbench.bench.pruned(request.at(spec), token, part)
            part = _behind_hearing(part)
            return evaluate_against(reference, pruned, progress=part).figures

    spec, tried = bisect(at_amount(request.spec, 0.0), limits, measure)
    on = len(said), settings.seed, reference.signature
    return Knee(voice.name, spec, tuple(limits), False, tried, *on), note


# One voice in words


def quality_table(evaluation: Evaluation) -> pd.DataFrame:
    """Return a row a metric: both voices, the change with its 95% interval, the noise floor.

    A distance has no value of its own for the original. Its change is from the original's farthest
    other seed.
    """
    figures = [evaluation.figures[name] for name in LABELS if name in evaluation.figures]
    same = len(evaluation.texts), evaluation.claim.verdict, evaluation.signature
    rows = [(*_numbers(one), figure_words(one, evaluation.other_voice), *same) for one in figures]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(_NUMBERS, float))


def _numbers(one: Figure) -> tuple[str | float | None, ...]:
    change, floor, original = one.difference, one.floor, one.original
    return (
        *(one.metric.title, one.metric.unit, original.value if original else None),
        one.pruned.value,
        *(getattr(change, field, None) for field in ("value", "low", "high")),
        *(getattr(floor, field, None) for field in ("low", "high")),
        *(one.margin, one.verdict),
    )


def gaps(found: Evaluation | Reference) -> str:
    """Return what is not measured and why, and what limits the rest, in sentences.

    The line that installs all optional predictors is said once.
    """
    said = " ".join((*found.unmeasured.values(), *found.notes))
    first, line, rest = said.partition(INSTALL)
    return first + line + rest.replace(INSTALL, "see above")
