"""What goes wrong between a hub and a disk, in one plain sentence each."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

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
