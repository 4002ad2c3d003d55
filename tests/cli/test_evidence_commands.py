"""The commands evaluate, sweep, knee and sensitivity: what they write, print and refuse."""

from __future__ import annotations

import csv
import importlib.metadata
import json

import pytest

from tests.voices.hf_factory import make_checkpoint
from vits_prune import PruneSpec, load_voice, prune
from vits_prune.cli import main as cli
from vits_prune.cli.terminal import time_left
from vits_prune.measure import predictors
from vits_prune.measure.predictors import PREDICTORS, deaf_words
from vits_prune.measure.quality import METRICS
from vits_prune.measure.weights import measure_sparsity
from vits_prune.voices.saved import save_voice

CHEAP = ("--metrics", "rhythm", "loudness", "--noise-seeds", "1")


@pytest.fixture
def texts(tmp_path):
    """As an editor on Windows leaves it."""
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffthe birch canoe slid\r\n\r\n   \r\non the smooth planks\r\n".encode())
    return path


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(command, voice, texts, *more):
    return cli.main([command, "--voice", str(voice), "--text-file", str(texts), *map(str, more)])


def refused(capsys, *arguments):
    """The one sentence that a command ends with."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vits_prune: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def test_evaluate(tiny_folder, texts, tmp_path, capsys):
    folder = save_voice(
        prune(load_voice(tiny_folder), PruneSpec(scope="local", amount=0.9)), tmp_path / "pruned"
    )
    out = tmp_path / "found.json"
    assert run("evaluate", tiny_folder, texts, "--against", folder, *CHEAP, "--json", out) == 0
    printed = capsys.readouterr().out
    for word in (
        "duration ratio",
        "noise floor",
        "verdict",
        "CPU-seconds",
        "Speech failures",
        "2 sentences",
        "margin",
        "It is undecided whether there is a difference from the original on ",
        "Signature: texts:2.",
    ):
        assert word in printed
    assert "judges" not in printed, "no predictor was used"
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [one["text"] for one in found["sentences"]] == [
        "the birch canoe slid",
        "on the smooth planks",
    ]
    assert found["recipe"]["pruned"][0]["amount"] == 0.9
    assert set(found["figures"]) == {"duration_ratio", "duration_drift", "duration_shift", "lufs"}


@pytest.fixture
def bare(monkeypatch):
    """No optional predictor is installed."""

    real = importlib.metadata.version

    def version(package):
        if package in ("distillmos", "visqol-python", "Resemblyzer"):
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(predictors, "_loaded", type(predictors._loaded)(8, lambda _: 1))
    monkeypatch.setattr(importlib.metadata, "version", version)


def test_what_predictors_are_deaf_to_and_what_is_left_out_is_said_once(
    tiny_folder, texts, capsys, bare
):
    how = ("--metrics", "naturalness", "closeness", "--noise-seeds", "1")
    assert run("evaluate", tiny_folder, texts, "--against", tiny_folder, *how) == 0
    printed = capsys.readouterr().out
    deaf = "DNSMOS judges a voice alone; it was trained on noisy calls and hardly hears what"
    assert printed.count(deaf) == 1
    assert "Naturalness is by DNSMOS only" in printed
    assert "ViSQOL is not installed: see the line below." in printed
    assert printed.count(predictors.INSTALL) == 1


def test_a_predictor_that_is_there_says_what_it_is_deaf_to():
    sentences = deaf_words(("cer", "visqol", "dnsmos_sig", "dnsmos_ovrl"))
    assert [one.split(" judges ")[0] for one in sentences] == [
        "The recogniser",
        "DNSMOS",
        "ViSQOL",
    ]
    assert deaf_words(("lufs",)) == []
    for one in PREDICTORS.values():
        assert {METRICS[metric].family for metric in one.metrics} == {one.family}


@pytest.mark.slow
def test_evaluate_a_real_voice(joe, tmp_path, capsys):
    """The whole evidence, over two sentences."""
    folder = save_voice(prune(joe, PruneSpec(scope="global", amount=0.6)), tmp_path / "pruned")
    assert (
        cli.main(["evaluate", "--against", str(folder), "--texts", "2", "--noise-seeds", "0"]) == 0
    )
    printed = capsys.readouterr().out
    for word in (
        "word error rate",
        "DNSMOS, overall",
        "mel-cepstral distortion (dB)",
        "LUFS",
        "silence: 2 of 2",
    ):
        assert word in printed


def test_sweep(tiny_folder, texts, tmp_path, capsys):
    out = tmp_path / "sweep"
    command = (
        "--scope",
        "global",
        "local",
        "--amount",
        "0:0.4:0.4",
        "--parts",
        "all",
        "flow+decoder",
        *CHEAP,
        "--out",
        out,
    )
    assert run("sweep", tiny_folder, texts, *command) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "8 points), " in printed.out
    assert printed.out.count("Signature: texts:2.") == 1
    assert "claim" in printed.out.splitlines()[0]
    found = rows(out / "sweep.csv")
    assert len(found) == 8
    assert list(found[0])[:6] == ["voice", "method", "scope", "parts", "amount", "sparsity"]
    assert {(row["scope"], row["parts"]) for row in found} == {
        (s, p) for s in ("global", "local") for p in ("all", "flow+decoder")
    }
    assert {float(row["amount"]) for row in found} == {0.0, 0.4}
    assert len((out / "sweep.jsonl").read_text().splitlines()) == 8
    plots = {path.name for path in out.glob("curve-*")}
    assert {
        f"curve-{name}.{kind}" for name in ("lufs", "duration_ratio") for kind in ("svg", "png")
    } <= plots
    assert run("sweep", tiny_folder, texts, *command) == 0
    assert "8 points, 8 of an earlier run" in capsys.readouterr().out
    assert "other settings" in refused(
        capsys, "sweep", "--voice", tiny_folder, "--text-file", texts, *command, "--seed", "5"
    )


def test_sweep_of_rounded_weights(tiny_folder, texts, tmp_path):
    """The points have their bits, the one at no zeros too, and share a grid's other options."""
    out, voice = tmp_path / "sweep", load_voice(tiny_folder)
    command = ("--bits", "4", "--amount", "0,0.5", *CHEAP, "--out", out)
    assert run("sweep", tiny_folder, texts, *command) == 0
    found = rows(out / "sweep.csv")
    assert [json.loads(row["options"]) for row in found] == 2 * [{"bits": 4}]
    for row in found:
        rounded = prune(voice, PruneSpec(amount=float(row["amount"]), bits=4))
        assert float(row["sparsity"]) == pytest.approx(measure_sparsity(rounded).overall, abs=1e-6)
    assert float(found[0]["sparsity"]) > 0


