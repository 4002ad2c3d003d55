"""Wait for the hub's client, count what it sends, send in chunks, and explain what goes wrong.

The client (huggingface_hub) neither hears a caller that cancels while it waits, nor gives up a hub
that is silent (`Push.wait`), nor reports bytes as they leave (`CountedFile`, `send_in_chunks`).
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vits_prune.errors import HubError, InputError, LoginError
from vits_prune.progress import SILENT, Cancelled, Progress
from vits_prune.voices.hub_errors import UNREADABLE, explained, raised_by_client

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

Result = TypeVar("Result")

STALL_SECONDS = 150.0
"""How long the hub may neither take a byte nor answer. The client waits up to half a minute between
its own retries."""
_TICK_SECONDS = 0.1
_TOKEN = re.compile(r"\b(?:hf|api)_[\w.\-]{6,}|[Bb]earer\s+\S+")


class UnreadableAnswer(Exception):
    """The hub's answer lacks what this package needs."""


class PushStalled(Exception):
    """The hub took nothing and said nothing for too long."""


def one_line(text: str) -> str:
    """Return what a server said, short, on one line, and without anything like a token."""
    text = _TOKEN.sub("***", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:160].rstrip(".: ")


class Push:
    """A push under way: what the hub holds, how far it has come, and who waits for it."""

    api: HfApi
    info: ModelInfo | None = None
    """What the hub says of the repository; None if it does not exist."""
    user = ""
    step: Literal["look", "create", "send", "commit"] = "look"
    created = False
    """Whether this push made the repository, which is empty until the commit."""
    cancelled: BaseException | None = None
    """What the caller raised to cancel, which passes as it is."""
    stopped = False
    """Whether the caller has gone: what still reads a file for it ends."""
    counting = False
    """False while files are only read for their checksums or as a part of the commit."""
    abort: Callable[[], None] | None = None
    """Ends a transfer that does not read its files through `CountedFile`."""

    def __init__(self, repo_id: str, total: int = 0, progress: Progress = SILENT) -> None:
        self.repo_id, self.total, self._progress = repo_id, total, progress
        self.done: dict[str, int] = {}
        """Bytes of each file that are on the hub."""
        self.sent: dict[str, int] = {}
        """Bytes of each large file that this push sent."""
        self._alive = time.monotonic()

    @property
    def url(self) -> str:
        """Address of the repository's page."""
        return f"{self.api.endpoint.rstrip('/')}/{self.repo_id}"

    @property
    def held(self) -> dict[str, Any]:
        """What the hub says of each file in the repository, by name."""
        siblings = (self.info.siblings if self.info else None) or ()
        return {sibling.rfilename: sibling for sibling in siblings}

    def refusal(self, what: str, kind: type[InputError] = InputError) -> InputError:
        """Return the error that says what is wrong, what to do, and that nothing was published."""
        made = f": {self.repo_id} was made and is empty, and the same push again goes on"
        return kind(f"{what}; nothing was published{made if self.created else ''}.")

    @contextlib.contextmanager
    def plain_errors(self) -> Iterator[None]:
        """Turn what huggingface_hub raises into one plain sentence without any token.

        Errors of other code pass as they are.

        Raises:
            LoginError: nobody is logged in, or the hub wants another log-in.
            HubError: the hub refuses or cannot be reached.
            InputError: the folder cannot be read, or the name is not one of a repository.
        """

        def explain(error: Exception) -> Exception | None:
            if error is self.cancelled:
                return None
            # huggingface_hub wraps what happened to a large file into a RuntimeError.
            wrapped = error.__cause__ if isinstance(error, RuntimeError) else None
            cause = wrapped if isinstance(wrapped, Exception) else None
            found = _push_error(self, cause or error)
            return self.refusal(found[1], found[0]) if found else cause

        with explained(explain):
            yield

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
            self.cancelled = error
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


def _push_error(push: Push, cause: Any) -> tuple[type[InputError], str] | None:
    """Return the type of error and what it says, None if it is not the hub's."""
    import httpx2
    from huggingface_hub import errors

    repo_id, again = push.repo_id, "push again, which sends only what is missing"
    if isinstance(cause, errors.HfHubHTTPError):
        return _push_refused(push, cause)
    if isinstance(cause, ValueError) and isinstance(cause.__cause__, errors.BadRequestError):
        said = one_line(str(cause).partition("\n")[2].removeprefix("- "))  # of the model card
        what = f"does not accept the front matter of README.md ({said}): correct it"
        return HubError, f"Hugging Face {what}"
    if isinstance(cause, errors.LocalTokenNotFoundError):
        what = "run hf auth login, set HF_TOKEN or give a token with write permission"
        return LoginError, f"Nobody is logged in to Hugging Face: {what}"
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return HubError, "HF_HUB_OFFLINE is set: unset it to push"
    if isinstance(cause, errors.HFValidationError):
        return InputError, f"{repo_id[:96]!r} is no name for a repository: write owner/name"
    if isinstance(cause, PushStalled):
        return HubError, f"Hugging Face did not answer for minutes: check the network and {again}"
    connection = (httpx2.HTTPError, ConnectionError, TimeoutError)
    if isinstance(cause, connection) and push.step == "look":
        return HubError, "Hugging Face cannot be reached: check the connection and try again"
    if isinstance(cause, OSError) and cause.filename is not None:
        name = str(cause.filename)[-80:]
        return InputError, f"{name!r} cannot be read ({cause.strerror}): check the folder"
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


