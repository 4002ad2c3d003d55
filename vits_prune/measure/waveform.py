"""Measures of one waveform: loudness, pitch, DNSMOS, clipping, silence and buzz.

Sources: loudness by ITU-R BS.1770-4; F0 by SwiftF0 (Nieradzik 2025, arXiv:2508.18440); naturalness
by DNSMOS P.835 (Reddy et al. 2022, arXiv:2110.01763); resampling by soxr.
"""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.threads import available_cores

if TYPE_CHECKING:
    import onnxruntime
    from swift_f0 import SwiftF0

RATE = 16_000
"""Samples per second in the training data of Whisper, DNSMOS and SwiftF0."""
SILENCE_LUFS = -70.0
"""The loudness of silence: the absolute gate of BS.1770."""
F0_RANGE_HZ = (50.0, 600.0)
_VOICED = 0.5

_WINDOW = int(9.01 * RATE)
# From raw outputs to opinion scores, highest power first, as in the reference implementation.
_SIG = (-0.08397278, 1.22083953, 0.0052439)
_BAK = (-0.13166888, 1.60915514, -0.39604546)
_OVRL = (-0.06766283, 1.11546468, 0.04602535)
_sessions: Bounded[str, onnxruntime.InferenceSession] = Bounded(1, lambda _: 1, survives_fork=False)
_detectors: Bounded[int | None, SwiftF0] = Bounded(2, lambda _: 1, survives_fork=False)
_pools: Bounded[int, ThreadPoolExecutor] = Bounded(2, lambda _: 1, survives_fork=False)

_FULL_SCALE, _CLIPPED_RUN = 0.999, 3
_BUZZ_FRAMES, _BUZZ_COHERENCE = 8, 0.5


def finite(waveform: np.ndarray) -> np.ndarray:
    """Return float64 samples with 0 for NaN and full scale for infinity."""
    samples = np.asarray(waveform, dtype=np.float64)
    return np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)


