"""speak: a Voice and a text become Speech, with the noise given by a seed and the seconds of every stage."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.synthesis.noise import (
    PRIOR_NOISE,
    draw_duration_noise,
    draw_noise,
    predict_log_durations,
)
from vits_prune.voices.voice import Sentence, Voice

if TYPE_CHECKING:
    import torch

STAGES = ("text", "durations", "flow", "decoder")
"""The stages of synthesis, in order: text is tokeniser and text encoder, durations the duration predictor."""

MAX_CHARACTERS = 5_000
MAX_SENTENCE_SECONDS = 60.0
MAX_SPEECH_SECONDS = 900.0
"""Where durations run away, a sentence and a whole text end here; 5,000 characters at a calm pace are about 400 seconds."""
MAX_ACTIVATION = 1 << 27
"""Numbers of the largest activation of a sentence (512 MiB of float32); far above any published voice's 60 seconds."""
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, eq=False)
class SpokenSentence:
    """One sentence as it was spoken."""

    text: str
    tokens: tuple[str, ...]
    durations: np.ndarray
    """Frames of each token, int64 [tokens]."""
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Speech:
    """What a voice said."""

    waveform: np.ndarray
    """float32 [samples], in [-1, 1]."""
    sampling_rate: int
    """Samples per second."""
    durations: np.ndarray
    """Frames of each token of all sentences, int64 [tokens]; a frame is `hop_length` samples."""
    hop_length: int
    seconds: dict[str, float]
    """Wall-clock seconds that each of STAGES took."""
    sentences: tuple[SpokenSentence, ...]
    dropped: tuple[str, ...] = ()
    """Characters or phonemes that the voice has no symbol for."""
    cut_short: bool = False
    """Whether durations ran away and a sentence was ended at MAX_SENTENCE_SECONDS, or the text at MAX_SPEECH_SECONDS."""

    @property
    def audio_seconds(self) -> float:
        """Length of the speech in seconds."""
        return len(self.waveform) / self.sampling_rate

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(token for sentence in self.sentences for token in sentence.tokens)

    def pcm16(self) -> np.ndarray:
        """The waveform as 16-bit integers, int16 [samples], at its own level: never normalised."""
        return np.round(np.clip(np.nan_to_num(self.waveform), -1.0, 1.0) * 32767.0).astype(np.int16)


@dataclass(frozen=True)
class Delivery:
    """How a voice is asked to speak; None keeps the voice's own value."""

    speaking_rate: float | None = None
    """Speed of speech: 1 is the voice's training pace, 2 twice as fast (0.25 to 4)."""
    noise_scale: float | None = None
    """Standard deviation of the prior noise: variation of the sound (0 to 2)."""
    noise_scale_duration: float | None = None
    """Standard deviation of the duration noise: variation of the rhythm (0 to 2); of no effect without a stochastic predictor."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("speaking_rate", 0.25, 4.0),
            ("noise_scale", 0.0, 2.0),
            ("noise_scale_duration", 0.0, 2.0),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not low <= value <= high
            ):
                raise InputError(
                    f"{name} must be a number from {low:g} to {high:g}, not {str(value)[:40]!r}."
                )

    def for_voice(self, voice: Voice) -> Pace:
        """The voice's own values where this has None. Those are taken as they are: a publisher may go beyond what is asked of a user."""
        model = voice.model
        return Pace(*(
            float(getattr(model, name)) if getattr(self, name) is None else float(getattr(self, name))
            for name in ("speaking_rate", "noise_scale", "noise_scale_duration")
        ))  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """What a Delivery comes to for one voice."""

    speaking_rate: float
    noise_scale: float
    noise_scale_duration: float


