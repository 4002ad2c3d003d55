"""Download the files of a voice from a Hugging Face model repository.

Only the files that a voice needs, checked for kind and size before they are fetched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vits_prune.errors import HubError, InputError
from vits_prune.files import read_json
from vits_prune.progress import SILENT, Progress
from vits_prune.voices.hub_errors import TooManyBytes, plain_errors
from vits_prune.voices.manifest import EXPORT, SAVED, WEIGHT_FILES, read_manifest

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

MAX_BYTES = 2 << 30
"""Largest download of one voice."""
_MAX_SMALL_BYTES = 32 << 20
_MAX_LISTED = 100
_MANIFESTS = {kind.name: kind for kind in (SAVED, EXPORT)}
"""The first that is there says which other files a voice has."""
_SMALL_FILES = (
    *("config.json", "vocab.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "piper.json", "README.md"),  # its licence counts without the hub
)
_PUBLIC = ".vits_prune_public"
"""Marks a repository in the cache that was read without a token; others may be private."""
_SEGMENT = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REFERENCE = re.compile(
    r"(?:https://(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    rf"({_SEGMENT}/{_SEGMENT})(?:@(.+)|/tree/(.+?))?/?"
)
_REVISION = re.compile(r"(?!.*(?:\.\.|//))[A-Za-z0-9_](?:[A-Za-z0-9._/-]{0,198}[A-Za-z0-9_-])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Snapshot(NamedTuple):
    """The files of one commit of a repository, on disk, and the licence that the hub states."""

    folder: Path
    revision: str
    licence: str | None


def parse_repo_id(text: str) -> tuple[str, str | None]:
    """Return ("owner/name", revision or None) of such a name or the address of a model's page."""
    match = _REFERENCE.fullmatch(text.strip()) if len(text) <= 500 else None
    repo_id, revision = (match[1], match[2] or match[3]) if match else ("", None)
    other = repo_id.startswith(("datasets/", "spaces/", "models/", "api/"))
    if not 0 < len(repo_id) <= 96 or other or re.search(r"\.\.|--|\.git$", repo_id):
        raise InputError(
            f"{text.strip()[:80]!r} is no model of the Hugging Face hub: write owner/name such as "
            "facebook/mms-tts-eng, or the address of its page on https://huggingface.co."
        )
    _check_revision(revision)
    return repo_id, revision


def _check_revision(revision: str | None) -> None:
    if revision is not None and not _REVISION.fullmatch(revision):
        raise InputError(f"{revision[:80]!r} is no revision: write a branch, tag or commit.")


def fetch_snapshot(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    progress: Progress = SILENT,
    cache_dir: str | Path | None = None,
) -> Snapshot:
    """Download the files of a voice that the cache lacks; without the hub, use the cache alone.

    Arguments and errors are those of `load_hub`; `repo_id` is "owner/name".
    """
    _check_revision(revision)
    with plain_errors(repo_id, revision):
        info = _ask(repo_id, revision, token)
        if info is None:
            return _cached_snapshot(repo_id, revision, cache_dir, anonymous=token is False)
        download = _Download(repo_id, info, progress, {"token": token, "cache_dir": cache_dir})
        folder = _fetch_voice(download, revision, max_bytes)
        if token is False:
            (folder.parents[1] / _PUBLIC).touch()
        return Snapshot(folder, download.commit, stated_licence(info))


