"""The posterior encoder against transformers', the spectrogram against a Fourier transform."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VitsModel

from tests.nearly import nearly
from tests.voices.hf_factory import edit_json, make_checkpoint
from tests.voices.loopback_hub import Repository, serving
from vits_prune import PruneSpec, load_voice, prune, save_voice
from vits_prune.errors import InputError
from vits_prune.healing.posterior import (
    draw_latents,
    linear_spectrogram,
    load_posterior,
    posterior_statistics,
    require_fit,
)

WINDOWED = {"spectrogram_bins": 33}
"""A window of 64 samples over a hop of 16, four to one as in published voices."""


def posterior_latents(posterior, waveform, speaker=None, seed=0):
    return draw_latents(*posterior_statistics(posterior, waveform, speaker), seed)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("posteriors")
    return {
        "one": make_checkpoint(place / "one", **WINDOWED),
        "crowd": make_checkpoint(place / "crowd", speakers=3, **WINDOWED),
    }


@pytest.fixture(scope="module")
def posterior(folders):
    return load_posterior(folders["one"])


def _speech(samples=4000, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)
    )


def _plain_spectrogram(waveform, filter_length, hop):
    """Return VITS' spectrogram by numpy: mirrored margins, periodic Hann window, no centring."""
    margin = (filter_length - hop) // 2
    padded = np.pad(waveform.astype(np.float64), margin, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(filter_length) / filter_length)
    starts = range(0, len(padded) - filter_length + 1, hop)
    spectra = np.fft.rfft([padded[start : start + filter_length] * window for start in starts])
    return np.sqrt(spectra.real**2 + spectra.imag**2 + 1e-6).T


@pytest.mark.parametrize(("filter_length", "hop"), [(1024, 256), (64, 16), (16, 16), (64, 15)])
def test_the_spectrogram_is_the_one_of_the_training(filter_length, hop):
    waveform = _speech(5000)
    ours = linear_spectrogram(waveform[None], filter_length, hop)[0]
    theirs = _plain_spectrogram(waveform.numpy(), filter_length, hop)
    assert (
        ours.shape
        == theirs.shape
        == (filter_length // 2 + 1, 5000 // hop - (hop == 15 and 5000 % 15 == 0))
    )
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=2e-4)


def test_silence_is_the_floor_of_the_magnitudes():
    assert linear_spectrogram(torch.zeros(1, 256), 64, 16).unique().tolist() == pytest.approx(
        [1e-3]
    )


@pytest.mark.parametrize(("kind", "speaker"), [("one", None), ("crowd", 0), ("crowd", 2)])
def test_means_and_deviations_are_those_of_transformers(folders, kind, speaker):
    model = VitsModel.from_pretrained(folders[kind]).eval()
    ours = load_posterior(folders[kind])
    waveform = _speech()
    spectrogram = torch.from_numpy(_plain_spectrogram(waveform.numpy(), 64, 16)).float()[None]
    conditioning = (
        None if speaker is None else model.embed_speaker(torch.tensor([speaker])).unsqueeze(-1)
    )
    with torch.no_grad():
        _, means, log_deviations = model.posterior_encoder(
            spectrogram, torch.ones(1, 1, spectrogram.shape[2]), conditioning
        )
    noise = np.random.Generator(
        np.random.Philox(np.random.SeedSequence(7, spawn_key=(2,)))
    ).standard_normal((250, 16), dtype=np.float32)
    expected = means + torch.from_numpy(noise).T[None] * log_deviations.exp()
    latents = posterior_latents(ours, waveform, speaker, seed=7)
    assert latents.shape == (1, ours.flow_size, 250)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    assert means.std() > 0.01
    assert log_deviations.std() > 0.01


def test_speakers_differ(folders):
    crowd = load_posterior(folders["crowd"])
    first, third = (posterior_latents(crowd, _speech(), speaker) for speaker in (None, 2))
    assert torch.equal(first, posterior_latents(crowd, _speech(), 0))
    assert not torch.allclose(first, third, atol=1e-3)
    with pytest.raises(InputError, match="no speaker 3"):
        posterior_latents(crowd, _speech(), 3)


@pytest.mark.parametrize("samples", [64, 65, 1000, 1007, 1008])
def test_there_is_a_frame_for_every_whole_hop(posterior, samples):
    assert (
        posterior_latents(posterior, _speech(samples)).shape[2] == samples // posterior.hop_length
    )


def test_an_impulse_is_seen_at_its_frame():
    for at in (8, 1000, 1991):
        waveform = torch.zeros(2000)
        waveform[at] = 1.0
        energy = linear_spectrogram(waveform[None], 64, 16)[0].square().sum(0)
        assert energy.argmax() == at // 16


