"""Time of a sweep over the sum of its parts alone: synthesis, recogniser, predictors.

    python benchmarks/sweep.py --out DIR [--texts 20] [--amount 0:0.9:0.1]

Joe, global L1. `run_sweep` measures point after point. After each, its parts are timed alone on
the same sentences: speech of the pruned voice, recognition, naturalness, pitch. The sweep's own
time has all else too: pruning, loudness, distances, locked speech, failures, intervals, the disk,
and once the original with two other seeds for the noise floor.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from timing import describe

from vits_prune import PruneSpec, load_voice, prune, speak
from vits_prune.measure.recognition import Recogniser, transcribe
from vits_prune.measure.waveform import measure_dnsmos, track_pitch
from vits_prune.study.sweep import run_sweep
from vits_prune.study.sweep_grid import Grid, parse_amounts
from vits_prune.synthesis.texts import load_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--amount", nargs="+", default=["0:0.9:0.1"])
    options = parser.parse_args()
    voice, texts = load_voice("joe"), load_texts(options.texts)
    recogniser = Recogniser()
    timed: list[tuple[float, dict[str, float]]] = []
    ended = time.perf_counter()

    def parts_alone(row: dict[str, Any]) -> None:
        nonlocal ended
        in_sweep, seconds = time.perf_counter() - ended, {}
        pruned = prune(voice, PruneSpec(amount=row["amount"]))

        def clock(name: str, start: float) -> float:
            seconds[name] = time.perf_counter() - start
            return time.perf_counter()

        start = time.perf_counter()
        spoken = [speak(pruned, text) for text in texts]
        start = clock("synthesis", start)
        for speech in spoken:
            transcribe(speech.waveform, speech.sampling_rate, "en", recogniser)
        start = clock("recogniser", start)
        for speech in spoken:
            measure_dnsmos(speech.waveform, speech.sampling_rate)
        start = clock("naturalness", start)
        for speech in spoken:
            track_pitch(speech.waveform, speech.sampling_rate, None)
        clock("melody", start)
        timed.append((in_sweep, seconds))
        alone = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        print(
            f"amount {row['amount']:.2f}: in the sweep {in_sweep:.1f} s, "
            f"alone {sum(seconds.values()):.1f} s ({alone})",
            flush=True,
        )
        ended = time.perf_counter()

    run_sweep(
        "joe",
        Grid(amounts=parse_amounts(options.amount)),
        texts,
        None,
        options.out,
        on_point=parts_alone,
    )
    whole, parts = (
        sum(seconds for seconds, _ in timed),
        sum(sum(seconds.values()) for _, seconds in timed),
    )
    points = [
        seconds / sum(alone.values()) for seconds, alone in timed[1:]
    ]  # the first one's time holds the original's
    print(
        f"{len(timed)} points, {len(texts)} sentences: sweep {whole:.0f} s, "
        f"parts alone {parts:.0f} s, ratio {whole / parts:.2f}"
    )
    print(f"a point over its parts: {describe(points)}")
    without = parts - sum(alone["melody"] for _, alone in timed)
    print(f"without the melody tracker among the parts: {whole / without:.2f}")


if __name__ == "__main__":
    main()
