"""Comparison: two voices on one text, what both said, and the measures of each as tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from vits_prune.errors import InputError
from vits_prune.measure import (
    Latency,
    Size,
    Sparsity,
    Spread,
    VoiceLatency,
    measure_latency,
    measure_size,
    measure_sparsity,
)
from vits_prune.measure.utterances import quoted
from vits_prune.progress import SILENT, Progress
from vits_prune.synthesis.speak import STAGES, Delivery, Speech, check_kernels, checked_seed, speak
from vits_prune.voices.voice import Voice

DEFAULT_TEXT = "The birch canoe slid on the smooth planks."
"""The first of the Harvard sentences (IEEE 1969, public domain)."""
TIMINGS = ("own", "locked")
"""Whose durations the pruned voice uses: its own, or the original's ("locked": sample-aligned)."""
PART_NAMES = {
    "text_encoder": "text encoder",
    "duration_predictor": "duration predictor",
    "flow": "flow",
    "decoder": "decoder",
    "speaker": "speaker table",
}
STAGE_NAMES = {
    "text": "text encoder",
    "durations": "durations",
    "flow": "flow",
    "decoder": "decoder",
    "total": "all stages",
}
_PAIR = ["what", "original", "pruned", "pruned / original", "in words"]
_RUNS = [f"{name}, {end} run" for name in ("original", "pruned") for end in ("lowest", "highest")]
_COLUMNS = {
    "sparsity": ["part", "weights", "zeros before", "zeros after", "sparsity (%)", "removed"],
    "size": _PAIR,
    "latency": [*_PAIR, *_RUNS],
    "layers": [
        *("layer", "kind", "sparsity (%)", "left alone because", "shape"),
        *("weights", "zeros", "part"),
    ],
}
EMPTY = {name: pd.DataFrame(columns=columns) for name, columns in _COLUMNS.items()}
"""Tables without rows, for a page that has not measured yet."""
SAVINGS = pd.DataFrame(
    [
        (
            "single weights (magnitude, random, activation, second order)",
            "become zero in their place; every tensor keeps its shape",
            "only in the sparse file; dense files and memory stay as they are",
            "with this library's sparse kernels on a CPU, from about half zeros on; in dense "
            "kernels a zero costs what any other number costs",
        ),
        (
            "a 2:4 pattern of them",
            "2 of every 4 neighbours become zero",
            "in the sparse file, and in the GPU's own 2:4 format",
            "on sparse tensor cores (NVIDIA Ampere and later); on a CPU like single weights",
        ),
        (
            "channels and layers (structured)",
            "are taken out; tensors get smaller",
            "yes: in every file and in memory",
            "yes: on any hardware",
        ),
    ],
    columns=["what goes", "what happens to it", "saves bytes", "saves time"],
)
"""What each kind of pruning saves."""
ZEROS_COST = "dense kernels: a zero costs what any other number costs"
DENSE_TOTAL = "all stages, dense (ms)"
FIRST_SOUND, PEAK_MEMORY = "time to first sound (ms)", "peak memory (MB)"
PREDICTED = ", predicted (ms)"
"""Ends the name of a row about the kernels of one part."""
_GONE = "structured: channels or layers are gone, and their {} with them"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two voices on one text. Pairs hold the original's first."""

    text: str
    seed: int
    timing: str
    voices: tuple[Voice, Voice]
    original: Speech
    pruned: Speech
    sparsity: tuple[Sparsity, Sparsity]
    size: tuple[Size, Size]
    latency: Latency

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the measures as pandas tables: "sparsity", "layers", "size", "latency"."""
        return {
            "sparsity": sparsity_table(*self.sparsity),
            "layers": layer_table(self.sparsity[1]),
            "size": size_table(*self.size),
            "latency": latency_table(self.latency),
        }

    def report(self) -> dict[str, Any]:
        """Return all measures as JSON-able values.

        The name of a number ends in its unit. Ratios and shares (0 to 1) have none.
        """
        (voice, pruned), (before, after) = self.voices, self.sparsity
        recipe, names = dict(pruned.recipe), ("original", "pruned")
        return {
            "voice": voice.name,
            "reference": voice.origin.reference,
            "revision": voice.origin.revision,
            "licence": voice.origin.licence,
            "speaker": voice.speaker,
            "text": self.text,
            "seed": self.seed,
            "timing": self.timing,
            "spec": recipe["pruned"][-1] if recipe.get("pruned") else None,
            "recipe": recipe,
            "sparsity": {"overall": after.overall, "parts": after.parts}
            | {"original_overall": before.overall},
            "size": dict(zip(names, map(dataclasses.asdict, self.size), strict=True)),
            "latency": json.loads(json.dumps(dataclasses.asdict(self.latency))),
            "audio": {
                name: {
                    "audio_seconds": speech.audio_seconds,
                    "sampling_rate_hz": speech.sampling_rate,
                    "frames": int(speech.durations.sum()),
                    "dropped_symbols": list(speech.dropped),
                    "cut_short": speech.cut_short,
                    "unspoken": list(speech.unspoken),
                }
                for name, speech in zip(names, (self.original, self.pruned), strict=True)
            },
            "free_cut": dataclasses.asdict(voice.free_cut),
        }

    def __str__(self) -> str:
        lines = [f"{self.voices[0].name}: {self.text}"]
        for name, table in self.tables().items():
            if name != "layers":
                shown = table.dropna(axis="columns", how="all")
                lines += ["", name, shown.to_string(index=False, na_rep="")]
        for words in what_was_lost(self.original, self.pruned):
            lines += ["", words]
        return "\n".join(lines)


def compare(
    original: Voice,
    pruned: Voice,
    text: str,
    seed: int = 0,
    *,
    timing: Literal["own", "locked"] = "own",
    delivery: Delivery = Delivery(),
    runs: int = 5,
    kernels: str = "auto",
    progress: Progress = SILENT,
) -> Comparison:
    """Speak one text with two voices and measure both.

    Args:
        original, pruned: a voice, and what `prune` made of it.
        text, seed, delivery: what both speak and how; the seed is 0 to 2**32 - 1.
        timing: one of TIMINGS.
        runs: timed runs of each voice.
        kernels: what both are timed with, as for `speak`. "auto" gives each voice its best ones.
        progress: may raise to cancel.

    Raises:
        InputError: the text cannot be spoken, or a value is out of range.
    """
    if timing not in TIMINGS:
        raise InputError(f"timing must be one of {', '.join(TIMINGS)}, not {str(timing)[:40]!r}.")
    if isinstance(runs, bool) or not isinstance(runs, int) or not 1 <= runs <= 1000:
        raise InputError("runs must be a whole number from 1 to 1000.")
    check_kernels(kernels)
    seed, voices = checked_seed(seed), (original, pruned)
    parts = [progress.part(0.0, 0.2, "original: "), progress.part(0.2, 0.4, "pruned: ")]
    first = speak(original, text, seed, delivery, progress=parts[0])
    durations: Literal["own"] | Speech = first if timing == "locked" else "own"
    second = speak(pruned, text, seed, delivery, timing=durations, progress=parts[1])
    progress.report("counting zeros and bytes", 0.4)
    sparsity = measure_sparsity(original), measure_sparsity(pruned)
    size, part = (measure_size(original), measure_size(pruned)), progress.part(0.5, 1.0, "timing: ")
    how: dict[str, Any] = {"delivery": delivery, "runs": runs, "kernels": kernels}
    latency = measure_latency(*voices, text, seed, progress=part, **how)
    return Comparison(text, seed, timing, voices, first, second, sparsity, size, latency)


def what_was_lost(original: Speech, pruned: Speech) -> Iterator[str]:
    """Yield sentences about what two voices did not say: symbols, and words beyond a limit."""
    if original.dropped:
        symbols = " ".join(symbol.strip() or "␣" for symbol in original.dropped[:40])
        yield f"The voice has no symbol for: {symbols}"
    if original.cut_short:
        yield "A sentence is longer than the longest speech and was cut: write shorter ones."
    elif pruned.cut_short:
        yield "The pruned voice's durations ran away: a sentence was cut at the longest speech."
    lost, missing = original.unspoken, pruned.unspoken
    if lost and lost == missing:
        yield f"Neither voice said {quoted(lost)}."
    else:
        for who, ends in (("original", lost), ("pruned voice", missing)):
            if ends:
                yield f"The {who} did not say {quoted(ends)}."


def sparsity_table(original: Sparsity, pruned: Sparsity) -> pd.DataFrame:
    """Return zeros overall and by part, and how many weights were removed."""
    rows = []
    for part in (None, *pruned.parts):
        name = "whole voice" if part is None else PART_NAMES[part]
        weights, zeros = pruned.weights(part), pruned.zeros(part)
        share = round(100 * zeros / max(1, weights), 2)
        removed = original.weights(part) - weights
        rows.append((name, weights, original.zeros(part), zeros, share, removed))
    return pd.DataFrame(rows, columns=_COLUMNS["sparsity"])


def layer_table(pruned: Sparsity) -> pd.DataFrame:
    """Return each layer's sparsity, or why the layer was left alone."""
    rows = [
        (
            *(row.layer.name, row.layer.kind, round(100 * row.sparsity, 2), row.note),
            *(" × ".join(map(str, row.layer.shape)), row.layer.weights),
            *(row.zeros, PART_NAMES[row.layer.part]),
        )
        for row in pruned.layers
    ]
    return pd.DataFrame(rows, columns=_COLUMNS["layers"])


