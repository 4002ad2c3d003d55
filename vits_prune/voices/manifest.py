"""The manifest of a saved voice: what it is, where it came from, what was done to it, and the checksums of its files.

Damage is told from replacement: the weights that `save_voice` writes bear a mark, and as long as they do every file beside them must be the
one that was written. A program that trains on such a folder and saves over it writes weights without the mark; what it wrote is then read
like any checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import Manifest, crc32_of
from vits_prune.voices.voice import Voice

MANIFEST = "vits_prune.json"
FORMAT_VERSION = 3
"""The newest format. A higher version is written only for what readers of a lower cannot open: 2 narrow residual blocks, 3 sparse files."""
MARK = {"written_by": "vits_prune"}
"""In the metadata of a dense safetensors file that a manifest holds the checksum of."""
MAX_MANIFEST_BYTES = 16 << 20
"""More than the recipe of one pruning takes, whose texts and protected layers are bounded (at most 1,000 texts of 1,000 characters)."""
SAVED = Manifest(MANIFEST, checksum=crc32_of, max_bytes=MAX_MANIFEST_BYTES)
EXPORT = Manifest("export.json", entry="sha256", max_bytes=2 * MAX_MANIFEST_BYTES, indent=1)
"""Of a folder that an export to ONNX wrote: what it is, and the checksums of the files that make the voice."""
_EVER_WRITTEN = (
    "config.json", "model.safetensors", "model.sparse.safetensors", "piper.json", "vocab.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


class NewerFormatError(InputError):
    """A folder was saved by a newer version than this."""


def manifest_of(voice: Voice, form: str, precision: str) -> dict[str, Any]:
    """The manifest of a voice that is saved in this form, without checksums."""
    origin = voice.origin
    narrow = bool(getattr(voice.model.config, "resblock_inner_channels", None))
    return {
        "format_version": 3 if form == "sparse" else 2 if narrow else 1,
        "name": voice.name,
        "family": origin.family,
        "form": form,
        "precision": precision,
        "origin": {
            "reference": origin.reference,
            "revision": origin.revision,
            "licence": origin.licence,
        },
        "speakers": list(voice.speakers),
        "speaker": voice.speaker,
        "free_cut": {"parameters": voice.free_cut.parameters, "bytes": voice.free_cut.bytes},
        "recipe": dict(voice.recipe),
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the checksums of all files that are in the folder by now, and its own.

    Raises:
        InputError: it is larger than what is read.
    """
    files = SAVED.checksums(path for path in folder.iterdir() if path.is_file())
    manifest = {**manifest, SAVED.entry: files}
    SAVED.write(folder, {**manifest, "crc32": _own_crc32(manifest)})


def _own_crc32(manifest: dict[str, Any]) -> str:
    """Return the CRC-32 of all other entries, as one line of JSON with sorted keys."""
    rest = {key: value for key, value in manifest.items() if key != "crc32"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def form_of(manifest: dict[str, Any]) -> str:
    """ "dense" or "sparse"; folders of older versions are dense."""
    return manifest.get("form", "dense")


def files_of_save(folder: Path) -> set[str]:
    """Names of the files in a saved folder that `save_voice` wrote: those that its manifest lists, or all that any save writes.

    Raises:
        NewerFormatError: a newer version wrote it, nobody knows what.
    """
    listed: Any = None
    with contextlib.suppress(DamagedFileError):
        listed = (read_manifest(folder) or {}).get("files")
    # Manifests of the first versions have no list either.
    return {
        *(listed if isinstance(listed, dict) else _EVER_WRITTEN),
        MANIFEST,
        "prune_spec.json",
        "healing.json",
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that `save_voice` wrote, None where there is none.

    Raises:
        DamagedFileError: there is one that cannot be read.
        NewerFormatError: a newer version wrote it.
    """
    manifest = SAVED.read(folder)
    if manifest is None:
        return None
    broken = DamagedFileError(
        f"{folder.name} is damaged: its {MANIFEST} cannot be read. Save the voice again."
    )
    try:
        version = manifest["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise NewerFormatError(
                f"{folder.name} was saved by a newer vits_prune (format {version}): update vits_prune to open it."
            )
        valid = (
            version in range(1, FORMAT_VERSION + 1)
            and manifest["family"] in ("hugging-face", "piper")
            and is_recipe(manifest["recipe"])
        )
        valid = valid and form_of(manifest) in ("dense", "sparse")
        valid = valid and ("crc32" not in manifest or manifest["crc32"] == _own_crc32(manifest))
        [
            str(value)
            for value in (manifest["name"], manifest["origin"]["reference"], *manifest["speakers"])
        ]
        [int(manifest["free_cut"][key]) for key in ("parameters", "bytes")]
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise error if isinstance(error, InputError) else broken from error
    if not valid:
        raise broken
    return manifest


def is_recipe(recipe: Any) -> bool:
    """Whether a JSON value can be the recipe of a voice: what was pruned, step by step, and what else was done."""
    steps = recipe.get("pruned", []) if isinstance(recipe, dict) else None
    return isinstance(steps, list) and all(
        isinstance(step, dict)
        and isinstance(parts := step.get("parts", []), list)
        and all(isinstance(part, str) for part in parts)
        for step in steps
    )


def check_files(folder: Path, manifest: dict[str, Any], weights: Path) -> None:
    """Compare the files of a saved voice with its manifest's checksums, unless another program has written its weights over.

    Raises:
        InputError: a file is missing or is not the one that was saved.
    """
    if weights.name != "model.safetensors" or _marked(weights):
        SAVED.check(folder, SAVED.listed(manifest))


def sort_metadata(weights: Path) -> None:
    """Put the metadata of a safetensors file that bears the mark in order, in place: safetensors writes it in an order of chance."""
    ours, turned = (
        json.dumps(dict(pairs), separators=(",", ":")).encode()
        for pairs in ([("format", "pt"), *MARK.items()], [*MARK.items(), ("format", "pt")])
    )
    with open(weights, "r+b") as file:
        start = file.read(8 + len(b'{"__metadata__":') + len(turned))
        if start.endswith(turned):
            file.seek(-len(turned), 1)
            file.write(ours)


def require_manifest(folder: Path, weights: Path, name: str) -> None:
    """Refuse weights that `save_voice` wrote where its manifest is gone: nothing tells then whether the files beside them are theirs.

    Raises:
        InputError: so it is.
    """
    if (
        not (folder / MANIFEST).exists()
        and weights.is_file()
        and _marked(weights, unreadable=False)
    ):
        raise DamagedFileError(
            f"{name} is not whole: it lacks its {MANIFEST}. Copy all files that were saved, or save the voice again."
        )


def _marked(weights: Path, unreadable: bool = True) -> bool:
    """Whether a safetensors file is one that `save_voice` wrote; one that cannot be read may be."""
    try:
        with safe_open(weights, "pt") as file:
            return (file.metadata() or {}).items() >= MARK.items()
    except (SafetensorError, OSError, ValueError):
        return unreadable
