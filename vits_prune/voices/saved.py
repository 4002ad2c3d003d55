"""A Voice as a folder: safetensors, configuration, tokenizer and the recipe.

A voice of the Hugging Face family is written in transformers' own layout, so that plain
`VitsModel.from_pretrained` opens it with every key matched: weight norm is written as the pair that
multiplies to the folded weight, and what never runs at inference as the smallest stand-in, filled
with zeros. Piper's voices, and those with narrow residual blocks, are written as they are.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import VitsConfig, VitsModel

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import expanded, read_json, replaced_folder, shown_name, write_json
from vits_prune.voices import manifest
from vits_prune.voices.architecture import (
    NarrowVitsConfig,
    PiperVitsConfig,
    empty_model,
    in_plain_layout,
    read_config,
)
from vits_prune.voices.checkpoint import load_checkpoint, require_finite
from vits_prune.voices.hf_text import HubTokenizer
from vits_prune.voices.piper_text import PiperTokenizer
from vits_prune.voices.sparse_file import decode, encode
from vits_prune.voices.voice import Origin, Voice, without_masks

_MAX_SPARSE_BYTES = 2 << 30


def save_voice(
    voice: Voice,
    folder: str | Path,
    form: Literal["dense", "sparse"] = "dense",
    precision: Literal["fp32", "fp16"] = "fp32",
) -> Path:
    """Write a voice so that `load_voice(folder)` speaks the same samples (fp16 rounds the weights).

    Args:
        voice: what to save.
        folder: appears whole or not at all; one that an earlier save made is replaced.
        form: "dense" is plain safetensors, which `VitsModel.from_pretrained` opens for a voice of
            that family; "sparse" leaves the zeros out and is for `load_voice`.
        precision: of the stored weights.

    Raises:
        InputError: the folder holds something that no save wrote, the disk does not take it, there
            is no such form or precision, or a weight is not finite or too large for fp16.
    """
    target = expanded(folder)
    choices = {"form": (form, manifest.WEIGHT_FILES), "precision": (precision, ("fp32", "fp16"))}
    for what, (given, known) in choices.items():
        if given not in known:
            raise InputError(f"A saved voice has the {what} {' or '.join(known)}: choose one.")
    check_save_place(target)
    with written_whole(target, manifest.SAVED_FILE) as new:
        _write(without_masks(voice), new, form, precision)
    return target


def check_save_place(folder: Path) -> None:
    """Raise InputError if a voice cannot be saved to a folder without the loss of other files."""
    try:
        _check_place(folder, manifest.SAVED_FILE)
        there = folder.iterdir() if (folder / manifest.SAVED_FILE).is_file() else ()
        others = {path.name for path in there} - manifest.files_of_save(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): name a new one.") from error
    if others:
        raise InputError(
            f"{folder} holds {min(others)[:80]!r}, which was not saved with the voice and would be "
            "removed: give the name of a new folder, or take it out."
        )


def _check_place(target: Path, kind: str) -> None:
    wrong = ""
    if target.is_symlink():
        wrong = "is a link: give the folder that it leads to, or a new one."
    elif target.exists() and target.resolve() == Path.cwd():
        wrong = "is the folder in which this runs: give the name of a new folder in it."
    elif target.exists() and not (
        target.is_dir() and ((target / kind).is_file() or not any(target.iterdir()))
    ):
        wrong = (
            "exists and is not a saved voice: give a folder that is new, empty or was saved before."
        )
    if wrong:
        raise InputError(f"{target} {wrong}")


@contextlib.contextmanager
def written_whole(target: Path, kind: str) -> Iterator[Path]:
    """Yield a new folder to write to, which takes the place of `target` when the block ends well.

    InputError unless `target` is new, empty, or a folder with the file `kind`.
    """
    try:
        _check_place(target, kind)
        with replaced_folder(target) as new:
            yield new
    except (OSError, SafetensorError) as error:  # how safetensors reports a full disk
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise InputError(f"The voice could not be written to {target}: {reason}.") from error


def _write(voice: Voice, folder: Path, form: str, precision: str) -> None:
    config = manifest.config_of(voice)
    state = voice.model.state_dict()
    if other := set(state) ^ set(empty_model(config).state_dict()):
        what = f"Layers were added to {voice.name} or taken out of it ({min(other)[:80]})"
        raise InputError(f"{what}: bring it back into the form that load_voice gave it.")
    tensors = {name: tensor.float().contiguous().cpu() for name, tensor in state.items()}
    require_finite(voice.model, voice.name)
    half, whole = precision == "fp16", tensors
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            what = "weights beyond 65,504, more than fp16 holds"
            raise InputError(f"{voice.name} has {what}: save it with precision fp32.")
    if form == "dense" and in_plain_layout(config):
        config, tensors = _transformers_layout(config, tensors)
    config.architectures = [type(voice.model).__name__]
    config.dtype = "float32"  # to compute in, whatever the file stores
    config.save_pretrained(folder)
    weights = folder / manifest.WEIGHT_FILES[form]
    if form == "dense":
        save_file(tensors, weights, metadata={"format": "pt", **manifest.MARK})
        _sort_metadata(weights)
    else:
        weights.write_bytes(encode(whole, half=half))
    voice.tokenizer.save(str(folder))
    manifest.write_manifest(folder, manifest.describe(voice, form, precision))
    if steps := voice.recipe.get("pruned"):
        write_json(folder / "prune_spec.json", steps[-1])
    if healed := voice.recipe.get("healed"):
        write_json(folder / "healing.json", healed)


def _sort_metadata(weights: Path) -> None:
    """Sort the metadata of a safetensors file in place: safetensors writes it in random order."""
    entries = {"format": "pt", **manifest.MARK}, {**manifest.MARK, "format": "pt"}
    ours, turned = (json.dumps(one, separators=(",", ":")).encode() for one in entries)
    with weights.open("r+b") as file:
        start = file.read(8 + len(b'{"__metadata__":') + len(turned))
        if start.endswith(turned):
            file.seek(-len(turned), 1)
            file.write(ours)


def _transformers_layout(
    config: VitsConfig, tensors: dict[str, torch.Tensor]
) -> tuple[VitsConfig, dict[str, torch.Tensor]]:
    """Return configuration and tensors that plain VitsModel loads with every key matched."""
    config.posterior_encoder_num_wavenet_layers = 1 if config.speaker_embedding_size else 0
    config.spectrogram_bins = 1
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in VitsModel(config).state_dict().items()}
    written = {}
    for name, shape in wanted.items():
        stem, _, which = name.partition(".parametrizations.weight.")
        if not which:
            written[name] = tensors[name] if name in tensors else torch.zeros(shape)
        elif f"{stem}.weight" in tensors:  # magnitudes stay float32
            pair = _weight_norm_pair(tensors[f"{stem}.weight"])
            written[name] = pair[which == "original1"]
        else:
            written[name] = torch.zeros(shape) if which == "original0" else torch.ones(shape)
    return config, written


def _weight_norm_pair(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return magnitude g [out, 1, 1] and direction v [out, in, k] with g v / ||v|| = weight.

    v is the weight itself; a row of zeros, which has no direction, gets ones and g = 0.
    """
    magnitude = torch.norm_except_dim(weight.float(), 2, 0)
    return magnitude, torch.where(magnitude == 0, torch.ones_like(weight), weight)


