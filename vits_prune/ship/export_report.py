"""What an export came to: size, speed and closeness to the voice, and in words where it is worse."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vits_prune.errors import InputError
from vits_prune.measure.closeness import log_mel, measure_rhythm
from vits_prune.measure.weights import measure_size
from vits_prune.ship import bench as standalone
from vits_prune.ship.bench_folder import plan_of
from vits_prune.ship.formats import Export, Step, write_float32_twin
from vits_prune.synthesis.speak import speak
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    import pandas as pd

_SENTENCES = 3
_AUDIBLE_DB = 1.0
"""Mean difference of mel levels above which an export is called worse; another seed of the noise moves joe's by several dB."""
_DRIFT = 0.02
_ROUNDS = 3
"""Times that an ONNX file is timed, each in a process of its own; a rounded one in turn with its float32 twin."""
_MARGIN = 0.05
"""A verdict on speed needs every round beyond this."""


Round = tuple[float, float]
"""Seconds of loading and the real-time factor."""


@dataclass(frozen=True)
class Fidelity:
    """How far the weights of an export are from the voice's, in its speech."""

    log_mel_db: float
    """Mean absolute difference of mel band levels, same timing and noise."""
    drift: float
    """Mean relative change of a token's duration, own timing."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    megabytes: float
    share: float
    """Of a dense float32 file of the same voice."""
    load_ms: float | None = None
    real_time_factor: float | None = None
    fidelity: Fidelity | None = None
    words: str = ""
    rounds: tuple[Round, ...] = ()
    """Of an ONNX file, that the two figures are the medians of."""


def measure_fidelity(voice: Voice, shipped: Voice) -> Fidelity:
    """Compare what two voices of the same shape say."""
    ours, theirs = dict(voice.model.named_parameters()), dict(shipped.model.named_parameters())
    if all(bool((ours[name] == theirs[name]).all()) for name in ours):
        return Fidelity(0.0, 0.0)
    levels, drifts = [], []
    for sentence in plan_of(voice, _SENTENCES)["sentences"]:
        first = speak(voice, sentence["text"])
        aligned = speak(shipped, sentence["text"], timing=first)
        mels = [
            log_mel(np.nan_to_num(speech.waveform), voice.sampling_rate)
            for speech in (first, aligned)
        ]
        levels.append(float(np.mean(np.abs(mels[0] - mels[1])) * 20 / np.log(10)))
        drifts.append(measure_rhythm(first, speak(shipped, sentence["text"])).duration_drift or 0.0)
    return Fidelity(float(np.mean(levels)), float(np.mean(drifts)))


def measure_export(
    voice: Voice,
    export: Export,
    *,
    runs: int = 3,
    float32: Row | None = None,
    progress: Step | None = None,
) -> list[Row]:
    """The export beside the sizes of the plain files of the same voice; rounded ONNX files beside the speed of the float32 one.

    Args:
        voice: what was exported.
        export: what `export_voice` made of it.
        runs: counted runs of every sentence in the timing of an ONNX file, shared out among the rounds.
        float32: the row of the same voice's float32 ONNX export, where that was measured a moment ago: a rounded one is held against
            it, and no float32 file is written and timed again.
        progress: told of the progress; it may raise to cancel.

    Returns:
        Rows of sizes for scale, the export's own last.

    Raises:
        InputError: the ONNX file cannot be timed; the sentence says why.
    """
    tell = progress or (lambda _what, _share: None)
    tell("measuring sizes", 0.0)
    size = measure_size(voice)
    kinds = {
        "dense fp32": size.dense_fp32_bytes,
        "dense fp16": size.dense_fp16_bytes,
        "sparse fp32": size.sparse_fp32_bytes,
    }
    dense = size.dense_fp32_bytes
    rows = [
        Row(f"for scale: {kind}", bytes_ / 1e6, bytes_ / dense) for kind, bytes_ in kinds.items()
    ]
    tell("comparing the sound", 0.2)
    fidelity = measure_fidelity(voice, export.shipped)
    words = _rounding_words(fidelity)
    if (
        export.format == "sparse"
        and export.precision == "fp32"
        and size.dense_fp16_bytes < export.bytes
    ):
        words.append("larger than dense fp16, though lossless")
    if (
        export.format == "dense"
        and export.precision == "fp32"
        and size.nonzero_parameters < 0.6 * size.parameters
    ):
        words.append("zeros take their full place")
    load = factor = None
    rounds: tuple[Round, ...] = ()
    if export.format in ("onnx", "piper"):
        rounds, ratios = _timings(voice, export, runs, float32, tell)
        load, factor = (
            1e3 * statistics.median(one[0] for one in rounds),
            statistics.median(one[1] for one in rounds),
        )
        words += _speed_words(ratios)
    what = f"{export.format} {export.precision}"
    rows.append(
        Row(
            what,
            export.bytes / 1e6,
            export.bytes / dense,
            load,
            factor,
            fidelity,
            "; ".join(words),
            rounds,
        )
    )
    return rows


def _rounding_words(fidelity: Fidelity) -> list[str]:
    if fidelity == Fidelity(0.0, 0.0):
        return ["the same weights"]
    worse = []
    if fidelity.log_mel_db > _AUDIBLE_DB:
        worse.append(f"worse: its mel levels are {fidelity.log_mel_db:.1f} dB off")
    if fidelity.drift > _DRIFT:
        worse.append(f"worse: durations drift by {100 * fidelity.drift:.0f}%")
    return worse or ["weights rounded, speech as good as the same"]


def _timings(
    voice: Voice, export: Export, runs: int, float32: Row | None, tell: Step
) -> tuple[tuple[Round, ...], list[Round]]:
    """The rounds of an export, and where it is rounded its time as shares of float32's: round by round where the two were timed in turn,
    else of each round with each."""
    before = float32.rounds if float32 else ()
    with tempfile.TemporaryDirectory(prefix="vits_prune-fp32-") as folder:
        models = [export.model]
        if export.precision != "fp32" and not before:
            tell("writing fp32 for comparison", 0.3)
            models.append(write_float32_twin(voice, export, Path(folder)))
        timed = []
        for one in range(_ROUNDS):
            tell(f"timing, round {one + 1} of {_ROUNDS}", 0.4 + 0.6 * one / _ROUNDS)
            timed.append([_timed(model, max(1, runs // _ROUNDS)) for model in models])
    ours = tuple(one[0] for one in timed)
    if export.precision == "fp32":
        return ours, []
    pairs = itertools.product(ours, before) if before else timed
    return ours, [(one[0] / plain[0], one[1] / plain[1]) for one, plain in pairs]


def _timed(model: Path, runs: int) -> Round:
    """Seconds of loading and the real-time factor, on all cores."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        row = standalone.bench(model, [cores], runs)["rows"][0]
    except standalone.BenchError as error:
        raise InputError(str(error)) from error
    return row["load_seconds"], row["real_time_factor"]


