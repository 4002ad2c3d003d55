"""An .onnx file, or the folder that an export wrote, becomes a Voice: Piper's with its .json, ours with the tokenizer's files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError
from vits_prune.voices.manifest import EXPORT
from vits_prune.voices.voice import Voice, resolve_speaker

if TYPE_CHECKING:
    from transformers import VitsConfig

    from vits_prune.voices.onnx_facts import Facts
    from vits_prune.voices.piper_graph import PiperGraph
    from vits_prune.voices.voice import Tokenizer

FORMS = ("onnx", "piper")
"""The formats of which such a folder is."""


def model_in(folder: Path) -> Path | None:
    """The .onnx that a folder is there for: what an export wrote, or the only one; None for a folder in transformers' layout.

    Raises:
        InputError: an export wrote the folder, and export.json cannot be read or the file that it names is gone.
    """
    if is_export(folder):
        named = [name for name in checksums_in(folder) if name.endswith(".onnx")]
        if len(named) != 1 or not (folder / named[0]).is_file():
            raise InputError(
                f"{folder.name} is not a whole export: it lacks the .onnx that its {EXPORT.name} names. Export the voice again."
            )
        return folder / named[0]
    found = [] if (folder / "config.json").exists() else sorted(folder.glob("*.onnx"))
    return found[0] if len(found) == 1 else None


def load_onnx(model: Path, speaker: int | str | None = None) -> Voice:
    """The voice of an .onnx file.

    Args:
        model: exported by Piper, with its .json beside it, or by this library, with what the export wrote beside it.
        speaker: who speaks, by index or name, by default the one that it says itself.

    Raises:
        InputError: a file is missing, damaged, or not that of a VITS voice, or the voice has no such speaker.
    """
    from vits_prune.voices.piper import config_beside, load_piper
    from vits_prune.voices.piper_graph import read_graph

    ours = is_export(model.parent) and model.name in checksums_in(model.parent)
    if ours:
        checksums = checksums_in(model.parent)
        EXPORT.check(
            model.parent,
            {
                name: checksums[name]
                for name in checksums
                if name == model.name or not name.endswith(".onnx")
            },
        )
    usual = model.with_name(model.name + ".json")
    alone = not usual.is_file() and (
        ours or not config_beside(model).is_file()
    )  # export.json is not the .json of export.onnx
    graph = read_graph(str(model), model.name) if alone and model.is_file() else None
    if graph is None or graph.facts is None or graph.facts.form != "onnx":
        return load_piper(model, speaker=speaker)
    return _load_whole(model, graph, graph.facts, speaker)


def _load_whole(path: Path, graph: PiperGraph, facts: Facts, speaker: int | str | None) -> Voice:
    """The voice of a file that says itself what it is, but for its tokenizer."""
    from vits_prune.voices.piper_model import build_model

    config = _config(facts, path.name)
    model, tokenizer = build_model(graph, config, path.name), _tokenizer(facts, path, config)
    if len(facts.speakers) != (config.num_speakers if config.num_speakers > 1 else 0):
        raise InputError(
            f"{path.name} is damaged: it names other speakers than it has. Export the voice again."
        )
    return Voice(
        model=model,
        tokenizer=tokenizer,
        sampling_rate=config.sampling_rate,
        name=facts.name,
        origin=facts.origin,
        speaker=resolve_speaker(
            facts.speaker if speaker is None else speaker, facts.speakers, facts.name
        ),
        speakers=facts.speakers,
        free_cut=facts.free_cut,
        recipe=facts.recipe,
    )


def _config(facts: Facts, shown: str) -> VitsConfig:
    from transformers import VitsConfig

    from vits_prune.voices.architecture import NarrowVitsConfig, PiperVitsConfig
    from vits_prune.voices.hf_config import checked_config

    kind: type[VitsConfig] = PiperVitsConfig
    if facts.origin.family == "hugging-face":
        kind = (
            NarrowVitsConfig
            if facts.config.get("model_type") == NarrowVitsConfig.model_type
            else VitsConfig
        )
    return checked_config(dict(facts.config), kind, shown)


def _tokenizer(facts: Facts, model: Path, config: VitsConfig) -> Tokenizer:
    from vits_prune.voices.hf_text import HubTokenizer
    from vits_prune.voices.onnx_facts import check_reading
    from vits_prune.voices.piper_text import PiperTokenizer

    needed = "vocab.json" if facts.origin.family == "hugging-face" else "piper.json"
    if not (model.parent / needed).is_file():
        raise InputError(
            f"{model.name} has no {needed} beside it, by which it reads text: copy all files that the export wrote."
        )
    if facts.origin.family == "hugging-face":
        check_reading(facts, model.parent, model.name, needed)
        return HubTokenizer.load(model.parent, vocab_size=config.vocab_size, name=facts.name)
    tokenizer = PiperTokenizer.load(model.parent)
    check_reading(facts, tokenizer, model.name, needed)
    if tokenizer.largest_id >= config.vocab_size:
        raise InputError(
            f"{model.name} does not know all symbols of the piper.json beside it: take both files from the same export."
        )
    return tokenizer


def checksums_in(folder: Path) -> dict[str, str]:
    """Return {file: SHA-256} as the export wrote them, empty if it wrote none.

    Raises:
        DamagedFileError: export.json cannot be read.
    """
    return EXPORT.listed(EXPORT.read(folder) or {})


def is_export(folder: Path) -> bool:
    """Whether an export to ONNX wrote a folder's export.json. One that cannot be read counts, unless the folder has a config.json.

    Other programs write files of that name too, next to a checkpoint for example.
    """
    try:
        return describes_export(EXPORT.read(folder))
    except InputError:
        return not (folder / "config.json").is_file()


def describes_export(values: Any) -> bool:
    """Whether a JSON value is what an export to ONNX writes into export.json."""
    return (
        isinstance(values, dict)
        and values.get("format") in FORMS
        and isinstance(values.get(EXPORT.entry), dict)
    )
