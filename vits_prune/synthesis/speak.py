"""speak: a Voice and a text become Speech."""

from __future__ import annotations

import dataclasses
import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.fields import check_options, option
from vits_prune.files import expanded, write_file
from vits_prune.kernels import KERNELS, why_missing
from vits_prune.progress import SILENT, Progress
from vits_prune.synthesis.inference import (
    Scales,
    encode,
    parts_of,
    predict_durations,
    sample_prior,
    speaker_embedding,
)
from vits_prune.voices.voice import Sentence, Voice

STAGES = ("text", "durations", "flow", "decoder")
"""The timed stages, in order. "text" is tokeniser and text encoder."""
MAX_CHARACTERS = 5_000
MAX_SPEECH_SECONDS = 900.0
"""Where durations run away, a text ends here; later by as much as it is to be said slower.
5,000 characters take about 400 seconds."""
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, eq=False)
class SpokenSentence:
    """One sentence as it was spoken."""

    text: str
    tokens: tuple[str, ...]
    durations: np.ndarray
    """Frames of each token, int64 [tokens]."""
    ids: tuple[int, ...]

    @property
    def unspoken(self) -> str:
        """The end of the text that durations leave no frame for, from its first such word on.

        Words are counted, in a script without spaces characters. Where the tokens have more or
        fewer of them than the text (numbers, joined words), the same share counts as spoken.
        """
        count = len(np.trim_zeros(self.durations, "b"))
        starts = [word.start() for word in re.finditer(r"\S*\w\S*", self.text)]
        ends = _word_ends(self.tokens)
        if len(starts) < 2 or len(ends) < 2:
            starts = [place for place, c in enumerate(self.text) if c.isalnum()]
            if len(starts) != len(ends):  # else each character is a word
                ends = [place for place, one in enumerate(self.tokens) if _is_said(one)]
        spoken = sum(end < count for end in ends) * len(starts) // max(1, len(ends))
        return self.text[starts[spoken] :] if spoken < len(starts) else ""


@dataclass(frozen=True, eq=False)
class Speech:
    """What a voice said."""

    waveform: np.ndarray
    """float32 [samples], in [-1, 1]."""
    sampling_rate: int
    """Samples per second."""
    durations: np.ndarray
    """Frames of each token of all sentences, int64 [tokens]."""
    hop_length: int
    """Samples per frame."""
    seconds: dict[str, float]
    """Wall-clock seconds of each of STAGES."""
    sentences: tuple[SpokenSentence, ...]
    dropped: tuple[str, ...] = ()
    """Characters or phonemes that the voice has no symbol for."""
    cut_short: bool = False
    """Whether durations ran away and a limit ended the speech."""

    @property
    def audio_seconds(self) -> float:
        """Length of the speech in seconds."""
        return len(self.waveform) / self.sampling_rate

    @property
    def unspoken(self) -> tuple[str, ...]:
        """What a limit cut off, the end of a sentence each."""
        return tuple(one.unspoken for one in self.sentences if one.unspoken)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of all sentences."""
        return tuple(token for sentence in self.sentences for token in sentence.tokens)

    def pcm16(self) -> np.ndarray:
        """Return the waveform as 16-bit integers, int16 [samples], never normalised."""
        return np.round(np.clip(np.nan_to_num(self.waveform), -1.0, 1.0) * 32767.0).astype(np.int16)


@dataclass(frozen=True)
class Delivery:
    """How a voice is asked to speak. None keeps the voice's own value.

    Raises:
        InputError: a value is out of range.
    """

    speaking_rate: float | None = option(
        None, "speed of speech, 1 is that of the training data", float, low=0.25, high=4
    )
    noise_scale: float | None = option(
        None, "variation of the sound: standard deviation of the prior noise", float, low=0, high=2
    )
    noise_scale_duration: float | None = option(
        None,
        "variation of the rhythm: standard deviation of the duration noise, which only a "
        "stochastic duration predictor uses",
        float,
        low=0,
        high=2,
    )

    def __post_init__(self) -> None:
        check_options(self)

    def for_voice(self, voice: Voice) -> Scales:
        """Fill in the voice's own values, which may lie outside the range for users."""
        asked = dataclasses.asdict(self).items()
        values = (getattr(voice.model, name) if one is None else one for name, one in asked)
        return Scales(*map(float, values))


