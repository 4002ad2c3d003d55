"""A folder -> a model repository of the Hugging Face hub, in one commit.

huggingface_hub sends the files (`preupload_lfs_files`) and publishes (`create_commit`). Not its
`upload_folder`, whose delete patterns could match files of somebody else. A caller is promised:

- One commit or nothing, and every file is in it: a .gitignore in the repository, by which the hub
  leaves files out without a word, is refused; if the answer to the commit is lost, the hub is asked
  whether it was made.
- Nobody's files are removed: a record in the repository says what the last push put there.
- No token in a message. A push can be repeated, and cancelled before its commit.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import HubError, InputError
from vits_prune.files import read_json, sha256_of
from vits_prune.progress import SILENT, Progress
from vits_prune.ship.hub_destination import (
    MANIFESTS,
    RECORD,
    Destination,
    ask,
    files_of_earlier_push,
    look,
    pushable_files,
    record_of,
    shown,
    small_file,
    voice_named_in,
)
from vits_prune.ship.hub_transfer import (
    CountedFile,
    Push,
    PushStalled,
    counted,
    offers_chunks,
    send_in_chunks,
)
from vits_prune.voices.manifest import EXPORT

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_PLAIN_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_LARGE = (".safetensors", ".onnx", ".wav", ".png")
"""Kinds of files that the hub keeps outside git."""


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    repo_id: str
    url: str
    commit: str
    """The commit that holds the voice now, 40 hexadecimal digits."""
    files: int
    bytes_sent: int
    """Bytes of large files that this push sent, without those that were on the hub already."""


def push_folder(
    folder: str | Path,
    repo: str,
    *,
    token: str | bool | None = None,
    private: bool = False,
    replace: bool = False,
    message: str = "Voice from vits_prune",
    progress: Progress = SILENT,
) -> Pushed:
    """Publish a folder that `save_voice` or `export_voice` wrote, in one commit on the main branch.

    Large files are sent first and seen by nobody. Then one commit names all files and takes away
    those of the earlier push that this one lacks. A push that is cut off is repeated as it is: what
    had arrived is not sent again. A repository that it made stays, empty; none is ever deleted.

    Args:
        folder: files in it and one level below are pushed; hidden ones are left out.
        repo, token: as `check_destination` takes them; a repository that does not exist is made.
        private: make a new repository private. An existing one that is public is refused.
        replace: push to a repository that holds something else or another voice, too. Of what
            vits_prune did not push, only files of the same names are written over.
        message: title of the commit.
        progress: bytes of all files, several times a second in the calling thread.

    Raises:
        InputError: see `check_destination` and `pushable_files`; or the repository holds something
            else, is public, or was changed meanwhile. Nothing was published then, unless the
            message says that it is not known.
    """
    files = pushable_files(folder)
    push = Push(shown(repo), sum(path.stat().st_size for path in files.values()), progress)
    with push.plain_errors():
        place = look(push, repo, token)
        _require_willing(place, push, private, replace)
        if not replace:
            place.require_same(name_in(files) or place.voice)
        push.report()
        if not place.exists:
            _create(push, private)
        push.step = "send"
        commit = _send(push, files, message)
    return Pushed(push.repo_id, push.url, commit, len(files), sum(push.sent.values()))


def _require_willing(place: Destination, push: Push, private: bool, replace: bool) -> None:
    """Refuse what the caller cannot have meant."""
    if place.holds == "other" and not replace:
        raise push.refusal(
            f"{place.repo_id} holds something else than a voice of vits_prune: choose another "
            "name, or push with replace (--replace), which leaves files of other names"
        )
    if place.exists and private and not place.private:
        first = f"make it private at {place.url}/settings"
        raise push.refusal(f"{place.repo_id} is public: {first}, or choose another name")


def name_in(files: Mapping[str, Path]) -> str:
    """Return the name of the voice that is pushed, "" if its files are too long to be read."""
    for name in MANIFESTS:
        if name in files:
            with contextlib.suppress(InputError):
                manifest = read_json(files[name], max_bytes=EXPORT.max_bytes)
                if found := voice_named_in(manifest):
                    return found
    return ""


def _create(push: Push, private: bool) -> None:
    """Make the repository, and look at what the hub put there."""
    push.step = "create"
    push.wait(lambda: push.api.create_repo(push.repo_id, private=private))
    push.created, push.step = True, "send"
    push.info = push.wait(lambda: ask(push, "main"))
    if private and not push.info.private:
        what = f"Hugging Face made {push.repo_id} public though it was to be private"
        raise push.refusal(f"{what}: make it private at {push.url}/settings")


def _send(push: Push, files: dict[str, Path], message: str) -> str:
    """Send what the hub lacks and publish it; the commit that holds it all."""
    held = push.held
    record, manifest = push.wait(lambda: [small_file(push, one) for one in (RECORD, MANIFESTS[0])])
    old = files_of_earlier_push(held, record, manifest)
    stays = [name for name in _PLAIN_WEIGHTS if name in held.keys() - files.keys() - old]
    if stays and _PLAIN_WEIGHTS[0] not in files:
        raise push.refusal(
            f"{push.repo_id} holds {stays[0]}, which other programs would go on loading in place "
            "of this voice: delete it there first, push the voice dense, or choose another name"
        )
    contents: dict[str, Path | bytes] = {RECORD: record_of(files), **files}
    removed = sorted(old - contents.keys())
    new = {name: one for name, one in contents.items() if not _is_there(held, name, one)}
    with ExitStack() as opened:
        additions = push.wait(lambda: _sent(push, new, opened))
        ignored = [one.path_in_repo for one in additions if getattr(one, "_should_ignore", False)]
        if ignored:  # huggingface_hub keeps what the hub answered there, and says it nowhere else
            what = f"The .gitignore of {push.repo_id} leaves out {ignored[0][:80]!r}"
            raise push.refusal(f"{what}: remove it there and push again")
        for name, path in files.items():
            push.arrived(name, path.stat().st_size)
        push.report()  # the last moment to cancel
        push.step = "commit"
        if push.info is not None and not additions and not removed:
            return str(push.info.sha)
        return _commit(push, additions, contents, removed, message)


def _is_there(held: Mapping[str, Any], name: str, content: Path | bytes) -> bool:
    """Whether a repository has this file with this content."""
    found = held.get(name)
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if found is None or found.size != size:
        return False
    if found.lfs:
        return isinstance(content, Path) and found.lfs.sha256 == sha256_of(content)
    data = content if isinstance(content, bytes) else content.read_bytes()
    return found.blob_id == hashlib.sha1(b"blob %d\0" % size + data).hexdigest()


def _sent(
    push: Push, contents: Mapping[str, Path | bytes], opened: ExitStack
) -> list[CommitOperationAdd]:
    """Send those files that the hub does not keep in git; what the commit will add."""
    from huggingface_hub import CommitOperationAdd

    files = {name: one for name, one in contents.items() if isinstance(one, Path)}
    in_chunks = bool(files) and offers_chunks(push)
    additions = []
    for name, one in contents.items():
        source: Any = one.resolve() if isinstance(one, Path) else one
        if name in files and not in_chunks:
            source = opened.enter_context(CountedFile(files[name], name, push))
        additions.append(CommitOperationAdd(name, source))
    large = {name: path for name, path in files.items() if path.suffix in _LARGE}
    if in_chunks:
        send_in_chunks(push, large)
    # One call for each large file: several in one would be sent by threads that outlive a cancel.
    calls = [[one] for one in additions if one.path_in_repo in large]
    calls.append([one for one in additions if one.path_in_repo not in large])
    with counted(push):
        for call in filter(None, calls):
            push.api.preupload_lfs_files(
                push.repo_id, call, revision="main", num_threads=1, free_memory=False
            )
    return additions


def _commit(
    push: Push,
    additions: list[CommitOperationAdd],
    contents: Mapping[str, Path | bytes],
    removed: list[str],
    message: str,
) -> str:
    """Publish on top of the commit that was looked at, or ask whether it was done; its hash."""
    import httpx2
    from huggingface_hub import CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    operations = [*additions, *(CommitOperationDelete(name, is_folder=False) for name in removed)]

    def publish() -> str:
        made = push.api.create_commit(
            push.repo_id,
            operations,
            commit_message=" ".join(str(message).split())[:200] or "Voice from vits_prune",
            revision="main",
            parent_commit=push.info.sha if push.info else None,
        )
        return str(made.oid)

    try:
        return push.wait(publish, listen=False)
    except (httpx2.TransportError, HfHubHTTPError, PushStalled) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        try:
            push.info = push.wait(lambda: ask(push, "main"), listen=False)
        except Exception:
            raise HubError(
                "The connection was lost at the end, so it is not known whether "
                f"{push.repo_id} has the voice: look at {push.url}, and push again if it has not."
            ) from error
        held = push.held
        if set(removed) & held.keys() or not all(
            _is_there(held, name, one) for name, one in contents.items()
        ):
            raise
        return str(push.info.sha)
