"""Kernels of whole voices: equal to dense ones, chosen by measurement, and absent without harm."""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vits_prune.kernels
from tests.voices.hf_factory import make_checkpoint
from tests.voices.piper_factory import Shape, make_voice
from vits_prune import InputError, PruneSpec, load_voice, prune, pruning, speak
from vits_prune.kernels import chosen_kernels, engine, engine_of, measure_kernels, store
from vits_prune.kernels.units import flow_units

TEXT = "hi there, how are you"
FULL_SCALE = 1e-5


@pytest.fixture
def own_store(tmp_path, monkeypatch):
    """A store of kernel times that nothing was measured for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(store, "_known", {})
    monkeypatch.setattr(store, "_read_from", [])
    return tmp_path / "vits_prune" / "kernels.json"


def both(voice, text=TEXT):
    return (speak(voice, text, kernels=kernels) for kernels in ("dense", "sparse"))


def assert_same(voice, text=TEXT, most=5 * FULL_SCALE):
    """Random networks amplify what either kernel rounds, up to some 1e-5."""
    dense, sparse = both(voice, text)
    assert len(dense.waveform) == len(sparse.waveform)
    assert np.abs(dense.waveform - sparse.waveform).max() <= most


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_joe_speaks_the_same(joe, sparsity):
    pruned = prune(joe, PruneSpec(scope="local", amount=sparsity))
    assert_same(pruned, "A short one. And another!", FULL_SCALE)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"speakers": 3},
        {"prior_encoder_num_flows": 3},
        {"upsample_rates": [3, 5], "upsample_kernel_sizes": [6, 11]},
        {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]]},
        {"leaky_relu_slope": 0.0},
    ],
)
def test_voices_of_hugging_face_speak_the_same(config, tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "voice", **config))
    assert_same(prune(voice, PruneSpec(amount=0.5)))


@pytest.mark.parametrize(
    "shape", [Shape(), Shape(resblock="1", resblock_dilations=((1, 3, 5),) * 2, speakers=2)]
)
def test_voices_of_piper_speak_the_same(shape, tmp_path):
    assert_same(prune(load_voice(make_voice(tmp_path, shape)), PruneSpec(amount=0.5)), "abe")


def test_a_voice_whose_channels_went_speaks_the_same(tiny):
    cut = pruning.Shape(decoder_width=0.5, resblock_width=0.5, wavenet_layers=1, flows=1)
    assert_same(prune(tiny, PruneSpec(method="structured", shape=cut)))


def test_kernels_are_chosen_by_what_was_measured(joe, own_store):
    assert chosen_kernels(joe) == []
    assert engine_of(joe).sparse_units("auto", 100) == frozenset()
    measure_kernels(joe)
    for one in chosen_kernels(joe):
        assert one.sparse == (one.sparse_seconds < 0.95 * one.dense_seconds)
    pruned = prune(joe, PruneSpec(scope="local", amount=0.9))
    found = {one.unit: one for one in chosen_kernels(pruned)}
    assert found["decoder stage 3"].density == pytest.approx(0.1, abs=0.01)
    for one in chosen_kernels(joe):
        assert one.dense_seconds == found[one.unit].dense_seconds  # measured once
        assert one.sparse_seconds >= found[one.unit].sparse_seconds


@pytest.mark.parametrize(("share", "steady"), [(1.0, True), (0.5, False)])
def test_times_are_disturbed_where_torch_waited_for_the_processor(monkeypatch, share, steady):
    """Each run takes a second, in which the thread computes for `share` of it."""
    now = {"perf_counter": 0.0, "thread_time": 0.0}

    def work(*_how):
        now["perf_counter"] += 1
        now["thread_time"] += share

    program = SimpleNamespace(thinned=lambda _share: None)
    unit = SimpleNamespace(make=lambda _full: program, inputs=1, dense=work)
    monkeypatch.setattr(engine, "run_sparse", work)
    for name in now:
        monkeypatch.setattr(engine.time, name, lambda name=name: now[name])
    assert engine._times(unit, 5) == (store.Times(1.0, 0.4, 1.0, 0.1, 1.0), steady)


def test_times_that_other_work_disturbed_are_not_kept_on_disk(own_store):
    times = store.Times(1.0, 0.4, 0.5, 0.1, 0.2)
    store.keep("disturbed", times, steady=False)
    assert store.find("disturbed") == times
    assert not own_store.exists()
    store.keep("quiet", times)
    assert list(json.loads(own_store.read_text())["seconds"]) == ["quiet"]


def test_without_a_home_times_are_kept_in_memory(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(store.Path, "home", nobody)
    monkeypatch.setattr(store, "_known", {})
    times = store.Times(1.0, 0.4, 0.5, 0.1, 0.2)
    store.keep("a", times)
    assert store.find("a") == times
    assert store.find("b") is None


def test_a_voice_whose_tiles_would_be_huge_runs_dense(tmp_path):
    config = {"wavenet_dilation_rate": 8, "prior_encoder_num_wavenet_layers": 6, "hidden_size": 64}
    voice = load_voice(make_checkpoint(tmp_path / "voice", **config))
    assert next(iter(flow_units(voice.model.flow))).make(False) is None
    dense, sparse = both(voice, "hi")
    assert np.abs(dense.waveform - sparse.waveform).max() <= 5 * FULL_SCALE


def test_what_was_measured_is_found_again_and_a_damaged_file_is_not_believed(own_store):
    times = store.Times(1.0, 0.4, 0.5, 0.1, 0.2)
    assert times.sparse(0.25) == pytest.approx(0.35)
    store.keep("a", times)
    for content, found in (
        (None, times),
        ("{", None),
        (json.dumps({"format": 2, "seconds": {"a": [1, "x"]}}), None),
        (json.dumps({"format": 2, "seconds": {"a": [1, 0.4, -1, 0.1, 0.2]}}), None),
        (json.dumps({"format": 1, "seconds": {"a": [1, 0.4, 1, 0.1, 0.2]}}), None),
        (json.dumps({"format": 2, "seconds": 3}), None),
        (json.dumps({"format": 2, "seconds": {"a": [1, 0.1, 1, 0.1, 1]}}), None),
    ):
        store._known.clear()
        store._read_from.clear()
        if content is not None:
            own_store.write_text(content)
        assert store.find("a") == found


def test_a_tiny_voice_is_left_to_torch(tiny):
    assert engine_of(tiny) is None
    assert engine_of(tiny, "sparse") is not None


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ModuleNotFoundError("no", name="numba"), "numba is not installed"),
        (
            ImportError("Numba needs NumPy 2.4 or less\nSee"),
            r"ImportError: Numba needs NumPy .*ss\)",
        ),
        (OSError(28, "No space left on device"), "OSError: .*No space left"),
        (AssertionError(), "numba cannot compile them here"),
    ],
)
def test_without_kernels_everything_runs_dense_and_says_so_once(
    joe, monkeypatch, caplog, error, why
):
    def fail():
        raise error

    asked = functools.cache(vits_prune.kernels.why_missing.__wrapped__)
    monkeypatch.setattr(vits_prune.kernels, "why_missing", asked)
    monkeypatch.setattr("vits_prune.synthesis.speak.why_missing", asked)
    monkeypatch.setattr("vits_prune.kernels.engine.try_out", fail)
    caplog.set_level(logging.WARNING, "vits_prune")
    assert engine_of(joe) is None
    measure_kernels(joe)
    assert speak(joe, "Hi.").audio_seconds > 0.2
    with pytest.raises(InputError, match=f"no sparse kernels: .*{why}"):
        speak(joe, "Hi.", kernels="sparse")
    [said] = caplog.messages
    assert said.startswith("There are no sparse kernels, everything runs dense: ")


_WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
from vits_prune import InputError, load_voice, speak
voice = load_voice(sys.argv[1])
print(len(speak(voice, "hi").waveform))
try:
    speak(voice, "hi", kernels="sparse")
except InputError as error:
    print(error)
"""


def test_a_python_that_has_no_numba(tiny, tiny_folder):
    command = [sys.executable, "-c", _WITHOUT_NUMBA, str(tiny_folder)]
    own = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    samples, error = done.stdout.splitlines()
    assert int(samples) == len(speak(tiny, "hi").waveform)
    assert error.startswith("There are no sparse kernels: numba is not installed.")
    assert done.stderr.count("numba is not installed") == 1


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_a_decoder_of_zeros_or_of_what_is_no_number(tiny, weight):
    names = [name for name, _ in tiny.model.named_parameters() if name.endswith(".weight")]
    changed = {
        name: torch.full_like(tiny.model.get_parameter(name), weight)
        for name in names
        if name.startswith(("flow.", "decoder."))
    }
    dense, sparse = (one.waveform for one in both(tiny.with_weights(changed), "hi"))
    np.testing.assert_allclose(sparse, dense, atol=FULL_SCALE)


def test_kernels_have_names(tiny):
    with pytest.raises(InputError, match="kernels must be one of auto, dense, sparse, not 'fast'"):
        speak(tiny, "hi", kernels="fast")
