"""Turn an .onnx file into a Voice: Piper's with its .json, ours with the tokenizer's files.

Any of these files may come from a stranger: nothing in them is run, everything is checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import VitsConfig

from vits_prune.errors import InputError
from vits_prune.files import expanded, read_json, shown_name
from vits_prune.voices.architecture import NarrowVitsConfig, PiperVitsConfig, checked_config
from vits_prune.voices.hf_text import HubTokenizer
from vits_prune.voices.manifest import EXPORT, FORMS, Facts, check_reading
from vits_prune.voices.piper_graph import read_graph
from vits_prune.voices.piper_model import build_model, piper_config
from vits_prune.voices.piper_text import (
    AS_PUBLISHED,
    MAX_JSON_BYTES,
    TOKENIZER_FILE,
    PiperTokenizer,
)
from vits_prune.voices.voice import Origin, Tokenizer, Voice

_RATES = (4_000, 192_000)
_MAX_SPEAKER_NAME = 200
_SCALES = {
    "noise_scale": (0.667, 0, 100),
    "length_scale": (1.0, 1e-3, 1e3),
    "noise_w": (0.8, 0, 100),
}
"""What Piper's runtime takes if the file says nothing; bounds that keep speech finite."""


def model_in(folder: Path) -> Path | None:
    """Return the .onnx that an export wrote to a folder, or its only one; None for a checkpoint.

    Raises:
        InputError: it is an export that is not whole, or there are several, here or in folders.
    """
    if is_export(folder):
        named = [name for name in checksums_in(folder) if name.endswith(".onnx")]
        if len(named) != 1 or not (folder / named[0]).is_file():
            what = f"it lacks the .onnx that its {EXPORT.name} names"
            raise InputError(f"{shown_name(folder)} is not a whole export: {what}.")
        return folder / named[0]
    if (folder / "config.json").exists() and not _is_piper_json(folder / "config.json"):
        return None
    found = [path for path in sorted(folder.glob("*.onnx")) if not path.name.startswith(".")]
    within = [] if found else sorted(folder.glob("*/*.onnx"))
    names = [path.relative_to(folder).as_posix() for path in found or within]
    if len(found) > 1 or within:
        what = "several voices" if found else "folders with voices"
        there = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
        raise InputError(f"{shown_name(folder)} holds {what}: give one of {there}.")
    return found[0] if found else None


def _is_piper_json(path: Path) -> bool:
    """Return whether a config.json is that of Piper's trainer, and not that of transformers."""
    try:
        return "phoneme_id_map" in read_json(path, max_bytes=MAX_JSON_BYTES)
    except InputError:
        return False


def checksums_in(folder: Path) -> dict[str, str]:
    """Return {file: SHA-256} as an export wrote them; DamagedFileError if they cannot be read."""
    return EXPORT.listed(EXPORT.read(folder) or {})


def is_export(folder: Path) -> bool:
    """Return whether an export to ONNX wrote a folder's export.json, and not another program.

    One that cannot be read counts unless the folder has a config.json.
    """
    try:
        return describes_export(EXPORT.read(folder))
    except InputError:
        return not (folder / "config.json").is_file()


def describes_export(values: Any) -> bool:
    """Return whether a JSON value is what an export to ONNX writes into export.json."""
    known = isinstance(values, dict) and values.get("format") in FORMS
    return known and isinstance(values.get(EXPORT.entry), dict)


def load_onnx(model: Path, speaker: int | str | None = None) -> Voice:
    """Return the voice of an .onnx file, with speaker None for the one that the file names.

    Piper's .onnx has its .json in the same folder; ours has the other files of the export.
    """
    listed = checksums_in(model.parent) if is_export(model.parent) else {}
    ours = model.name in listed
    if ours:  # other .onnx files may be gone
        needed = [name for name in listed if name == model.name or not name.endswith(".onnx")]
        EXPORT.check(model.parent, {name: listed[name] for name in needed})
    has_json = model.with_name(model.name + ".json").is_file() or (
        not ours and config_next_to(model).is_file()  # export.json is not the .json of export.onnx
    )
    graph = read_graph(model) if not has_json and model.is_file() else None
    if graph is None or graph.facts is None or graph.facts.form != "onnx":
        return load_piper(model, speaker=speaker)
    facts = graph.facts
    narrow = facts.config.get("model_type") == NarrowVitsConfig.model_type
    kind: type[VitsConfig] = NarrowVitsConfig if narrow else VitsConfig
    kind = PiperVitsConfig if facts.origin.family == "piper" else kind
    config = checked_config(dict(facts.config), kind, model.name)
    network = build_model(graph, config, model.name)
    return facts.voice(network, _tokenizer(facts, model, config), speaker, model.name)


def _tokenizer(facts: Facts, model: Path, config: VitsConfig) -> Tokenizer:
    piper = facts.origin.family == "piper"
    needed = TOKENIZER_FILE if piper else "vocab.json"
    if not (model.parent / needed).is_file():
        raise InputError(f"{model.name} has no {needed} next to it: copy all exported files.")
    if not piper:
        check_reading(facts, model.parent, model.name, needed)
        return HubTokenizer.load(model.parent, vocab_size=config.vocab_size, name=facts.name)
    tokenizer = PiperTokenizer.load(model.parent)
    check_reading(facts, tokenizer, model.name, needed)
    _require_symbols(tokenizer, config, needed, model.name)
    return tokenizer


