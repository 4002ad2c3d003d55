"""What of a folder may be pushed to the hub, and the record of it that a push leaves in the repository."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vits_prune.errors import HubError, InputError, LoginError
from vits_prune.ship.hub_transfer import Meter
from vits_prune.voices.hub import parse_repo_id
from vits_prune.voices.hub_errors import PushState, UnreadableAnswer, plain_push_errors
from vits_prune.voices.onnx_load import describes_export

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo


RECORD = "vits_prune_push.json"

"""In the repository: the files of the latest push, so that the next one takes away those that it lacks, and nothing of anybody else."""

MARKS = ("vits_prune.json", "export.json")

"""A folder or a repository with one of these holds a voice that `save_voice` or `export_voice` wrote."""

MAX_FILES = 200

MAX_BYTES = 4 << 30

"""Of one push: twice what `load_voice` would fetch again."""

_MAX_RECORD_BYTES = 1 << 20

MAX_MARK_BYTES = 32 << 20

"""Of one of MARKS: both hold a recipe."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5")

"""Kinds of files that run code when they are read, or may; load_voice reads none of them."""


def pushable_files(folder: str | Path) -> dict[str, Path]:
    """The files of a folder by their path in the repository, sorted: those in it and one level below, hidden ones left out.

    Raises:
        InputError: it is no folder with a voice of this library, holds something that is not pushed, or is too large.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            f"There is no folder {str(folder)[:200]!r}: give one that an export wrote; nothing was published."
        )
    if not any((root / mark).is_file() for mark in MARKS):
        raise InputError(
            f"{root.name} is no voice that vits_prune saved (it has no {' and no '.join(MARKS)}): export the voice, and push that folder; "
            "nothing was published."
        )
    files: dict[str, Path] = {}
    try:
        for path in sorted(root.iterdir()):
            _gather(path, root, files)
            if path.is_dir() and not path.name.startswith("."):
                for below in sorted(path.iterdir()):
                    _gather(below, root, files)
                    if below.is_dir() and not below.name.startswith("."):
                        raise _refusal(
                            root, below, "is a folder in a folder, and a push goes one level deep"
                        )
        size = sum(path.stat().st_size for path in files.values())
    except OSError as error:
        raise InputError(
            f"{root.name} cannot be read ({error.strerror}): check the folder; nothing was published."
        ) from error
    if size > MAX_BYTES:
        raise InputError(
            f"{root.name} is {size / 2**20:,.0f} MiB, more than the {MAX_BYTES / 2**20:,.0f} MiB of a push: take out what is not the "
            "voice; nothing was published."
        )
    return files


def _gather(path: Path, root: Path, files: dict[str, Path]) -> None:
    """Note one entry of a folder that is a file to push."""
    name = path.relative_to(root).as_posix()
    if path.name.startswith(".") or name == RECORD:
        return
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise _refusal(root, path, "is a link that leads out of the folder")
    if path.is_dir() and not path.is_symlink():
        return
    if not path.is_file():
        raise _refusal(root, path, "is no plain file")
    if path.suffix.lower() in _PICKLES:
        raise _refusal(
            root,
            path,
            "is of a kind that can run code when it is opened, and voices are safetensors, ONNX and JSON",
        )
    if not is_plain(name):
        raise _refusal(root, path, "has a name that a repository does not take")
    files[name] = path
    if len(files) > MAX_FILES:
        raise InputError(
            f"{root.name} holds more than {MAX_FILES} files: take out what is not the voice; nothing was published."
        )


def _refusal(root: Path, path: Path, why: str) -> InputError:
    shown = "".join(c if c.isprintable() else "?" for c in path.relative_to(root).as_posix())[:80]
    return InputError(
        f"{shown!r} in {root.name} {why}: take it out and push again; nothing was published."
    )


def is_plain(name: Any) -> bool:
    """Whether this is the name of a file in a repository or in a folder of it, nothing hidden and no way out."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= 200
        or not name.isprintable()
        or "\\" in name
    ):
        return False
    parts = PurePosixPath(name).parts
    return (
        "/".join(parts) == name
        and len(parts) <= 2
        and not any(re.match(r"[.\s]|.*\s$", part) for part in parts)
        and name[0] != "/"
    )


def voice_named_in(mark: bytes | None) -> str:
    """The name of the voice in the content of one of MARKS, "" where it tells none."""
    try:
        name = json.loads(mark)["name"] if mark and len(mark) <= MAX_MARK_BYTES else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return shown_name(name) if isinstance(name, str) else ""


def shown_name(name: str) -> str:
    """A voice's name as it is shown and compared."""
    return "".join(c if c.isprintable() else "?" for c in name)[:80]


