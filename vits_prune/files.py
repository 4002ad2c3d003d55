"""Files that are whole or not there: atomic writes, checksums, bounded JSON, and manifests."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_prune.errors import DamagedFileError, InputError

_CHUNK = 1 << 20
_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.part")
"""What is being written, or was when a process was killed."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with "~" made the home folder: in `--out=~/x` shells leave it.

    Raises:
        InputError: it begins with the home folder of a user whom this machine does not know.
    """
    found = Path(os.path.expanduser(path))
    if found.parts[:1] and found.parts[0].startswith("~"):
        if not os.fspath(path).startswith("~"):
            return found.absolute()  # a Path forgets the ./ of ./~x
        advice = f"write the whole path, or ./{found.parts[0]} for a folder here"
        raise InputError(f"There is no home folder {found.parts[0][:100]!r}: {advice}.")
    return found


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a new file to write to, which takes the place of `path` when the block ends well.

    What was at `path` stays when the block raises, the disk is full (OSError) or the process is
    killed. The folder is made if there is none.
    """
    with _beside(path, _new_file) as beside:
        yield beside
        _sync(beside)
        beside.chmod(0o644)
        beside.replace(path)
        _sync(path.parent)


def _new_file(**how: Any) -> str:
    handle, name = tempfile.mkstemp(**how)
    os.close(handle)
    return name


@contextlib.contextmanager
def _beside(target: Path, make: Callable[..., str]) -> Iterator[Path]:
    """Yield a new hidden file or folder beside `target`, which is gone at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        names_in(target.parent)
    with contextlib.ExitStack() as locks:
        made = None
        while made is None or not made.exists():  # removed before it was locked
            made = Path(make(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
            locks.enter_context(_locked(made))
        try:
            yield made
        finally:
            _remove(made)


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder, none if it is none; what killed runs left there is removed."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    parts = {name for name in names if _LEFTOVER.fullmatch(name)}
    for name in parts:
        with _locked(folder / name, wait=False) as free:
            if free:
                _remove(folder / name)
    return names - parts


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a file or folder until the block or the process ends; yield whether that was done."""
    handle, able = -1, False
    with contextlib.suppress(ImportError, OSError):  # Windows, or a disk of another machine
        import fcntl

        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        able = True
    try:
        yield able
    finally:
        if handle >= 0:
            os.close(handle)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, or a folder's names; OSError if the disk is full."""
    with contextlib.suppress(*[OSError] * path.is_dir()):  # not every system can for folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # some file systems report a full disk only here
        finally:
            os.close(handle)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file as `replaced_file` does; text is written as UTF-8."""
    with replaced_file(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, values: Any, indent: int = 2) -> None:
    """Write JSON as `write_file` writes text."""
    write_file(path, _json_text(values, indent))


def _json_text(values: Any, indent: int) -> str:
    return json.dumps(values, indent=indent, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder to write to, which takes the place of `target` when the block ends well.

    `target` stays as it was when the block raises, the disk is full (OSError) or the process is
    killed.
    """
    with _beside(target, tempfile.mkdtemp) as beside:
        beside.chmod(0o755)
        yield beside
        for path in (*beside.rglob("*"), beside):
            _sync(path)
        if not target.exists():
            beside.replace(target)
        elif not _swapped(beside, target):
            _exchange(beside, target)
        _sync(target.parent)


