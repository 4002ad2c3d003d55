"""Several processes, and a Ray cluster of this machine: the same numbers as in one process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import THREADS
from tests.nearly import nearly
from tests.study.conftest import CHEAP, GRID, TEXTS, numbers, table
from vits_prune import InputError, PruneSpec, prune
from vits_prune.progress import SILENT, Pieces, Progress
from vits_prune.study import sweep_engines as engines
from vits_prune.study.evaluation import prepare_reference
from vits_prune.study.sweep import run_sweep, run_voices
from vits_prune.study.sweep_engines import TRIES, VoiceRef, Work, fingerprint, run_processes
from vits_prune.study.sweep_grid import Grid, Point

FEW = Grid(amounts=(0.0, 0.5))


def test_two_processes_and_one_that_is_killed(whole, tiny, tiny_folder):
    """The point of a killed process is tried again; the numbers are those of one process."""
    reference = prepare_reference(tiny, TEXTS, CHEAP)
    work = Work(VoiceRef(str(tiny_folder)), fingerprint(tiny), reference, threads=THREADS)
    points, killed = GRID.points()[1:3], []

    def kill(message, fraction):
        if not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    found = dict(run_processes(work, points, 2, Pieces(Progress(kill), len(points))))
    assert len(killed) == 1
    assert sorted(found) == [0, 1]
    for i, row in enumerate(numbers(whole.rows[1:3])):
        (columns,) = numbers([found[i].columns])
        assert nearly(columns, {key: row[key] for key in columns})


class _Deadly:
    listener = SimpleNamespace(threads=1)

    def __reduce__(self):
        return _die, ()


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_point_that_kills_every_process_is_given_up(tiny, tiny_folder):
    """A reference that cannot be unpickled kills a worker at its start, as lack of memory would."""
    work = Work(VoiceRef(str(tiny_folder)), fingerprint(tiny), _Deadly(), threads=THREADS)
    found = dict(run_processes(work, [Point(PruneSpec())], 2, Pieces(SILENT, 1)))
    assert f"killed {TRIES} times (signal 9)" in found[0]


def test_fingerprints(tiny, tiny_folder):
    assert fingerprint(prune(tiny, PruneSpec(amount=0.1))) != fingerprint(tiny)
    with pytest.raises(InputError, match="another voice here"):
        engines.load_same(VoiceRef(str(tiny_folder)), "0" * 64)


def test_threads_that_start_processes_restore_the_environment(monkeypatch):
    """The environment belongs to all threads: the first must not remove what the second needs."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    inside, entered, left, seen = threading.Event(), threading.Event(), threading.Event(), []

    def first():
        with engines.passive_waiting():
            inside.set()
            entered.wait(0.5)  # the other must not enter
        left.set()

    def other():
        assert inside.wait(60)
        with engines.passive_waiting():
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


@pytest.fixture(scope="module")
def ray():
    """One cluster for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with engines.ray_cluster() as connected:
            yield connected


def test_voices_on_ray_give_the_numbers_of_one_machine(ray, refs, tmp_path):
    there = run_voices(refs[:2], FEW, TEXTS, CHEAP, tmp_path / "ray", engine="ray")
    here = run_voices(refs[:2], FEW, TEXTS, CHEAP, tmp_path / "local")
    assert nearly(numbers(there.rows), numbers(here.rows))
    assert len(table(there.folder)) == len(there.rows) == 2
    assert all(sweep.failures == () for sweep in there.sweeps.values())
    assert there.failures == here.failures
    # A folder is continued by any engine.
    again = run_voices(refs[:2], FEW, TEXTS, CHEAP, tmp_path / "local", engine="ray")
    assert [sweep.measured for sweep in again.sweeps.values()] == [0]
    assert ray.is_initialized()


def test_what_fails_on_ray_is_one_sentence(ray, refs, tiny):
    with pytest.raises(InputError, match="another voice here"):
        engines.reference_on_ray(refs[0], "0" * 64, TEXTS, CHEAP, 1)
    with pytest.raises(InputError, match="cannot speak any of this text"):
        engines.reference_on_ray(refs[0], fingerprint(tiny), ["🙂"], CHEAP, 1)


@pytest.mark.slow
def test_cancelling_on_ray_ends_the_threads_too(ray, refs, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "RAY_POLL_SECONDS", 0.05)
    messages = []

    def stop(message, fraction):
        messages.append(message)
        if "original" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_voices(refs, FEW, TEXTS, CHEAP, tmp_path / "ray", engine="ray", progress=Progress(stop))
    count = len(messages)
    time.sleep(0.3)
    assert len(messages) == count
    assert len(run_voices(refs, FEW, TEXTS, CHEAP, tmp_path / "ray").rows) == 4


def test_ray_that_is_not_installed(refs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for run, voice in ((run_sweep, refs[0]), (run_voices, refs)):
        with pytest.raises(InputError, match="pip install 'ray"):
            run(voice, FEW, TEXTS, CHEAP, tmp_path / "sweep", engine="ray")
    assert not (tmp_path / "sweep").exists()
