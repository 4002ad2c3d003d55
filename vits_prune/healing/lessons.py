"""Lessons: what a teacher makes of a sentence at every stage, with fixed noise, made once and kept on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.healing.storage import digest, read_tensors, write_tensors
from vits_prune.pruning.calibration import sentence_ids
from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.stages import (
    draw_duration_noise,
    encode,
    log_durations,
    predict_durations,
    sample_latents,
    speaker_embedding,
)
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from vits_prune.voices.architecture import VitsConfig


MAX_FRAMES = 600

"""Longest lesson; what a sentence has beyond that is left unsaid."""

MAX_TOKENS = 400

"""Sentences with more symbols are passed over."""

SHARD = 16

"""Lessons in a file."""

MAX_BYTES = 1 << 30

"""Lessons that are held; with more to come the first so many are made do."""

_FORMAT = 2

"""Of what a lesson holds and how it is made: files of another are not read."""

_FOLDER = re.compile(r"[0-9a-f]{32}")

_ROUND = 32

"""Frames are filled up to a multiple of this: oneDNN prepares its kernels anew for every shape."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Lesson:
    """One sentence as the teacher says it. All tensors are on the CPU, float32 where nothing else is said."""

    key: tuple[int, int]
    """Seed and number of the sentence, which its noise comes from."""
    speaker: int
    """Index of the speaker, 0 for a voice with one."""
    ids: torch.Tensor
    """int64 [tokens]"""
    durations: torch.Tensor
    """Frames of each token, int64 [tokens]."""
    hidden: torch.Tensor
    """Of the text encoder, [tokens, hidden]."""
    means: torch.Tensor
    """Of the prior, [tokens, flow_size]."""
    log_variances: torch.Tensor
    """Of the prior (VITS' name; logarithms of deviations), [tokens, flow_size]."""
    log_durations: torch.Tensor
    """[tokens]"""
    duration_noise: torch.Tensor
    """Given to a stochastic predictor, [2, tokens]; [0, tokens] for a plain one."""
    latents: torch.Tensor
    """What the flow makes of the sampled prior, [flow_size, frames]."""
    waveform: torch.Tensor
    """What the decoder makes of the latents with silence (zeros) around them, [samples], at least one segment."""

    @property
    def frames(self) -> int:
        return self.latents.shape[1]

    @property
    def bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in _TENSORS)


_TENSORS = tuple(
    field.name for field in dataclasses.fields(Lesson) if field.name not in ("key", "speaker")
)  # fmt: skip


