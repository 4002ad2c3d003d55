"""Batches: what one step sees. A function of seed, step and process, so nothing is remembered."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from vits_prune.healing.storage import digest
from vits_prune.healing.teacher import (
    TeacherUtterance,
    decoder_context,
    flow_context,
    require_finite,
)
from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.stages import draw_duration_noise, draw_prior_noise, predict_log_durations
from vits_prune.voices.voice import Voice

TEXT_ONLY = "text_only_"
"""Prefix of the tensors of sentences that the teacher reads and does not speak."""
MAX_TEXT_ONLY = 1500
"""Such sentences besides the spoken ones."""
_LONGEST = 128
"""Tokens; the rest of a longer sentence is not read."""
_TEXT_SEED, _RECORDING_SEED = 0x4EAD, 0xEC
"""Keep their draws apart from those of the spoken sentences."""
_TOKENS = 32
"""Tokens are padded to a multiple: oneDNN prepares its kernels anew for every shape."""

Batch: TypeAlias = dict[str, torch.Tensor]
Key: TypeAlias = tuple[int, int, int]
"""Seed, step and number of the process."""
RecordedPair: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Latents [flow_size, frames] and the waveform that they were encoded from [frames * hop]."""


@dataclass(frozen=True)
class Window:
    """How much of a sentence a step sees."""

    segment: int
    """Frames that the decoder is judged on."""
    decoder: int
    """Frames of context on each side of them for the decoder."""
    flow: int
    """Frames of context on each side of those for the flow."""
    hop: int
    """Samples of a frame."""

    @classmethod
    def of(cls, voice: Voice, segment: int) -> Window:
        """Return the window for a voice."""
        config = voice.model.config
        return cls(segment, decoder_context(config), flow_context(config), voice.hop_length)

    @property
    def decoded(self) -> int:
        """Frames that the decoder is given."""
        return self.segment + 2 * self.decoder

    @property
    def flowed(self) -> int:
        """Frames that the flow is given."""
        return self.decoded + 2 * self.flow


def draw_batch(
    utterances: Sequence[TeacherUtterance],
    size: int,
    key: Key,
    window: Window,
    *,
    text: bool,
    noise_scale: float = 1.0,
) -> Batch:
    """Return the batch of a step.

    Args:
        utterances: long ones are drawn more often, so that all frames are equally likely.
        size: sentences.
        key: of the step.
        window: how much of each.
        text: whether to add the inputs and targets of the text encoder, durations and flow.
        noise_scale: of the prior.

    Returns:
        Tensors on the CPU by name; C is the flow's size, T tokens, F = window.flowed:
        speaker [size]; latents [size, C, window.decoded]; waveform [size, segment * hop];
        with `text` also ids, token_mask, weights (frames of each token over their mean) and
        log_durations [size, T], hidden [size, T, hidden], means and log_variances [size, T, C],
        duration_noise [size, 2, T], frame_tokens [size, F] (token of each frame), frame_mask
        [size, 1, F], noise (scaled) and flow_latents [size, C, F].
    """
    random = np.random.default_rng(key)
    shares = np.array([one.frames for one in utterances], dtype=float)
    chosen = [
        utterances[i] for i in random.choice(len(utterances), size=size, p=shares / shares.sum())
    ]
    starts = [_start(one.frames, window.segment, random) for one in chosen]
    drawn = list(zip(chosen, starts, strict=True))
    waveforms = [
        one.waveform[at * window.hop : (at + window.segment) * window.hop] for one, at in drawn
    ]
    latents = [_cut(one.latents, at - window.decoder, window.decoded) for one, at in drawn]
    batch = {
        "speaker": torch.tensor([one.speaker for one in chosen]),
        "waveform": torch.stack(waveforms),
        "latents": torch.stack(latents),
    }
    if not text:
        return batch
    return batch | _by_token(chosen) | _by_frame(drawn, window, noise_scale)


def draw_recordings(
    recordings: Sequence[RecordedPair], size: int, key: Key, window: Window
) -> Batch:
    """Return segments of recordings: recorded_latents [size, C, window.decoded] and
    recorded_waveform [size, segment * hop]."""
    random = np.random.default_rng((*key, _RECORDING_SEED))
    chosen = [recordings[i] for i in random.integers(len(recordings), size=size)]
    latents, waveforms = [], []
    for encoded, waveform in chosen:
        start = _start(encoded.shape[1], window.segment, random)
        latents.append(_cut(encoded, start - window.decoder, window.decoded))
        waveforms.append(_cut(waveform[None], start * window.hop, window.segment * window.hop)[0])
    return {"recorded_latents": torch.stack(latents), "recorded_waveform": torch.stack(waveforms)}


def recordings_digest(recordings: Sequence[RecordedPair]) -> str:
    """Return a digest of recordings, "" where there are none.

    `RecordedPairs` knows its own; of others every sample is read.
    """
    known = getattr(recordings, "digest", None)
    if known is not None or not recordings:
        return known or ""
    return digest(
        {f"{i}.{part}": one for i, pair in enumerate(recordings) for part, one in enumerate(pair)}
    )


