"""What layers read: sums that equal those of hooks on the plain model; which are kept."""

from __future__ import annotations

import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.pruning.conftest import KINDS, SENTENCES
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, PruneSpec, load_voice, prune
from vits_prune.caches import Bounded
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import blocks, calibration
from vits_prune.pruning.blocks import SEGMENT, inputs_of
from vits_prune.pruning.calibration import calibrate, channel_sensitivity, collect, texts_for
from vits_prune.pruning.layers import LayerMatrix, prunable_layers
from vits_prune.synthesis.inference import (
    encode,
    log_durations,
    predict_durations,
    sample_latents,
    speaker_embedding,
)
from vits_prune.synthesis.speak import Delivery, read_text
from vits_prune.synthesis.texts import load_calibration_texts

SEED = 5
SPEC = PruneSpec(method="second_order", amount=0.3, texts=SENTENCES)


def gathered(voice, layers=None, texts=SENTENCES, seed=SEED, **options):
    return {
        layer.name: found
        for layer, found in collect(voice, layers or prunable_layers(voice), texts, seed, **options)
    }


@torch.no_grad()
def naive(voice, texts=SENTENCES):
    """Layer name -> (sum of x xT, windows), of whole sentences through the model itself."""
    pace, conditioning = Delivery().for_voice(voice), speaker_embedding(voice)
    places = np.random.default_rng(SEED)
    found = {}

    def count(inputs, part):
        for name, given in inputs.items():
            if name.split(".")[0] != part:
                continue
            module = voice.model.get_submodule(name)
            matrix = LayerMatrix(module)
            if not matrix.dense:
                windows = given.movedim(1, 2).reshape(-1, given.shape[1] // module.groups)
            else:
                at = matrix.usable(given, None).nonzero()
                windows = matrix.windows(given, at[:, 0], at[:, 1])
                ones = torch.ones(len(windows), int(module.bias is not None))
                windows = torch.cat([windows, ones], 1)
            total, number = found.get(name, (0, 0))
            found[name] = total + windows.double().T @ windows.double(), number + len(windows)

    sentences = [sentence.ids for text in texts for sentence in read_text(voice, text)[0]]
    for index, ids in enumerate(sentences):
        key = (SEED, index)
        with inputs_of(voice.model, prunable_layers(voice)) as inputs:
            hidden, means, log_variances = encode(voice, ids)
            log_durations(voice.model, hidden, conditioning, key, pace)
            durations, _ = predict_durations(voice, hidden, conditioning, key, pace, 1500)
            latents = sample_latents(
                voice, means, log_variances, durations, conditioning, key, pace.noise_scale
            )
            start = int(places.integers(1 << 30)) % max(1, latents.shape[2] - SEGMENT + 1)
            voice.model.decoder(latents[:, :, start : start + SEGMENT], conditioning)
            for part in ("text_encoder", "duration_predictor", "flow", "decoder"):
                count(inputs, part)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_gets_what_hooks_on_the_plain_model_find(families, kind, monkeypatch):
    voice = families[kind]
    monkeypatch.setattr(calibration, "WINDOWS", (10**6, 10**6))
    found, expected = gathered(voice), naive(voice)
    assert found.keys() == expected.keys() == {layer.name for layer in prunable_layers(voice)}
    for name, statistics in found.items():
        covariance, windows = expected[name]
        assert statistics.windows == windows, name
        size = float(covariance.diagonal().max())
        assert torch.allclose(
            statistics.energy.double(), covariance.diagonal(), atol=2e-4 * size
        ), name
        assert (statistics.covariance is None) == (not statistics.matrix.dense)
        if statistics.covariance is not None:
            assert torch.allclose(statistics.covariance.double(), covariance, atol=2e-4 * size), (
                name
            )


def test_padding_does_not_leak(families, monkeypatch):
    """Sentences of very different lengths share a batch, and each alone gives the same sums."""
    voice = families["plain"]
    layers = prunable_layers(voice, ("text_encoder",))
    together = gathered(voice, layers)
    monkeypatch.setattr(blocks, "BATCH_TOKENS", 1)
    alone = gathered(voice, layers)
    for name, statistics in together.items():
        assert statistics.windows == alone[name].windows
        scale = float(alone[name].energy.max())
        assert torch.allclose(statistics.covariance, alone[name].covariance, atol=1e-4 * scale), (
            name
        )


@pytest.mark.parametrize("kind", KINDS[1:3])
def test_the_same_seed_gives_the_same_to_the_bit_and_another_does_not(families, kind):
    voice = families[kind]
    layers = prunable_layers(voice, ("flow", "decoder"))
    first, again, other = (gathered(voice, layers, seed=seed) for seed in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name].energy, again[name].energy)
        assert first[name].covariance is None or torch.equal(
            first[name].covariance, again[name].covariance
        )
    assert any(not torch.equal(first[name].energy, other[name].energy) for name in first)


