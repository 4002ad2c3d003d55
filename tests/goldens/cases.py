"""The cases of the golden tests, shared by the tests and by the script that records the answers.

They use only the public names and the command line. What a redesign may call differently is in the
first functions.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import inspect
import io
import json
import os
import platform
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import vits_prune
from vits_prune import PruneSpec, Shape, load_voice, measure_size, prune, speak

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDERS = HERE / "folders"
RECORD = HERE / "record.json"
TEXT = "Glue the sheet."
TEXTS = ("the birch canoe slid", "glue the sheet")


def said(voice, text=TEXT):
    """The voice's own answer to a text: seed 0, its own durations, the kernels of then."""
    return speak(voice, text, kernels="dense")


def history(voice):
    """What was done to the weights, as JSON values."""
    return json.loads(json.dumps(dict(voice.recipe)))


def run(*arguments):
    """Run `python -m vits_prune ARGUMENTS` in this process: (exit code, output, errors)."""
    out, err = io.StringIO(), io.StringIO()
    typed = mock.patch.object(sys, "argv", ["vits_prune", *map(str, arguments)])
    with typed, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module("vits_prune", run_name="__main__")
            code = 0
        except SystemExit as end:
            code = 0 if end.code is None else end.code
    return code, out.getvalue(), err.getvalue()


# Summaries


def machine():
    """Describe what rounding depends on: results are compared exactly where it is as recorded."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu
        )
    cpu = f"{platform.machine()}, {cpu}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{cpu}, torch {torch.__version__}, numpy {np.__version__}"


def weights_digest(voice):
    """SHA-256 of the names, shapes and float32 bytes of all parameters, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(voice.model.named_parameters()):
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().float().contiguous().numpy().tobytes())
    return found.hexdigest()


def zeros(voice):
    """Zeros and parameters of each part that runs when the voice speaks."""
    found = {}
    for part, module in voice.parts().items():
        tensors = list(module.parameters())
        found[part] = [
            sum(int((one == 0).sum()) for one in tensors),
            sum(one.numel() for one in tensors),
        ]
    return found


def sound(speech):
    """Summarise a waveform: every 64th of its 16-bit samples, its level, a digest of them all."""
    samples = speech.pcm16()
    return {
        "rate": speech.sampling_rate,
        "length": len(samples),
        "frames": int(speech.durations.sum()),
        "rms": round(float(np.sqrt(np.mean(samples.astype(float) ** 2))), 2),
        "every_64th": samples[::64].tolist(),
        "sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
    }


def shape_of(value):
    """The names of a JSON answer, nested, with the kinds of their values."""
    if isinstance(value, dict):
        return {key: shape_of(one) for key, one in sorted(value.items())}
    if isinstance(value, list):
        return [shape_of(value[0])] if value else []
    return (
        "number"
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else type(value).__name__
    )


# Pruning

_FEW = {"texts": TEXTS}
_EXACT = {
    "magnitude-global": PruneSpec(),
    "magnitude-local": PruneSpec(scope="local", amount=0.5),
    "random-global": PruneSpec("random", amount=0.5, seed=3),
    "pattern": PruneSpec(pattern="2:4", amount=0.5),
    "protect-floor-parts": PruneSpec(
        amount=0.6,
        parts=("flow", "decoder"),
        protect=("decoder.conv_pre", "flow.flows.*.conv_pre"),
        floor=0.2,
    ),
    "steps": PruneSpec(amount=0.6, steps=3),
}
_LEVERS = Shape(
    0.5, branches=1, ffn_width=0.5, encoder_layers=1, flows=1, wavenet_layers=1, multiple=2
)
JOE = {
    **_EXACT,
    "activation-local": PruneSpec("activation", "local", 0.5, **_FEW),
    "second-order-sensitivity": PruneSpec(
        "second_order", "sensitivity", 0.5, parts=("text_encoder",), texts=("glue",)
    ),
    "structured": PruneSpec(
        "structured", shape=Shape(decoder_width=0.5, branches=2, flows=3), **_FEW
    ),
}
TINY = {
    **_EXACT,
    "random-local": PruneSpec("random", "local", 0.4),
    "magnitude-sensitivity": PruneSpec(scope="sensitivity", amount=0.5, **_FEW),
    "random-sensitivity": PruneSpec("random", "sensitivity", 0.5, **_FEW),
    "activation-global": PruneSpec("activation", amount=0.5, **_FEW),
    "activation-local-pattern": PruneSpec("activation", "local", 0.5, pattern="2:4", **_FEW),
    "activation-sensitivity": PruneSpec("activation", "sensitivity", 0.7, **_FEW),
    "second-order-global": PruneSpec("second_order", amount=0.5, **_FEW),
    "second-order-local-steps": PruneSpec(
        "second_order", "local", amount=0.6, amounts=(0.3, 0.6), **_FEW
    ),
    "second-order-sensitivity-built-in-texts": PruneSpec("second_order", "sensitivity", 0.75),
    "second-order-pattern": PruneSpec(
        "second_order", amount=0.5, pattern="2:4", protect=(), parts=("decoder", "flow"), **_FEW
    ),
    "structured-amount": PruneSpec("structured", amount=0.5, **_FEW),
    "structured-amount-parts-steps": PruneSpec(
        "structured", amount=0.5, parts=("decoder", "flow"), steps=2, schedule="linear", **_FEW
    ),
    "structured-levers": PruneSpec("structured", shape=_LEVERS, **_FEW),
    "structured-weight-norm": PruneSpec("structured", amount=0.4, importance="weight_norm", **_FEW),
    "structured-activation": PruneSpec("structured", amount=0.4, importance="activation", **_FEW),
    "structured-second-order": PruneSpec(
        "structured", amount=0.4, importance="second_order", **_FEW
    ),
}
HIGH = {
    "second-order-sensitivity": PruneSpec("second_order", "sensitivity", 0.5, **_FEW),
    "structured-residual-width": PruneSpec(
        "structured", shape=Shape(resblock_width=0.5, multiple=1), **_FEW
    ),
}
"""A Piper voice of high quality, whose residual blocks can become narrower inside."""
PRUNED = {"joe": JOE, "hf": TINY, "high": HIGH}
EXACT = tuple({**_EXACT, "random-local": None, "original": None})
"""Cases whose weights are the same on every processor."""


