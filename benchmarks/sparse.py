"""Sparse kernels against torch's dense ones and onnxruntime: joe, and VITS's default shapes (MMS).

    python benchmarks/kernels.py [--runs 9] [--threads 2] [--amounts 0.55 0.8 0.9]
        [--only parts|voices] [--voices NAME=DIR ...]

Parts: each coupling layer and decoder stage, activations, padding and residuals included, dense and
sparse in turn, on a sentence of 200 frames. Voices: from text to waveform with the original's
durations, every voice with the kernels that are best for it. onnxruntime runs the unpruned export
in a process of its own, between them. Weights go by magnitude, the same share of each layer: speed
does not depend on which. What a pruned voice sounds like is in RESULTS.md, "Sparse kernels".

With --voices nothing but voices from folders is timed, which `prune` or `heal` wrote of joe.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from structure import TEXT, default_voice
from timing import describe, in_turn

from vits_prune import PruneSpec, Voice, load_voice, measure_latency, prune, speak
from vits_prune.kernels import engine_of
from vits_prune.kernels.engine import run_sparse
from vits_prune.memory import keep_freed_memory
from vits_prune.ship.formats import export_voice

FRAMES = 200
_ONNX = """
import json, sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
ids = np.array([json.loads(sys.argv[3])], np.int64)
feed = {"input": ids, "input_lengths": np.array([ids.shape[1]], np.int64)}
feed["scales"] = np.array([0.667, 1.0, 0.8], np.float32)
for line in sys.stdin:
    start = time.perf_counter()
    samples = session.run(None, feed)[0].size
    print(json.dumps([time.perf_counter() - start, samples]), flush=True)
"""

_BEGINNING = """
import resource, sys, time
import torch
from vits_prune import PruneSpec, load_voice, prune, speak
from vits_prune.memory import keep_freed_memory
keep_freed_memory()
torch.set_num_threads(int(sys.argv[2]))
pruned, seconds = prune(load_voice("joe"), PruneSpec(scope="local", amount=0.8)), []
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for run in range(3):
    start = time.perf_counter()
    speak(pruned, sys.argv[3], kernels=sys.argv[1])
    seconds.append(time.perf_counter() - start)
more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(f"sentence 1: {seconds[0]:.2f} s, 3: {seconds[2]:.2f} s; {more:.0f} MiB more at its peak")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.55, 0.8, 0.9])
    parser.add_argument("--only", choices=("parts", "voices"))
    parser.add_argument("--voices", nargs="+", default=[], metavar="NAME=DIR")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    for name, folder in (one.split("=", 1) for one in options.voices):
        voices(load_voice("joe"), load_voice(folder), name, options.runs)
    if options.voices:
        return
    for voice in (load_voice("joe"), default_voice()):
        for amount in options.amounts:
            pruned = prune(voice, PruneSpec(scope="local", amount=amount))
            if options.only != "voices":
                parts(pruned, f"{voice.name}, {amount:.0%} zeros", options.runs)
            if options.only != "parts":
                voices(voice, pruned, f"{voice.name}, {amount:.0%} zeros", options.runs)
    if options.only != "parts":
        beginnings(options.threads)
        onnx(load_voice("joe"), options.runs, options.threads)


@torch.inference_mode()
def parts(pruned: Voice, title: str, runs: int) -> None:
    engine = engine_of(pruned, "sparse")
    totals: dict[str, list[tuple[float, float]]] = {}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, pruned.model.config.flow_size, FRAMES, generator=generator)
    for unit in engine.units:
        program = unit.make(False)
        timed = in_turn(
            lambda _run: run_sparse(unit, program, x, None),  # noqa: B023
            lambda _run: unit.dense(x, None),  # noqa: B023
            runs,
        )
        print(f"{title}, {unit.name}: {describe([dense / ours for ours, dense in timed])}")
        totals.setdefault(unit.name.split()[0], []).append(timed)
        x = x if unit.in_place else unit.dense(x, None)
    for name, units in totals.items():
        sums = [
            [sum(one[side] for one in run) for side in (0, 1)] for run in zip(*units, strict=True)
        ]
        print(f"{title}, {name} in all: {describe([dense / ours for ours, dense in sums])}")


def voices(voice: Voice, pruned: Voice, title: str, runs: int) -> None:
    found = measure_latency(voice, pruned, TEXT, runs=runs)
    best, first = found.pruned.stage_seconds, found.original.stage_seconds
    dense = found.pruned.dense_seconds or best["total"]
    spread = f"{found.speed_up.low:.2f} to {found.speed_up.high:.2f}, n={runs}"
    print(
        f"{title}, text to waveform: {found.speed_up.median:.2f} times the best original "
        f"({spread}); {1e3 * first['total'].median:.0f} -> {1e3 * best['total'].median:.0f} ms, "
        f"dense {1e3 * dense.median:.0f} ms; sparse: {', '.join(found.pruned.sparse) or 'nothing'}"
    )
    print("  " + ", ".join(f"{name} {first[name].median / best[name].median:.2f}" for name in best))
    peaks = [one.peak_memory_bytes for one in (found.original, found.pruned)]
    if None not in peaks:
        print(f"  peak memory {peaks[0] / 1e6:.0f} -> {peaks[1] / 1e6:.0f} MB")


def beginnings(threads: int) -> None:
    """Print the memory of a process that speaks three sentences, and its first and third one."""
    for kernels in ("dense", "sparse"):
        command = [sys.executable, "-c", _BEGINNING, kernels, str(threads), TEXT]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"joe, 80% zeros, a fresh process, {kernels}: {run.stdout.strip()}")


def onnx(voice: Voice, runs: int, threads: int) -> None:
    """Time onnxruntime on the unpruned export and sparse voices in turn, by second of speech."""
    ids = json.dumps(list(next(iter(voice.tokenizer.sentences(TEXT))).ids))
    with tempfile.TemporaryDirectory() as folder:
        model = export_voice(voice, Path(folder) / "joe", "piper").model
        command = [sys.executable, "-c", _ONNX, str(model), str(threads), ids]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as process:

            def rival(_run: int) -> None:
                process.stdin.write("\n")
                process.stdin.flush()
                seconds, samples = json.loads(process.stdout.readline())
                rates.append(seconds / (samples / voice.sampling_rate))

            for amount in (0.0, 0.8, 0.9):
                one = prune(voice, PruneSpec(scope="local", amount=amount))
                spoken, rates, ratios = speak(voice, TEXT), [], []
                timed = in_turn(lambda _run: speak(one, TEXT, timing=spoken), rival, runs)  # noqa: B023
                for (ours, _), rate in zip(timed, rates[1:], strict=True):
                    ratios.append(rate / (ours / spoken.audio_seconds))
                what = f"joe, {amount:.0%} zeros, times onnxruntime's speed with the unpruned joe"
                print(f"{what}: {describe(ratios)}")
            process.stdin.close()


if __name__ == "__main__":
    main()
