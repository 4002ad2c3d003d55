"""A user's recordings as a second source to learn from: which can be used, and their latents.

The folder comes from a stranger. Every recording is read once from end to end before anything is
trained; what cannot be used is skipped and listed. Each is read again when it is needed, so that
memory stays bounded.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch

from vits_prune.errors import InputError
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

LONGEST_SECONDS, MAX_SECONDS = 30.0, 120.0
"""The longest recording that is used, unless asked otherwise and at most."""
LIMIT, MAX_LIMIT = 1_000, 100_000
"""How many recordings are used, unless asked otherwise and at most."""
CACHE_BYTES = 512 << 20
"""Of encoded recordings in memory: some 40 minutes of speech at 22,050 Hz."""
SILENCE = 10 ** (-50 / 20)
"""A recording whose loudest sample is below -50 dBFS is silent."""


@dataclass(frozen=True)
class Recording:
    """One that can be used."""

    path: Path
    text: str
    seconds: float
    digest: str
    """Of its samples: 32 hexadecimal digits."""


@dataclass(frozen=True)
class Recordings:
    """The recordings of a folder, in the order of its transcript."""

    usable: tuple[Recording, ...]
    skipped: tuple[Skipped, ...] = ()
    left: int = 0
    """Recordings beyond the limit, which were not read."""

    @property
    def seconds(self) -> float:
        """Of all usable ones together."""
        return sum(one.seconds for one in self.usable)


def read_recordings(
    folder: str | os.PathLike[str],
    voice: Voice,
    *,
    longest_seconds: float = LONGEST_SECONDS,
    limit: int = LIMIT,
    progress: Progress = SILENT,
) -> Recordings:
    """Find the recordings of a folder that can be used to heal a voice.

    Args:
        folder: in LJSpeech's layout (metadata.csv with `id|text` or `id|text|normalised text`, the
            audio in wavs/ or next to it), or a Hugging Face audio folder (metadata.csv or
            metadata.jsonl with file_name and transcription, text or sentence).
        voice: its sampling rate is the lowest that is accepted.
        longest_seconds: longest recording that is used, 1 to MAX_SECONDS.
        limit: number of usable recordings, 1 to MAX_LIMIT.
        progress: over the rows of the transcript.

    Raises:
        InputError: there is no readable transcript or usable recording, or a bound is out of range.
    """
    _check_bounds(longest_seconds, limit)
    folder = Path(folder)
    rows, skipped = read_rows(folder)
    root = folder.resolve()
    usable: list[Recording] = []
    seen: set[Path] = set()
    done = 0
    for row in progress.track(rows, "reading recording"):
        if len(usable) == limit:
            break
        done += 1
        try:
            path = find_audio(root, row)
            if path in seen:
                raise UnusableError("It is named twice.")
            seen.add(path)
            usable.append(_examined(path, row, voice.sampling_rate, longest_seconds))
        except UnusableError as error:
            skipped.append(Skipped(_printable(row.name), str(error)))
    if not usable:
        why = ": its transcript is empty."
        if skipped:
            why = f", for one {skipped[0].name}: {skipped[0].reason}"
        raise InputError(f"No recording in {folder.name[:100]!r} can be used{why}")
    return Recordings(tuple(usable), tuple(skipped), len(rows) - done)


def _examined(path: Path, row: Row, min_rate: int, longest_seconds: float) -> Recording:
    if not row.text:
        raise UnusableError("It has no text.")
    if len(row.text) > MAX_CHARACTERS:
        raise UnusableError(f"Its text has more than {MAX_CHARACTERS:,} characters.")
    samples, rate = read_samples(path, min_rate, longest_seconds)
    if float(np.abs(samples).max()) < SILENCE:
        raise UnusableError("It is silent.")
    found = hashlib.blake2b(samples.tobytes(), digest_size=16, key=str(rate).encode())
    return Recording(path, row.text, len(samples) / rate, found.hexdigest())


def _check_bounds(longest_seconds: float, limit: int) -> None:
    for what, value, kinds, most in (
        ("seconds of the longest recording", longest_seconds, (int, float), MAX_SECONDS),
        ("number of recordings", limit, (int,), MAX_LIMIT),
    ):
        if type(value) not in kinds or not 1 <= value <= most:
            shown = str(value)[:40]
            raise InputError(f"The {what} must be from 1 to {most:,.0f}, not {shown!r}.")


def _printable(name: str) -> str:
    """Return a name from a stranger's file as it can be printed."""
    return "".join(character if character.isprintable() else "?" for character in name[:100])


