"""Comparison: two voices on one text, what both said and the measures of each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vits_prune.errors import InputError
from vits_prune.measure import (
    Latency,
    Size,
    Sparsity,
    measure_latency,
    measure_size,
    measure_sparsity,
)
from vits_prune.progress import SILENT, Progress
from vits_prune.synthesis.speak import Delivery, Speech, checked_seed, speak
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_TEXT = "The birch canoe slid on the smooth planks."
"""The first of the Harvard sentences (IEEE 1969, public domain)."""
TIMINGS = ("own", "locked")
"""Whose durations the pruned voice uses: its own, or the original's ("locked": sample-aligned)."""


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
        from vits_prune.study import tables

        return {
            "sparsity": tables.sparsity_table(*self.sparsity),
            "layers": tables.layer_table(self.sparsity[1]),
            "size": tables.size_table(*self.size),
            "latency": tables.latency_table(self.latency),
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
            "sparsity": {
                "overall": after.overall,
                "parts": after.parts,
                "original_overall": before.overall,
            },
            "size": dict(zip(names, map(dataclasses.asdict, self.size), strict=True)),
            "latency": dataclasses.asdict(self.latency),
            "audio": {
                name: {
                    "audio_seconds": speech.audio_seconds,
                    "sampling_rate_hz": speech.sampling_rate,
                    "frames": int(speech.durations.sum()),
                    "dropped_symbols": list(speech.dropped),
                    "cut_short": speech.cut_short,
                }
                for name, speech in zip(names, (self.original, self.pruned), strict=True)
            },
            "free_cut": dataclasses.asdict(voice.free_cut),
        }

    def __str__(self) -> str:
        tables = self.tables()
        lines = [f"{self.voices[0].name}: {self.text}"]
        for name in ("sparsity", "size", "latency"):
            table = tables[name].dropna(axis="columns", how="all")
            lines += ["", name, table.to_string(index=False, na_rep="")]
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
    progress: Progress = SILENT,
) -> Comparison:
    """Speak one text with two voices and measure both.

    Args:
        original: the voice to compare with.
        pruned: the voice that `prune` made from it.
        text: what both speak.
        seed: noise of both, 0 to 2**32 - 1.
        timing: "own": each with its own durations; "locked": both with the original's, so that
            they are sample-aligned.
        delivery: speaking rate and noise scales.
        runs: timed runs of each voice.
        progress: may raise to cancel.

    Raises:
        InputError: the text cannot be spoken, or a value is out of range.
    """
    progress = Progress.of(progress)
    if timing not in TIMINGS:
        raise InputError(f"timing must be one of {', '.join(TIMINGS)}, not {str(timing)[:40]!r}.")
    if isinstance(runs, bool) or not isinstance(runs, int) or not 1 <= runs <= 1000:
        raise InputError("runs must be a whole number from 1 to 1000.")
    seed = checked_seed(seed)
    first = speak(original, text, seed, delivery, progress=progress.part(0.0, 0.2, "original: "))
    second = speak(
        pruned,
        text,
        seed,
        delivery,
        timing=first if timing == "locked" else "own",
        progress=progress.part(0.2, 0.4, "pruned: "),
    )
    progress.report("counting zeros and bytes", 0.4)
    sparsity = (measure_sparsity(original), measure_sparsity(pruned))
    size = (measure_size(original), measure_size(pruned))
    latency = measure_latency(
        original,
        pruned,
        text,
        seed,
        delivery=delivery,
        runs=runs,
        progress=progress.part(0.5, 1.0, "timing: "),
    )
    return Comparison(
        text, seed, timing, (original, pruned), first, second, sparsity, size, latency
    )
