"""The teacher's speech: texts to learn from, and what the original makes of them at every stage."""

from __future__ import annotations

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
from vits_prune.pruning.blocks import sentence_ids
from vits_prune.synthesis.inference import (
    draw_duration_noise,
    encode,
    log_durations,
    predict_durations,
    sample_latents,
    speaker_embedding,
)
from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.texts import load_calibration_texts
from vits_prune.voices.voice import Voice, draw_texts, spoken_language

if TYPE_CHECKING:
    from vits_prune.voices.architecture import VitsConfig

MAX_FRAMES = 600
"""The rest of a longer sentence is not spoken."""
MAX_TOKENS = 400
"""Longer sentences are left out."""
SHARD = 16
"""Sentences in a file."""
MAX_SPEECH_BYTES = 1 << 30
"""Of speech in memory; further sentences are not spoken."""
_FORMAT = 2
"""Of the files: those of another format are not read."""
_FOLDER = re.compile(r"[0-9a-f]{32}")
_ROUND = 32
"""Frames are padded to a multiple: oneDNN prepares its kernels anew for every shape."""
_MAX_CONTEXT = 64
"""In frames. More costs more than the last few percent of exactness are worth."""
_WORDS = (4, 10)
"""Fewest words of a new sentence, and one more than the most: as in a Harvard sentence."""
_ENOUGH_WORDS = 20
_UNSPACED = re.compile(
    r"\[\[|[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf"
    r"\u4e00-\u9fff\uf900-\ufaff]"
)
"""Where blanks do not separate words: phonemes in [[ ]], Thai, Lao, Tibetan, Burmese, Khmer,
Japanese and Chinese."""
_OTHER_SEED = 1_000_003

log = logging.getLogger(__name__)


def training_texts(
    voice: Voice, texts: Sequence[str] | None, count: int, seed: int
) -> tuple[str, ...]:
    """Return `count` texts to learn from, in the order in which they are used.

    New sentences of the same words follow the given ones: words in new orders teach sounds as well
    as meaningful sentences, and there is no end to them. Without texts they are built-in English
    sentences or, in other languages, random ones.

    Raises:
        InputError: there are none, or the voice has no symbols to draw from.
    """
    if texts is not None and not any(text.strip() for text in texts):
        raise InputError("There are no texts to learn from: give some, or leave them out.")
    if texts is None and spoken_language(voice) != "en":
        return draw_texts(voice, count, seed)
    given = _given(texts)
    random = np.random.default_rng((seed, 0xC0))
    chosen = [given[i] for i in random.permutation(len(given))[:count]]
    if texts is not None and len(chosen) < len(given):
        log.warning(
            "%d of %d texts are left out, for the plan has %d lessons: ask for more lessons.",
            len(given) - count, len(given), count,
        )  # fmt: skip
    new = _new_sentences(given, count - len(chosen), random)
    mixed = [*chosen, *new]
    return tuple(mixed[i] for i in random.permutation(len(mixed))) if new else tuple(chosen)


def other_texts(
    voice: Voice, texts: Sequence[str] | None, count: int, seed: int
) -> tuple[str, ...]:
    """Return texts like those of `training_texts` that are not among them.

    Where a user's texts have too few words to make others of, they are returned themselves.
    """
    if texts is None and spoken_language(voice) != "en":
        return draw_texts(voice, count, seed + _OTHER_SEED)
    given = _given(texts)
    new = _new_sentences(given, count, np.random.default_rng((seed, 0xC1)))
    return new or tuple(given[:count])


def _given(texts: Sequence[str] | None) -> list[str]:
    return [text for text in (load_calibration_texts() if texts is None else texts) if text.strip()]


def _new_sentences(
    given: Sequence[str], count: int, random: np.random.Generator
) -> tuple[str, ...]:
    """Return sentences of the words of others; none if they have too few words."""
    spaced = " ".join(text for text in given if not _UNSPACED.search(text))
    words = [word for one in spaced.split() if (word := one.strip(".,;:!?\"'()«»“”…。！？"))]
    if len(set(words)) < _ENOUGH_WORDS:
        return ()
    sentences = (random.integers(len(words), size=random.integers(*_WORDS)) for _ in range(count))
    return tuple(" ".join(words[i] for i in drawn) + "." for drawn in sentences)


