"""One ONNX graph says what the voice says, in onnxruntime, whatever the voice's structure."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.ship.conftest import KINDS
from vits_prune import InputError, load_voice, speak
from vits_prune.progress import Progress
from vits_prune.ship.formats import export_voice
from vits_prune.ship.onnx_graph import write_onnx
from vits_prune.ship.onnx_writer import quantise
from vits_prune.ship.torch_reference import TOLERANCE, check_onnx
from vits_prune.synthesis.speak import Delivery


def say(session, ids, scales=(0, 1, 0), speaker=None, padding=0):
    feed = {
        "input": np.array([[*ids, *[1] * padding]], np.int64),
        "input_lengths": np.array([len(ids)], np.int64),
        "scales": np.array(scales, np.float32),
    }
    if speaker is not None:
        feed["sid"] = np.array([speaker], np.int64)
    return session.run(None, feed)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_structure_says_what_torch_says(exported, kind):
    export = exported(kind)
    voice = export.shipped
    assert export.waveform_error <= TOLERANCE
    onnx.checker.check_model(onnx.load(export.model), full_check=True)
    session = onnxruntime.InferenceSession(str(export.model))
    for text in ("a", "the birch canoe slid on the smooth planks"):
        speech = speak(voice, text, delivery=Delivery(noise_scale=0.0, noise_scale_duration=0.0))
        length = 1 / voice.model.speaking_rate
        [sentence] = speech.sentences
        wave = say(session, sentence.ids, (0, length, 0), voice.speaker)
        assert wave.shape == (1, 1, 1, len(speech.waveform))
        assert np.abs(wave.reshape(-1) - speech.waveform).max() <= TOLERANCE
        assert np.array_equal(
            wave, say(session, sentence.ids, (0, length, 0), voice.speaker, padding=5)
        )
    assert speech.waveform.std() > 0


def test_scales_speakers_and_noise_do_what_they_say(exported):
    session = onnxruntime.InferenceSession(str(exported("speakers").model))
    ids = [1, 5, 2, 8, 4, 9] * 4
    first = say(session, ids, speaker=0)
    assert not np.array_equal(first[..., :100], say(session, ids, speaker=2)[..., :100])
    assert say(session, ids, (0, 3, 0), speaker=0).size > 2 * first.size
    noisy = [say(session, ids, (0.667, 1, 0), speaker=0) for _ in range(2)]
    assert noisy[0].shape == noisy[1].shape == first.shape
    assert not np.array_equal(*noisy)
    assert len({say(session, ids, (0, 1, 2.0), speaker=0).size for _ in range(6)}) > 1


def test_durations_that_run_away_end(tiny):
    """Durations that are NaN, infinite or huge give a sentence of bounded length, as in `speak`."""
    name = "duration_predictor.flows.0.translate"
    ids = list(range(1, 12))
    for value in (-60.0, float("nan")):
        runaway = tiny.with_weights({name: torch.full_like(tiny.model.get_parameter(name), value)})
        session = onnxruntime.InferenceSession(write_onnx(runaway, most_frames=50).data)
        assert say(session, ids).size == tiny.hop_length * (50 if value < 0 else len(ids))


@pytest.mark.parametrize("kind", ["speakers", "narrow", "piper-high"])
def test_rounded_weights_are_those_of_the_voice_that_is_shipped(shipped, exported, kind):
    voice, export = shipped[kind], exported(kind)
    assert export.waveform_error <= TOLERANCE
    assert export.bytes < len(write_onnx(voice, most_frames=50).data)
    old, new = dict(voice.model.named_parameters()), dict(export.shipped.model.named_parameters())
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed
    for name in changed:
        step = 2**-11 if export.precision == "fp16" else 1 / 250
        assert (old[name] - new[name]).abs().max() <= step * old[name].abs().max()


def test_int8_keeps_zeros():
    levels, scales = quantise(torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 0.0]]), 0)
    assert (levels.float() * scales)[0].tolist() == pytest.approx([0.0, 1.0, -2.0], abs=0.01)
    assert not levels[1].any()


def test_a_file_that_says_something_else_is_refused(shipped, tmp_path, monkeypatch):
    voice = shipped["plain"]
    name = "decoder.conv_pre.weight"
    other = voice.with_weights({name: voice.model.get_parameter(name) * 1.01})
    export = export_voice(other, tmp_path / "other", "onnx")
    with pytest.raises(InputError, match="does not say what the voice says"):
        check_onnx(export.model, voice)
    (tmp_path / "broken.onnx").write_bytes(export.model.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load"):
        check_onnx(tmp_path / "broken.onnx", voice)
    monkeypatch.setattr(
        "vits_prune.ship.formats.write_onnx", lambda *_, **__: write_onnx(other, most_frames=999)
    )
    with pytest.raises(InputError, match="so it is not written"):
        export_voice(voice, tmp_path / "out", "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.onnx", "other"]


def test_an_activation_that_vits_does_not_have(tiny):
    odd = tiny.with_weights({})
    odd.model.config = copy.deepcopy(odd.model.config)
    odd.model.config.hidden_act = "mish"
    with pytest.raises(InputError, match="mish"):
        write_onnx(odd, most_frames=10)


def test_formats_precisions_and_places(tiny, tmp_path):
    for arguments, match in (
        (("mp3",), "no format"), (("dense", "int8"), "precisions"), (("onnx", "fp8"), "precisions"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            export_voice(tiny, tmp_path / "out", *arguments)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat").write_text("meow")
    with pytest.raises(InputError, match="not a saved voice"):
        export_voice(tiny, tmp_path / "photos", "onnx")
    assert not (tmp_path / "out").exists()
    shares = []
    progress = Progress(lambda what, share: shares.append(share))
    export = export_voice(tiny, tmp_path / "out", "onnx", progress=progress)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert set(export.files) >= {
        "tiny.onnx",
        "tiny.onnx.bench.json",
        "bench.py",
        "export.json",
        "vocab.json",
    }
    assert json.loads((tmp_path / "out" / "export.json").read_text())["precision"] == "fp32"
    export_voice(tiny, tmp_path / "out", "onnx", "fp16")  # an export of before is replaced
    assert json.loads((tmp_path / "out" / "export.json").read_text())["precision"] == "fp16"
    with pytest.raises(InputError, match="holds an export of another format"):
        export_voice(tiny, tmp_path / "out", "dense")
    for form in ("dense", "sparse"):
        assert export_voice(tiny, tmp_path / form, form).bytes == max(
            path.stat().st_size for path in (tmp_path / form).iterdir()
        )


def test_the_real_voice(joe, joe_export):
    assert joe_export.waveform_error <= TOLERANCE
    again, wanted = (
        dict(voice.model.named_parameters()) for voice in (load_voice(joe_export.model), joe)
    )
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)