def speak(
    voice: Voice,
    text: str,
    seed: int = 0,
    delivery: Delivery = Delivery(),
    *,
    timing: Literal["own"] | Speech = "own",
    kernels: str = "auto",
    progress: Progress = SILENT,
) -> Speech:
    """Speak a text.

    The noise depends on the seed alone, so equal weights give equal samples. Sparse kernels give
    those of dense ones within 1e-5 of full scale.

    Args:
        voice: the voice that speaks.
        text: at most MAX_CHARACTERS characters. It is spoken sentence by sentence.
        seed: 0 to 2**32 - 1.
        delivery: speaking rate and noise scales.
        timing: "own" for the voice's own durations, or the Speech of another voice on the same
            text. Its durations are then used, so that the two are sample-aligned.
        kernels: one of KERNELS. "auto" runs sparse what `measure_kernels` found to be faster.
        progress: reports each sentence.

    Raises:
        InputError: the text is empty, too long or unspeakable, a value is out of range, or
            `timing` belongs to another text.
    """
    how: dict[str, Any] = {"timing": timing, "kernels": kernels, "progress": progress}
    return join(list(speak_sentences(voice, text, seed, delivery, **how)))


def predict_rhythm(
    voice: Voice, text: str, seed: int = 0, delivery: Delivery = Delivery()
) -> Speech:
    """Return the durations of what `speak` would say, without its sound.

    As the timing of another voice it does what the whole Speech would do, and costs a tenth of it.

    Raises:
        InputError: as `speak`.
    """
    return join(list(speak_sentences(voice, text, seed, delivery, silent=True)))


def speak_sentences(
    voice: Voice,
    text: str,
    seed: int = 0,
    delivery: Delivery = Delivery(),
    *,
    timing: Literal["own"] | Speech = "own",
    kernels: str = "auto",
    progress: Progress = SILENT,
    always_predict: bool = False,
    silent: bool = False,
) -> Iterator[Speech]:
    """Speak a text like `speak` and yield one Speech for each sentence.

    With `always_predict` the duration predictor runs even if `timing` replaces its durations, so
    that its cost can be measured. With `silent` only durations are predicted.
    """
    seed = checked_seed(seed)
    check_kernels(kernels)
    if kernels == "sparse" and voice.device.type != "cpu":
        raise InputError("Sparse kernels run on a CPU: choose auto or dense on a GPU.")
    scales = delivery.for_voice(voice)
    start = time.perf_counter()
    sentences, dropped = read_text(voice, text)
    locked = _locked_durations(timing, sentences)
    reading = time.perf_counter() - start
    frames_left = int(scales.longer * MAX_SPEECH_SECONDS * voice.sampling_rate / voice.hop_length)
    for index, sentence in enumerate(progress.track(sentences, "sentence")):
        speech = _speak_sentence(
            voice,
            sentence,
            (seed, index),
            scales,
            locked[index],
            always_predict,
            silent,
            frames_left,
            kernels,
        )
        frames_left -= int(speech.durations.sum())
        if index == 0:
            speech.seconds["text"] += reading
            speech = dataclasses.replace(speech, dropped=dropped)
        yield speech
    progress.report("spoken", 1.0)


def join(pieces: list[Speech]) -> Speech:
    """Return several pieces of one speech as one."""
    return dataclasses.replace(
        pieces[0],
        waveform=np.concatenate([piece.waveform for piece in pieces]),
        durations=np.concatenate([piece.durations for piece in pieces]),
        seconds={stage: sum(piece.seconds[stage] for piece in pieces) for stage in STAGES},
        sentences=tuple(sentence for piece in pieces for sentence in piece.sentences),
        cut_short=any(piece.cut_short for piece in pieces),
    )


def write_wav(speech: Speech, path: str | Path) -> None:
    """Write speech as a 16-bit PCM WAV, never normalised."""
    import soundfile

    sound = io.BytesIO()
    soundfile.write(sound, speech.pcm16(), speech.sampling_rate, subtype="PCM_16", format="WAV")
    write_file(expanded(path), sound.getvalue())


def checked_seed(seed: Any) -> int:
    """Return the seed as an int; raise InputError if it is no whole number up to MAX_SEED."""
    number = isinstance(seed, (int, float, np.integer)) and not isinstance(seed, bool)
    if number and 0 <= seed <= MAX_SEED and seed == int(seed):
        return int(seed)
    span = f"from 0 to {MAX_SEED}"
    raise InputError(f"The seed must be a whole number {span}, not {str(seed)[:40]!r}.")