def load_saved(folder: Path, speaker: int | str | None = None) -> Voice:
    """Return the voice that `save_voice` wrote, the same to the bit, speaker included."""
    facts = manifest.read_manifest(folder)
    if facts is None:
        raise InputError(f"{folder.name} is not a saved voice: it has no {manifest.SAVED_FILE}.")
    weights = folder / manifest.WEIGHT_FILES[facts.form]
    if not weights.is_file():
        raise DamagedFileError(f"{shown_name(folder)} is damaged: it has no {weights.name}.")
    manifest.check_files(folder, facts)
    if facts.origin.family == "piper":
        config: VitsConfig = read_config(folder, PiperVitsConfig)
        tokenizer: Any = PiperTokenizer.load(folder)
        if tokenizer.largest_id >= config.vocab_size:  # ids that the model has no row for
            raise _unfitting(folder)
        model = _load_own_layout(weights, config)
    else:
        kind = read_json(folder / "config.json", shown_name(folder)).get("model_type")
        narrow = kind == NarrowVitsConfig.model_type
        if narrow or facts.form == "sparse":
            config = read_config(folder, NarrowVitsConfig if narrow else VitsConfig)
            tokenizer = HubTokenizer.load(folder, vocab_size=config.vocab_size, name=facts.name)
            model = _load_own_layout(weights, config)
        else:
            model, tokenizer = _load_transformers_layout(weights, facts.name)
    return facts.voice(model, tokenizer, speaker, shown_name(folder))


def _unfitting(folder: Path) -> DamagedFileError:
    what = "its weights, config.json and tokenizer do not fit together"
    return DamagedFileError(f"{shown_name(folder)} is damaged: {what}. Save the voice again.")


def _load_own_layout(weights: Path, config: VitsConfig) -> VitsModel:
    """Return the model whose tensors were written as they are."""
    model = empty_model(config)
    dense = weights.name == manifest.WEIGHT_FILES["dense"]
    try:
        if dense:
            stored = load_file(weights)
        else:
            if weights.stat().st_size > _MAX_SPARSE_BYTES:
                raise ValueError("larger than any voice")
            most = sum(tensor.numel() for tensor in model.state_dict().values())
            stored = decode(weights.read_bytes(), most)
        # Copies: safetensors maps the file, which may change under a voice that is in use.
        tensors = {name: one.to(torch.float32, copy=dense) for name, one in stored.items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise ValueError("a weight is not finite")
        model.load_state_dict(tensors, strict=True, assign=True)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # torch's: RuntimeError
        raise _unfitting(weights.parent) from error
    return model.requires_grad_(False).eval()


def _load_transformers_layout(weights: Path, name: str) -> tuple[VitsModel, Any]:
    origin = Origin("hugging-face", weights.parent.name)
    voice = load_checkpoint(weights.parent, name=name, origin=origin)
    # Loading multiplies weight norm out again, which may round; the directions are exact.
    exact = {}
    tensors = load_file(weights)
    names = dict(voice.model.named_parameters())
    for key, magnitude in tensors.items():
        stem, _, which = key.partition(".parametrizations.weight.")
        if which == "original0" and f"{stem}.weight" in names:
            direction = tensors[f"{stem}.parametrizations.weight.original1"]
            weight = torch.where(magnitude == 0, torch.zeros_like(direction), direction).float()
            # They differ if another program trained the voice and saved it over.
            if torch.allclose(weight, names[f"{stem}.weight"], rtol=1e-4, atol=1e-8):
                exact[f"{stem}.weight"] = weight
    return voice.with_weights(exact).model, voice.tokenizer
