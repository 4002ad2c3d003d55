"""Readings: what the teacher's text encoder and durations make of a sentence, unsaid: drawn anew, with new noise, for every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vits_prune.durations import draw_duration_noise, predict_log_durations
from vits_prune.healing.batches import READ, Batch, padded_length
from vits_prune.healing.lessons import broken_teacher
from vits_prune.synthesis import Delivery
from vits_prune.voices.voice import Voice

MOST = 1500
"""Sentences that are drawn from, besides those of the lessons."""
_LONGEST = 128
"""Symbols; what a sentence has beyond that is left unread."""
_PURPOSE = 0x4EAD
"""Parts these draws from those of the batches."""


class Readings:
    """Text encoder and duration predictor learn from many more sentences than the decoder can be spoken: to read one costs a fraction.

    Args:
        teacher: who reads; on the device where it is to run.
        sentences: ids of each; their beginnings where they are long.
        speakers: whose durations, each as likely as another.
    """

    def __init__(self, teacher: Voice, sentences: Sequence[Sequence[int]], speakers: Sequence[int]) -> None:
        self.sentences = tuple(tuple(ids[:_LONGEST]) for ids in sentences)
        self._teacher, self._speakers = teacher, tuple(speakers)
        self._pace = Delivery().for_voice(teacher)

    def draw(self, size: int, key: tuple[int, int, int]) -> Batch:
        """What text encoder and durations are taught by, on the teacher's device, each name as in `draw_batch` with READ before it.

        Args:
            size: sentences.
            key: seed, step and number of the process.

        Raises:
            InputError: the teacher makes what is no finite number.
        """
        random = np.random.default_rng((*key, _PURPOSE))
        chosen = [self.sentences[i] for i in random.integers(len(self.sentences), size=size)]
        length = padded_length(chosen)
        ids, mask = torch.zeros(size, length, dtype=torch.int64), torch.zeros(size, length)
        for row, sentence in enumerate(chosen):
            ids[row, : len(sentence)] = torch.tensor(sentence)
            mask[row, : len(sentence)] = 1.0
        speakers = torch.tensor([self._speakers[i] for i in random.integers(len(self._speakers), size=size)])
        noises = [draw_duration_noise((int(random.integers(2**31)), row), length)[0] for row in range(size)]
        device = self._teacher.device
        read = self._read(ids.to(device), mask.to(device), speakers.to(device), torch.stack(noises).to(device))
        return {f"{READ}{name}": tensor for name, tensor in read.items()}

    @torch.no_grad()
    def _read(self, ids: torch.Tensor, mask: torch.Tensor, speakers: torch.Tensor, noise: torch.Tensor) -> Batch:
        model = self._teacher.model
        table = getattr(model, "embed_speaker", None)
        conditioning = None if table is None else table(speakers).unsqueeze(-1)
        read = model.text_encoder(input_ids=ids, padding_mask=mask[..., None], attention_mask=mask, return_dict=True)
        hidden = read.last_hidden_state
        stochastic = model.config.use_stochastic_duration_prediction
        noise = noise * mask[:, None] * self._pace.noise_scale_duration if stochastic else noise[:, :0]
        finite = bool(torch.isfinite(torch.cat([hidden.flatten(), read.prior_means.flatten(), read.prior_log_variances.flatten()])).all())
        if not finite:  # the spline of a stochastic predictor does not take what is no number
            raise broken_teacher(self._teacher)
        logarithms = predict_log_durations(model, hidden.transpose(1, 2), mask[:, None], conditioning, noise)[:, 0]
        if not bool(torch.isfinite(logarithms).all()):
            raise broken_teacher(self._teacher)
        frames = torch.exp(logarithms.clamp(max=6.0)) * mask
        found = {"hidden": hidden, "means": read.prior_means, "log_variances": read.prior_log_variances}
        return {name: tensor * mask[..., None] for name, tensor in found.items()} | {
            "ids": ids,
            "token_mask": mask,
            "speaker": speakers,
            "duration_noise": noise,
            "log_durations": logarithms * mask,
            "weights": frames * mask.sum(1, keepdim=True) / frames.sum(1, keepdim=True).clamp_min(1e-3),
        }
