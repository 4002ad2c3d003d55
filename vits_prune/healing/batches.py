"""Batches: what one step sees of the lessons. A pure function of seed, step and process, so that nothing has to be remembered."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch

from vits_prune.healing.lessons import Lesson
from vits_prune.healing.storage import digest
from vits_prune.synthesis import draw_prior_noise

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
    lessons: Sequence[Lesson], size: int, key: tuple[int, int, int], window: Window, *, text: bool, noise_scale: float = 1.0
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
        "waveform": torch.stack([lesson.waveform[at * window.hop : (at + window.segment) * window.hop] for lesson, at in drawn]),
        "latents": torch.stack([_cut(lesson.latents, at - window.decoder, window.decoded) for lesson, at in drawn]),
    }
    return {**batch, **_tokens(chosen), **_frames(chosen, places, window, noise_scale)} if text else batch


def draw_clips(clips: Sequence[Clip], size: int, key: tuple[int, int, int], window: Window) -> Batch:
    """Segments of recordings: recorded_latents [size, C, window.decoded], recorded_waveform [size, segment * hop]."""
    random = np.random.default_rng((*key, 0xEC))
    chosen = [clips[i] for i in random.integers(len(clips), size=size)]
    found: dict[str, list[torch.Tensor]] = {"recorded_latents": [], "recorded_waveform": []}
    for latents, waveform in chosen:
        place = _place(latents.shape[1], window.segment, random)
        found["recorded_latents"].append(_cut(latents, place - window.decoder, window.decoded))
        found["recorded_waveform"].append(_cut(waveform[None], place * window.hop, window.segment * window.hop)[0])
    return {name: torch.stack(tensors) for name, tensors in found.items()}


def clips_digest(clips: Sequence[Clip]) -> str:
    """A name for recordings, empty where there are none. `Pairs` knows its own; others are looked at, every sample of them."""
    known = getattr(clips, "digest", None)
    if known is not None or not clips:
        return known or ""
    return digest({f"{index}.{part}": tensor for index, pair in enumerate(clips) for part, tensor in enumerate(pair)})


def _place(frames: int, segment: int, random: np.random.Generator) -> int:
    """Where a segment begins: edges are as likely to be seen as the middle."""
    return int(np.clip(random.integers(-segment // 2, max(1, frames - segment // 2)), 0, max(0, frames - segment)))


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
        name: _filled([getattr(lesson, name) for lesson in chosen]) for name in ("ids", "hidden", "means", "log_variances", "log_durations")
    }
    batch["token_mask"] = _filled([torch.ones(len(lesson.ids)) for lesson in chosen])
    batch["weights"] = _filled([lesson.durations / lesson.durations.float().mean().clamp_min(1e-3) for lesson in chosen])
    batch["duration_noise"] = _filled([lesson.duration_noise for lesson in chosen], 1)
    return batch


def _frames(chosen: Sequence[Lesson], places: Sequence[int], window: Window, noise_scale: float) -> Batch:
    """What goes by frame, zero outside the sentence."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in ("frame_tokens", "frame_mask", "noise", "flow_latents")}
    for lesson, place in zip(chosen, places, strict=True):
        start = place - window.decoder - window.flow
        tokens = torch.repeat_interleave(torch.arange(len(lesson.ids)), lesson.durations)
        noise = draw_prior_noise(lesson.key, lesson.frames, lesson.latents.shape[0])[0]
        found["frame_tokens"].append(_cut(tokens[None], start, window.flowed)[0])
        found["frame_mask"].append(_cut(torch.ones(1, lesson.frames), start, window.flowed))
        found["noise"].append(_cut(noise, start, window.flowed) * noise_scale)
        found["flow_latents"].append(_cut(lesson.latents, start, window.flowed))
    return {name: torch.stack(tensors) for name, tensors in found.items()}
