"""Wait for the hub's client, count what it sends, send in chunks, and explain what goes wrong.

The client (huggingface_hub) decides which files travel, sends and commits them. It neither hears a
caller that cancels while it waits, nor gives up a hub that is silent (`Meter.wait`), nor reports
bytes as they leave (`CountedFile`, `send_in_chunks`).
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vits_prune.errors import HubError, InputError, LoginError
from vits_prune.progress import Progress
from vits_prune.voices.hub_errors import UNREADABLE, explained, raised_by_client

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Result = TypeVar("Result")

STALL_SECONDS = 150.0
"""How long the hub may neither take a byte nor answer. The client waits up to half a minute between
its own retries."""
_TICK_SECONDS = 0.1
_TOKEN = re.compile(r"\b(?:hf|api)_[\w.\-]{6,}|[Bb]earer\s+\S+")


class PushStopped(Exception):
    """The caller of a push has gone: what still reads a file for it ends here."""


class UnreadableAnswer(Exception):
    """The hub's answer lacks what this package needs."""


class PushStalled(Exception):
    """The hub took nothing and said nothing for too long."""


def one_line(text: str) -> str:
    """Return what a server said, short, on one line, and without anything like a token."""
    text = _TOKEN.sub("***", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:160].rstrip(".: ")


@dataclass
class PushState:
    """How far a push has come, for what is said when it fails."""

    repo_id: str
    user: str = ""
    step: Literal["look", "create", "send", "commit"] = "look"
    created: bool = False
    """Whether this push made the repository, which is empty until the commit."""
    cancelled: BaseException | None = None
    """What the caller raised to cancel, which passes as it is."""

    def refusal(self, what: str, kind: type[InputError] = InputError) -> InputError:
        """Return the error that says what is wrong, what to do, and that nothing was published."""
        made = f": {self.repo_id} was made and is empty, and the same push again goes on"
        more = made if self.created else ""
        return kind(f"{what}; nothing was published{more}.")


@contextlib.contextmanager
def plain_push_errors(state: PushState) -> Iterator[None]:
    """Turn what huggingface_hub raises during a push into one plain sentence without any token.

    Errors of other code pass as they are.

    Raises:
        LoginError: nobody is logged in, or the hub wants another log-in.
        HubError: the hub refuses or cannot be reached.
        InputError: the folder cannot be read, or the name is not one of a repository.
    """

    def explain(error: Exception) -> Exception | None:
        if error is state.cancelled:
            return None
        # huggingface_hub wraps what happened to a large file into a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        found = _push_error(state, cause if isinstance(cause, Exception) else error)
        if found is not None:
            return state.refusal(found[1], found[0])
        return cause if isinstance(cause, Exception) else None

    with explained(explain):
        yield


def _push_error(state: PushState, cause: Exception) -> tuple[type[InputError], str] | None:
    """Return the type of error and what it says, None if it is not the hub's."""
    import httpx2
    from huggingface_hub import errors

    repo_id, again = state.repo_id, "push again, which sends only what is missing"
    if isinstance(cause, errors.HfHubHTTPError):
        return _push_refused(state, cause)
    if isinstance(cause, errors.LocalTokenNotFoundError):
        return LoginError, (
            "Nobody is logged in to Hugging Face: run hf auth login, set HF_TOKEN or give a token "
            "with write permission"
        )
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return HubError, "HF_HUB_OFFLINE is set: unset it to push"
    if isinstance(cause, errors.HFValidationError):
        return InputError, f"{repo_id[:96]!r} is no name for a repository: write owner/name"
    if isinstance(cause, PushStalled):
        return HubError, f"Hugging Face did not answer for minutes: check the network and {again}"
    connection = (httpx2.HTTPError, ConnectionError, TimeoutError)
    if isinstance(cause, connection) and state.step == "look":
        return HubError, "Hugging Face cannot be reached: check the connection and try again"
    if isinstance(cause, OSError) and cause.filename is not None:
        name = str(cause.filename)[-80:]
        return InputError, f"{name!r} cannot be read ({cause.strerror}): check the folder"
    if isinstance(cause, ValueError) and isinstance(cause.__cause__, errors.BadRequestError):
        said = one_line(str(cause).partition("\n")[2].removeprefix("- "))  # of the model card
        what = f"does not accept the front matter of README.md ({said}): correct it"
        return HubError, f"Hugging Face {what}"
    if type(cause).__name__ == "XetAuthenticationError":  # of hf_xet, which may not be installed
        return LoginError, f"The storage of Hugging Face refuses to write {repo_id}: log in again"
    by_client = raised_by_client(cause)
    broken = isinstance(cause, RuntimeError) and by_client
    if broken or isinstance(cause, (httpx2.HTTPError, OSError)):
        return HubError, f"The connection was lost while sending {repo_id}: {again}"
    if isinstance(cause, UnreadableAnswer) or (isinstance(cause, UNREADABLE) and by_client):
        what = f"gave an answer about {repo_id} that cannot be read"
        return HubError, f"The hub {what}: check HF_ENDPOINT, or try again later"
    return None


