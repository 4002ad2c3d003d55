"""A folder in transformers' layout -> Voice.

Everything in such a folder may come from a stranger. Only JSON and safetensors are read, never a pickle, custom code (`auto_map`) or an
adapter; the configuration is bounded before a network is made from it (hf_config.py), and the shapes in the file are compared with it
before a number is read.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import VitsConfig, VitsModel

from vits_prune.errors import InputError
from vits_prune.files import read_json
from vits_prune.voices.architecture import fold_and_cut
from vits_prune.voices.front_matter import read_licence
from vits_prune.voices.hf_config import read_config
from vits_prune.voices.hf_text import HubTokenizer
from vits_prune.voices.manifest import require_manifest
from vits_prune.voices.voice import FreeCut, Origin, Voice, resolve_speaker

MAX_PARAMETERS = 300_000_000
"""Parameters of the largest network that is loaded; the largest published VITS checkpoints have about 40 million."""
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_MAX_SHARDS = 64
_FLOAT_TYPES = {"F64", "F32", "F16", "BF16"}
_NEVER_RUN = ("posterior_encoder.", "duration_predictor.post_", "duration_predictor.flows.1.")


def load_checkpoint(
    folder: Path, *, name: str, origin: Origin, speaker: int | str | None = None
) -> Voice:
    """The voice in a folder in transformers' layout: config.json, model.safetensors (or its shards), vocab.json, tokenizer_config.json.

    Args:
        folder: where the files are; nothing is written there.
        name: what the voice is called in messages and tables.
        origin: where it came from; a licence that is not stated is looked for in the folder's README.md.
        speaker: index or "0", "1", ... for a voice with several; None for the first.

    Raises:
        InputError: it is not VITS, is damaged or incomplete, exceeds the bounds, or has no such speaker.
    """
    folder = Path(folder)
    require_manifest(folder, folder / WEIGHTS, name)
    config = read_config(folder, VitsConfig, name=name)
    model, free_cut = load_model(folder, config, name=name)
    tokenizer = HubTokenizer.load(folder, vocab_size=config.vocab_size, name=name)
    speakers = (
        tuple(str(index) for index in range(config.num_speakers)) if config.num_speakers > 1 else ()
    )
    if origin.licence is None:
        origin = dataclasses.replace(origin, licence=read_licence(folder / "README.md"))
    return Voice(
        model=model,
        tokenizer=tokenizer,
        sampling_rate=config.sampling_rate,
        name=name,
        origin=origin,
        speaker=resolve_speaker(speaker, speakers, name),
        speakers=speakers,
        free_cut=free_cut,
    )


def load_model(folder: Path, config: VitsConfig, *, name: str) -> tuple[VitsModel, FreeCut]:
    """The network that `config` describes with the weights in a folder, in fp32, weight norm folded, less what never runs.

    The weights are filled in here and not by `from_pretrained`: it would also follow an adapter_config.json, draw random numbers for
    tensors that are missing, and allocate the training half.

    Raises:
        InputError: the weights are missing, damaged, not finite, or do not fit the configuration.
    """
    files = weight_files(folder, name)
    with torch.device("meta"):
        model = VitsModel(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MAX_PARAMETERS:
        raise InputError(
            f"{name} asks for {parameters / 1e6:.0f} million parameters, more than the {MAX_PARAMETERS // 1_000_000} million accepted."
        )
    runs = {
        key: tensor.shape
        for key, tensor in model.state_dict().items()
        if not _never_runs(key, config)
    }
    try:
        tensors = read_tensors(files, runs, name)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{name} has damaged weights ({WEIGHTS} cannot be read): download or save them again."
        ) from error
    model.load_state_dict(tensors, strict=False, assign=True)
    free_cut = fold_and_cut(model)
    require_finite(model, name)
    return model, free_cut


def _never_runs(key: str, config: VitsConfig) -> bool:
    return key.startswith(
        _NEVER_RUN if config.use_stochastic_duration_prediction else _NEVER_RUN[:1]
    )


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that hold the weights of a folder: model.safetensors, or the shards that its index names.

    Raises:
        InputError: there are none, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        if (folder / "pytorch_model.bin").is_file():
            raise no_safetensors(name)
        raise InputError(f"{name} has no weights: {WEIGHTS} is missing.")
    files = [folder / shard for shard in shard_names(read_json(folder / WEIGHTS_INDEX, name), name)]
    for file in files:
        if not file.is_file():
            raise InputError(
                f"{name} lacks {file.name}, a part of its weights: download or save it again."
            )
    return files


def no_safetensors(name: str) -> InputError:
    """The refusal of a checkpoint that has only a pickle, which could run code."""
    return InputError(
        f"{name} has no {WEIGHTS}: open it with transformers where you trust it and write it again with "
        "model.save_pretrained(folder), which makes safetensors."
    )


def shard_names(index: dict[str, Any], name: str) -> list[str]:
    """The files that an index names, each once.

    Raises:
        InputError: it names none, too many, or anything but plain safetensors files.
    """
    weight_map = index.get("weight_map")
    names = (
        set(weight_map.values())
        if isinstance(weight_map, dict) and all(isinstance(v, str) for v in weight_map.values())
        else set()
    )
    if not 1 <= len(names) <= _MAX_SHARDS or not all(
        re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}\.safetensors", n) for n in names
    ):
        raise InputError(
            f"{name} has a {WEIGHTS_INDEX} that cannot be used: download or save it again."
        )
    return sorted(names)


def _current_name(key: str) -> str:
    """The name in today's VitsModel of a tensor in a file, older spellings of weight norm included."""
    key = key.removeprefix("vits.")
    for old, new in (
        (".weight_g", ".parametrizations.weight.original0"),
        (".weight_v", ".parametrizations.weight.original1"),
    ):
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


