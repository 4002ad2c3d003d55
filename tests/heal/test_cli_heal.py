from __future__ import annotations

import csv
import os
import signal
import threading
import time

import pytest

from tests.heal.conftest import same_weights
from vits_prune import load_voice, save_voice
from vits_prune.cli import main

QUICK = ["--lessons", "20", "--evaluations", "0", "--checkpoint-every", "10", "--batch", "2"]


@pytest.fixture(scope="module")
def pruned_folder(sparse, tmp_path_factory):
    return save_voice(sparse, tmp_path_factory.mktemp("pruned") / "sparse")


def run(*arguments):
    return main(["heal", *map(str, arguments), *QUICK])


def test_a_healed_voice_with_its_course(tiny_folder, pruned_folder, tmp_path, capsys):
    out = tmp_path / "healed"
    assert run("--voice", tiny_folder, "--pruned", pruned_folder, "--steps", 25, "--out", out) == 0
    assert "healed in 25 steps on 16 sentences" in capsys.readouterr().out
    healed = load_voice(out)
    assert healed.recipe["healed"][0]["of"] == 25
    with (tmp_path / "healed-healing" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["10", "20", "25"]
    assert float(rows[0]["total"]) > 0
    assert (tmp_path / "healed-healing" / "curve.svg").read_text().startswith("<?xml")


def test_ctrl_c_keeps_what_was_learnt_and_resume_goes_on(tiny_folder, pruned_folder, tmp_path, capsys):
    same = ["--voice", tiny_folder, "--pruned", pruned_folder, "--steps", 60]
    assert run(*same, "--out", tmp_path / "whole") == 0
    checkpoints = tmp_path / "part-healing" / "checkpoints"

    def press():
        while not (checkpoints.is_dir() and any(path.name.startswith("checkpoint-") for path in checkpoints.iterdir())):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    assert run(*same, "--out", tmp_path / "part") == 130
    thread.join()
    told = capsys.readouterr().err
    assert "--resume" in told
    assert not (tmp_path / "part").exists()
    assert run(*same, "--out", tmp_path / "part", "--resume") == 0
    assert same_weights(load_voice(tmp_path / "whole"), load_voice(tmp_path / "part")) == []
    with (tmp_path / "part-healing" / "curve.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60


def test_pruned_in_steps_and_healed_behind_each(tiny_folder, tmp_path, capsys):
    out = tmp_path / "healed"
    assert run("--voice", tiny_folder, "--amount", 0.6, "--prune-steps", 2, "--steps", 9, "--out", out) == 0
    assert len(load_voice(out).recipe["healed"]) == 2
    assert "Step 2: amount 0.6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to heal"),
        (["--pruned", "DIR", "--amount", "0.5"], "pruned already"),
        (["--pruned", "DIR", "--steps", "3", "--minutes", "3"], "give one of them"),
        (["--pruned", "DIR", "--steps", "0"], "steps must be"),
        (["--pruned", "DIR", "--steps", "3", "--resume"], "nothing to resume"),
        (["--pruned", "DIR", "--steps", "3", "--texts", "missing.txt"], "cannot be read"),
        (["--pruned", "DIR", "--steps", "3", "--precision", "fp4"], "precision must be"),
    ],
)
def test_bad_input_is_one_sentence(tiny_folder, pruned_folder, tmp_path, capsys, arguments, words):
    typed = [pruned_folder if one == "DIR" else one for one in arguments]
    assert run("--voice", tiny_folder, *typed, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_a_folder_of_other_things_is_left_alone(tiny_folder, pruned_folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    same = ["--voice", tiny_folder, "--pruned", pruned_folder, "--steps", 3]
    assert run(*same, "--out", tmp_path / "out") == 2
    assert run(*same, "--out", tmp_path / "new", "--workdir", tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