def _swapped(one: Path, other: Path) -> bool:
    """Exchange two names at once; return False where the system cannot (it is not Linux)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


@contextlib.contextmanager
def replaced_files(folder: Path, last: str) -> Iterator[Path]:
    """Yield a new folder; in the end its files take the places of those in `folder`, one by one.

    The file `last` says that they are whole: an older one goes first, and the new one comes last.
    """
    with _beside(folder / last, tempfile.mkdtemp) as beside:
        yield beside
        files = sorted(beside.iterdir(), key=lambda path: (path.name == last, path.name))
        for path in files:
            _sync(path)
        (folder / last).unlink(missing_ok=True)
        for path in files:
            path.replace(folder / path.name)
        _sync(folder)


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
        for chunk in _chunks(path):
            digest.update(chunk)
    return digest.hexdigest()


def crc32_of(path: Path) -> str:
    """Return the CRC-32 of a file in hexadecimal."""
    checksum = 0
    for chunk in _chunks(path):
        checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def read_json(path: Path, name: str = "", max_bytes: int = 1 << 20) -> dict[str, Any]:
    """Return the JSON object in a file that may be hostile.

    It is UTF-8, 16 or 32 with or without a byte order mark. Messages say that it belongs to `name`.

    Raises:
        InputError: it is missing, larger than `max_bytes`, or not a JSON object.
    """
    shown = f"The {path.name} of {name}" if name else path.name
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise InputError(f"{shown} is missing: check the folder.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown} cannot be read ({reason}): check the file.") from error
    return parse_json(content, shown, max_bytes)


def parse_json(content: bytes, shown: str, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """Return the JSON object in bytes that may be hostile, which messages call `shown`.

    Raises:
        InputError: it is larger than `max_bytes`, or not a JSON object.
    """
    if len(content) > max_bytes:
        raise InputError(f"{shown} is larger than {max_bytes >> 20} MiB: check the file.")
    try:
        values = json.loads(content)  # UTF-8, 16 or 32
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown} is not JSON: download or save it again.") from error
    if not isinstance(values, dict):
        raise InputError(f"{shown} is not a JSON object: download or save it again.")
    return values


def shown_name(folder: Path) -> str:
    """Return what messages call a folder: "owner/name" for one in the cache of the hub."""
    models, snapshots, *_ = [*folder.parts[-3:-1], "", ""]
    if snapshots == "snapshots" and models.startswith("models--"):
        return models.removeprefix("models--").replace("--", "/", 1)
    return folder.name


@dataclass(frozen=True)
class Manifest:
    """A kind of manifest: the JSON file that says what a folder holds.

    The checksums of the folder's files stand under `entry`, by file name. A manifest larger than
    `max_bytes` is neither written nor read.
    """

    name: str
    entry: str = "files"
    checksum: Callable[[Path], str] = sha256_of
    max_bytes: int = 64 << 20
    indent: int = 2

    def checksums(self, files: Iterable[Path]) -> dict[str, str]:
        """Return the checksums of files by their names, to be written under `entry`."""
        return {path.name: self.checksum(path) for path in sorted(files)}

    def write(self, folder: Path, values: dict[str, Any]) -> None:
        """Write the manifest as `write_file` does, or raise InputError if it is too large."""
        content = _json_text(values, self.indent).encode()
        if len(content) > self.max_bytes:
            what = f"{self.name} would be larger than {self.max_bytes >> 20} MiB"
            raise InputError(f"{what}: prune the original with fewer or shorter calibration texts.")
        write_file(folder / self.name, content)

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Return the values in the manifest of a folder, or None if it has none.

        Raises:
            DamagedFileError: it cannot be read, is too large, or is not a JSON object.
        """
        path = folder / self.name
        try:
            return read_json(path, shown_name(folder), self.max_bytes) if path.is_file() else None
        except InputError as error:
            raise DamagedFileError(f"{shown_name(folder)} is damaged: {error}") from error

    def listed(self, values: dict[str, Any]) -> dict[str, str]:
        """Return the checksums in a manifest by file name. No name leads out of the folder."""
        found = values.get(self.entry)
        items = found.items() if isinstance(found, dict) else ()
        return {Path(name).name: str(checksum) for name, checksum in items}

    def check(self, folder: Path, files: dict[str, str]) -> None:
        """Raise DamagedFileError if a file is missing or is not the one that was written."""
        for name, checksum in files.items():
            path = folder / name
            try:
                same = path.is_file() and self.checksum(path) == checksum
            except OSError:
                same = False
            if not same:
                what = f"its {name[:60]} is not the file that was saved"
                raise DamagedFileError(
                    f"{shown_name(folder)} is damaged: {what}. Copy or save it again."
                )
