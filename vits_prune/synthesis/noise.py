"""The duration predictor on noise that is given: what `speak` runs for one sentence and healing trains on a batch of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def draw_duration_noise(key: tuple[int, int], tokens: int) -> torch.Tensor:
    """The standard normal noise of a sentence's durations, float32 [1, 2, tokens]: token by token the same whatever their number.

    Args:
        key: seed and number of the sentence.
        tokens: of the sentence.
    """
    import torch

    return torch.from_numpy(draw_noise(key, DURATION_NOISE, tokens, 2)).T[None]


def predict_log_durations(
    model: torch.nn.Module,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    conditioning: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """Natural logarithms of frames at the training pace, [batch, 1, tokens], with gradients where they are recorded.

    A plain predictor's gradients end before the hidden states: transformers detaches them.

    Args:
        model: whose predictor.
        hidden: of the text encoder, [batch, hidden, tokens].
        mask: 1 where there is a token, [batch, 1, tokens].
        conditioning: of the speaker, [batch, speaker_embedding_size, 1], or None.
        noise: scaled, [batch, 2, tokens]; a plain predictor has no use for it.
    """
    if model.config.use_stochastic_duration_prediction:
        return _sampled(model.duration_predictor, hidden, mask, conditioning, noise)
    return model.duration_predictor(hidden, mask, conditioning)


def _sampled(
    predictor: torch.nn.Module,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    conditioning: torch.Tensor | None,
    latents: torch.Tensor,
) -> torch.Tensor:
    """The stochastic duration predictor's inverse flow with the noise given.

    The same operations as transformers' VitsStochasticDurationPredictor.forward(reverse=True), which draws its noise itself.
    """
    import torch

    states = predictor.conv_pre(hidden)
    if conditioning is not None:
        states = states + predictor.cond(conditioning)
    states = predictor.conv_dds(states, mask)
    states = predictor.conv_proj(states) * mask
    flows = list(reversed(predictor.flows))
    for flow in [*flows[:-2], flows[-1]]:
        latents = torch.flip(latents, [1])
        latents, _ = flow(latents, mask, global_conditioning=states, reverse=True)
    return latents[:, :1]


DURATION_NOISE, PRIOR_NOISE, POSTERIOR_NOISE = 0, 1, 2

"""Purposes of noise: no two share a stream."""


def draw_noise(key: int | tuple[int, ...], purpose: int, rows: int, columns: int) -> np.ndarray:
    """Standard normal float32 [rows, columns], the first rows the same whatever the number of rows.

    Args:
        key: what it is drawn for, such as (seed, number of the sentence).
        purpose: DURATION_NOISE, PRIOR_NOISE or POSTERIOR_NOISE.
        rows, columns: of the array.
    """
    generator = np.random.Generator(
        np.random.Philox(np.random.SeedSequence(key, spawn_key=(purpose,)))
    )
    return generator.standard_normal((rows, columns), dtype=np.float32)
