"""Batches: what one step sees, a function of seed, step and process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch.nn.functional import pad

from vits_prune.healing.storage import digest
from vits_prune.healing.teacher import (
    TeacherUtterance,
    decoder_context,
    flow_context,
    require_finite,
)
from vits_prune.synthesis.inference import (
    draw_duration_noise,
    draw_prior_noise,
    predict_log_durations,
)
from vits_prune.synthesis.speak import Delivery
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
    """How much of a sentence a step sees, in frames of `hop` samples.

    The decoder is judged on `segment` frames with `decoder` frames of context on each side; the
    flow has `flow` more on each side of those. So they are given `decoded` and `flowed` frames.
    """

    segment: int
    decoder: int
    flow: int
    hop: int

    @classmethod
    def of(cls, voice: Voice, segment: int) -> Window:
        """Return the window of a voice's network."""
        config = voice.model.config
        return cls(segment, decoder_context(config), flow_context(config), voice.hop_length)

    @property
    def decoded(self) -> int:
        """How many frames the decoder gets, with its context."""
        return self.segment + 2 * self.decoder

    @property
    def flowed(self) -> int:
        """How many frames the flow gets, with its context."""
        return self.decoded + 2 * self.flow


def draw_batch(
    utterances: Sequence[TeacherUtterance],
    size: int,
    key: Key,
    window: Window,
    text: bool,
    noise_scale: float = 1.0,
) -> Batch:
    """Return the batch of a step.

    Long utterances are drawn more often, so that all frames are equally likely. With `text` it has
    the inputs and targets of the text encoder, durations and flow too.

    Returns:
        Tensors on the CPU by name; C is the flow's size, T tokens, F = window.flowed:
        speaker [size]; latents [size, C, window.decoded]; waveform [size, segment * hop];
        with `text` also ids, token_mask, weights (frames of each token over their mean) and
        log_durations [size, T], hidden [size, T, hidden], means and log_variances [size, T, C],
        duration_noise [size, 2, T], frame_tokens [size, F] (token of each frame), frame_mask
        [size, 1, F], noise (scaled) and flow_latents [size, C, F].
    """
    random, hop = np.random.default_rng(key), window.hop
    frames = np.array([one.frames for one in utterances], dtype=float)
    chosen = random.choice(len(utterances), size=size, p=frames / frames.sum())
    drawn = [(utterances[i], _start(utterances[i].frames, window.segment, random)) for i in chosen]
    waveforms = [one.waveform[at * hop : (at + window.segment) * hop] for one, at in drawn]
    latents = [_cut(one.latents, at - window.decoder, window.decoded) for one, at in drawn]
    batch = {
        "speaker": torch.tensor([one.speaker for one, _ in drawn]),
        "waveform": torch.stack(waveforms),
        "latents": torch.stack(latents),
    }
    if not text:
        return batch
    return batch | _by_token([one for one, _ in drawn]) | _by_frame(drawn, window, noise_scale)


def draw_recordings(
    recordings: Sequence[RecordedPair], size: int, key: Key, window: Window
) -> Batch:
    """Return recorded_latents [size, C, window.decoded] and _waveform [size, segment * hop]."""
    random = np.random.default_rng((*key, _RECORDING_SEED))
    chosen = [recordings[i] for i in random.integers(len(recordings), size=size)]
    latents, waveforms = [], []
    for encoded, waveform in chosen:
        start = _start(encoded.shape[1], window.segment, random)
        latents.append(_cut(encoded, start - window.decoder, window.decoded))
        waveforms.append(_cut(waveform[None], start * window.hop, window.segment * window.hop)[0])
    return {"recorded_latents": torch.stack(latents), "recorded_waveform": torch.stack(waveforms)}


def recordings_digest(recordings: Sequence[RecordedPair]) -> str:
    """Return a digest of recordings, "" for none; `RecordedPairs` knows its own."""
    if not recordings or hasattr(recordings, "digest"):
        return getattr(recordings, "digest", "")
    pairs = enumerate(recordings)
    return digest({f"{i}.{part}": one for i, pair in pairs for part, one in enumerate(pair)})


