"""Samples of a recording that comes from a stranger: bounded, whole, finite, or one sentence why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import soundfile

LEAST_SECONDS = 0.5
MAX_CLIP_BYTES = 64 << 20

_HIGHEST_RATE = 192_000
_MAX_CHANNELS = 8
_MOST_OVER_FULL_SCALE = 1.5
_BLOCK = 1 << 16
_MAX_CHUNKS = 1_000
_SLOPPY_BYTES = 64
"""So much may be missing from a WAV file whose writer counted its header among the samples."""


class UnusableError(Exception):
    """Why a recording cannot be used, in a sentence."""


def read_samples(path: Path, lowest_rate: int, most_seconds: float) -> tuple[np.ndarray, int]:
    """Mono samples float32 and their rate, every one of them checked.

    Raises:
        UnusableError: it cannot be used.
    """
    import soundfile

    try:
        size = path.stat().st_size
        if size > MAX_CLIP_BYTES:
            raise UnusableError(
                f"The file has {size / 2**20:,.0f} MiB, more than the {MAX_CLIP_BYTES >> 20} MiB accepted."
            )
        if size == 0:
            raise UnusableError("The file is empty.")
        if _cut_off(path, size):
            raise UnusableError("The file is truncated.")
        with soundfile.SoundFile(path) as sound:
            _check_header(sound, lowest_rate, most_seconds)
            samples = _mono(sound, int(most_seconds * sound.samplerate))
            rate, promised = sound.samplerate, sound.frames
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
    ) as error:  # libsndfile's own errors are RuntimeErrors
        raise UnusableError("It is no audio file, or a damaged one.") from error
    if len(samples) < promised:
        raise UnusableError("The file is truncated.")
    if len(samples) < LEAST_SECONDS * rate:
        raise UnusableError(
            f"It has {len(samples) / rate:.2f} seconds, less than the {LEAST_SECONDS:g} that are needed."
        )
    return samples, rate


def _check_header(sound: soundfile.SoundFile, lowest_rate: int, most_seconds: float) -> None:
    if sound.channels > _MAX_CHANNELS:
        raise UnusableError(f"It has {sound.channels} channels, more than {_MAX_CHANNELS}.")
    if sound.samplerate > _HIGHEST_RATE:
        raise UnusableError(
            f"It has {sound.samplerate:,} samples a second, more than {_HIGHEST_RATE:,}."
        )
    if (
        sound.samplerate < lowest_rate
    ):  # what lies above half its rate is missing, and the voice would learn that
        raise UnusableError(
            f"It has {sound.samplerate:,} samples a second and the voice {lowest_rate:,}: it would teach a muffled sound."
        )
    if sound.seekable() and sound.frames > most_seconds * sound.samplerate:
        raise _too_long(most_seconds)


def _mono(sound: soundfile.SoundFile, most_frames: int) -> np.ndarray:
    """The average of the channels, float32 [frames], read piece by piece: a header may promise less than comes."""
    blocks, frames = [], 0
    while True:
        block = sound.read(_BLOCK, dtype="float32", always_2d=True)
        if not len(block):
            return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
        if not np.isfinite(block).all():
            raise UnusableError("It contains samples that are not numbers.")
        if np.abs(block).max() > _MOST_OVER_FULL_SCALE:
            raise UnusableError("Its samples go far beyond full scale: save it as 16-bit PCM.")
        frames += len(block)
        if frames > most_frames:
            raise _too_long(most_frames / sound.samplerate)
        blocks.append(block.mean(axis=1))


def _too_long(most_seconds: float) -> UnusableError:
    return UnusableError(f"It is longer than {most_seconds:g} seconds: cut it into sentences.")


def _cut_off(path: Path, size: int) -> bool:
    """Whether a WAV file ends before the samples that it promises; libsndfile reads such a file without a word.

    Sizes of 0 and 2**32 - 1 are what a program writes that does not know the length beforehand.
    """
    with path.open("rb") as file:
        start = file.read(12)
        if start[:4] != b"RIFF" or start[8:] != b"WAVE":
            return False
        at = 12
        for _ in range(_MAX_CHUNKS):
            if at + 8 > size:
                break
            file.seek(at)
            head = file.read(8)
            length = int.from_bytes(head[4:8], "little")
            if head[:4] == b"data":
                return length not in (0, 2**32 - 1) and at + 8 + length > size + _SLOPPY_BYTES
            at += 8 + length + length % 2
    return True