def at_16_khz(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Resample by soxr's "HQ" recipe, to float32 in [-1, 1], at least one sample."""
    import soxr

    samples = finite(waveform).astype(np.float32)
    if sampling_rate != RATE:
        samples = soxr.resample(samples, sampling_rate, RATE, quality="HQ")
    return np.clip(samples, -1.0, 1.0) if samples.size else np.zeros(1, dtype=np.float32)


def transposed(waveform: np.ndarray, semitones: float) -> np.ndarray:
    """Return a sound played faster, so that pitch and formants rise: another voice."""
    import soxr

    samples = finite(waveform).astype(np.float32)
    return soxr.resample(samples, 2 ** (semitones / 12), 1.0, quality="HQ")


def measure_lufs(waveform: np.ndarray, sampling_rate: int) -> float:
    """Return the integrated loudness in LUFS (ITU-R BS.1770-4), at least SILENCE_LUFS.

    Speech under 0.4 s, the block of the standard, is one block of its own length.
    """
    import pyloudnorm

    samples = finite(waveform)
    if not samples.any():
        return SILENCE_LUFS
    block = min(0.4, len(samples) / sampling_rate)
    with np.errstate(all="ignore"):  # the logarithm of a block below the gate
        loudness = pyloudnorm.Meter(sampling_rate, block_size=block).integrated_loudness(samples)
    return max(SILENCE_LUFS, float(loudness)) if np.isfinite(loudness) else SILENCE_LUFS


@dataclass(frozen=True, eq=False)
class PitchContour:
    """Fundamental frequency by frame of 16 ms, and whether the frame is voiced (bool)."""

    hertz: np.ndarray
    voiced: np.ndarray


def track_pitch(
    waveform: np.ndarray, sampling_rate: int, threads: int | None = None
) -> PitchContour:
    """Return F0 from 50 to 600 Hz every 16 ms, voiced where SwiftF0's confidence is 0.5 or more."""

    def open_detector() -> SwiftF0:
        from swift_f0 import SwiftF0

        return SwiftF0(threads=threads, spin=False)

    detector = _detectors.get_or_make(threads, open_detector)
    found = detector.detect(at_16_khz(waveform, sampling_rate), RATE, *F0_RANGE_HZ)
    return PitchContour(found.pitch_hz, found.confidence >= _VOICED)


@dataclass(frozen=True)
class Dnsmos:
    """Predicted mean opinion scores, about 1 (bad) to 5 (excellent).

    DNSMOS was trained on noisy and denoised recordings, not on synthetic speech. Read a score as a
    change against the same voice.
    """

    sig: float
    """Quality of the speech itself."""
    bak: float
    """Freedom from background noise."""
    ovrl: float
    """Overall quality."""


def measure_dnsmos(waveform: np.ndarray, sampling_rate: int, threads: int | None = None) -> Dnsmos:
    """Score a waveform by the non-personalised DNSMOS P.835, as Microsoft's implementation does.

    A short utterance is repeated to at least 9.01 s. Windows of 9.01 s, a second apart, are scored
    one by one, so that a score depends on its own sound alone, and averaged. `threads` windows are
    scored at a time; None for the number of cores.

    Raises:
        InputError: the predictor is not installed.
    """
    threads = threads or available_cores()
    session = _sessions.get_or_make("", _open_dnsmos)
    pool = _pools.get_or_make(threads, lambda: ThreadPoolExecutor(threads, "dnsmos"))
    windows = _windows(at_16_khz(waveform, sampling_rate))
    scores = pool.map(lambda window: session.run(None, {"input_1": window[None]})[0], windows)
    raw = np.concatenate(list(scores)).astype(np.float64).T
    curves = zip((_SIG, _BAK, _OVRL), raw, strict=True)
    return Dnsmos(*(float(np.mean(np.polyval(curve, row))) for curve, row in curves))


def _windows(audio: np.ndarray) -> np.ndarray:
    """Return float32 [windows, 144160]."""
    while len(audio) < _WINDOW:
        audio = np.append(audio, audio)
    starts = range(0, (int(np.floor(len(audio) / RATE) - 9.01) + 1) * RATE, RATE)
    # The reference cuts at int((index + 9.01) * 16000) and skips windows that come out short.
    pieces = [audio[start : int((start // RATE + 9.01) * RATE)][:_WINDOW] for start in starts]
    return np.stack([piece for piece in pieces if len(piece) == _WINDOW]).astype(np.float32)


def _open_dnsmos() -> onnxruntime.InferenceSession:
    import onnxruntime

    # Importing speechmos would need librosa and requests. Only its file is needed.
    found = importlib.util.find_spec("speechmos")
    folder = ((found and found.submodule_search_locations) or ["nowhere"])[0]
    path = Path(folder, "dnsmos_models", "sig_bak_ovr.onnx")
    if not path.is_file():
        raise InputError("The DNSMOS predictor is not installed: pip install speechmos==0.0.1.1.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def clipped_samples(samples: np.ndarray) -> int:
    """Count the samples at full scale in rows of three or more. A lone peak is not clipping."""
    at_limit = np.concatenate(([0], np.abs(samples) >= _FULL_SCALE, [0])).astype(np.int8)
    edges = np.diff(at_limit)
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return int(lengths[lengths >= _CLIPPED_RUN].sum())


def buzz_share(samples: np.ndarray, hop_length: int) -> float:
    """Return the share of the time, 0 to 1, in which the sound repeats with every decoder frame.

    A decoder that ignores its latents puts out the same samples for each frame: a tone at
    sampling_rate / hop_length (86 Hz for 22,050 / 256) with its harmonics. In a block of 8 frames,
    the power of the mean frame over the mean power is 1 for such a tone, 1/8 for noise, and low for
    speech, whose periods drift against the frame. A block counts above 1/2. Digital silence does
    not count.
    """
    blocks = len(samples) // (_BUZZ_FRAMES * hop_length)
    if not blocks:
        return 0.0
    frames = samples[: blocks * _BUZZ_FRAMES * hop_length].reshape(blocks, _BUZZ_FRAMES, hop_length)
    frames = frames - frames.mean(axis=(1, 2), keepdims=True)
    power = np.mean(frames**2, axis=(1, 2))
    repeating = np.mean(frames.mean(axis=1) ** 2, axis=1)
    return float(np.mean((repeating > _BUZZ_COHERENCE * power) & (power > 1e-10)))


def loudest_dbfs(samples: np.ndarray, sampling_rate: int) -> float:
    """Return the level of the loudest 50 ms, in dB below the square of full scale."""
    window = max(1, int(0.05 * sampling_rate))
    if len(samples) >= window:
        samples = samples[: len(samples) // window * window].reshape(-1, window)
    power = np.max(np.mean(np.square(samples), axis=-1)) if samples.size else 0.0
    return float(10 * np.log10(power)) if power > 0 else -np.inf