def size_table(original: Size, pruned: Size) -> pd.DataFrame:
    """Return parameters, file sizes and memory; sizes in MB of 1,000,000 bytes."""
    dense = "every zero is written out in full: only another format makes the file smaller"
    held, place = "zeros are held like other numbers", "zeros still have their place in the tensors"
    if pruned.parameters < original.parameters:
        dense = held = _GONE.format("bytes")
        place = _GONE.format("weights")
    sparse = "bitmask of the zeros, the other values, compressed"
    if pruned.sparse_fp32_bytes > pruned.dense_fp16_bytes:
        sparse = "at this sparsity plain fp16 is smaller still, though not lossless"
    rows = []
    for what, field, words in (
        ("parameters (M)", "parameters", place),
        ("parameters that are not zero (M)", "nonzero_parameters", ""),
        ("file, dense fp32 (MB)", "dense_fp32_bytes", dense),
        ("file, dense fp16 (MB)", "dense_fp16_bytes", dense),
        ("file, sparse fp32, lossless (MB)", "sparse_fp32_bytes", sparse),
        ("memory, ready to speak (MB)", "memory_bytes", held),
    ):
        before, after = getattr(original, field), getattr(pruned, field)
        same = after >= 0.995 * before and not words.startswith("at this sparsity")
        numbers = round(before / 1e6, 3), round(after / 1e6, 3), round(after / max(1, before), 3)
        rows.append((what, *numbers, ": ".join(filter(None, ("no smaller" * same, words)))))
    return pd.DataFrame(rows, columns=_PAIR)


