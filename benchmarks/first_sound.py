"""Time from a changed amount to the pruned waveform, against the bare forward of VitsModel.

    python benchmarks/first_sound.py [--runs 15]

Joe says ten words on two threads; the voice is loaded and the original has spoken. Ours: prune to
an amount that is new, and speak. Rival: `VitsModel.forward` of the unpruned voice on ids that are
ready. Both run in turn in one process. With own timing a pruned voice may speak longer, so the
ratio per second of speech is given too.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from timing import describe, in_turn, milliseconds

from vits_prune import PruneSpec, Speech, load_voice, prune, speak

TEXT = "The birch canoe slid on the smooth planks this morning."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    torch.set_num_threads(2)
    voice = load_voice("joe")
    original = speak(voice, TEXT)
    prune(voice, PruneSpec(amount=0.01))  # sorts the magnitudes
    ids = torch.tensor([original.sentences[0].ids])
    lengths: list[float] = []

    torch_seed = 0

    def bare(_run: int) -> None:
        torch.manual_seed(torch_seed)
        with torch.no_grad():
            lengths.append(voice.model(ids).waveform.shape[1] / voice.sampling_rate)

    # A torch seed whose own draws make the sentence as long as ours: both compute as much.
    for torch_seed in range(200):  # noqa: B007 (bare reads it)
        bare(0)
        if abs(lengths[-1] / original.audio_seconds - 1) < 0.01:
            break
    print(
        f"{len(TEXT.split())} words, original {original.audio_seconds:.2f} s, "
        f"bare forward {lengths[-1]:.2f} s, 2 threads"
    )
    for name, timing in (("locked", original), ("own", "own")):
        for scope in ("global", "local"):
            spoken: list[float] = []

            def ours(
                run: int,
                scope: str = scope,
                timing: Speech | str = timing,
                spoken: list[float] = spoken,
            ) -> None:
                pruned = prune(voice, PruneSpec(scope=scope, amount=0.1 + 0.3 * run / runs))
                spoken.append(speak(pruned, TEXT, timing=timing).audio_seconds)

            lengths.clear()
            timed = in_turn(ours, bare, runs)
            mine, theirs = zip(*timed, strict=True)
            per_second = [
                (a / b) * (bare_length / length)
                for (a, b), length, bare_length in zip(timed, spoken[1:], lengths[1:], strict=True)
            ]
            length = (
                f"speech {statistics.median(spoken):.2f} s, "
                f"ratio per second of speech {describe(per_second)}"
            )
            print(
                f"timing {name}, scope {scope}: "
                f"{milliseconds(mine)} against {milliseconds(theirs)}, "
                f"ratio {describe([a / b for a, b in timed])}; {length}"
            )


if __name__ == "__main__":
    main()