def load_recording(recording: Recording, sampling_rate: int) -> np.ndarray:
    """Return samples in [-1, 1], float32, resampled by soxr's "HQ" recipe, at their own level.

    Raises:
        InputError: the file has changed and cannot be used any more.
    """
    try:
        samples, rate = read_samples(recording.path, sampling_rate, MAX_SECONDS)
    except UnusableError as error:
        name = _printable(recording.path.name)
        words = f"The recording {name} was changed while it was in use: {error}"
        raise InputError(words) from error
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate, quality="HQ")
    return np.clip(samples, -1.0, 1.0)


class RecordedPairs(Sequence[RecordedPair]):
    """Latents and samples of recordings by index, each read and encoded when it is needed.

    An item is (latents [flow_size, frames], waveform [frames * hop_length]), float32 on the CPU.
    The same index gives the same item, so a resumed healing sees what an uninterrupted one would.
    `cache_bytes` of what was encoded are kept; beyond it the least recently used goes. InputError
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
        self._speaker, self._seed, self._cache_bytes = voice.speaker, seed, cache_bytes
        self._encoded: OrderedDict[int, tuple[torch.Tensor, ...]] = OrderedDict()
        self.bytes = 0
        """Of what is kept."""

    def __len__(self) -> int:
        return len(self._recordings)

    def __getitem__(self, index: int) -> RecordedPair:  # type: ignore[override]  # no slices
        """Return latents and samples; raise InputError if the file has changed."""
        index = range(len(self))[index]
        means, deviations, waveform = self._statistics(index)
        return draw_latents(means, deviations, (self._seed, index, 0))[0], waveform

    @property
    def digest(self) -> str:
        """A digest of the recordings' names, lengths and samples, the encoder, speaker and seed."""
        files = [(one.path.name, one.seconds, one.digest) for one in self._recordings]
        return digest(self._posterior.encoder.state_dict(), files, self._speaker, self._seed)

    def _statistics(self, index: int) -> tuple[torch.Tensor, ...]:
        """Return means, deviations [1, flow_size, frames] and samples of a recording."""
        if index in self._encoded:
            self._encoded.move_to_end(index)
            return self._encoded[index]
        posterior = self._posterior
        samples = torch.from_numpy(load_recording(self._recordings[index], posterior.sampling_rate))
        missing = max(0, posterior.filter_length - len(samples))  # of the spectrogram's window
        samples = torch.nn.functional.pad(samples, (0, missing))
        means, deviations = posterior_statistics(posterior, samples, self._speaker)
        waveform = samples[: means.shape[2] * posterior.hop_length]
        found = (means.cpu(), deviations.cpu(), waveform)
        self._encoded[index] = found
        self.bytes += sum(tensor.nbytes for tensor in found)
        while self.bytes > self._cache_bytes and len(self._encoded) > 1:
            _, oldest = self._encoded.popitem(last=False)
            self.bytes -= sum(tensor.nbytes for tensor in oldest)
        return found


def open_recordings(
    folder: str | os.PathLike[str],
    ref: str | os.PathLike[str],
    voice: Voice,
    *,
    revision: str | None = None,
    longest_seconds: float = LONGEST_SECONDS,
    limit: int = LIMIT,
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
    found = read_recordings(
        folder, voice, longest_seconds=longest_seconds, limit=limit, progress=progress
    )
    return found, posterior
