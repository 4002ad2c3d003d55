"""A Hugging Face model repository -> Voice: only the files that a voice needs, checked for kind and size before they are fetched."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import HubError, InputError
from vits_prune.files import read_json
from vits_prune.voices.download_meter import DownloadMeter, Progress
from vits_prune.voices.front_matter import licence_words
from vits_prune.voices.hub_errors import plain_errors
from vits_prune.voices.voice import Origin, Voice

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

MAX_BYTES = 2 * 1024**3
"""Largest download of one voice, in bytes."""

_SMALL_FILES = (
    "config.json",
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "piper.json",
    "README.md",  # for the licence where the hub cannot be asked
)
_MAX_SMALL_BYTES = 32 << 20
_LISTS = ("vits_prune.json", "export.json")
"""Of a voice that this library wrote: its other files and their checksums. The first that is there counts."""
_MAX_LISTED = 100
_SEGMENT = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REFERENCE = re.compile(
    rf"(?:https://(?:www\.)?(?:huggingface\.co|hf\.co)/)?({_SEGMENT}/{_SEGMENT})(?:@(.+)|/tree/(.+?))?/?"
)
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/-]{0,198}[A-Za-z0-9_-])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


_PUBLIC = ".vits_prune_public"
"""Marks a repository in the cache that could be read without a token; the cache may hold the owner's private ones too."""


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit of a repository, on disk."""

    folder: Path
    revision: str
    """The commit."""
    licence: str | None
    """As the model card states it; None where it states none or the hub could not be asked."""


def load_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    speaker: int | str | None = None,
    max_bytes: int = MAX_BYTES,
    on_progress: Progress | None = None,
    cache_dir: str | Path | None = None,
) -> Voice:
    """Load a VITS checkpoint, or a voice that `save_voice` wrote, from the Hugging Face hub or from its cache on disk.

    Args:
        repo_id: "owner/name"; "owner/name@revision" and the address of the model's page are taken as well.
        revision: branch, tag or commit; None for the main branch.
        token: access token; None for the usual one (HF_TOKEN or `hf auth login`), False for none.
        speaker: index or name, for a voice with several; None for the first.
        max_bytes: refuse a voice whose files are larger than this together.
        on_progress: told of the download as it goes; where None, the hub's own bar shows it.
        cache_dir: where downloads are kept; None for the hub's usual cache.

    Raises:
        InputError: there is no such model or no access to it, it is not VITS or too large, or the download did not succeed.
    """
    repo_id, named = parse_repo_id(repo_id)
    snapshot = fetch_snapshot(
        repo_id,
        revision=revision or named,
        token=token,
        max_bytes=max_bytes,
        on_progress=on_progress,
        cache_dir=cache_dir,
    )
    from vits_prune.voices.checkpoint import load_checkpoint
    from vits_prune.voices.load import load_folder
    from vits_prune.voices.onnx_load import is_export

    if (snapshot.folder / _LISTS[0]).is_file() or is_export(
        snapshot.folder
    ):  # it says itself where it came from
        try:
            return load_folder(snapshot.folder, speaker)
        except InputError as error:
            raise type(error)(str(error).replace(snapshot.folder.name, repo_id)) from error
    origin = Origin("hugging-face", repo_id, snapshot.revision, snapshot.licence)
    return load_checkpoint(
        snapshot.folder, name=repo_id.partition("/")[2], origin=origin, speaker=speaker
    )


def parse_repo_id(text: str) -> tuple[str, str | None]:
    """("owner/name", revision or None) of "owner/name", "owner/name@revision" or the address of a model's page.

    Raises:
        InputError: it is none of these.
    """
    match = _REFERENCE.fullmatch(text.strip()) if len(text) <= 500 else None
    repo_id, revision = (match.group(1), match.group(2) or match.group(3)) if match else ("", None)
    kinds = ("datasets/", "spaces/", "models/", "api/")
    if (
        not repo_id
        or ".." in repo_id
        or "--" in repo_id
        or len(repo_id) > 96
        or repo_id.startswith(kinds)
        or repo_id.endswith(".git")
    ):
        raise InputError(
            f"{text.strip()[:80]!r} is no model of the Hugging Face hub: write owner/name such as facebook/mms-tts-eng, or the address of "
            "its page on https://huggingface.co."
        )
    if revision is not None:
        _check_revision(revision)
    return repo_id, revision


def _check_revision(revision: str) -> None:
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise InputError(
            f"{revision[:80]!r} is no revision: write a branch, a tag or a commit such as main."
        )


def fetch_snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    max_bytes: int = MAX_BYTES,
    on_progress: Progress | None = None,
    cache_dir: str | Path | None = None,
) -> Snapshot:
    """The files of a voice, downloaded where the cache lacks them; from the cache alone where the hub cannot be reached.

    Raises:
        InputError: see `load_hub`.
    """
    if revision is not None:
        _check_revision(revision)
    with plain_errors(repo_id, revision):
        info = _ask(repo_id, revision, token)
        if info is None:
            return _cached_snapshot(repo_id, revision, cache_dir, anonymous=token is False)
        access = {"token": token, "cache_dir": cache_dir}
        return _download(repo_id, revision, access, info, DownloadMeter(max_bytes, on_progress))


def _ask(repo_id: str, revision: str | None, token: str | bool | None) -> ModelInfo | None:
    """What the hub says of a repository, None where it cannot be reached."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    try:
        info = api.model_info(
            repo_id,
            revision=revision,
            files_metadata=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
        if info.gated or info.private:
            # The metadata of a gated model is public, and files in the cache are found without asking: they may be another visitor's.
            api.auth_check(repo_id)
        return info
    except (OfflineModeIsEnabled, httpx2.TransportError):
        return None
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return None
        raise


def _download(
    repo_id: str,
    revision: str | None,
    access: dict[str, Any],
    info: ModelInfo,
    meter: DownloadMeter,
) -> Snapshot:
    from huggingface_hub import constants, hf_hub_download

    from vits_prune.voices.checkpoint import WEIGHTS, WEIGHTS_INDEX, shard_names
    from vits_prune.voices.hf_config import require_model_type
    from vits_prune.voices.onnx_load import is_export

    # The first file is asked for by its branch, so that the cache remembers where that points for the day when the hub cannot be reached.
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    commit = str(info.sha)

    def fetch(file: str, at: str = commit) -> Path:
        with meter.counting(file):
            path = hf_hub_download(
                repo_id,
                file,
                revision=at,
                endpoint=constants.ENDPOINT,
                tqdm_class=meter.bar_class(),
                **access,
            )
            return Path(path)

    first = next((name for name in (*_LISTS, "config.json") if name in sizes), None)
    if first is None or (first != _LISTS[1] and "config.json" not in sizes):
        raise InputError(
            f"{repo_id} has no config.json: it is not a VITS checkpoint in transformers' format."
        )
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"The hub named no commit for {repo_id}: try again later.")
    files = [file for file in (*_LISTS, *_SMALL_FILES) if file in sizes]
    if WEIGHTS not in sizes and WEIGHTS_INDEX in sizes:
        files.append(WEIGHTS_INDEX)
    meter.expect(repo_id, {file: sizes[file] for file in files}, _MAX_SMALL_BYTES)
    folder = fetch(first, revision or constants.DEFAULT_REVISION).parent
    if folder.name != commit:
        raise HubError(f"{repo_id} was changed while it was being loaded: try again.")
    if (
        first == _LISTS[1] and "config.json" in sizes and not is_export(folder)
    ):  # another program's, beside a checkpoint
        first = fetch("config.json").name
    if first != "config.json":
        files += [file for file in _listed(folder / first, sizes, repo_id) if file not in files]
    else:
        require_model_type(read_json(folder / "config.json", repo_id), "vits", repo_id)
    weights = _weights(
        repo_id,
        sizes,
        folder,
        lambda: shard_names(read_json(fetch(WEIGHTS_INDEX), repo_id), repo_id),
    )
    files = [file for file in files if file not in weights]
    meter.expect(repo_id, {file: sizes[file] for file in (*files, *weights)}, meter.max_bytes)
    for file in (*files, *weights):
        fetch(file)
    if access["token"] is False:
        (folder.parents[1] / _PUBLIC).touch()
    return Snapshot(folder, commit, _licence(info))


