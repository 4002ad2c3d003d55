"""A visitor's own recordings as one more source to heal from: which of them can be used, and their latents beside their samples.

The folder comes from a stranger. Every recording is read once from end to end, piece by piece, before anything is trained, and what cannot
be used is skipped and listed; afterwards each is read again when its turn comes, so that memory stays within a bound.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vits_prune.errors import InputError
from vits_prune.healing.audio import UnusableError, read_samples
from vits_prune.healing.transcripts import Row, find_audio, read_rows
from vits_prune.synthesis.speak import MAX_CHARACTERS
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    import torch

    from vits_prune.healing.posterior import Posterior

MOST_SECONDS = 30.0
"""Longest recording that is used unless asked otherwise; those of LJSpeech have 10 seconds at most."""
LIMIT = 1_000
"""So many recordings are used unless asked otherwise."""
CACHE_BYTES = 512 << 20
"""Of encoded recordings kept in memory, some 40 minutes of speech at 22,050 Hz."""
MAX_SECONDS, MAX_LIMIT = 120.0, 100_000
SILENCE = 10 ** (-50 / 20)
"""A recording whose loudest sample is below this (-50 dBFS) is silent."""


@dataclass(frozen=True)
class Clip:
    """One recording that can be used."""

    path: Path
    text: str
    seconds: float
    digest: str
    """A name for its samples: 32 hexadecimal digits."""


@dataclass(frozen=True)
class Skipped:
    """One that cannot, and why."""

    name: str
    """As the transcript names it."""
    reason: str
    """One sentence."""


@dataclass(frozen=True)
class Recordings:
    """The recordings of a folder, in the order of its transcript."""

    clips: tuple[Clip, ...]
    skipped: tuple[Skipped, ...] = ()
    left: int = 0
    """Recordings that were not looked at, since the limit was reached before."""

    @property
    def seconds(self) -> float:
        """Of all clips together."""
        return sum(clip.seconds for clip in self.clips)


def read_recordings(
    folder: str | os.PathLike[str],
    voice: Voice,
    *,
    most_seconds: float = MOST_SECONDS,
    limit: int = LIMIT,
    on_clip: Callable[[int, int], None] | None = None,
) -> Recordings:
    """Which recordings of a folder can be used to heal a voice.

    Args:
        folder: in LJSpeech's layout (metadata.csv with `id|text` or `id|text|normalised text`, the audio in wavs/ or beside it), or a
            Hugging Face audio folder (metadata.csv or metadata.jsonl with file_name and transcription, text or sentence).
        voice: that is to be healed; its sampling rate is the lowest that is taken.
        most_seconds: longest recording that is taken, 1 to MAX_SECONDS.
        limit: the first so many usable ones, 1 to MAX_LIMIT.
        on_clip: called with (rows done, rows in all) before each recording and at the end; it may raise to cancel.

    Raises:
        InputError: the folder has no readable transcript or no usable recording, or a bound is out of range.
    """
    _check_bounds(most_seconds, limit)
    folder = Path(folder)
    rows, broken = read_rows(folder)
    root = folder.resolve()
    clips: list[Clip] = []
    skipped = [Skipped(name, reason) for name, reason in broken]
    seen: set[Path] = set()
    done = 0
    for row in rows:
        if len(clips) == limit:
            break
        if on_clip:
            on_clip(done, len(rows))
        done += 1
        try:
            clips.append(_examine(row, root, seen, voice.sampling_rate, most_seconds))
        except UnusableError as error:
            skipped.append(Skipped(_shown(row.name), str(error)))
    if on_clip:
        on_clip(len(rows), len(rows))
    if not clips:
        first = (
            f", for one {skipped[0].name}: {skipped[0].reason}"
            if skipped
            else ": its transcript is empty."
        )
        raise InputError(f"No recording in {folder.name[:100]!r} can be used{first}")
    return Recordings(tuple(clips), tuple(skipped), len(rows) - done)


def load_clip(clip: Clip, sampling_rate: int, most_seconds: float = MAX_SECONDS) -> np.ndarray:
    """The samples of a recording: channels averaged, resampled by soxr's "HQ" recipe, at its own level.

    Args:
        clip: of `read_recordings`.
        sampling_rate: wanted, samples per second.
        most_seconds: the file is refused where it has become longer.

    Returns:
        float32 [samples] in [-1, 1].

    Raises:
        InputError: the file has changed and cannot be used any more.
    """
    import soxr

    try:
        samples, rate = read_samples(clip.path, sampling_rate, most_seconds)
    except UnusableError as error:
        raise InputError(
            f"The recording {_shown(clip.path.name)} was changed while it was in use: {error}"
        ) from error
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate, quality="HQ")
    return np.clip(samples, -1.0, 1.0)


class Pairs(Sequence):
    """Latents and samples of recordings, by index: each clip is read and encoded when it is asked for.

    An item is (latents [flow_size, frames], waveform [frames * hop_length]), float32 on the CPU; frame t stands for the samples
    t hop_length to (t + 1) hop_length. The same index gives the same item, so a healing that is resumed sees what it would have seen. What
    was encoded is kept within a bound; past it, the clip that was used longest ago is encoded anew when its turn comes.
    """

    def __init__(
        self,
        recordings: Recordings,
        posterior: Posterior,
        speaker: int | None,
        seed: int,
        cache_bytes: int,
    ) -> None:
        self._clips = recordings.clips
        self._posterior = posterior
        self._speaker = speaker
        self._seed = seed
        self._encoded: OrderedDict[int, tuple[torch.Tensor, ...]] = OrderedDict()
        self._cache_bytes = cache_bytes
        self.bytes = 0
        """Of what is kept."""

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The pair of a clip.

        Raises:
            InputError: the recording was changed since it was found usable.
        """
        from vits_prune.healing.posterior import draw_latents

        index = range(len(self))[index]
        means, deviations, waveform = self._statistics(index)
        return draw_latents(means, deviations, (self._seed, index, 0))[0], waveform

    @property
    def digest(self) -> str:
        """A name for all that the pairs depend on: names, lengths and samples of the clips, the encoder, speaker and seed."""
        from vits_prune.healing.storage import digest

        clips = [(clip.path.name, clip.seconds, clip.digest) for clip in self._clips]
        return digest(self._posterior.encoder.state_dict(), clips, self._speaker, self._seed)

    def _statistics(self, index: int) -> tuple[torch.Tensor, ...]:
        """Means and deviations [1, flow_size, frames] and waveform [frames * hop_length] of a clip."""
        from vits_prune.healing.posterior import posterior_statistics

        if index in self._encoded:
            self._encoded.move_to_end(index)
            return self._encoded[index]
        samples = _samples(self._clips[index], self._posterior)
        means, deviations = (
            tensor.cpu() for tensor in posterior_statistics(self._posterior, samples, self._speaker)
        )
        found = (means, deviations, samples[: means.shape[2] * self._posterior.hop_length])
        self._encoded[index] = found
        self.bytes += _size(found)
        while self.bytes > self._cache_bytes and len(self._encoded) > 1:
            self.bytes -= _size(self._encoded.popitem(last=False)[1])
        return found


