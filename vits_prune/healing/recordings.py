"""A user's recordings as a second source to learn from: which can be used, and their latents.

The folder comes from a stranger. Every recording is read from end to end before anything is
trained, and again when it is needed, so that memory stays bounded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.files import expanded
from vits_prune.healing.batches import RecordedPair
from vits_prune.healing.posterior import (
    Posterior,
    draw_latents,
    load_posterior,
    posterior_statistics,
    require_fit,
)
from vits_prune.healing.recording_files import (
    Row,
    Skipped,
    UnusableError,
    find_audio,
    read_rows,
    read_samples,
)
from vits_prune.healing.storage import digest
from vits_prune.progress import SILENT, Progress
from vits_prune.synthesis.speak import MAX_CHARACTERS
from vits_prune.voices.voice import Voice

LONGEST_SECONDS = 30.0
"""Longer recordings are left out."""
LIMIT = 1_000
"""How many recordings are used at most."""
CACHE_BYTES = 512 << 20
"""Of encoded recordings in memory: some 40 minutes of speech at 22,050 Hz."""
SILENCE = 10 ** (-50 / 20)
"""A recording whose loudest sample is below -50 dBFS is silent."""


@dataclass(frozen=True)
class Recording:
    """One that can be used; `digest` is of its samples, 32 hexadecimal digits."""

    path: Path
    text: str
    seconds: float
    digest: str


@dataclass(frozen=True)
class Recordings:
    """The recordings of a folder, in the order of its transcript."""

    usable: tuple[Recording, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def seconds(self) -> float:
        """The length of all usable recordings."""
        return sum(one.seconds for one in self.usable)


def read_recordings(
    folder: str | os.PathLike[str], voice: Voice, *, progress: Progress = SILENT
) -> Recordings:
    """Find the recordings of a folder that can be used to heal a voice, at most LIMIT of them.

    Args:
        folder: in LJSpeech's layout (metadata.csv with `id|text` or `id|text|normalised text`, the
            audio in wavs/ or next to it), or a Hugging Face audio folder (metadata.csv or
            metadata.jsonl with file_name and transcription, text or sentence).
        voice: its sampling rate is the lowest that is accepted.
        progress: over the rows of the transcript.

    Raises:
        InputError: there is no readable transcript or no usable recording.
    """
    folder = expanded(folder)
    rows, skipped = read_rows(folder)
    root = folder.resolve()
    usable: list[Recording] = []
    seen: set[Path] = set()
    for number, row in enumerate(progress.track(rows, "reading recording")):
        if len(usable) == LIMIT:
            why = f"Only {LIMIT:,} recordings are used."
            skipped.append(Skipped(f"{len(rows) - number} more", why))
            break
        try:
            path = find_audio(root, row)
            if path in seen:
                raise UnusableError("It is named twice.")
            seen.add(path)
            usable.append(_examined(path, row, voice.sampling_rate))
        except UnusableError as error:
            skipped.append(Skipped(_printable(row.name), str(error)))
    if not usable:
        first = [f", for one {one.name}: {one.reason}" for one in skipped[:1]]
        why = first[0] if first else ": its transcript is empty."
        raise InputError(f"No recording in {folder.name[:100]!r} can be used{why}")
    return Recordings(tuple(usable), tuple(skipped))


def _examined(path: Path, row: Row, min_rate: int) -> Recording:
    if not row.text:
        raise UnusableError("It has no text.")
    if len(row.text) > MAX_CHARACTERS:
        raise UnusableError(f"Its text has more than {MAX_CHARACTERS:,} characters.")
    samples, rate = read_samples(path, min_rate, LONGEST_SECONDS)
    if float(np.abs(samples).max()) < SILENCE:
        raise UnusableError("It is silent.")
    found = hashlib.blake2b(samples.tobytes(), digest_size=16, key=str(rate).encode())
    return Recording(path, row.text, len(samples) / rate, found.hexdigest())


def _printable(name: str) -> str:
    """Return a name from a stranger's file as it can be printed."""
    return "".join(character if character.isprintable() else "?" for character in name[:100])


def load_recording(recording: Recording, sampling_rate: int) -> np.ndarray:
    """Return samples in [-1, 1], float32, resampled by soxr's "HQ" recipe, at their own level.

    Raises:
        InputError: the file has changed and cannot be used any more.
    """
    try:
        samples, rate = read_samples(recording.path, sampling_rate, LONGEST_SECONDS)
    except UnusableError as error:
        name = _printable(recording.path.name)
        raise InputError(f"The recording {name} was changed meanwhile: {error}") from error
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate, quality="HQ")
    return np.clip(samples, -1.0, 1.0)


class RecordedPairs(Sequence[RecordedPair]):
    """Latents and samples of recordings by index, each read and encoded when it is needed.

    An item is (latents [flow_size, frames], waveform [frames * hop_length]), float32 on the CPU,
    and the same every time. `cache_bytes` of what was encoded are kept, the latest used. InputError
    if the posterior is not of the original of `voice`, whose speaker is heard.
    """

    def __init__(
        self,
        recordings: Recordings,
        posterior: Posterior,
        voice: Voice,
        seed: int = 0,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        require_fit(posterior, voice)
        self._recordings, self._posterior = recordings.usable, posterior
        self._speaker, self._seed = voice.speaker, seed
        self._encoded: Bounded[int, tuple[torch.Tensor, ...]] = Bounded(
            cache_bytes, lambda tensors: sum(tensor.nbytes for tensor in tensors)
        )

    def __len__(self) -> int:
        return len(self._recordings)

    def __getitem__(self, index: int) -> RecordedPair:  # type: ignore[override]  # no slices
        """Return latents and samples; raise InputError if the file has changed."""
        index = range(len(self))[index]
        means, deviations, waveform = self._encoded.get_or_make(
            index, lambda: self._encode(self._recordings[index])
        )
        return draw_latents(means, deviations, (self._seed, index, 0))[0], waveform

    @property
    def digest(self) -> str:
        """A digest of the recordings' names, lengths and samples, the encoder, speaker and seed."""
        files = [(one.path.name, one.seconds, one.digest) for one in self._recordings]
        return digest(self._posterior.encoder.state_dict(), files, self._speaker, self._seed)

    def _encode(self, recording: Recording) -> tuple[torch.Tensor, ...]:
        """Return means, deviations [1, flow_size, frames] and samples of a recording."""
        posterior = self._posterior
        samples = torch.from_numpy(load_recording(recording, posterior.sampling_rate))
        missing = max(0, posterior.filter_length - len(samples))  # of the spectrogram's window
        samples = torch.nn.functional.pad(samples, (0, missing))
        means, deviations = posterior_statistics(posterior, samples, self._speaker)
        return means, deviations, samples[: means.shape[2] * posterior.hop_length]


def open_recordings(
    folder: str | os.PathLike[str],
    ref: str | os.PathLike[str],
    voice: Voice,
    revision: str | None = None,
    *,
    progress: Progress = SILENT,
) -> tuple[Recordings, Posterior]:
    """Return all that healing on recordings needs.

    `ref` and `revision` are the original, as `load_voice` was given them; `voice` is to be healed.

    Raises:
        InputError: the original has no posterior encoder (Piper's exports, saved voices), it does
            not fit the voice, or no recording can be used.
    """
    posterior = load_posterior(ref, revision=revision)
    require_fit(posterior, voice)
    return read_recordings(folder, voice, progress=progress), posterior