def reference(name):
    """What to load for a voice of PRUNED."""
    return name if name == "joe" else FOLDERS / name


def pruned_facts(voice, spec):
    """Prune and return digest, zeros, sizes, sound and history; `spec` None for no pruning."""
    made = voice if spec is None else prune(voice, spec)
    size = measure_size(made)
    return {
        "weights": weights_digest(made),
        "zeros": zeros(made),
        "size": {
            "nonzero_parameters": size.nonzero_parameters,
            "sparse_fp32_bytes": size.sparse_fp32_bytes,
        },
        "history": history(made),
        "sound": sound(said(made)),
    }


SPECS = (
    "{}",
    '{"method": "magnitude", "scope": "local", "amount": 0.5, "parts": ["flow", "decoder"]}',
    '{"method": "magnitude", "scope": "global", "amount": 0.5, '
    '"parts": ["decoder"], "pattern": "2:4", "protect": []}',
    '{"method": "random", "scope": "global", "amount": 0.3, '
    '"parts": ["text_encoder", "duration_predictor", "flow", "decoder"], "seed": 5}',
    '{"method": "second_order", "scope": "sensitivity", "amount": 0.6, '
    '"parts": ["decoder"], "protect": ["decoder.conv_pre"], '
    '"floor": 0.1, "amounts": [0.3, 0.5, 0.6], "texts": ["hello"]}',
    '{"method": "activation", "amount": 0.6, "steps": 4, "schedule": "linear"}',
    '{"method": "structured", "scope": "local", "amount": 0.5, '
    '"importance": "weight_norm", "steps": 2}',
    '{"method": "structured", "shape": {"decoder_width": 0.5, "branches": 2, '
    '"resblock_width": 0.75, "ffn_width": 0.5, '
    '"encoder_layers": 4, "flows": 2, "wavenet_layers": 3, "multiple": 4}}',
    '{"method": "structured", "shape": {"decoder_width": 0.5}, "importance": "second_order"}',
)
"""Recipes as people keep them."""

# Command line


def _parsers(*arguments):
    """The parsers that a command line meets, the command's own last."""
    met = []

    def keep(self, *_, **__):
        met.append(self)
        raise SystemExit(0)

    patched = {"parse_args": keep, "parse_known_args": keep}
    with mock.patch.multiple(argparse.ArgumentParser, **patched):
        run(*arguments)
    return met