def _listed(path: Path, sizes: dict[str, int | None], repo_id: str) -> list[str]:
    """The files of a repository that vits_prune.json or export.json lists; what it lists and is not there loading will miss."""
    listed = _checksums(path, repo_id)
    if len(listed) > _MAX_LISTED:
        raise InputError(
            f"{repo_id} is damaged: its {path.name} lists more than {_MAX_LISTED} files. Push the voice again."
        )
    beside = [
        f"{name}.json" for name in listed if name.endswith(".onnx")
    ]  # a Piper voice's, which may be edited: not in the list
    return [
        name
        for name in dict.fromkeys((*beside, *listed))
        if name in sizes and name == Path(name).name and not name.startswith(".")
    ]


def _checksums(path: Path, repo_id: str) -> dict[str, Any]:
    """File -> checksum in vits_prune.json or export.json; not one of them is believed here."""
    values = read_json(path, repo_id, _MAX_SMALL_BYTES)
    listed = values.get("files" if path.name == _LISTS[0] else "sha256")
    return listed if isinstance(listed, dict) else {}


def _weights(
    repo_id: str, sizes: dict[str, int | None], folder: Path, read_shards: Callable[[], list[str]]
) -> list[str]:
    """The files of a repository that hold its weights, but for those that export.json lists."""
    from vits_prune.voices.checkpoint import WEIGHTS, WEIGHTS_INDEX, no_safetensors
    from vits_prune.voices.manifest import read_manifest
    from vits_prune.voices.onnx_load import is_export
    from vits_prune.voices.saved import WEIGHTS as SAVED

    try:
        manifest = read_manifest(folder)
    except InputError as error:
        raise type(error)(str(error).replace(folder.name, repo_id)) from error
    if manifest is None and is_export(folder):
        return []
    if manifest is not None and manifest.get("form") == "sparse":
        if SAVED["sparse"] not in sizes:
            raise InputError(
                f"{repo_id} is damaged: it has no {SAVED['sparse']}. Push the voice again."
            )
        return [SAVED["sparse"]]
    if WEIGHTS in sizes:
        return [WEIGHTS]
    if WEIGHTS_INDEX not in sizes:
        raise no_safetensors(repo_id)
    shards = read_shards()
    for shard in shards:
        if shard not in sizes:
            raise InputError(
                f"{repo_id} lacks {shard}, a part of its weights: choose another revision or model."
            )
    return shards


