"""Speech alarms: what no average shows and every listener hears."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vits_prune.measure.recognition import WordErrors
from vits_prune.synthesis.speak import Speech

KINDS = {
    "runaway": "takes more than 1.5 times the original's time, or had to be ended",
    "collapsed": "takes less than two thirds of the original's time",
    "dropped words": "a fifth of the words or more are missing in the transcript that the original's has a word for",
    "repeated words": "a stretch of the transcript that the text lacks repeats the words beside it",
    "clipping": "three samples or more in a row at full scale, 0.01% of all in such rows",
    "not a number": "samples that are not finite",
    "silence": "nowhere louder than -50 dBFS over 50 ms",
    "buzz": "for a quarter of the time more than in the original, most of the sound repeats with every frame of the decoder",
}

"""Each alarm and when it sounds."""

LONGEST_RATIO, SHORTEST_RATIO = 1.5, 1 / 1.5

_DROPPED_SHARE = 0.2

_FULL_SCALE, _CLIPPED_RUN, _CLIPPED_SHARE = 0.999, 3, 1e-4

_SILENCE_DBFS, _SILENCE_WINDOW = -50.0, 0.05

_BUZZ_PERIODS, _BUZZ_COHERENCE, _BUZZ_SHARE = 8, 0.5, 0.25


@dataclass(frozen=True)
class Alarm:
    """One thing wrong with one utterance."""

    kind: str
    """One of KINDS."""
    detail: str
    """What was found, in words."""


def sound_alarms(speech: Speech, buzz_of_original: float = 0.0) -> tuple[Alarm, ...]:
    """Alarms that the sound alone raises: not a number, silence, clipping, buzz.

    Args:
        speech: what was spoken.
        buzz_of_original: `buzz_share` of the original on the same text, 0 where this is the original.
    """
    found = []
    samples = np.asarray(speech.waveform, dtype=np.float64)
    broken = int(np.count_nonzero(~np.isfinite(samples)))
    if broken:
        found.append(Alarm("not a number", f"{broken:,} of {len(samples):,} samples"))
    samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    loudest = _loudest_dbfs(samples, speech.sampling_rate)
    if loudest < _SILENCE_DBFS:
        found.append(Alarm("silence", f"loudest 50 ms at {max(loudest, -120.0):.0f} dBFS"))
    clipped = clipped_samples(samples)
    if clipped > _CLIPPED_SHARE * len(samples):
        found.append(Alarm("clipping", f"{clipped:,} of {len(samples):,} samples"))
    buzz = buzz_share(samples, speech.hop_length)
    if buzz - buzz_of_original >= _BUZZ_SHARE:
        found.append(
            Alarm(
                "buzz",
                f"{buzz:.0%} of the time, at {speech.sampling_rate / speech.hop_length:.0f} Hz",
            )
        )
    return tuple(found)


def rhythm_alarms(rhythm: Rhythm, cut_short: bool) -> tuple[Alarm, ...]:
    """Alarms that durations raise."""
    ratio = rhythm.duration_ratio
    if ratio > LONGEST_RATIO or cut_short:
        return (
            Alarm(
                "runaway",
                f"{ratio:.2f} times the original's time"
                + (", ended at the limit" if cut_short else ""),
            ),
        )
    if ratio < SHORTEST_RATIO:
        return (Alarm("collapsed", f"{ratio:.2f} times the original's time"),)
    return ()


def word_alarms(errors: WordErrors, original: WordErrors | None = None) -> tuple[Alarm, ...]:
    """Alarms that the alignment of the transcript raises.

    Args:
        errors: of the speech.
        original: of the original on the same text: what the recogniser misses there too says nothing about pruning.
    """
    found = []
    missed_anyway = set(original.missing) if original else set()
    dropped = [i for i in errors.missing if i not in missed_anyway]
    if len(dropped) >= _DROPPED_SHARE * len(errors.text):
        found.append(Alarm("dropped words", ", ".join(errors.text[i] for i in dropped)))
    repeated = [
        words for words in _repeats(errors) if not original or words not in _repeats(original)
    ]
    if repeated:
        found.append(Alarm("repeated words", "; ".join(repeated)))
    return tuple(found)


def _repeats(errors: WordErrors) -> list[str]:
    """Inserted stretches, or ends of them, that equal the words right before or right after."""
    found = []
    for start, end in errors.inserted:
        for size in range(end - start, 0, -1):
            head, tail = errors.heard[start : start + size], errors.heard[end - size : end]
            before, after = (
                errors.heard[max(0, start - size) : start],
                errors.heard[end : end + size],
            )
            if (
                head == before
                or tail == after
                or (
                    2 * size <= end - start
                    and head == errors.heard[start + size : start + 2 * size]
                )
            ):
                found.append(" ".join(tail if tail == after else head))
                break
    return found


def clipped_samples(samples: np.ndarray) -> int:
    """Samples at full scale that stand in rows of three or more: a lone peak is no clipping."""
    at_limit = np.concatenate(([0], np.abs(samples) >= _FULL_SCALE, [0])).astype(np.int8)
    edges = np.diff(at_limit)
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return int(lengths[lengths >= _CLIPPED_RUN].sum())


def buzz_share(samples: np.ndarray, hop_length: int) -> float:
    """Share of the time, 0 to 1, in which the sound mostly repeats with every frame of the decoder.

    A decoder that no longer listens to its latents puts out the same samples for each frame: a tone at sampling_rate / hop_length (86 Hz
    for 22,050 / 256) with its harmonics. In each block of 8 frames, the power of the mean frame over the mean power is 1 for such a tone,
    1/8 for noise, and low for speech, whose periods drift against the frame; the block counts where it is above 1/2. Digital silence does
    not count.

    Args:
        samples: float [samples].
        hop_length: samples a frame.
    """
    blocks = len(samples) // (_BUZZ_PERIODS * hop_length)
    if not blocks:
        return 0.0
    frames = samples[: blocks * _BUZZ_PERIODS * hop_length].reshape(
        blocks, _BUZZ_PERIODS, hop_length
    )
    frames = frames - frames.mean(axis=(1, 2), keepdims=True)
    power = np.mean(frames**2, axis=(1, 2))
    repeating = np.mean(frames.mean(axis=1) ** 2, axis=1)
    return float(np.mean((repeating > _BUZZ_COHERENCE * power) & (power > 1e-10)))


def _loudest_dbfs(samples: np.ndarray, sampling_rate: int) -> float:
    """Level of the loudest 50 ms, in dB below the square of full scale."""
    window = max(1, int(_SILENCE_WINDOW * sampling_rate))
    pieces = (
        samples
        if len(samples) < window
        else samples[: len(samples) // window * window].reshape(-1, window)
    )
    power = np.max(np.mean(np.square(pieces), axis=-1)) if len(samples) else 0.0
    return float(10 * np.log10(power)) if power > 0 else -np.inf


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
        drift, shift, tokens = (
            float(np.mean(np.abs(relative))),
            float(np.mean(relative)),
            len(relative),
        )
    seconds = (first.audio_seconds, second.audio_seconds)
    return Rhythm(seconds[1] / seconds[0], seconds, drift, shift, tokens)


def same_tokens(first: Speech, second: Speech) -> bool:
    """Whether both voices read the text as the same tokens, at frames of the same length."""
    frame = [speech.hop_length / speech.sampling_rate for speech in (first, second)]
    return frame[0] == frame[1] and [s.ids for s in first.sentences] == [
        s.ids for s in second.sentences
    ]
