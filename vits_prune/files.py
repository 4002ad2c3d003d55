"""Files that are whole or not there: atomic writes, checksums, and JSON read within bounds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError

_CHUNK = 1 << 20


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a new file to write to, which takes the place of `path` when the block ends well.

    What was at `path` before stays as it was when the block raises or the disk is full. The folder
    of `path` is made if there is none.

    Raises:
        OSError: the disk does not take the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())  # some file systems report a full disk only here
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file that is there whole or as it was before; text is written as UTF-8.

    Raises:
        OSError: the disk does not take the file.
    """
    with replaced_file(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, values: Any, indent: int = 2) -> None:
    """Write JSON that is there whole or as it was before.

    Raises:
        OSError: the disk does not take the file.
    """
    write_file(path, json.dumps(values, indent=indent, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder to write to, which takes the place of `target` when the block ends well.

    Raises:
        OSError: the disk does not take it; `target` is then as it was before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        beside.chmod(0o755)
        yield beside
        if target.exists():
            _exchange(beside, target)
        else:
            beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _exchange(beside: Path, target: Path) -> None:
    """Put a folder in the place of another, which is removed; if that fails the other stays."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        target.replace(old / "old")
        try:
            beside.replace(target)
        except OSError:
            (old / "old").replace(target)
            raise
    except OSError:
        with contextlib.suppress(OSError):
            old.rmdir()  # only if it is empty: never with the other folder still in it
        raise
    shutil.rmtree(old, ignore_errors=True)


def sha256_of(*paths: Path) -> str:
    """Return the SHA-256 of one file, or of several in a row, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path, name: str, max_bytes: int = 64 << 20) -> dict[str, Any]:
    """Return the JSON object in a file that may be hostile.

    Args:
        path: the file.
        name: what it belongs to, for the messages.
        max_bytes: a larger file is refused before it is parsed.

    Raises:
        InputError: it is missing, too large, or not a JSON object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise InputError(f"{name} has no {path.name}: check the folder.") from error
    except OSError as error:
        raise InputError(
            f"The {path.name} of {name} cannot be read ({error.strerror}): check the file."
        ) from error
    if len(data) > max_bytes:
        raise InputError(
            f"The {path.name} of {name} is larger than {max_bytes >> 20} MiB: check it."
        )
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"The {path.name} of {name} is not JSON: download or save it again."
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            f"The {path.name} of {name} is not a JSON object: download or save it again."
        )
    return values
