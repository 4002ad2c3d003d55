"""Sweeps of a tiny voice: the same numbers however they are run, stopped and started again."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.nearly import nearly
from tests.study.conftest import CHEAP, GRID, TEXTS, numbers, table
from vits_prune import InputError, PruneSpec, load_voice, measure_sparsity, prune
from vits_prune.cli.main import main
from vits_prune.progress import Progress
from vits_prune.study import sweep, sweep_engines
from vits_prune.study.charts import curves
from vits_prune.study.evaluation import Settings, evaluate_against, prepare_reference
from vits_prune.study.sweep import folder_name, run_sweep, run_voices
from vits_prune.study.sweep_engines import VoiceRef, fingerprint
from vits_prune.study.sweep_grid import Grid, Point, layer_points, subject

FEW = Grid(amounts=(0.0, 0.5))


class Stopped(Exception):
    pass


def stopping_at(words, error=Stopped):
    """A listener that raises at the first message with these words."""

    def stop(message, fraction):
        if words in message:
            raise error

    return Progress(stop)


def watched(fractions):
    return Progress(lambda message, fraction: fractions.append(fraction))


def test_a_row_for_each_point(whole, tiny):
    assert len(whole.rows) == whole.measured == 12
    assert whole.failures == ()
    assert [(row["parts"], row["scope"], row["amount"]) for row in whole.rows] == [
        (parts, scope, amount)
        for parts in ("all", "decoder")
        for scope in ("global", "local")
        for amount in (0.0, 0.4, 0.8)
    ]
    row = whole.rows[2]
    pruned = prune(tiny, PruneSpec(scope="global", amount=0.8))
    assert row["sparsity"] == measure_sparsity(pruned).overall
    assert row["voice"] == tiny.name
    expected = evaluate_against(prepare_reference(tiny, TEXTS, CHEAP), pruned).to_row()
    assert nearly(numbers([{key: row[key] for key in expected}]), numbers([expected]))
    assert whole.rows[0]["duration_ratio"] == 1.0
    with (whole.folder / "sweep.csv").open(newline="") as file:
        assert float(list(csv.DictReader(file))[2]["lufs_low"]) == row["lufs_low"]
    record = json.loads((whole.folder / "sweep.jsonl").read_text().splitlines()[2])
    assert record["details"]["sentences"][1]["text"] == TEXTS[1]
    assert record["row"] == row


def test_a_sweep_goes_on_with_its_own_signature_alone(tiny_folder, tmp_path):
    def one_point(folder, signature):
        """The folder as if it was stopped after its first point, measured with a signature."""
        run_sweep(tiny_folder, FEW, TEXTS, CHEAP, folder)
        record = json.loads((folder / "sweep.jsonl").read_text().splitlines()[0])
        record["row"]["signature"] = signature
        (folder / "sweep.jsonl").write_text(json.dumps(record) + "\n")

    one_point(tmp_path / "other", "texts:9.abc")
    with pytest.raises(InputError, match=r"measured otherwise: give another folder.*differ in"):
        run_sweep(tiny_folder, FEW, TEXTS, CHEAP, tmp_path / "other")
    assert len((tmp_path / "other" / "sweep.jsonl").read_text().splitlines()) == 1
    one_point(tmp_path / "old", None)
    assert run_sweep(tiny_folder, FEW, TEXTS, CHEAP, tmp_path / "old").measured == 1


def test_the_manifest_says_what_the_numbers_depend_on(whole, tiny):
    manifest = json.loads((whole.folder / "sweep.json").read_text())
    assert manifest["texts"] == TEXTS
    assert manifest["settings"]["seed"] == 0
    assert manifest["versions"]["torch"]
    assert manifest["voice"]["weights_sha256"] == fingerprint(tiny)
    assert len(manifest["points"]) == 12


def test_started_again_there_is_nothing_to_do(whole, tiny_folder, monkeypatch):
    monkeypatch.setattr(sweep_engines, "prepare_reference", None)  # the original is not even spoken
    again = run_sweep(tiny_folder, GRID, TEXTS, CHEAP, whole.folder)
    assert (again.measured, again.rows) == (0, whole.rows)


def test_a_grid_may_grow_and_the_folder_of_another_sweep_is_refused(whole, tiny_folder, tmp_path):
    few, out = Grid(amounts=(0.0, 0.4)), tmp_path / "grown"
    run_sweep(tiny_folder, few, TEXTS, CHEAP, out)
    grown = run_sweep(tiny_folder, GRID, TEXTS, CHEAP, out)
    assert grown.measured == 10
    assert nearly(numbers(grown.rows), numbers(whole.rows))
    assert nearly(table(out), table(whole.folder))
    other = Settings(metrics=("rhythm", "loudness"), noise_seeds=1, seed=1)
    for texts, settings in ((TEXTS[:1], CHEAP), (TEXTS, other)):
        with pytest.raises(InputError, match="holds a sweep of other"):
            run_sweep(tiny_folder, few, texts, settings, out)
    with pytest.raises(InputError, match="another kind"):
        run_sweep(tiny_folder, few, TEXTS, CHEAP, out, kind="sensitivity of parts")


def test_a_folder_takes_points_with_other_options(tiny_folder, tmp_path):
    base = PruneSpec(protect=("flow",), floor=0.1, seed=3)
    points = [*FEW.points(), *Grid(amounts=(0.5,), base=base).points()]
    run_sweep(tiny_folder, FEW, TEXTS, CHEAP, tmp_path / "sweep")
    found = run_sweep(tiny_folder, points, TEXTS, CHEAP, tmp_path / "sweep")
    assert (found.measured, found.failures) == (1, ())
    rows = table(tmp_path / "sweep")
    assert [row["options"] for row in rows] == ["", "", Point(base).options()]
    assert all(row["duration_ratio"] for row in rows)
    assert len(curves(found.rows, "duration_ratio")) == 2
    again = run_sweep(tiny_folder, points, TEXTS, CHEAP, tmp_path / "sweep")
    assert (again.measured, again.rows) == (0, found.rows)


SWEEP = """
import sys
from tests.study.conftest import CHEAP, GRID, TEXTS
from vits_prune.study.sweep import run_sweep
say = lambda row: print("point", flush=True)
run_sweep(sys.argv[1], GRID, TEXTS, CHEAP, sys.argv[2], on_point=say)
"""


@pytest.mark.slow
def test_killed_and_started_again(whole, tiny_folder, tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    out = tmp_path / "sweep"
    command = [sys.executable, "-c", SWEEP, str(tiny_folder), str(out)]
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(5):
            assert process.stdout.readline() == "point\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    with (out / "sweep.jsonl").open("ab") as file:
        file.write(b'{"point": {"meth')  # the kill may also come within a line
    again = run_sweep(tiny_folder, GRID, TEXTS, CHEAP, out)
    assert 0 < again.measured <= 12 - 5
    assert nearly(numbers(again.rows), numbers(whole.rows))
    assert nearly(table(out), table(whole.folder))


def test_cancelled_between_two_points(whole, tiny_folder, tmp_path):
    out, fractions = tmp_path / "sweep", []
    with pytest.raises(Stopped):
        run_sweep(tiny_folder, GRID, TEXTS, CHEAP, out, progress=stopping_at("point 3"))
    again = run_sweep(tiny_folder, GRID, TEXTS, CHEAP, out, progress=watched(fractions))
    assert 0 < again.measured < 12
    assert nearly(numbers(again.rows), numbers(whole.rows))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_what_fails_is_reported_and_the_rest_goes_on(tiny_folder, tmp_path, monkeypatch):
    real = sweep_engines.measure_point

    def measure(reference, voice, point, progress):
        if point.spec.amount == 0.4:
            raise ZeroDivisionError("a bug")
        return real(reference, voice, point, progress)

    monkeypatch.setattr(sweep_engines, "measure_point", measure)
    grid = Grid(amounts=(0.3, 0.4, 0.5))
    found = run_sweep(tiny_folder, grid, TEXTS, CHEAP, tmp_path / "sweep")
    assert [row["amount"] for row in found.rows] == [0.3, 0.5]
    assert [(one.point.spec.amount, one.reason) for one in found.failures] == [
        (0.4, "ZeroDivisionError: a bug")
    ]
    monkeypatch.undo()
    again = run_sweep(tiny_folder, grid, TEXTS, CHEAP, tmp_path / "sweep")
    assert [row["amount"] for row in again.rows] == [0.3, 0.4, 0.5]


def test_bad_input(refs, tmp_path):
    usual = {"grid": GRID, "texts": TEXTS, "settings": CHEAP, "out": tmp_path / "sweep"}
    for changes in ({"jobs": 0}, {"jobs": True}, {"jobs": 1.5}, {"engine": "steam"}, {"texts": []}):
        with pytest.raises(InputError):
            run_sweep(refs[0], **{**usual, **changes})
    usual["out"] = tmp_path / "voices"
    for changes in ({"jobs": 0}, {"engine": "steam"}, {"refs": ()}):
        with pytest.raises(InputError):
            run_voices(**{"refs": refs, **usual, **changes})
    assert not (tmp_path / "voices").exists()


def test_the_sensitivity_of_layers(tiny_folder, tmp_path):
    names = ["decoder.conv_pre", "decoder.upsampler"]
    layers = layer_points(load_voice(tiny_folder), (0.2, 0.5), names)
    kind = "sensitivity of layers"
    found = run_sweep(tiny_folder, layers, TEXTS[:1], CHEAP, tmp_path / "layers", kind=kind)
    assert [subject(row) for row in found.rows] == [point.layer for point in layers]
    assert np.all([0 < row["sparsity"] < 0.5 for row in found.rows])


@pytest.fixture(scope="module")
def voices(refs, tmp_path_factory):
    return run_voices(refs, FEW, TEXTS, CHEAP, tmp_path_factory.mktemp("sweeps") / "voices")


def test_each_voice_is_swept_and_a_missing_one_is_named(voices, refs, tmp_path):
    first, _, second = refs
    assert list(voices.sweeps) == [first.ref, second.ref]
    assert list(voices.failures) == ["./nowhere"]
    assert "nowhere" in voices.failures["./nowhere"]
    alone = run_sweep(second, FEW, TEXTS, CHEAP, tmp_path / "alone")
    assert nearly(numbers(voices.sweeps[second.ref].rows), numbers(alone.rows))
    assert not nearly(numbers(voices.sweeps[first.ref].rows), numbers(alone.rows))
    assert len({found.folder for found in voices.sweeps.values()}) == 2
    assert all((found.folder / "sweep.jsonl").exists() for found in voices.sweeps.values())
    rows = table(voices.folder)
    assert len(rows) == len(voices.rows) == 4
    assert rows == [row for found in voices.sweeps.values() for row in table(found.folder)]
    # The folder of one voice is not one for several.
    before = (alone.folder / "sweep.csv").read_bytes()
    with pytest.raises(InputError, match="the sweep of one voice"):
        run_voices(refs, FEW, TEXTS, CHEAP, alone.folder)
    assert (alone.folder / "sweep.csv").read_bytes() == before


def test_voices_again_there_is_nothing_to_do(voices, refs, monkeypatch):
    monkeypatch.setattr(sweep_engines, "prepare_reference", None)  # no original is spoken
    fractions = []
    again = run_voices(
        reversed(refs), FEW, TEXTS, CHEAP, voices.folder, progress=watched(fractions)
    )
    assert [found.measured for found in again.sweeps.values()] == [0, 0]
    assert again.sweeps.keys() == voices.sweeps.keys()
    assert again.failures.keys() == voices.failures.keys()
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    run_voices(refs, FEW, TEXTS, CHEAP, voices.folder)  # the table in the order of before


def test_a_bug_in_one_voice_stops_no_other(refs, tmp_path, monkeypatch):
    real = sweep.run_sweep

    def broken(ref, *arguments, **options):
        if ref == refs[0]:
            raise ZeroDivisionError("a bug")
        return real(ref, *arguments, **options)

    monkeypatch.setattr(sweep, "run_sweep", broken)
    found = run_voices((refs[0], refs[2]), FEW, TEXTS, CHEAP, tmp_path / "voices")
    assert found.failures == {refs[0].ref: "ZeroDivisionError: a bug"}
    assert len(found.rows) == 2


def test_cancelled_in_the_second_voice(refs, tmp_path):
    """Even by an InputError, which is not a failure of the voice; what is done is in the table."""
    out = tmp_path / "voices"
    for reason in (InputError("Enough."), KeyboardInterrupt()):
        with pytest.raises(type(reason)):
            run_voices(
                refs, FEW, TEXTS, CHEAP, out, progress=stopping_at(refs[2].ref, error=reason)
            )
        assert len(table(out)) == 2
    again = run_voices(refs, FEW, TEXTS, CHEAP, out)
    assert [found.measured for found in again.sweeps.values()] == [0, 2]


def test_names_and_folders_distinguish_voices():
    refs = [
        VoiceRef("a/b"),
        VoiceRef("a-b"),
        VoiceRef("a/b", 0),
        VoiceRef("a/b", "0"),
        VoiceRef("a/b", revision="old"),
        VoiceRef(".."),
    ]
    assert list(map(str, refs)) == ["a/b", "a-b", "a/b:0", "a/b:0", "a/b@old", ".."]
    folders = list(map(folder_name, refs))
    assert len(set(folders)) == len(refs)
    assert not any("/" in name or name.startswith(".") for name in folders)


def line_of(folder, tmp_path, *more):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    usual = ["sweep", "--voice", str(folder), "--text-file", str(tmp_path / "texts.txt")]
    return [*usual, "--metrics", "rhythm", "--noise-seeds", "0", *more]


@pytest.mark.slow
def test_structured_and_second_order_from_the_command_line(tiny_folder, tmp_path, capsys):
    methods = ["--method", "structured", "second_order", "--amount", "0,0.25"]
    more = ["--prune-seed", "2", "--parts", "text_encoder+decoder", "--out", str(tmp_path / "out")]
    assert main(line_of(tiny_folder, tmp_path, *methods, *more)) == 0
    shown = capsys.readouterr().out
    assert "4 points" in shown
    assert "second_order" in shown
    assert "sensitivity" not in shown


def test_a_pattern_from_the_command_line(tiny_folder, tmp_path, capsys):
    out = tmp_path / "pattern"
    protect = ["--protect", "duration_predictor", "--parts", "flow", "--out", str(out)]
    assert main(line_of(tiny_folder, tmp_path, "--pattern", "2:4", *protect)) == 0
    assert '"pattern":"2:4"' in (out / "sweep.csv").read_text().replace('""', '"')
    steps = ["--steps", "0.1,0.2", "--out", str(tmp_path / "x")]
    assert main(line_of(tiny_folder, tmp_path, *steps)) == 2
    assert "amount of its own" in capsys.readouterr().err
