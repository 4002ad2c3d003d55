"""Every field of a PruneSpec as an option, and `prune`: gradual, with its steps, to the knee."""

from __future__ import annotations

import csv
import io
import json

import pytest

from tests.nearly import nearly
from vits_prune import PARTS, InputError, PruneSpec, load_voice, prune, speak
from vits_prune.cli.main import main
from vits_prune.cli.options import CommandParser, spec_of
from vits_prune.pruning import Shape
from vits_prune.pruning.spec import METHODS, SCOPES
from vits_prune.study.knee import Limit

TEXT = "the birch canoe slid"


def typed(line):
    parser = CommandParser()
    parser.add_spec()
    return spec_of(parser.parse_args(line.split()))


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("", {}),
        (
            "--method second_order --scope sensitivity --amount 0.65",
            {"method": "second_order", "scope": "sensitivity", "amount": 0.65},
        ),
        (
            "--protect decoder.conv_post flow --floor 0.1",
            {"protect": ("decoder.conv_post", "flow"), "floor": 0.1},
        ),
        ("--protect", {"protect": ()}),
        ("--pattern 2:4", {"pattern": "2:4", "amount": 0.5}),
        ("--pattern 1:4 --amount 0.75", {"pattern": "1:4", "amount": 0.75}),
        (
            "--steps 4 --schedule linear --amount 0.6",
            {"steps": 4, "schedule": "linear", "amount": 0.6},
        ),
        ("--steps 0.3,0.5,0.6", {"amounts": (0.3, 0.5, 0.6), "amount": 0.6}),
        ("--prune-seed 7 --method random", {"seed": 7, "method": "random"}),
        (
            "--method structured --decoder-width 0.5 --branches 2 --ffn-width 0.5 "
            "--encoder-layers 4 --flows 3 --wavenet-layers 2 --multiple 4",
            {"method": "structured", "shape": Shape(0.5, 2, 1.0, 0.5, 4, 3, 2, 4)},
        ),
        (
            "--method structured --resblock-width 0.75",
            {"method": "structured", "shape": Shape(resblock_width=0.75)},
        ),
        (
            "--method structured --importance weight_norm",
            {"method": "structured", "importance": "weight_norm"},
        ),
        (
            "--method structured --amount 0.5 --parts decoder",
            {"method": "structured", "amount": 0.5, "parts": ("decoder",)},
        ),
    ],
)
def test_what_is_typed_becomes_a_spec(line, fields):
    assert typed(line) == PruneSpec(**fields)


def test_calibration_texts_from_a_file(tmp_path):
    (tmp_path / "texts.txt").write_text("the birch\n\ncanoe slid\n")
    assert typed(f"--calibration-texts {tmp_path / 'texts.txt'}").texts == (
        "the birch",
        "canoe slid",
    )


BAD = [
    "--method magnitude --decoder-width 0.5",
    "--method structured --decoder-width 0",
    "--multiple 4",
    "--method structured --branches 0",
    "--pattern 4:2",
    "--pattern two",
    "--pattern 2:4 --amount 0.3",
    "--pattern 2:4 --steps 2",
    "--steps 0",
    "--steps 0.5,0.3",
    "--steps 0.3,x",
    "--steps many",
    "--method structured --flows 2 --amount 0.5",
    "--method structured --flows 2 --parts decoder",
    "--method random --importance weight_norm",
    "--method structured --importance beauty",
    "--steps 0.3,0.5 --amount 0.6",
    "--schedule square",
    "--floor 2",
    "--prune-seed -1",
    "--calibration-texts nowhere.txt",
]


def test_what_cannot_be_is_one_sentence():
    for line in BAD:
        with pytest.raises(InputError) as refused:
            typed(line)
        assert "\n" not in str(refused.value)


