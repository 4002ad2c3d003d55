"""The knee: the largest amount that keeps given limits, with the intervals that decided it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vits_prune.errors import InputError
from vits_prune.measure.predictors import PREDICTORS, usable, with_its_kin
from vits_prune.measure.quality import METRICS, Figure, Interval, strictest
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import prune, prune_steps
from vits_prune.pruning.spec import MAX_AMOUNT, PruneSpec
from vits_prune.study.evaluation import Reference, Settings, evaluate_against, prepare_reference
from vits_prune.voices.voice import Voice

RESOLUTION = 0.01
KNEE_RULE = (
    "An amount is kept where the estimate of every limited metric is within its limit (with "
    "--strict: its whole 95% interval). Bisection presumes that quality falls as the amount grows: "
    "amounts that were not tried are not known. Where an interval covers a limit, more sentences "
    "may move the knee."
)
_COUNT = round(MAX_AMOUNT / RESOLUTION) + 1
_ROUNDING = 1e-9
"""0.07 - 0.05 is not 0.02 in binary."""


@dataclass(frozen=True)
class Limit:
    """How far a metric may go: of a distance itself, of another metric its change.

    The change of ViSQOL is from what the original gets with another seed.

    Raises:
        InputError: there is no such metric, or the change is an improvement.
    """

    metric: str
    change: float
    """0.02 for "cer" allows 2 points more; -0.1 for "dnsmos_ovrl" allows 0.1 less."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            what = f"There is no metric {str(self.metric)[:40]!r} to limit"
            raise InputError(f"{what}: choose from {', '.join(METRICS)}.")
        number = isinstance(self.change, (int, float)) and not isinstance(self.change, bool)
        if not number or not 0 <= self._sign * self.change < math.inf:
            right = {1: "0 or more", -1: "0 or less", 0: "a number"}[self._sign]
            what = f"The limit of {self.metric} must be {right}, not {str(self.change)[:40]!r}"
            raise InputError(f"{what}: it says how much may be lost.")

    @property
    def _sign(self) -> int:
        return {"lower": 1, "higher": -1, "neither": 0}[METRICS[self.metric].better]

    def lost(self, value: float) -> float:
        """Return what a change, or a distance, loses; below 0 where it is a gain."""
        return self._sign * value if self._sign else abs(value)

    def keeps(self, value: float) -> bool:
        """Return whether a change, or a distance, is within the limit."""
        return self.lost(value) <= abs(self.change) + _ROUNDING

    def breaks(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of a sweep is beyond the limit, or has no value."""
        itself = METRICS[self.metric].limited_by_value
        value = row.get(self.metric if itself else f"{self.metric}_difference")
        return value is None or not self.keeps(value)


LIMITS = (
    Limit("cer", 0.02),
    Limit("distillmos", -0.1),
    Limit("dnsmos_ovrl", -0.1),
    Limit("visqol", -0.25),
)
"""Two points of character error rate, a tenth of a point of predicted opinion, a quarter of a point
beside the original. Of two predictors that judge alike the strictest one counts: `usual_limits`."""


def usual_limits(measured: Container[str] | None = None) -> tuple[Limit, ...]:
    """Return those of LIMITS whose metric is the strictest of what was measured.

    None for what can be measured here, with the predictors that are installed, which are loaded.
    """
    if measured is None:
        measured = ("cer", *(name for one in usable() for name in PREDICTORS[one].metrics))
    names = strictest(measured).values()
    return tuple(limit for limit in LIMITS if limit.metric in names)


def likely_limits() -> tuple[Limit, ...]:
    """Return the `usual_limits` if every predictor that is installed works; nothing is loaded."""
    there = [one for one in PREDICTORS.values() if one.checked]
    return usual_limits(("cer", "dnsmos_ovrl", *(name for one in there for name in one.metrics)))


def seeds_for(limits: Iterable[Limit]) -> int:
    """Return how many other seeds of the original limits need: one for a similarity, else none."""
    metrics = [METRICS[limit.metric] for limit in limits]
    return int(any(one.kind == "distance" and not one.limited_by_value for one in metrics))


@dataclass(frozen=True)
class Decision:
    """One limit at one amount; certain if the whole interval is on one side of the limit."""

    limit: Limit
    interval: Interval | None
    """What was compared with the limit; None if it could not be measured, and is not kept."""
    kept: bool
    certain: bool


@dataclass(frozen=True)
class Trial:
    """One amount that was tried."""

    amount: float
    kept: bool
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Knee:
    """The largest amount that keeps all limits."""

    voice: str
    spec: PruneSpec
    """With that amount; 0 if the smallest amount that was tried breaks a limit."""
    limits: tuple[Limit, ...]
    strict: bool
    trials: tuple[Trial, ...]
    """In the order in which they were made."""
    texts: int
    seed: int
    signature: str = ""
    """All that the figures depend on besides the voice; see `signature_of`."""

    @property
    def amount(self) -> float:
        """The largest amount."""
        return self.spec.amount

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        found = {**dataclasses.asdict(self), "spec": self.spec.to_dict()}
        return {**found, "steps": found.pop("trials"), "amount": self.amount, "rule": KNEE_RULE}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each amount and limit, sorted by amount."""
        found = []
        for trial in sorted(self.trials, key=lambda trial: trial.amount):
            for one in trial.decisions:
                row = {"amount": trial.amount, "metric": one.limit.metric}
                row["limit"] = one.limit.change
                for end in ("value", "low", "high"):
                    row[end] = getattr(one.interval, end, None)
                row |= {"kept": one.kept, "certain": one.certain, "signature": self.signature}
                found.append(row)
        return found


@dataclass(frozen=True, eq=False)
class Gradual:
    """Gradual pruning up to its last step, or to a step that breaks a limit."""

    steps: tuple[Trial, ...]
    """In order; only the last can have broken a limit."""
    voice: Voice | None
    """Of the last step that kept the limits; None if the first broke one."""

    @property
    def amount(self) -> float:
        """Of the last step that kept the limits, 0 if none did."""
        return max((step.amount for step in self.steps if step.kept), default=0.0)


def find_knee(
    voice: Voice,
    base: PruneSpec = PruneSpec(),
    limits: Sequence[Limit] | None = None,
    *,
    texts: Sequence[str] = (),
    settings: Settings | None = None,
    strict: bool = False,
    reference: Reference | None = None,
    progress: Progress = SILENT,
) -> Knee:
    """Return the largest amount, to 0.01, that keeps limits.

    Args:
        voice, base: the original, and what to prune of it, apart from the amount.
        limits: what must be kept; None for `usual_limits`.
        texts: what is spoken; not needed with a reference.
        settings: how to measure; None for as few seeds as the limits need. The metrics are theirs.
        strict: whether the whole interval must keep a limit, and not the estimate alone.
        reference: the original measured earlier; its texts and settings are used.

    Raises:
        InputError: bad input, or a limited metric cannot be measured on this voice.
    """
    limits = usual_limits() if limits is None else tuple(limits)
    if not limits or len({limit.metric for limit in limits}) < len(limits):
        raise InputError("Give at least one limit, and one per metric.")
    if base.pattern or base.shape or base.amounts:
        raise InputError("A knee is one amount: give no pattern, shape or amounts of steps.")
    rounds, most, tried = 0, _COUNT.bit_length(), 0
    if reference is None:
        metrics = tuple({METRICS[limit.metric].family for limit in limits})
        usual = Settings(noise_seeds=seeds_for(limits))
        settings = dataclasses.replace(settings or usual, metrics=metrics)
        rounds = 1 + settings.noise_seeds
        part = progress.part(0.0, rounds / (rounds + most))
        reference = prepare_reference(voice, texts, settings, progress=part)
    check_measured(limits, reference)

    def measure(spec: PruneSpec) -> Mapping[str, Figure]:
        nonlocal tried
        start, tried = rounds + tried, tried + 1
        ends = (start / (rounds + most), min(1.0, (start + 1) / (rounds + most)))
        part = progress.part(*ends, f"amount {spec.amount:.2f}: ")
        pruned = prune(voice, spec, progress=part.part(0.0, 0.5))
        return evaluate_against(reference, pruned, progress=part.part(0.5, 1.0)).figures

    spec, trials = bisect(base, limits, measure, strict=strict)
    on = len(reference.texts), reference.settings.seed, reference.signature
    return Knee(voice.name, spec, limits, strict, trials, *on)


def bisect(
    base: PruneSpec,
    limits: Sequence[Limit],
    measure: Callable[[PruneSpec], Mapping[str, Figure]],
    *,
    strict: bool = False,
) -> tuple[PruneSpec, tuple[Trial, ...]]:
    """Return the largest amount that keeps the limits, and what was tried; amount 0 keeps them.

    Where `measure` raises InputError, as for more weights than are not protected, the amount keeps
    no limit. If it raises for every amount, so does this.
    """
    kept, broken, trials, refused = 0, _COUNT, [], []
    while broken - kept > 1:
        middle = (kept + broken) // 2
        spec = dataclasses.replace(base, amount=round(middle * RESOLUTION, 2))
        try:
            figures = measure(spec)
        except InputError as error:
            refused.append(error)
            figures = {}
        trials.append(decide(spec.amount, limits, figures, strict))
        kept, broken = (middle, broken) if trials[-1].kept else (kept, middle)
    if len(refused) == len(trials):
        raise refused[-1]
    return dataclasses.replace(base, amount=round(kept * RESOLUTION, 2)), tuple(trials)


def prune_until_knee(
    voice: Voice,
    spec: PruneSpec,
    reference: Reference,
    limits: Sequence[Limit] | None = None,
    *,
    on_voice: Callable[[int, Voice], None] | None = None,
    progress: Progress = SILENT,
) -> Gradual:
    """Prune gradually, measure after each step, and stop where a limit breaks.

    The reference is the original, measured on sentences that it is not calibrated on. Without
    limits they are the `usual_limits`. `on_voice` is called with the number of each step, from 1,
    and its voice.

    Raises:
        InputError: one step only, a limit that the reference cannot check, or as `prune`.
    """
    steps: list[Trial] = []
    last, count = None, len(spec.schedule_amounts())
    if count < 2:
        raise InputError("Only gradual pruning can stop at the knee: give steps or amounts.")
    limits = usual_limits() if limits is None else limits
    check_measured(limits, reference)
    pruning = prune_steps(voice, spec, progress=progress.part(0.0, 0.8))
    for done, (amount, pruned) in enumerate(pruning, 1):
        if on_voice:
            on_voice(done, pruned)
        part = progress.part(0.8 * done / count, done / count)
        figures = evaluate_against(reference, pruned, progress=part).figures
        steps.append(decide(amount, limits, figures))
        if not steps[-1].kept:
            break
        last = pruned
    progress.report("done", 1.0)
    return Gradual(tuple(steps), last)


def decide(
    amount: float, limits: Sequence[Limit], figures: Mapping[str, Figure], strict: bool = False
) -> Trial:
    """Return which limits the figures of an amount keep."""
    decisions = []
    for limit in limits:
        interval, kept, certain = compared(figures.get(limit.metric)), False, False
        if interval:
            ends = [end for end in (interval.low, interval.high) if end is not None]
            certain = len(ends) == 2 and len({*map(limit.keeps, (interval.value, *ends))}) == 1
            kept = limit.keeps(interval.value) and (certain or not strict)
        decisions.append(Decision(limit, interval, kept, certain))
    return Trial(amount, all(decision.kept for decision in decisions), tuple(decisions))


def compared(figure: Figure | None) -> Interval | None:
    """Return what of a figure a limit applies to: the distance, or the change."""
    if figure is None:
        return None
    return figure.pruned if figure.metric.limited_by_value else figure.difference


def check_measured(limits: Sequence[Limit], reference: Reference) -> None:
    """Raise InputError if a reference was measured without the metric of a limit."""
    for family in sorted({METRICS[limit.metric].family for limit in limits}):
        if family not in reference.listener.families or family in reference.unmeasured:
            words = f"The reference was measured without {family}: give no limit of it."
            raise InputError(reference.unmeasured.get(family, words))
    for name in itertools.chain.from_iterable(with_its_kin(limit.metric) for limit in limits):
        if name in reference.unmeasured:
            raise InputError(reference.unmeasured[name])
    if seeds_for(limits) > reference.settings.noise_seeds:
        raise InputError(
            "A limit of ViSQOL needs a noise floor: measure with a noise seed or more."
        )


def last_before(
    curve: Sequence[Mapping[str, Any]], broken: Callable[[Mapping[str, Any]], bool]
) -> Mapping[str, Any] | None:
    """Return the knee of a curve, sorted by amount: the last row before the first broken one.

    None if no row is broken (the knee is beyond the curve), or if the first one is.
    """
    first = next((i for i, row in enumerate(curve) if broken(row)), 0)
    return curve[first - 1] if first else None


def parse_limit(text: str) -> Limit:
    """Return a typed limit: "cer=+0.02", "dnsmos_ovrl=-0.1"; raise InputError if it is none."""
    found = re.fullmatch(r"\s*(\w+)\s*=\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*", text)
    if not found:
        raise InputError(f"{text[:40]!r} is not a limit: write metric=change, as in cer=+0.02.")
    return Limit(found[1], float(found[2]))