def test_torchs_own_random_state_plays_no_part(families):
    voice, found = families["plain"], []
    for state in (0, 1):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        found.append(gathered(voice, covariances=False))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(found[0][name].energy, found[1][name].energy) for name in found[0])


def test_a_layers_statistics_do_not_depend_on_which_others_are_listened_to(families, monkeypatch):
    voice = families["plain"]
    monkeypatch.setattr(calibration, "WINDOWS", (50, 100))  # so that windows are drawn
    everything, energies = gathered(voice), gathered(voice, covariances=False)
    for layer in prunable_layers(voice)[::7]:
        [(_, alone)] = collect(voice, [layer], SENTENCES, SEED)
        assert torch.equal(alone.energy, everything[layer.name].energy)
        assert torch.equal(alone.energy, energies[layer.name].energy)
        assert energies[layer.name].covariance is None
        assert alone.windows <= 100 or not alone.matrix.dense


def test_the_energy_is_the_covariances_diagonal(families):
    for statistics in gathered(families["plain"]).values():
        if statistics.covariance is not None:
            assert torch.allclose(
                statistics.covariance.diagonal(), statistics.energy, rtol=1e-4, atol=1e-6
            )
            if statistics.matrix.module.bias is not None:
                assert float(statistics.energy[-1]) == statistics.windows


def test_the_model_is_left_as_it_was(families):
    voice = families["plain"]
    before = {name: tensor.clone() for name, tensor in voice.model.named_parameters()}
    gathered(voice)
    assert all(torch.equal(tensor, before[name]) for name, tensor in voice.model.named_parameters())
    assert not any(
        module._forward_pre_hooks or module._forward_hooks for module in voice.model.modules()
    )


class Cancelled(Exception):
    pass


def test_it_can_be_cancelled(families):
    voice, told = families["plain"], []

    def cancel(what, share):
        told.append((what, share))
        if len(told) == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        gathered(voice, progress=Progress(cancel))
    assert len(told) == 5
    assert not any(module._forward_pre_hooks for module in voice.model.modules())


def test_progress_rises(families):
    shares = []
    gathered(families["piper-high"], progress=Progress(lambda _what, share: shares.append(share)))
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)
    assert len(set(shares)) > 10


def test_a_covariance_that_does_not_fit(families, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_COLUMNS", 100)
    with pytest.raises(
        InputError,
        match=r"has \d+ inputs, whose covariance would take .* protect it, or prune by activation",
    ) as error:
        gathered(families["plain"])
    assert str(error.value).endswith(".")
    assert gathered(families["plain"], covariances=False)


def test_texts_that_cannot_be_said(families):
    for texts in (("漢字",), ("...",), ("",), ("...", "漢字"), ()):
        with pytest.raises(InputError):
            gathered(families["plain"], texts=texts)


def test_a_text_that_cannot_be_said_among_others_is_passed_over(families):
    mixed, alone = (
        gathered(families["plain"], texts=texts)
        for texts in (("a sentence", "漢字"), ("a sentence",))
    )
    assert mixed.keys() == alone.keys()
    assert all(
        torch.equal(mixed[name].covariance, alone[name].covariance)
        for name in mixed
        if mixed[name].covariance is not None
    )


@pytest.mark.parametrize(
    ("broken", "value"),
    [
        ("text_encoder.embed_tokens.weight", float("nan")),
        ("flow.flows.1.conv_pre.weight", float("inf")),
        ("decoder.conv_pre.bias", 1e30),
    ],
)
def test_a_voice_that_is_broken(families, broken, value):
    voice = families["plain"]
    worse = voice.with_weights({broken: torch.full_like(voice.model.get_parameter(broken), value)})
    with pytest.raises(InputError, match="not finite"):
        gathered(worse)


def test_a_kernel_that_is_no_multiple_of_its_stride(tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "uneven", upsample_kernel_sizes=[7, 8]))
    uneven = gathered(voice)["decoder.upsampler.0"]
    assert uneven.covariance is None
    assert uneven.energy.shape == (32,)


# What is kept for another amount


def test_texts(families, tmp_path):
    english = families["plain"]
    assert texts_for(english, SPEC) == SENTENCES
    assert texts_for(english, PruneSpec(method="activation")) == load_calibration_texts()
    piper = texts_for(families["piper-medium"], PruneSpec(method="activation"))
    assert piper == load_calibration_texts()
    german = load_voice(make_checkpoint(tmp_path / "deu", language="deu"))
    drawn = texts_for(german, PruneSpec(method="activation", seed=1))
    assert len(drawn) == calibration.DRAWN_TEXTS
    assert drawn == texts_for(german, PruneSpec(method="activation", seed=1))
    assert drawn != texts_for(german, PruneSpec(method="activation", seed=2))
    assert texts_for(german, SPEC) == SENTENCES


