"""Wait for the hub's client, count what it sends, and send in chunks.

The client (huggingface_hub) decides which files travel, sends and commits them. Three things it
does not do, and they are here: a caller that cancels is heard while the client waits
(`Meter.wait`), a hub that takes nothing and says nothing is given up, and bytes are reported as
they leave, over plain HTTP (`CountedFile`) and in chunks (`send_in_chunks`): the client draws its
own bars in a terminal only, and cannot be stopped in the middle of a file.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vits_prune.progress import Progress
from vits_prune.ship.push_errors import PushStalled, PushState, PushStopped

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Result = TypeVar("Result")

STALL_SECONDS = 150.0
"""How long the hub may neither take a byte nor answer. The client waits up to half a minute between
its own retries."""
_TICK_SECONDS = 0.1


class Meter:
    """Counts what a push has sent, and keeps its caller informed while the client works."""

    def __init__(self, total: int, progress: Progress, state: PushState) -> None:
        self.total = total
        self.state = state
        self.done: dict[str, int] = {}
        """Bytes of each file that are on the hub."""
        self.sent: dict[str, int] = {}
        """Bytes of each large file that this push sent."""
        self.stopped = False
        self.abort: Callable[[], None] | None = None
        """Ends a transfer that does not read its files through `CountedFile`."""
        self._progress = progress
        self._alive = time.monotonic()

    def alive(self) -> None:
        """Note a sign of life of the other side."""
        self._alive = time.monotonic()

    def arrived(self, file: str, count: int) -> None:
        """Note that so many bytes of a file are on the hub; a retry takes none back."""
        self.alive()
        self.done[file] = max(self.done.get(file, 0), count)

    def report(self) -> None:
        """Report to the caller, who may raise to cancel."""
        done = min(sum(list(self.done.values())), self.total)
        message = f"sending {done / 1e6:.1f} of {self.total / 1e6:.1f} MB"
        try:
            self._progress.report(message, done / max(1, self.total))
        except BaseException as error:
            self.state.cancelled = error
            raise

    def wait(self, call: Callable[[], Result], *, listen: bool = True) -> Result:
        """Return what a call gives, made in a thread.

        Args:
            call: what to do.
            listen: whether the caller is told and may cancel meanwhile; if not, the first Ctrl-C
                waits for the end, too.

        Raises:
            PushStalled: there was no sign of life for STALL_SECONDS.
        """
        self.alive()
        future: Future[Result] = Future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                future.set_result(context.run(call))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name="push", daemon=True).start()
        try:
            self._until(future, listen)
        except BaseException:
            self.stopped = True
            if self.abort is not None:
                with contextlib.suppress(Exception):
                    self.abort()
            raise
        return future.result()

    def _until(self, future: Future[Any], listen: bool) -> None:
        patient = not listen
        while True:
            try:
                if wait_for([future], timeout=_TICK_SECONDS).done:
                    return
                if listen:
                    self.report()
                if time.monotonic() - self._alive > STALL_SECONDS:
                    raise PushStalled
            except KeyboardInterrupt:
                if not patient:
                    raise
                patient = False


class CountedFile(io.BufferedReader):
    """A file that tells a Meter how far it was sent, and raises once the push was stopped.

    The client sends a file object over plain HTTP (LFS) only.
    """

    def __init__(self, path: Path, name: str, meter: Meter) -> None:
        super().__init__(io.FileIO(path))
        self.sending = False
        """False while the file is only read for its checksum or as a part of the commit."""
        self._name, self._meter = name, meter

    def read(self, size: int | None = -1, /) -> bytes:
        if self._meter.stopped:
            raise PushStopped
        data = super().read(size)
        if self.sending:
            self._meter.sent[self._name] = max(self._meter.sent.get(self._name, 0), self.tell())
            self._meter.arrived(self._name, self.tell())
        else:
            self._meter.alive()
        return data


def offers_chunks(api: HfApi, repo_id: str) -> bool:
    """Whether this machine and the hub can send in chunks (xet), of which only new ones travel.

    Raises:
        HfHubHTTPError: this token may not write there.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if constants.HF_HUB_DISABLE_XET or _hf_xet() is None:
        return False
    headers = build_hf_headers(token=api.token)
    answer = get_session().get(_chunk_token_url(api, repo_id), headers=headers)
    if answer.status_code in (401, 403):
        hf_raise_for_status(answer)
    named = constants.HUGGINGFACE_HEADER_X_XET_ENDPOINT in answer.headers
    return answer.status_code == 200 and (named or '"casUrl"' in answer.text[:10_000])


def _hf_xet() -> Any:
    try:
        import hf_xet
    except ImportError:
        return None
    return hf_xet if hasattr(hf_xet, "XetSession") else None


def _chunk_token_url(api: HfApi, repo_id: str) -> str:
    return f"{api.endpoint}/api/models/{repo_id}/xet-write-token/main"


def send_in_chunks(api: HfApi, repo_id: str, files: dict[str, Path], meter: Meter) -> None:
    """Send files through hf_xet itself; the client then finds their chunks and sends none again."""
    from huggingface_hub.utils import build_hf_headers

    if not files:
        return
    headers = build_hf_headers(token=api.token)
    session = _hf_xet().XetSession()
    meter.abort = session.sigint_abort
    sizes = {name: path.stat().st_size for name, path in files.items()}
    latest: list[Any] = [None]

    def listen(report: Any, _items: Any = None) -> None:
        shard = getattr(report, "shard", None)
        checked = getattr(shard, "total_shard_validation_entries_completed", 0)
        reached = (report.total_bytes_completed, report.total_transfer_bytes_completed, checked)
        if reached == latest[0]:
            return
        latest[0] = reached
        # What was read runs ahead of what was sent, of which some is on the hub already: the lesser
        # share is shown.
        share = report.total_bytes_completed / max(report.total_bytes, sum(sizes.values()), 1)
        if report.total_transfer_bytes:
            sent = report.total_transfer_bytes_completed / report.total_transfer_bytes
            share = min(share, sent)
        meter.sent["chunks"] = report.total_transfer_bytes_completed
        for name, size in sizes.items():
            meter.arrived(name, int(min(share, 1.0) * size))

    # The storage has a token of its own.
    plain = {key: value for key, value in headers.items() if key.lower() != "authorization"}
    try:
        with session.new_upload_commit(
            token_refresh_url=_chunk_token_url(api, repo_id),
            token_refresh_headers=headers,
            custom_headers=plain,
            progress_callback=listen,
        ) as commit:
            for path in files.values():
                if meter.stopped:
                    raise PushStopped
                commit.start_upload_file(str(path.resolve()))
    except RuntimeError as error:  # how hf_xet reports a broken connection
        raise ConnectionError("hf_xet could not send all") from error
    finally:
        meter.abort = None


@contextlib.contextmanager
def counted(files: Iterable[CountedFile]) -> Iterator[None]:
    """Count what is read of the files as sent, and hide the client's own bars meanwhile."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    opened, hidden = list(files), are_progress_bars_disabled()
    if not hidden:
        disable_progress_bars()
    for file in opened:
        file.sending = True
    try:
        yield
    finally:
        for file in opened:
            file.sending = False
        if not hidden:
            enable_progress_bars()
