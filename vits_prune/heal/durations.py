"""The duration predictor for a batch of sentences, with gradients, on the very noise with which `speak` runs it."""

from __future__ import annotations

import torch
from torch import nn

from vits_prune.synthesis import _DURATION_NOISE, _noise, _sample_log_durations


def draw_duration_noise(key: tuple[int, int], tokens: int) -> torch.Tensor:
    """The standard normal noise of a sentence's durations, float32 [1, 2, tokens]."""
    return torch.from_numpy(_noise(key, _DURATION_NOISE, tokens, 2)).T[None]


def predict_log_durations(
    model: nn.Module, hidden: torch.Tensor, mask: torch.Tensor, conditioning: torch.Tensor | None, noise: torch.Tensor
) -> torch.Tensor:
    """Log-durations [batch, tokens].

    Args:
        model: whose predictor.
        hidden: of the text encoder, [batch, hidden, tokens].
        mask: 1 where there is a token, [batch, 1, tokens].
        conditioning: [batch, speaker_embedding_size, 1] or None.
        noise: scaled, [batch, 2, tokens]; of no effect on a plain predictor.

    A plain predictor's gradients end before the hidden states: transformers detaches them.
    """
    if model.config.use_stochastic_duration_prediction:
        return _sample_log_durations(model.duration_predictor, hidden, mask, conditioning, noise)[:, 0]
    return model.duration_predictor(hidden, mask, conditioning)[:, 0]
