"""Counting what a download receives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from vits_prune.errors import InputError
from vits_prune.voices.hub_errors import TooManyBytes

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class DownloadMeter:
    """Counts what is received, tells the caller, and stops a server that sends more than it declared.

    huggingface_hub itself notices a wrong size only when the file has ended, so without this a server could fill the disk.
    """

    def __init__(self, max_bytes: int, on_progress: Progress | None) -> None:
        self.max_bytes = max_bytes
        self.on_progress = on_progress
        self.sizes: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.file = ""

    def expect(self, repo_id: str, sizes: dict[str, Any], max_bytes: int) -> None:
        """Note the declared sizes of files.

        Raises:
            InputError: together they are too large, or a size is not stated.
        """
        if not all(isinstance(size, int) and size >= 0 for size in sizes.values()):
            raise InputError(
                f"The hub does not say how large the files of {repo_id} are: try again later."
            )
        total = sum(sizes.values())
        if total > max_bytes:
            size, most = (f"{count / 2**20:,.1f} MiB" for count in (total, max_bytes))
            raise InputError(
                f"{repo_id} is {size}, more than the {most} accepted: choose a smaller model."
            )
        self.sizes = dict(sizes)

    @contextlib.contextmanager
    def counting(self, file: str) -> Iterator[None]:
        """Count what is received inside the block as this file; when it ends well the file is there whole."""
        self.file = file
        self.done.setdefault(file, 0)
        yield
        self.done[file] = self.sizes[file]
        self._tell()

    def received(self, count: float) -> None:
        """Note that so many bytes of the file came in.

        Raises:
            TooManyBytes: more than were declared.
        """
        self.done[self.file] += int(count)
        if self.done[self.file] > self.sizes[self.file]:
            raise TooManyBytes(self.file)
        self._tell()

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(sum(self.done.values()), sum(self.sizes.values()))

    def bar_class(self) -> type:
        """A progress bar as huggingface_hub wants it that reports here, and draws only where nobody listens."""
        from huggingface_hub.utils import tqdm

        meter = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                if meter.on_progress is not None:
                    kwargs["disable"] = True
                super().__init__(*args, **kwargs)

            def update(self, n: float | None = 1) -> bool | None:
                meter.received(n or 0)
                return super().update(n)

            def update_transfer(self, n: float | None = 1) -> None:
                """Bytes on the wire, which xet counts beside those of the file: having this method keeps it from opening a second bar."""

            def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
                """The rate of the same."""

        return Bar