@dataclass(frozen=True, eq=False)
class TeacherUtterance:
    """One sentence as the teacher says it. Tensors are float32 unless noted, and on the CPU.

    Args:
        key: seed and number of the sentence, from which its noise is drawn.
        ids: int64 [tokens].
        durations: frames of each token, int64 [tokens].
        hidden: states of the text encoder, [tokens, hidden].
        means: of the prior, [tokens, flow_size].
        log_variances: VITS' name for logarithms of the prior's standard deviations.
        log_durations: [tokens].
        duration_noise: input of a stochastic predictor, [2, tokens]; otherwise [0, tokens].
        latents: the flow's output for the sampled prior, [flow_size, frames].
        waveform: the decoder's output for the latents with zeros around them, [samples].
    """

    key: tuple[int, int]
    speaker: int
    ids: torch.Tensor
    durations: torch.Tensor
    hidden: torch.Tensor
    means: torch.Tensor
    log_variances: torch.Tensor
    log_durations: torch.Tensor
    duration_noise: torch.Tensor
    latents: torch.Tensor
    waveform: torch.Tensor

    @property
    def frames(self) -> int:
        """The number of frames."""
        return self.latents.shape[1]

    @property
    def bytes(self) -> int:
        """The memory that the tensors take."""
        return sum(getattr(self, name).nbytes for name in _TENSORS)


_TENSORS = tuple(field.name for field in dataclasses.fields(TeacherUtterance)[2:])


