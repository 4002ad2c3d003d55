"""Sending large files to the hub: counted, cancelled at once, and given up where the other side says nothing."""

from __future__ import annotations

import contextlib
import contextvars
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any, TypeVar

from vits_prune.voices.hub_errors import FileRefused, PushStalled, PushState, PushStopped

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""
Result = TypeVar("Result")

STALL_SECONDS = 150.0
"""How long the hub may neither take a byte nor answer. Its client waits without end, and between its own retries up to half a minute."""
_TICK_SECONDS = 0.1


class Meter:
    """Counts what a push has sent and hands the calls of its client to a thread, so that the caller is heard while one of them waits."""

    def __init__(self, total: int, on_progress: Progress | None, state: PushState) -> None:
        self.total = total
        self.state = state
        self.on_progress = on_progress
        self.done: dict[str, int] = {}
        """Bytes of each file that are on the hub."""
        self.sent: dict[str, int] = {}
        """Bytes of each large file that this push sent."""
        self.stopped = False
        self.abort: Callable[[], None] | None = None
        """Ends a transfer that does not read its files through `CountedFile`."""
        self._alive = time.monotonic()

    def alive(self) -> None:
        """Note a sign of life of the other side."""
        self._alive = time.monotonic()

    def arrived(self, file: str, count: int) -> None:
        """Note that so many bytes of a file are on the hub; a retry that begins anew does not take any back."""
        self.alive()
        self.done[file] = max(self.done.get(file, 0), count)

    def tell(self) -> None:
        """Tell the caller, who may raise to cancel."""
        if self.on_progress is not None:
            try:
                self.on_progress(min(sum(list(self.done.values())), self.total), self.total)
            except BaseException as error:
                self.state.cancelled = error
                raise

    def wait(self, call: Callable[[], Result], *, listen: bool = True) -> Result:
        """What a call gives, made in a thread.

        Args:
            call: what to do.
            listen: whether the caller is told and may cancel meanwhile; where not, the first Ctrl-C waits for the end, too.

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
            self.stop()
            raise
        return future.result()

    def _until(self, future: Future[Any], listen: bool) -> None:
        patient = not listen
        while True:
            try:
                if wait_for([future], timeout=_TICK_SECONDS).done:
                    return
                if listen:
                    self.tell()
                if time.monotonic() - self._alive > STALL_SECONDS:
                    raise PushStalled
            except KeyboardInterrupt:
                if not patient:
                    raise
                patient = False

    def stop(self) -> None:
        """End what is still being sent: nobody waits for it."""
        self.stopped = True
        if self.abort is not None:
            with contextlib.suppress(Exception):
                self.abort()


class CountedFile(io.BufferedReader):
    """A file that tells a Meter how far it was sent, and ends the sending when the push was stopped.

    huggingface_hub sends a file object over plain HTTP (LFS) only; xet reads paths.
    """

    def __init__(self, path: str, name: str, meter: Meter) -> None:
        super().__init__(io.FileIO(path))
        self.sending = False
        """False while the file is only read to make its checksum."""
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


def offers_xet(api: HfApi, repo_id: str) -> bool:
    """Whether both this machine and the hub can send in chunks (xet), of which only new ones travel.

    Raises:
        HfHubHTTPError: this token may not write there.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if constants.HF_HUB_DISABLE_XET or _hf_xet() is None:
        return False
    answer = get_session().get(
        _xet_token_url(api, repo_id), headers=build_hf_headers(token=api.token)
    )
    if answer.status_code in (401, 403):
        hf_raise_for_status(answer)
    offered = (
        constants.HUGGINGFACE_HEADER_X_XET_ENDPOINT in answer.headers
        or '"casUrl"' in answer.text[:10_000]
    )
    return answer.status_code == 200 and offered


def _hf_xet() -> Any:
    try:
        import hf_xet
    except ImportError:
        return None
    return hf_xet if hasattr(hf_xet, "XetSession") else None


def _xet_token_url(api: HfApi, repo_id: str) -> str:
    return f"{api.endpoint}/api/models/{repo_id}/xet-write-token/main"