def record_of(files: Iterable[str]) -> bytes:
    """What RECORD holds after a push of these files; the same files give the same bytes."""
    return (json.dumps({"files": sorted(files)}, indent=1, ensure_ascii=False) + "\n").encode()


def files_of_earlier_push(
    holds: Iterable[str], record: bytes | None, manifest: bytes | None
) -> set[str]:
    """The files of a repository that an earlier push put there: what its record says, or else the manifest of a voice saved there by hand.

    Args:
        holds: the files that the repository has.
        record: the content of its RECORD, None where there is none.
        manifest: the content of its vits_prune.json, None where there is none.
    """
    names: set[str] = set()
    for content, mark in ((record, RECORD), (manifest, MARKS[0])):
        if content is None or len(content) > _MAX_RECORD_BYTES or names:
            continue
        try:
            listed = json.loads(content)["files"]
            names = (
                {name for name in listed if is_plain(name)} | {mark}
                if len(listed) <= MAX_FILES
                else set()
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            names = set()
    return names & set(holds)


LOOK_SECONDS = 30.0

"""How long the hub may take to say what a repository holds."""

_MAX_SMALL_BYTES = 1 << 20

_BARE = frozenset({"README.md", ".gitattributes", ".gitignore", "LICENSE"})

"""Files of a repository in which nothing was put yet."""


@dataclass(frozen=True)
class Destination:
    """What stands where a push would go."""

    repo_id: str
    """"owner/name"."""
    url: str
    user: str
    """Who is logged in."""
    exists: bool
    private: bool | None
    """None where it does not exist."""
    holds: str
    """"" (nothing, or only a README), "voice" (something that vits_prune pushed) or "other"."""
    voice: str = ""
    """Name of the voice that was pushed there, as far as it is told."""

    def holds_another(self, name: str) -> bool:
        """Whether a voice of another name is there."""
        return bool(self.voice) and self.voice != shown_name(name)

    def require_same(self, name: str) -> None:
        """Refuse to put a voice in the place of a different one.

        Raises:
            InputError: the repository holds a voice of another name.
        """
        if self.holds_another(name):
            raise InputError(
                f"{self.repo_id} holds the voice {self.voice!r}, and this is {shown_name(name)!r}: choose another name, or push with "
                "replace (--replace), which puts this voice in its place; nothing was published."
            )


@dataclass(frozen=True)
class Place:
    """A destination with what is needed to push there."""

    destination: Destination
    api: HfApi
    info: ModelInfo | None
    """None where it does not exist."""

    @property
    def files(self) -> dict[str, Any]:
        """What the hub says of each file there, by name."""
        return {
            sibling.rfilename: sibling
            for sibling in (self.info.siblings if self.info else None) or ()
        }


def check_destination(repo: str, *, token: str | bool | None = None) -> Destination:
    """What stands where a push to `repo` would go; nothing is changed.

    Args:
        repo: "name" (a repository of one's own), "owner/name" or the address of a model's page.
        token: access token with write permission; None for the usual one (HF_TOKEN or `hf auth login`), False for none.

    Raises:
        LoginError: nobody is logged in, or the token may not write.
        HubError: this user may not write there, or the hub cannot be reached.
        InputError: it is no name of a repository.
    """
    state = PushState(shown(repo))
    with plain_push_errors(state):
        return look(repo, token, state, Meter(0, None, state)).destination


def shown(repo: Any) -> str:
    """What a caller gave as a repository, as far as it can be shown."""
    return "".join(c if c.isprintable() else "?" for c in str(repo).strip())[:80]


def look(repo: str, token: str | bool | None, state: PushState, meter: Meter) -> Place:
    """Who is logged in, whether they may write to a repository, and what it holds.

    Raises:
        InputError: it is no name, nobody is logged in, or they may not write there; other errors are huggingface_hub's.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    named = _repository_name(repo, state)
    if token is False or token == "":
        raise state.refusal(
            "Nobody is logged in to Hugging Face: log in with write permission, then push",
            LoginError,
        )
    api = HfApi(endpoint=constants.ENDPOINT, token=token if isinstance(token, str) else get_token())
    who = meter.wait(api.whoami)
    if not isinstance(who, dict) or not isinstance(who.get("name"), str):
        raise UnreadableAnswer("it names no user")
    state.user = parse_repo_id(f"{who['name']}/x")[0].partition("/")[0]
    state.repo_id = named if "/" in named else parse_repo_id(f"{state.user}/{named}")[0]
    _require_rights(who, state)
    try:
        info = meter.wait(
            lambda: api.model_info(state.repo_id, files_metadata=True, timeout=LOOK_SECONDS)
        )
    except RepositoryNotFoundError:
        info = None
    if (
        info is not None and str(info.id) != state.repo_id
    ):  # it was renamed, or is written with other capitals
        state.repo_id = parse_repo_id(str(info.id))[0]
        _require_rights(who, state)
    private = bool(info.private) if info is not None else None
    url = f"{constants.ENDPOINT.rstrip('/')}/{state.repo_id}"
    place = Place(
        Destination(state.repo_id, url, state.user, info is not None, private, ""), api, info
    )
    holds = meter.wait(lambda: _holds(place))
    voice = meter.wait(lambda: _voice_in(place)) if holds == "voice" else ""
    return dataclasses.replace(
        place, destination=dataclasses.replace(place.destination, holds=holds, voice=voice)
    )


def _repository_name(repo: Any, state: PushState) -> str:
    """ "owner/name" or "name"."""
    from huggingface_hub import constants

    text = str(repo).strip().removeprefix(constants.ENDPOINT.rstrip("/") + "/")
    bare = "/" not in text.rstrip("/")
    try:
        named, revision = parse_repo_id(f"own/{text.rstrip('/')}" if bare else text)
    except InputError:
        raise state.refusal(
            f"{state.repo_id!r} is no name for a repository: write name or owner/name with letters, digits, dots, dashes and underscores"
        ) from None
    if revision is not None:
        raise state.refusal("A push goes to the main branch: leave the revision out of the name")
    return named.removeprefix("own/") if bare else named


def _require_rights(who: dict[str, Any], state: PushState) -> None:
    """Refuse what is known to fail before anything is measured, written or sent; what is not known the hub will say.

    Raises:
        InputError: the token only reads, or the owner is neither this user nor one of their organisations.
    """
    access = (who.get("auth") or {}).get("accessToken") or {}
    role = access.get("role") if isinstance(access, dict) else None
    scopes = (access.get("fineGrained") or {}).get("scoped") if role == "fineGrained" else None
    writable = [
        scope.get("entity") or {}
        for scope in scopes or ()
        if "repo.write" in (scope.get("permissions") or ())
    ]
    if role == "read" or (isinstance(scopes, list) and not writable):
        raise state.refusal(
            f"The access token of {state.user} may only read: make one with write permission at huggingface.co/settings/tokens and log in "
            "with it (hf auth login)",
            LoginError,
        )
    owner = state.repo_id.partition("/")[0]
    if owner.lower() in {
        state.user.lower(),
        *(str(entity.get("name", "")).lower() for entity in writable),
    }:
        return
    orgs = {
        str(org.get("name", "")).lower(): org.get("roleInOrg")
        for org in who.get("orgs") or ()
        if isinstance(org, dict)
    }
    if owner.lower() not in orgs or orgs[owner.lower()] == "read":
        what = "may only read there" if owner.lower() in orgs else "does not belong to it"
        name = state.repo_id.partition("/")[2]
        raise state.refusal(
            f"{state.user} cannot push to {owner} ({what}): push to {state.user}/{name}, or ask {owner} for write permission",
            HubError,
        )


def _holds(place: Place) -> str:
    """ "", "voice" or "other", see Destination. Other programs write files called export.json too: what it says decides."""
    names = set(place.files)
    if names & {MARKS[0], RECORD} or (
        MARKS[1] in names and _is_export(small_file(place, MARKS[1], MAX_MARK_BYTES))
    ):
        return "voice"
    return "other" if names - _BARE else ""


def _voice_in(place: Place) -> str:
    """The name of a voice that was pushed, "" where it is not told."""
    return next(
        filter(None, (voice_named_in(small_file(place, mark, MAX_MARK_BYTES)) for mark in MARKS)),
        "",
    )


def _is_export(content: bytes | None) -> bool:
    try:
        return content is not None and describes_export(json.loads(content))
    except (ValueError, RecursionError):
        return False


def small_file(place: Place, name: str, most: int = _MAX_SMALL_BYTES) -> bytes | None:
    """What a file of a repository holds, None where it is not there or larger than `most` bytes."""
    size = getattr(place.files.get(name), "size", None)
    if not isinstance(size, int) or size > most:
        return None
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(
        place.destination.repo_id,
        name,
        revision=place.info.sha if place.info else None,
        endpoint=place.api.endpoint,
    )
    content = b""
    with get_session().stream(
        "GET", url, headers=build_hf_headers(token=place.api.token)
    ) as answer:
        hf_raise_for_status(answer)
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > most:
                return None
    return content