def _push_refused(push: Push, error: Any) -> tuple[type[InputError], str]:
    """Return what an HTTP status means at this point of a push."""
    from huggingface_hub import errors

    status, repo_id, who = error.response.status_code, push.repo_id, push.user or "this token"
    said = f" (it says: {said})" if (said := one_line(error.server_message or "")) else ""
    unknown = isinstance(error, errors.RepositoryNotFoundError)
    if status == 401 and not (push.user and unknown):
        what = "log in again (hf auth login) with one that has write permission"
        return LoginError, f"Hugging Face does not accept the access token: {what}"
    if status == 403:
        what = f"Hugging Face does not let {who} write to {repo_id}{said}"
        advice = "use a token with write permission for it, or push to a repository of your own"
        return LoginError, f"{what}: {advice}"
    if status == 409 and push.step == "create":
        return HubError, f"The name {repo_id} is taken (unseen by {who}): choose another name"
    gone = f"{repo_id} is not there any more: check whether it was deleted or renamed"
    changed = f"{repo_id} was changed by another push meanwhile: look at what it holds, push again"
    refused = f"Hugging Face refuses the files or the name of {repo_id}{said}: change them"
    full = f"Hugging Face takes no more files from {repo_id.partition('/')[0]}{said}"
    known = {
        **dict.fromkeys((401, 404), gone),
        **dict.fromkeys((409, 412), changed),
        **dict.fromkeys((400, 413, 422), refused),
        402: f"{full}: see its plan and storage at huggingface.co/settings/billing",
        429: "Hugging Face received too many requests: push again in a few minutes",
    }
    later = "push again later, which sends only what is missing"
    return HubError, known.get(status, f"Hugging Face answered {status} for {repo_id}: {later}")


class CountedFile(io.BufferedReader):
    """A file that tells a Push how far it was sent, and raises Cancelled once that was stopped.

    The client sends a file object over plain HTTP (LFS) only.
    """

    def __init__(self, path: Path, name: str, push: Push) -> None:
        super().__init__(io.FileIO(path))
        self._name, self._push = name, push

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and count what was sent; raise Cancelled once the push is stopped."""
        if self._push.stopped:
            raise Cancelled
        data = super().read(size)
        if self._push.counting:
            self._push.sent[self._name] = max(self._push.sent.get(self._name, 0), self.tell())
            self._push.arrived(self._name, self.tell())
        else:
            self._push.alive()
        return data


def offers_chunks(push: Push) -> bool:
    """Return whether this machine and the hub can send chunks (xet), of which only new ones travel.

    Raises:
        HfHubHTTPError: this token may not write there.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if constants.HF_HUB_DISABLE_XET or _hf_xet() is None:
        return False
    headers = build_hf_headers(token=push.api.token)
    answer = get_session().get(_chunk_token_url(push), headers=headers)
    if answer.status_code in (401, 403):
        hf_raise_for_status(answer)
    named = constants.HUGGINGFACE_HEADER_X_XET_ENDPOINT in answer.headers
    return answer.status_code == 200 and (named or '"casUrl"' in answer.text[:10_000])


def _hf_xet() -> Any:
    with contextlib.suppress(ImportError):
        import hf_xet

        return hf_xet if hasattr(hf_xet, "XetSession") else None


def _chunk_token_url(push: Push) -> str:
    return f"{push.api.endpoint}/api/models/{push.repo_id}/xet-write-token/main"


def send_in_chunks(push: Push, files: dict[str, Path]) -> None:
    """Send files through hf_xet itself; the client then finds their chunks and sends none again."""
    from huggingface_hub.utils import build_hf_headers

    if not files:
        return
    headers = build_hf_headers(token=push.api.token)
    session = _hf_xet().XetSession()
    push.abort = session.sigint_abort
    sizes = {name: path.stat().st_size for name, path in files.items()}
    latest: Any = None

    def listen(report: Any, _items: Any = None) -> None:
        nonlocal latest
        shard = getattr(report, "shard", None)
        checked = getattr(shard, "total_shard_validation_entries_completed", 0)
        read, sent = report.total_bytes_completed, report.total_transfer_bytes_completed
        if (read, sent, checked) == latest:
            return
        latest = read, sent, checked
        # Reading runs ahead of sending, and some is on the hub already: show the lesser share.
        share = read / max(report.total_bytes, sum(sizes.values()), 1)
        if report.total_transfer_bytes:
            share = min(share, sent / report.total_transfer_bytes)
        push.sent["chunks"] = sent
        for name, size in sizes.items():
            push.arrived(name, int(min(share, 1.0) * size))

    # The storage has a token of its own.
    plain = {key: value for key, value in headers.items() if key.lower() != "authorization"}
    try:
        with session.new_upload_commit(
            token_refresh_url=_chunk_token_url(push),
            token_refresh_headers=headers,
            custom_headers=plain,
            progress_callback=listen,
        ) as commit:
            for path in files.values():
                if push.stopped:
                    raise Cancelled
                commit.start_upload_file(str(path.resolve()))
    except RuntimeError as error:  # how hf_xet reports a broken connection
        raise ConnectionError("hf_xet could not send all") from error
    finally:
        push.abort = None


@contextlib.contextmanager
def counted(push: Push) -> Iterator[None]:
    """Count what is read of the files as sent, and hide the client's own bars meanwhile."""
    from huggingface_hub import utils

    hidden = utils.are_progress_bars_disabled()
    if not hidden:
        utils.disable_progress_bars()
    push.counting = True
    try:
        yield
    finally:
        push.counting = False
        if not hidden:
            utils.enable_progress_bars()
