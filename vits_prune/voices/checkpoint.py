"""A folder in transformers' layout -> Voice.

Everything in such a folder may come from a stranger. Only JSON and safetensors are read, never a
pickle, custom code (`auto_map`) or an adapter. Shapes are compared before a number is read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import VitsConfig, VitsModel

from vits_prune.errors import InputError
from vits_prune.files import read_json
from vits_prune.voices.architecture import fold_and_cut, read_config
from vits_prune.voices.hf_text import HubTokenizer
from vits_prune.voices.manifest import require_manifest
from vits_prune.voices.voice import FreeCut, Origin, Voice, resolve_speaker

MAX_PARAMETERS = 300_000_000
"""Of the largest network that is loaded; published VITS checkpoints have up to 40 million."""
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_MAX_SHARDS = 64
_MAX_CARD_CHARACTERS = 1 << 16
_MAX_LICENCES, _MAX_LICENCE = 8, 64
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}\.safetensors")
_FLOAT_TYPES = {"F64", "F32", "F16", "BF16"}
_TRAINING = (
    *("posterior_encoder.", "discriminator.", "duration_predictor.post_"),
    *("duration_predictor.flows.1.", "text_encoder.embed_positions."),
)
"""Beginnings of names that a checkpoint may have, and speech does not need."""
_OLD_NAMES = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}


def load_checkpoint(
    folder: Path, *, name: str, origin: Origin, speaker: int | str | None = None
) -> Voice:
    """Load a folder with config.json, model.safetensors (or shards) and the tokenizer's files.

    If the origin has no licence, the folder's README.md may state one.
    """
    require_manifest(folder, folder / WEIGHTS, name)
    config = read_config(folder, VitsConfig, name=name)
    model, free_cut = load_model(folder, config, name=name)
    speakers = tuple(map(str, range(config.num_speakers))) if config.num_speakers > 1 else ()
    if origin.licence is None:
        origin = dataclasses.replace(origin, licence=read_licence(folder / "README.md"))
    return Voice(
        model=model,
        tokenizer=HubTokenizer.load(folder, vocab_size=config.vocab_size, name=name),
        sampling_rate=config.sampling_rate,
        name=name,
        origin=origin,
        speaker=resolve_speaker(speaker, speakers, name),
        speakers=speakers,
        free_cut=free_cut,
    )


def load_model(folder: Path, config: VitsConfig, *, name: str) -> tuple[VitsModel, FreeCut]:
    """Return the network of a configuration with the weights in a folder, in fp32, folded and cut.

    `from_pretrained` would follow an adapter_config.json and draw numbers for missing tensors.
    """
    with torch.device("meta"):
        model = VitsModel(config)
    idle: tuple[str, ...] = ("posterior_encoder.",)
    if config.use_stochastic_duration_prediction:
        idle += ("duration_predictor.post_", "duration_predictor.flows.1.")
    state = model.state_dict()
    wanted = {key: tensor.shape for key, tensor in state.items() if not key.startswith(idle)}
    files = weight_files(folder, name)
    tensors = read_tensors(files, wanted, name)
    _check_others(files, wanted, name)
    model.load_state_dict(tensors, strict=False, assign=True)
    free_cut = fold_and_cut(model)
    require_finite(model, name)
    return model, free_cut


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return model.safetensors or the shards of its index; InputError if one is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        if (folder / "pytorch_model.bin").is_file():
            raise no_safetensors(name)
        raise InputError(f"{name} has no weights: {WEIGHTS} is missing.")
    there = {path.name for path in folder.iterdir() if path.is_file()}
    shards = shard_names(read_json(folder / WEIGHTS_INDEX, name), name, there)
    return [folder / shard for shard in shards]


def no_safetensors(name: str) -> InputError:
    """Return the refusal of a checkpoint that has only a pickle, which could run code."""
    how = "open it with transformers where you trust it and save it with save_pretrained"
    return InputError(f"{name} has no {WEIGHTS}: {how}.")


def shard_names(index: dict[str, Any], name: str, there: Container[str]) -> list[str]:
    """Return the safetensors files that an index names, each once; InputError if one is missing."""
    weight_map = index.get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    sound = all(isinstance(shard, str) and _SHARD.fullmatch(shard) for shard in names)
    shards = sorted(set(names)) if sound else []
    if not 1 <= len(shards) <= _MAX_SHARDS:
        raise InputError(f"{name} has an unusable {WEIGHTS_INDEX}: download or save it again.")
    if lost := [shard for shard in shards if shard not in there]:
        what = f"{name} lacks {lost[0]}, a part of its weights"
        raise InputError(f"{what}: download or save it again, or choose another revision.")
    return shards


def read_tensors(
    files: list[Path], wanted: Mapping[str, torch.Size], name: str
) -> dict[str, torch.Tensor]:
    """Return the tensors {name in today's VitsModel: shape} of safetensors files, as fp32.

    InputError if a file is damaged or a tensor missing, of another shape, or not of floats.
    """
    parameters = sum(shape.numel() for shape in wanted.values())
    if parameters > MAX_PARAMETERS:
        millions = f"{parameters / 1e6:.0f} million parameters"
        raise InputError(f"{name} asks for {millions}, too many: choose a smaller voice.")
    tensors = {}
    try:
        found = _places(files, wanted, name)
        for file in files:
            with safe_open(file, "pt") as handle:
                for current, (home, key) in found.items():
                    if home == file:  # a copy, because the file is mapped and may change later
                        tensors[current] = handle.get_tensor(key).to(torch.float32, copy=True)
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} has damaged weights ({WEIGHTS} cannot be read): download or save them again."
        ) from error
    return tensors


def _places(
    files: list[Path], wanted: Mapping[str, torch.Size], name: str
) -> dict[str, tuple[Path, str]]:
    """Return the file and the key there of each wanted tensor, all of them checked."""
    found: dict[str, tuple[Path, str]] = {}
    keys: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a dict
                current = _current_name(key)
                keys.add(current)
                if current not in wanted:
                    continue
                part = handle.get_slice(key)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if shape != tuple(wanted[current]):
                    what = f"{current} is {shape}, not {tuple(wanted[current])}"
                    raise InputError(f"{name} has weights that do not fit its config.json: {what}.")
                if dtype not in _FLOAT_TYPES:
                    raise InputError(f"{name} stores {current} as {dtype}: save it as float32.")
                found[current] = (file, key)
    if missing := [key for key in wanted if key not in found]:
        if f"{missing[0]}_orig" in keys:
            how = 'make it permanent with torch.nn.utils.prune.remove(layer, "weight")'
            raise InputError(f"{name} keeps a mask beside {missing[0]}: {how}, and save again.")
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{name} lacks the weights {missing[0]}{more} of its config.json.")
    return found


def _check_others(files: list[Path], wanted: Container[str], name: str) -> None:
    """Raise InputError if the files have weights that would change what the voice says."""
    for file in files:
        with safe_open(file, "pt") as handle:
            keys = map(_current_name, handle.keys())
        spare = [key for key in keys if key not in wanted and not key.startswith(_TRAINING)]
        if spare:
            what = f"{spare[0][:80]!r}, weights that VITS does not use"
            raise InputError(f"{name} has {what}: choose a plain VITS checkpoint.")


def _current_name(key: str) -> str:
    """Return the name in today's VitsModel of a tensor in a file."""
    key = key.removeprefix("vits.")
    for old, new in _OLD_NAMES.items():
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


def require_finite(model: nn.Module, name: str) -> None:
    """Raise InputError if a parameter of a network is NaN or infinite."""
    for key, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} has damaged weights: {key} contains NaN or infinity.")


