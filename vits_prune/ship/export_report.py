"""Measure an export: its size, its speed, how close it is to the voice, and where it is worse."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vits_prune.errors import InputError
from vits_prune.measure.closeness import log_mel, measure_rhythm
from vits_prune.measure.weights import Size, measure_size
from vits_prune.progress import SILENT, Progress
from vits_prune.ship import bench as standalone
from vits_prune.ship.formats import Export, write_float32_twin
from vits_prune.ship.torch_reference import bench_plan
from vits_prune.synthesis.speak import speak
from vits_prune.threads import available_cores
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    import pandas as pd

_AUDIBLE_DB = 1.0
"""Mean difference of mel levels above which an export is called worse; another seed of the noise
moves joe's by several dB."""
_DRIFT = 0.02
TIMING_ROUNDS = 3
"""Times that an ONNX file is timed, each in a process of its own."""
_MARGIN = 0.05
"""A verdict on speed needs every timing beyond this."""


class Timing(NamedTuple):
    """One timing of an ONNX file, or its ratio to another."""

    load_seconds: float
    real_time_factor: float


@dataclass(frozen=True)
class RoundingError:
    """How far the weights of an export are from the voice's, in its speech."""

    log_mel_db: float
    """Mean absolute difference of mel band levels, same timing and noise."""
    drift: float
    """Mean relative change of a token's duration, own timing."""


@dataclass(frozen=True)
class ExportRow:
    """One line of the table."""

    what: str
    megabytes: float
    share: float
    """Of a dense float32 file of the same voice."""
    load_ms: float | None = None
    real_time_factor: float | None = None
    closeness: RoundingError | None = None
    words: str = ""
    timings: tuple[Timing, ...] = ()
    """Of an ONNX file, that the two figures are the medians of."""


def measure_rounding(voice: Voice, shipped: Voice) -> RoundingError:
    """Compare what two voices of the same shape say."""
    theirs = dict(shipped.model.named_parameters())
    if all(bool((one == theirs[name]).all()) for name, one in voice.model.named_parameters()):
        return RoundingError(0.0, 0.0)
    levels, drifts = [], []
    for sentence in bench_plan(voice, 3)["sentences"]:
        first = speak(voice, sentence["text"])
        aligned = speak(shipped, sentence["text"], timing=first)
        pair = (np.nan_to_num(speech.waveform) for speech in (first, aligned))
        ours, others = (log_mel(waveform, voice.sampling_rate) for waveform in pair)
        levels.append(float(np.mean(np.abs(ours - others)) * 20 / np.log(10)))
        drifts.append(measure_rhythm(first, speak(shipped, sentence["text"])).duration_drift or 0.0)
    return RoundingError(float(np.mean(levels)), float(np.mean(drifts)))


def measure_export(
    voice: Voice,
    export: Export,
    *,
    runs: int = 3,
    float32: ExportRow | None = None,
    progress: Progress = SILENT,
) -> list[ExportRow]:
    """Measure an export; rows of the plain files' sizes come first, for scale, its own row last.

    Args:
        voice: what was exported.
        export: what `export_voice` made of it.
        runs: counted runs of every sentence in the timing of an ONNX file, over all timings.
        float32: the row of the voice's float32 ONNX export, if that was just measured; without it
            a float32 file is written and timed in turn with a rounded one.

    Raises:
        InputError: the ONNX file cannot be timed.
    """
    progress.report("measuring sizes", 0.0)
    size = measure_size(voice)
    dense = size.dense_fp32_bytes
    rows = [
        ExportRow(f"for scale: {kind}", count / 1e6, count / dense)
        for kind, count in (
            ("dense fp32", dense),
            ("dense fp16", size.dense_fp16_bytes),
            ("sparse fp32", size.sparse_fp32_bytes),
        )
    ]
    progress.report("comparing the sound", 0.2)
    closeness = measure_rounding(voice, export.shipped)
    words = [*_rounding_words(closeness), *_size_words(export, size)]
    load = factor = None
    timings: tuple[Timing, ...] = ()
    if export.format in ("onnx", "piper"):
        timings, ratios = _timings(voice, export, runs, float32, progress)
        loads, factors = zip(*timings, strict=True)
        load, factor = 1e3 * statistics.median(loads), statistics.median(factors)
        words += _speed_words(ratios)
    what, said = f"{export.format} {export.precision}", "; ".join(words)
    sizes = (export.bytes / 1e6, export.bytes / dense)
    return [*rows, ExportRow(what, *sizes, load, factor, closeness, said, timings)]