def latency_table(latency: Latency, pattern: str = "") -> pd.DataFrame:
    """Return times by stage, real-time factor, memory, arithmetic, and the kernels of each part.

    With the pattern of the zeros the table names the hardware that would gain from it.
    """
    before, after = latency.original, latency.pruned
    rows = [
        _row(f"{STAGE_NAMES[one]} (ms)", before.stage_seconds[one], after.stage_seconds[one], 1e3)
        for one in (*STAGES, "total")
    ]
    fewer = f"{_GONE.format('arithmetic')}, on any hardware"
    sparse = "what sparse kernels would compute if they ran everything"
    if pattern == "2:4":
        sparse += "; sparse tensor cores (NVIDIA Ampere and later) do skip the zeros of 2:4"
    dense, time = fewer if _fewer_macs(latency) else ZEROS_COST, "CPU-s per s of speech"
    if before.sparse or after.sparse:
        rows[-1]["in words"] = "each voice with the kernels named above, not all of them dense"
    first, second = (one.dense_seconds or one.stage_seconds["total"] for one in (before, after))
    rows.append(_row(DENSE_TOTAL, first, second, 1e3, dense))
    for what, field, factor, words in (
        ("real-time factor (s per s of speech)", "real_time_factor", 1.0, _speed_words(latency)),
        (FIRST_SOUND, "first_sound_seconds", 1e3, "from the text to its first sentence's samples"),
        (PEAK_MEMORY, "peak_memory_bytes", 1e-6, "weights, sparse kernels, and what speaking took"),
        (f"processor time ({time})", "cpu_seconds_per_audio_second", 1.0, "all threads together"),
        ("multiply-accumulates, dense (G)", "dense_macs", 1e-9, dense),
        ("multiply-accumulates with a non-zero weight (G)", "nonzero_macs", 1e-9, sparse),
    ):
        first, second = getattr(before, field), getattr(after, field)
        if first is not None and second is not None:
            rows.append(_row(what, first, second, factor, words))
    return pd.DataFrame([*rows, *_kernel_rows(before, after)], columns=_COLUMNS["latency"])


