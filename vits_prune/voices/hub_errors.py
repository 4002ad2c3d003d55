"""What goes wrong between a hub and a disk, in one plain sentence each."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vits_prune.errors import HubError, InputError, LoginError


class TooManyBytes(Exception):
    """The server sent more than it had declared."""


@contextlib.contextmanager
def plain_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into one plain sentence. Errors of other code pass as they are.

    Raises:
        LoginError: the hub wants a log-in, or another one.
        HubError: the hub refuses or cannot be reached.
        InputError: the disk does not take the download.
    """
    import httpx2
    from huggingface_hub import errors

    lost = f"The connection was lost while loading {repo_id}: try again."
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError as error:
        raise LoginError(
            f"{repo_id} is gated: accept its licence at https://huggingface.co/{repo_id}, then log in (hf auth login) or give a token."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"There is no model {repo_id} on Hugging Face, or it is private: check the name, or log in."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{repo_id} has no revision {revision!r}: give one of its branches, tags or commits."
        ) from error
    except errors.EntryNotFoundError as error:
        message = (
            lost
            if isinstance(error, errors.LocalEntryNotFoundError)
            else f"{repo_id} lacks a file that it lists: try again later."
        )
        raise HubError(message) from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo_id, error.response.status_code) from error
    except errors.HFValidationError as error:
        raise InputError(
            f"{repo_id!r} is no model of the Hugging Face hub: write owner/name such as facebook/mms-tts-eng."
        ) from error
    except TooManyBytes as error:
        raise HubError(
            f"The server sent more of {error} of {repo_id} than it had declared, and was cut off: try again later."
        ) from error
    except (httpx2.HTTPError, errors.XetDownloadError, ConnectionError) as error:
        raise HubError(lost) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"The disk is full: free some space, or set HF_HOME to a folder on another disk, and load {repo_id} again."
        elif error.errno is not None:
            message = f"The download of {repo_id} cannot be written ({error.strerror}): check the cache folder, or set HF_HOME to another."
        else:  # huggingface_hub's check of the size after the last byte
            raise HubError(f"The download of {repo_id} arrived incomplete: try again.") from error
        raise InputError(message) from error
    except RuntimeError as error:  # how hf_xet reports a broken connection
        if not _raised_by_client(error):
            raise
        raise HubError(lost) from error
    except _UNREADABLE as error:
        if not _raised_by_client(error):
            raise
        raise HubError(
            f"The hub gave an answer about {repo_id} that cannot be read: check HF_ENDPOINT, or try again later."
        ) from error


_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, AssertionError)
"""What huggingface_hub raises when an answer is not the hub's. Our own bugs raise the same: see `_raised_by_client`."""