class Lessons:
    """A teacher's lessons, each made when it is first asked for, in a fixed order."""

    def __init__(
        self,
        teacher: Voice,
        texts: Sequence[str],
        *,
        seed: int,
        segment: int,
        speakers: str = "all",
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            teacher: who speaks; on the device where it is to run.
            texts: what to say.
            seed: of the noise and of whose turn it is.
            segment: frames that a decoder's segment has: no lesson's waveform is shorter.
            speakers: "all" or "own", as in HealPlan.
            folder: where to keep them, and none of other lessons; None for in memory alone.

        Raises:
            InputError: the voice can say nothing of the texts.
        """
        self.teacher, self.seed, self.segment = teacher, seed, segment
        every = sentence_ids(teacher, texts)
        self._ids = [ids for ids in every if len(ids) <= MAX_TOKENS]
        if not self._ids:
            raise InputError(
                f"All sentences have more than {MAX_TOKENS} symbols: write shorter ones, one a line."
            )
        if len(self._ids) < len(every):
            log.warning(
                "%d of %d sentences have more than %d symbols and are left out.",
                len(every) - len(self._ids),
                len(every),
                MAX_TOKENS,
            )
        random = np.random.default_rng((seed, 0x5E))
        own = teacher.speaker or 0
        drawn = random.integers(max(1, len(teacher.speakers)), size=len(self._ids)).tolist()
        self._speakers = [
            own if speakers == "own" or index % 2 == 0 else drawn[index]
            for index in range(len(self._ids))
        ]
        self._made: list[Lesson] = []
        self._bytes, self._full = 0, False
        self._folder = folder

    @property
    def sentences(self) -> Sequence[tuple[int, ...]]:
        """Ids of what is said."""
        return self._ids

    @property
    def spoken_by(self) -> Sequence[int]:
        """Index of the speaker of each sentence."""
        return self._speakers

    @functools.cached_property
    def content(self) -> str:
        """A name for what is said, by whom and how."""
        pace = dataclasses.astuple(Delivery().for_voice(self.teacher))
        return digest(
            self.teacher.model.state_dict(),
            _FORMAT,
            self._ids,
            self._speakers,
            self.seed,
            self.segment,
            pace,
        )

    @property
    def digest(self) -> str:
        """A name for all that these lessons depend on to the bit, torch's threads included."""
        return digest(
            {}, self.content, torch.__version__, torch.get_num_threads(), str(self.teacher.device)
        )

    def __len__(self) -> int:
        """How many there will be."""
        return len(self._made) if self._full else len(self._ids)

    def first(self, count: int) -> Sequence[Lesson]:
        """The first lessons, made where they are not there yet; fewer where there are no more, or no more can be held.

        Raises:
            InputError: the teacher makes what is no finite number.
        """
        while len(self._made) < min(count, len(self)):
            self._add(len(self._made) // SHARD)
        return self._made[:count] if count < len(self._made) else self._made

    def _add(self, shard: int) -> None:
        """Read or make the lessons of a shard. They are in memory: a disk that does not take them costs no more than making them anew."""
        numbers = range(shard * SHARD, min((shard + 1) * SHARD, len(self._ids)))
        path = (
            None
            if self._folder is None
            else self._folder / self.digest / f"lessons-{shard:04}.safetensors"
        )
        found = None if path is None else self._read(path, numbers)
        if found is None:
            found = [self._make(number) for number in numbers]
            if path is not None:
                tensors = {
                    f"{lesson.key[1]}.{name}": getattr(lesson, name)
                    for lesson in found
                    for name in _TENSORS
                }
                try:
                    write_tensors(path, tensors, {"lessons": len(found)})
                except InputError as error:
                    log.warning(
                        "Lessons are kept in memory alone, and made anew after a stop: %s", error
                    )
                    self._folder = None
        for lesson in found:
            if self._made and self._bytes + lesson.bytes > MAX_BYTES:
                self._full = True
                return
            self._made.append(lesson)
            self._bytes += lesson.bytes

    def tidy(self) -> None:
        """Remove what is on disk of other lessons and of writing that was killed."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if _FOLDER.fullmatch(path.name) and path.is_dir() and path.name != self.digest:
                shutil.rmtree(path, ignore_errors=True)
        for path in (self._folder / self.digest).glob(".lessons-*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _read(self, path: Path, numbers: range) -> list[Lesson] | None:
        """A shard from disk, None where there is none or it is damaged."""
        read = read_tensors(path, MAX_BYTES)
        if read is None or set(read[0]) != {
            f"{number}.{name}" for number in numbers for name in _TENSORS
        }:
            return None
        tensors = read[0]
        return [
            Lesson(
                key=(self.seed, number),
                speaker=self._speakers[number],
                **{name: tensors[f"{number}.{name}"] for name in _TENSORS},
            )
            for number in numbers
        ]

    def _make(self, number: int) -> Lesson:
        with torch.inference_mode():
            made = self._say(number)
        return dataclasses.replace(
            made, **{name: getattr(made, name).clone() for name in _TENSORS}
        )  # clones outside may be trained on

    def _say(self, number: int) -> Lesson:
        """One sentence through the teacher's stages."""
        key, ids, speaker = (self.seed, number), self._ids[number], self._speakers[number]
        voice = (
            dataclasses.replace(self.teacher, speaker=speaker)
            if self.teacher.speakers
            else self.teacher
        )
        pace, conditioning = Delivery().for_voice(voice), speaker_embedding(voice)
        broken = broken_teacher(voice)
        hidden, means, log_variances = encode(voice, ids)
        if not bool(torch.isfinite(hidden).all()):
            raise broken
        try:
            durations, _ = predict_durations(voice, hidden, conditioning, key, pace, MAX_FRAMES)
            logarithms = log_durations(voice.model, hidden, conditioning, key, pace)
        except (
            ValueError
        ) as error:  # the spline of a stochastic predictor does not take what is no number
            raise broken from error
        latents = sample_latents(
            voice, means, log_variances, durations, conditioning, key, pace.noise_scale
        )
        waveform = voice.model.decoder(
            padded(latents, decoder_reach(voice.model.config), self.segment), conditioning
        )[0, 0]
        reach = decoder_reach(voice.model.config) * voice.hop_length
        if not all(bool(torch.isfinite(one).all()) for one in (logarithms, latents, waveform)):
            raise broken
        stochastic = voice.model.config.use_stochastic_duration_prediction
        return Lesson(
            key=key,
            speaker=speaker,
            ids=torch.tensor(ids),
            durations=torch.from_numpy(durations),
            hidden=hidden[0].T.cpu(),
            means=means[0].cpu(),
            log_variances=log_variances[0].cpu(),
            log_durations=logarithms[0, 0].cpu(),
            duration_noise=draw_duration_noise(key, len(ids))[0] * pace.noise_scale_duration
            if stochastic
            else torch.zeros(0, len(ids)),
            latents=latents[0].cpu(),
            waveform=waveform[reach : len(waveform) - reach].float().cpu(),
        )


def broken_teacher(voice: Voice) -> InputError:
    """The refusal of a teacher that makes what is no number."""
    return InputError(
        f"{voice.name} makes what is no finite number when it speaks: a broken voice can teach nothing, load it anew."
    )


def padded(latents: torch.Tensor, reach: int, segment: int) -> torch.Tensor:
    """Latents [1, flow_size, frames] with `reach` zeros on each side and zeros behind up to a round number of frames."""
    frames = latents.shape[2]
    whole = max(segment, -(-frames // _ROUND) * _ROUND)
    return torch.nn.functional.pad(latents, (reach, whole - frames + reach))


_MOST = 64

"""A context beyond this is cut off: it costs more than the last few percent of exactness are worth."""


def decoder_reach(config: VitsConfig) -> int:
    """Frames that a sample depends on, beyond its own, on each side (HiFi-GAN's generator)."""
    plain = getattr(config, "resblock", "1") == "2"  # one convolution a step, not two
    frames, rate = 3.0, 1
    for stride, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        frames += math.ceil(kernel / stride / 2) / rate
        rate *= stride
        frames += (
            max(
                sum((size - 1) // 2 * (dilation + (0 if plain else 1)) for dilation in dilations)
                for size, dilations in zip(
                    config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
                )
            )
            / rate
        )
    return min(_MOST, math.ceil(frames + 3 / rate))


def flow_reach(config: VitsConfig) -> int:
    """Frames that a frame of the latents depends on, beyond its own, on each side."""
    side = (config.wavenet_kernel_size - 1) // 2
    one = sum(
        side * config.wavenet_dilation_rate**layer
        for layer in range(config.prior_encoder_num_wavenet_layers)
    )
    return min(_MOST, one * config.prior_encoder_num_flows)