@pytest.fixture
def counted(monkeypatch):
    """How often a voice was listened to."""
    calls, real = [], calibration.collect
    monkeypatch.setattr(
        calibration, "collect", lambda *args, **named: calls.append(args) or real(*args, **named)
    )
    monkeypatch.setattr(
        calibration, "kept_statistics", Bounded(calibration.KEPT_VOICES, lambda _: 1)
    )
    return calls


def test_another_amount_needs_no_listening(families, counted):
    voice = families["plain"]
    prune(voice, SPEC)
    assert len(counted) == 1
    for change in (
        {"amount": 0.6},
        {"scope": "local"},
        {"parts": ("decoder",)},
        {"method": "activation", "floor": 0.1},
    ):
        prune(voice, dataclasses.replace(SPEC, **change))
    assert len(counted) == 1
    prune(voice, dataclasses.replace(SPEC, seed=1))
    prune(voice, dataclasses.replace(SPEC, texts=SENTENCES[:1]))
    prune(voice.with_weights({}), SPEC)
    assert len(counted) == 4


def test_energies_alone_do_not_do_for_covariances(families, counted):
    voice = families["plain"]
    prune(voice, dataclasses.replace(SPEC, method="activation"))
    prune(voice, SPEC)
    assert len(counted) == 2
    prune(voice, dataclasses.replace(SPEC, method="activation", amount=0.1))
    assert len(counted) == 2


def test_speakers_are_kept_apart(families, counted):
    voice = families["speakers"]
    first = dict(prune(voice, SPEC).model.named_parameters())
    other = dict(prune(voice.with_speaker(0), SPEC).model.named_parameters())
    assert len(counted) == 2
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_statistics_are_forgotten_with_the_voice(families, counted):
    voice = families["plain"].with_weights({})
    prune(voice, SPEC)
    assert len(calibration.kept_statistics) == 1
    del voice
    counted.clear()
    gc.collect()
    assert len(calibration.kept_statistics) == 0


def test_no_more_than_a_few_voices_are_kept(families, counted):
    voices = [families["plain"].with_weights({}) for _ in range(4)]
    for voice in voices:
        prune(voice, dataclasses.replace(SPEC, method="activation"))
    assert len(calibration.kept_statistics) == calibration.KEPT_VOICES


def test_what_does_not_fit_is_listened_to_again_with_the_same_result(
    families, counted, monkeypatch
):
    voice = families["plain"]
    kept = dict(prune(voice, SPEC).model.named_parameters())
    monkeypatch.setattr(calibration, "KEPT_COVARIANCE_BYTES", 1000)
    counted.clear()
    shares = []
    progress = Progress(lambda _what, share: shares.append(share))
    streamed = dict(prune(voice, SPEC, progress=progress).model.named_parameters())
    assert len(counted) == 2
    assert all(torch.equal(kept[name], streamed[name]) for name in kept)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1


def test_after_one_who_cancels_the_next_one_listens(families, counted):
    def cancel(_what, share):
        if share > 0.1:
            raise KeyboardInterrupt

    voice = families["plain"].with_weights({})
    with pytest.raises(KeyboardInterrupt):
        prune(voice, SPEC, progress=Progress(cancel))
    prune(voice, SPEC)
    assert len(counted) == 2


def test_only_what_is_asked_for_comes_back(families):
    voice = families["plain"]
    list(calibrate(voice, SPEC, prunable_layers(voice), covariances=True))
    decoder = prunable_layers(voice, ("decoder",))
    found = [layer for layer, _ in calibrate(voice, SPEC, decoder, covariances=False)]
    assert sorted(layer.name for layer in found) == sorted(layer.name for layer in decoder)


@pytest.mark.parametrize(
    "work",
    [
        lambda voice, progress: prune(voice, SPEC, progress=progress),
        lambda voice, progress: channel_sensitivity(voice, SENTENCES, SEED, progress=progress),
    ],
    ids=["calibration", "sensitivity"],
)
def test_others_need_not_wait_and_who_waits_can_leave(families, work):
    voice, other = families["plain"].with_weights({}), families["speakers"].with_weights({})
    inside, go_on = threading.Event(), threading.Event()

    def wait(_what, _share):
        inside.set()
        assert go_on.wait(60)

    def leave(_what, _share):
        raise Cancelled

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(work, voice, Progress(wait))
        try:
            assert inside.wait(60)
            with pytest.raises(Cancelled):
                work(voice, Progress(leave))
            assert work(other, SILENT)
        finally:
            go_on.set()
        assert first.result(60)