def _rounding_words(closeness: RoundingError) -> list[str]:
    if closeness == RoundingError(0.0, 0.0):
        return ["the same weights"]
    worse = []
    if closeness.log_mel_db > _AUDIBLE_DB:
        worse.append(f"worse: its mel levels are {closeness.log_mel_db:.1f} dB off")
    if closeness.drift > _DRIFT:
        worse.append(f"worse: durations drift by {100 * closeness.drift:.0f}%")
    return worse or ["weights rounded, speech as good as the same"]


def _size_words(export: Export, size: Size) -> list[str]:
    kind = (export.format, export.precision)
    if kind == ("sparse", "fp32") and size.dense_fp16_bytes < export.bytes:
        return ["larger than dense fp16, though lossless"]
    if kind == ("dense", "fp32") and size.nonzero_parameters < 0.6 * size.parameters:
        return ["zeros take their full place"]
    return []


def _timings(
    voice: Voice, export: Export, runs: int, float32: ExportRow | None, progress: Progress
) -> tuple[tuple[Timing, ...], list[Timing]]:
    """The timings of an export, and the ratios of a rounded one's to those of float32."""
    before = float32.timings if float32 else ()
    with tempfile.TemporaryDirectory(prefix="vits_prune-fp32-") as folder:
        models = [export.model]
        if export.precision != "fp32" and not before:
            progress.report("writing fp32 for comparison", 0.3)
            models.append(write_float32_twin(voice, export, Path(folder)))
        timed = []
        for _ in progress.part(0.4, 1.0).track(range(TIMING_ROUNDS), "timing, round"):
            timed.append([_timed(model, max(1, runs // TIMING_ROUNDS)) for model in models])
    ours = tuple(one[0] for one in timed)
    if export.precision == "fp32":
        return ours, []
    pairs = itertools.product(ours, before) if before else timed
    ratios = [[a / b for a, b in zip(one, plain, strict=True)] for one, plain in pairs]
    return ours, [Timing(*ratio) for ratio in ratios]


def _timed(model: Path, runs: int) -> Timing:
    """A timing on all cores."""
    try:
        row = standalone.bench(model, [available_cores()], runs)["rows"][0]
    except standalone.BenchError as error:
        raise InputError(str(error)) from error
    return Timing(row["load_seconds"], row["real_time_factor"])


def _speed_words(ratios: list[Timing]) -> list[str]:
    """What the timings, as shares of float32's, agree on."""
    if not ratios:
        return []
    loads, times = zip(*ratios, strict=True)
    slower, faster = min(times) > 1 + _MARGIN, max(times) < 1 - _MARGIN
    verdict = "slower" if slower else "faster" if faster else "no faster"
    words = [f"{verdict} than fp32 ({min(times):.2f} to {max(times):.2f} of its time)"]
    return words + ["slower to load than fp32"] * (min(loads) > 1 + _MARGIN)


def ship_table(rows: list[ExportRow]) -> pd.DataFrame:
    """Return the rows as the command `export` prints them; MB of 1,000,000 bytes."""
    import pandas as pd

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    shown = []
    for row in rows:
        sound = row.closeness
        shown.append(
            {
                "what": row.what,
                "MB": cell(row.megabytes, ".2f"),
                "of dense fp32": cell(row.share, ".1%"),
                "load (ms)": cell(row.load_ms, ".0f"),
                "RTF": cell(row.real_time_factor, ".3f"),
                "mel levels off (dB)": cell(sound.log_mel_db if sound else None, ".2f"),
                "durations off": cell(sound.drift if sound else None, ".1%"),
                "in words": row.words,
            }
        )
    return pd.DataFrame(shown)
