"""python -m vits_prune: what it writes, what it prints, and how it ends."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
import soundfile

import vits_prune.study.comparison
from tests.nearly import nearly
from vits_prune import PruneSpec, layers, load_voice, measure_sparsity, prune, speak
from vits_prune.cli.main import main
from vits_prune.measure.cost import count_macs
from vits_prune.synthesis.texts import load_calibration_texts

TEXT = "the birch canoe slid"
WRITTEN = {
    "original.wav",
    "pruned.wav",
    "report.json",
    "sparsity.csv",
    "layers.csv",
    "size.csv",
    "latency.csv",
}


def compare(voice, out, *more):
    return main(
        ["compare", "--voice", str(voice), "--text", TEXT, "--runs", "1", "--out", str(out), *more]
    )


def test_compare(tiny, tiny_folder, tmp_path, capsys):
    text, out = "glue the sheet", tmp_path / "out"
    line = [
        "compare",
        "--voice",
        str(tiny_folder),
        "--scope",
        "global",
        "--amount",
        "0.3",
        "--seed",
        "1",
    ]
    line += ["--timing", "own", "--text", text, "--runs", "1", "--out", str(out)]
    assert main(line) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert {path.name for path in out.iterdir()} == WRITTEN
    for name, voice in (("original", tiny), ("pruned", prune(tiny, PruneSpec(amount=0.3)))):
        about = soundfile.info(out / f"{name}.wav")
        assert (about.subtype, about.samplerate, about.channels) == (
            "PCM_16",
            tiny.sampling_rate,
            1,
        )
        samples, _ = soundfile.read(out / f"{name}.wav", dtype="int16")
        expected = speak(voice, text, 1).pcm16()
        assert len(samples) == len(expected)
        assert (
            np.abs(samples.astype(int) - expected).max() <= 2
        )  # another process may have another number of threads
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["sparsity"]["overall"] == pytest.approx(0.3, abs=1e-4)
    assert set(report["sparsity"]["parts"]) == {
        "text_encoder",
        "duration_predictor",
        "flow",
        "decoder",
    }
    assert (report["voice"], report["text"], report["seed"]) == ("tiny", text, 1)
    assert report["spec"] == PruneSpec(amount=0.3).to_dict()
    assert (
        report["size"]["pruned"]["sparse_fp32_bytes"]
        < report["size"]["original"]["sparse_fp32_bytes"]
    )
    assert report["latency"]["runs"] == 1
    for name in ("sparsity", "layers", "size", "latency"):
        assert len(pd.read_csv(out / f"{name}.csv"))
    assert len(pd.read_csv(out / "layers.csv")) == len(layers(tiny))
    assert all(
        word in shown.out for word in ("whole voice", "real-time factor", f"Written to {out}")
    )


def test_compare_locked(tiny_folder, tmp_path, capsys):
    assert (
        compare(
            tiny_folder,
            tmp_path / "new" / "out",
            "--timing",
            "locked",
            "--parts",
            "flow",
            "decoder",
            "--speaking-rate",
            "0.5",
        )
        == 0
    )
    assert capsys.readouterr().err == ""
    out = tmp_path / "new" / "out"
    assert {path.name for path in out.iterdir()} == WRITTEN
    assert (
        soundfile.info(out / "original.wav").frames == soundfile.info(out / "pruned.wav").frames > 0
    )
    report = json.loads((out / "report.json").read_text())
    assert (report["timing"], report["spec"]["parts"]) == ("locked", ["flow", "decoder"])
    assert report["sparsity"]["parts"]["text_encoder"] < 0.01


def test_compare_tells_what_was_dropped(tiny_folder, tmp_path, capsys):
    assert compare(tiny_folder, tmp_path, "--text", "go 9") == 0
    assert "The voice has no symbol for: 9" in capsys.readouterr().out


def test_layers(tiny_folder, tiny, capsys):
    assert main(["layers", "--voice", str(tiny_folder)]) == 0
    shown = capsys.readouterr().out
    assert all(layer.name in shown for layer in layers(tiny))
    assert "look-up table" in shown
    assert main(["layers", "--voice", str(tiny_folder), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["layer"] for row in rows if row["layer"]] == [layer.name for layer in layers(tiny)]


def test_prune_then_load(tiny_folder, tiny, tmp_path, capsys):
    out = tmp_path / "saved"
    for amount in ("0.5", "0.25"):  # the second replaces the first
        assert (
            main(
                [
                    "prune",
                    "--voice",
                    str(tiny_folder),
                    "--scope",
                    "local",
                    "--amount",
                    amount,
                    "--out",
                    str(out),
                ]
            )
            == 0
        )
    spec = PruneSpec(scope="local", amount=0.25)
    found = load_voice(out)
    assert nearly(speak(found, TEXT).waveform, speak(prune(tiny, spec), TEXT).waveform)
    assert json.loads((out / "prune_spec.json").read_text()) == spec.to_dict()
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"with {100 * measure_sparsity(found).overall:.1f}% of its weights at zero" in said
    first, (whole, _) = count_macs(load_voice(tiny_folder), load_calibration_texts()[0])
    _, (_, left) = count_macs(found, load_calibration_texts()[0], timing=first)
    assert f", {100 * left / whole:.1f}% of its multiply-accumulates left" in said


BAD = [
    ["--parts", "vocoder"],
    ["--parts", "all", "flow"],
    ["--amount", "nan"],
    ["--amount", "1"],
    ["--amount", "-0.1"],
    ["--amount", "inf"],
    ["--scope", "sideways"],
    ["--method", "luck"],
    ["--text", ""],
    ["--text", "  "],
    ["--text", "🙂"],
    ["--text", "x" * 100_000],
    ["--text", "a \udcff"],
    ["--seed", "-1"],
    ["--seed", str(2**32)],
    ["--runs", "0"],
    ["--speaking-rate", "9"],
    ["--noise-scale", "nan"],
    ["--speaker", "5"],
    ["--speaker", "ann"],
    ["--voice", "/nowhere/at/all"],
    ["--voice", ""],
    ["--voice", "x.onnx"],
]


def test_bad_input_ends_with_2_and_one_sentence(tiny_folder, tmp_path, capsys):
    out = tmp_path / "out"
    for more in BAD:
        assert compare(tiny_folder, out, *more) == 2, more
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith("vits_prune: ")
        assert not out.exists()


def test_arguments_that_cannot_be_parsed_end_with_2(capsys):
    for line in (
        "",
        "sing",
        "compare",
        "compare --out x --amount abc",
        "compare --out x --timing late",
        "prune",
    ):
        with pytest.raises(SystemExit) as exit_:
            main(line.split())
        assert exit_.value.code == 2
        assert "usage:" in capsys.readouterr().err


def test_places_that_cannot_be_written(tiny_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert compare(tiny_folder, tmp_path / "file") == 2
    assert "could not be written" in capsys.readouterr().err
    assert main(["prune", "--voice", str(tiny_folder), "--out", str(tmp_path)]) == 2
    assert "not a saved voice" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_what_nobody_expected_ends_with_1(tiny_folder, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(vits_prune.study.comparison, "compare", broken)
    assert compare(tiny_folder, tmp_path / "out") == 1
    assert capsys.readouterr().err == "vits_prune: RuntimeError: out of luck\n"
    with pytest.raises(RuntimeError, match="out of luck"):
        main(
            ["--traceback", "compare", "--voice", str(tiny_folder), "--out", str(tmp_path / "out")]
        )


def test_an_interrupt(tiny_folder, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(vits_prune.study.comparison, "compare", interrupted)
    assert compare(tiny_folder, tmp_path / "out") == 130
    assert capsys.readouterr().err == "vits_prune: stopped.\n"


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("compare", "layers", "prune"))
