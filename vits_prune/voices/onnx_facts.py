"""What an ONNX file written here says of itself, in its metadata: whose voice it is, what was done to it, and a checksum.

With it `load_voice` makes of an export the voice that was exported: facts that a graph does not hold (who published the voice, the recipe,
activation functions, slopes) come from here, the weights from the graph. The checksum is over the graph and these facts, so that a file
that was damaged is refused and never becomes another voice. Files of other programs, Piper's own among them, have none of this.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError
from vits_prune.files import read_json
from vits_prune.voices.manifest import MAX_MANIFEST_BYTES, is_recipe, manifest_of
from vits_prune.voices.voice import FreeCut, Origin, Voice

if TYPE_CHECKING:
    import onnx

    from vits_prune.voices.piper_text import PiperTokenizer

PRODUCER = "vits_prune"
VERSION = 1
"""Of the facts. Files of a newer one are refused."""
_FACTS, _CHECKSUM = "vits_prune", "vits_prune_sha256"
_MAX_FACTS = MAX_MANIFEST_BYTES
"""Characters of the largest facts that are read."""
_READING = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""The files by which a voice in transformers' layout reads text."""


@dataclass(frozen=True)
class Facts:
    """A voice as its export tells of it, its weights apart."""

    form: str
    """ "onnx", with the tokenizer's files beside it, or "piper", with Piper's .json."""
    name: str
    origin: Origin
    speakers: tuple[str, ...]
    speaker: int | None
    free_cut: FreeCut
    recipe: Mapping[str, Any]
    config: Mapping[str, Any]
    """Of the network, as in a config.json; not checked yet."""
    reading: str
    """Of what turns text into ids (see `reading_of`), "" in files of before."""


def facts_of(voice: Voice, form: str, precision: str, reading: str = "") -> dict[str, str]:
    """Metadata for the ONNX file of a voice; the checksum is added when the graph is done (see `checksum_of`).

    Args:
        voice: whose file it is.
        form: "onnx" or "piper".
        precision: of the weights in the file.
        reading: what `reading_of` gives of the files that are written beside it.

    Raises:
        InputError: what was done to the voice takes more room than is read.
    """
    config = copy.deepcopy(voice.model.config)
    for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
        setattr(config, name, float(getattr(voice.model, name)))
    values = {
        **manifest_of(voice, form, precision),
        "format_version": VERSION,
        "config": json.loads(config.to_json_string()),
    }
    if reading:
        values["reading"] = reading
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    if len(text) > _MAX_FACTS:
        raise InputError(
            f"What was done to {voice.name} takes more than {_MAX_FACTS >> 20} MiB: "
            "prune the original again with fewer or shorter calibration texts."
        )
    return {
        _FACTS: text,
        "licence": voice.origin.licence or "not stated",
        "origin": voice.origin.reference,
    }


def reading_of(source: Path | PiperTokenizer) -> str:
    """SHA-256 of what turns text into ids, in hexadecimal: the same weights with another table of symbols speak other words.

    Args:
        source: a folder with the files of a tokenizer in transformers' layout, or a Piper voice's tokenizer.

    Raises:
        InputError: a file cannot be read.
    """
    from vits_prune.voices.hf_text import MAX_VOCAB_BYTES

    if isinstance(source, Path):
        found: Any = {
            name: read_json(source / name, source.name, MAX_VOCAB_BYTES)
            for name in _READING
            if (source / name).is_file()
        }
    else:
        ids = {symbol: list(given) for symbol, given in source.phoneme_ids.items()}
        found = [
            source.phoneme_type,
            source.espeak_voice,
            ids,
            sorted(map(list, source.vowel_clusters)),
        ]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def check_reading(facts: Facts, source: Path | PiperTokenizer, shown: str, beside: str) -> None:
    """Compare what turns text into ids with what the export wrote.

    Args:
        facts: of the ONNX file.
        source: as `reading_of` takes it.
        shown: what messages call the ONNX file.
        beside: what messages call the file that has the symbols.

    Raises:
        InputError: it is not the same.
    """
    if facts.reading and facts.reading != reading_of(source):
        raise InputError(
            f"{beside} does not read text as it did when {shown} was exported: copy both files again from the same export, or export the "
            "voice again."
        )


def checksum_of(graph: onnx.GraphProto, facts: Mapping[str, str]) -> dict[str, str]:
    """The metadata entry that holds the checksum of a graph with its facts; nothing where there are no facts."""
    return {_CHECKSUM: _sha256(graph, facts[_FACTS])} if _FACTS in facts else {}


def _sha256(graph: onnx.GraphProto, facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    digest.update(graph.SerializeToString(deterministic=True))
    return digest.hexdigest()


def read_facts(model: onnx.ModelProto, shown: str) -> Facts | None:
    """The facts of an ONNX file, None for one that was not written here.

    Args:
        model: the parsed file, which may be hostile.
        shown: what messages call it.

    Raises:
        InputError: it was written here and is damaged or cut short, or was written by a newer version.
    """
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if model.producer_name != PRODUCER and _CHECKSUM not in entries:
        return None
    damaged = InputError(
        f"{shown} is damaged, it is not the file that was exported: copy it again, or export the voice again."
    )
    text = entries.get(_FACTS, "")
    if not 0 < len(text) <= _MAX_FACTS:
        raise damaged
    try:
        values = json.loads(text)
        version = values["format_version"]
        if type(version) is int and version > VERSION:
            raise InputError(
                f"{shown} was exported by a newer vits_prune (format {version}): update vits_prune to open it."
            )
        if entries.get(_CHECKSUM) != _sha256(model.graph, text):
            raise damaged
        return _facts(values)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise error if isinstance(error, InputError) else damaged from error


def _facts(values: dict[str, Any]) -> Facts:
    """The facts in a JSON object; ValueError and its like where it is not one of ours."""
    origin, free_cut, speaker = values["origin"], values["free_cut"], values["speaker"]
    known = (
        values["form"] in ("onnx", "piper")
        and values["family"] in ("hugging-face", "piper")
        and is_recipe(values["recipe"])
    )
    if (
        not known
        or not isinstance(values["config"], dict)
        or not (speaker is None or type(speaker) is int)
    ):
        raise ValueError("not the facts of a voice")
    return Facts(
        form=values["form"],
        name=str(values["name"])[:200],
        origin=Origin(
            values["family"],
            str(origin["reference"])[:200],
            _short(origin.get("revision")),
            _short(origin.get("licence")),
        ),
        speakers=tuple(str(name)[:200] for name in values["speakers"]),
        speaker=speaker,
        free_cut=FreeCut(int(free_cut["parameters"]), int(free_cut["bytes"])),
        recipe=MappingProxyType(values["recipe"]),
        config=MappingProxyType(values["config"]),
        reading=str(values.get("reading", "")),
    )


def _short(value: Any) -> str | None:
    return value[:64] if isinstance(value, str) else None
