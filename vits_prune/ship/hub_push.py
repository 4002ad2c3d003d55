"""A folder -> a model repository of the Hugging Face hub, in one commit: all of it is published or nothing is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vits_prune.errors import HubError
from vits_prune.ship.hub_destination import (
    LOOK_SECONDS,
    MARKS,
    MAX_MARK_BYTES,
    RECORD,
    Destination,
    Place,
    check_destination,
    files_of_earlier_push,
    look,
    pushable_files,
    record_of,
    shown,
    small_file,
    voice_named_in,
)
from vits_prune.ship.hub_transfer import CountedFile, Meter, Progress, offers_xet, send_large
from vits_prune.voices.hub_errors import PushStalled, PushState, plain_push_errors

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["Destination", "Pushed", "check_destination", "push_folder"]


_PLAIN_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    repo_id: str
    url: str
    commit: str
    """The commit that holds the voice now, of 40 hexadecimal digits."""
    files: int
    """Files of the folder that the commit holds."""
    bytes_sent: int
    """Bytes of large files sent by this push; those that an interrupted push had sent already are not sent again."""


def push_folder(
    folder: str | Path,
    repo: str,
    *,
    token: str | bool | None = None,
    private: bool = False,
    replace: bool = False,
    message: str = "Voice from vits_prune",
    on_progress: Progress | None = None,
) -> Pushed:
    """Publish a folder that `save_voice` or `export_voice` wrote, with what lies beside it, in one commit on the main branch.

    Large files are sent first and seen by nobody; then one commit names all files, takes away those of the earlier push that this one
    lacks, and is refused by the hub where the repository was changed meanwhile. A push that is cut off is repeated as it is: files (with
    xet, chunks) that had arrived are not sent again. A repository that it made stays, empty; none is ever deleted.

    Args:
        folder: files in it and one level below are pushed; hidden ones are left out, pickles and links that lead outside refused.
        repo: "name" (a repository of one's own), "owner/name" or the address of a model's page; made where it does not exist.
        token: access token with write permission; None for the usual one (HF_TOKEN or `hf auth login`), False for none.
        private: make a new repository private. An existing one keeps what it is, and is refused where it is public.
        replace: push to a repository that holds something else or another voice, too. Of what vits_prune did not push only files of the
            same names are written over; none is ever deleted.
        message: title of the commit.
        on_progress: told several times a second in the calling thread, with bytes of all files; it may raise to cancel, and nothing is
            published then. It is not called once the commit is being made.

    Raises:
        InputError: see `check_destination`; the folder is no voice or holds something that is not pushed; the repository holds something
            else or another voice, is public, or was changed meanwhile; the connection was lost. Nothing was published then; where only the
            answer to the commit was lost and the hub cannot be asked any more, the sentence says that it is not known.
    """
    files = pushable_files(folder)
    state = PushState(shown(repo))
    meter = Meter(sum(path.stat().st_size for path in files.values()), on_progress, state)
    with plain_push_errors(state), ExitStack() as opened:
        place = look(repo, token, state, meter)
        _require_willing(place, state, private, replace)
        if not replace:
            place.destination.require_same(_name_in(files) or place.destination.voice)
        meter.tell()
        if not place.destination.exists:
            place = _create(place, state, meter, private)
        state.step = "send"
        old = meter.wait(lambda: _earlier_files(place))
        _require_readable(place, files, old, state)
        additions = meter.wait(lambda: _additions(files, place, meter, opened))
        meter.wait(lambda: send_large(place.api, state.repo_id, additions, meter))
        _require_all(additions, state)
        for name, path in files.items():
            meter.arrived(name, path.stat().st_size)
        meter.tell()  # the last moment to cancel
        state.step = "commit"
        commit = _commit(
            place,
            additions,
            sorted(old - {addition.path_in_repo for addition in additions}),
            message,
            meter,
            state,
        )
    return Pushed(
        place.destination.repo_id,
        place.destination.url,
        commit,
        len(files),
        sum(meter.sent.values()),
    )


def _require_willing(place: Place, state: PushState, private: bool, replace: bool) -> None:
    """Refuse what the caller cannot have meant."""
    destination = place.destination
    if destination.holds == "other" and not replace:
        raise state.refusal(
            f"{destination.repo_id} holds something else than a voice of vits_prune: choose another name, or push with replace "
            "(--replace), which writes over files of the same names and leaves the others"
        )
    if destination.exists and private and not destination.private:
        raise state.refusal(
            f"{destination.repo_id} is public: make it private at {destination.url}/settings first, choose another name, or push without "
            "private"
        )


def _name_in(files: dict[str, Path]) -> str:
    """The name of the voice that is pushed, "" where its files are too long to be asked."""
    return next(
        filter(None, (voice_named_in(_beginning(files[mark])) for mark in MARKS if mark in files)),
        "",
    )


def _beginning(path: Path) -> bytes:
    """As much of a file as shows whether it is too long to be one of MARKS."""
    with path.open("rb") as file:
        return file.read(MAX_MARK_BYTES + 1)


def _require_readable(
    place: Place, files: dict[str, Path], old: set[str], state: PushState
) -> None:
    """Refuse a voice beside plain weights that stay: other programs would go on loading those, with this voice's files around them."""
    stays = [
        name
        for name in _PLAIN_WEIGHTS
        if name in place.files and name not in files and name not in old
    ]
    if stays and _PLAIN_WEIGHTS[0] not in files:
        raise state.refusal(
            f"{state.repo_id} holds {stays[0]}, which other programs would go on loading in place of this voice: delete it there first, "
            "push the voice dense, or choose another name"
        )


def _create(place: Place, state: PushState, meter: Meter, private: bool) -> Place:
    """Make the repository, and look at what the hub put there."""
    state.step = "create"
    meter.wait(lambda: place.api.create_repo(state.repo_id, private=private))
    state.created, state.step = True, "send"
    info = meter.wait(
        lambda: place.api.model_info(state.repo_id, files_metadata=True, timeout=LOOK_SECONDS)
    )
    destination = Destination(
        state.repo_id, place.destination.url, state.user, True, bool(info.private), ""
    )
    if private and not info.private:
        raise state.refusal(
            f"Hugging Face made {state.repo_id} public though it was to be private: make it private at {destination.url}/settings"
        )
    return Place(destination, place.api, info)


def _earlier_files(place: Place) -> set[str]:
    """The files that an earlier push left there."""
    record, manifest = (small_file(place, name) for name in (RECORD, MARKS[0]))
    return files_of_earlier_push(place.files, record, manifest)


def _additions(
    files: dict[str, Path], place: Place, meter: Meter, opened: ExitStack
) -> list[CommitOperationAdd]:
    """What the commit will add: files opened for plain HTTP, or named for xet, and the record."""
    from huggingface_hub import CommitOperationAdd

    xet = offers_xet(place.api, place.destination.repo_id)
    additions = [CommitOperationAdd(RECORD, record_of(files))]
    for name, path in files.items():
        source = (
            str(path.resolve())
            if xet
            else opened.enter_context(CountedFile(str(path), name, meter))
        )
        additions.append(CommitOperationAdd(name, source))
    return additions


def _require_all(additions: list[CommitOperationAdd], state: PushState) -> None:
    """Refuse to publish a part: the hub would leave out what a .gitignore of the repository names, without a word."""
    ignored = [
        addition.path_in_repo
        for addition in additions
        if getattr(addition, "_should_ignore", False)
    ]
    if ignored:
        raise state.refusal(
            f"The .gitignore of {state.repo_id} leaves out {ignored[0][:80]!r}: remove it there and push again"
        )


def _commit(
    place: Place,
    additions: list[CommitOperationAdd],
    old: list[str],
    message: str,
    meter: Meter,
    state: PushState,
) -> str:
    """Publish: one commit, on top of the one that was looked at. Gives its hash."""
    from huggingface_hub import CommitOperationDelete

    parent = place.info.sha if place.info else None
    operations = [*additions, *(CommitOperationDelete(name, is_folder=False) for name in old)]
    title = " ".join(str(message).split())[:200] or "Voice from vits_prune"

    def publish() -> str:
        made = place.api.create_commit(
            state.repo_id, operations, commit_message=title, revision="main", parent_commit=parent
        )
        return str(made.oid)

    with _told_whether_it_landed(place, additions, old, meter, state) as landed:
        landed.append(meter.wait(publish, listen=False))
    return landed[0]


@contextmanager
def _told_whether_it_landed(
    place: Place,
    additions: list[CommitOperationAdd],
    old: list[str],
    meter: Meter,
    state: PushState,
) -> Iterator[list[str]]:
    """Where the answer to a commit is lost, ask the hub whether it was made."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    landed: list[str] = []
    try:
        yield landed
    except (httpx2.TransportError, HfHubHTTPError, PushStalled) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        try:
            info = meter.wait(
                lambda: place.api.model_info(
                    state.repo_id, revision="main", files_metadata=True, timeout=LOOK_SECONDS
                ),
                listen=False,
            )
        except Exception:
            raise HubError(
                f"The connection was lost at the last step, so it is not known whether {state.repo_id} has the voice: look at "
                f"{place.destination.url}, and push again where it has not, which sends only what is missing."
            ) from error
        if not _holds_all(info, additions, old):
            raise
        landed.append(str(info.sha))


def _holds_all(info: ModelInfo, additions: list[CommitOperationAdd], old: list[str]) -> bool:
    """Whether a repository has exactly the files that a commit was to leave there."""
    found = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if any(name in found for name in old):
        return False
    for addition in additions:
        sibling = found.get(addition.path_in_repo)
        if sibling is None:
            return False
        has = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if has != addition._local_oid:
            return False
    return True
