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
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError
from vits_prune.voices.manifest import is_recipe, manifest_of
from vits_prune.voices.voice import FreeCut, Origin, Voice

if TYPE_CHECKING:
    import onnx

PRODUCER = "vits_prune"
VERSION = 1
"""Of the facts. Files of a newer one are refused."""
_FACTS, _CHECKSUM = "vits_prune", "vits_prune_sha256"
_MAX_FACTS = 1 << 20
"""Characters of the largest facts that are read."""


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


def facts_of(voice: Voice, form: str, precision: str) -> dict[str, str]:
    """Metadata for the ONNX file of a voice; the checksum is added when the graph is done (see `checksum_of`)."""
    config = copy.deepcopy(voice.model.config)
    for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
        setattr(config, name, float(getattr(voice.model, name)))
    values = {**manifest_of(voice, form, precision), "format_version": VERSION, "config": json.loads(config.to_json_string())}
    return {
        _FACTS: json.dumps(values, ensure_ascii=False, separators=(",", ":")),
        "licence": voice.origin.licence or "not stated",
        "origin": voice.origin.reference,
    }


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
    damaged = InputError(f"{shown} is damaged, it is not the file that was exported: copy it again, or export the voice again.")
    text = entries.get(_FACTS, "")
    if not 0 < len(text) <= _MAX_FACTS:
        raise damaged
    try:
        values = json.loads(text)
        version = values["format_version"]
        if type(version) is int and version > VERSION:
            raise InputError(f"{shown} was exported by a newer vits_prune (format {version}): update vits_prune to open it.")
        if entries.get(_CHECKSUM) != _sha256(model.graph, text):
            raise damaged
        return _facts(values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise error if isinstance(error, InputError) else damaged from error


def _facts(values: dict[str, Any]) -> Facts:
    """The facts in a JSON object; ValueError and its like where it is not one of ours."""
    origin, free_cut, speaker = values["origin"], values["free_cut"], values["speaker"]
    known = values["form"] in ("onnx", "piper") and values["family"] in ("hugging-face", "piper") and is_recipe(values["recipe"])
    if not known or not isinstance(values["config"], dict) or not (speaker is None or type(speaker) is int):
        raise ValueError("not the facts of a voice")
    return Facts(
        form=values["form"],
        name=str(values["name"])[:200],
        origin=Origin(values["family"], str(origin["reference"])[:200], _short(origin.get("revision")), _short(origin.get("licence"))),
        speakers=tuple(str(name)[:200] for name in values["speakers"]),
        speaker=speaker,
        free_cut=FreeCut(int(free_cut["parameters"]), int(free_cut["bytes"])),
        recipe=MappingProxyType(values["recipe"]),
        config=MappingProxyType(values["config"]),
    )


def _short(value: Any) -> str | None:
    return value[:64] if isinstance(value, str) else None
