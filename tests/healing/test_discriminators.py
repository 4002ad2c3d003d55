"""HiFi-GAN's discriminators against the paper's layout, its losses, and a contest to win."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vits_prune.healing.discriminators import (
    PERIODS,
    Discriminators,
    discriminator_loss,
    feature_loss,
    generator_loss,
)

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
