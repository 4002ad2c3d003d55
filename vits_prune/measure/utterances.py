"""Everything that is measured of one utterance: the values of the metrics, and its failures.

A failure is what no average shows and every listener hears, such as a skipped word (as counted for
FastSpeech, Ren et al. 2019, arXiv:1905.09263) or a clipped sound. Thresholds are this library's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vits_prune.measure.closeness import Closeness, Rhythm, measure_rhythm
from vits_prune.measure.predictors import embed_speaker, measure_distillmos
from vits_prune.measure.quality import METRICS
from vits_prune.measure.recognition import Recogniser, WordErrors, measure_word_errors, transcribe
from vits_prune.measure.waveform import (
    Dnsmos,
    buzz_share,
    clipped_samples,
    finite,
    loudest_dbfs,
    measure_dnsmos,
    measure_lufs,
)
from vits_prune.synthesis.speak import Speech

FAILURES = {
    "runaway": "takes more than 1.5 times as long as the original, or reached the limit",
    "collapsed": "takes less than two thirds as long as the original",
    "dropped words": "lacks a fifth of the words or more that are recognised in the original",
    "repeated words": "words that are not in the text repeat the words next to them",
    "clipping": "more than 0.01% of the samples are at full scale, three or more in a row",
    "not a number": "has samples that are not finite",
    "silence": "no 50 ms are louder than -50 dBFS",
    "buzz": "repeats with every decoder frame, for a quarter of the time more than the original",
}
"""Each kind of failure and its definition."""
LONGEST_RATIO, SHORTEST_RATIO = 1.5, 1 / 1.5
_DROPPED_SHARE, _CLIPPED_SHARE, _SILENCE_DBFS, _BUZZ_SHARE = 0.2, 1e-4, -50.0, 0.25


@dataclass(frozen=True)
class Failure:
    """One thing that is wrong with an utterance: one of FAILURES, and what was found, in words."""

    kind: str
    detail: str


@dataclass(frozen=True)
class Listener:
    """What is measured of each utterance, and by which recogniser."""

    families: tuple[str, ...]
    """Families of metrics, of FAMILIES."""
    recogniser: Recogniser
    language: str
    """Of the texts, as Whisper names it."""
    threads: int | None = None
    """Of the predictors; None for the number of cores."""
    predictors: tuple[str, ...] = ()
    """Those that can be used, and the measures that predict nothing: "swift-f0", "pyloudnorm"."""


@dataclass(frozen=True, eq=False)
class Utterance:
    """Measurements of one text as one voice spoke it, with its own timing."""

    transcript: str | None
    """By the recogniser; None where intelligibility is not measured."""
    words: WordErrors | None
    dnsmos: Dnsmos | None
    lufs: float | None
    buzz: float
    """See `buzz_share`."""
    failures: tuple[Failure, ...] = ()
    rhythm: Rhythm | None = None
    """Against the original; None for the original itself."""
    closeness: Closeness | None = None
    """To the original, of the same voice with the original's timing."""
    distillmos: float | None = None
    """Predicted opinion, 1 to 5."""
    embedding: np.ndarray | None = None
    """Of the speaker, float32 [256] of norm 1."""
    speaker_similarity: float | None = None
    """Cosine of the embedding with that of the original's next sentence, -1 to 1."""

    def pair(self, metric: str) -> tuple[float, float]:
        """Return numerator and denominator of a metric, (0, 0) where it was not measured."""
        entry = METRICS[metric]
        above, _, below = (entry.source or f"{entry.family}.{metric}").partition("/")
        pair = self._value(above), self._value(below) if below else 1.0
        return (0.0, 0.0) if pair[0] is None or pair[1] is None else (pair[0], pair[1])

    def _value(self, path: str) -> float | None:
        value: Any = self
        for name in path.split("."):
            value = None if value is None else getattr(value, name)
        return None if value is None else float(value)


def measure_utterance(
    speech: Speech, text: str, listener: Listener, original: tuple[Speech, Utterance] | None = None
) -> Utterance:
    """Measure an utterance with the voice's own timing, all but closeness.

    `original` is the original's utterance of this text and its measurements; None if this is it.
    """
    spoken, first = original or (None, None)
    if first and spoken and _same_samples(speech, spoken):
        found = first  # the same samples have the same measurements
    else:
        found = _measure_alone(speech, text, listener)
    failures, rhythm = sound_failures(speech, first.buzz if first else 0.0), None
    if found.words:
        failures += word_failures(found.words, first.words if first else None)
    if spoken and "rhythm" in listener.families:
        rhythm = measure_rhythm(spoken, speech)
        ran_away = speech.cut_short and not spoken.cut_short
        failures += rhythm_failures(rhythm.duration_ratio, ran_away, speech.unspoken)
    return dataclasses.replace(found, failures=failures, rhythm=rhythm, closeness=None)


