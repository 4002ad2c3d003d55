"""Speed with fewer channels and layers: joe, and a model of VITS's default configuration (MMS).

    python benchmarks/structure.py [--runs 9] [--threads 2]

End to end, from text to waveform with `speak`, dense kernels and the original's durations in both,
in turn, in one process; `compare` times each voice with its best kernels. The default model has
random weights: speed depends on shapes alone. Which channels stay is chosen by weight norm, which
does not matter to the time either.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from timing import describe, in_turn

from vits_prune import Speech, Voice, load_voice, speak
from vits_prune.pruning import Shape
from vits_prune.pruning.structured.cut import choose, cut

TEXT = "The birch canoe slid on the smooth planks, and the boy was there when the sun rose."
SHAPES = {
    "decoder width 0.75": Shape(decoder_width=0.75),
    "decoder width 0.5": Shape(decoder_width=0.5),
    "decoder 0.5, feed-forward 0.5, 2 flows, 2 WaveNet and 4 encoder layers, 2 branches": Shape(
        decoder_width=0.5, ffn_width=0.5, flows=2, wavenet_layers=2, encoder_layers=4, branches=2
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for voice in (load_voice("joe"), default_voice()):
        original = speak(voice, TEXT)
        for name, shape in SHAPES.items():
            smaller = cut(voice, choose(voice, shape))
            timed = in_turn(speaking(smaller, original), speaking(voice, original), options.runs)
            sizes = [
                sum(p.numel() for p in one.model.parameters()) / 1e6 for one in (voice, smaller)
            ]
            speed = describe([theirs / ours for ours, theirs in timed])
            print(
                f"{voice.name}, {original.audio_seconds:.1f} s of speech, {name}: "
                f"{sizes[0]:.1f} -> {sizes[1]:.1f} M, speed {speed}"
            )


def speaking(voice: Voice, original: Speech) -> Callable[[int], Speech]:
    """One run of saying the text with the original's durations."""
    return lambda _run: speak(voice, TEXT, timing=original, kernels="dense")


def default_voice() -> Voice:
    """A voice of VitsConfig's default shapes, read from a checkpoint that is made here."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = VitsModel(VitsConfig())
        # Random durations would make seconds or minutes of this: about six frames a token.
        model.duration_predictor.flows[0].translate.data[0] = 1.8
        model.save_pretrained(folder)
        vocabulary = {
            "_": 0,
            **{letter: index for index, letter in enumerate(" abcdefghijklmnopqrstuvwxyz'-.,", 1)},
        }
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(vocabulary), encoding="utf-8")
        VitsTokenizer(
            str(path),
            pad_token="_",
            unk_token="_",
            language="eng",
            add_blank=True,
            normalize=True,
            phonemize=False,
            is_uroman=False,
        ).save_pretrained(folder)
        return dataclasses.replace(load_voice(folder), name="default configuration")


if __name__ == "__main__":
    main()