def _speed_words(ratios: list[Round]) -> list[str]:
    """What the rounds, as shares of float32's, agree on."""
    if not ratios:
        return []
    loads, times = zip(*ratios, strict=True)
    span = f"{min(times):.2f} to {max(times):.2f} of its time"
    verdict = (
        "slower"
        if min(times) > 1 + _MARGIN
        else "faster"
        if max(times) < 1 - _MARGIN
        else "no faster"
    )
    return [f"{verdict} than fp32 ({span})"] + (
        ["slower to load than fp32"] if min(loads) > 1 + _MARGIN else []
    )


def ship_table(rows: list[Row]) -> pd.DataFrame:
    """The rows as the command `export` prints them; MB of 1,000,000 bytes, what was not measured is empty."""
    import pandas as pd

    found = []
    for row in rows:
        sound = row.fidelity
        found.append({
            "what": row.what, "MB": f"{row.megabytes:.2f}", "of dense fp32": f"{100 * row.share:.1f}%",
            "load (ms)": "" if row.load_ms is None else f"{row.load_ms:.0f}",
            "RTF": "" if row.real_time_factor is None else f"{row.real_time_factor:.3f}",
            "mel levels off (dB)": "" if sound is None else f"{sound.log_mel_db:.2f}",
            "durations off": "" if sound is None else f"{100 * sound.drift:.1f}%", "in words": row.words,
        })  # fmt: skip
    return pd.DataFrame(found)
