from __future__ import annotations

import pytest
import torch

from vits_prune.healing.losses import SpectralLoss, duration_loss, prior_loss, waveform_loss

RATE = 16_000


def tone(hertz, level=0.1, samples=8_192):
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / RATE)[None]


def test_equal_sounds_differ_by_nothing_and_louder_ones_by_their_level():
    hearing = SpectralLoss(RATE, 8_192)
    noise = 0.1 * torch.randn(2, 8_192, generator=torch.Generator().manual_seed(0))
    assert all(float(loss) == 0 for loss in hearing(noise, noise).values())
    assert float(hearing(noise * 2, noise)["mel"]) == pytest.approx(0.693, abs=0.01)
    assert float(hearing(tone(440), tone(660))["mel"]) > 0.5


def test_a_mirrored_waveform_sounds_alike_and_is_told_apart_by_its_samples():
    sound = tone(440)
    assert float(SpectralLoss(RATE, 8_192)(-sound, sound)["stft"]) < 1e-4
    assert float(waveform_loss(-sound, sound)) == pytest.approx(2.0)
    assert float(waveform_loss(torch.zeros_like(sound), sound)) == pytest.approx(1.0)


def test_silence_has_finite_gradients():
    hearing = SpectralLoss(RATE, 4_096)
    silence = torch.zeros(1, 4_096, requires_grad=True)
    sum(hearing(silence, torch.zeros(1, 4_096)).values()).backward()
    assert bool(torch.isfinite(silence.grad).all())


def test_segments_shorter_than_the_windows_are_heard():
    losses = SpectralLoss(RATE, 300)(tone(440, samples=300), tone(880, samples=300))
    assert all(float(loss) > 0.1 for loss in losses.values())


def test_errors_of_means_count_in_deviations_and_unspoken_tokens_do_not():
    means, deviations, weights = (
        torch.zeros(1, 2, 3),
        torch.full((1, 2, 3), -1.0),
        torch.tensor([[1.0, 0.0]]),
    )
    off = means.clone()
    off[:, 0] = 0.1
    off[:, 1] = 9.0
    error = 0.1 * 2.71828
    assert float(prior_loss((off, deviations), (means, deviations), weights)) == pytest.approx(
        (error + 0.5 * error**2) / 2, rel=1e-3
    )


def test_durations_count_as_rhythm_and_runaways_stay_finite():
    wanted, mask = torch.log(torch.tensor([[4.0, 2.0, 1.0]])), torch.tensor([[1.0, 1.0, 0.0]])
    twice = wanted + torch.log(torch.tensor(2.0))
    assert float(duration_loss(twice, wanted, mask)) == pytest.approx(
        3 * (3 - 3 * 0.6931) + 0.25 * 0.6931 + 1.0, abs=1e-3
    )
    assert bool(torch.isfinite(duration_loss(wanted + 1_000, wanted, mask)))
