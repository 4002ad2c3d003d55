"""What a saved or exported voice says about itself: the manifest of a folder, metadata of ONNX.

Both hold checksums. The weights that `save_voice` writes bear a mark: as long as they do, every
file in their folder must be the one that was written. A program that trains on such a folder and
saves over it writes weights without the mark; the folder is then read like any checkpoint.
"""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import Manifest, crc32_of, read_json, shown_name
from vits_prune.voices.voice import FreeCut, Origin, Tokenizer, Voice, resolve_speaker

if TYPE_CHECKING:
    import onnx
    from transformers import VitsConfig, VitsModel

    from vits_prune.voices.piper_text import PiperTokenizer

SAVED_FILE = "vits_prune.json"
MAX_MANIFEST_BYTES = 16 << 20
"""More than the recipe of one pruning takes: at most 1,000 texts of 1,000 characters."""
SAVED = Manifest(SAVED_FILE, checksum=crc32_of, max_bytes=MAX_MANIFEST_BYTES)
"""Of a folder that `save_voice` wrote."""
EXPORT = Manifest("export.json", entry="sha256", max_bytes=2 * MAX_MANIFEST_BYTES, indent=1)
"""Of a folder that an export to ONNX wrote."""
WEIGHT_FILES = {"dense": "model.safetensors", "sparse": "model.sparse.safetensors"}
"""The file of the weights by form. No other program takes the sparse one for plain tensors."""
SAVE_VERSION = 3
"""The newest format. 2 is written for narrow residual blocks and 3 for sparse files only."""
MARK = {"written_by": "vits_prune"}
"""In the metadata of a dense safetensors file whose checksum a manifest holds."""
PRODUCER = "vits_prune"
"""Of an ONNX file that was written here."""
FORMS = ("onnx", "piper")
"""With the tokenizer's files in the same folder, or with Piper's .json."""
_ONNX_VERSION = 1
_FACTS, _CHECKSUM = "vits_prune", "vits_prune_sha256"
_BROKEN = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading facts from JSON that is not ours raises."""
_READING = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""The files by which a voice in transformers' layout reads text."""


class NewerFormatError(InputError):
    """A newer version of vits_prune saved a folder."""


@dataclass(frozen=True)
class Facts:
    """A voice without its weights and tokenizer, as a manifest or an ONNX file describes it.

    `form` is "dense" or "sparse" for a saved folder, "onnx" or "piper" for an export. Only folders
    have `files` (their checksums), only exports `config` (the values of a config.json, not checked)
    and `reading` (see `reading_of`).
    """

    form: str
    name: str
    origin: Origin
    speakers: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    speaker: int | None = None
    free_cut: FreeCut = field(default_factory=FreeCut)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    reading: str = ""

    @classmethod
    def parse(cls, values: dict[str, Any], forms: Container[str]) -> Facts:
        """Return the facts in a JSON object; raises one of _BROKEN if it is not one of ours."""
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
            files=MappingProxyType(SAVED.listed(values)),
        )
        ours = facts.form in forms and facts.origin.family in ("hugging-face", "piper")
        sound = isinstance(facts.speaker, int | None) and isinstance(config, dict)
        if not ours or not sound or not _is_recipe(values["recipe"]):
            raise ValueError("not the facts of a voice")
        return facts

    def voice(
        self, model: VitsModel, tokenizer: Tokenizer, speaker: int | str | None, shown: str
    ) -> Voice:
        """Return the voice with this network; speaker None is the one that spoke when saved."""
        count = model.config.num_speakers
        if len(self.speakers) != (count if count > 1 else 0):
            raise DamagedFileError(f"{shown} is damaged: it names other speakers than it has.")
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
        "origin": {key: getattr(origin, key) for key in ("reference", "revision", "licence")},
        "speakers": list(voice.speakers),
        "speaker": voice.speaker,
        "free_cut": vars(voice.free_cut).copy(),
        "recipe": dict(voice.recipe),
    }