def _require_symbols(tokenizer: PiperTokenizer, config: VitsConfig, shown: str, model: str) -> None:
    if tokenizer.largest_id >= config.vocab_size:
        known = f"{model} knows {config.vocab_size} symbols"
        raise InputError(f"{shown} gives ids up to {tokenizer.largest_id}, but {known}.")


def load_piper(
    model_path: str | Path,
    config_path: str | Path | None = None,
    *,
    name: str | None = None,
    reference: str | None = None,
    licence: str | None = None,
    speaker: int | str | None = None,
) -> Voice:
    """Read a Piper voice of any quality, with one or several speakers.

    Args:
        model_path: the .onnx file, of at most 512 MiB.
        config_path: its .json file; by default `x.onnx.json`, else `x.json`, in the same folder.
        name: of the voice; by default what an export of this library says, else the file's stem.
        reference: what was asked for; by default what the voice was exported from, else the file.
        licence: of the weights, if it is known.
        speaker: index or name; by default the one that the .json names, else the first.
    """
    model_path = expanded(model_path)
    config_path = expanded(config_path) if config_path is not None else config_next_to(model_path)
    shown = config_path.name
    if not config_path.is_file():
        what = "a Piper voice is an .onnx file with its .onnx.json in the same folder"
        raise InputError(f"{shown} cannot be read: {what}.")
    settings = read_json(config_path, max_bytes=MAX_JSON_BYTES)
    tokenizer = PiperTokenizer(settings, shown)
    rate, scales = _sampling_rate(settings, shown), _scales(settings, shown)
    graph = read_graph(model_path)
    if graph.facts:
        check_reading(graph.facts, tokenizer, model_path.name, shown)
    config = piper_config(graph, scales, rate, model_path.name)
    model = build_model(graph, config, model_path.name)
    _require_symbols(tokenizer, config, shown, model_path.name)
    speakers = _speakers(settings, config.num_speakers, shown)
    facts = graph.facts or Facts(
        "piper", model_path.stem, Origin("piper", model_path.name), speakers
    )
    if speakers != facts.speakers or rate != facts.config.get("sampling_rate", rate):
        what = f"{shown} has another sampling rate or other speakers than {model_path.name}"
        raise InputError(f"{what}: copy both files from one export.")
    if speaker is None and speakers:
        speaker = settings.get("default_speaker_id", 0)
        _check_whole(speaker, len(speakers), "default_speaker_id", shown)
    first = facts.origin
    origin = Origin("piper", reference or first.reference, first.revision, licence or first.licence)
    facts = dataclasses.replace(facts, name=name or facts.name, origin=origin)
    return facts.voice(model, tokenizer, speaker, model_path.name)


def config_next_to(model_path: Path) -> Path:
    """Return `x.onnx.json`, or, if only that exists, `x.json` or the trainer's `config.json`."""
    usual = model_path.with_name(model_path.name + ".json")
    other, trainers = model_path.with_suffix(".json"), model_path.with_name("config.json")
    if usual.exists() or other.exists() or not _is_piper_json(trainers):
        return other if other.exists() and not usual.exists() else usual
    return trainers


def _sampling_rate(settings: Mapping[str, Any], shown: str) -> int:
    audio = settings.get("audio")
    rate = audio.get("sample_rate") if isinstance(audio, dict) else None
    if type(rate) is not int or not _RATES[0] <= rate <= _RATES[1]:
        what = f"gives no audio.sample_rate from {_RATES[0]} to {_RATES[1]} Hz"
        raise InputError(f"{shown} {what}: {AS_PUBLISHED}")
    return rate


def _scales(settings: Mapping[str, Any], shown: str) -> dict[str, float]:
    """Return noise_scale, length_scale and noise_w."""
    given = settings.get("inference")
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise InputError(f"{shown} has an inference entry that is not an object: {AS_PUBLISHED}")
    scales = {key: given.get(key, default) for key, (default, _, _) in _SCALES.items()}
    for key, value in scales.items():
        _, lowest, highest = _SCALES[key]
        if type(value) not in (int, float) or not lowest <= value <= highest:  # so never NaN
            bounds = f"from {lowest:g} to {highest:g}"
            raise InputError(f"{shown} gives an inference.{key} that is not a number {bounds}.")
    return {key: float(value) for key, value in scales.items()}


def _check_whole(value: object, below: int, key: str, shown: str) -> None:
    if type(value) is not int or not 0 <= value < below:
        raise InputError(f"{shown} gives a {key} that is not a whole number below {below}.")


def _speakers(settings: Mapping[str, Any], count: int, shown: str) -> tuple[str, ...]:
    """Return the names in the order of their ids; a speaker without a name is called by its id."""
    if count == 1:
        return ()
    given = settings.get("speaker_id_map") or {}
    if not isinstance(given, dict):
        raise InputError(f"{shown} has a speaker_id_map that is not an object: {AS_PUBLISHED}")
    names = [str(speaker) for speaker in range(count)]
    for speaker, index in given.items():
        _check_whole(index, count, "speaker id", shown)
        names[index] = speaker[:_MAX_SPEAKER_NAME]
    return tuple(names)