def _licence(info: ModelInfo) -> str | None:
    """The licence that the model card states, several as "apache-2.0, cc-by-nc-4.0"."""
    tagged = next(
        (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")),
        None,
    )
    card = info.card_data or {}
    return licence_words(card.get("license") or tagged, card.get("license_name"))


def trim_cache(max_bytes: int, keep: str) -> None:
    """Remove the models used longest ago from the hub's cache until it is within a bound. For a server; not for a user's own machine.

    Args:
        max_bytes: what the cache may weigh.
        keep: a repository that stays.
    """
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    size, revisions = cache.size_on_disk, []
    for repository in sorted(cache.repos, key=lambda repository: repository.last_accessed):
        if size <= max_bytes:
            break
        if repository.repo_id != keep:
            revisions += [revision.commit_hash for revision in repository.revisions]
            size -= repository.size_on_disk
    if revisions:
        cache.delete_revisions(*revisions).execute()


def _cached_snapshot(
    repo_id: str, revision: str | None, cache_dir: str | Path | None, anonymous: bool
) -> Snapshot:
    """What an earlier download left of a revision; to the anonymous only what was once downloaded without a token.

    Raises:
        InputError: nothing, or not all of it.
    """
    from huggingface_hub import try_to_load_from_cache

    missing = HubError(
        f"Hugging Face cannot be reached and {repo_id} is not in the cache on this machine: check the connection and try again."
    )
    found = (
        try_to_load_from_cache(repo_id, file, cache_dir=cache_dir, revision=revision)
        for file in (*_LISTS, "config.json")
    )
    path = next((Path(path) for path in found if isinstance(path, str)), None)
    if path is None:
        raise missing
    folder = path.parent
    if anonymous and not (folder.parents[1] / _PUBLIC).is_file():
        raise missing
    if not _is_whole(path, repo_id):
        raise missing
    return Snapshot(folder, folder.name, None)


def _is_whole(first: Path, repo_id: str) -> bool:
    """Whether all files of a voice lie in the cache beside the first one that was fetched."""
    from vits_prune.voices.checkpoint import weight_files
    from vits_prune.voices.onnx_load import is_export

    folder = first.parent
    try:
        if first.name == _LISTS[0] or is_export(folder):
            listed = _checksums(first, repo_id)
            return bool(listed) and all((folder / Path(name).name).is_file() for name in listed)
        weight_files(folder, repo_id)
    except InputError:
        return False
    return any((folder / file).is_file() for file in ("vocab.json", "piper.json"))