def speak(
    voice: Voice,
    text: str,
    seed: int = 0,
    delivery: Delivery = Delivery(),
    *,
    timing: Literal["own"] | Speech = "own",
    progress: Progress = SILENT,
) -> Speech:
    """Speak a text.

    The noise comes from the seed alone (numpy's Philox generator, one stream a sentence and
    purpose, drawn frame by frame): it depends neither on torch's global state nor on the length of
    the utterance, so equal weights give equal samples.

    Args:
        voice: who speaks.
        text: at most MAX_CHARACTERS characters; it is spoken sentence by sentence.
        seed: 0 to 2**32 - 1.
        delivery: speaking rate and noise scales.
        timing: "own" for the voice's own durations, or the Speech of another voice on the same
            text whose durations are used, so that the two are sample-aligned.
        progress: told of each sentence.

    Raises:
        InputError: nothing to say, too much to say, a value out of range, or a `timing` of
            another text.
    """
    sentences = speak_sentences(voice, text, seed, delivery, timing=timing, progress=progress)
    return join(list(sentences))


def speak_sentences(
    voice: Voice,
    text: str,
    seed: int = 0,
    delivery: Delivery = Delivery(),
    *,
    timing: Literal["own"] | Speech = "own",
    progress: Progress = SILENT,
    always_predict: bool = False,
) -> Iterator[Speech]:
    """Speak a text like `speak`, one Speech a sentence as soon as it is done.

    With `always_predict` the duration predictor runs even if `timing` makes its answer useless:
    for measuring its cost.
    """
    seed = checked_seed(seed)
    pace = delivery.for_voice(voice)
    start = time.perf_counter()
    sentences, dropped = read_text(voice, text)
    durations = _locked_durations(timing, sentences)
    reading = time.perf_counter() - start
    frames_left = int(MAX_SPEECH_SECONDS * voice.sampling_rate / voice.hop_length)
    for index, sentence in enumerate(progress.track(sentences, "sentence")):
        locked = None if durations is None else durations[index]
        speech = _speak_sentence(
            voice, sentence, (seed, index), pace, locked, always_predict, frames_left
        )
        frames_left -= int(speech.durations.sum())
        if index == 0:
            speech.seconds["text"] += reading
            speech = dataclasses.replace(speech, dropped=dropped)
        yield speech
    progress.report("spoken", 1.0)


def join(pieces: list[Speech]) -> Speech:
    """Several pieces of one speech as one, end to end."""
    first = pieces[0]
    return Speech(
        waveform=np.concatenate([piece.waveform for piece in pieces]),
        sampling_rate=first.sampling_rate,
        durations=np.concatenate([piece.durations for piece in pieces]),
        hop_length=first.hop_length,
        seconds={stage: sum(piece.seconds[stage] for piece in pieces) for stage in STAGES},
        sentences=tuple(sentence for piece in pieces for sentence in piece.sentences),
        dropped=tuple(dict.fromkeys(symbol for piece in pieces for symbol in piece.dropped)),
        cut_short=any(piece.cut_short for piece in pieces),
    )


def checked_seed(seed: object) -> int:
    """The seed as an int.

    Raises:
        InputError: not a whole number from 0 to MAX_SEED.
    """
    if (
        isinstance(seed, bool)
        or not isinstance(seed, (int, float, np.integer))
        or not 0 <= seed <= MAX_SEED
        or seed != int(seed)
    ):
        raise InputError(
            f"The seed must be a whole number from 0 to {MAX_SEED}, not {str(seed)[:40]!r}."
        )
    return int(seed)