def config_of(voice: Voice) -> VitsConfig:
    """Return a copy of a network's configuration, with the voice's own noise and rate."""
    config = copy.deepcopy(voice.model.config)
    for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
        setattr(config, name, float(getattr(voice.model, name)))
    return config


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with its own checksum and those of all files in the folder."""
    files = SAVED.checksums(path for path in folder.iterdir() if path.is_file())
    manifest = {**manifest, SAVED.entry: files}
    SAVED.write(folder, {**manifest, "crc32": _own_crc32(manifest)})


def _own_crc32(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "crc32"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def read_manifest(folder: Path) -> Facts | None:
    """Return the facts in the manifest of a saved folder, None if there is none.

    DamagedFileError if it cannot be read, NewerFormatError if a newer version wrote it.
    """
    manifest = SAVED.read(folder)
    if manifest is None:
        return None
    version = manifest.get("format_version")
    if isinstance(version, int) and version > SAVE_VERSION:
        raise NewerFormatError(f"{shown_name(folder)} was saved by a newer vits_prune: update it.")
    try:
        facts = Facts.parse(manifest, WEIGHT_FILES)
        own = _own_crc32(manifest)
        if version not in range(1, SAVE_VERSION + 1) or manifest.get("crc32", own) != own:
            raise ValueError("damaged")
    except _BROKEN as error:
        what = f"is damaged: its {SAVED_FILE} cannot be read. Save the voice again."
        raise DamagedFileError(f"{shown_name(folder)} {what}") from error
    return facts


def files_of_save(folder: Path) -> set[str]:
    """Return the names of the files in a folder that `save_voice` wrote, or may have written."""
    try:
        facts = read_manifest(folder)
    except DamagedFileError:
        facts = None
    usual = ("config.json", "piper.json", *WEIGHT_FILES.values(), *_READING)
    return {*((facts and facts.files) or usual), SAVED_FILE, "prune_spec.json", "healing.json"}


def check_files(folder: Path, facts: Facts) -> None:
    """Compare a saved voice's files with its manifest, unless its weights were written over."""
    if facts.form != "dense" or _marked(folder / WEIGHT_FILES["dense"]):
        SAVED.check(folder, dict(facts.files))


def require_manifest(folder: Path, weights: Path, name: str) -> None:
    """Raise DamagedFileError for weights that `save_voice` wrote if their manifest is gone."""
    gone = not (folder / SAVED_FILE).exists() and weights.is_file()
    if gone and _marked(weights, unreadable=False):
        raise DamagedFileError(f"{name} is not whole: it lacks its {SAVED_FILE}. Copy all files.")


def _marked(weights: Path, unreadable: bool = True) -> bool:
    """Whether `save_voice` wrote a safetensors file; `unreadable` if it cannot be read."""
    try:
        with safe_open(weights, "pt") as file:
            return (file.metadata() or {}).items() >= MARK.items()
    except (SafetensorError, OSError, ValueError):
        return unreadable


def facts_of(voice: Voice, form: str, precision: str, reading: str = "") -> dict[str, str]:
    """Return the facts of a voice as ONNX metadata; `checksum_of` adds the checksum."""
    values = describe(voice, form, precision) | {"format_version": _ONNX_VERSION}
    values["config"] = json.loads(config_of(voice).to_json_string())
    if reading:
        values["reading"] = reading
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_MANIFEST_BYTES:
        what = f"The recipe of {voice.name} takes more than {MAX_MANIFEST_BYTES >> 20} MiB"
        raise InputError(
            f"{what}: prune the original again with fewer or shorter calibration texts."
        )
    return {
        _FACTS: text,
        "licence": voice.origin.licence or "not stated",
        "origin": voice.origin.reference,
    }


def reading_of(source: Path | PiperTokenizer) -> str:
    """Return the SHA-256 of what turns text into ids, in hexadecimal.

    The source is a folder with a tokenizer in transformers' layout, or a Piper voice's tokenizer.
    """
    found: Any
    if isinstance(source, Path):
        there = [name for name in _READING if (source / name).is_file()]
        found = {name: read_json(source / name, source.name, 8 << 20) for name in there}
    else:
        ids = {symbol: list(given) for symbol, given in source.phoneme_ids.items()}
        clusters = sorted(map(list, source.vowel_clusters))
        found = [source.phoneme_type, source.espeak_voice, ids, clusters]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def check_reading(facts: Facts, source: Path | PiperTokenizer, shown: str, symbols: str) -> None:
    """Raise InputError if text does not become the ids that it became when a file was exported.

    `source` is as for `reading_of`; messages call the files `shown` (ONNX) and `symbols`.
    """
    if facts.reading and facts.reading != reading_of(source):
        what = f"{symbols} does not read text as it did when {shown} was exported"
        raise InputError(f"{what}: copy both files from one export.")


def checksum_of(graph: onnx.GraphProto, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata entry with the checksum of a graph and its facts; {} without facts."""
    if _FACTS not in facts:
        return {}
    content = facts[_FACTS].encode() + graph.SerializeToString(deterministic=True)
    return {_CHECKSUM: hashlib.sha256(content).hexdigest()}


def read_facts(model: onnx.ModelProto, shown: str) -> Facts | None:
    """Return the facts of an ONNX file, None for one not written here; InputError if damaged."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if model.producer_name != PRODUCER and _CHECKSUM not in entries:
        return None
    damaged = InputError(f"{shown} is damaged since it was exported: copy or export it again.")
    text = entries.get(_FACTS, "")
    if not 0 < len(text) <= MAX_MANIFEST_BYTES:
        raise damaged
    try:
        values = json.loads(text)
        version = values["format_version"]
        facts = Facts.parse(values, FORMS) if version == _ONNX_VERSION else None
    except _BROKEN as error:
        raise damaged from error
    if type(version) is int and version > _ONNX_VERSION:
        raise InputError(f"{shown} was exported by a newer vits_prune: update it.")
    if facts is None or checksum_of(model.graph, entries)[_CHECKSUM] != entries.get(_CHECKSUM):
        raise damaged
    return facts
