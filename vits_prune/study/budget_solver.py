"""From limits to the PruneSpecs that keep them.

Structure and zeros save time and bytes: zeros by sparse kernels, where this machine has them, and
in the lossless sparse file. So the answer is a shape, zeros, or both. Shapes that are fast or small
enough are found on cheap cuts, and the least damaging ones are pruned with care and measured.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from vits_prune.errors import InputError
from vits_prune.files import names_in, replaced_folder, write_file, write_json
from vits_prune.kernels import engine_of
from vits_prune.measure.cost import macs_per_weight
from vits_prune.measure.quality import METRICS, Interval
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import Shape, prune
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.spec import PruneSpec, in_words
from vits_prune.pruning.structured.cut import choose, cut
from vits_prune.study.budget import (
    RUNS,
    Budget,
    Candidate,
    ShapeEstimate,
    Solution,
    best_shapes,
    count_parameters,
    estimate_shapes,
    sentences_of,
    time_against,
)
from vits_prune.study.charts import pareto_figure, save_figure
from vits_prune.study.evaluation import Reference, Settings, evaluate_against, prepare_reference
from vits_prune.study.knee import check_measured, compared, seeds_for
from vits_prune.study.sweep_store import csv_of, plain
from vits_prune.voices.saved import save_voice
from vits_prune.voices.sparse_file import encode
from vits_prune.voices.voice import Voice

MARGIN = 0.97
"""Of the latency limit, for a cheap cut: a few runs may be too favourable."""
SHAPES, ZEROED = 4, 2
"""How many shapes are pruned with care, and how many of them get zeros."""
VERIFIED, PROMISING = 2, 5
"""How many candidates are verified, and how many if they kept all limits so far."""
LOOSER = 2
"""How many slower shapes are pruned if all within a limit of time lose too much."""
FINAL_RUNS = 9
MAX_ZEROS = 0.95
"""With more zeros no voice speaks."""
ZERO_TRIES = 4
SLOPE, FIXED = 1.4, 0.1
"""Time over the original's is about SLOPE x the arithmetic left + FIXED, in sparse kernels."""
_FINE = 0.001
Specs = tuple[PruneSpec, ...]
ShapeEstimates = Sequence[ShapeEstimate]


def solve_budget(
    voice: Voice,
    budget: Budget,
    texts: Sequence[str],
    held_out: Sequence[str],
    settings: Settings | None = None,
    *,
    progress: Progress = SILENT,
) -> Solution:
    """Return the least damaged voice that keeps a budget, or the nearest to it.

    Candidates are compared on `texts`; the verdict is made on `held_out`, with no sentence of them.
    Of the settings the seed, the recogniser and the delivery are used.

    Raises:
        InputError: nothing can be said, a limited metric cannot be measured on this voice, or no
            text is left to verify on.
    """
    start = time.perf_counter()
    if set(texts) & set(held_out):
        raise InputError("Give other sentences for the verdict than for the choice.")
    mb = dense_megabytes(voice)
    if budget.max_latency_ratio is None and mb <= (budget.max_mb or 0):
        words = f"{voice.name} takes {mb:.1f} MB: a limit of {budget.max_mb:g} MB"
        raise InputError(f"{words} asks for nothing: give less.")
    families = tuple({METRICS[limit.metric].family for limit in budget.judged})
    seeds = seeds_for(budget.judged)
    settings = dataclasses.replace(settings or Settings(), metrics=families, noise_seeds=seeds)
    chosen_on = prepare_reference(voice, texts, settings, progress=progress.part(0.0, 0.05))
    check_measured(budget.judged, chosen_on)
    part = progress.part(0.05, 0.15)
    estimates = estimate_shapes(voice, chosen_on.texts[0], settings.seed, progress=part)
    search = BudgetSearch(voice, budget, chosen_on, estimates)
    search.run(progress.part(0.15, 0.8))
    verified_on = prepare_reference(voice, held_out, settings, progress=progress.part(0.8, 0.85))
    chosen = search.verify(verified_on, progress.part(0.85, 1.0))
    progress.report("done", 1.0)
    return Solution(
        name=voice.name,
        budget=budget,
        chosen=chosen,
        kept=not budget.broken(chosen),
        sentences=sentences_of(budget, chosen, search.tried),
        tried=tuple(search.tried),
        voice=search.voices[chosen],
        texts=(len(chosen_on.texts), len(verified_on.texts)),
        seconds=time.perf_counter() - start,
    )


