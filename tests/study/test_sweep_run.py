"""Sweeps of a tiny voice: the same numbers however they are run, stopped and started again."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import THREADS
from vits_prune import PARTS, InputError, PruneSpec, load_voice, measure_sparsity, prune
from vits_prune.study import sweep_engines as engines
from vits_prune.study.evaluation import Settings, evaluate_against, prepare_reference
from vits_prune.study.sweep import VARYING, run_sweep, sweep_points
from vits_prune.study.sweep_engines import TRIES, VoiceRef, Work, fingerprint, run_processes
from vits_prune.study.sweep_grid import Grid, Point, layer_points, part_points, subject

TEXTS = ["the birch canoe slid", "on the smooth planks"]
CHEAP = Settings(metrics=("rhythm", "loudness"), noise_seeds=1)
GRID = Grid(scopes=("global", "local"), parts_groups=(PARTS, ("decoder",)), amounts=(0.0, 0.4, 0.8))


def numbers(rows):
    """All but what differs from run to run."""
    return [
        {key: value for key, value in row.items() if not key.startswith(VARYING)} for row in rows
    ]


def table(folder):
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return numbers(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    """A sweep that nothing disturbed."""
    return run_sweep(tiny_folder, GRID, TEXTS, CHEAP, tmp_path_factory.mktemp("sweeps") / "whole")


def test_a_row_a_point(whole, tiny):
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
    assert numbers([{key: row[key] for key in expected}]) == numbers([expected])
    assert whole.rows[0]["duration_ratio"] == 1.0
    with (whole.folder / "sweep.csv").open(newline="") as file:
        assert float(list(csv.DictReader(file))[2]["lufs_low"]) == row["lufs_low"]
    record = json.loads((whole.folder / "sweep.jsonl").read_text().splitlines()[2])
    assert record["details"]["sentences"][1]["text"] == TEXTS[1]
    assert record["row"] == row


def test_the_manifest_says_what_the_numbers_depend_on(whole, tiny):
    manifest = json.loads((whole.folder / "sweep.json").read_text())
    assert manifest["texts"] == TEXTS
    assert manifest["settings"]["seed"] == 0
    assert manifest["versions"]["torch"]
    assert manifest["voice"]["weights_sha256"] == fingerprint(tiny)
    assert fingerprint(prune(tiny, PruneSpec(amount=0.1))) != fingerprint(tiny)
    assert len(manifest["points"]) == 12


def test_again_there_is_nothing_to_do(whole, tiny_folder, monkeypatch):
    monkeypatch.setattr(
        "vits_prune.study.sweep.prepare_reference", None
    )  # the original is not even spoken
    again = run_sweep(tiny_folder, GRID, TEXTS, CHEAP, whole.folder)
    assert (again.measured, again.rows) == (0, whole.rows)


def test_a_grid_may_grow_and_the_folder_of_another_sweep_is_refused(whole, tiny_folder, tmp_path):
    few = Grid(amounts=(0.0, 0.4))
    run_sweep(tiny_folder, few, TEXTS, CHEAP, tmp_path / "grown")
    grown = run_sweep(tiny_folder, GRID, TEXTS, CHEAP, tmp_path / "grown")
    assert (grown.measured, numbers(grown.rows)) == (
        10,
        numbers(whole.rows),
    )  # a second run, and the same numbers
    assert table(tmp_path / "grown") == table(whole.folder)
    for changes in (
        {"texts": TEXTS[:1]},
        {"settings": Settings(metrics=("rhythm", "loudness"), noise_seeds=1, seed=1)},
    ):
        with pytest.raises(InputError, match="holds a sweep of other"):
            run_sweep(
                tiny_folder,
                few,
                **{"texts": TEXTS, "settings": CHEAP, "out": tmp_path / "grown", **changes},
            )
    with pytest.raises(InputError, match="another kind"):
        run_sweep(tiny_folder, few, TEXTS, CHEAP, tmp_path / "grown", kind="sensitivity of parts")


SWEEP = """
import sys
from tests.sweep.test_sweep_run import CHEAP, GRID, TEXTS
from vits_prune.sweep.run import run_sweep
run_sweep(sys.argv[1], GRID, TEXTS, CHEAP, sys.argv[2], on_point=lambda row: print("point", flush=True))
"""


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
    assert numbers(again.rows) == numbers(whole.rows)
    assert table(out) == table(whole.folder)


def test_cancelled_between_two_points(whole, tiny_folder, tmp_path):
    class Cancelled(Exception):
        pass

    def stop(what, share):
        if what.startswith("point 3"):
            raise Cancelled

    with pytest.raises(Cancelled):
        run_sweep(tiny_folder, GRID, TEXTS, CHEAP, tmp_path / "sweep", progress=stop)
    shares = []
    again = run_sweep(
        tiny_folder,
        GRID,
        TEXTS,
        CHEAP,
        tmp_path / "sweep",
        progress=lambda what, share: shares.append(share),
    )
    assert 0 < again.measured < 12
    assert numbers(again.rows) == numbers(whole.rows)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_what_fails_is_reported_and_the_rest_goes_on(tiny_folder, tmp_path, monkeypatch):
    real = engines.measure_task

    def measure(reference, voice, task, progress):
        if task[0].spec.amount == 0.4:
            raise ZeroDivisionError("a bug")
        return real(reference, voice, task, progress)

    monkeypatch.setattr(engines, "measure_task", measure)
    grid = Grid(amounts=(0.3, 0.4, 0.5))
    found = run_sweep(tiny_folder, grid, TEXTS, CHEAP, tmp_path / "sweep")
    assert [row["amount"] for row in found.rows] == [0.3, 0.5]
    assert [(one.point.spec.amount, one.reason) for one in found.failures] == [
        (0.4, "ZeroDivisionError: a bug")
    ]
    monkeypatch.undo()
    assert [
        row["amount"] for row in run_sweep(tiny_folder, grid, TEXTS, CHEAP, tmp_path / "sweep").rows
    ] == [0.3, 0.4, 0.5]


def test_processes_and_one_that_is_killed(whole, tiny, tiny_folder):
    """Two workers, one killed once: its point is tried again, nothing is missing, and the numbers are those of one process."""
    work = Work(
        VoiceRef(str(tiny_folder)),
        fingerprint(tiny),
        prepare_reference(tiny, TEXTS, CHEAP),
        threads=THREADS,
    )
    tasks, killed = [(point,) for point in GRID.points()[1:6]], []

    def tell(index, what, share):
        if not killed:
            for child in multiprocessing.active_children():
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)

    found = dict(run_processes(work, tasks, 2, tell))
    assert len(killed) == 2
    assert sorted(found) == list(range(5))
    assert numbers([found[i][0][0] for i in range(5)]) == numbers(whole.rows[1:6])


def test_a_point_that_kills_every_process_is_given_up(tiny, tiny_folder):
    """A reference that cannot be taken in ends a worker at its start, as too little memory would."""
    work = Work(VoiceRef(str(tiny_folder)), fingerprint(tiny), _Deadly(), threads=THREADS)
    found = dict(run_processes(work, [(Point(PruneSpec()),)], 2, lambda *_: None))
    assert f"killed {TRIES} times (signal 9)" in found[0]


class _Deadly:
    def __reduce__(self):
        return _die, ()


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_voice_that_changed_on_the_way(tiny, tiny_folder):
    with pytest.raises(InputError, match="another voice here"):
        engines.load_same(VoiceRef(str(tiny_folder)), "0" * 64)


@pytest.mark.parametrize(
    "changes", [{"jobs": 0}, {"jobs": True}, {"jobs": 1.5}, {"engine": "steam"}, {"texts": []}]
)
def test_bad_input(tiny_folder, tmp_path, changes):
    with pytest.raises(InputError):
        run_sweep(
            tiny_folder,
            GRID,
            **{"texts": TEXTS, "settings": CHEAP, "out": tmp_path / "sweep", **changes},
        )


def test_points_as_they_come(whole, tiny):
    reference = prepare_reference(tiny, TEXTS, CHEAP)
    shares = []
    points = sweep_points(
        tiny,
        GRID,
        TEXTS,
        CHEAP,
        reference=reference,
        progress=lambda what, share: shares.append(share),
    )
    first = [next(points) for _ in range(4)]
    assert [spec for spec, _ in first] == list(GRID.specs()[:4])
    assert first[0][1] is first[3][1]  # amount 0 is the original in every scope: measured once
    for (_, evaluation), row in zip(first, whole.rows, strict=False):
        found = numbers([evaluation.to_row()])[0]
        assert found == {key: row[key] for key in found}
    assert shares == sorted(shares)


def test_sensitivity(tiny_folder, tmp_path):
    voice = load_voice(tiny_folder)
    parts = part_points((0.5,))
    assert [point.spec.parts for point in parts] == [(part,) for part in PARTS]
    layers = layer_points(voice, (0.2, 0.5), ["decoder.conv_pre", "decoder.upsampler"])
    names = list(dict.fromkeys(point.layer for point in layers))
    assert names[0] == "decoder.conv_pre"
    assert all(name.startswith("decoder.upsampler.") for name in names[1:])
    found = run_sweep(
        tiny_folder, layers, TEXTS[:1], CHEAP, tmp_path / "layers", kind="sensitivity of layers"
    )
    assert [subject(row) for row in found.rows] == [name for name in names for _ in range(2)]
    assert np.all([0 < row["sparsity"] < 0.5 for row in found.rows])
    assert len(layer_points(voice, (0.2,))) > len(names)
    with pytest.raises(InputError, match="no layer"):
        layer_points(voice, (0.2,), ["decoder.nothing"])


def test_threads_that_start_processes_leave_the_environment_as_it_was(monkeypatch):
    """The environment belongs to all threads: the first one must not take away what the second needs."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    inside, entered, left, seen = threading.Event(), threading.Event(), threading.Event(), []

    def first():
        with engines.patient():
            inside.set()
            entered.wait(0.5)  # it must not be
        left.set()

    def other():
        assert inside.wait(60)
        with engines.patient():
            entered.set()
            assert left.wait(60)
            seen.append(os.environ.get("OMP_WAIT_POLICY"))

    threads = [threading.Thread(target=work) for work in (first, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["PASSIVE"]
    assert "OMP_WAIT_POLICY" not in os.environ
