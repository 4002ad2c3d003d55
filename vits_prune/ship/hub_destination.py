"""What of a folder may be pushed, where it goes, and the record that a push leaves there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import HubError, InputError, LoginError
from vits_prune.files import expanded, parse_json
from vits_prune.ship.hub_transfer import Push, UnreadableAnswer
from vits_prune.voices.hub import parse_repo_id
from vits_prune.voices.manifest import EXPORT, SAVED
from vits_prune.voices.onnx_load import describes_export

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

RECORD = "vits_prune_push.json"
"""In the repository: the files of the latest push, so that the next one takes away those that it
lacks, and nothing of anybody else."""
MANIFESTS = (SAVED.name, EXPORT.name)
"""A folder or a repository with one of these holds a voice that vits_prune wrote."""
MAX_FILES = 200
MAX_PUSH_BYTES = 4 << 30
"""Of one push: twice what `load_voice` would fetch again."""
LOOK_SECONDS = 30.0
"""How long the hub may take to say what a repository holds."""
_MAX_RECORD_BYTES = 1 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5")
"""Kinds of files that may run code when they are read; load_voice reads none of them."""
_BARE = frozenset({"README.md", ".gitattributes", ".gitignore", "LICENSE"})
"""Files of a repository in which nothing was put yet."""


def pushable_files(folder: str | Path) -> dict[str, Path]:
    """Return the files of a folder by their path in the repository, sorted.

    Those in it and one level below; hidden ones are left out.

    Raises:
        InputError: it is no folder with a voice of this library, holds something that is not
            pushed, or is too large.
    """
    root = expanded(folder)

    def wrong(what: str) -> InputError:
        return InputError(f"{what}; nothing was published.")

    if not root.is_dir():
        raise wrong(f"There is no folder {str(folder)[:200]!r}: give one that an export wrote")
    if not any((root / name).is_file() for name in MANIFESTS):
        lacks = f"no voice that vits_prune saved (it has no {' and no '.join(MANIFESTS)})"
        raise wrong(f"{root.name} is {lacks}: export the voice, and push that folder")
    files: dict[str, Path] = {}
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
        open_folders = [root, *(path for path in folders if not path.name.startswith("."))]
        for path in sorted(path for folder in open_folders for path in folder.iterdir()):
            name = path.relative_to(root).as_posix()
            if name == RECORD or any(part.startswith(".") for part in name.split("/")):
                continue
            if why := _why_not(root, path):
                raise wrong(f"{shown(name)!r} in {root.name} {why}: take it out and push again")
            if path.is_file():
                files[name] = path
        size = sum(path.stat().st_size for path in files.values())
    except OSError as error:
        raise wrong(f"{root.name} cannot be read ({error.strerror}): check the folder") from error
    found = f"is {size / 2**20:,.0f} MiB, more than the {MAX_PUSH_BYTES / 2**20:,.0f} MiB of a push"
    if len(files) > MAX_FILES:
        found = f"holds more than {MAX_FILES} files"
    if len(files) > MAX_FILES or size > MAX_PUSH_BYTES:
        raise wrong(f"{root.name} {found}: take out what is not the voice")
    return dict(sorted(files.items()))


def _why_not(root: Path, path: Path) -> str:
    """Why an entry of a folder is not pushed, "" if it is, or is a folder to look into."""
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        return "is a link that leads out of the folder"
    if path.is_dir():
        deep = path.parent != root or path.is_symlink()
        return "is a folder in a folder, and a push goes one level deep" if deep else ""
    if not path.is_file():
        return "is no plain file"
    if path.suffix.lower() in _PICKLES:
        return "is of a kind that can run code when it is opened"
    if not is_plain(path.relative_to(root).as_posix()):
        return "has a name that a repository does not take"
    return ""


def is_plain(name: Any) -> bool:
    """Return whether this names a file of a repository or of a folder in it, no hidden one."""
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
        return False
    parts = name.split("/")
    return len(parts) <= 2 and all(re.fullmatch(r"(?![.\s])[^\\]*[^\\\s]", part) for part in parts)


def _parsed(content: bytes | None, most: int) -> dict[str, Any]:
    """The JSON object in a file of a repository, an empty one if it cannot be read."""
    try:
        return parse_json(content or b"", "", most)
    except InputError:
        return {}


def voice_named_in(manifest: dict[str, Any]) -> str:
    """Return the name of the voice in one of MANIFESTS, "" if it says none."""
    name = manifest.get("name")
    return shown(name) if isinstance(name, str) else ""


def shown(name: Any) -> str:
    """Return a name of a voice or repository as it is shown and compared."""
    return "".join(c if c.isprintable() else "?" for c in str(name).strip()[:80])


def record_of(files: Iterable[str]) -> bytes:
    """Return what RECORD holds after a push of these files; the same files give the same bytes."""
    return (json.dumps({"files": sorted(files)}, indent=1, ensure_ascii=False) + "\n").encode()


def files_of_earlier_push(
    holds: Iterable[str], record: bytes | None, manifest: bytes | None
) -> set[str]:
    """Return those of the files that a repository holds that an earlier push put there.

    They are in the content of its RECORD, or in that of the vits_prune.json of a saved voice.
    """
    for content, name in ((record, RECORD), (manifest, SAVED.name)):
        listed = _parsed(content, _MAX_RECORD_BYTES).get("files")
        if isinstance(listed, (list, dict)) and len(listed) <= MAX_FILES:
            return ({one for one in listed if is_plain(one)} | {name}) & set(holds)
    return set()


@dataclass(frozen=True)
class Destination:
    """What a repository is and holds."""

    repo_id: str
    url: str
    user: str
    """Who is logged in."""
    exists: bool
    private: bool | None
    """None if it does not exist."""
    holds: str
    """ "" (nothing, or only a README), "voice" (something that vits_prune pushed) or "other"."""
    voice: str = ""
    """Name of the voice that was pushed there, as far as it is known."""

    def holds_another(self, name: str) -> bool:
        """Return whether a voice of another name is there."""
        return bool(self.voice) and self.voice != shown(name)

    def require_same(self, name: str) -> None:
        """Raise InputError if the repository holds a voice of another name."""
        if self.holds_another(name):
            raise InputError(
                f"{self.repo_id} holds the voice {self.voice!r}, and this is {shown(name)!r}: "
                "choose another name, or push with replace (--replace); nothing was published."
            )


def check_destination(repo: str, *, token: str | bool | None = None) -> Destination:
    """Return what a push to `repo` would find there; nothing is changed.

    Args:
        repo: "name" (a repository of one's own), "owner/name" or the address of a model's page.
        token: access token with write permission; None for the usual one (HF_TOKEN or
            `hf auth login`), False for none.

    Raises:
        LoginError: nobody is logged in, or the token may not write.
        HubError: this user may not write there, or the hub cannot be reached.
        InputError: it is no name of a repository.
    """
    push = Push(shown(repo))
    with push.plain_errors():
        return look(push, repo, token)


def look(push: Push, repo: str, token: str | bool | None) -> Destination:
    """Find out who is logged in, whether they may write to a repository, and what it holds.

    Raises:
        InputError: as for `check_destination`; other errors are huggingface_hub's.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    named = _repository_name(repo, push)
    if token is False or token == "":
        what = "Nobody is logged in to Hugging Face: log in with write permission, then push"
        raise push.refusal(what, LoginError)
    token = token if isinstance(token, str) else get_token()
    push.api = HfApi(endpoint=constants.ENDPOINT, token=token)
    who = push.wait(push.api.whoami)
    if not isinstance(who, dict) or not isinstance(who.get("name"), str):
        raise UnreadableAnswer("it names no user")
    push.user = parse_repo_id(f"{who['name']}/x")[0].partition("/")[0]
    push.repo_id = named if "/" in named else parse_repo_id(f"{push.user}/{named}")[0]
    _require_rights(who, push)
    try:
        push.info = push.wait(lambda: ask(push))
    except RepositoryNotFoundError:
        return Destination(push.repo_id, push.url, push.user, False, None, "")
    if str(push.info.id) != push.repo_id:
        # It was renamed, or is written with other capitals.
        push.repo_id = parse_repo_id(str(push.info.id))[0]
        _require_rights(who, push)
    private = bool(push.info.private)
    holds, voice = push.wait(lambda: _contents(push))
    return Destination(push.repo_id, push.url, push.user, True, private, holds, voice)


def ask(push: Push, revision: str | None = None) -> ModelInfo:
    """Ask the hub what a repository holds."""
    return push.api.model_info(
        push.repo_id, revision=revision, files_metadata=True, timeout=LOOK_SECONDS
    )


def _repository_name(repo: Any, push: Push) -> str:
    """ "owner/name" or "name"."""
    from huggingface_hub import constants

    text = str(repo).strip().removeprefix(constants.ENDPOINT.rstrip("/") + "/")
    bare = "/" not in text.rstrip("/")
    try:
        named, revision = parse_repo_id(f"own/{text.rstrip('/')}" if bare else text)
    except InputError:
        what = f"{push.repo_id!r} is no name for a repository"
        raise push.refusal(f"{what}: write name or owner/name") from None
    if revision is not None:
        raise push.refusal("A push goes to the main branch: leave the revision out of the name")
    return named.removeprefix("own/") if bare else named


def _require_rights(who: dict[str, Any], push: Push) -> None:
    """Raise LoginError if the token only reads, HubError if the owner is somebody else.

    What is not known the hub will say.
    """
    access = (who.get("auth") or {}).get("accessToken") or {}
    role = access.get("role") if isinstance(access, dict) else None
    scopes = (access.get("fineGrained") or {}).get("scoped") if role == "fineGrained" else None
    able = [scope for scope in scopes or () if "repo.write" in (scope.get("permissions") or ())]
    writable = [scope.get("entity") or {} for scope in able]
    if role == "read" or (isinstance(scopes, list) and not writable):
        raise push.refusal(
            f"The access token of {push.user} may only read: log in (hf auth login) with one that "
            "has write permission, from huggingface.co/settings/tokens",
            LoginError,
        )
    owner, _, name = push.repo_id.partition("/")
    own = {push.user.lower(), *(str(entity.get("name", "")).lower() for entity in writable)}
    roles = {
        str(org.get("name", "")).lower(): org.get("roleInOrg")
        for org in who.get("orgs") or ()
        if isinstance(org, dict)
    }
    member = owner.lower() in roles
    if owner.lower() in own or (member and roles[owner.lower()] != "read"):
        return
    what = "may only read there" if member else "does not belong to it"
    advice = f"push to {push.user}/{name}, or ask {owner} for write permission"
    raise push.refusal(f"{push.user} cannot push to {owner} ({what}): {advice}", HubError)


def _contents(push: Push) -> tuple[str, str]:
    """What a repository holds and the name of the voice, as in a Destination."""
    names = push.held.keys()
    manifests = {
        name: _parsed(small_file(push, name, EXPORT.max_bytes), EXPORT.max_bytes)
        for name in MANIFESTS
    }
    # Other programs write files called export.json too: what it says decides.
    if names & {SAVED.name, RECORD} or describes_export(manifests[EXPORT.name]):
        return "voice", next(filter(None, map(voice_named_in, manifests.values())), "")
    return "other" if names - _BARE else "", ""


def small_file(push: Push, name: str, most: int = _MAX_RECORD_BYTES) -> bytes | None:
    """Return a file of a repository, None if it is not there or larger than `most` bytes."""
    size = getattr(push.held.get(name), "size", None)
    if not isinstance(size, int) or size > most:
        return None
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    revision, endpoint = push.info.sha if push.info else None, push.api.endpoint
    url = hf_hub_url(push.repo_id, name, revision=revision, endpoint=endpoint)
    content, headers = b"", build_hf_headers(token=push.api.token)
    with get_session().stream("GET", url, headers=headers) as answer:
        hf_raise_for_status(answer)
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > most:
                return None
    return content