def _kernel_rows(before: VoiceLatency, after: VoiceLatency) -> Iterator[dict[str, Any]]:
    """Yield what "auto" chose for each part that both voices have, and what it was chosen by."""
    known = {one.unit: one for one in before.kernels}
    for one in after.kernels:
        if one.unit in known:
            chosen, other = ("sparse", "dense")[:: 1 if one.sparse else -1]
            words = f"{chosen}, as {100 * one.density:.0f}% of its weights are not zero: {other}"
            words += f" {1e3 * (one.dense_seconds if one.sparse else one.sparse_seconds):.3g} ms"
            yield _row(f"{one.unit}{PREDICTED}", known[one.unit].seconds, one.seconds, 1e3, words)


def speed_of(latency: Latency) -> float:
    """Return how many times as fast the pruned voice is, by the medians."""
    before, after = (
        one.stage_seconds["total"].median for one in (latency.original, latency.pruned)
    )
    return before / after


def is_faster(latency: Latency) -> bool:
    """Return whether the pruned voice is faster: it computes less, and was faster in every run.

    With the same arithmetic in the same kernels a difference is the noise of the machine.
    """
    return _computes_less(latency) and latency.speed_up.low > 1.0 and speed_of(latency) >= 1.05


def _speed_words(latency: Latency) -> str:
    runs = latency.speed_up
    spread = f"{speed_of(latency):.2f}× the speed (run by run: {runs.low:.2f} to {runs.high:.2f})"
    if is_faster(latency):
        skipped = ", ".join(latency.pruned.sparse)
        return f"faster: {spread}" + (f"; zeros are skipped in {skipped}" if skipped else "")
    return f"not faster: {spread}" + ("" if _computes_less(latency) else f"; {ZEROS_COST}")


def _computes_less(latency: Latency) -> bool:
    """Return whether the pruned voice has less to do with the kernels that it ran with."""
    fewer = latency.pruned.nonzero_macs < latency.original.nonzero_macs
    return _fewer_macs(latency) or (bool(latency.pruned.sparse) and fewer)


def _fewer_macs(latency: Latency) -> bool:
    """Return whether dense kernels have less to do, as without channels that were removed."""
    return latency.pruned.dense_macs < latency.original.dense_macs


def _row(
    what: str, before: Spread | float, after: Spread | float, factor: float, words: str = ""
) -> dict[str, Any]:
    """Return a row of two values; those of several runs have their lowest and highest too."""
    first, second = (one.median if isinstance(one, Spread) else one for one in (before, after))
    numbers = {"original": first, "pruned": second}
    for name, spread in (("original", before), ("pruned", after)):
        if isinstance(spread, Spread):
            numbers |= {f"{name}, lowest run": spread.low, f"{name}, highest run": spread.high}
    ratio = round(second / first, 3) if first else None
    rounded = {name: float(f"{factor * number:.4g}") for name, number in numbers.items()}
    return {"what": what, **rounded, "pruned / original": ratio, "in words": words}