def _start(frames: int, segment: int, random: np.random.Generator) -> int:
    """Draw the first frame of a segment: edges are as likely to be seen as the middle."""
    start = random.integers(-segment // 2, max(1, frames - segment // 2))
    return int(np.clip(start, 0, max(0, frames - segment)))


def _cut(tensor: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """Return columns [rows, length] of a tensor [rows, columns], zeros outside of it."""
    columns = tensor.shape[1]
    low, high = min(max(start, 0), columns), min(max(start + length, 0), columns)
    found = tensor.new_zeros(tensor.shape[0], length)
    found[:, low - start : high - start] = tensor[:, low:high]
    return found


def _padded_length(sentences: Sequence[Sized]) -> int:
    return -(-max(len(ids) for ids in sentences) // _TOKENS) * _TOKENS


def _by_token(chosen: Sequence[TeacherUtterance]) -> Batch:
    length = _padded_length([one.ids for one in chosen])

    def _padded(rows: list[torch.Tensor], axis: int = 0) -> torch.Tensor:
        shape = list(rows[0].shape)
        shape[axis] = length
        found = rows[0].new_zeros(len(rows), *shape)
        for row, tensor in zip(found, rows, strict=True):
            row.narrow(axis, 0, tensor.shape[axis]).copy_(tensor)
        return found

    names = ("ids", "hidden", "means", "log_variances", "log_durations")
    weights = [one.durations / one.durations.float().mean().clamp_min(1e-3) for one in chosen]
    return {name: _padded([getattr(one, name) for one in chosen]) for name in names} | {
        "token_mask": _padded([torch.ones(len(one.ids)) for one in chosen]),
        "weights": _padded(weights),
        "duration_noise": _padded([one.duration_noise for one in chosen], 1),
    }


def _by_frame(
    drawn: Sequence[tuple[TeacherUtterance, int]], window: Window, noise_scale: float
) -> Batch:
    """Return what goes by frame, zero outside the sentence."""
    found: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("frame_tokens", "frame_mask", "noise", "flow_latents")
    }
    for one, segment in drawn:
        start, length = segment - window.decoder - window.flow, window.flowed
        tokens = torch.repeat_interleave(torch.arange(len(one.ids)), one.durations)
        noise = draw_prior_noise(one.key, one.frames, one.latents.shape[0])[0]
        found["frame_tokens"].append(_cut(tokens[None], start, length)[0])
        found["frame_mask"].append(_cut(torch.ones(1, one.frames), start, length))
        found["noise"].append(_cut(noise, start, length) * noise_scale)
        found["flow_latents"].append(_cut(one.latents, start, length))
    return {name: torch.stack(tensors) for name, tensors in found.items()}


class TextOnlySentences:
    """Sentences that the teacher reads and does not speak, which costs a fraction.

    Text encoder and duration predictor learn from many more of them than can be spoken.

    Args:
        teacher: on the device where it is to run.
        sentences: ids of each.
        speakers: whose durations, one drawn for each sentence.
    """

    def __init__(
        self, teacher: Voice, sentences: Sequence[Sequence[int]], speakers: Sequence[int]
    ) -> None:
        self.sentences = tuple(tuple(ids[:_LONGEST]) for ids in sentences)
        self._teacher, self._speakers = teacher, tuple(speakers)
        self._pace = Delivery().for_voice(teacher)

    def draw(self, size: int, key: Key) -> Batch:
        """Return inputs and targets of text encoder and durations, on the teacher's device.

        Names are those of `draw_batch` behind TEXT_ONLY.

        Raises:
            InputError: the teacher's output is not finite.
        """
        random = np.random.default_rng((*key, _TEXT_SEED))
        chosen = [self.sentences[i] for i in random.integers(len(self.sentences), size=size)]
        length = _padded_length(chosen)
        ids, mask = torch.zeros(size, length, dtype=torch.int64), torch.zeros(size, length)
        for row, sentence in enumerate(chosen):
            ids[row, : len(sentence)] = torch.tensor(sentence)
            mask[row, : len(sentence)] = 1.0
        speakers = torch.tensor(
            [self._speakers[i] for i in random.integers(len(self._speakers), size=size)]
        )
        noises = [
            draw_duration_noise((int(random.integers(2**31)), row), length)[0]
            for row in range(size)
        ]
        given = (ids, mask, speakers, torch.stack(noises))
        read = self._read(*(tensor.to(self._teacher.device) for tensor in given))
        return {f"{TEXT_ONLY}{name}": tensor for name, tensor in read.items()}

    @torch.no_grad()
    def _read(
        self, ids: torch.Tensor, mask: torch.Tensor, speakers: torch.Tensor, noise: torch.Tensor
    ) -> Batch:
        model = self._teacher.model
        table = getattr(model, "embed_speaker", None)
        conditioning = None if table is None else table(speakers).unsqueeze(-1)
        read = model.text_encoder(
            input_ids=ids, padding_mask=mask[..., None], attention_mask=mask, return_dict=True
        )
        hidden = read.last_hidden_state
        if model.config.use_stochastic_duration_prediction:
            noise = noise * mask[:, None] * self._pace.noise_scale_duration
        else:
            noise = noise[:, :0]
        # The spline of a stochastic predictor refuses infinite inputs.
        require_finite(self._teacher, hidden, read.prior_means, read.prior_log_variances)
        logarithms = predict_log_durations(
            model, hidden.transpose(1, 2), mask[:, None], conditioning, noise
        )[:, 0]
        require_finite(self._teacher, logarithms)
        frames = torch.exp(logarithms.clamp(max=6.0)) * mask
        tokens = mask.sum(1, keepdim=True)
        return {
            "hidden": hidden * mask[..., None],
            "means": read.prior_means * mask[..., None],
            "log_variances": read.prior_log_variances * mask[..., None],
            "ids": ids,
            "token_mask": mask,
            "speaker": speakers,
            "duration_noise": noise,
            "log_durations": logarithms * mask,
            "weights": frames * tokens / frames.sum(1, keepdim=True).clamp_min(1e-3),
        }
