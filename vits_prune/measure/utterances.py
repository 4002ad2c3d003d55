"""One utterance measured alone and against the original's, as the pairs (numerator, denominator) that figures are made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from vits_prune.measure.alarms import (
    Alarm,
    Rhythm,
    buzz_share,
    measure_rhythm,
    rhythm_alarms,
    sound_alarms,
    word_alarms,
)
from vits_prune.measure.closeness import Closeness, Melody, measure_closeness
from vits_prune.measure.naturalness import Dnsmos, measure_dnsmos
from vits_prune.measure.recognition import Recogniser, WordErrors, measure_word_errors, transcribe
from vits_prune.measure.signals import measure_lufs
from vits_prune.synthesis.speak import Speech

NOTHING = (0.0, 0.0)
"""The pair of a metric that could not be measured on this sentence."""


@dataclass(frozen=True)
class Listener:
    """What is listened for, and by whom."""

    families: tuple[str, ...]
    recogniser: Recogniser
    language: str
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class Utterance:
    """One utterance of one voice with its own timing."""

    transcript: str | None
    """What the recogniser understood, None where it was not asked."""
    words: WordErrors | None
    dnsmos: Dnsmos | None
    lufs: float | None
    buzz: float
    alarms: tuple[Alarm, ...]
    """Raised by the utterance, and by it against the original's where there is one."""
    rhythm: Rhythm | None
    """Against the original's, None for the original itself."""
    closeness: Closeness | None = None
    """Of the same voice with the original's timing to the original."""

    def pair(self, metric: str) -> tuple[float, float]:
        """Numerator and denominator of a metric on this utterance."""
        pairs = {}
        if self.words:
            pairs["wer"] = (self.words.word_errors, len(self.words.text))
            pairs["cer"] = (self.words.character_errors, self.words.characters)
        if self.dnsmos:
            pairs |= {
                f"dnsmos_{name}": (getattr(self.dnsmos, name), 1) for name in ("sig", "bak", "ovrl")
            }
        if self.lufs is not None:
            pairs["lufs"] = (self.lufs, 1)
        if self.rhythm:
            pairs["duration_ratio"] = (self.rhythm.seconds[1], self.rhythm.seconds[0])
            if self.rhythm.drift is not None:
                pairs |= {
                    "duration_drift": (self.rhythm.drift, 1),
                    "duration_shift": (self.rhythm.shift, 1),
                }
        if self.closeness:
            names = (
                "mcd_db",
                "log_mel_db",
                "spectral_convergence",
                "log_stft_magnitude",
                "f0_rmse_cents",
                "voicing_error",
            )
            values = {name: getattr(self.closeness, name) for name in names}
            pairs |= {name: (value, 1) for name, value in values.items() if value is not None}
        above, below = pairs.get(metric, NOTHING)
        return float(above), float(below)


def measure_utterance(
    speech: Speech, text: str, listener: Listener, original: tuple[Speech, Utterance] | None = None
) -> Utterance:
    """Measure an utterance.

    Args:
        speech: with the voice's own timing.
        text: what it was to say.
        listener: what to measure.
        original: the original's utterance of this text and what was measured of it; None where this is that one.
    """
    first = original[1] if original else None
    if (
        original
        and speech.sampling_rate == original[0].sampling_rate
        and np.array_equal(speech.waveform, original[0].waveform)
    ):
        heard = first  # the same samples are heard the same way: an untouched voice costs only its speaking
    else:
        heard = _hear(speech, text, listener)
    alarms, rhythm = sound_alarms(speech, first.buzz if first else 0.0), None
    if heard.words:
        alarms += word_alarms(heard.words, first.words if first else None)
    if original and "rhythm" in listener.families:
        rhythm = measure_rhythm(original[0], speech)
        alarms += rhythm_alarms(rhythm, speech.cut_short)
    return dataclasses.replace(heard, alarms=alarms, rhythm=rhythm, closeness=None)


def _hear(speech: Speech, text: str, listener: Listener) -> Utterance:
    """What can be measured of an utterance alone."""
    transcript = words = dnsmos = lufs = None
    if "intelligibility" in listener.families:
        transcript = transcribe(
            speech.waveform, speech.sampling_rate, listener.language, listener.recogniser
        )
        words = measure_word_errors(text, transcript, listener.language)
    if "naturalness" in listener.families:
        dnsmos = measure_dnsmos(speech.waveform, speech.sampling_rate, listener.threads)
    if "loudness" in listener.families:
        lufs = measure_lufs(speech.waveform, speech.sampling_rate)
    return Utterance(
        transcript,
        words,
        dnsmos,
        lufs,
        buzz_share(speech.waveform, speech.hop_length),
        alarms=(),
        rhythm=None,
    )


def closeness_of(
    original: Speech, locked: Speech, melody: Melody, threads: int | None
) -> Closeness:
    """Closeness of an utterance with the original's timing to the original's own."""
    return measure_closeness(
        original.waveform, locked.waveform, original.sampling_rate, melody=melody, threads=threads
    )
