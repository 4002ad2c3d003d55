"""Lengths of sentences: a healed voice is to take as long as the original, on texts that it did not learn from too.

What is learnt by heart of some hundred sentences comes out a little too even on others, and even durations are too short ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.stages import (
    draw_duration_noise,
    encode,
    predict_log_durations,
    speaker_embedding,
)
from vits_prune.voices.voice import Voice

_FURTHEST = 0.2
"""Logarithms of durations are moved by so much at most: beyond it the rhythm is broken, not uneven."""
_HALVINGS = 24
_MAX_TOKENS = 400


class Lengths:
    """How long a teacher takes for sentences that nobody learns from, all its speakers in turn.

    Args:
        teacher: the original, at its own pace.
        sentences: ids of each.
        seed: of the noise.
    """

    def __init__(self, teacher: Voice, sentences: Sequence[tuple[int, ...]], seed: int) -> None:
        self._sentences, self._seed = (
            tuple(ids for ids in sentences if len(ids) <= _MAX_TOKENS),
            seed,
        )
        self._pace = Delivery().for_voice(teacher)
        self._wanted = self._frames(self._logarithms(teacher), 0.0)

    def level(self, voice: Voice) -> dict[str, torch.Tensor]:
        """Tensors of `voice` by name which, replaced, make it take as long in all as the teacher; none where it cannot be said.

        The predictor's last step is an affine one (stochastic: the first ElementwiseAffine; plain: the bias): all logarithms move alike.
        """
        if not self._sentences:
            return {}
        try:
            ours = self._logarithms(voice)
        except ValueError:  # the spline of a stochastic predictor does not take what is no number
            return {}
        if not np.isfinite(ours).all():
            return {}
        low, high = -_FURTHEST, _FURTHEST
        for _ in range(
            _HALVINGS
        ):  # the number of frames, rounded up token by token, only grows with what is added
            middle = (low + high) / 2
            low, high = (
                (middle, high) if self._frames(ours, middle) < self._wanted else (low, middle)
            )
        return _moved(voice, (low + high) / 2)

    def _logarithms(self, voice: Voice) -> np.ndarray:
        """Of the frames of all tokens, one sentence behind the other."""
        found = []
        with torch.inference_mode():
            for number, ids in enumerate(self._sentences):
                speaker = number % len(voice.speakers) if voice.speakers else None
                conditioning = speaker_embedding(dataclasses.replace(voice, speaker=speaker))
                hidden, _, _ = encode(voice, ids)
                mask = hidden.new_ones(1, 1, len(ids))
                noise = (
                    draw_duration_noise((self._seed, number), len(ids)).to(hidden)
                    * self._pace.noise_scale_duration
                )
                found.append(
                    predict_log_durations(voice.model, hidden, mask, conditioning, noise)
                    .flatten()
                    .double()
                    .cpu()
                    .numpy()
                )
        return np.concatenate(found) if found else np.zeros(0)

    def _frames(self, logarithms: np.ndarray, more: float) -> float:
        return float(
            np.ceil(np.exp(np.minimum(logarithms + more, 6.0)) / self._pace.speaking_rate).sum()
        )


def _moved(voice: Voice, more: float) -> dict[str, torch.Tensor]:
    """The tensor that adds a number to all logarithms."""
    if voice.model.config.use_stochastic_duration_prediction:
        affine = voice.model.duration_predictor.flows[
            0
        ]  # its inverse is taken: (logarithms - translate) / exp(log_scale)
        changed = affine.translate.detach().clone()
        changed[0] -= more * torch.exp(affine.log_scale[0].detach())
        return {"duration_predictor.flows.0.translate": changed}
    return {
        "duration_predictor.proj.bias": voice.model.duration_predictor.proj.bias.detach() + more
    }