def checked_text(text: object) -> str:
    """The text itself.

    Raises:
        InputError: it is empty or too long, or holds what no file can (half of a surrogate pair).
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("There is no text to speak: type a sentence.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(
            "The text holds characters that are not valid Unicode: type it again, in UTF-8."
        )
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"The text has {len(text):,} characters and the limit is {MAX_CHARACTERS:,}: speak it in pieces."
        )
    return text


def read_text(voice: Voice, text: str) -> tuple[list[Sentence], tuple[str, ...]]:
    """The sentences of a text that the voice can say, and the symbols that it has none for.

    Raises:
        InputError: it is empty or too long, or nothing in it can be said.
    """
    found = list(voice.tokenizer.sentences(checked_text(text)))
    dropped = tuple(dict.fromkeys(symbol for sentence in found for symbol in sentence.dropped))
    sayable = [sentence for sentence in found if sentence.ids]
    if not sayable:
        raise InputError(
            f"{voice.name} can say nothing in this text: write words in the voice's own language and script."
        )
    return sayable, dropped


def _locked_durations(
    timing: Literal["own"] | Speech, sentences: list[Sentence]
) -> list[np.ndarray] | None:
    if isinstance(timing, str) and timing == "own":
        return None
    if not isinstance(timing, Speech):
        raise InputError("timing is 'own' or the Speech whose durations are to be used.")
    if [s.ids for s in timing.sentences] != [s.ids for s in sentences]:
        raise InputError(
            "The Speech given as timing belongs to another text or another kind of voice: speak this very text first."
        )
    return [sentence.durations for sentence in timing.sentences]


def _speak_sentence(
    voice: Voice,
    sentence: Sentence,
    key: tuple[int, int],
    pace: Pace,
    locked: np.ndarray | None,
    always_predict: bool,
    most_frames: int,
) -> Speech:
    """One sentence through the four stages, each timed."""
    import torch

    clock = _StageClock(voice.device)
    with torch.inference_mode():
        conditioning = speaker_embedding(voice)
        hidden, means, log_variances = encode(voice, sentence.ids)
        clock.lap("text")
        durations, cut_short = locked, False
        if locked is None or always_predict:
            durations, cut_short = predict_durations(
                voice, hidden, conditioning, key, pace, most_frames
            )
        if locked is not None:
            durations, cut_short = locked, False
        clock.lap("durations")
        latents = sample_latents(
            voice, means, log_variances, durations, conditioning, key, pace.noise_scale
        )
        clock.lap("flow")
        waveform = voice.model.decoder(latents, conditioning)[0, 0].float().cpu().numpy()
        clock.lap("decoder")
    spoken = SpokenSentence(sentence.text, sentence.tokens, durations, sentence.ids)
    return Speech(
        waveform,
        voice.sampling_rate,
        durations,
        voice.hop_length,
        clock.seconds,
        (spoken,),
        cut_short=cut_short,
    )


class _StageClock:
    """Seconds between laps; waits for the GPU where there is one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def lap(self, stage: str) -> None:
        now = self._now()
        self.seconds[stage] = now - self._last
        self._last = now


def speaker_embedding(voice: Voice) -> torch.Tensor | None:
    """What the voice's speaker is told by: [1, speaker_embedding_size, 1], None for a voice with one speaker."""
    import torch

    if voice.speaker is None:
        return None
    return voice.model.embed_speaker(torch.tensor([voice.speaker], device=voice.device)).unsqueeze(
        -1
    )