def _sub_parsers(parser):
    choices = [
        action.choices
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(choices[0]) if choices else {}


def commands():
    """The names of all commands."""
    return sorted(_sub_parsers(_parsers("--help")[0]))


def options(command):
    """The options of a command ("" for the program): number of values, choices, default."""
    parser = _parsers(*filter(None, [command]), "--help")[0]
    if command:
        parser = _sub_parsers(parser)[command]
    found = {}
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        for name in action.option_strings or [action.dest]:
            default = action.default
            typed = (
                [str(one) for one in default]
                if isinstance(default, (list, tuple))
                else [str(default)]
            )
            found[name] = {
                "values": 0 if action.nargs == 0 else action.nargs or 1,
                "required": action.required,
                "choices": sorted(map(str, action.choices)) if action.choices else None,
                "default": None if default in (None, False, argparse.SUPPRESS) else typed,
            }
    return found


PRUNE_LINES = {
    "local": ["--scope", "local", "--amount", "0.5", "--parts", "flow", "decoder",
              "--protect", "decoder.conv_pre", "--floor", "0.1"],
    "steps": ["--steps", "0.2,0.4,0.6", "--protect"],
    "linear": ["--steps", "3", "--amount", "0.6", "--schedule", "linear", "--parts", "all"],
    "random": ["--method", "random", "--prune-seed", "7"],
    "pattern": ["--pattern", "2:4"],
    "levers": ["--method", "structured", "--decoder-width", "0.5", "--flows", "1",
               "--branches", "1", "--ffn-width", "0.5",
               "--encoder-layers", "1", "--wavenet-layers", "1", "--multiple", "2",
               "--importance", "weight_norm",
               "--calibration-texts", "TEXTS"],
    "second-order": ["--method", "second_order", "--scope", "sensitivity", "--amount", "0.5",
                     "--calibration-texts", "TEXTS"],
}  # fmt: skip
"""What is typed after `prune --voice hf`; TEXTS is a file with TEXTS in it."""
WRONG_LINES = (
    ["prune", "--voice", "VOICE", "--amount", "2", "--out", "OUT"],
    ["prune", "--voice", "VOICE", "--method", "none", "--out", "OUT"],
    ["prune", "--voice", "VOICE", "--pattern", "2:4", "--amount", "0.3", "--out", "OUT"],
    ["prune", "--voice", "VOICE", "--out", "VOICE"],
    ["compare", "--voice", "VOICE", "--text", "", "--out", "OUT"],
    ["export", "--voice", "VOICE", "--precision", "int8", "--out", "OUT"],
    ["heal", "--voice", "VOICE", "--out", "OUT"],
    ["prune", "--voice", "VOICE"],
)
"""Each ends with exit code 2."""
HEAL_LINE = [
    "--steps",
    "8",
    "--lessons",
    "2",
    "--evaluations",
    "0",
    "--checkpoint-every",
    "4",
    "--batch",
    "2",
]
SWEEP_LINE = ["--amount", "0.3", "0.6", "--metrics", "loudness", "rhythm", "--noise-seeds", "1"]
VARYING = ("cpu_", "joules_")
"""Columns of a sweep that differ from run to run begin like this."""


def texts_file(folder):
    """TEXTS, one a line."""
    path = folder / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def line_of(typed, folder):
    """The words of a PRUNE_LINES line."""
    return [str(texts_file(folder)) if word == "TEXTS" else word for word in typed]


def succeed(*arguments):
    """Run a command that must end well; its standard output."""
    code, out, err = run(*arguments)
    assert code == 0, f"{' '.join(map(str, arguments))}: {code}: {err[-2000:]}"
    return out


def prune_line_facts(typed, folder):
    """What a `prune` command wrote."""
    out = folder / "out"
    succeed("prune", "--voice", FOLDERS / "hf", *line_of(typed, folder), "--out", out)
    voice = load_voice(out)
    return {"history": history(voice), "weights": weights_digest(voice), "zeros": zeros(voice)}


def compare_facts(folder):
    """The files of `compare` and the names in them."""
    out = folder / "compared"
    succeed(
        "compare",
        "--voice",
        FOLDERS / "hf",
        "--text",
        TEXT,
        "--runs",
        "1",
        "--timing",
        "locked",
        "--out",
        out,
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        "files": sorted(path.name for path in out.iterdir()),
        "columns": {
            path.stem: path.read_text(encoding="utf-8").splitlines()[0].split(",")
            for path in sorted(out.glob("*.csv"))
        },
        "report": shape_of(_without_kernels(report)),
        "sparsity": report["sparsity"],
        "size": report["size"],
    }


def _without_kernels(report):
    """A report without what depends on which kernels are faster on this machine."""
    voices = {
        name: {key: one for key, one in report["latency"][name].items() if key not in _KERNELS}
        for name in ("original", "pruned")
    }
    return {**report, "latency": {**report["latency"], **voices}}


_KERNELS = ("sparse", "dense_seconds", "kernels")


def layers_table():
    """The table of `layers --csv`, without its column of words."""
    import csv

    rows = list(csv.reader(io.StringIO(succeed("layers", "--voice", FOLDERS / "hf", "--csv"))))
    return {
        "columns": rows[0],
        "layers": [row[rows[0].index("layer")] for row in rows[1:] if len(row) == len(rows[0])],
    }


EXPORTS = {
    "sparse": ("pruned", "sparse", "fp16"),
    "onnx": ("pruned", "onnx", "int8"),
    "piper": ("medium", "piper", "fp32"),
    "narrow-onnx": ("narrow", "onnx", "fp32"),
}
"""Name -> (folder of the voice, format, precision)."""


def export_facts(folder):
    """The files of an export, and what runs its graph needs to know."""
    found = {"files": sorted(path.name for path in folder.iterdir())}
    for path in sorted(folder.glob("*.onnx")):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found["inputs"] = [[one.name, one.type, len(one.shape)] for one in session.get_inputs()]
        found["outputs"] = [[one.name, one.type, len(one.shape)] for one in session.get_outputs()]
        found["metadata"] = sorted(session.get_modelmeta().custom_metadata_map)
    for name in ("export.json", "vits_prune.json"):
        if (folder / name).is_file():
            found[name] = sorted(json.loads((folder / name).read_text(encoding="utf-8")))
    return found


OPENED = (
    "hf",
    "crowd",
    "medium",
    "high",
    "pruned",
    "twice",
    "healed",
    "narrow",
    "half",
    "sparse",
    "onnx",
    "piper",
)
"""Folders that `load_voice` opens."""


def opened_facts(name):
    """What `load_voice` makes of a folder, for its last speaker where there are several."""
    voice = load_voice(FOLDERS / name)
    if voice.speakers:
        voice = load_voice(FOLDERS / name, speaker=len(voice.speakers) - 1)
    return {
        "name": voice.name,
        "speakers": list(voice.speakers),
        "speaker": voice.speaker,
        "family": voice.origin.family,
        "history": history(voice),
        "weights": weights_digest(voice),
        "zeros": zeros(voice),
        "sound": sound(said(voice)),
    }


def stock(folder):
    """A Piper voice as its publisher exported it, in `folder`."""
    path = folder / "stock.onnx"
    path.write_bytes(gzip.decompress((FOLDERS / "stock" / "stock.onnx.gz").read_bytes()))
    shutil.copy(FOLDERS / "stock" / "stock.onnx.json", folder)
    return path


# Public names

FREE = {"speak", "heal", "heal_steps"}
"""Functions whose parameters a redesign may rename."""


def public_names():
    """The public names, functions with the names of their parameters; callbacks are left out."""
    found = {}
    for name in vits_prune.__all__:
        value = getattr(vits_prune, name)
        known = (
            [
                one
                for one in inspect.signature(value).parameters
                if not one.startswith(("on_", "after_"))
            ]
            if inspect.isfunction(value)
            else None
        )
        found[name] = None if name in FREE else known
    return found


FIELDS = ("PruneSpec", "Shape", "Delivery", "Layer", "Speech", "Voice")


def fields():
    """The fields of public values."""
    import dataclasses

    return {
        name: [field.name for field in dataclasses.fields(getattr(vits_prune, name))]
        for name in FIELDS
    }


# The page

CALL = {
    "voice": "joe",
    "text": "Hi.",
    "scope": "local",
    "amount": 0.4,
    "parts": ["flow", "decoder"],
    "seed": 1,
    "timing": "locked",
}
SPARSITY_CALL = {
    "voice": "joe",
    "scope": "global",
    "amount": 0.3,
    "parts": ["text_encoder", "decoder"],
    "method": "magnitude",
}


@contextlib.contextmanager
def page(folder):
    """The address of `python app.py` while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "NO_PROXY": "127.0.0.1,localhost", "GRADIO_TEMP_DIR": str(folder / "gradio"),
    }  # fmt: skip
    for name in ("OAUTH_CLIENT_ID", "SPACE_ID"):
        environment.pop(name, None)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/config", timeout=5):
                break
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def kind_of(schema):
    """The kind of value that a JSON schema describes."""
    return schema.get("title") or (schema["type"] if isinstance(schema.get("type"), str) else "any")


def api_facts(url):
    """The endpoints, with the names of what they take and return, and one answer of each."""
    import soundfile
    from gradio_client import Client

    client = Client(url, verbose=False)
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    schema = {
        name: {
            "parameters": [
                [one["parameter_name"], one["parameter_has_default"], kind_of(one["type"])]
                for one in endpoint["parameters"]
            ],
            "returns": [[one["label"], kind_of(one["type"])] for one in endpoint["returns"]],
        }
        for name, endpoint in sorted(named.items())
    }
    original, pruned, report = client.predict(api_name="/compare", **CALL)
    clips = {}
    for name, path in (("original", original), ("pruned", pruned)):
        samples, rate = soundfile.read(path, dtype="int16")
        clips[name] = [rate, len(samples), soundfile.info(path).subtype]
    about = {
        key: report[key] for key in ("voice", "text", "seed", "timing", "spec", "sparsity", "size")
    }
    return {
        "schema": schema,
        "report": shape_of(_without_kernels(report)),
        "about": about,
        "clips": clips,
        "sparsity": client.predict(api_name="/sparsity", **SPARSITY_CALL),
    }