def _ask(repo_id: str, revision: str | None, token: str | bool | None) -> ModelInfo | None:
    """Return what the hub says about a repository, None if it cannot be reached."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=timeout)
        if info.gated or info.private:
            # Files are found in the cache without asking: they may be another visitor's.
            api.auth_check(repo_id)
        return info
    except (OfflineModeIsEnabled, httpx2.TransportError):
        return None
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return None
        raise


class _Download:
    """Downloads the files of a commit, and stops a server that sends more than it declared.

    huggingface_hub notices a wrong size only at the end of a file: a server could fill the disk.
    """

    def __init__(
        self, repo_id: str, info: ModelInfo, progress: Progress, access: dict[str, Any]
    ) -> None:
        self.repo_id, self.progress, self.access = repo_id, progress, access
        self.commit = str(info.sha)
        if not _COMMIT.fullmatch(self.commit):
            raise HubError(f"The hub named no commit for {repo_id}: try again later.")
        self.sizes: dict[str, Any] = {one.rfilename: one.size for one in info.siblings or ()}
        self.total = 0
        self.received: dict[str, int] = {}

    def size(self, files: list[str], max_bytes: int) -> int:
        """Return the bytes of files; InputError if they are too many or not stated."""
        sizes = [self.sizes[file] for file in files]
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            what = f"The hub does not say how large the files of {self.repo_id} are"
            raise InputError(f"{what}: try again later.")
        if sum(sizes) > max_bytes:
            size, most = (f"{count / 2**20:,.1f} MiB" for count in (sum(sizes), max_bytes))
            what = f"{self.repo_id} is {size}, more than the {most} accepted"
            raise InputError(f"{what}: choose a smaller model.")
        return sum(sizes)

    def fetch(self, file: str, revision: str | None = None) -> Path:
        """Download one file, if the cache lacks it; return its path."""
        from huggingface_hub import constants, hf_hub_download

        self.received.setdefault(file, 0)
        options = {"endpoint": constants.ENDPOINT, "tqdm_class": self._bar_of(file), **self.access}
        revision = revision or self.commit
        path = hf_hub_download(self.repo_id, file, revision=revision, **options)
        if os.path.getsize(path) != self.sizes[file]:  # a lost power line left a part in the cache
            self.received[file] = 0
            options["force_download"] = True
            path = hf_hub_download(self.repo_id, file, revision=revision, **options)
        self._count(file, self.sizes[file] - self.received[file])
        return Path(path)

    def _count(self, file: str, count: float) -> None:
        self.received[file] += int(count)
        if self.received[file] > self.sizes[file]:
            raise TooManyBytes(file)
        done = sum(self.received.values()) if self.total else 0
        words = f"downloading, {done / 1e6:.0f} of {self.total / 1e6:.0f} MB"
        self.progress.report(words, done / max(1, self.total))

    def _bar_of(self, file: str) -> type:
        """Return a progress bar for huggingface_hub that counts the bytes of a file."""
        from huggingface_hub.utils import tqdm

        download = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs | {"disable": download.progress is not SILENT})

            def update(self, n: float | None = 1) -> bool | None:
                download._count(file, n or 0)
                return super().update(n)

            def update_transfer(self, *_: Any, **__: Any) -> None:
                """Keep xet from opening a second bar for the bytes on the wire."""

            set_transfer_postfix_str = update_transfer

        return Bar


def _fetch_voice(download: _Download, revision: str | None, max_bytes: int) -> Path:
    """Download the files of a voice: small ones that say which others it has, then the others."""
    from huggingface_hub import constants

    from vits_prune.voices.architecture import require_model_type
    from vits_prune.voices.checkpoint import WEIGHTS, WEIGHTS_INDEX
    from vits_prune.voices.onnx_load import is_export

    repo_id, sizes = download.repo_id, download.sizes
    first = next((name for name in (*_MANIFESTS, "config.json") if name in sizes), "")
    if not first or (first != EXPORT.name and "config.json" not in sizes):
        raise InputError(f"{repo_id} has no config.json: choose a VITS checkpoint of transformers.")
    index = () if WEIGHTS in sizes else (WEIGHTS_INDEX,)
    small = [file for file in (*_MANIFESTS, *_SMALL_FILES, *index) if file in sizes]
    download.size(small, _MAX_SMALL_BYTES)
    # Asked for by its branch, so that the cache remembers where that points without the hub.
    folder = download.fetch(first, revision or constants.DEFAULT_REVISION).parent
    if folder.name != download.commit:
        raise HubError(f"{repo_id} was changed while it was being loaded: try again.")
    if first == EXPORT.name and "config.json" in sizes and not is_export(folder):
        first = download.fetch("config.json").name  # export.json is another program's
    if first == "config.json":
        require_model_type(read_json(folder / first, repo_id), "vits", repo_id)
    weights = _weights(download, folder)
    listed = _listed(folder / first, download) if first in _MANIFESTS else []
    files = [one for one in dict.fromkeys((*small, *listed)) if one not in weights] + weights
    download.total = download.size(files, max_bytes)
    for file in files:
        download.fetch(file)
    return folder


def _listed(path: Path, download: _Download) -> list[str]:
    """Return the files that a manifest lists; loading finds out which are missing."""
    kind = _MANIFESTS[path.name]
    listed = kind.listed(read_json(path, download.repo_id, _MAX_SMALL_BYTES))
    if len(listed) > _MAX_LISTED:
        what = f"is damaged, its {path.name} lists more than {_MAX_LISTED} files"
        raise InputError(f"{download.repo_id} {what}: push the voice again.")
    # The settings of a Piper voice may be edited, so they are not in the list.
    settings = [f"{name}.json" for name in listed if name.endswith(".onnx")]
    names = dict.fromkeys((*settings, *listed))
    return [name for name in names if name in download.sizes and not name.startswith(".")]


def _weights(download: _Download, folder: Path) -> list[str]:
    """Return the files that hold the weights, without those that export.json lists."""
    from vits_prune.voices.checkpoint import WEIGHTS, WEIGHTS_INDEX, no_safetensors, shard_names
    from vits_prune.voices.onnx_load import is_export

    repo_id, sizes, sparse = download.repo_id, download.sizes, WEIGHT_FILES["sparse"]
    facts = read_manifest(folder)
    if facts is None and is_export(folder):
        return []
    if facts is not None and facts.form == "sparse":
        if sparse not in sizes:
            raise InputError(f"{repo_id} is damaged: it has no {sparse}. Push the voice again.")
        return [sparse]
    if WEIGHTS in sizes:
        return [WEIGHTS]
    if WEIGHTS_INDEX not in sizes:
        raise no_safetensors(repo_id)
    return shard_names(read_json(download.fetch(WEIGHTS_INDEX), repo_id), repo_id, sizes)


def stated_licence(info: ModelInfo) -> str | None:
    """Return the licence that a model card states, several as "apache-2.0, cc-by-nc-4.0"."""
    from vits_prune.voices.checkpoint import licence_words

    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    card = info.card_data or {}
    stated = card.get("license") or next(iter(tags), None)
    return licence_words({"license": stated, "license_name": card.get("license_name")})


def trim_cache(max_bytes: int, keep: str) -> None:
    """Remove the models used longest ago from a server's cache, except `keep`, down to a bound."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    size, revisions = cache.size_on_disk, []
    for repository in sorted(cache.repos, key=lambda repository: repository.last_accessed):
        if size > max_bytes and repository.repo_id != keep:
            revisions += [revision.commit_hash for revision in repository.revisions]
            size -= repository.size_on_disk
    if revisions:
        cache.delete_revisions(*revisions).execute()