def encode(voice: Voice, ids: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text encoder: hidden states [1, hidden, tokens], prior means and log-variances [1, tokens, flow_size]."""
    import torch

    input_ids = torch.tensor([ids], device=voice.device)
    padding_mask = torch.ones(1, len(ids), 1, dtype=voice.model.dtype, device=voice.device)
    output = voice.model.text_encoder(
        input_ids=input_ids, padding_mask=padding_mask, attention_mask=None, return_dict=True
    )
    return output.last_hidden_state.transpose(1, 2), output.prior_means, output.prior_log_variances


def predict_durations(
    voice: Voice,
    hidden: torch.Tensor,
    conditioning: torch.Tensor | None,
    key: tuple[int, int],
    pace: Pace,
    most_frames: int,
) -> tuple[np.ndarray, bool]:
    """Frames of each token, int64 [tokens], and whether the sentence had to be ended at MAX_SENTENCE_SECONDS or at `most_frames`."""
    import torch

    mask = torch.ones(1, 1, hidden.shape[2], dtype=hidden.dtype, device=hidden.device)
    logarithms = log_durations(voice.model, hidden, conditioning, key, pace)
    frames = torch.ceil(torch.exp(logarithms) * mask * (1.0 / pace.speaking_rate))[0, 0]
    limit = max(
        1,
        min(
            most_frames,
            int(MAX_SENTENCE_SECONDS * voice.sampling_rate / voice.hop_length),
            _frames_that_fit(voice),
        ),
    )
    # A heavily pruned predictor may answer with anything: not-a-number becomes one frame, and no sentence grows past the limit.
    bounded = (
        torch.nan_to_num(frames.double(), nan=1.0, posinf=float(limit))
        .clamp(0, limit)
        .cpu()
        .numpy()
        .astype(np.int64)
    )
    cut_short = bool(bounded.sum() > limit or (frames > limit).any())
    ends = np.minimum(np.cumsum(bounded), limit)
    durations = np.diff(ends, prepend=0)
    if durations.sum() == 0:
        durations[-1] = 1
    return durations, cut_short


def log_durations(
    model: torch.nn.Module,
    hidden: torch.Tensor,
    conditioning: torch.Tensor | None,
    key: tuple[int, int],
    pace: Pace,
) -> torch.Tensor:
    """The duration predictor's answer: natural logarithms of frames at the training pace, [1, 1, tokens].

    Args:
        model: whose predictor.
        hidden: of the text encoder, [1, hidden, tokens].
        conditioning: of the speaker, [1, speaker_embedding_size, 1], or None.
        key: seed and number of the sentence, which the noise comes from.
        pace: how much noise.
    """
    import torch

    mask = torch.ones(1, 1, hidden.shape[2], dtype=hidden.dtype, device=hidden.device)
    stochastic = model.config.use_stochastic_duration_prediction
    noise = (
        draw_duration_noise(key, hidden.shape[2]).to(hidden) * pace.noise_scale_duration
        if stochastic
        else None
    )
    return predict_log_durations(model, hidden, mask, conditioning, noise)


def draw_prior_noise(key: tuple[int, int], frames: int, channels: int) -> torch.Tensor:
    """The standard normal noise of a sentence's prior, float32 [1, channels, frames]: frame by frame the same whatever their number."""
    import torch

    return torch.from_numpy(draw_noise(key, PRIOR_NOISE, frames, channels)).T[None]


def _frames_that_fit(voice: Voice) -> int:
    """Frames of one sentence whose largest activation stays within MAX_ACTIVATION numbers."""
    config = voice.model.config
    widest, samples, channels = (
        max(config.flow_size, 2 * config.hidden_size, config.upsample_initial_channel),
        1,
        config.upsample_initial_channel,
    )
    for rate in config.upsample_rates:
        samples, channels = samples * rate, channels // 2
        widest = max(widest, samples * channels)
    return MAX_ACTIVATION // widest


def sample_latents(
    voice: Voice,
    means: torch.Tensor,
    log_variances: torch.Tensor,
    durations: np.ndarray,
    conditioning: torch.Tensor | None,
    key: tuple[int, int],
    noise_scale: float,
) -> torch.Tensor:
    """The prior stretched to the durations, sampled, and sent back through the flow: latents [1, flow_size, frames]."""
    import torch

    repeats = torch.from_numpy(durations).to(means.device)
    means = means[0].repeat_interleave(repeats, dim=0).T[None]
    log_variances = log_variances[0].repeat_interleave(repeats, dim=0).T[None]
    noise = draw_prior_noise(key, means.shape[2], means.shape[1]).to(means)
    latents = means + noise * torch.exp(log_variances) * noise_scale
    mask = torch.ones(1, 1, latents.shape[2], dtype=latents.dtype, device=latents.device)
    return voice.model.flow(latents, mask, conditioning, reverse=True)
