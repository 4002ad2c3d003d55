"""What a saved or exported voice says about itself, and the manifests of the folders it is in.

A manifest holds checksums, so damage is found. The weights that `save_voice` writes bear a mark: as
long as they do, every file in their folder must be the one that was written. A program that trains
on such a folder and saves over it writes weights without the mark; the folder is then read like any
checkpoint.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import Manifest, crc32_of
from vits_prune.voices.voice import FreeCut, Origin, Tokenizer, Voice, resolve_speaker

if TYPE_CHECKING:
    from transformers import VitsConfig, VitsModel

MANIFEST = "vits_prune.json"
MAX_MANIFEST_BYTES = 16 << 20
"""More than the recipe of one pruning takes: at most 1,000 texts of 1,000 characters."""
SAVED = Manifest(MANIFEST, checksum=crc32_of, max_bytes=MAX_MANIFEST_BYTES)
"""Of a folder that `save_voice` wrote."""
EXPORT = Manifest("export.json", entry="sha256", max_bytes=2 * MAX_MANIFEST_BYTES, indent=1)
"""Of a folder that an export to ONNX wrote."""
FORMAT_VERSION = 3
"""The newest format. 2 is written for narrow residual blocks and 3 for sparse files only."""
MARK = {"written_by": "vits_prune"}
"""In the metadata of a dense safetensors file whose checksum a manifest holds."""
BROKEN = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading facts from JSON that is not ours raises."""
_EVER_WRITTEN = (
    *("config.json", "model.safetensors", "model.sparse.safetensors", "piper.json", "vocab.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)


class NewerFormatError(InputError):
    """A newer version of vits_prune saved a folder."""


@dataclass(frozen=True)
class Facts:
    """A voice without its weights and tokenizer, as a manifest or an ONNX file describes it.

    `form` is "dense" or "sparse" for a saved folder, "onnx" or "piper" for an export. Only exports
    have `config` (the values of a config.json, not checked) and `reading` (see `reading_of`).
    """

    form: str
    name: str
    origin: Origin
    speakers: tuple[str, ...]
    speaker: int | None
    free_cut: FreeCut
    recipe: Mapping[str, Any]
    config: Mapping[str, Any]
    reading: str

    @classmethod
    def parse(cls, values: Mapping[str, Any], forms: tuple[str, ...]) -> Facts:
        """Return the facts in a JSON object; raises one of BROKEN if it is not one of ours."""
        origin, cut, config = values["origin"], values["free_cut"], values.get("config", {})
        facts = cls(
            form=values.get("form", "dense"),  # folders of the first version do not say it
            name=str(values["name"])[:200],
            origin=Origin(
                values["family"],
                str(origin["reference"])[:200],
                _short(origin.get("revision")),
                _short(origin.get("licence")),
            ),
            speakers=tuple(str(name)[:200] for name in values["speakers"]),
            speaker=values.get("speaker"),
            free_cut=FreeCut(int(cut["parameters"]), int(cut["bytes"])),
            recipe=MappingProxyType(values["recipe"]),
            config=MappingProxyType(config),
            reading=str(values.get("reading", "")),
        )
        if (
            facts.form not in forms
            or facts.origin.family not in ("hugging-face", "piper")
            or not isinstance(facts.speaker, int | None)
            or not _is_recipe(values["recipe"])
            or not isinstance(config, dict)
        ):
            raise ValueError("not the facts of a voice")
        return facts

    def voice(
        self, model: VitsModel, tokenizer: Tokenizer, speaker: int | str | None, shown: str
    ) -> Voice:
        """Return the voice with this network.

        Args:
            model: the network.
            tokenizer: of the voice.
            speaker: index or name; None for the one that spoke when the voice was saved.
            shown: what messages call the file or folder.

        Raises:
            DamagedFileError: the network has other speakers.
            InputError: there is no such speaker.
        """
        count = model.config.num_speakers
        if len(self.speakers) != (count if count > 1 else 0):
            raise DamagedFileError(
                f"{shown} is damaged: it names other speakers than it has. "
                "Save or export the voice again."
            )
        chosen = self.speaker if speaker is None else speaker
        return Voice(
            model=model,
            tokenizer=tokenizer,
            sampling_rate=model.config.sampling_rate,
            name=self.name,
            origin=self.origin,
            speaker=resolve_speaker(chosen, self.speakers, self.name),
            speakers=self.speakers,
            free_cut=self.free_cut,
            recipe=self.recipe,
        )


def _short(value: Any) -> str | None:
    return value[:64] if isinstance(value, str) else None


def _is_recipe(recipe: Any) -> bool:
    steps = recipe.get("pruned", []) if isinstance(recipe, dict) else None
    return isinstance(steps, list) and all(
        isinstance(step, dict)
        and isinstance(parts := step.get("parts", []), list)
        and all(isinstance(part, str) for part in parts)
        for step in steps
    )


def describe(voice: Voice, form: str, precision: str) -> dict[str, Any]:
    """Return the JSON-able values from which `Facts.parse` makes the facts of a voice again."""
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


def config_of(voice: Voice) -> VitsConfig:
    """Return a copy of a network's configuration, with the voice's own noise and rate."""
    config = copy.deepcopy(voice.model.config)
    for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
        setattr(config, name, float(getattr(voice.model, name)))
    return config


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with its own checksum and those of all files in the folder.

    Raises:
        InputError: it is larger than what is read.
    """
    files = SAVED.checksums(path for path in folder.iterdir() if path.is_file())
    manifest = {**manifest, SAVED.entry: files}
    SAVED.write(folder, {**manifest, "crc32": _own_crc32(manifest)})


def _own_crc32(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "crc32"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder that `save_voice` wrote, None if there is none.

    Raises:
        DamagedFileError: there is one that cannot be read.
        NewerFormatError: a newer version wrote it.
    """
    manifest = SAVED.read(folder)
    if manifest is None:
        return None
    try:
        version = manifest["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise NewerFormatError(
                f"{folder.name} was saved by a newer vits_prune (format {version}): "
                "update vits_prune to open it."
            )
        Facts.parse(manifest, ("dense", "sparse"))
        if version not in range(1, FORMAT_VERSION + 1) or (
            manifest.get("crc32", _own_crc32(manifest)) != _own_crc32(manifest)
        ):
            raise ValueError("damaged")
    except NewerFormatError:
        raise
    except BROKEN as error:
        raise DamagedFileError(
            f"{folder.name} is damaged: its {MANIFEST} cannot be read. Save the voice again."
        ) from error
    return manifest


def files_of_save(folder: Path) -> set[str]:
    """Return the names of the files in a saved folder that `save_voice` wrote.

    A damaged manifest, or one of the first version, lists none: then all that a save ever writes.

    Raises:
        NewerFormatError: a newer version wrote the folder; what it wrote is unknown.
    """
    try:
        listed = SAVED.listed(read_manifest(folder) or {})
    except DamagedFileError:
        listed = {}
    return {*(listed or _EVER_WRITTEN), MANIFEST, "prune_spec.json", "healing.json"}


def check_files(folder: Path, manifest: dict[str, Any], weights: Path) -> None:
    """Compare the files of a saved voice with its manifest, unless its weights were written over.

    Raises:
        DamagedFileError: a file is missing or is not the one that was saved.
    """
    if weights.name != "model.safetensors" or _marked(weights):
        SAVED.check(folder, SAVED.listed(manifest))


def require_manifest(folder: Path, weights: Path, name: str) -> None:
    """Refuse weights that `save_voice` wrote if their manifest is gone.

    Raises:
        DamagedFileError: nothing says whether the other files belong to the weights.
    """
    gone = not (folder / MANIFEST).exists() and weights.is_file()
    if gone and _marked(weights, unreadable=False):
        raise DamagedFileError(
            f"{name} is not whole: it lacks its {MANIFEST}. Copy all files that were saved, "
            "or save the voice again."
        )


def _marked(weights: Path, unreadable: bool = True) -> bool:
    """Whether `save_voice` wrote a safetensors file; `unreadable` if it cannot be read."""
    try:
        with safe_open(weights, "pt") as file:
            return (file.metadata() or {}).items() >= MARK.items()
    except (SafetensorError, OSError, ValueError):
        return unreadable