def pairs(
    recordings: Recordings,
    posterior: Posterior,
    voice: Voice,
    seed: int = 0,
    *,
    cache_bytes: int = CACHE_BYTES,
) -> Pairs:
    """What a decoder learns from recordings: latents and the samples that it should make of them.

    Args:
        recordings: that were found usable.
        posterior: the posterior encoder of the voice that `voice` was made from.
        voice: whose speaker is heard in the recordings.
        seed: of the posterior's noise.
        cache_bytes: of encoded recordings kept in memory.

    Raises:
        InputError: posterior encoder and voice do not belong together.
    """
    from vits_prune.healing.posterior import require_fit

    require_fit(posterior, voice)
    return Pairs(recordings, posterior, voice.speaker, seed, cache_bytes)


def open_recordings(
    folder: str | os.PathLike[str],
    ref: str | os.PathLike[str],
    voice: Voice,
    *,
    revision: str | None = None,
    most_seconds: float = MOST_SECONDS,
    limit: int = LIMIT,
    on_clip: Callable[[int, int], None] | None = None,
) -> tuple[Recordings, Posterior]:
    """All that healing on recordings takes, or one sentence why it cannot be, before anything is trained.

    Args:
        folder: see `read_recordings`, as the arguments after `revision`.
        ref: the teacher as it was given to `load_voice`.
        voice: that is to be healed.
        revision: branch, tag or commit of a hub id, as it was given to `load_voice`.

    Raises:
        InputError: the teacher has no posterior encoder (Piper's exports, saved voices), it does not fit the voice, or the folder has
            nothing to use.
    """
    from vits_prune.healing.posterior import load_posterior, require_fit

    posterior = load_posterior(ref, revision=revision)
    require_fit(posterior, voice)
    return read_recordings(
        folder, voice, most_seconds=most_seconds, limit=limit, on_clip=on_clip
    ), posterior


def _samples(clip: Clip, posterior: Posterior) -> torch.Tensor:
    """The samples of a clip [samples], with silence behind one that is shorter than the spectrogram's window."""
    import torch

    samples = torch.from_numpy(load_clip(clip, posterior.sampling_rate))
    return torch.nn.functional.pad(samples, (0, max(0, posterior.filter_length - len(samples))))


def _size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _check_bounds(most_seconds: float, limit: int) -> None:
    if (
        isinstance(most_seconds, bool)
        or not isinstance(most_seconds, int | float)
        or not 1 <= most_seconds <= MAX_SECONDS
    ):
        raise InputError(
            f"The longest recording must be 1 to {MAX_SECONDS:g} seconds, not {str(most_seconds)[:40]!r}."
        )
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise InputError(
            f"The number of recordings must be a whole number from 1 to {MAX_LIMIT:,}, not {str(limit)[:40]!r}."
        )


def _examine(
    row: Row, root: Path, seen: set[Path], sampling_rate: int, most_seconds: float
) -> Clip:
    """The clip of a row of the transcript; its path is noted in `seen`.

    Raises:
        UnusableError: it cannot be used.
    """
    path, reason = find_audio(root, row)
    if path is None:
        raise UnusableError(reason)
    if path in seen:
        raise UnusableError("It is named twice.")
    seen.add(path)
    if not row.text:
        raise UnusableError("It has no text.")
    if len(row.text) > MAX_CHARACTERS:
        raise UnusableError(f"Its text has more than {MAX_CHARACTERS:,} characters.")
    samples, rate = read_samples(path, sampling_rate, most_seconds)
    if float(np.abs(samples).max()) < SILENCE:
        raise UnusableError("It is silent.")
    found = hashlib.blake2b(samples.tobytes(), digest_size=16, key=str(rate).encode())
    return Clip(path, row.text, len(samples) / rate, found.hexdigest())


def _shown(name: str) -> str:
    """A name from a stranger's file as it can be printed."""
    return "".join(character if character.isprintable() else "?" for character in name[:100])
