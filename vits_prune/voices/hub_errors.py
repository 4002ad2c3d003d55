"""What goes wrong in a download from the hub, in one plain sentence each."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Callable, Iterator

from vits_prune.errors import HubError, InputError, LoginError, NotFoundError

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, AssertionError)
"""What huggingface_hub raises for an answer that is not the hub's. Our own bugs raise it too."""


class TooManyBytes(Exception):
    """The server sent more than it had declared."""


@contextlib.contextmanager
def plain_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises during a download into an InputError of one plain sentence.

    It is a LoginError, a HubError, or about the disk. Errors of other code pass as they are.
    """
    with explained(lambda error: _download_error(repo_id, revision, error)):
        yield


@contextlib.contextmanager
def explained(explain: Callable[[Exception], Exception | None]) -> Iterator[None]:
    """Raise what `explain` makes of an error; InputErrors, and what it makes None of, pass."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        found = explain(error)
        if found is None:
            raise
        raise found from (found.__cause__ if found is error.__cause__ else error)


def raised_by_client(error: BaseException) -> bool:
    """Return whether huggingface_hub itself raised an error, not a callback of ours."""
    frames = traceback.walk_tb(error.__traceback__)
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames]
    ours = [i for i, package in enumerate(packages) if package == __name__.partition(".")[0]]
    return "huggingface_hub" in packages[max(ours, default=-1) + 1 :]


def _download_error(repo_id: str, revision: str | None, error: Exception) -> InputError | None:
    """Return the sentence for an error, None if it is neither the hub's nor the disk's."""
    import httpx2
    from huggingface_hub import errors

    lost = HubError(f"The connection was lost while loading {repo_id}: try again.")
    known: dict[type[Exception], InputError] = {
        errors.GatedRepoError: LoginError(
            f"{repo_id} is gated: accept its licence at https://huggingface.co/{repo_id}, "
            "then log in (hf auth login) or give a token."
        ),
        errors.RepositoryNotFoundError: NotFoundError(
            f"There is no model {repo_id} on Hugging Face, or it is private: "
            "check the name, or log in."
        ),
        errors.RevisionNotFoundError: NotFoundError(
            f"{repo_id} has no revision {revision!r}: give one of its branches, tags or commits."
        ),
        errors.LocalEntryNotFoundError: lost,
        errors.EntryNotFoundError: HubError(
            f"{repo_id} lacks a file that it lists: try again later."
        ),
        errors.HFValidationError: InputError(
            f"{repo_id!r} is no model of the Hugging Face hub: "
            "write owner/name such as facebook/mms-tts-eng."
        ),
        TooManyBytes: HubError(
            f"The server sent more of {error} of {repo_id} than it had declared, and was cut off: "
            "try again later."
        ),
    }
    for kind, answer in known.items():
        if isinstance(error, kind):
            return answer
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(repo_id, error.response.status_code)
    if isinstance(error, (httpx2.HTTPError, errors.XetDownloadError, ConnectionError)):
        return lost
    if isinstance(error, OSError):
        return _disk_error(repo_id, error)
    if not isinstance(error, (RuntimeError, *UNREADABLE)) or not raised_by_client(error):
        return None
    if isinstance(error, RuntimeError):  # how hf_xet reports a broken connection
        return lost
    what = f"The hub gave an answer about {repo_id} that cannot be read"
    return HubError(f"{what}: check HF_ENDPOINT, or try again later.")


def _refused(repo_id: str, status: int) -> HubError:
    if status == 401:
        return LoginError(
            "Hugging Face does not accept the access token: log in again (hf auth login), "
            f"or load {repo_id} without a token."
        )
    if status == 403:
        what = f"Hugging Face refuses access to {repo_id}"
        return LoginError(f"{what}: check that the access token may read it.")
    if status == 429:
        what = f"Hugging Face received too many requests and refuses {repo_id} for now"
        return HubError(f"{what}: try again in a few minutes.")
    return HubError(f"Hugging Face answered {status} for {repo_id}: try again later.")


def _disk_error(repo_id: str, error: OSError) -> InputError:
    if error.errno is None:  # huggingface_hub's check of the size after the last byte
        return HubError(f"The download of {repo_id} arrived incomplete: try again.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "The disk is full: free some space, or set HF_HOME to a folder on another disk, "
        return InputError(f"{what}and load {repo_id} again.")
    what = f"The download of {repo_id} cannot be written ({error.strerror})"
    return InputError(f"{what}: check the cache folder, or set HF_HOME to another.")