class BudgetSearch:
    """What was tried so far to keep a budget."""

    def __init__(
        self, voice: Voice, budget: Budget, reference: Reference, shapes: ShapeEstimates = ()
    ) -> None:
        """Begin with the original; `reference` is of the texts that candidates are compared on."""
        self.tried: list[Candidate] = []
        self.voices: dict[Candidate, Voice] = {}
        self._voice, self._budget, self._reference = voice, budget, reference
        self._estimates = shapes
        self._text, self._seed = reference.texts[0], reference.settings.seed
        self._mb = dense_megabytes(voice)
        # Bytes of the file over those of the parameters: weight norm takes some.
        self._overhead = self._mb / (4e-6 * count_parameters(voice))

    def add(self, candidate: Candidate, voice: Voice) -> None:
        """Keep a candidate and its voice."""
        self.tried.append(candidate)
        self.voices[candidate] = voice

    def run(self, progress: Progress) -> None:
        """Try shapes and zeros, slower shapes if all lose too much, then zeros for the size."""
        shapes = self._find_shapes(progress.part(0.0, 0.1))
        part = progress.part(0.1, 0.4)
        for i, shape in enumerate(shapes):
            self._try_shape(shape, part.part(i / len(shapes), (i + 1) / len(shapes)))
        ratio, damage = self._budget.max_latency_ratio, self._budget.damage
        sparse = ratio if engine_of(self._voice) is not None else None
        if sparse:
            self._try_sparse(self._voice, (), sparse, progress.part(0.4, 0.5))
        if ratio and all(damage(one) > 1 for one in self._measured):
            self._try_slower(ratio, progress.part(0.5, 0.6))
            slow = [one for one in self._measured if one.specs[-1].shape]
            slow = [one for one in slow if "latency" in self._budget.broken(one)]
            if sparse and slow:
                base = min(slow, key=damage)
                part = progress.part(0.6, 0.65)
                self._try_sparse(self.voices[base], base.specs, sparse, part)
        if self._budget.max_mb is not None:
            self._try_zeros(self._budget.max_mb, progress.part(0.65, 1.0))

    def verify(self, reference: Reference, progress: Progress = SILENT) -> Candidate:
        """Measure the best on held-out sentences, until one keeps all limits; return the best."""
        order = sorted(self._measured, key=self._rank)
        promising = sum(not self._budget.broken(one) for one in order)
        order = order[: max(VERIFIED, min(PROMISING, promising))]
        found = []
        for i, one in enumerate(order):
            part, voice = progress.part(i / len(order), (i + 1) / len(order)), self.voices[one]
            ratio, macs = time_against(self._voice, voice, self._text, self._seed, FINAL_RUNS)
            quality = _quality(self._budget, reference, voice, part)
            final = dataclasses.replace(one, latency_ratio=ratio, macs_ratio=macs)
            final = dataclasses.replace(final, stage="verified", quality=quality)
            final = dataclasses.replace(final, signature=reference.signature)
            found.append(final)
            self.add(final, voice)
            if not self._budget.broken(final):
                break
        return min(found, key=self._rank)

    @property
    def _measured(self) -> list[Candidate]:
        return [one for one in self.tried if one.stage != "cut"]

    def _rank(self, candidate: Candidate) -> tuple[int, float, float]:
        """Rank by the number of broken limits, then by the overshoot, then by the damage."""
        loads = self._budget.loads(candidate).values()
        worst = max(1.0, *(math.inf if math.isnan(load) else load for load in loads))
        return len(self._budget.broken(candidate)), worst, self._budget.damage(candidate)

    def _find_shapes(self, progress: Progress) -> list[Shape]:
        """Find shapes within the limit of time, or without one, of the sizes that may be needed."""
        ratio = self._budget.max_latency_ratio
        if ratio is None:
            most = self._budget.max_mb or 0.0
            sizes = [0.98 * limit / self._overhead for limit in (math.sqrt(most * self._mb), most)]
            found = [one for mb in sizes for one in best_shapes(self._estimates, 1, max_mb=mb)]
            return list(dict.fromkeys(one.shape for one in found))
        shapes: list[Shape] = []
        aim = ratio * MARGIN
        for turn in range(3 * SHAPES):
            widths = {shape.decoder_width for shape in shapes}
            fast = best_shapes(self._estimates, 99, max_time=aim)
            left = [one.shape for one in fast if one.shape.decoder_width not in widths]
            if not left or len(shapes) == SHAPES:
                break
            progress.report("timing shapes", turn / (3 * SHAPES))
            found_ratio = self._time_cut(left[0])
            if found_ratio <= ratio * MARGIN:
                shapes.append(left[0])
            else:  # the prediction was too good: aim as much lower
                aim = min(aim * 0.97, aim * ratio * MARGIN / found_ratio)
        return shapes or [min(self._estimates, key=lambda one: one.time).shape]

    def _time_cut(self, shape: Shape) -> float:
        """Return the latency ratio of a cheap cut, which takes as long as a careful one."""
        small = cut(self._voice, choose(self._voice, shape))
        ratio, macs = time_against(self._voice, small, self._text, self._seed, RUNS)
        count = count_parameters(small)
        specs, mb = (self._spec(shape),), 4e-6 * count * self._overhead
        self.tried.append(Candidate(specs, "cut", count, "dense", mb, ratio, macs))
        return ratio.median

    def _spec(self, shape: Shape) -> PruneSpec:
        return PruneSpec(method="structured", shape=shape, seed=self._seed)

    def _try_shape(self, shape: Shape, progress: Progress) -> None:
        spec = self._spec(shape)
        part = progress.part(0.0, 0.6, f"{in_words(spec)}: ")
        small = prune(self._voice, spec, progress=part)
        known = next((one for one in self.tried if one.specs == (spec,)), None)
        if known:
            self.tried.remove(known)
        self._measure((spec,), small, progress.part(0.6, 1.0))

    def _try_sparse(self, voice: Voice, specs: Specs, ratio: float, progress: Progress) -> None:
        """Add zeros to a voice, where they save most time, until it is within the limit of time."""

        def excess(pruned: Voice) -> float:
            timed, _ = time_against(self._voice, pruned, self._text, self._seed, RUNS)
            return timed.median - MARGIN * ratio

        part = progress.part(0.0, 0.7)
        spec, pruned = fit_time(voice, ratio, excess, self._seed, progress=part)
        self._measure((*specs, spec), pruned, progress.part(0.7, 1.0))

    def _try_slower(self, ratio: float, progress: Progress) -> None:
        """Try shapes between the limit of time and the original, to show what quality costs."""
        for turn in range(LOOSER):
            ratio = math.sqrt(ratio)
            for one in best_shapes(self._estimates, 1, max_time=ratio):
                if all(one.shape != tried.specs[0].shape for tried in self._measured):
                    part = progress.part(turn / LOOSER, (turn + 1) / LOOSER)
                    self._try_shape(one.shape, part)

    def _try_zeros(self, max_mb: float, progress: Progress) -> None:
        """Add zeros where a file is still too large.

        The bases are the least damaged shapes, those within the limit of time first, with the
        least damaged of the others among them; without a limit of time, the whole voice too.
        """

        large = [one for one in self._measured if one.mb > max_mb]
        large.sort(key=self._budget.damage)
        slow = [one for one in large if "latency" in self._budget.broken(one)]
        chosen = [*(one for one in large if one not in slow), *slow][:ZEROED]
        if slow and slow[0] not in chosen:
            chosen[-1] = slow[0]
        bases = [(self.voices[one], one.specs) for one in chosen]
        if self._budget.max_latency_ratio is None:
            bases = [(self._voice, ()), *bases][:ZEROED]
        for i, (voice, specs) in enumerate(bases):
            part = progress.part(i / len(bases), (i + 1) / len(bases))
            zeros = part.part(0.0, 0.7)
            spec, pruned = fit_zeros(voice, 1e6 * max_mb, self._seed, progress=zeros)
            self._measure((*specs, spec), pruned, part.part(0.7, 1.0))

    def _measure(self, specs: Specs, voice: Voice, progress: Progress) -> None:
        timed = time_against(self._voice, voice, self._text, self._seed, RUNS)
        dense, sparse = dense_megabytes(voice), sparse_bytes(voice) / 1e6
        quality = _quality(self._budget, self._reference, voice, progress)
        kind: Literal["dense", "sparse"] = "sparse" if sparse < dense else "dense"
        mb, count = min(sparse, dense), count_parameters(voice)
        signature = self._reference.signature
        self.add(Candidate(specs, "chosen", count, kind, mb, *timed, quality, signature), voice)


