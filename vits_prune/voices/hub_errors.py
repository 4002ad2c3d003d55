"""What goes wrong between a hub and a disk, in one plain sentence each."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vits_prune.errors import InputError


class TooManyBytes(Exception):
    """The server sent more than it had declared."""


@contextlib.contextmanager
def plain_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into one plain sentence."""
    import httpx2
    from huggingface_hub import errors

    lost = f"The connection was lost while loading {repo_id}: try again."
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo_id} is gated: accept its licence at https://huggingface.co/{repo_id}, then log in (hf auth login) or give a token."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"There is no model {repo_id} on Hugging Face, or it is private: check the name, or log in.") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repo_id} has no revision {revision!r}: give one of its branches, tags or commits.") from error
    except errors.EntryNotFoundError as error:
        message = lost if isinstance(error, errors.LocalEntryNotFoundError) else f"{repo_id} lacks a file that it lists: try again later."
        raise InputError(message) from error
    except errors.HfHubHTTPError as error:
        raise InputError(_refused(repo_id, error.response.status_code)) from error
    except errors.HFValidationError as error:
        raise InputError(f"{repo_id!r} is no model of the Hugging Face hub: write owner/name such as facebook/mms-tts-eng.") from error
    except TooManyBytes as error:
        raise InputError(f"The server sent more of {error} of {repo_id} than it had declared, and was cut off: try again later.") from error
    except (httpx2.HTTPError, errors.XetDownloadError, ConnectionError, RuntimeError) as error:
        raise InputError(lost) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"The disk is full: free some space, or set HF_HOME to a folder on another disk, and load {repo_id} again."
        elif error.errno is not None:
            message = f"The download of {repo_id} cannot be written ({error.strerror}): check the cache folder, or set HF_HOME to another."
        else:  # huggingface_hub's check of the size after the last byte
            message = f"The download of {repo_id} arrived incomplete: try again."
        raise InputError(message) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # an answer that is not the hub's
        raise InputError(f"The hub gave an answer about {repo_id} that cannot be read: check HF_ENDPOINT, or try again later.") from error


def _refused(repo_id: str, status: int) -> str:
    if status == 401:
        return f"Hugging Face does not accept the access token: log in again (hf auth login), or load {repo_id} without a token."
    if status == 403:
        return f"Hugging Face refuses access to {repo_id}: check that the access token may read it."
    if status == 429:
        return f"Hugging Face had too many requests and refuses {repo_id} for now: try again in a few minutes."
    return f"Hugging Face answered {status} for {repo_id}: try again later."


class PushStopped(Exception):
    """The caller of a push has gone: what still reads a file for it ends here."""


class FileRefused(Exception):
    """The hub does not take a file; its own words."""


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

    def refusal(self, what: str) -> InputError:
        """The error that says what is wrong and what to do (without a full stop), and that nothing was published."""
        if self.created:
            return InputError(f"{what}; nothing was published: {self.repo_id} was made and is empty, and the same push again goes on.")
        return InputError(f"{what}; nothing was published.")


@contextlib.contextmanager
def plain_push_errors(state: PushState) -> Iterator[None]:
    """Turn what huggingface_hub raises during a push into one plain sentence. No text of an exception is shown, so no token can be."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if error is state.cancelled:
            raise
        # huggingface_hub wraps what happened to a large file into a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
        if isinstance(cause, errors.HfHubHTTPError):
            what = _push_refused(state, cause)
        elif isinstance(cause, errors.LocalTokenNotFoundError):
            what = "Nobody is logged in to Hugging Face: run hf auth login, set HF_TOKEN or give a token with write permission"
        elif isinstance(cause, errors.OfflineModeIsEnabled):
            what = "HF_HUB_OFFLINE is set: unset it to push"
        elif isinstance(cause, errors.HFValidationError):
            what = f"{state.repo_id[:96]!r} is no name for a repository: write owner/name with letters, digits, dots and dashes"
        elif isinstance(cause, PushStalled):
            what = "Hugging Face did not answer for minutes: check the connection and push again, which sends only what is missing"
        elif isinstance(cause, (httpx2.HTTPError, ConnectionError, TimeoutError)) and state.step == "look":
            what = "Hugging Face cannot be reached: check the connection and try again"
        elif isinstance(cause, OSError) and cause.filename is not None:
            what = f"{str(cause.filename)[-80:]!r} cannot be read ({cause.strerror}): check the folder"
        elif isinstance(cause, ValueError) and str(cause).startswith("Invalid metadata in README.md"):
            said = _one_line(str(cause).partition("\n")[2].removeprefix("- "))
            what = f"Hugging Face does not accept the front matter of README.md ({said}): correct it and push again"
        elif isinstance(cause, FileRefused):
            what = f"Hugging Face does not take a file of {state.repo_id} (it says: {_one_line(str(cause))}): push again later"
        elif type(cause).__name__ == "XetAuthenticationError":
            what = (
                f"The storage of Hugging Face does not let {state.user or 'this token'} write {state.repo_id}: log in again and push again"
            )
        elif isinstance(cause, (httpx2.HTTPError, OSError, RuntimeError)):
            what = f"The connection was lost while sending {state.repo_id}: push again, which sends only what is missing"
        elif isinstance(cause, (ValueError, TypeError, KeyError, AttributeError, AssertionError)):
            what = f"The hub gave an answer about {state.repo_id} that cannot be read: check HF_ENDPOINT, or try again later"
        else:
            raise
        raise state.refusal(what) from error


def _push_refused(state: PushState, error: Exception) -> str:
    """What an HTTP status means at this step of a push."""
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status, repo_id = error.response.status_code, state.repo_id
    said = f" (it says: {said})" if (said := _one_line(error.server_message or "")) else ""
    if status == 401 and not (state.user and isinstance(error, errors.RepositoryNotFoundError)):
        return "Hugging Face does not accept the access token: log in again (hf auth login) with one that has write permission"
    if status in (401, 404):
        return f"{repo_id} is not there any more: check whether it was deleted or renamed, and push again"
    if status == 402:
        owner = repo_id.partition("/")[0]
        return f"Hugging Face takes no more files from {owner}{said}: see its plan and storage at huggingface.co/settings/billing"
    if status == 403:
        return (
            f"Hugging Face does not let {state.user or 'this token'} write to {repo_id}{said}: use a token with write permission for it, "
            "or push to a repository of your own"
        )
    if status == 409 and state.step == "create":
        return f"The name {repo_id} is taken by a repository that {state.user or 'this token'} cannot see: choose another name"
    if status in (409, 412):
        return f"{repo_id} was changed by another push meanwhile: look at what it holds now, and push again"
    if status == 429:
        return "Hugging Face had too many requests and refuses more for now: push again in a few minutes"
    if status == 400 or status == 413 or status == 422:
        return f"Hugging Face refuses the files or the name of {repo_id}{said}: change them and push again"
    return f"Hugging Face answered {status} for {repo_id}: push again later, which sends only what is missing"


def _one_line(text: str) -> str:
    """What a server said, short, on one line, and without anything like a token."""
    text = re.sub(r"\b(?:hf|api)_[\w.\-]{6,}|[Bb]earer\s+\S+", "***", text)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:160].rstrip(".: ")
