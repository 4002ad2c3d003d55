"""What of a folder may be pushed to the hub, and the record of it that a push leaves in the repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from vits_prune.errors import InputError

RECORD = "vits_prune_push.json"
"""In the repository: the files of the latest push, so that the next one takes away those that it lacks, and nothing of anybody else."""
MARKS = ("vits_prune.json", "export.json")
"""A folder or a repository with one of these holds a voice that `save_voice` or `export_voice` wrote."""
MAX_FILES = 200
MAX_BYTES = 4 << 30
"""Of one push: twice what `load_voice` would fetch again."""
_MAX_RECORD_BYTES = 1 << 20
MAX_MARK_BYTES = 32 << 20
"""Of one of MARKS: both hold a recipe."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5")
"""Kinds of files that run code when they are read, or may; load_voice reads none of them."""


def pushable_files(folder: str | Path) -> dict[str, Path]:
    """The files of a folder by their path in the repository, sorted: those in it and one level below, hidden ones left out.

    Raises:
        InputError: it is no folder with a voice of this library, holds something that is not pushed, or is too large.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"There is no folder {str(folder)[:200]!r}: give one that an export wrote; nothing was published.")
    if not any((root / mark).is_file() for mark in MARKS):
        raise InputError(
            f"{root.name} is no voice that vits_prune saved (it has no {' and no '.join(MARKS)}): export the voice, and push that folder; "
            "nothing was published."
        )
    files: dict[str, Path] = {}
    try:
        for path in sorted(root.iterdir()):
            _gather(path, root, files)
            if path.is_dir() and not path.name.startswith("."):
                for below in sorted(path.iterdir()):
                    _gather(below, root, files)
                    if below.is_dir() and not below.name.startswith("."):
                        raise _refusal(root, below, "is a folder in a folder, and a push goes one level deep")
        size = sum(path.stat().st_size for path in files.values())
    except OSError as error:
        raise InputError(f"{root.name} cannot be read ({error.strerror}): check the folder; nothing was published.") from error
    if size > MAX_BYTES:
        raise InputError(
            f"{root.name} is {size / 2**20:,.0f} MiB, more than the {MAX_BYTES / 2**20:,.0f} MiB of a push: take out what is not the "
            "voice; nothing was published."
        )
    return files


def _gather(path: Path, root: Path, files: dict[str, Path]) -> None:
    """Note one entry of a folder that is a file to push."""
    name = path.relative_to(root).as_posix()
    if path.name.startswith(".") or name == RECORD:
        return
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise _refusal(root, path, "is a link that leads out of the folder")
    if path.is_dir() and not path.is_symlink():
        return
    if not path.is_file():
        raise _refusal(root, path, "is no plain file")
    if path.suffix.lower() in _PICKLES:
        raise _refusal(root, path, "is of a kind that can run code when it is opened, and voices are safetensors, ONNX and JSON")
    if not is_plain(name):
        raise _refusal(root, path, "has a name that a repository does not take")
    files[name] = path
    if len(files) > MAX_FILES:
        raise InputError(f"{root.name} holds more than {MAX_FILES} files: take out what is not the voice; nothing was published.")


def _refusal(root: Path, path: Path, why: str) -> InputError:
    shown = "".join(c if c.isprintable() else "?" for c in path.relative_to(root).as_posix())[:80]
    return InputError(f"{shown!r} in {root.name} {why}: take it out and push again; nothing was published.")


def is_plain(name: Any) -> bool:
    """Whether this is the name of a file in a repository or in a folder of it, nothing hidden and no way out."""
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable() or "\\" in name:
        return False
    parts = PurePosixPath(name).parts
    return "/".join(parts) == name and len(parts) <= 2 and not any(re.match(r"[.\s]|.*\s$", part) for part in parts) and name[0] != "/"


def voice_named_in(mark: bytes | None) -> str:
    """The name of the voice in the content of one of MARKS, "" where it tells none."""
    try:
        name = json.loads(mark)["name"] if mark and len(mark) <= MAX_MARK_BYTES else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return shown_name(name) if isinstance(name, str) else ""


def shown_name(name: str) -> str:
    """A voice's name as it is shown and compared."""
    return "".join(c if c.isprintable() else "?" for c in name)[:80]


def record_of(files: Iterable[str]) -> bytes:
    """What RECORD holds after a push of these files; the same files give the same bytes."""
    return (json.dumps({"files": sorted(files)}, indent=1, ensure_ascii=False) + "\n").encode()


def files_of_earlier_push(holds: Iterable[str], record: bytes | None, manifest: bytes | None) -> set[str]:
    """The files of a repository that an earlier push put there: what its record says, or else the manifest of a voice saved there by hand.

    Args:
        holds: the files that the repository has.
        record: the content of its RECORD, None where there is none.
        manifest: the content of its vits_prune.json, None where there is none.
    """
    names: set[str] = set()
    for content, mark in ((record, RECORD), (manifest, MARKS[0])):
        if content is None or len(content) > _MAX_RECORD_BYTES or names:
            continue
        try:
            listed = json.loads(content)["files"]
            names = {name for name in listed if is_plain(name)} | {mark} if len(listed) <= MAX_FILES else set()
        except (ValueError, KeyError, TypeError, RecursionError):
            names = set()
    return names & set(holds)
