"""solve_budget: from limits to the PruneSpecs that keep them.

Time comes from structure, bytes from structure or from zeros in the lossless sparse file, so the answer is one spec or two: a shape, then
zeros. Shapes that are quick or small enough are found on cheap cuts (ladder.py), the least damaging are pruned for real and measured.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from vits_prune.errors import InputError
from vits_prune.measure.latency import Spread
from vits_prune.measure.quality import METRICS
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.prune import prune
from vits_prune.pruning.shape import Shape
from vits_prune.pruning.spec import PruneSpec, in_words
from vits_prune.study.budget import Budget, Candidate, Solution, sentences_of
from vits_prune.study.budget_ladder import Ladder, Step, build_ladder, time_against, time_cut
from vits_prune.study.evaluation import (
    Reference,
    Settings,
    evaluate_against,
    prepare_reference,
)
from vits_prune.study.knee import check_measured, compared
from vits_prune.voices.saved import save_voice
from vits_prune.voices.sparse_file import encode
from vits_prune.voices.voice import Voice

MARGIN = 0.97

"""Of the latency limit that a cheap cut must keep: a few runs may flatter it."""

SHAPES, ZEROED = 4, 2

"""How many shapes are pruned for real, and how many of them get zeros."""

VERIFIED, PROMISING = 2, 5

"""How many candidates are verified at the most, and how many of those that kept all limits when they were chosen."""

LOOSER = 2

"""Shapes beyond a limit of time that are pruned where all within it lose too much, to tell what could be had."""

FINAL_RUNS = 9


def solve_budget(
    voice: Voice,
    budget: Budget,
    texts: Sequence[str],
    held_out: Sequence[str],
    settings: Settings | None = None,
    *,
    progress: Step | None = None,
) -> Solution:
    """The least damaged voice that keeps a budget, or the nearest to it.

    Args:
        voice: the original.
        budget: what it may cost and lose.
        texts: what candidates are compared on.
        held_out: what the verdict is made on; others than `texts`.
        settings: seed, recogniser and delivery of the measuring; its metrics and noise seeds are not used.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: nothing can be said, a limited metric cannot be measured on this voice, or no text is left to verify on.
    """
    start, tell = time.perf_counter(), progress or (lambda _what, _share: None)
    if set(texts) & set(held_out):
        raise InputError(
            "The sentences of the verdict must be others than those that candidates are chosen on."
        )
    if budget.max_latency_ratio is None and _megabytes(voice) <= budget.max_mb:
        raise InputError(
            f"{voice.name} takes {_megabytes(voice):.1f} MB, so a limit of {budget.max_mb:g} MB asks for nothing: give less."
        )
    families = tuple({METRICS[limit.metric].family for limit in budget.judged})
    settings = dataclasses.replace(settings or Settings(), metrics=families, noise_seeds=0)
    chosen_on = prepare_reference(voice, texts, settings, progress=_part(tell, 0.0, 0.05))
    check_measured(budget.judged, chosen_on)
    ladder = build_ladder(
        voice, chosen_on.texts[0], settings.seed, progress=_part(tell, 0.05, 0.15)
    )
    search = _Search(voice, budget, ladder, chosen_on, chosen_on.texts[0])
    search.run(_part(tell, 0.15, 0.8))
    verified_on = prepare_reference(voice, held_out, settings, progress=_part(tell, 0.8, 0.85))
    chosen = search.verify(verified_on, _part(tell, 0.85, 1.0))
    tell("done", 1.0)
    return Solution(
        name=voice.name,
        budget=budget,
        chosen=chosen.candidate,
        kept=not budget.broken(chosen.candidate),
        sentences=sentences_of(budget, chosen.candidate, [one.candidate for one in search.tried]),
        tried=tuple(one.candidate for one in search.tried),
        voice=chosen.voice,
        texts=(len(chosen_on.texts), len(verified_on.texts)),
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True, eq=False)
class _Tried:
    candidate: Candidate
    voice: Voice


@dataclass(eq=False)
class _Search:
    """What was tried so far."""

    voice: Voice
    budget: Budget
    ladder: Ladder
    reference: Reference
    text: str
    tried: list[_Tried] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return self.reference.settings.seed

    @functools.cached_property
    def file_over_parameters(self) -> float:
        """Bytes of the original's file over those of its parameters: transformers' layout keeps weight norm, and so takes a little more."""
        return _megabytes(self.voice) / (
            4e-6 * sum(parameter.numel() for parameter in self.voice.model.parameters())
        )

    @property
    def measured(self) -> list[_Tried]:
        return [one for one in self.tried if one.candidate.stage != "cut"]

    def run(self, tell: Step) -> None:
        """Shapes first, looser ones where all lose too much, then zeros for the least damaged."""
        shapes = self._shapes(_part(tell, 0.0, 0.1))
        for index, shape in enumerate(shapes):
            self._structured(
                shape,
                _part(tell, 0.1 + 0.4 * index / len(shapes), 0.1 + 0.4 * (index + 1) / len(shapes)),
            )
        if self.budget.max_latency_ratio and all(
            self.budget.damage(one.candidate) > 1 for one in self.measured
        ):
            self._loosen(_part(tell, 0.5, 0.65))
        self._zeros(_part(tell, 0.65, 1.0))

    def verify(self, reference: Reference, tell: Step) -> _Tried:
        """Measure the best on held-out sentences with more runs; the first that keeps all limits, else the nearest."""
        order = sorted(self.measured, key=lambda one: self._rank(one.candidate))
        found = []
        promising = sum(not self.budget.broken(one.candidate) for one in order)
        most = min(len(order), max(VERIFIED, min(PROMISING, promising)))
        for index, one in enumerate(order[:most]):
            told = _part(tell, index / most, (index + 1) / most)
            ratio, macs = time_against(self.voice, one.voice, self.text, self.seed, FINAL_RUNS)
            quality = _quality(self.budget, reference, one.voice, told)
            final = dataclasses.replace(
                one.candidate,
                stage="verified",
                latency_ratio=ratio,
                macs_ratio=macs,
                quality=quality,
            )
            found.append(_Tried(final, one.voice))
            self.tried.append(found[-1])
            if not self.budget.broken(final):
                break
        return min(found, key=lambda one: self._rank(one.candidate))

    def _rank(self, candidate: Candidate) -> tuple[int, float, float]:
        """The fewest broken limits first, then the least overshoot, then the least damage."""
        loads = [
            math.inf if math.isnan(load) else load for load in self.budget.loads(candidate).values()
        ]
        return len(self.budget.broken(candidate)), max(1.0, *loads), self.budget.damage(candidate)

    def _shapes(self, tell: Step) -> list[Shape]:
        """Shapes within the limit of time as timed on cuts; without one, those that a limit of size may ask for."""
        ratio, most = self.budget.max_latency_ratio, self.budget.max_mb
        if ratio is None:
            half = math.sqrt(most * _megabytes(self.voice))
            limits = [0.98 * limit / self.file_over_parameters for limit in (half, most)]
            proposals = [
                one
                for limit in limits
                for one in self.ladder.best(lambda one, limit=limit: one.mb <= limit, 1)
            ]
            return list(dict.fromkeys(one.shape for one in proposals))
        found: list[Shape] = []
        aim, passed = ratio * MARGIN, set()
        for turn in range(3 * SHAPES):
            quick = self.ladder.best(lambda one, aim=aim: one.time <= aim, 99)
            left = [one for one in quick if one.shape.decoder_width not in passed]
            if not left or len(found) == SHAPES:
                break
            shape = left[0].shape
            tell("timing shapes", turn / (3 * SHAPES))
            candidate = self._cut(shape)
            if candidate.latency_ratio.median <= ratio * MARGIN:
                found.append(shape)
                passed.add(shape.decoder_width)
            else:  # the prediction was too good: ask for more by as much
                aim = min(aim * 0.97, aim * ratio * MARGIN / candidate.latency_ratio.median)
        return found or [
            min(self.ladder.proposals, key=lambda one: one.time).shape
        ]  # the nearest that there is

    def _cut(self, shape: Shape) -> Candidate:
        small, ratio, macs = time_cut(self.voice, shape, self.text, self.seed)
        count = sum(parameter.numel() for parameter in small.model.parameters())
        spec = PruneSpec(method="structured", shape=shape, seed=self.seed)
        candidate = Candidate(
            (spec,), "cut", count, "dense", 4e-6 * count * self.file_over_parameters, ratio, macs
        )
        self.tried.append(_Tried(candidate, self.voice))
        return candidate

    def _structured(self, shape: Shape, tell: Step) -> None:
        spec = PruneSpec(method="structured", shape=shape, seed=self.seed)
        small = prune(self.voice, spec, progress=_part(tell, 0.0, 0.6, f"{_short(shape)}: "))
        known = next((one for one in self.tried if one.candidate.specs == (spec,)), None)
        if known:
            timed = known.candidate.latency_ratio, known.candidate.macs_ratio
            self.tried.remove(known)
        else:
            timed = time_against(self.voice, small, self.text, self.seed, 3)
        self._measure((spec,), small, timed, _part(tell, 0.6, 1.0))

    def _zeros(self, tell: Step) -> None:
        """Zeros where a voice's file is still too large: the least damaged shape within the limit of time and the least damaged of all;
        where time is not limited, the whole voice."""
        most = self.budget.max_mb
        if most is None:
            return
        large = [one for one in self.measured if one.candidate.mb > most]
        large.sort(key=lambda one: self.budget.damage(one.candidate))
        large.sort(key=lambda one: "latency" in self.budget.broken(one.candidate))
        bases = large[:ZEROED]
        loose = [one for one in large if "latency" in self.budget.broken(one.candidate)][:1]
        if loose and loose[0] not in bases:
            bases = [*bases[: ZEROED - 1], *loose]
        timed: dict[int, tuple[Spread, float]] = {
            id(one): (one.candidate.latency_ratio, one.candidate.macs_ratio) for one in bases
        }
        if self.budget.max_latency_ratio is None:
            whole = _Tried(
                Candidate(
                    (), "cut", 0, "dense", _megabytes(self.voice), Spread(1.0, 1.0, 1.0), 1.0
                ),
                self.voice,
            )
            timed[id(whole)] = (whole.candidate.latency_ratio, 1.0)
            bases = [whole, *bases][:ZEROED]
        for index, base in enumerate(bases):
            told = _part(tell, index / len(bases), (index + 1) / len(bases))
            fitted = fit_zeros(base.voice, 1e6 * most, self.seed, progress=_part(told, 0.0, 0.7))
            self._measure(
                (*base.candidate.specs, fitted.spec),
                fitted.voice,
                timed[id(base)],
                _part(told, 0.7, 1.0),
            )

    def _loosen(self, tell: Step) -> None:
        """Shapes between the limit of time and the original, to tell what quality costs."""
        ratio = self.budget.max_latency_ratio or 1.0
        low = ratio
        for turn in range(LOOSER):
            low = math.sqrt(low)
            for one in self.ladder.best(lambda one, low=low: one.time <= low, 1):
                if all(one.shape != tried.candidate.specs[0].shape for tried in self.measured):
                    self._structured(one.shape, _part(tell, turn / LOOSER, (turn + 1) / LOOSER))

    def _measure(
        self, specs: tuple[PruneSpec, ...], voice: Voice, timed: tuple[Spread, float], tell: Step
    ) -> None:
        dense, sparse = _megabytes(voice), sparse_bytes(voice) / 1e6
        count = sum(parameter.numel() for parameter in voice.model.parameters())
        kind = "sparse" if sparse < dense else "dense"
        quality = _quality(self.budget, self.reference, voice, tell)
        size = sparse if kind == "sparse" else dense
        self.tried.append(
            _Tried(Candidate(specs, "chosen", count, kind, size, *timed, quality), voice)
        )


def _quality(budget: Budget, reference: Reference, voice: Voice, tell: Step) -> MappingProxyType:
    figures = evaluate_against(reference, voice, progress=tell).figures
    found = {limit.metric: compared(figures.get(limit.metric)) for limit in budget.judged}
    return MappingProxyType(
        {name: interval for name, interval in found.items() if interval is not None}
    )


def _megabytes(voice: Voice) -> float:
    """Of the file of weights in the folder that saving the voice makes, dense float32."""
    with tempfile.TemporaryDirectory() as folder:
        return (
            save_voice(voice, Path(folder) / "voice") / "model.safetensors"
        ).stat().st_size / 1e6


def _short(shape: Shape) -> str:
    return in_words(PruneSpec(method="structured", shape=shape))


def _part(tell: Step, low: float, high: float, before: str = "") -> Callable[[str, float], None]:
    """A stretch of the whole."""
    return lambda what, share: tell(before + what, low + (high - low) * min(1.0, share))


METHOD, SCOPE = "second_order", "global"

MOST = 0.95

"""Above it nothing of a voice is left that speaks."""

TRIES = 4

_FINE = 0.001


@dataclass(frozen=True, eq=False)
class Fitted:
    """A voice with zeros."""

    spec: PruneSpec
    voice: Voice
    bytes: int
    """Of its sparse file."""
    fits: bool


def sparse_bytes(voice: Voice) -> int:
    """Bytes of the lossless sparse file."""
    return len(encode({name: tensor.float() for name, tensor in voice.model.named_parameters()}))


def fit_zeros(
    voice: Voice, most_bytes: float, seed: int = 0, *, progress: Step | None = None
) -> Fitted:
    """The fewest zeros, to a thousandth or so, with which the sparse file is no larger than given; MOST where none are enough.

    Bisected on plain magnitude, whose file is about as large, then pruned for real and corrected by the bytes that come of it.

    Args:
        voice: what gets the zeros.
        most_bytes: that the file may have.
        seed: of calibration.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: the voice can say nothing for calibration, or has not so many weights that are not protected.
    """
    tell = progress or (lambda _what, _share: None)
    low, high = 0.0, MOST
    while high - low > 0.01:
        tell("looking for the number of zeros", 0.0)
        middle = (low + high) / 2
        fits = sparse_bytes(prune(voice, PruneSpec(amount=middle))) <= most_bytes
        low, high = (low, middle) if fits else (middle, high)
    slope = _slope(voice)
    most = min(MOST, 0.999 * _open_share(voice))
    amount, best = min(most, high), None
    for turn in range(TRIES):
        spec = PruneSpec(
            method=METHOD, scope=SCOPE, amount=math.floor(1e4 * amount) / 1e4, seed=seed
        )
        pruned = prune(
            voice,
            spec,
            progress=lambda what, share, turn=turn: tell(f"zeros: {what}", (turn + share) / TRIES),
        )
        size = sparse_bytes(pruned)
        found = Fitted(spec, pruned, size, size <= most_bytes)
        if found.fits and (best is None or not best.fits or found.spec.amount < best.spec.amount):
            best = found
        best = best or found
        over = (size - most_bytes) / slope
        if (found.fits and (over > -0.01 or spec.amount == 0)) or (
            not found.fits and spec.amount >= most - _FINE
        ):
            break
        amount = min(most, max(0.0, amount + over + 2 * _FINE))
    tell("zeros set", 1.0)
    return best if best.fits else found


def _open_share(voice: Voice) -> float:
    """The share of its weights that is not protected."""
    layers = prunable_layers(voice)
    spec = PruneSpec(method=METHOD)
    return sum(layer.weights for layer in layers if not spec.protects(layer.name)) / max(
        1, sum(layer.weights for layer in layers)
    )


def _slope(voice: Voice) -> float:
    """Bytes of the sparse file that go with an amount of 1, around two thirds."""
    sizes = [sparse_bytes(prune(voice, PruneSpec(amount=amount))) for amount in (0.6, 0.8)]
    return max(1.0, (sizes[0] - sizes[1]) / 0.2)
