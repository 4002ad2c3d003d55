"""The figures of joe in the lesson of the page that no other command prints.

    python benchmarks/lesson.py [--texts 20] [--runs 7]

L1 pruning, on held-out sentences, with seed 0. Levels compare the pruned voice with the original at
the original's durations: loudness by ITU-R BS.1770 (of sentences above its gate, -70 LUFS), the
loudest 50 ms, and the power in the pauses: the blocks of 20 ms in which the original is 40 dB or
more below its loudest 50 ms. The median is given of durations and speeds, the mean of levels.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np

from vits_prune import PruneSpec, Speech, Voice, load_voice, prune, speak
from vits_prune.measure import measure_sparsity
from vits_prune.measure.cost import measure_latency
from vits_prune.measure.waveform import SILENCE_LUFS, loudest_dbfs, measure_lufs
from vits_prune.synthesis.texts import load_texts

PAUSE_DB = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    voice, texts = load_voice("joe"), load_texts(options.texts)
    originals = [speak(voice, text) for text in texts]
    for scope, amount in (("global", 0.4), ("local", 0.4), ("global", 0.9)):
        found = measure_sparsity(prune(voice, PruneSpec(scope=scope, amount=amount)))
        parts = ", ".join(f"{part} {share:.3f}" for part, share in found.parts.items())
        print(f"zeros, {amount:.0%} {scope}: {parts}")
    for amount in (0.3, 0.9):
        levels(voice, amount, texts, originals)
    for scope in ("local", "global"):
        pruned = prune(voice, PruneSpec(scope=scope, amount=0.4))
        ratios = [
            speak(pruned, text).audio_seconds / original.audio_seconds
            for text, original in zip(texts, originals, strict=True)
        ]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, n={len(ratios)}"
        middle = statistics.median(ratios)
        print(f"duration, 40% {scope}, own rhythm, over the original's: {middle:.2f} ({spread})")
    zeros = prune(voice, PruneSpec(amount=0.9))
    speed = measure_latency(voice, zeros, texts[0], runs=options.runs).speed_up
    print(f"speed, 90% global: {speed.median:.2f} ({speed.low:.2f} to {speed.high:.2f})")


def levels(voice: Voice, amount: float, texts: tuple[str, ...], originals: list[Speech]) -> None:
    """Print by how many dB global pruning changes the speech and the noise in the pauses."""
    pruned, rate = prune(voice, PruneSpec(amount=amount)), voice.sampling_rate
    changes: dict[str, list[float]] = {"loudness": [], "loudest 50 ms": [], "pauses": []}
    for text, original in zip(texts, originals, strict=True):
        pair = (original.waveform, speak(pruned, text, timing=original).waveform)
        loudness, peaks = ([how(one, rate) for one in pair] for how in (measure_lufs, loudest_dbfs))
        if loudness[1] > SILENCE_LUFS:
            changes["loudness"].append(loudness[1] - loudness[0])
        changes["loudest 50 ms"].append(peaks[1] - peaks[0])
        before, after = (block_powers(one, rate) for one in pair)
        pause = before <= 10 ** ((peaks[0] - PAUSE_DB) / 10)
        changes["pauses"].append(10 * np.log10(after[pause].mean() / before[pause].mean()))
    for what, found in changes.items():
        spread = f"{min(found):+.1f} to {max(found):+.1f}" if found else "below the gate"
        mean = f"{statistics.mean(found):+.1f} dB, " if found else ""
        print(f"{what}, {amount:.0%} global: {mean}{spread} (n={len(found)})")


def block_powers(waveform: np.ndarray, rate: int) -> np.ndarray:
    size = rate // 50
    blocks = waveform[: len(waveform) // size * size].astype(np.float64).reshape(-1, size)
    return np.mean(blocks**2, axis=1)


if __name__ == "__main__":
    main()