def test_help_names_methods_and_scopes(capsys):
    for command in ("prune", "compare", "sweep", "knee", "sensitivity", "layers"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert all(name in shown for name in METHODS)
        assert command == "layers" or all(name in shown for name in SCOPES)


def test_a_shape(tiny_folder, tiny, tmp_path, capsys):
    line = [
        "prune",
        "--voice",
        str(tiny_folder),
        "--method",
        "structured",
        "--ffn-width",
        "0.5",
        "--multiple",
        "1",
        "--importance",
        "weight_norm",
    ]
    assert main([*line, "--out", str(tmp_path / "saved")]) == 0
    assert "million parameters" in capsys.readouterr().out
    shape = Shape(ffn_width=0.5, multiple=1)
    spec = PruneSpec(method="structured", shape=shape, importance="weight_norm")
    assert nearly(
        speak(load_voice(tmp_path / "saved"), TEXT).waveform,
        speak(prune(tiny, spec), TEXT).waveform,
    )
    assert PruneSpec.from_json((tmp_path / "saved" / "prune_spec.json").read_text()) == spec


def test_gradual_with_its_steps(tiny_folder, tiny, tmp_path, capsys):
    out = tmp_path / "saved"
    line = [
        "prune",
        "--voice",
        str(tiny_folder),
        "--steps",
        "0.2,0.4",
        "--keep-steps",
        "--out",
        str(out),
    ]
    assert main(line) == 0
    amounts = [
        load_voice(folder).recipe["pruned"][-1]["amount"]
        for folder in (out / "step-1", out / "step-2", out)
    ]
    assert amounts == [0.2, 0.4, 0.4]
    assert nearly(
        speak(load_voice(out), TEXT).waveform,
        speak(prune(tiny, PruneSpec(amount=0.4)), TEXT).waveform,
    )
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    capsys.readouterr()
    assert main(line) == 2  # steps of two runs would mix
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "code"), [(1000.0, 0), (0.0, 2)])
def test_until_the_knee(tiny_folder, tmp_path, capsys, monkeypatch, change, code):
    limits = (Limit("duration_drift", change),)
    monkeypatch.setattr("vits_prune.cli.prune_commands.usual_limits", lambda: limits)
    (tmp_path / "texts.txt").write_text("the birch canoe slid\non the smooth planks\n")
    line = [
        "prune",
        "--voice",
        str(tiny_folder),
        "--steps",
        "0.3,0.9",
        "--until-knee",
        "--text-file",
        str(tmp_path / "texts.txt"),
    ]
    assert main([*line, "--out", str(tmp_path / "saved")]) == code
    said = capsys.readouterr()
    assert "Amount 0.3: duration_drift" in said.out
    assert ("Stopped at amount 0.9: all steps keep them" in said.out) == (code == 0)
    assert ("Signature: texts:2." in said.out) == (code == 0)
    assert ("breaks the limits" in said.err) == (code == 2)
    assert (tmp_path / "saved").exists() == (code == 0)


@pytest.mark.parametrize(
    "more", [["--keep-steps"], ["--until-knee"], ["--steps", "1", "--until-knee"]]
)
def test_steps_are_asked_for(more, tiny_folder, tmp_path, capsys):
    assert (
        main(["prune", "--voice", str(tiny_folder), *more, "--out", str(tmp_path / "saved")]) == 2
    )
    assert "gradual pruning" in capsys.readouterr().err


def test_an_interrupted_pruning_leaves_nothing(tiny_folder, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vits_prune.pruning.prune_steps", interrupted)
    assert main(["prune", "--voice", str(tiny_folder), "--out", str(tmp_path / "saved")]) == 130
    assert capsys.readouterr().err == "vits_prune: stopped.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "layer", "words"),
    [
        ([], "duration_predictor.conv_pre", ""),
        (["--method", "second_order"], "duration_predictor.conv_pre", "protected"),
        (["--method", "second_order", "--protect", "flow"], "duration_predictor.conv_pre", ""),
        (["--protect", "decoder.conv_pre"], "decoder.conv_pre", "protected"),
        (["--method", "structured"], "decoder.conv_pre", ""),
        (["--method", "structured"], "text_encoder.project", "none of its channels"),
    ],
)
def test_layers_of_a_method(tiny_folder, capsys, more, layer, words):
    assert main(["layers", "--voice", str(tiny_folder), "--csv", *more]) == 0
    rows = {row["layer"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows[layer]["left alone because"].startswith(words)
    assert bool(rows[layer]["left alone because"]) == bool(words)


def test_compare_takes_them_too(tiny_folder, tmp_path):
    line = [
        "compare",
        "--voice",
        str(tiny_folder),
        "--text",
        TEXT,
        "--runs",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert (
        main(
            [
                *line,
                "--method",
                "random",
                "--amount",
                "0.5",
                "--protect",
                "flow",
                "--parts",
                "flow",
                "decoder",
            ]
        )
        == 0
    )
    spec = PruneSpec(method="random", amount=0.5, protect=("flow",), parts=("flow", "decoder"))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["spec"] == spec.to_dict()
    assert spec.parts != PARTS