def _raised_by_client(error: BaseException) -> bool:
    """Whether an error comes from inside huggingface_hub: not from this package, nor from a callback that huggingface_hub called."""
    packages = [
        frame.f_globals.get("__name__", "").partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    ours = max(
        (i for i, package in enumerate(packages) if package == __name__.partition(".")[0]),
        default=-1,
    )
    return "huggingface_hub" in packages[ours + 1 :]


def _refused(repo_id: str, status: int) -> HubError:
    """The error for an HTTP status of a download."""
    if status == 401:
        return LoginError(
            f"Hugging Face does not accept the access token: log in again (hf auth login), or load {repo_id} without a token."
        )
    if status == 403:
        return LoginError(
            f"Hugging Face refuses access to {repo_id}: check that the access token may read it."
        )
    if status == 429:
        return HubError(
            f"Hugging Face had too many requests and refuses {repo_id} for now: try again in a few minutes."
        )
    return HubError(f"Hugging Face answered {status} for {repo_id}: try again later.")


class PushStopped(Exception):
    """The caller of a push has gone: what still reads a file for it ends here."""


class UnreadableAnswer(Exception):
    """The hub's answer lacks what this package needs of it."""


class PushStalled(Exception):
    """The hub took nothing and said nothing for too long."""


@dataclass
class PushState:
    """How far a push has come, for what is said when it goes no further."""

    repo_id: str
    user: str = ""
    """Who is logged in, "" before it is known."""
    step: Literal["look", "create", "send", "commit"] = "look"
    created: bool = False
    """Whether this push made the repository, which is empty until the commit."""
    cancelled: BaseException | None = None
    """What the caller raised to cancel: it is theirs, and passes as it is."""

    def refusal(self, what: str, kind: type[InputError] = InputError) -> InputError:
        """Return the error that says what is wrong and what to do (without a full stop), and that nothing was published.

        Args:
            what: the beginning of the sentence.
            kind: type of the error.
        """
        if self.created:
            return kind(
                f"{what}; nothing was published: {self.repo_id} was made and is empty, and the same push again goes on."
            )
        return kind(f"{what}; nothing was published.")


@contextlib.contextmanager
def plain_push_errors(state: PushState) -> Iterator[None]:
    """Turn what huggingface_hub raises during a push into one plain sentence. Errors of other code pass as they are.

    No text of an exception is shown, so no token can be.

    Raises:
        LoginError: nobody is logged in, or the hub wants another log-in.
        HubError: the hub refuses or cannot be reached.
        InputError: the folder cannot be read, or the name is not one of a repository.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if error is state.cancelled:
            raise
        # huggingface_hub wraps what happened to a large file into a RuntimeError.
        cause = (
            error.__cause__
            if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception)
            else error
        )
        found = _push_error(state, cause)
        if found is None:
            raise cause from cause.__cause__
        kind, what = found
        raise state.refusal(what, kind) from error


def _push_error(state: PushState, cause: Exception) -> tuple[type[InputError], str] | None:
    """The type of error and what it says, None for an error that is neither the hub's nor the connection's."""
    import httpx2
    from huggingface_hub import errors

    repo_id = state.repo_id
    if isinstance(cause, errors.HfHubHTTPError):
        return _push_refused(state, cause)
    if isinstance(cause, errors.LocalTokenNotFoundError):
        return (
            LoginError,
            "Nobody is logged in to Hugging Face: run hf auth login, set HF_TOKEN or give a token with write permission",
        )
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return HubError, "HF_HUB_OFFLINE is set: unset it to push"
    if isinstance(cause, errors.HFValidationError):
        return (
            InputError,
            f"{repo_id[:96]!r} is no name for a repository: write owner/name with letters, digits, dots and dashes",
        )
    if isinstance(cause, PushStalled):
        return (
            HubError,
            "Hugging Face did not answer for minutes: check the connection and push again, which sends only what is missing",
        )
    if (
        isinstance(cause, (httpx2.HTTPError, ConnectionError, TimeoutError))
        and state.step == "look"
    ):
        return HubError, "Hugging Face cannot be reached: check the connection and try again"
    if isinstance(cause, OSError) and cause.filename is not None:
        return (
            InputError,
            f"{str(cause.filename)[-80:]!r} cannot be read ({cause.strerror}): check the folder",
        )
    if isinstance(cause, ValueError) and isinstance(
        cause.__cause__, errors.BadRequestError
    ):  # of the model card, in a commit
        said = _one_line(str(cause).partition("\n")[2].removeprefix("- "))
        return (
            HubError,
            f"Hugging Face does not accept the front matter of README.md ({said}): correct it and push again",
        )
    if isinstance(cause, _xet_login_errors()):
        who = state.user or "this token"
        return (
            LoginError,
            f"The storage of Hugging Face does not let {who} write {repo_id}: log in again and push again",
        )
    if isinstance(cause, (httpx2.HTTPError, OSError)) or (
        isinstance(cause, RuntimeError) and _raised_by_client(cause)
    ):
        return (
            HubError,
            f"The connection was lost while sending {repo_id}: push again, which sends only what is missing",
        )
    if isinstance(cause, UnreadableAnswer) or (
        isinstance(cause, _UNREADABLE) and _raised_by_client(cause)
    ):
        return (
            HubError,
            f"The hub gave an answer about {repo_id} that cannot be read: check HF_ENDPOINT, or try again later",
        )
    return None


def _xet_login_errors() -> tuple[type[Exception], ...]:
    try:
        from hf_xet import XetAuthenticationError
    except ImportError:  # not installed, or older than this error
        return ()
    return (XetAuthenticationError,)


def _push_refused(state: PushState, error: Exception) -> tuple[type[InputError], str]:
    """What an HTTP status means at this step of a push."""
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status, repo_id = error.response.status_code, state.repo_id
    said = f" (it says: {said})" if (said := _one_line(error.server_message or "")) else ""
    if status == 401 and not (state.user and isinstance(error, errors.RepositoryNotFoundError)):
        return (
            LoginError,
            "Hugging Face does not accept the access token: log in again (hf auth login) with one that has write permission",
        )
    if status == 403:
        return LoginError, (
            f"Hugging Face does not let {state.user or 'this token'} write to {repo_id}{said}: use a token with write permission for it, "
            "or push to a repository of your own"
        )
    if status in (401, 404):
        what = f"{repo_id} is not there any more: check whether it was deleted or renamed, and push again"
    elif status == 402:
        owner = repo_id.partition("/")[0]
        what = f"Hugging Face takes no more files from {owner}{said}: see its plan and storage at huggingface.co/settings/billing"
    elif status == 409 and state.step == "create":
        what = f"The name {repo_id} is taken by a repository that {state.user or 'this token'} cannot see: choose another name"
    elif status in (409, 412):
        what = f"{repo_id} was changed by another push meanwhile: look at what it holds now, and push again"
    elif status == 429:
        what = "Hugging Face had too many requests and refuses more for now: push again in a few minutes"
    elif status in (400, 413, 422):
        what = f"Hugging Face refuses the files or the name of {repo_id}{said}: change them and push again"
    else:
        what = f"Hugging Face answered {status} for {repo_id}: push again later, which sends only what is missing"
    return HubError, what


def _one_line(text: str) -> str:
    """What a server said, short, on one line, and without anything like a token."""
    text = re.sub(r"\b(?:hf|api)_[\w.\-]{6,}|[Bb]earer\s+\S+", "***", text)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:160].rstrip(
        ".: "
    )