def check_kernels(kernels: str) -> None:
    """Raise InputError unless these kernels are known and this process has them."""
    if kernels not in KERNELS:
        raise InputError(f"kernels must be one of {', '.join(KERNELS)}, not {kernels!r:.40}.")
    if kernels == "sparse" and (why := why_missing()):
        raise InputError(f"There are no sparse kernels: {why}. Speak with kernels dense.")


def checked_text(text: object) -> str:
    """Return the text.

    Raises:
        InputError: it is empty or too long, or no file can hold it (lone surrogates).
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("There is no text to speak: type a sentence.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("The text is not valid Unicode: type it again, in UTF-8.")
    if len(text) > MAX_CHARACTERS:
        size = f"{len(text):,} characters and the limit is {MAX_CHARACTERS:,}"
        raise InputError(f"The text has {size}: speak it in pieces.")
    return text


def read_text(voice: Voice, text: str) -> tuple[list[Sentence], tuple[str, ...]]:
    """Return the sentences of a text that the voice can speak, and the symbols that it lacks.

    Raises:
        InputError: as `checked_text`, or the voice can speak none of it.
    """
    found = list(voice.tokenizer.sentences(checked_text(text)))
    dropped = tuple(dict.fromkeys(symbol for sentence in found for symbol in sentence.dropped))
    speakable = [sentence for sentence in found if sentence.ids]
    if not speakable:
        what = f"{voice.name} cannot speak any of this text"
        raise InputError(f"{what}: write words in the voice's own language and script.")
    return speakable, dropped


def _locked_durations(
    timing: Literal["own"] | Speech, sentences: list[Sentence]
) -> list[np.ndarray | None]:
    """Return the given durations of each sentence, None where the voice chooses them."""
    if isinstance(timing, str) and timing == "own":
        return [None] * len(sentences)
    if not isinstance(timing, Speech):
        raise InputError("timing must be 'own' or the Speech whose durations are to be used.")
    if [s.ids for s in timing.sentences] != [s.ids for s in sentences]:
        what = "The Speech given as timing belongs to another text or another kind of voice"
        raise InputError(f"{what}: speak the same text first.")
    return [sentence.durations for sentence in timing.sentences]


def _speak_sentence(
    voice: Voice,
    sentence: Sentence,
    key: tuple[int, int],
    scales: Scales,
    locked: np.ndarray | None,
    always_predict: bool,
    silent: bool,
    most_frames: int,
    kernels: str,
) -> Speech:
    """Run the four stages on one sentence and time each."""
    times = [_now(voice)]
    with torch.inference_mode():
        conditioning = speaker_embedding(voice)
        hidden, means, log_variances = encode(voice, sentence.ids)
        times.append(_now(voice))
        if locked is None or always_predict:
            durations, cut_short = predict_durations(
                voice, hidden, conditioning, key, scales, most_frames
            )
        if locked is not None:
            durations, cut_short = locked, False
        times.append(_now(voice))
        if silent:
            times += times[-1:] * 2
            waveform = np.zeros(0, np.float32)
        else:
            latents = sample_prior(means, log_variances, durations, key, scales.noise_scale)
            flow, decoder = parts_of(voice, kernels, latents.shape[2])
            latents = flow(latents, conditioning)
            times.append(_now(voice))
            waveform = decoder(latents, conditioning)[0, 0].float().cpu().numpy()
            times.append(_now(voice))
    spoken = SpokenSentence(sentence.text, sentence.tokens, durations, sentence.ids)
    seconds = dict(zip(STAGES, np.diff(times).tolist(), strict=True))
    sound = waveform, voice.sampling_rate, durations, voice.hop_length
    return Speech(*sound, seconds, (spoken,), cut_short=cut_short)


def _word_ends(tokens: tuple[str, ...]) -> list[int]:
    """Return the place of each word's last token; words are what spaces part."""
    ends, word = {}, 0
    for place, token in enumerate(tokens):
        if token == " ":
            word += 1
        elif _is_said(token):
            ends[word] = place
    return [*ends.values()]


def _is_said(token: str) -> bool:
    return any(character.isalnum() for character in token)


def _now(voice: Voice) -> float:
    """Return the time in seconds, once a GPU has finished what it was given."""
    if voice.device.type == "cuda":
        torch.cuda.synchronize(voice.device)
    return time.perf_counter()