def test_an_impulse_changes_the_latents_around_its_frame(posterior):
    quiet, loud = torch.zeros(4000), torch.zeros(4000)
    loud[2008] = 1.0
    changed = (
        (posterior_latents(posterior, loud) - posterior_latents(posterior, quiet)).abs().sum(1)[0]
    )
    places = torch.arange(len(changed))
    centre = (changed * places).sum() / changed.sum()
    assert centre == pytest.approx(2008 // 16, abs=1.0)
    assert changed[:100].max() == 0  # beyond the window and the WaveNet's receptive field
    assert changed[150:].max() == 0


def test_noise_comes_from_the_seed_frame_by_frame(posterior):
    waveform = _speech()
    torch.manual_seed(0)
    first = posterior_latents(posterior, waveform, seed=(1, 2))
    torch.manual_seed(1)
    assert nearly(first, posterior_latents(posterior, waveform, seed=(1, 2)))
    assert not torch.allclose(first, posterior_latents(posterior, waveform, seed=(1, 3)))
    shorter = posterior_latents(posterior, waveform[:2000], seed=(1, 2))
    torch.testing.assert_close(shorter[..., :100], first[..., :100])


def test_the_encoder_does_not_learn(posterior):
    assert not any(parameter.requires_grad for parameter in posterior.encoder.parameters())
    assert not posterior.encoder.training
    assert not posterior_latents(posterior, _speech()).requires_grad


def test_a_half_precision_checkpoint_is_read_as_fp32(folders, tmp_path):
    half = make_checkpoint(tmp_path / "half", **WINDOWED)
    tensors = {key: tensor.half() for key, tensor in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    latents = posterior_latents(load_posterior(half), _speech())
    torch.testing.assert_close(
        latents, posterior_latents(load_posterior(folders["one"]), _speech()), atol=0.02, rtol=0.02
    )


def test_older_names_of_weight_norm_are_known(folders, tmp_path):
    old = make_checkpoint(tmp_path / "old", **WINDOWED)
    names = {
        ".parametrizations.weight.original0": ".weight_g",
        ".parametrizations.weight.original1": ".weight_v",
    }
    tensors = {}
    for key, tensor in load_file(old / "model.safetensors").items():
        for new, former in names.items():
            key = key.replace(new, former)
        tensors[key] = tensor
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    assert any(key.endswith("weight_g") and key.startswith("posterior_encoder") for key in tensors)
    assert torch.equal(
        posterior_latents(load_posterior(old), _speech()),
        posterior_latents(load_posterior(folders["one"]), _speech()),
    )


def test_a_hub_id_is_read_from_its_snapshot(folders, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving() as hub:
        hub.repositories["someone/one"] = [Repository(folders["one"])]
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        there = load_posterior("someone/one@main")
    assert there.name == "one"
    assert torch.equal(
        posterior_latents(there, _speech()),
        posterior_latents(load_posterior(folders["one"]), _speech()),
    )


def test_piper_voices_have_none(tmp_path):
    (tmp_path / "voice.onnx").touch()  # it is refused before it is read
    for ref in ("joe", tmp_path / "voice.onnx"):
        with pytest.raises(
            InputError, match="no posterior encoder, without which recordings cannot be used"
        ):
            load_posterior(ref)


def test_saved_voices_have_none_and_say_which_has(folders, tmp_path):
    pruned = prune(load_voice(folders["one"]), PruneSpec(amount=0.3))
    saved = save_voice(pruned, tmp_path / "saved")
    with pytest.raises(InputError, match=r"no posterior encoder.*made from \(one\)"):
        load_posterior(saved)
    (saved / "vits_prune.json").unlink()  # a stand-in of zeros is left
    with pytest.raises(InputError, match="no posterior encoder"):
        load_posterior(saved)


def _change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _lose_all(tensors):
    for key in [key for key in tensors if key.startswith("posterior_encoder")]:
        del tensors[key]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_lose_all, "no posterior encoder"),
        (
            lambda tensors: tensors.pop("posterior_encoder.conv_proj.bias"),
            "lacks the weights posterior_encoder.conv_proj.bias",
        ),
        (
            lambda tensors: tensors["posterior_encoder.conv_pre.bias"].fill_(torch.nan),
            "NaN or infinity",
        ),
        (
            lambda tensors: tensors.update({"posterior_encoder.conv_pre.bias": torch.zeros(3)}),
            "do not fit its config.json",
        ),
    ],
    ids=["none", "incomplete", "not-a-number", "other-shape"],
)
def test_a_damaged_encoder_is_refused_in_a_sentence(tmp_path, change, sentence):
    folder = make_checkpoint(tmp_path / "damaged", **WINDOWED)
    _change_tensors(folder, change)
    with pytest.raises(InputError, match=sentence):
        load_posterior(folder)


def test_truncated_weights_and_unknown_references_are_refused(tmp_path):
    folder = make_checkpoint(tmp_path / "cut", **WINDOWED)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged weights"):
        load_posterior(folder)
    with pytest.raises(InputError, match="no model of the Hugging Face hub"):
        load_posterior("nothing\0")
    edit_json(
        make_checkpoint(tmp_path / "huge", **WINDOWED) / "config.json",
        hidden_size=4096,
        num_attention_heads=1,
        spectrogram_bins=16_384,
    )
    with pytest.raises(InputError, match=r"million parameters|do not fit"):
        load_posterior(tmp_path / "huge")


def test_a_recording_shorter_than_the_window_is_refused(posterior):
    with pytest.raises(InputError, match="64 samples or more"):
        posterior_latents(posterior, _speech(63))


def test_it_must_fit_the_voice(folders, posterior, tiny):
    require_fit(posterior, load_voice(folders["one"]))
    require_fit(posterior, prune(tiny, PruneSpec(amount=0.5)))
    with pytest.raises(InputError, match="speakers"):
        require_fit(posterior, load_voice(folders["crowd"]))
    with pytest.raises(InputError, match="16000 samples a second and tiny has 22050"):
        require_fit(posterior, dataclasses.replace(tiny, sampling_rate=22_050))
