"""Record what the program answers: `python -m tests.goldens.make [SECTION ...]` from the root.

The record in use was made with the package of commit be97033. That package also wrote `folders/`:
voices, exports, a sweep, and a healing that was stopped. They stay as they are, so that later
versions still open them. Without `--folders` only `record.json` is written, all of it or the
sections that are named. Record again only what is meant to change, and say why in the commit.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import re
import shutil
import tempfile
from pathlib import Path

import torch

from tests.goldens import cases
from tests.goldens.cases import FOLDERS, RECORD, succeed


def make_folders(work):
    """Write `folders/` with the package at hand."""
    from tests.voices import piper_factory
    from tests.voices.hf_factory import make_checkpoint

    shutil.rmtree(FOLDERS, ignore_errors=True)
    FOLDERS.mkdir()
    sizes = {
        "hidden_size": 8,
        "ffn_dim": 16,
        "flow_size": 8,
        "upsample_initial_channel": 16,
        "duration_predictor_filter_channels": 8,
    }
    make_checkpoint(FOLDERS / "hf", **sizes)
    make_checkpoint(work / "crowd", speakers=3, stochastic=False, seed=1, **sizes)
    small = dataclasses.replace(piper_factory.TINIEST, hidden=8, inter=4, filter=8, initial=8)
    high = dataclasses.replace(
        small, resblock="1", resblock_kernels=(3, 5), resblock_dilations=((1, 3, 5),) * 2
    )
    for name, shape in (
        ("medium", small),
        ("high", high),
        ("stock", dataclasses.replace(small, speakers=2)),
    ):
        made = piper_factory.make_voice(work, shape, name)
        if name != "stock":
            succeed(
                "export",
                "--voice",
                made,
                "--format",
                "dense",
                "--no-measure",
                "--out",
                FOLDERS / name,
            )
    (FOLDERS / "stock").mkdir()
    (FOLDERS / "stock" / "stock.onnx.gz").write_bytes(
        gzip.compress((work / "stock.onnx").read_bytes(), mtime=0)
    )
    shutil.copy(work / "stock.onnx.json", FOLDERS / "stock")

    def prune(voice, name, *typed):
        succeed("prune", "--voice", voice, *typed, "--out", FOLDERS / name)

    texts = cases.texts_file(work)
    prune(
        FOLDERS / "hf",
        "pruned",
        "--method",
        "second_order",
        "--amount",
        "0.5",
        "--calibration-texts",
        texts,
    )
    prune(FOLDERS / "pruned", "twice", "--scope", "local", "--amount", "0.8", "--steps", "2")
    prune(
        FOLDERS / "high",
        "narrow",
        "--method",
        "structured",
        "--resblock-width",
        "0.5",
        "--multiple",
        "1",
        "--calibration-texts",
        texts,
    )
    prune(work / "crowd", "crowd", "--amount", "0.4", "--protect", "decoder.cond")
    succeed(
        "export",
        "--voice",
        FOLDERS / "narrow",
        "--precision",
        "fp16",
        "--no-measure",
        "--out",
        FOLDERS / "half",
    )
    for name, (voice, form, precision) in cases.EXPORTS.items():
        if name in cases.OPENED:
            typed = [
                "--format",
                form,
                "--precision",
                precision,
                "--no-measure",
                "--out",
                FOLDERS / name,
            ]
            succeed("export", "--voice", FOLDERS / voice, *typed)
            (FOLDERS / name / "bench.py").unlink(missing_ok=True)  # code, which nothing here needs
    same = [
        "--voice",
        FOLDERS / "hf",
        "--pruned",
        FOLDERS / "pruned",
        "--texts",
        texts,
        *cases.HEAL_LINE,
    ]
    stopped = FOLDERS / "stopped-healing"
    succeed("heal", *same, "--workdir", stopped, "--out", FOLDERS / "healed")
    for path in (
        *stopped.glob("curve.*"),
        stopped / "checkpoints" / "checkpoint-00000008.safetensors",
    ):  # as if killed after step 4
        path.unlink()
    succeed(
        "sweep",
        "--voice",
        FOLDERS / "hf",
        *cases.SWEEP_LINE,
        "--text-file",
        texts,
        "--out",
        FOLDERS / "sweep",
    )
    for path in (*(FOLDERS / "sweep").glob("*.svg"), *(FOLDERS / "sweep").glob("*.png")):
        path.unlink()


def _pruned(_work):
    found = {}
    for name, specs in cases.PRUNED.items():
        voice = cases.load_voice(cases.reference(name))
        found[name] = {
            case: cases.pruned_facts(voice, spec)
            for case, spec in {"original": None, **specs}.items()
        }
    return found


def _lines(work):
    return {
        name: cases.prune_line_facts(typed, Path(tempfile.mkdtemp(dir=work)))
        for name, typed in cases.PRUNE_LINES.items()
    }


def _exports(work):
    found = {}
    for name, (voice, form, precision) in cases.EXPORTS.items():
        out = work / f"export-{name}"
        typed = ["--format", form, "--precision", precision, "--no-measure", "--out", out]
        succeed("export", "--voice", FOLDERS / voice, *typed)
        found[name] = cases.export_facts(out)
    return found


def _stock(work):
    path = work / "stock-again"
    path.mkdir()
    voice = cases.load_voice(cases.stock(path), speaker=1)
    return {
        "speakers": list(voice.speakers),
        "weights": cases.weights_digest(voice),
        "sound": cases.sound(cases.said(voice)),
    }


def _api(work):
    with cases.page(work) as url:
        return cases.api_facts(url)


SECTIONS = {
    "pruned": _pruned,
    "specs": lambda _work: [
        json.loads(cases.PruneSpec.from_json(text).to_json()) for text in cases.SPECS
    ],
    "opened": lambda _work: {name: cases.opened_facts(name) for name in cases.OPENED},
    "stock": _stock,
    "exports": _exports,
    "commands": lambda _work: {name: cases.options(name) for name in ("", *cases.commands())},
    "prune_lines": _lines,
    "compare": cases.compare_facts,
    "layers": lambda _work: cases.layers_table(),
    "names": lambda _work: cases.public_names(),
    "fields": lambda _work: cases.fields(),
    "api": _api,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--folders", action="store_true", help="write folders/ anew too")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        if chosen.folders:
            make_folders(Path(place))
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
        record["machine"] = cases.machine()
        for name in chosen.sections or SECTIONS:
            record[name] = SECTIONS[name](Path(place))
    text = json.dumps(record, indent=1, ensure_ascii=False)
    text = re.sub(
        r'\[\s+(-?\d[^\[\]{}"]*?)\s+\]',
        lambda found: "[" + re.sub(r",\s+", ",", found[1]) + "]",
        text,
    )
    RECORD.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
