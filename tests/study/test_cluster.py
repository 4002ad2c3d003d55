"""The engine ray, on a cluster of this machine alone: the same numbers as without, for one voice and for several."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest
from tests.sweep.test_sweep_run import CHEAP, TEXTS, numbers, table

from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError
from vits_prune.study import sweep_ray as cluster
from vits_prune.study.sweep import run_sweep
from vits_prune.study.sweep_engines import VoiceRef, fingerprint
from vits_prune.study.sweep_grid import Grid
from vits_prune.study.sweep_voices import run_voices

GRID = Grid(amounts=(0.0, 0.5))
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed: pip install 'ray>=2.40,<3'",
)


@pytest.fixture(scope="module")
def connected():
    """One cluster for all tests, as `cluster` itself makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        )
        patch.delenv("RAY_ADDRESS", raising=False)
        with cluster.cluster() as ray:
            yield ray


@pytest.fixture(scope="module")
def refs(tiny_folder, tmp_path_factory):
    other = make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "other", seed=5)
    return VoiceRef(str(tiny_folder)), VoiceRef("./nowhere"), VoiceRef(str(other))


@NEEDS_RAY
def test_many_voices_give_the_numbers_of_one_machine(connected, refs, tmp_path):
    there = run_voices(refs, GRID, TEXTS, CHEAP, tmp_path / "ray", engine="ray")
    here = run_voices(refs, GRID, TEXTS, CHEAP, tmp_path / "local")
    assert numbers(there.rows) == numbers(here.rows)
    assert len(there.rows) == 4
    assert all(sweep.failures == () for sweep in there.sweeps.values())
    assert there.failures == here.failures
    assert table(there.folder) == table(here.folder)
    again = run_voices(
        refs, GRID, TEXTS, CHEAP, tmp_path / "local", engine="ray"
    )  # a folder is no engine's own
    assert [sweep.measured for sweep in again.sweeps.values()] == [0, 0]
    assert connected.is_initialized()


@NEEDS_RAY
def test_cancelling_ends_the_threads_too(connected, refs, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.05)
    told = []

    def stop(what, share):
        told.append(what)
        if "original" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_voices(refs, GRID, TEXTS, CHEAP, tmp_path / "ray", engine="ray", progress=stop)
    count = len(told)
    time.sleep(0.3)
    assert len(told) == count
    assert len(run_voices(refs, GRID, TEXTS, CHEAP, tmp_path / "ray").rows) == 4


@NEEDS_RAY
def test_what_goes_wrong_there_is_a_sentence(connected, refs, tiny):
    with pytest.raises(InputError, match="another voice here"):
        cluster.reference_on_ray(refs[0], "0" * 64, TEXTS, CHEAP, 1, lambda *_: None)
    with pytest.raises(InputError, match="can say nothing"):
        cluster.reference_on_ray(refs[0], fingerprint(tiny), ["🙂"], CHEAP, 1, lambda *_: None)
    assert cluster.lanes(1) >= cluster.lanes(10_000) == 1


def test_ray_that_is_not_installed(refs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for run, voice in ((run_sweep, refs[0]), (run_voices, refs)):
        with pytest.raises(InputError, match="pip install 'ray"):
            run(voice, GRID, TEXTS, CHEAP, tmp_path / "sweep", engine="ray")
    assert not (tmp_path / "sweep").exists()
