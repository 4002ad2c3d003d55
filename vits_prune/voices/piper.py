"""Piper voices: an .onnx file and its .json become a Voice. Either may come from a stranger: nothing in them is run, all is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vits_prune.errors import InputError
from vits_prune.files import read_json
from vits_prune.voices.piper_text import MAX_JSON_BYTES, PiperTokenizer
from vits_prune.voices.voice import FreeCut, Origin, Voice, resolve_speaker

__all__ = ["PiperTokenizer", "load_piper"]

_RATES = (4_000, 192_000)
_MAX_SPEAKER_NAME = 200
# What Piper's runtime takes where the file says nothing, with the bounds that keep speech finite and of a bearable length.
_SCALES = {
    "noise_scale": (0.667, 0.0, 100.0),
    "length_scale": (1.0, 1e-3, 1e3),
    "noise_w": (0.8, 0.0, 100.0),
}


def load_piper(
    model_path: str | Path,
    config_path: str | Path | None = None,
    *,
    name: str | None = None,
    reference: str | None = None,
    licence: str | None = None,
    speaker: int | str | None = None,
) -> Voice:
    """Read a Piper voice of any quality, with one or several speakers. Its export has already left out what never runs at inference.

    Args:
        model_path: the .onnx file.
        config_path: its .json file; by default `x.onnx.json`, else `x.json`, beside it.
        name: what to call the voice, by default what an export of this library says, else the file's name without its ending.
        reference: what was asked for, by default what the voice was exported from, else the file's name.
        licence: of the weights, where it is known.
        speaker: who speaks, by index or name, by default the one that the .json names, else the first.

    Raises:
        InputError: a file is missing, larger than 512 MiB (.json: 4 MiB), broken, or not that of a Piper VITS voice; the
            .json reads text otherwise than the one that was exported with the file; or the voice has no such speaker.
    """
    from vits_prune.voices.onnx_facts import check_reading
    from vits_prune.voices.piper_graph import read_graph
    from vits_prune.voices.piper_model import build_model, piper_config

    model_path = Path(model_path)
    config_path = Path(config_path) if config_path is not None else config_beside(model_path)
    if not config_path.is_file():
        raise InputError(
            f"{config_path.name} cannot be read: a Piper voice is an .onnx file with its .onnx.json "
            "in the same folder."
        )
    settings = read_json(config_path, max_bytes=MAX_JSON_BYTES)
    tokenizer = PiperTokenizer(settings, config_path.name)
    sampling_rate, scales = (
        _sampling_rate(settings, config_path.name),
        _scales(settings, config_path.name),
    )
    graph = read_graph(str(model_path), model_path.name)
    facts = graph.facts
    if facts:
        check_reading(facts, tokenizer, model_path.name, config_path.name)
    model = build_model(
        graph, piper_config(graph, scales, sampling_rate, model_path.name), model_path.name
    )
    if tokenizer.largest_id >= model.config.vocab_size:
        raise InputError(
            f"{config_path.name} gives ids up to {tokenizer.largest_id}, but {model_path.name} knows {model.config.vocab_size} symbols: "
            "take both files from the same voice."
        )
    name = name or (facts.name if facts else model_path.stem)
    speakers = _speakers(settings, model.config.num_speakers, config_path.name)
    if facts and (sampling_rate != facts.config.get("sampling_rate") or speakers != facts.speakers):
        raise InputError(
            f"{config_path.name} has another sampling rate or other speakers than when {model_path.name} was exported: copy both files "
            "again from the same export, or export the voice again."
        )
    if speaker is None and speakers:
        speaker = _whole(
            settings.get("default_speaker_id", 0),
            len(speakers),
            "default_speaker_id",
            config_path.name,
        )
    return Voice(
        model=model,
        tokenizer=tokenizer,
        sampling_rate=sampling_rate,
        name=name,
        origin=Origin(
            family="piper",
            reference=reference or (facts.origin.reference if facts else model_path.name),
            revision=facts.origin.revision if facts else None,
            licence=licence or (facts.origin.licence if facts else None),
        ),
        speaker=resolve_speaker(speaker, speakers, name),
        speakers=speakers,
        free_cut=facts.free_cut if facts else FreeCut(),
        recipe=facts.recipe if facts else MappingProxyType({}),
    )


def config_beside(model_path: Path) -> Path:
    """`x.onnx.json`, or `x.json` where only that exists."""
    usual = model_path.with_name(model_path.name + ".json")
    other = model_path.with_suffix(".json")
    return other if other.exists() and not usual.exists() else usual


def _sampling_rate(settings: Mapping[str, Any], shown: str) -> int:
    audio = settings.get("audio")
    rate = audio.get("sample_rate") if isinstance(audio, dict) else None
    if type(rate) is not int or not _RATES[0] <= rate <= _RATES[1]:
        raise InputError(
            f"{shown} gives no audio.sample_rate from {_RATES[0]} to {_RATES[1]} Hz: give the JSON file as it was published."
        )
    return rate


def _scales(settings: Mapping[str, Any], shown: str) -> tuple[float, float, float]:
    """noise_scale, length_scale and noise_w."""
    inference = settings.get("inference", {})
    if not isinstance(inference, dict):
        raise InputError(
            f"{shown} has an inference entry that is not an object: give the JSON file as it was published."
        )
    found = []
    for key, (default, lowest, highest) in _SCALES.items():
        value = inference.get(key, default)
        if (
            type(value) not in (int, float) or not lowest <= value <= highest
        ):  # so neither NaN nor infinite
            raise InputError(
                f"{shown} gives an inference.{key} that is not a number from {lowest:g} to {highest:g}: correct it."
            )
        found.append(float(value))
    return found[0], found[1], found[2]


def _whole(value: object, below: int, key: str, shown: str) -> int:
    if type(value) is not int or not 0 <= value < below:
        raise InputError(
            f"{shown} gives a {key} that is not a whole number below {below}: take both files from the same voice."
        )
    return value


def _speakers(settings: Mapping[str, Any], count: int, shown: str) -> tuple[str, ...]:
    """Names in the order of their ids; a speaker without a name is called by its id."""
    if count == 1:
        return ()
    given = settings.get("speaker_id_map") or {}
    if not isinstance(given, dict):
        raise InputError(
            f"{shown} has a speaker_id_map that is not an object: give the JSON file as it was published."
        )
    names = [str(speaker) for speaker in range(count)]
    for speaker, index in given.items():
        names[_whole(index, count, "speaker id", shown)] = speaker[:_MAX_SPEAKER_NAME]
    return tuple(names)
