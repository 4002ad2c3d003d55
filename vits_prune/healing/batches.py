"""Batches: what one step sees of the lessons. A pure function of seed, step and process, so that nothing has to be remembered."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch

from vits_prune.healing.lessons import Lesson, broken_teacher
from vits_prune.healing.storage import digest
from vits_prune.synthesis.noise import draw_duration_noise, predict_log_durations
from vits_prune.synthesis.speak import Delivery, draw_prior_noise
from vits_prune.voices.voice import Voice

READ = "read_"

"""Before the names of what is read besides, see readings.py."""

_TOKENS = 32

"""Sentences are filled up to a multiple of so many tokens: oneDNN prepares its kernels anew for every shape."""

Batch = dict[str, torch.Tensor]

Clip = tuple[torch.Tensor, torch.Tensor]

"""A recording: latents [flow_size, frames] and the waveform they were read from [frames * hop]."""


@dataclass(frozen=True)
class Window:
    """How much of a sentence a step sees."""

    segment: int
    """Frames that the decoder is judged on."""
    decoder: int
    """Frames on each side of them that it is given besides."""
    flow: int
    """Frames on each side of those that the flow is given besides."""
    hop: int
    """Samples of a frame."""

    @property
    def decoded(self) -> int:
        """Frames that the decoder is given."""
        return self.segment + 2 * self.decoder

    @property
    def flowed(self) -> int:
        """Frames that the flow is given."""
        return self.decoded + 2 * self.flow


def draw_batch(
    lessons: Sequence[Lesson],
    size: int,
    key: tuple[int, int, int],
    window: Window,
    *,
    text: bool,
    noise_scale: float = 1.0,
) -> Batch:
    """The batch of a step.

    Args:
        lessons: what there is; long ones are drawn more often, so that all frames are alike.
        size: sentences.
        key: seed, step and number of the process.
        window: how much of each.
        text: whether what the text encoder, the durations and the flow need is wanted too.
        noise_scale: of the prior.

    Returns:
        By name, C the flow's size, T tokens, F = window.flowed, all on the CPU:
        speaker [size]; latents [size, C, window.decoded]; waveform [size, segment * hop];
        with `text` also ids, token_mask, weights (frames of each token over their mean), log_durations [size, T], hidden [size, T, hidden],
        means, log_variances [size, T, C], duration_noise [size, 2, T], frame_tokens [size, F] (token of each frame), frame_mask
        [size, 1, F], noise [size, C, F] (scaled) and flow_latents [size, C, F].
    """
    random = np.random.default_rng(key)
    shares = np.array([lesson.frames for lesson in lessons], dtype=float)
    chosen = [lessons[i] for i in random.choice(len(lessons), size=size, p=shares / shares.sum())]
    places = [_place(lesson.frames, window.segment, random) for lesson in chosen]
    drawn = list(zip(chosen, places, strict=True))
    batch = {
        "speaker": torch.tensor([lesson.speaker for lesson in chosen]),
        "waveform": torch.stack(
            [
                lesson.waveform[at * window.hop : (at + window.segment) * window.hop]
                for lesson, at in drawn
            ]
        ),
        "latents": torch.stack(
            [_cut(lesson.latents, at - window.decoder, window.decoded) for lesson, at in drawn]
        ),
    }
    return (
        {**batch, **_tokens(chosen), **_frames(chosen, places, window, noise_scale)}
        if text
        else batch
    )


def draw_clips(
    clips: Sequence[Clip], size: int, key: tuple[int, int, int], window: Window
) -> Batch:
    """Segments of recordings: recorded_latents [size, C, window.decoded], recorded_waveform [size, segment * hop]."""
    random = np.random.default_rng((*key, 0xEC))
    chosen = [clips[i] for i in random.integers(len(clips), size=size)]
    found: dict[str, list[torch.Tensor]] = {"recorded_latents": [], "recorded_waveform": []}
    for latents, waveform in chosen:
        place = _place(latents.shape[1], window.segment, random)
        found["recorded_latents"].append(_cut(latents, place - window.decoder, window.decoded))
        found["recorded_waveform"].append(
            _cut(waveform[None], place * window.hop, window.segment * window.hop)[0]
        )
    return {name: torch.stack(tensors) for name, tensors in found.items()}


def clips_digest(clips: Sequence[Clip]) -> str:
    """A name for recordings, empty where there are none. `Pairs` knows its own; others are looked at, every sample of them."""
    known = getattr(clips, "digest", None)
    if known is not None or not clips:
        return known or ""
    return digest(
        {
            f"{index}.{part}": tensor
            for index, pair in enumerate(clips)
            for part, tensor in enumerate(pair)
        }
    )


def _place(frames: int, segment: int, random: np.random.Generator) -> int:
    """Where a segment begins: edges are as likely to be seen as the middle."""
    return int(
        np.clip(
            random.integers(-segment // 2, max(1, frames - segment // 2)),
            0,
            max(0, frames - segment),
        )
    )


def _cut(tensor: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """[rows, length] of a tensor [rows, columns] from a column on, which may be before its first; zeros where it has nothing."""
    columns = tensor.shape[1]
    low, high = min(max(start, 0), columns), min(max(start + length, 0), columns)
    found = tensor.new_zeros(tensor.shape[0], length)
    found[:, low - start : high - start] = tensor[:, low:high]
    return found


def padded_length(sentences: Sequence[Sized]) -> int:
    """Tokens that these sentences are filled up to."""
    return -(-max(len(ids) for ids in sentences) // _TOKENS) * _TOKENS


def _tokens(chosen: Sequence[Lesson]) -> Batch:
    """What goes by token, filled up with zeros."""
    length = padded_length([lesson.ids for lesson in chosen])

    def _filled(rows: list[torch.Tensor], at: int = 0) -> torch.Tensor:
        shape = list(rows[0].shape)
        shape[at] = length
        found = rows[0].new_zeros(len(rows), *shape)
        for row, tensor in zip(found, rows, strict=True):
            row.narrow(at, 0, tensor.shape[at]).copy_(tensor)
        return found

    batch = {
        name: _filled([getattr(lesson, name) for lesson in chosen])
        for name in ("ids", "hidden", "means", "log_variances", "log_durations")
    }
    batch["token_mask"] = _filled([torch.ones(len(lesson.ids)) for lesson in chosen])
    batch["weights"] = _filled(
        [lesson.durations / lesson.durations.float().mean().clamp_min(1e-3) for lesson in chosen]
    )
    batch["duration_noise"] = _filled([lesson.duration_noise for lesson in chosen], 1)
    return batch


def _frames(
    chosen: Sequence[Lesson], places: Sequence[int], window: Window, noise_scale: float
) -> Batch:
    """What goes by frame, zero outside the sentence."""
    found: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("frame_tokens", "frame_mask", "noise", "flow_latents")
    }
    for lesson, place in zip(chosen, places, strict=True):
        start = place - window.decoder - window.flow
        tokens = torch.repeat_interleave(torch.arange(len(lesson.ids)), lesson.durations)
        noise = draw_prior_noise(lesson.key, lesson.frames, lesson.latents.shape[0])[0]
        found["frame_tokens"].append(_cut(tokens[None], start, window.flowed)[0])
        found["frame_mask"].append(_cut(torch.ones(1, lesson.frames), start, window.flowed))
        found["noise"].append(_cut(noise, start, window.flowed) * noise_scale)
        found["flow_latents"].append(_cut(lesson.latents, start, window.flowed))
    return {name: torch.stack(tensors) for name, tensors in found.items()}


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

    def __init__(
        self, teacher: Voice, sentences: Sequence[Sequence[int]], speakers: Sequence[int]
    ) -> None:
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
        speakers = torch.tensor(
            [self._speakers[i] for i in random.integers(len(self._speakers), size=size)]
        )
        noises = [
            draw_duration_noise((int(random.integers(2**31)), row), length)[0]
            for row in range(size)
        ]
        device = self._teacher.device
        read = self._read(
            ids.to(device), mask.to(device), speakers.to(device), torch.stack(noises).to(device)
        )
        return {f"{READ}{name}": tensor for name, tensor in read.items()}

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
        stochastic = model.config.use_stochastic_duration_prediction
        noise = (
            noise * mask[:, None] * self._pace.noise_scale_duration if stochastic else noise[:, :0]
        )
        finite = bool(
            torch.isfinite(
                torch.cat(
                    [
                        hidden.flatten(),
                        read.prior_means.flatten(),
                        read.prior_log_variances.flatten(),
                    ]
                )
            ).all()
        )
        if not finite:  # the spline of a stochastic predictor does not take what is no number
            raise broken_teacher(self._teacher)
        logarithms = predict_log_durations(
            model, hidden.transpose(1, 2), mask[:, None], conditioning, noise
        )[:, 0]
        if not bool(torch.isfinite(logarithms).all()):
            raise broken_teacher(self._teacher)
        frames = torch.exp(logarithms.clamp(max=6.0)) * mask
        found = {
            "hidden": hidden,
            "means": read.prior_means,
            "log_variances": read.prior_log_variances,
        }
        return {name: tensor * mask[..., None] for name, tensor in found.items()} | {
            "ids": ids,
            "token_mask": mask,
            "speaker": speakers,
            "duration_noise": noise,
            "log_durations": logarithms * mask,
            "weights": frames
            * mask.sum(1, keepdim=True)
            / frames.sum(1, keepdim=True).clamp_min(1e-3),
        }
