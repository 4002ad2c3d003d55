"""What goes wrong in a push to the hub, in one plain sentence each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vits_prune.errors import HubError, InputError, LoginError
from vits_prune.voices.hub_errors import UNREADABLE, explained, raised_by_client

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
    """How far a push has come, for what is said when it fails.

    `created` says whether this push made the repository, which is empty until the commit;
    `cancelled` is what the caller raised to cancel, which passes as it is.
    """

    repo_id: str
    user: str = ""
    step: Literal["look", "create", "send", "commit"] = "look"
    created: bool = False
    cancelled: BaseException | None = None

    def refusal(self, what: str, kind: type[InputError] = InputError) -> InputError:
        """Return the error that says that nothing was published, and why.

        Args:
            what: what is wrong and what to do, without a full stop.
            kind: type of the error.
        """
        more = ""
        if self.created:
            more = f": {self.repo_id} was made and is empty, and the same push again goes on"
        return kind(f"{what}; nothing was published{more}.")


@contextlib.contextmanager
def plain_push_errors(state: PushState) -> Iterator[None]:
    """Turn what huggingface_hub raises during a push into one plain sentence.

    Errors of other code pass as they are. No text of an exception is shown, so no token can be.

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
        return InputError, (
            f"{repo_id[:96]!r} is no name for a repository: "
            "write owner/name with letters, digits, dots and dashes"
        )
    if isinstance(cause, PushStalled):
        what = "Hugging Face did not answer for minutes: check the connection and"
        return HubError, f"{what} {again}"
    connection = (httpx2.HTTPError, ConnectionError, TimeoutError)
    if isinstance(cause, connection) and state.step == "look":
        return HubError, "Hugging Face cannot be reached: check the connection and try again"
    if isinstance(cause, OSError) and cause.filename is not None:
        name = str(cause.filename)[-80:]
        return InputError, f"{name!r} cannot be read ({cause.strerror}): check the folder"
    if isinstance(cause, ValueError) and isinstance(cause.__cause__, errors.BadRequestError):
        said = one_line(str(cause).partition("\n")[2].removeprefix("- "))  # of the model card
        return HubError, (
            f"Hugging Face does not accept the front matter of README.md ({said}): "
            "correct it and push again"
        )
    if isinstance(cause, _xet_login_errors()):
        return LoginError, (
            f"The storage of Hugging Face does not let {state.user or 'this token'} write "
            f"{repo_id}: log in again and push again"
        )
    by_client = raised_by_client(cause)
    if isinstance(cause, (httpx2.HTTPError, OSError)) or (
        isinstance(cause, RuntimeError) and by_client
    ):
        return HubError, f"The connection was lost while sending {repo_id}: {again}"
    if isinstance(cause, UnreadableAnswer) or (isinstance(cause, UNREADABLE) and by_client):
        return HubError, (
            f"The hub gave an answer about {repo_id} that cannot be read: "
            "check HF_ENDPOINT, or try again later"
        )
    return None


def _xet_login_errors() -> tuple[type[Exception], ...]:
    try:
        from hf_xet import XetAuthenticationError
    except ImportError:  # not installed, or older than this error
        return ()
    return (XetAuthenticationError,)


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
        what = f"The name {repo_id} is taken by a repository that {who} cannot see"
        return HubError, f"{what}: choose another name"
    gone = f"{repo_id} is not there any more: check whether it was deleted or renamed, and push"
    changed = (
        f"{repo_id} was changed by another push meanwhile: look at what it holds now, and push"
    )
    refused = f"Hugging Face refuses the files or the name of {repo_id}{said}: change them and push"
    known = {
        **dict.fromkeys((401, 404), f"{gone} again"),
        402: f"Hugging Face takes no more files from {repo_id.partition('/')[0]}{said}: "
        "see its plan and storage at huggingface.co/settings/billing",
        **dict.fromkeys((409, 412), f"{changed} again"),
        429: "Hugging Face had too many requests and refuses more for now: "
        "push again in a few minutes",
        **dict.fromkeys((400, 413, 422), f"{refused} again"),
    }
    later = "push again later, which sends only what is missing"
    return HubError, known.get(status, f"Hugging Face answered {status} for {repo_id}: {later}")