def read_tensors(
    files: list[Path], wanted: dict[str, torch.Size], name: str
) -> dict[str, torch.Tensor]:
    """The wanted tensors of safetensors files as fp32, after all their shapes were compared.

    Args:
        files: the shards, in any order.
        wanted: name in today's VitsModel -> shape; other tensors in the files are left alone.
        name: of the voice, for messages.

    Raises:
        InputError: one is missing, has another shape, or is not stored as floating-point numbers.
        SafetensorError, OSError, ValueError, RuntimeError: a file is damaged.
    """
    found: dict[str, tuple[Path, str]] = {}
    for file in files:
        with safe_open(file, "pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a dict
                current = _current_name(key)
                if current not in wanted:
                    continue
                part = handle.get_slice(key)
                shape = tuple(part.get_shape())
                if shape != tuple(wanted[current]):
                    raise InputError(
                        f"{name} has weights that do not fit its config.json ({current} is {shape}, not {tuple(wanted[current])}): "
                        "check that both come from the same checkpoint."
                    )
                if part.get_dtype() not in _FLOAT_TYPES:
                    raise InputError(
                        f"{name} stores {current} as {part.get_dtype()}: save it as float32 or float16."
                    )
                found[current] = (file, key)
    missing = [key for key in wanted if key not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{name} lacks the weights {missing[0]}{more}: check that config.json and the weights come from the same checkpoint."
        )
    tensors = {}
    for file in files:
        with safe_open(file, "pt") as handle:
            for current, (home, key) in found.items():
                if (
                    home == file
                ):  # a copy: safetensors maps the file, which may change under a voice that is in use
                    tensors[current] = handle.get_tensor(key).to(torch.float32, copy=True)
    return tensors


def require_finite(model: nn.Module, name: str) -> None:
    """Whether all parameters of a network are numbers.

    Raises:
        InputError: one is NaN or infinite.
    """
    for key, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} has damaged weights: {key} contains NaN or infinity.")
