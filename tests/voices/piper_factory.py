"""Small Piper voices with random weights, exported as Piper's own trainer exports a checkpoint."""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from piper.train.vits.models import SynthesizerTrn

SYMBOLS = 40
PHONEME_IDS = {"_": [0], "^": [1], "$": [2], " ": [3], ".": [4], ",": [5], "ˈ": [6], "ː": [7]} | {
    letter: [8 + place] for place, letter in enumerate("abdefhijklmnoprstuvwzæðəɛɪŋʊ")
}


@dataclass(frozen=True)
class Shape:
    """What differs between Piper's qualities, at a tenth of its size."""

    hidden: int = 16
    inter: int = 16
    filter: int = 32
    heads: int = 2
    layers: int = 2
    resblock: str = "2"
    resblock_kernels: tuple[int, ...] = (3, 5)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 2), (2, 6))
    rates: tuple[int, ...] = (8, 4)
    rate_kernels: tuple[int, ...] = (16, 8)
    initial: int = 16
    speakers: int = 1
    stochastic: bool = True


MEDIUM = Shape(
    resblock_kernels=(3, 5, 7),
    resblock_dilations=((1, 2), (2, 6), (3, 12)),
    rates=(8, 8, 4),
    rate_kernels=(16, 16, 8),
)
X_LOW = Shape(hidden=12, inter=8, filter=20, heads=3, layers=3)
HIGH = Shape(
    resblock="1",
    resblock_kernels=(3, 7, 11),
    resblock_dilations=((1, 3, 5),) * 3,
    rates=(8, 8, 2, 2),
    rate_kernels=(16, 16, 4, 4),
    initial=32,
)
SPEAKERS = Shape(speakers=3)
PLAIN_DURATIONS = Shape(stochastic=False)
TINIEST = Shape(
    hidden=4,
    inter=4,
    filter=4,
    layers=1,
    resblock_kernels=(3,),
    resblock_dilations=((1, 2),),
    rates=(2,),
    rate_kernels=(4,),
    initial=4,
)
PLAIN_SPEAKERS = Shape(
    stochastic=False, speakers=2, resblock="1", resblock_dilations=((1, 3, 5),) * 2
)


def make_network(shape: Shape, seed: int = 0) -> SynthesizerTrn:
    """A network of that shape without zeros: one hears if a layer is left out or mixed up."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's old weight norm
        network = SynthesizerTrn(
            *(SYMBOLS, 33, 8, shape.inter, shape.hidden, shape.filter, shape.heads, shape.layers),
            *(3, 0.1, shape.resblock, shape.resblock_kernels, shape.resblock_dilations),
            *(shape.rates, shape.initial, shape.rate_kernels),
            n_speakers=shape.speakers,
            gin_channels=8 if shape.speakers > 1 else 0,
            use_sdp=shape.stochastic,
        )
    network.eval()
    network.dec.remove_weight_norm()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if (
                parameter.ndim == 1
                or parameter.abs().max() == 0
                or (parameter.shape[-1] == 1 and parameter.ndim == 2)
            ):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.startswith(
                "dec."
            ):  # init_weights makes them so small that the waveform would be all bias
                parameter.copy_(torch.randn_like(parameter) * (parameter[0].numel() ** -0.5))
    return network


def export(network: SynthesizerTrn, path: Path, opset: int = 15, fold: bool = True) -> None:
    """Write the ONNX file."""

    def infer(text, lengths, scales, sid=None):
        spoken = network.infer(
            text,
            lengths,
            noise_scale=scales[0],
            length_scale=scales[1],
            noise_scale_w=scales[2],
            sid=sid,
        )
        return spoken[0].unsqueeze(1)

    network.forward = infer
    speaker = torch.LongTensor([0]) if network.n_speakers > 1 else None
    example = (
        torch.randint(0, SYMBOLS, (1, 12)),
        torch.LongTensor([12]),
        torch.tensor([0.667, 1.0, 0.8]),
        speaker,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            example,
            str(path),
            opset_version=opset,
            input_names=["input", "input_lengths", "scales", "sid"],
            output_names=["output"],
            dynamo=False,
            do_constant_folding=fold,
            dynamic_axes={
                "input": {0: "b", 1: "phonemes"},
                "input_lengths": {0: "b"},
                "output": {0: "b", 2: "time"},
            },
        )


@functools.cache
def exported(shape: Shape, opset: int = 15, fold: bool = True) -> bytes:
    """The ONNX file of a network of that shape, made once: exporting takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        export(make_network(shape), Path(folder, "voice.onnx"), opset, fold)
        return Path(folder, "voice.onnx").read_bytes()


def settings(shape: Shape, **changes: object) -> dict[str, object]:
    """The voice's JSON file."""
    return {
        "audio": {"sample_rate": 16000, "quality": "test"},
        "espeak": {"voice": "en-us"},
        "inference": {"noise_scale": 0.5, "length_scale": 1.25, "noise_w": 0.7},
        "phoneme_type": "espeak",
        "phoneme_id_map": PHONEME_IDS,
        "num_symbols": SYMBOLS,
        "num_speakers": shape.speakers,
        "speaker_id_map": {f"speaker {i}": i for i in reversed(range(shape.speakers))}
        if shape.speakers > 1
        else {},
    } | changes


def make_voice(folder: Path, shape: Shape, name: str = "voice", **options: object) -> Path:
    """The .onnx of a new voice, its .json beside it."""
    path = folder / f"{name}.onnx"
    path.write_bytes(exported(shape, **options))
    path.with_name(path.name + ".json").write_text(json.dumps(settings(shape)), encoding="utf-8")
    return path
