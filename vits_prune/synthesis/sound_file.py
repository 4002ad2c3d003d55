"""Speech as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vits_prune.synthesis.speak import Speech


def write_wav(speech: Speech, path: str | Path) -> None:
    """Write speech as a 16-bit PCM WAV at its own level, never normalised."""
    import soundfile

    soundfile.write(path, speech.pcm16(), speech.sampling_rate, subtype="PCM_16")
