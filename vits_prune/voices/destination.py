"""Where a push would go: who is logged in, what they may write to, and what stands there."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vits_prune.errors import HubError, InputError, LoginError
from vits_prune.voices.hub import parse_repo_id
from vits_prune.voices.hub_errors import PushState, UnreadableAnswer, plain_push_errors
from vits_prune.voices.onnx_load import describes_export
from vits_prune.voices.pushable import MARKS, MAX_MARK_BYTES, RECORD, shown_name, voice_named_in
from vits_prune.voices.transfer import Meter

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

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
        return {sibling.rfilename: sibling for sibling in (self.info.siblings if self.info else None) or ()}


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
        raise state.refusal("Nobody is logged in to Hugging Face: log in with write permission, then push", LoginError)
    api = HfApi(endpoint=constants.ENDPOINT, token=token if isinstance(token, str) else get_token())
    who = meter.wait(api.whoami)
    if not isinstance(who, dict) or not isinstance(who.get("name"), str):
        raise UnreadableAnswer("it names no user")
    state.user = parse_repo_id(f"{who['name']}/x")[0].partition("/")[0]
    state.repo_id = named if "/" in named else parse_repo_id(f"{state.user}/{named}")[0]
    _require_rights(who, state)
    try:
        info = meter.wait(lambda: api.model_info(state.repo_id, files_metadata=True, timeout=LOOK_SECONDS))
    except RepositoryNotFoundError:
        info = None
    if info is not None and str(info.id) != state.repo_id:  # it was renamed, or is written with other capitals
        state.repo_id = parse_repo_id(str(info.id))[0]
        _require_rights(who, state)
    private = bool(info.private) if info is not None else None
    url = f"{constants.ENDPOINT.rstrip('/')}/{state.repo_id}"
    place = Place(Destination(state.repo_id, url, state.user, info is not None, private, ""), api, info)
    holds = meter.wait(lambda: _holds(place))
    voice = meter.wait(lambda: _voice_in(place)) if holds == "voice" else ""
    return dataclasses.replace(place, destination=dataclasses.replace(place.destination, holds=holds, voice=voice))


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
    writable = [scope.get("entity") or {} for scope in scopes or () if "repo.write" in (scope.get("permissions") or ())]
    if role == "read" or (isinstance(scopes, list) and not writable):
        raise state.refusal(
            f"The access token of {state.user} may only read: make one with write permission at huggingface.co/settings/tokens and log in "
            "with it (hf auth login)",
            LoginError,
        )
    owner = state.repo_id.partition("/")[0]
    if owner.lower() in {state.user.lower(), *(str(entity.get("name", "")).lower() for entity in writable)}:
        return
    orgs = {str(org.get("name", "")).lower(): org.get("roleInOrg") for org in who.get("orgs") or () if isinstance(org, dict)}
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
    if names & {MARKS[0], RECORD} or (MARKS[1] in names and _is_export(small_file(place, MARKS[1], MAX_MARK_BYTES))):
        return "voice"
    return "other" if names - _BARE else ""


def _voice_in(place: Place) -> str:
    """The name of a voice that was pushed, "" where it is not told."""
    return next(filter(None, (voice_named_in(small_file(place, mark, MAX_MARK_BYTES)) for mark in MARKS)), "")


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

    url = hf_hub_url(place.destination.repo_id, name, revision=place.info.sha if place.info else None, endpoint=place.api.endpoint)
    content = b""
    with get_session().stream("GET", url, headers=build_hf_headers(token=place.api.token)) as answer:
        hf_raise_for_status(answer)
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > most:
                return None
    return content
