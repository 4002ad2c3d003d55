"""A Voice as a folder: safetensors, configuration, tokenizer and the recipe of what was done to it.

A voice of the Hugging Face family is written in transformers' own layout, so plain `VitsModel.from_pretrained` opens it with every key
matched: weight norm is written as the pair that multiplies to the folded weight, and for what never runs at inference the configuration
asks for the smallest stand-in, filled with zeros. Other voices (Piper's, and those narrower inside their residual blocks than VitsConfig
can say) are written as they are, with a configuration of their own kind.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import VitsConfig, VitsModel

from vits_prune.errors import InputError
from vits_prune.voices.architecture import NarrowVitsConfig, PiperVitsConfig, empty_model, in_plain_layout
from vits_prune.voices.voice import FreeCut, Origin, Voice, resolve_speaker

MANIFEST = "vits_prune.json"
FORMAT_VERSION = 2
"""The newest format. Version 2 is written only for voices that readers of version 1 cannot open: narrow residual blocks."""
_MAX_MANIFEST_BYTES = 1 << 20


def save_voice(voice: Voice, folder: str | Path) -> Path:
    """Write a voice so that `load_voice(folder)` speaks the same samples.

    The folder appears whole or not at all: it is written beside its place, then renamed. A folder that an earlier save made is replaced.

    Raises:
        InputError: something that is not a saved voice has the name already, or the disk does not take it.
    """
    target = Path(folder)
    try:
        if target.exists() and not _replaceable(target):
            raise InputError(f"{target} exists and is not a saved voice: give the name of a folder that is new, empty or was saved before.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _written_beside(target) as beside:
            _write(voice, beside)
    except (OSError, SafetensorError) as error:  # safetensors tells of a full disk in its own way
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise InputError(f"The voice could not be written to {target}: {reason}.") from error
    return target


def _replaceable(target: Path) -> bool:
    return target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))


@contextlib.contextmanager
def _written_beside(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends well, and is gone when it does not."""
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        os.chmod(beside, 0o755)
        yield beside
        if target.exists():
            _exchange(beside, target)
        else:
            os.replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _exchange(beside: Path, target: Path) -> None:
    """Put a folder in the place of another, which is removed; where that fails the other stays."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        os.replace(target, old / "old")
        try:
            os.replace(beside, target)
        except OSError:
            os.replace(old / "old", target)
            raise
    except OSError:
        with contextlib.suppress(OSError):
            old.rmdir()  # only where it is empty: never with the other folder still in it
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(voice: Voice, folder: Path) -> None:
    """The files of a saved voice."""
    config = copy.deepcopy(voice.model.config)
    for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
        setattr(config, name, float(getattr(voice.model, name)))
    tensors = {name: tensor.contiguous().cpu() for name, tensor in voice.model.state_dict().items()}
    if in_plain_layout(config):
        config, tensors = _transformers_layout(config, tensors)
    config.architectures = [type(voice.model).__name__]
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    voice.tokenizer.save(str(folder))
    (folder / MANIFEST).write_text(json.dumps(_manifest(voice), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    steps = voice.recipe.get("pruned", ())
    if steps:
        (folder / "prune_spec.json").write_text(json.dumps(steps[-1], indent=2) + "\n", encoding="utf-8")


def _manifest(voice: Voice) -> dict[str, Any]:
    origin = voice.origin
    return {
        "format_version": 2 if getattr(voice.model.config, "resblock_inner_channels", None) else 1,
        "name": voice.name,
        "family": origin.family,
        "origin": {"reference": origin.reference, "revision": origin.revision, "licence": origin.licence},
        "speakers": list(voice.speakers),
        "speaker": voice.speaker,
        "free_cut": {"parameters": voice.free_cut.parameters, "bytes": voice.free_cut.bytes},
        "recipe": dict(voice.recipe),
    }


def _transformers_layout(config: VitsConfig, tensors: dict[str, torch.Tensor]) -> tuple[VitsConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors that plain VitsModel loads with every key matched."""
    config.posterior_encoder_num_wavenet_layers = 1 if config.speaker_embedding_size else 0
    config.spectrogram_bins = 1
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in VitsModel(config).state_dict().items()}
    written = {}
    for name, shape in wanted.items():
        stem, _, which = name.partition(".parametrizations.weight.")
        if not which:
            written[name] = tensors[name] if name in tensors else torch.zeros(shape)
        elif f"{stem}.weight" in tensors:
            written[name] = _weight_norm_pair(tensors[f"{stem}.weight"])[which == "original1"]
        else:
            written[name] = torch.zeros(shape) if which == "original0" else torch.ones(shape)
    return config, written