class TeacherSpeech:
    """A teacher's utterances, each made when it is first needed, in a fixed order.

    Args:
        teacher: on the device where it is to run.
        texts: what to say; InputError if the voice can say none of them.
        seed: of the noise and of the speakers.
        segment: least frames of a waveform.
        speakers: "all" or "own", as in HealPlan.
        folder: where to keep the utterances; None for memory alone.
    """

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
        self.teacher, self.seed, self.segment, self._folder = teacher, seed, segment, folder
        every = sentence_ids(teacher, texts)
        self.sentences = [ids for ids in every if len(ids) <= MAX_TOKENS]
        if not self.sentences:
            raise InputError(f"All sentences have more than {MAX_TOKENS} symbols: shorten them.")
        if left_out := len(every) - len(self.sentences):
            log.warning(
                "%d of %d sentences have more than %d symbols and are left out.",
                left_out, len(every), MAX_TOKENS,
            )  # fmt: skip
        count = len(self.sentences)
        random, own = np.random.default_rng((seed, 0x5E)), teacher.speaker or 0
        drawn = random.integers(max(1, len(teacher.speakers)), size=count).tolist()
        every_second = [own if index % 2 == 0 else one for index, one in enumerate(drawn)]
        self.speakers = [own] * count if speakers == "own" else every_second
        self._made: list[TeacherUtterance] = []
        self._bytes, self._full = 0, False

    @functools.cached_property
    def content(self) -> str:
        """A digest of what is said, by whom and how."""
        pace = dataclasses.astuple(Delivery().for_voice(self.teacher))
        facts = (_FORMAT, self.sentences, self.speakers, self.seed, self.segment, pace)
        return digest(self.teacher.model.state_dict(), *facts)

    @property
    def digest(self) -> str:
        """A digest of everything that decides the bits, torch's threads included."""
        device = str(self.teacher.device)
        return digest({}, self.content, torch.__version__, torch.get_num_threads(), device)

    def __len__(self) -> int:
        """Return how many utterances there will be."""
        return len(self._made) if self._full else len(self.sentences)

    def first(self, count: int) -> Sequence[TeacherUtterance]:
        """Return the first utterances, as many as there are and as memory can hold."""
        while len(self._made) < min(count, len(self)):
            self._add(len(self._made) // SHARD)
        return self._made[:count] if count < len(self._made) else self._made

    def tidy(self) -> None:
        """Remove other teachers' files."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if _FOLDER.fullmatch(path.name) and path.is_dir() and path.name != self.digest:
                shutil.rmtree(path, ignore_errors=True)

    def _add(self, shard: int) -> None:
        numbers = range(shard * SHARD, min((shard + 1) * SHARD, len(self.sentences)))
        path = self._folder and self._folder / self.digest / f"lessons-{shard:04}.safetensors"
        found = self._read(path, numbers) if path else None
        if found is None:
            found = [self._say(number) for number in numbers]
            if path:
                self._write(path, found)
        for utterance in found:
            self._bytes += utterance.bytes
            self._full = bool(self._made) and self._bytes > MAX_SPEECH_BYTES
            if self._full:
                return
            self._made.append(utterance)

    def _write(self, path: Path, found: Sequence[TeacherUtterance]) -> None:
        tensors = {f"{one.key[1]}.{name}": getattr(one, name) for one in found for name in _TENSORS}
        try:
            write_tensors(path, tensors, {"lessons": len(found)})
        except InputError as error:
            log.warning("The teacher's speech is kept in memory alone: %s", error)
            self._folder = None

    def _read(self, path: Path, numbers: range) -> list[TeacherUtterance] | None:
        """Return the utterances of a file; None if it is missing or damaged."""
        read = read_tensors(path, MAX_SPEECH_BYTES)
        names = {f"{number}.{name}" for number in numbers for name in _TENSORS}
        if read is None or set(read[0]) != names:
            return None
        stored = ({name: read[0][f"{number}.{name}"] for name in _TENSORS} for number in numbers)
        return [
            TeacherUtterance((self.seed, number), self.speakers[number], **tensors)
            for number, tensors in zip(numbers, stored, strict=True)
        ]

    @torch.no_grad()
    def _say(self, number: int) -> TeacherUtterance:
        key, ids, speaker = (self.seed, number), self.sentences[number], self.speakers[number]
        voice = self.teacher
        if voice.speakers:
            voice = dataclasses.replace(voice, speaker=speaker)
        config, model = voice.model.config, voice.model
        pace, conditioning = Delivery().for_voice(voice), speaker_embedding(voice)
        hidden, means, log_variances = encode(voice, ids)
        require_finite(voice, hidden)
        try:
            durations, _ = predict_durations(voice, hidden, conditioning, key, pace, MAX_FRAMES)
            logarithms = log_durations(model, hidden, conditioning, key, pace)
        except ValueError as error:  # the spline of a stochastic predictor refuses infinite inputs
            raise _broken(voice) from error
        prior, scale = (means, log_variances), pace.noise_scale
        latents = sample_latents(voice, *prior, durations, conditioning, key, scale)
        context = decoder_context(config)
        waveform = model.decoder(_padded(latents, context, self.segment), conditioning)[0, 0]
        require_finite(voice, logarithms, latents, waveform)
        noise = torch.zeros(0, len(ids))
        if config.use_stochastic_duration_prediction:
            noise = draw_duration_noise(key, len(ids))[0] * pace.noise_scale_duration
        edge = context * voice.hop_length
        return TeacherUtterance(
            key=key,
            speaker=speaker,
            ids=torch.tensor(ids),
            durations=torch.from_numpy(durations),
            hidden=hidden[0].T.cpu(),
            means=means[0].cpu(),
            log_variances=log_variances[0].cpu(),
            log_durations=logarithms[0, 0].cpu(),
            duration_noise=noise,
            latents=latents[0].cpu(),
            waveform=waveform[edge : len(waveform) - edge].float().cpu(),
        )


def require_finite(teacher: Voice, *outputs: torch.Tensor) -> None:
    """Raise InputError if an output of the teacher is not finite."""
    if not all(bool(torch.isfinite(one).all()) for one in outputs):
        raise _broken(teacher)


def _broken(teacher: Voice) -> InputError:
    return InputError(f"The output of {teacher.name} is not finite: load the voice again.")


def _padded(latents: torch.Tensor, context: int, segment: int) -> torch.Tensor:
    """Return latents [1, flow_size, frames] with zeros on both sides, up to a round length."""
    frames = latents.shape[2]
    whole = max(segment, -(-frames // _ROUND) * _ROUND)
    return torch.nn.functional.pad(latents, (context, whole - frames + context))


def decoder_context(config: VitsConfig) -> int:
    """Return the frames on each side of a sample that it depends on (HiFi-GAN's generator)."""
    plain = getattr(config, "resblock", "1") == "2"  # one convolution per dilation, not two
    frames, rate = 3.0, 1
    blocks = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
    for stride, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        frames += math.ceil(kernel / stride / 2) / rate
        rate *= stride
        frames += max(
            (size - 1) // 2 * sum(one + (not plain) for one in dilations) / rate
            for size, dilations in blocks
        )
    return min(_MAX_CONTEXT, math.ceil(frames + 3 / rate))


def flow_context(config: VitsConfig) -> int:
    """Return the frames on each side of a frame of the latents that it depends on."""
    side = (config.wavenet_kernel_size - 1) // 2
    layers = range(config.prior_encoder_num_wavenet_layers)
    one = sum(side * config.wavenet_dilation_rate**layer for layer in layers)
    return min(_MAX_CONTEXT, one * config.prior_encoder_num_flows)