def _same_samples(one: Speech, other: Speech) -> bool:
    same_rate = one.sampling_rate == other.sampling_rate
    return same_rate and np.array_equal(one.waveform, other.waveform)


def _measure_alone(speech: Speech, text: str, listener: Listener) -> Utterance:
    sound = (speech.waveform, speech.sampling_rate)
    transcript = words = dnsmos = distillmos = lufs = None
    if "intelligibility" in listener.families:
        transcript = transcribe(*sound, listener.language, listener.recogniser)
        words = measure_word_errors(text, transcript, listener.language)
    if "naturalness" in listener.families:
        if "dnsmos" in listener.predictors:
            dnsmos = measure_dnsmos(*sound, listener.threads)
        if "distillmos" in listener.predictors:
            distillmos = measure_distillmos(*sound)
    if "pyloudnorm" in listener.predictors:
        lufs = measure_lufs(*sound)
    buzz, embedding = buzz_share(speech.waveform, speech.hop_length), None
    if "speaker" in listener.families and "resemblyzer" in listener.predictors:
        embedding = embed_speaker(*sound)
    found = Utterance(transcript, words, dnsmos, lufs, buzz)
    return dataclasses.replace(found, distillmos=distillmos, embedding=embedding)


def sound_failures(speech: Speech, buzz_of_original: float = 0.0) -> tuple[Failure, ...]:
    """Return the failures in the waveform: not a number, silence, clipping, buzz.

    `buzz_of_original` is its `buzz_share` on the same text, 0 if this is the original.
    """
    found, samples = [], finite(speech.waveform)
    count, rate = len(samples), speech.sampling_rate
    if broken := int(np.count_nonzero(~np.isfinite(speech.waveform))):
        found.append(Failure("not a number", f"{broken:,} of {count:,} samples"))
    if (loudest := loudest_dbfs(samples, rate)) < _SILENCE_DBFS:
        found.append(Failure("silence", f"loudest 50 ms at {max(loudest, -120.0):.0f} dBFS"))
    if (clipped := clipped_samples(samples)) > _CLIPPED_SHARE * count:
        found.append(Failure("clipping", f"{clipped:,} of {count:,} samples"))
    buzz = buzz_share(samples, speech.hop_length)
    if buzz - buzz_of_original >= _BUZZ_SHARE:
        hertz = rate / speech.hop_length
        found.append(Failure("buzz", f"{buzz:.0%} of the time, at {hertz:.0f} Hz"))
    return tuple(found)


def rhythm_failures(
    duration_ratio: float, cut_short: bool, unspoken: Sequence[str] = ()
) -> tuple[Failure, ...]:
    """Return the failures in the length: runaway, collapsed.

    `cut_short` says that the limit ended it and not the original, `unspoken` what was lost so.
    """
    detail = f"{duration_ratio:.2f} times the original's time"
    if duration_ratio > LONGEST_RATIO or cut_short:
        detail += ", ended at the limit" if cut_short else ""
        lost = f": {quoted(unspoken)} not said" if cut_short and unspoken else ""
        return (Failure("runaway", detail + lost),)
    return (Failure("collapsed", detail),) if duration_ratio < SHORTEST_RATIO else ()


def quoted(texts: Sequence[str]) -> str:
    """Return the beginnings of a few texts, in quotes."""
    shown = [f"“{one}”" if len(one) <= 60 else f"“{one[:60]}…”" for one in texts[:3]]
    return ", ".join(shown) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def word_failures(errors: WordErrors, original: WordErrors | None = None) -> tuple[Failure, ...]:
    """Return the failures in the transcript: dropped words, repeated words.

    What fails in the original's utterance of the text too is not counted.
    """
    found = []
    dropped = [i for i in errors.missing if not original or i not in original.missing]
    if len(dropped) >= _DROPPED_SHARE * len(errors.reference):
        detail = ", ".join(errors.reference[i] for i in dropped)
        found.append(Failure("dropped words", detail))
    known = _repeats(original) if original else []
    if repeated := [words for words in _repeats(errors) if words not in known]:
        found.append(Failure("repeated words", "; ".join(repeated)))
    return tuple(found)


def _repeats(errors: WordErrors) -> list[str]:
    """Return inserted stretches, or ends of them, that equal the words before or after."""
    found, heard = [], errors.hypothesis
    for start, end in errors.inserted:
        for size in range(end - start, 0, -1):
            head, tail = heard[start : start + size], heard[end - size : end]
            repeats_itself = 2 * size <= end - start and head == heard[start + size :][:size]
            after = tail == heard[end : end + size]
            if after or repeats_itself or head == heard[max(0, start - size) : start]:
                found.append(" ".join(tail if after else head))
                break
    return found
