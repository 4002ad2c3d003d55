"""A Hugging Face model repository -> Voice: only the files that a voice needs, checked for kind and size before they are fetched."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError
from vits_prune.voices.hub_errors import TooManyBytes, plain_errors
from vits_prune.voices.voice import Origin, Voice

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

MAX_BYTES = 2 * 1024**3
"""Largest download of one voice, in bytes."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_SMALL_FILES = (
    "config.json",
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vits_prune.json",
    "piper.json",
    "README.md",  # for the licence where the hub cannot be asked
)
_MAX_SMALL_BYTES = 8 << 20
_SEGMENT = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REFERENCE = re.compile(rf"(?:https://(?:www\.)?(?:huggingface\.co|hf\.co)/)?({_SEGMENT}/{_SEGMENT})(?:@(.+)|/tree/(.+?))?/?")
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
        repo_id, revision=revision or named, token=token, max_bytes=max_bytes, on_progress=on_progress, cache_dir=cache_dir
    )
    from vits_prune.voices.checkpoint import load_checkpoint
    from vits_prune.voices.saved import load_saved, read_manifest

    if read_manifest(snapshot.folder) is not None:
        return load_saved(snapshot.folder, speaker)
    origin = Origin("hugging-face", repo_id, snapshot.revision, snapshot.licence)
    return load_checkpoint(snapshot.folder, name=repo_id.partition("/")[2], origin=origin, speaker=speaker)


def parse_repo_id(text: str) -> tuple[str, str | None]:
    """("owner/name", revision or None) of "owner/name", "owner/name@revision" or the address of a model's page.

    Raises:
        InputError: it is none of these.
    """
    match = _REFERENCE.fullmatch(text.strip()) if len(text) <= 500 else None
    repo_id, revision = (match.group(1), match.group(2) or match.group(3)) if match else ("", None)
    kinds = ("datasets/", "spaces/", "models/", "api/")
    if not repo_id or ".." in repo_id or "--" in repo_id or len(repo_id) > 96 or repo_id.startswith(kinds) or repo_id.endswith(".git"):
        raise InputError(
            f"{text.strip()[:80]!r} is no model of the Hugging Face hub: write owner/name such as facebook/mms-tts-eng, or the address of "
            "its page on https://huggingface.co."
        )
    if revision is not None:
        _check_revision(revision)
    return repo_id, revision


def _check_revision(revision: str) -> None:
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise InputError(f"{revision[:80]!r} is no revision: write a branch, a tag or a commit such as main.")


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
        return _download(repo_id, revision, access, info, _Meter(max_bytes, on_progress))