def read_licence(card: Path) -> str | None:
    """Return the licence in the front matter of a model card, as `licence_words` writes it."""
    import yaml

    try:
        with open(card, encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_CARD_CHARACTERS)
    except OSError:
        return None
    found = re.match(r"\ufeff?---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    front = found[1] if found else ""
    try:
        values = yaml.load(front, yaml.BaseLoader)  # strings, lists and tables: nothing is made
    except (ValueError, RecursionError, yaml.YAMLError):
        # Flawed elsewhere, perhaps: what the licence forbids must not be lost with that.
        stated = re.search(r"^license:[ \t]*[\"']?([A-Za-z0-9][\w.+-]{0,63})", front, re.MULTILINE)
        return stated[1] if stated else None
    return licence_words(values) if isinstance(values, dict) else None


def licence_words(card: Mapping[str, Any]) -> str | None:
    """Return what a card states under `license`, several as "apache-2.0, cc-by-nc-4.0", or None.

    What is too long is "other": a part of it could leave out what the licence forbids. The card's
    `license_name` says what "other" is.
    """
    stated, named = card.get("license"), card.get("license_name")
    every: list[Any] = stated if isinstance(stated, list) else [stated]
    every = [one for one in every if one not in (None, "", "~", "null")]
    if len(every) > _MAX_LICENCES or not all(isinstance(one, str) for one in every):
        return "other"
    words = ", ".join(dict.fromkeys(" ".join(one.split()) for one in every))
    if words == "other" and isinstance(named, str) and named.strip():
        words = " ".join(named.split())
    return "other" if len(words) > _MAX_LICENCE else words or None
