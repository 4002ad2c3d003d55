"""Pull the plug: a forked process that is killed, or finds the disk full, at its n-th write.

Writes are what Python does to files below a folder: `open` for writing, mkdir, rename, remove,
rmdir, truncate, chmod, link, write and fsync, as its audit events tell them. What libraries write
in C or Rust is cut by the size that a file may have (RLIMIT_FSIZE).
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import resource
import select
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

KINDS = ("killed", "power", "full")
"""killed: SIGKILL. power: what was not fsynced is half lost too. full: no space from then on."""
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link")
_TAKES_SPACE = ("open", "os.mkdir", "os.write", "os.fsync")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


running: list[int] = []
"""The process that was forked last."""


@dataclass(frozen=True)
class Ended:
    """How a forked process ended."""

    code: int
    """The exit code; -9 if it was killed."""
    said: str
    """On stdout and stderr."""


class Plug:
    """Counts the writes below a folder, and makes the n-th (from 0) fail."""

    def __init__(self, folder: Path, kind: str, at: int) -> None:
        self.folder, self.kind, self.left = str(folder), kind, at
        self.met = mmap.mmap(-1, 1)
        """Shared with the forked process: 1 once the fault was met."""
        self.synced = {one.st_ino: one.st_size for one in map(os.lstat, _files(folder))}

    def put_in(self) -> None:
        """Watch this process from now on."""
        self._fsync, self._write = os.fsync, os.write
        os.fsync, os.write = self.fsync, self.write
        sys.addaudithook(self.heard)

    def heard(self, event: str, given: tuple) -> None:
        if event == "open":
            path, mode, flags = given
            if not (set(mode or "") & set("wax+") or (flags or 0) & _WRITES):
                return
        elif event in _CHANGES:
            path = given[0]
        else:
            return
        if self._inside(path):
            self.count(event)
            if event == "open" and (flags or 0) & os.O_TRUNC and os.path.exists(path):
                self.synced[os.stat(path).st_ino] = 0

    def fsync(self, handle: int) -> None:
        there = os.fstat(handle)
        if not stat.S_ISFIFO(there.st_mode):
            self.count("os.fsync")
            self.synced[there.st_ino] = there.st_size
        self._fsync(handle)

    def write(self, handle: int, content: bytes) -> int:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            self.count("os.write")
        return self._write(handle, content)

    def _inside(self, path: object) -> bool:
        # a name alone is relative to an open folder, as where shutil.rmtree removes
        name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else "/"
        return name.startswith(self.folder) or os.sep not in name

    def count(self, event: str) -> None:
        self.left -= 1
        if self.left >= 0 or (self.kind == "power" and self.met[0]):
            return
        self.met[0] = 1
        if self.kind == "full":
            if event in _TAKES_SPACE:
                raise OSError(errno.ENOSPC, "No space left on device")
            return
        if self.kind == "power":
            for path in _files(Path(self.folder)):
                there = os.lstat(path)
                safe = self.synced.get(there.st_ino, 0)
                if there.st_size > safe:
                    os.truncate(path, safe + (there.st_size - safe) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def forked(
    work: Callable[[], int | None],
    plug: Plug | None = None,
    *,
    max_bytes: int | None = None,
    seconds: float = 3600,
) -> Ended:
    """Run something in a fork of this process, which must end by itself.

    Args:
        max_bytes: size that no file can exceed in it.
    """
    reads, writes = os.pipe()
    child = os.fork()
    running[:] = [child]
    if not child:
        os.close(reads)
        code = 70
        try:
            sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(writes, "w"), write_through=True)
            if max_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
            if plug:
                plug.put_in()
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writes)
    said, end = b"", time.monotonic() + seconds
    try:
        while select.select([reads], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(reads, 1 << 16)
            said += part
            if not part:
                break
        else:
            raise AssertionError(f"it hangs: {said.decode(errors='replace')[-2000:]}")
    finally:
        os.close(reads)
        with contextlib.suppress(ProcessLookupError):
            if time.monotonic() >= end:
                os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    return Ended(os.waitstatus_to_exitcode(status), said.decode(errors="replace"))


def hidden(folder: Path) -> list[str]:
    """What a killed run left behind below a folder."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob(".*")]


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[None]:
    """Let temporary files lie in a folder."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