def _ask(repo_id: str, revision: str | None, token: str | bool | None) -> ModelInfo | None:
    """What the hub says of a repository, None where it cannot be reached."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    try:
        info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
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


def _download(repo_id: str, revision: str | None, access: dict[str, Any], info: ModelInfo, meter: _Meter) -> Snapshot:
    from huggingface_hub import constants, hf_hub_download

    from vits_prune.voices.checkpoint import WEIGHTS, WEIGHTS_INDEX, shard_names
    from vits_prune.voices.hf_config import read_json, require_model_type

    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    commit = str(info.sha)

    def fetch(file: str, at: str = commit) -> Path:
        with meter.counting(file):
            path = hf_hub_download(repo_id, file, revision=at, endpoint=constants.ENDPOINT, tqdm_class=meter.bar_class(), **access)
            return Path(path)

    if "config.json" not in sizes:
        raise InputError(f"{repo_id} has no config.json: it is not a VITS checkpoint in transformers' format.")
    if not _COMMIT.fullmatch(commit):
        raise InputError(f"The hub named no commit for {repo_id}: try again later.")
    files = [file for file in _SMALL_FILES if file in sizes]
    if WEIGHTS not in sizes and WEIGHTS_INDEX in sizes:
        files.append(WEIGHTS_INDEX)
    meter.expect(repo_id, {file: sizes[file] for file in files}, _MAX_SMALL_BYTES)
    # Asked for by its branch, so that the cache remembers where the branch points for the day when the hub cannot be reached.
    folder = fetch("config.json", revision or constants.DEFAULT_REVISION).parent
    if folder.name != commit:
        raise InputError(f"{repo_id} was changed while it was being loaded: try again.")
    config = read_json(folder / "config.json", repo_id)
    if config.get("model_type") != "vits_piper":  # what save_voice writes for a Piper voice
        require_model_type(config, "vits", repo_id)
    weights = _weights(repo_id, sizes, lambda: shard_names(read_json(fetch(WEIGHTS_INDEX), repo_id), repo_id))
    meter.expect(repo_id, {file: sizes[file] for file in (*files, *weights)}, meter.max_bytes)
    for file in (*files, *weights):
        fetch(file)
    if access["token"] is False:
        (folder.parents[1] / _PUBLIC).touch()
    return Snapshot(folder, commit, _licence(info))


def _weights(repo_id: str, sizes: dict[str, int | None], read_shards: Callable[[], list[str]]) -> list[str]:
    """The files of a repository that hold its weights."""
    from vits_prune.voices.checkpoint import WEIGHTS, WEIGHTS_INDEX, no_safetensors
    from vits_prune.voices.saved import WEIGHTS as SAVED

    if WEIGHTS in sizes:
        return [WEIGHTS]
    if SAVED["sparse"] in sizes and "vits_prune.json" in sizes:
        return [SAVED["sparse"]]
    if WEIGHTS_INDEX not in sizes:
        raise no_safetensors(repo_id)
    shards = read_shards()
    for shard in shards:
        if shard not in sizes:
            raise InputError(f"{repo_id} lacks {shard}, a part of its weights: choose another revision or model.")
    return shards


def _licence(info: ModelInfo) -> str | None:
    """The licence that the model card states."""
    stated = info.card_data.get("license") if info.card_data else None
    if isinstance(stated, list):
        stated = stated[0] if stated else None
    tagged = next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), None)
    licence = stated if isinstance(stated, str) else tagged
    return licence[:64] if licence else None


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


def _cached_snapshot(repo_id: str, revision: str | None, cache_dir: str | Path | None, anonymous: bool) -> Snapshot:
    """What an earlier download left of a revision; to the anonymous only what was once downloaded without a token.

    Raises:
        InputError: nothing, or not all of it.
    """
    from huggingface_hub import try_to_load_from_cache

    from vits_prune.voices.checkpoint import weight_files

    missing = InputError(
        f"Hugging Face cannot be reached and {repo_id} is not in the cache on this machine: check the connection and try again."
    )
    path = try_to_load_from_cache(repo_id, "config.json", cache_dir=cache_dir, revision=revision)
    if not isinstance(path, str):
        raise missing
    folder = Path(path).parent
    if anonymous and not (folder.parents[1] / _PUBLIC).is_file():
        raise missing
    try:
        weight_files(folder, repo_id)
    except InputError as error:
        raise missing from error
    if not any((folder / file).is_file() for file in ("vocab.json", "piper.json")):
        raise missing
    return Snapshot(folder, folder.name, None)


class _Meter:
    """Counts what is received, tells the caller, and stops a server that sends more than it declared.

    huggingface_hub itself notices a wrong size only when the file has ended, so without this a server could fill the disk.
    """

    def __init__(self, max_bytes: int, on_progress: Progress | None) -> None:
        self.max_bytes = max_bytes
        self.on_progress = on_progress
        self.sizes: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.file = ""

    def expect(self, repo_id: str, sizes: dict[str, Any], max_bytes: int) -> None:
        """Note the declared sizes of files.

        Raises:
            InputError: together they are too large, or a size is not stated.
        """
        if not all(isinstance(size, int) and size >= 0 for size in sizes.values()):
            raise InputError(f"The hub does not say how large the files of {repo_id} are: try again later.")
        total = sum(sizes.values())
        if total > max_bytes:
            size, most = (f"{count / 2**20:,.1f} MiB" for count in (total, max_bytes))
            raise InputError(f"{repo_id} is {size}, more than the {most} accepted: choose a smaller model.")
        self.sizes = dict(sizes)

    @contextlib.contextmanager
    def counting(self, file: str) -> Iterator[None]:
        """Count what is received inside the block as this file; when it ends well the file is there whole."""
        self.file = file
        self.done.setdefault(file, 0)
        yield
        self.done[file] = self.sizes[file]
        self._tell()

    def received(self, count: float) -> None:
        self.done[self.file] += int(count)
        if self.done[self.file] > self.sizes[self.file]:
            raise TooManyBytes(self.file)
        self._tell()

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(sum(self.done.values()), sum(self.sizes.values()))

    def bar_class(self) -> type:
        """A progress bar as huggingface_hub wants it that reports here, and draws only where nobody listens."""
        from huggingface_hub.utils import tqdm

        meter = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                if meter.on_progress is not None:
                    kwargs["disable"] = True
                super().__init__(*args, **kwargs)

            def update(self, n: float | None = 1) -> bool | None:
                meter.received(n or 0)
                return super().update(n)

            def update_transfer(self, n: float | None = 1) -> None:
                """Bytes on the wire, which xet counts beside those of the file: having this method keeps it from opening a second bar."""

            def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
                """The rate of the same."""

        return Bar
