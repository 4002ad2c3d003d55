from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vits_prune.healing.losses import (
    PERIODS,
    Discriminators,
    SpectralLoss,
    discriminator_loss,
    duration_loss,
    feature_loss,
    generator_loss,
    prior_loss,
    waveform_loss,
)

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


NARROW = 1 / 32


@pytest.fixture(scope="module")
def narrow():
    return Discriminators(NARROW)


def test_the_full_width_is_the_papers():
    with torch.device("meta"):
        full = Discriminators(1.0)
    channels = [
        [layer.weight.shape[0] for layer in full.periods[0].layers],
        [layer.weight.shape[0] for layer in full.scales[0].layers],
    ]
    assert channels == [[32, 128, 512, 1024, 1024], [128, 128, 256, 512, 1024, 1024, 1024]]
    assert sum(parameter.numel() for parameter in full.parameters()) == pytest.approx(
        70.7e6, rel=0.01
    )
    assert [discriminator.period for discriminator in full.periods] == list(PERIODS)
    narrow = sum(parameter.numel() for parameter in Discriminators(1 / 8).parameters())
    assert narrow == pytest.approx(1.12e6, rel=0.01)


def test_a_period_is_the_papers_two_dimensional_convolution():
    """The waveform is [batch, 1, samples / period, period], the kernels have a width of 1."""
    discriminator = Discriminators(NARROW, periods=(3,), scales=0).periods[0]
    waveform = torch.randn(2, 1, 301, generator=torch.Generator().manual_seed(1))
    folded = functional.pad(waveform, (0, 2), "reflect").view(2, 1, 101, 3)
    for layer in discriminator.layers:
        folded = functional.conv2d(
            folded, layer.weight[..., None], layer.bias, (layer.stride[0], 1), (layer.padding[0], 0)
        )
        folded = functional.leaky_relu(folded, 0.1)
    expected = functional.conv2d(
        folded, discriminator.score.weight[..., None], discriminator.score.bias, 1, (1, 0)
    )
    score, features = discriminator(waveform)
    assert len(features) == 6
    # The order of the places differs; the losses average over them.
    torch.testing.assert_close(score, expected[:, 0].transpose(1, 2).flatten(1))


def test_each_discriminator_answers_and_each_scale_halves_the_rate(narrow):
    judgements = narrow(torch.randn(2, 1, 4096))
    assert len(judgements) == 8
    assert all(score.shape[0] == 2 and score.dim() == 2 for score, _ in judgements)
    first_layers = [features[0].shape[-1] for _, features in judgements[5:]]
    assert first_layers == [4096, 2049, 1025]
    assert [len(features) for _, features in judgements] == [6] * 5 + [8] * 3


@pytest.mark.parametrize("samples", [1, 2, 5, 10, 11, 12, 63])
def test_short_waveforms_are_judged(narrow, samples):
    waveform = torch.randn(1, 1, samples, requires_grad=True)
    judgements = narrow(waveform)
    assert all(score.numel() and torch.isfinite(score).all() for score, _ in judgements)
    generator_loss(judgements).backward()
    assert torch.isfinite(waveform.grad).all()


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = Discriminators(NARROW, seed=5).state_dict()
    assert torch.equal(torch.rand(4), expected)
    again, other = (
        Discriminators(NARROW, seed=5).state_dict(),
        Discriminators(NARROW, seed=6).state_dict(),
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_losses_are_least_squares():
    real = [
        (torch.tensor([[1.0, 0.0]]), [torch.tensor([1.0, 3.0])]),
        (torch.tensor([[1.0]]), [torch.tensor([2.0])]),
    ]
    fake = [
        (torch.tensor([[0.0, 2.0]]), [torch.tensor([0.0, 1.0])]),
        (torch.tensor([[-1.0]]), [torch.tensor([5.0])]),
    ]
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 + 2.0 + 0.0 + 1.0)
    assert generator_loss(fake).item() == pytest.approx(1.0 + 4.0)
    assert feature_loss(real, fake).item() == pytest.approx(1.5 + 3.0)
    assert feature_loss(real, real).item() == 0
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        discriminator_loss(real, fake[:1])


def test_feature_matching_teaches_the_student_alone(narrow):
    real, fake = (
        torch.randn(1, 1, 512, requires_grad=True),
        torch.randn(1, 1, 512, requires_grad=True),
    )
    feature_loss(narrow(real), narrow(fake)).backward()
    assert real.grad is None
    assert fake.grad.abs().sum() > 0


def test_they_learn_to_tell_and_a_student_learns_to_pass():
    """The discriminators learn what a rasp is; the gradient through them takes it away."""
    rates = torch.linspace(100, 300, 2)[:, None]
    times = torch.arange(256) / 8000
    clean = (0.5 * torch.sin(2 * torch.pi * rates * times))[:, None]
    rasp = 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    judges = Discriminators(NARROW, periods=(2,), scales=1)
    optimiser = torch.optim.AdamW(judges.parameters(), 4e-3, betas=(0.8, 0.99))
    losses = []
    for _ in range(20):
        loss = discriminator_loss(judges(clean), judges(clean + rasp))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    judges.requires_grad_(False)
    gain = torch.ones(1, requires_grad=True)
    generator_loss(judges(clean + gain * rasp)).backward()
    assert gain.grad > 0


@pytest.mark.filterwarnings("ignore:.*bfloat16.*")
def test_half_precision_is_close(narrow):
    waveform = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(2))
    narrow.eval()  # spectral norm takes a step with every call in training
    exact = generator_loss(narrow(waveform))
    with torch.autocast("cpu", torch.bfloat16):
        half = generator_loss(narrow(waveform))
    narrow.train()
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.02)