def test_sweep_of_two_voices(tiny_folder, texts, tmp_path, capsys):
    other, out = make_checkpoint(tmp_path / "other", seed=5), tmp_path / "sweep"
    command = [
        "sweep",
        "--voice",
        str(tiny_folder),
        str(other),
        "--text-file",
        str(texts),
        "--amount",
        "0.0,0.5",
        *CHEAP,
        "--metrics",
        "loudness",
    ]
    command += ["--out", str(out)]
    capsys.readouterr()
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"All voices together: {out / 'sweep.csv'} (4 points)" in printed.out
    assert len(rows(out / "sweep.csv")) == 4
    assert len({path.parent for path in out.glob("*/curve-lufs.svg")}) == 2
    assert cli.main([*command, "--voice", str(tiny_folder), str(other), "./nowhere"]) == 2
    error = capsys.readouterr().err
    assert "Not measured: ./nowhere" in error
    assert "1 voices or points could not be measured" in error
    assert "the sweep of one voice" in refused(
        capsys, *command[:-1], next(path.parent for path in out.glob("*/sweep.json"))
    )


def test_ctrl_c_says_how_to_go_on(tiny_folder, texts, tmp_path, capsys, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vits_prune.study.sweep_engines.measure_point", stop)
    assert (
        run("sweep", tiny_folder, texts, "--amount", "0.3", *CHEAP, "--out", tmp_path / "sweep")
        == 130
    )
    assert "start the same command again" in capsys.readouterr().err
    monkeypatch.undo()


def test_points_that_fail_end_with_2(tiny_folder, texts, tmp_path, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("vits_prune.study.sweep_engines.measure_point", fail)
    assert (
        run("sweep", tiny_folder, texts, "--amount", "0.3", *CHEAP, "--out", tmp_path / "sweep")
        == 2
    )
    error = capsys.readouterr().err
    assert (
        "Not measured: method magnitude, scope global, parts all, amount 0.3: "
        "ZeroDivisionError: a bug" in error
    )
    assert "1 points could not be measured" in error


def test_knee(tiny_folder, texts, tmp_path, capsys):
    out = tmp_path / "knee.json"
    assert (
        run(
            "knee",
            tiny_folder,
            texts,
            "--scope",
            "local",
            "--limit",
            "lufs=0.5",
            "duration_ratio=0.1",
            "--json",
            out,
        )
        == 0
    )
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert f"Knee: amount {found['amount']:.2f}" in printed
    assert f"Signature: {found['signature']}\n" in printed
    assert found["signature"].startswith("texts:2.")
    assert 6 <= len(found["steps"]) <= 7
    assert {step["kept"] for step in found["steps"]} <= {True, False}
    assert found["steps"][0]["decisions"][0]["interval"]["low"] is not None


@pytest.mark.parametrize(
    ("more", "count", "subject"),
    [((), 4, "flow"), (("--layers", "decoder.conv_pre"), 1, "decoder.conv_pre")],
)
def test_sensitivity(tiny_folder, texts, tmp_path, capsys, more, count, subject):
    out = tmp_path / "sensitivity"
    assert (
        run("sensitivity", tiny_folder, texts, "--amount", "0.5", *more, *CHEAP, "--out", out) == 0
    )
    assert f"({count} points), " in capsys.readouterr().out
    assert subject in {row.get("layer") or row["parts"] for row in rows(out / "sweep.csv")}
    assert (out / "sensitivity-duration_drift.svg").stat().st_size > 1000


BAD = [
    (("sweep", "--amount", "0:2:0.5", "--out", "x"), "amount"),
    (("sweep", "--amount", "lots", "--out", "x"), "amount"),
    (("sweep", "--parts", "mouth", "--out", "x"), "part"),
    (("sweep", "--scope", "sideways", "--out", "x"), "scope"),
    (("sweep", "--method", "axe", "--out", "x"), "method"),
    (("sweep", "--metrics", "beauty", "--out", "x"), "metric"),
    (("sweep", "--texts", "0", "--out", "x"), "sentences"),
    (("sweep", "--text-file", "nowhere.txt", "--out", "x"), "text file"),
    (("sweep", "--half", "best", "--out", "x"), "half"),
    (("sweep", "--noise-seeds", "99", "--out", "x"), "noise seeds"),
    (("sweep", "--seed", "-1", "--out", "x"), "seed"),
    (("sweep", "--jobs", "0", "--out", "x"), "jobs"),
    (("sweep", "--voice", "a", "b", "--jobs", "0", "--out", "x"), "jobs"),
    (("sweep", "--engine", "steam", "--out", "x"), "engine"),
    (("sweep", "--voice", "./nowhere", "--out", "x"), "nowhere"),
    (("sensitivity", "--layers", "decoder.nothing", "--out", "x"), "layer"),
    (("knee", "--limit", "cer=-1"), "limit"),
    (("knee", "--limit", "beauty=1"), "metric"),
    (("knee", "--json", "no/such/folder.json"), "folder"),
    (("evaluate", "--against", "./nowhere"), "nowhere"),
]


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, word in BAD:
        assert word in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else(tiny_folder, texts, tmp_path, capsys):
    assert "something else" in refused(
        capsys, "sweep", "--voice", tiny_folder, "--text-file", texts, *CHEAP, "--out", tmp_path
    )
    assert texts.exists()


def test_time_left():
    assert time_left(0.5, 0.5) == time_left(60, 0.001) == ""
    assert time_left(60, 0.25) == "3:00 left  "
    assert time_left(3600, 0.25) == "3:00:00 left  "