def _weight_norm_pair(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitude g [out, 1, 1] and direction v [out, in, k] with g v / ||v|| = weight.

    v is the weight itself and g its norm. A row of zeros has no direction: it gets ones and a magnitude of zero, since 0/0 is no number.
    """
    magnitude = torch.norm_except_dim(weight, 2, 0)
    empty = magnitude == 0
    return magnitude, torch.where(empty, torch.ones_like(weight), weight)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that `save_voice` wrote, None where there is none.

    Raises:
        InputError: there is one that cannot be used.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    broken = InputError(f"{folder.name} is damaged: its {MANIFEST} cannot be read. Save the voice again.")
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise broken
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise InputError(f"{folder.name} was saved by a newer vits_prune (format {version}): update vits_prune to open it.")
        valid = version in (1, FORMAT_VERSION) and manifest["family"] in ("hugging-face", "piper") and _is_recipe(manifest["recipe"])
        [str(value) for value in (manifest["name"], manifest["origin"]["reference"], *manifest["speakers"])]
        [int(manifest["free_cut"][key]) for key in ("parameters", "bytes")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise error if isinstance(error, InputError) else broken from error
    if not valid:
        raise broken
    return manifest


def _is_recipe(recipe: Any) -> bool:
    steps = recipe.get("pruned", []) if isinstance(recipe, dict) else None
    return isinstance(steps, list) and all(
        isinstance(step, dict) and isinstance(parts := step.get("parts", []), list) and all(isinstance(part, str) for part in parts)
        for step in steps
    )


def load_saved(folder: Path, speaker: int | str | None = None) -> Voice:
    """The voice that `save_voice` wrote, the same to the bit; without a speaker given, the one it had when it was saved.

    Raises:
        InputError: damaged, or written by a newer version, or it has no such speaker.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder.name} was not written by vits_prune: it has no {MANIFEST}.")
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder.name} is damaged: it has no model.safetensors. Save the voice again.")
    origin = Origin(
        family=manifest["family"],
        reference=str(manifest["origin"]["reference"])[:200],
        revision=_short(manifest["origin"].get("revision")),
        licence=_short(manifest["origin"].get("licence")),
    )
    model, tokenizer = _loader(folder, origin.family)(folder, manifest)
    speakers = tuple(str(name) for name in manifest["speakers"])
    if len(speakers) != (model.config.num_speakers if model.config.num_speakers > 1 else 0):
        raise InputError(f"{folder.name} is damaged: its {MANIFEST} names other speakers than its config.json. Save the voice again.")
    return Voice(
        model=model,
        tokenizer=tokenizer,
        sampling_rate=model.config.sampling_rate,
        name=str(manifest["name"])[:200],
        origin=origin,
        speaker=resolve_speaker(manifest.get("speaker") if speaker is None else speaker, speakers, str(manifest["name"])),
        speakers=speakers,
        free_cut=FreeCut(int(manifest["free_cut"]["parameters"]), int(manifest["free_cut"]["bytes"])),
        recipe=MappingProxyType(manifest["recipe"]),
    )


def _short(value: Any) -> str | None:
    return value[:64] if isinstance(value, str) else None


def _loader(folder: Path, family: str) -> Callable[[Path, dict[str, Any]], tuple[VitsModel, Any]]:
    """What reads the model and the tokenizer of a saved voice."""
    from vits_prune.voices.hf_config import read_json

    if family == "piper":
        return _load_piper_family
    narrow = read_json(folder / "config.json", folder.name).get("model_type") == NarrowVitsConfig.model_type
    return _load_narrow if narrow else _load_transformers_family


def _load_piper_family(folder: Path, manifest: dict[str, Any]) -> tuple[VitsModel, Any]:
    from vits_prune.voices.checkpoint import read_config
    from vits_prune.voices.piper import PiperTokenizer

    config = read_config(folder, PiperVitsConfig)
    tokenizer = PiperTokenizer.load(folder)
    if tokenizer.largest_id >= config.vocab_size:  # ids that the model has no row for
        raise _unfitting(folder)
    return _load_own_layout(folder, config), tokenizer


def _load_narrow(folder: Path, manifest: dict[str, Any]) -> tuple[VitsModel, Any]:
    from vits_prune.voices.checkpoint import read_config
    from vits_prune.voices.hf_text import HubTokenizer

    config = read_config(folder, NarrowVitsConfig)
    tokenizer = HubTokenizer.load(folder, vocab_size=config.vocab_size, name=str(manifest["name"]))
    return _load_own_layout(folder, config), tokenizer


def _unfitting(folder: Path) -> InputError:
    return InputError(
        f"{folder.name} is damaged: its model.safetensors, config.json and tokenizer do not fit together. Save the voice again."
    )


def _load_own_layout(folder: Path, config: VitsConfig) -> VitsModel:
    """The model whose tensors were written as they are."""
    model = empty_model(config)
    try:
        # A copy: safetensors maps the file, which may change under a voice that is in use.
        tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in load_file(folder / "model.safetensors").items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise ValueError("a weight is not a number")
        model.load_state_dict(tensors, strict=True, assign=True)
    except Exception as error:  # safetensors and torch each raise their own kinds for a broken file
        raise _unfitting(folder) from error
    return model.requires_grad_(False).eval()


def _load_transformers_family(folder: Path, manifest: dict[str, Any]) -> tuple[VitsModel, Any]:
    from vits_prune.voices.checkpoint import load_checkpoint

    origin = Origin("hugging-face", folder.name)
    voice = load_checkpoint(folder, name=str(manifest["name"]), origin=origin)
    # Weight norm was multiplied out again on loading, which may round; the directions on disk are the exact weights.
    exact = {}
    tensors = load_file(folder / "model.safetensors")
    names = dict(voice.model.named_parameters())
    for key, magnitude in tensors.items():
        stem, _, which = key.partition(".parametrizations.weight.")
        if which == "original0" and f"{stem}.weight" in names:
            direction = tensors[f"{stem}.parametrizations.weight.original1"]
            weight = torch.where(magnitude == 0, torch.zeros_like(direction), direction).float()
            if torch.allclose(weight, names[f"{stem}.weight"], rtol=1e-4, atol=1e-8):  # else trained on and saved over by others
                exact[f"{stem}.weight"] = weight
    return voice.with_weights(exact).model, voice.tokenizer
