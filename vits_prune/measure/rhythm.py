"""Rhythm: what pruning did to durations, token by token, where each voice keeps its own timing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vits_prune.synthesis import Speech


@dataclass(frozen=True)
class Rhythm:
    """The durations of one speech against those of another on the same text."""

    duration_ratio: float
    """Seconds of the second over seconds of the first: 1 where they take the same time."""
    seconds: tuple[float, float]
    """Length of both."""
    drift: float | None
    """Mean over tokens of |d' - d| / max(d, 1), d and d' the frames of a token in the first and second: how far tokens are off, either way.
    None where the two read the text as different tokens."""
    shift: float | None
    """Mean over tokens of (d' - d) / max(d, 1): the same with its sign, so that stretched and shortened tokens cancel."""
    tokens: int
    """Tokens compared."""


def measure_rhythm(first: Speech, second: Speech) -> Rhythm:
    """Durations of the second speech against the first's, both as the voices chose them: locked timing leaves nothing to measure."""
    drift = shift = None
    tokens = 0
    if same_tokens(first, second):
        # A token may have no frame where a sentence was cut short: one frame is the least that a voice gives.
        relative = (second.durations - first.durations) / np.maximum(first.durations, 1)
        drift, shift, tokens = float(np.mean(np.abs(relative))), float(np.mean(relative)), len(relative)
    seconds = (first.audio_seconds, second.audio_seconds)
    return Rhythm(seconds[1] / seconds[0], seconds, drift, shift, tokens)


def same_tokens(first: Speech, second: Speech) -> bool:
    """Whether both voices read the text as the same tokens, at frames of the same length."""
    frame = [speech.hop_length / speech.sampling_rate for speech in (first, second)]
    return frame[0] == frame[1] and [s.ids for s in first.sentences] == [s.ids for s in second.sentences]