def send_large(api: HfApi, repo_id: str, additions: list[CommitOperationAdd], meter: Meter) -> None:
    """Send those files that the hub does not keep in git and does not have yet. Nobody sees them before the commit.

    Args:
        additions: with CountedFile objects where plain HTTP shall carry them, with paths for xet. Files that git keeps are left alone.
    """
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=api.token)
    try:
        from huggingface_hub._commit_api import _fetch_upload_modes
    except (
        ImportError
    ):  # a client that is made otherwise: let it do all of it, which is counted less finely
        api.preupload_lfs_files(repo_id, additions, revision="main", free_memory=False)
        return
    _fetch_upload_modes(
        additions,
        repo_type="model",
        repo_id=repo_id,
        headers=headers,
        revision="main",
        endpoint=api.endpoint,
    )
    large = [
        addition
        for addition in additions
        if addition._upload_mode == "lfs" and not addition._should_ignore
    ]
    by_path = [addition for addition in large if isinstance(addition.path_or_fileobj, str)]
    changed = [
        addition
        for addition in by_path
        if addition._remote_oid != addition.upload_info.sha256.hex()
    ]
    if changed:
        _send_by_xet(api, repo_id, changed, meter)
    _send_by_http(api, repo_id, [addition for addition in large if addition not in by_path], meter)
    for addition in large:
        addition._is_uploaded = True


def _send_by_http(
    api: HfApi, repo_id: str, additions: list[CommitOperationAdd], meter: Meter
) -> None:
    """Send files as git-lfs does: ask which ones are missing, and put those."""
    from huggingface_hub.lfs import lfs_upload, post_lfs_batch_info
    from huggingface_hub.utils import build_hf_headers

    if not additions:
        return
    headers = build_hf_headers(token=api.token)
    by_hash = {addition.upload_info.sha256.hex(): addition for addition in additions}
    actions, refused, _ = post_lfs_batch_info(
        [addition.upload_info for addition in by_hash.values()],
        token=None,  # in the headers
        repo_type="model",
        repo_id=repo_id,
        revision="main",
        endpoint=api.endpoint,
        headers=headers,
    )
    if refused:
        raise FileRefused(str(refused[0]["error"]["message"]))
    for action in actions:
        addition = by_hash[action["oid"]]
        file = addition.path_or_fileobj
        if isinstance(file, CountedFile):
            file.sending = True
        lfs_upload(addition, action, headers=headers, endpoint=api.endpoint)
        if isinstance(file, CountedFile):
            file.sending = False
    for addition in additions:
        meter.arrived(addition.path_in_repo, addition.upload_info.size)


def _send_by_xet(
    api: HfApi, repo_id: str, additions: list[CommitOperationAdd], meter: Meter
) -> None:
    """Send files through hf_xet itself: huggingface_hub shows its progress in a terminal alone."""
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=api.token)
    session = _hf_xet().XetSession()
    meter.abort = session.sigint_abort
    size = sum(addition.upload_info.size for addition in additions)
    latest: list[Any] = [None]

    def told(report: Any, _items: Any = None) -> None:
        # What was looked at runs ahead of what was sent, of which some is on the hub already: the lesser share is shown.
        looked = report.total_bytes_completed / max(report.total_bytes, size, 1)
        sent = (
            report.total_transfer_bytes_completed / report.total_transfer_bytes
            if report.total_transfer_bytes
            else 1.0
        )
        checked = getattr(
            getattr(report, "shard", None), "total_shard_validation_entries_completed", 0
        )
        reached = (report.total_bytes_completed, report.total_transfer_bytes_completed, checked)
        if reached == latest[0]:
            return
        latest[0] = reached
        meter.sent["xet"] = report.total_transfer_bytes_completed
        for addition in additions:
            meter.arrived(
                addition.path_in_repo, int(min(looked, sent, 1.0) * addition.upload_info.size)
            )

    plain = {
        key: value for key, value in headers.items() if key.lower() != "authorization"
    }  # the storage has a token of its own
    try:
        with session.new_upload_commit(
            token_refresh_url=_xet_token_url(api, repo_id),
            token_refresh_headers=headers,
            custom_headers=plain,
            progress_callback=told,
        ) as commit:
            for addition in additions:
                if meter.stopped:
                    raise PushStopped
                commit.start_upload_file(
                    addition.path_or_fileobj, sha256=addition.upload_info.sha256.hex()
                )
    except RuntimeError as error:  # how hf_xet reports a broken connection
        raise ConnectionError("hf_xet could not send all") from error
    meter.abort = None
    for addition in additions:
        meter.arrived(addition.path_in_repo, addition.upload_info.size)