def fit_zeros(
    voice: Voice, max_bytes: float, seed: int = 0, *, progress: Progress = SILENT
) -> tuple[PruneSpec, Voice]:
    """Set the fewest weights to zero, to a thousandth, with which the sparse file is small enough.

    The amount is bisected with plain magnitude, whose file is about as large, then pruned with
    care and corrected by the bytes that it gives. If MAX_ZEROS is too few the file is too large.

    Raises:
        InputError: the voice can say nothing for calibration.
    """
    low, high = 0.0, MAX_ZEROS
    while high - low > 0.01:
        progress.report("looking for the number of zeros", 0.0)
        middle = (low + high) / 2
        fits = sparse_bytes(prune(voice, PruneSpec(amount=middle))) <= max_bytes
        low, high = (low, middle) if fits else (middle, high)
    around = [sparse_bytes(prune(voice, PruneSpec(amount=amount))) for amount in (0.6, 0.8)]
    slope = max(1.0, (around[0] - around[1]) / 0.2)
    careful = PruneSpec(method="second_order", amount=high, seed=seed)
    return _fit(voice, careful, lambda one: (sparse_bytes(one) - max_bytes) / slope, 0.01, progress)


def fit_time(
    voice: Voice,
    ratio: float,
    excess: Callable[[Voice], float],
    seed: int = 0,
    *,
    progress: Progress = SILENT,
) -> tuple[PruneSpec, Voice]:
    """Set as much arithmetic to zero as a limit of time asks for, and hardly more.

    `excess` says by how much of the original's time a voice exceeds the limit `ratio`. If MAX_ZEROS
    is too little the voice is too slow.

    Raises:
        InputError: the voice can say nothing for calibration.
    """
    amount = min(MAX_ZEROS, 1 - (ratio - FIXED) / SLOPE)
    careful = PruneSpec("second_order", "sensitivity", amount, seed=seed, cost="macs")
    return _fit(voice, careful, lambda one: excess(one) / SLOPE, 0.03, progress)