def _push_refused(state: PushState, error: Exception) -> tuple[type[InputError], str]:
    """Return what an HTTP status means at this point of a push."""
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status, repo_id, who = error.response.status_code, state.repo_id, state.user or "this token"
    said = f" (it says: {said})" if (said := one_line(error.server_message or "")) else ""
    unknown = isinstance(error, errors.RepositoryNotFoundError)
    if status == 401 and not (state.user and unknown):
        return LoginError, (
            "Hugging Face does not accept the access token: log in again (hf auth login) with one "
            "that has write permission"
        )
    if status == 403:
        return LoginError, (
            f"Hugging Face does not let {who} write to {repo_id}{said}: use a token with write "
            "permission for it, or push to a repository of your own"
        )
    if status == 409 and state.step == "create":
        return HubError, f"The name {repo_id} is taken (unseen by {who}): choose another name"
    gone = f"{repo_id} is not there any more: check whether it was deleted or renamed"
    changed = f"{repo_id} was changed by another push meanwhile: look at what it holds, push again"
    refused = f"Hugging Face refuses the files or the name of {repo_id}{said}: change them"
    known = {
        **dict.fromkeys((401, 404), gone),
        **dict.fromkeys((409, 412), changed),
        **dict.fromkeys((400, 413, 422), refused),
        402: f"Hugging Face takes no more files from {repo_id.partition('/')[0]}{said}: "
        "see its plan and storage at huggingface.co/settings/billing",
        429: "Hugging Face received too many requests: push again in a few minutes",
    }
    later = "push again later, which sends only what is missing"
    return HubError, known.get(status, f"Hugging Face answered {status} for {repo_id}: {later}")


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

        Without `listen` nothing is reported, and the first Ctrl-C waits for the end, too.

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
    with contextlib.suppress(ImportError):
        import hf_xet

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
    latest: Any = None

    def listen(report: Any, _items: Any = None) -> None:
        nonlocal latest
        shard = getattr(report, "shard", None)
        checked = getattr(shard, "total_shard_validation_entries_completed", 0)
        read, sent = report.total_bytes_completed, report.total_transfer_bytes_completed
        reached = (read, sent, checked)
        if reached == latest:
            return
        latest = reached
        # Reading runs ahead of sending, and some is on the hub already: show the lesser share.
        share = read / max(report.total_bytes, sum(sizes.values()), 1)
        if report.total_transfer_bytes:
            share = min(share, sent / report.total_transfer_bytes)
        meter.sent["chunks"] = sent
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
    from huggingface_hub import utils

    opened, hidden = list(files), utils.are_progress_bars_disabled()
    if not hidden:
        utils.disable_progress_bars()
    for file in opened:
        file.sending = True
    try:
        yield
    finally:
        for file in opened:
            file.sending = False
        if not hidden:
            utils.enable_progress_bars()