def _cached_snapshot(
    repo_id: str, revision: str | None, cache_dir: str | Path | None, anonymous: bool
) -> Snapshot:
    """Return what an earlier download left; to the anonymous only what was public once."""
    from huggingface_hub import try_to_load_from_cache

    found = (
        try_to_load_from_cache(repo_id, file, cache_dir=cache_dir, revision=revision)
        for file in (*_MANIFESTS, "config.json")
    )
    path = next((Path(path) for path in found if isinstance(path, str)), None)
    allowed = path and (not anonymous or (path.parents[2] / _PUBLIC).is_file())
    if path is None or not allowed or not _is_whole(path, repo_id):
        what = f"Hugging Face cannot be reached and {repo_id} is not in the cache on this machine"
        raise HubError(f"{what}: check the connection and try again.")
    return Snapshot(path.parent, path.parent.name, None)


def _is_whole(first: Path, repo_id: str) -> bool:
    """Whether all files of a voice are in the cache with the first one that was fetched."""
    from vits_prune.voices.checkpoint import weight_files
    from vits_prune.voices.onnx_load import is_export

    folder = first.parent
    try:
        if first.name == SAVED.name or is_export(folder):
            kind = _MANIFESTS[first.name]
            listed = kind.listed(read_json(first, repo_id, _MAX_SMALL_BYTES))
            return bool(listed) and all((folder / name).is_file() for name in listed)
        weight_files(folder, repo_id)
    except InputError:
        return False
    return any((folder / file).is_file() for file in ("vocab.json", "piper.json"))