def _start(frames: int, segment: int, random: np.random.Generator) -> int:
    """Draw the first frame of a segment: edges are as likely to be seen as the middle."""
    start = random.integers(-segment // 2, max(1, frames - segment // 2))
    return int(np.clip(start, 0, max(0, frames - segment)))


def _cut(tensor: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """Return columns [rows, length] of a tensor [rows, columns], zeros outside of it."""
    return pad(tensor, (-start, start + length - tensor.shape[1]))


def _padded_length(sentences: Sequence[Sized]) -> int:
    return -(-max(len(ids) for ids in sentences) // _TOKENS) * _TOKENS


def _by_token(chosen: Sequence[TeacherUtterance]) -> Batch:
    length = _padded_length([one.ids for one in chosen])

    def _padded(rows: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return rows [tokens, ...] as one tensor [rows, length, ...]."""
        return torch.stack([pad(row.t(), (0, length - len(row))).t() for row in rows])

    names = ("ids", "hidden", "means", "log_variances", "log_durations")
    weights = (one.durations / one.durations.float().mean().clamp_min(1e-3) for one in chosen)
    noise = _padded(one.duration_noise.T for one in chosen)
    return {name: _padded(getattr(one, name) for one in chosen) for name in names} | {
        "token_mask": _padded(torch.ones(len(one.ids)) for one in chosen),
        "weights": _padded(weights),
        "duration_noise": noise.transpose(1, 2).contiguous(),
    }


def _by_frame(
    drawn: Sequence[tuple[TeacherUtterance, int]], window: Window, noise_scale: float
) -> Batch:
    """Return what goes by frame, zero outside the sentence."""
    rows, length = [], window.flowed
    for one, segment in drawn:
        start = segment - window.decoder - window.flow
        tokens = torch.repeat_interleave(torch.arange(len(one.ids)), one.durations)
        noise = draw_prior_noise(one.key, one.frames, one.latents.shape[0])[0]
        rows.append(
            {
                "frame_tokens": _cut(tokens[None], start, length)[0],
                "frame_mask": _cut(torch.ones(1, one.frames), start, length),
                "noise": _cut(noise, start, length) * noise_scale,
                "flow_latents": _cut(one.latents, start, length),
            }
        )
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class TextOnlySentences:
    """Sentences that the teacher reads and does not speak, which costs a fraction.

    Text encoder and duration predictor learn from many more of them than can be spoken. Each has
    the durations of one of the speakers.
    """

    def __init__(
        self, teacher: Voice, sentences: Sequence[Sequence[int]], speakers: Sequence[int]
    ) -> None:
        self.sentences = tuple(tuple(ids[:_LONGEST]) for ids in sentences)
        self._teacher, self._speakers = teacher, tuple(speakers)
        self._pace = Delivery().for_voice(teacher)

    @torch.no_grad()
    def draw(self, size: int, key: Key) -> Batch:
        """Return inputs and targets of text encoder and durations, on the teacher's device.

        Names are those of `draw_batch` behind TEXT_ONLY. InputError: an output is not finite.
        """
        random, voice = np.random.default_rng((*key, _TEXT_SEED)), self._teacher
        chosen = [self.sentences[i] for i in random.integers(len(self.sentences), size=size)]
        length, model = _padded_length(chosen), voice.model
        rows = [pad(torch.tensor(one), (0, length - len(one))) for one in chosen]
        ids = torch.stack(rows).to(voice.device)
        masks = [(torch.arange(length) < len(one)).float() for one in chosen]
        mask = torch.stack(masks).to(voice.device)
        drawn = random.integers(len(self._speakers), size=size)
        speakers = torch.tensor([self._speakers[i] for i in drawn], device=voice.device)
        seeds = [(int(random.integers(2**31)), row) for row in range(size)]
        noise = torch.cat([draw_duration_noise(seed, length) for seed in seeds]).to(voice.device)
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
        require_finite(voice, hidden, read.prior_means, read.prior_log_variances)
        logarithms = predict_log_durations(
            model, hidden.transpose(1, 2), mask[:, None], conditioning, noise
        )[:, 0]
        require_finite(voice, logarithms)
        frames = torch.exp(logarithms.clamp(max=6.0)) * mask
        tokens = mask.sum(1, keepdim=True)
        found = {
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
        return {f"{TEXT_ONLY}{name}": tensor for name, tensor in found.items()}