def _fit(
    voice: Voice,
    careful: PruneSpec,
    over: Callable[[Voice], float],
    near: float,
    progress: Progress,
) -> tuple[PruneSpec, Voice]:
    """Correct the amount of a spec by how much more is needed, until hardly more is taken."""
    layers = prunable_layers(voice)
    costs = macs_per_weight(voice) if careful.cost == "macs" else {}
    sizes = {one.name: one.weights * costs.get(one.parameter, 1) for one in layers}
    free = sum(size for name, size in sizes.items() if not careful.protects(name))
    most = min(MAX_ZEROS, 0.999 * free / max(1, sum(sizes.values())))
    amount, best = min(most, careful.amount), None
    for turn in range(ZERO_TRIES):
        spec = dataclasses.replace(careful, amount=math.floor(1e4 * amount) / 1e4)
        part = progress.part(turn / ZERO_TRIES, (turn + 1) / ZERO_TRIES, "zeros: ")
        pruned = prune(voice, spec, progress=part)
        more = over(pruned)
        if more <= 0 and (best is None or spec.amount < best[0].amount):
            best = spec, pruned
        if -near < more <= 0 or (spec.amount == 0 if more <= 0 else spec.amount >= most - _FINE):
            break
        amount = min(most, max(0.0, amount + more + near / 5))
    progress.report("zeros set", 1.0)
    return best or (spec, pruned)


def sparse_bytes(voice: Voice) -> int:
    """Return the size of the lossless sparse file."""
    return len(encode({name: tensor.float() for name, tensor in voice.model.named_parameters()}))


def dense_megabytes(voice: Voice) -> float:
    """Return the size of the file of weights, dense float32, in the folder of a saved voice."""
    with tempfile.TemporaryDirectory() as folder:
        saved = save_voice(voice, Path(folder) / "voice")
        return (saved / "model.safetensors").stat().st_size / 1e6


def check_empty(folder: Path) -> None:
    """Raise InputError if a folder holds something, or is a file."""
    if names_in(folder) or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is not empty: give a folder that is new or empty.")


def save_solution(solution: Solution, folder: Path) -> list[Path]:
    """Write the voice, its sparse file if that is smaller, budget.json, tried.csv and the chart.

    The folder appears whole or not at all. Return what was written.

    Raises:
        InputError: the disk does not take them, or the folder is not empty.
    """
    check_empty(folder)
    try:
        with replaced_folder(folder) as new:
            written = [save_voice(solution.voice, new / "voice")]
            if solution.chosen.file == "sparse":
                weights = solution.voice.model.named_parameters()
                written.append(new / "voice.sparse.safetensors")
                written[-1].write_bytes(encode({name: tensor.float() for name, tensor in weights}))
            write_json(new / "budget.json", plain(solution.to_dict()))
            budget, chosen = solution.budget, solution.chosen
            tried = solution.tried
            rows = [{**plain(one.to_row(budget)), "chosen": one is chosen} for one in tried]
            write_file(new / "tried.csv", csv_of(rows))
            written += [new / "budget.json", new / "tried.csv"]
            written += save_figure(pareto_figure(solution), new, "pareto")
    except OSError as error:
        words = f"The files could not be written to {folder}: {error.strerror or error}."
        raise InputError(words) from error
    return [folder / path.name for path in written]


def _quality(
    budget: Budget, reference: Reference, voice: Voice, progress: Progress
) -> dict[str, Interval]:
    figures = evaluate_against(reference, voice, progress=progress).figures
    found = {limit.metric: compared(figures.get(limit.metric)) for limit in budget.judged}
    return {name: one for name, one in found.items() if one is not None}
