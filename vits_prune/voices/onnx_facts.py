"""What an ONNX file written here says about itself, in its metadata.

With it `load_voice` turns an export into the voice that was exported: facts that a graph does not
hold (origin, recipe, activation functions, slopes) come from here, the weights from the graph. The
checksum is over both, so that a damaged file is refused and never becomes another voice. Files of
other programs, Piper's own among them, have none of this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError
from vits_prune.files import read_json
from vits_prune.voices.manifest import BROKEN, MAX_MANIFEST_BYTES, Facts, config_of, describe
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    import onnx

    from vits_prune.voices.piper_text import PiperTokenizer

PRODUCER = "vits_prune"
VERSION = 1
"""Of the facts. Files of a newer one are refused."""
FORMS = ("onnx", "piper")
"""With the tokenizer's files in the same folder, or with Piper's .json."""
_FACTS, _CHECKSUM = "vits_prune", "vits_prune_sha256"
_READING = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""The files by which a voice in transformers' layout reads text."""
_MAX_READING_BYTES = 8 << 20


def facts_of(voice: Voice, form: str, precision: str, reading: str = "") -> dict[str, str]:
    """Return metadata for the ONNX file of a voice, without the checksum (see `checksum_of`).

    Args:
        voice: whose file it is.
        form: "onnx" or "piper".
        precision: of the weights in the file.
        reading: what `reading_of` returns for the files that are written with it.

    Raises:
        InputError: the recipe of the voice takes more room than is read.
    """
    values = describe(voice, form, precision) | {"format_version": VERSION}
    values["config"] = json.loads(config_of(voice).to_json_string())
    if reading:
        values["reading"] = reading
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_MANIFEST_BYTES:
        raise InputError(
            f"What was done to {voice.name} takes more than {MAX_MANIFEST_BYTES >> 20} MiB: "
            "prune the original again with fewer or shorter calibration texts."
        )
    return {
        _FACTS: text,
        "licence": voice.origin.licence or "not stated",
        "origin": voice.origin.reference,
    }


def reading_of(source: Path | PiperTokenizer) -> str:
    """Return the SHA-256 of what turns text into ids, in hexadecimal.

    The same weights with another table of symbols would speak other words.

    Args:
        source: a folder with a tokenizer in transformers' layout, or a Piper voice's tokenizer.

    Raises:
        InputError: a file cannot be read.
    """
    found: Any
    if isinstance(source, Path):
        found = {
            name: read_json(source / name, source.name, _MAX_READING_BYTES)
            for name in _READING
            if (source / name).is_file()
        }
    else:
        ids = {symbol: list(given) for symbol, given in source.phoneme_ids.items()}
        clusters = sorted(map(list, source.vowel_clusters))
        found = [source.phoneme_type, source.espeak_voice, ids, clusters]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def check_reading(facts: Facts, source: Path | PiperTokenizer, shown: str, symbols: str) -> None:
    """Compare what turns text into ids with what the export wrote.

    Args:
        facts: of the ONNX file.
        source: as `reading_of` takes it.
        shown: what messages call the ONNX file.
        symbols: what messages call the file with the symbols.

    Raises:
        InputError: it is not the same.
    """
    if facts.reading and facts.reading != reading_of(source):
        raise InputError(
            f"{symbols} does not read text as it did when {shown} was exported: "
            "copy both files again from the same export, or export the voice again."
        )


def checksum_of(graph: onnx.GraphProto, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata entry with the checksum of a graph and its facts; {} without facts."""
    return {_CHECKSUM: _sha256(graph, facts[_FACTS])} if _FACTS in facts else {}


def _sha256(graph: onnx.GraphProto, facts: str) -> str:
    return hashlib.sha256(facts.encode() + graph.SerializeToString(deterministic=True)).hexdigest()


def read_facts(model: onnx.ModelProto, shown: str) -> Facts | None:
    """Return the facts of an ONNX file, None for one that was not written here.

    Args:
        model: the parsed file, which may be hostile.
        shown: what messages call it.

    Raises:
        InputError: it was written here and is damaged, or was written by a newer version.
    """
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if model.producer_name != PRODUCER and _CHECKSUM not in entries:
        return None
    damaged = InputError(
        f"{shown} is damaged, it is not the file that was exported: "
        "copy it again, or export the voice again."
    )
    text = entries.get(_FACTS, "")
    if not 0 < len(text) <= MAX_MANIFEST_BYTES:
        raise damaged
    try:
        values = json.loads(text)
        version = values["format_version"]
        facts = Facts.parse(values, FORMS) if version == VERSION else None
    except BROKEN as error:
        raise damaged from error
    if type(version) is int and version > VERSION:
        raise InputError(
            f"{shown} was exported by a newer vits_prune (format {version}): "
            "update vits_prune to open it."
        )
    if facts is None or entries.get(_CHECKSUM) != _sha256(model.graph, text):
        raise damaged
    return facts
