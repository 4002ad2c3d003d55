"""find_knee: the largest amount that keeps given limits, by bisection, with the intervals that decided it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vits_prune.errors import InputError
from vits_prune.measure.quality import METRICS, Figure
from vits_prune.measure.statistics import Interval
from vits_prune.pruning.prune import prune_steps
from vits_prune.pruning.spec import MAX_AMOUNT, PruneSpec
from vits_prune.study.evaluation import (
    Reference,
    Settings,
    Step,
    evaluate_against,
    prepare_reference,
)
from vits_prune.voices.voice import PARTS, Voice

RESOLUTION = 0.01

_ROUNDING = 1e-9

"""0.07 - 0.05 is not 0.02 in binary."""

RULE = (
    "An amount is kept where the estimate of every limited metric is within its limit (with --strict: its whole 95% interval). "
    "Bisection presumes that quality falls as the amount grows: amounts that were not tried are not known. "
    "Where an interval covers a limit, more sentences may move the knee."
)


@dataclass(frozen=True)
class Limit:
    """How far a metric may go.

    For a property of each voice (word errors, DNSMOS, loudness) and for shifts, the change from the original; for distances, the distance.

    Raises:
        InputError: there is no such metric, or the change is an improvement.
    """

    metric: str
    change: float
    """0.02 for "cer" allows 2 points more; -0.1 for "dnsmos_ovrl" allows 0.1 less."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(
                f"There is no metric {str(self.metric)[:40]!r} to limit: choose from {', '.join(METRICS)}."
            )
        better = METRICS[self.metric].better
        number = (
            isinstance(self.change, (int, float))
            and not isinstance(self.change, bool)
            and abs(self.change) < float("inf")
        )
        if (
            not number
            or (better == "lower" and self.change < 0)
            or (better == "higher" and self.change > 0)
            or self.change != self.change
        ):
            sign = {"lower": "0 or more", "higher": "0 or less", "neither": "a number"}[better]
            raise InputError(
                f"The limit of {self.metric} must be {sign}, not {str(self.change)[:40]!r}: it says how much may be lost."
            )

    def keeps(self, value: float) -> bool:
        """Whether a change is within the limit; for what is neither better nor worse, in both directions."""
        better = METRICS[self.metric].better
        if better == "neither":
            return abs(value) <= abs(self.change) + _ROUNDING
        return (
            value <= self.change + _ROUNDING
            if better == "lower"
            else value >= self.change - _ROUNDING
        )

    def breaks(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of a sweep lies beyond the limit, or has no value to say so."""
        column = (
            self.metric if METRICS[self.metric].kind == "distance" else f"{self.metric}_difference"
        )
        value = row.get(column)
        return value is None or not self.keeps(value)


LIMITS = (Limit("cer", 0.02), Limit("dnsmos_ovrl", -0.1))

"""Two points of character error rate, and a tenth of a point of predicted opinion."""


@dataclass(frozen=True)
class Decision:
    """One limit at one amount."""

    limit: Limit
    interval: Interval | None
    """What was compared with the limit; None where nothing could be measured, which keeps no limit."""
    kept: bool
    certain: bool
    """Whether the whole interval lies on one side of the limit."""


@dataclass(frozen=True)
class KneeStep:
    """One amount that was tried."""

    amount: float
    kept: bool
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Knee:
    """The largest amount that keeps all limits."""

    voice: str
    spec: PruneSpec
    """With that amount; 0 where the smallest that was tried breaks a limit."""
    limits: tuple[Limit, ...]
    strict: bool
    steps: tuple[KneeStep, ...]
    """In the order in which they were tried."""
    texts: int
    seed: int

    @property
    def amount(self) -> float:
        return self.spec.amount

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return {
            **dataclasses.asdict(self),
            "spec": self.spec.to_dict(),
            "amount": self.amount,
            "rule": RULE,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row an amount and limit, by amount."""
        return [
            {
                "amount": step.amount,
                "metric": decision.limit.metric,
                "limit": decision.limit.change,
                **{
                    end: getattr(decision.interval, end) if decision.interval else None
                    for end in ("value", "low", "high")
                },
                "kept": decision.kept,
                "certain": decision.certain,
            }
            for step in sorted(self.steps, key=lambda step: step.amount)
            for decision in step.decisions
        ]


def find_knee(
    voice: Voice,
    scope: str = "global",
    parts: tuple[str, ...] = PARTS,
    limits: Sequence[Limit] = LIMITS,
    *,
    texts: Sequence[str] = (),
    settings: Settings | None = None,
    method: str = "magnitude",
    strict: bool = False,
    base: PruneSpec = PruneSpec(),
    reference: Reference | None = None,
    progress: Step | None = None,
) -> Knee:
    """The largest amount, to 0.01, that keeps limits.

    Args:
        voice: the original.
        scope: how the amount is shared out.
        parts: which parts are pruned.
        limits: what must be kept.
        texts: what is spoken; not needed with a reference.
        settings: how to measure; None for the limits' metrics alone, without a noise floor.
        method: which weights go first.
        strict: whether the whole interval must keep a limit, and not the estimate alone.
        base: the other fields of every PruneSpec.
        reference: the original measured before; its texts and settings are used.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: bad input, or a limited metric cannot be measured on this voice.
    """
    limits, tell = _checked(limits), progress or (lambda _what, _share: None)
    if base.pattern or base.shape or base.amounts:
        raise InputError(
            "A knee is an amount: neither a pattern, nor a shape, nor the amounts of steps can be given with it."
        )
    base = dataclasses.replace(base, method=method, scope=scope, amount=0.0, parts=parts)
    families = {METRICS[limit.metric].family for limit in limits}
    most = (round(MAX_AMOUNT / RESOLUTION) + 1).bit_length()
    if reference is None:
        settings = settings or Settings(metrics=tuple(families), noise_seeds=0)
        settings = dataclasses.replace(settings, metrics=tuple(families))
        rounds = 1 + settings.noise_seeds
        reference = prepare_reference(
            voice,
            texts,
            settings,
            progress=lambda what, share: tell(what, share * rounds / (rounds + most)),
        )
    else:
        rounds = 0
    check_measured(limits, reference)
    tried, refused = 0, []

    def measure(spec: PruneSpec) -> Mapping[str, Figure]:
        nonlocal tried
        from vits_prune.pruning import prune

        start, tried = rounds + tried, tried + 1

        def step(what: str, share: float) -> None:
            tell(f"amount {spec.amount:.2f}: {what}", min(1.0, (start + share) / (rounds + most)))

        try:
            pruned = prune(voice, spec, progress=lambda what, share: step(what, share / 2))
        except InputError as error:  # more than is there to take, where some is protected
            refused.append(error)
            return {}
        return evaluate_against(
            reference, pruned, progress=lambda what, share: step(what, (1 + share) / 2)
        ).figures

    spec, steps = bisect(base, limits, measure, strict=strict)
    if len(refused) == len(steps):
        raise refused[-1]
    return Knee(
        voice.name, spec, limits, strict, steps, len(reference.texts), reference.settings.seed
    )


def bisect(
    base: PruneSpec,
    limits: Sequence[Limit],
    measure: Callable[[PruneSpec], Mapping[str, Figure]],
    *,
    strict: bool = False,
) -> tuple[PruneSpec, tuple[KneeStep, ...]]:
    """The largest amount that keeps the limits, and what was tried; amount 0 keeps them, for it is the original.

    Args:
        base: what to prune, its amount aside.
        limits: what must be kept.
        measure: the figures of a spec.
        strict: whether whole intervals must keep a limit.
    """
    kept, broken, steps = 0, round(MAX_AMOUNT / RESOLUTION) + 1, []
    while broken - kept > 1:
        middle = (kept + broken) // 2
        spec = dataclasses.replace(base, amount=round(middle * RESOLUTION, 2))
        steps.append(decided(spec.amount, limits, measure(spec), strict))
        kept, broken = (middle, broken) if steps[-1].kept else (kept, middle)
    return dataclasses.replace(base, amount=round(kept * RESOLUTION, 2)), tuple(steps)


def decided(
    amount: float, limits: Sequence[Limit], figures: Mapping[str, Figure], strict: bool = False
) -> KneeStep:
    """One amount held against the limits."""
    decisions = tuple(_decide(limit, figures.get(limit.metric), strict) for limit in limits)
    return KneeStep(amount, all(decision.kept for decision in decisions), decisions)


def check_measured(limits: Sequence[Limit], reference: Reference) -> None:
    """Refuse limits of metrics that a reference was measured without.

    Raises:
        InputError: there is one, and why.
    """
    for family in sorted({METRICS[limit.metric].family for limit in limits}):
        if family not in reference.listener.families:
            raise InputError(
                reference.unmeasured.get(family)
                or f"The reference was measured without {family}: its limit cannot be checked."
            )


def last_before(
    curve: Sequence[Mapping[str, Any]], broken: Callable[[Mapping[str, Any]], bool]
) -> Mapping[str, Any] | None:
    """The knee of a measured curve: the last row before the first that is broken.

    Args:
        curve: rows by amount.
        broken: whether a row is beyond what is to be kept, such as `Limit.breaks`.

    Returns:
        None where no row is broken (the knee lies beyond the curve), or the first is already.
    """
    last = None
    for row in curve:
        if broken(row):
            return last
        last = row
    return None


def parse_limit(text: str) -> Limit:
    """A limit as it is typed: "cer=+0.02", "dnsmos_ovrl=-0.1".

    Raises:
        InputError: not such a limit.
    """
    found = re.fullmatch(r"\s*(\w+)\s*=\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*", text)
    if not found:
        raise InputError(
            f"{text[:40]!r} is no limit: write metric=change, such as cer=+0.02 or dnsmos_ovrl=-0.1."
        )
    return Limit(found[1], float(found[2]))


def _decide(limit: Limit, figure: Figure | None, strict: bool) -> Decision:
    interval = compared(figure)
    if interval is None:
        return Decision(limit, None, False, False)
    ends = [end for end in (interval.low, interval.high) if end is not None]
    sides = {limit.keeps(value) for value in (interval.value, *ends)}
    kept = sides == {True} and len(ends) == 2 if strict else limit.keeps(interval.value)
    return Decision(limit, interval, kept, len(ends) == 2 and len(sides) == 1)


def compared(figure: Figure | None) -> Interval | None:
    """What of a figure a limit is held against: the distance, or the change from the original."""
    if figure is None:
        return None
    return figure.pruned if figure.metric.kind == "distance" else figure.difference


def _checked(limits: Sequence[Limit]) -> tuple[Limit, ...]:
    limits = tuple(limits)
    names = [limit.metric for limit in limits]
    if not limits or len(set(names)) < len(names):
        raise InputError("Give at least one limit, and one a metric.")
    return limits


@dataclass(frozen=True, eq=False)
class Gradual:
    """Gradual pruning that came to its end, or to a step that breaks a limit."""

    steps: tuple[KneeStep, ...]
    """In order; only the last can have broken a limit."""
    voice: Voice | None
    """Of the last step that kept the limits; None where the first broke one already."""

    @property
    def amount(self) -> float:
        """Of that step; 0 where there is none."""
        return max((step.amount for step in self.steps if step.kept), default=0.0)


def prune_until_knee(
    voice: Voice,
    spec: PruneSpec,
    reference: Reference,
    limits: Sequence[Limit] = LIMITS,
    *,
    on_voice: Callable[[int, Voice], None] | None = None,
    progress: Step | None = None,
) -> Gradual:
    """Prune step by step, measure each, and stop where a limit breaks.

    Args:
        voice: the original.
        spec: of at least two steps.
        reference: the original measured on sentences that it is not calibrated on.
        limits: what must be kept.
        on_voice: given each step's number, from 1, and its voice.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: one step only, a limit that the reference cannot check, or as `prune`.
    """
    count, tell = len(spec.schedule_amounts()), progress or (lambda _what, _share: None)
    if count < 2:
        raise InputError(
            "Stopping at the knee takes gradual pruning: give the number of steps, or their amounts."
        )
    check_measured(limits, reference)
    steps, last = [], None
    for amount, pruned in prune_steps(
        voice, spec, progress=lambda what, share: tell(what, 0.8 * share)
    ):
        done = len(steps) + 1
        if on_voice:
            on_voice(done, pruned)
        figures = evaluate_against(
            reference,
            pruned,
            progress=lambda what, share, done=done: tell(what, (0.8 + 0.2 * share) * done / count),
        ).figures
        steps.append(decided(amount, limits, figures))
        if not steps[-1].kept:
            break
        last = pruned
    tell("done", 1.0)
    return Gradual(tuple(steps), last)
