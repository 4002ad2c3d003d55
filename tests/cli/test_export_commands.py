"""The commands export and bench."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vits_prune import load_voice
from vits_prune.cli.main import main
from vits_prune.progress import Progress
from vits_prune.ship import export_report as report
from vits_prune.ship.export_report import ExportRow, measure_export, measure_rounding
from vits_prune.ship.formats import export_voice


@pytest.mark.parametrize(
    ("format", "precision"),
    [("dense", "fp32"), ("dense", "fp16"), ("sparse", "fp32"), ("onnx", "int8"), ("piper", "fp32")],
)
def test_export(tiny_folder, tmp_path, capsys, monkeypatch, format, precision):
    monkeypatch.setattr(report, "TIMING_ROUNDS", 1)
    out = tmp_path / "out"
    arguments = [
        "export",
        "--voice",
        str(tiny_folder),
        "--format",
        format,
        "--precision",
        precision,
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"{format} {precision}" in shown
    assert "for scale: dense fp32" in shown
    assert f"Written to {out}" in shown
    if format in ("dense", "sparse"):
        assert load_voice(out).name
        assert "python -m vits_prune bench out" in shown
    else:
        assert "python bench.py tiny.onnx" in shown
        assert "no sample is off by more than" in shown


def test_what_cannot_be_exported(tiny_folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert (
        main(
            [
                "export",
                "--voice",
                str(tiny_folder),
                "--format",
                "dense",
                "--precision",
                "int8",
                *out,
            ]
        )
        == 2
    )
    assert "precisions fp32, fp16" in capsys.readouterr().err
    assert main(["export", "--voice", str(tmp_path / "nothing"), *out]) == 2
    assert not (tmp_path / "out").exists()


def test_the_words_say_what_is_worse(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "TIMING_ROUNDS", 1)
    export = export_voice(tiny, tmp_path / "sparse", "sparse")
    *scale, row = measure_export(tiny, export)
    assert [one.what for one in scale] == [
        "for scale: dense fp32",
        "for scale: dense fp16",
        "for scale: sparse fp32",
    ]
    assert "larger than dense fp16" in row.words
    assert row.closeness.log_mel_db == row.closeness.drift == 0
    name = "decoder.conv_pre.weight"
    other = tiny.with_weights({name: 0.5 * tiny.model.get_parameter(name)})
    assert measure_rounding(tiny, other).log_mel_db > 1


def test_a_rounded_export_is_held_against_the_float32_row_at_hand(tiny, tmp_path, monkeypatch):
    """No other is written and timed: the row that was given decides what the words say."""
    monkeypatch.setattr(report, "TIMING_ROUNDS", 1)
    export = export_voice(tiny, tmp_path / "out", "onnx", "int8")
    there, messages = ExportRow("onnx fp32", 1.0, 1.0, timings=((1e-6, 1e6),)), []
    progress = Progress(lambda what, _share: messages.append(what))
    *_, row = measure_export(tiny, export, float32=there, progress=progress)
    assert "faster than fp32 (0.00 to 0.00" in row.words
    assert "slower to load than fp32" in row.words
    assert "timing, round 1 of 1" in messages
    assert not any("fp32" in what for what in messages)
    assert (1e3 * row.timings[0][0], row.timings[0][1]) == (row.load_ms, row.real_time_factor)


def test_bench_command(tiny, tmp_path, capsys):
    model = export_voice(tiny, tmp_path / "out", "onnx").model
    assert (
        main(
            [
                "bench",
                str(model),
                "--threads",
                "1,2",
                "--runs",
                "1",
                "--json",
                str(tmp_path / "a.json"),
            ]
        )
        == 0
    )
    assert "RTF" in capsys.readouterr().out
    assert main(["bench", "--merge", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out.count("out/tiny.onnx") == 4
    assert main(["bench", str(tmp_path / "nothing.onnx")]) == 2
    assert "check the path" in capsys.readouterr().err


def test_bench_needs_neither_torch_nor_transformers(tiny, tmp_path):
    """A machine with onnxruntime and numpy alone: everything else fails to import."""
    model = export_voice(tiny, tmp_path / "out", "onnx").model
    blocked = (
        "torch",
        "transformers",
        "safetensors",
        "huggingface_hub",
        "pandas",
        "gradio",
        "onnx",
        "scipy",
        "zstandard",
        "espeakng_loader",
    )
    (tmp_path / "bare").mkdir()
    for name in blocked:
        (tmp_path / "bare" / f"{name}.py").write_text(
            f"raise ModuleNotFoundError('no {name} here', name='{name}')"
        )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "bare"), os.getcwd()]),
    }
    for command in (
        [sys.executable, "-m", "vits_prune", "bench", str(model)],
        [sys.executable, "bench.py", model.name],
    ):
        written = tmp_path / "result.json"
        place = model.parent if "bench.py" in command else None
        done = subprocess.run(
            [*command, "--runs", "1", "--json", str(written)],
            env=environment,
            cwd=place,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(written.read_text())["rows"][0]["real_time_factor"] > 0
        saved = [*command[:-1], str(tmp_path)]
        done = subprocess.run(saved, env=environment, cwd=place, capture_output=True, text=True)
        assert done.returncode == 2
        assert "a saved voice needs torch and vits_prune" in done.stderr
        assert "torch is not here" in done.stderr
