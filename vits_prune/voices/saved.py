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
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import VitsConfig, VitsModel

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import read_json, replaced_folder
from vits_prune.voices.architecture import (
    NarrowVitsConfig,
    PiperVitsConfig,
    empty_model,
    in_plain_layout,
)
from vits_prune.voices.checkpoint import load_checkpoint, require_finite
from vits_prune.voices.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    MARK,
    check_files,
    files_of_save,
    form_of,
    manifest_of,
    read_manifest,
    sort_metadata,
    write_manifest,
)
from vits_prune.voices.sparse_file import decode, write_sparse
from vits_prune.voices.voice import FreeCut, Origin, Voice, resolve_speaker

__all__ = ["FORMAT_VERSION", "MANIFEST", "load_saved", "read_manifest", "save_voice"]

WEIGHTS = {"dense": "model.safetensors", "sparse": "model.sparse.safetensors"}
"""The file of the weights by form. The sparse one has a name of its own, so that no other program takes it for plain tensors."""
_MAX_SPARSE_BYTES = 2 << 30


def save_voice(
    voice: Voice,
    folder: str | Path,
    form: Literal["dense", "sparse"] = "dense",
    precision: Literal["fp32", "fp16"] = "fp32",
) -> Path:
    """Write a voice so that `load_voice(folder)` speaks the same samples (with fp32; fp16 rounds the weights).

    The folder appears whole or not at all: it is written beside its place, then renamed. A folder that an earlier save made is replaced.

    Args:
        voice: what to save.
        folder: where to.
        form: "dense" is plain safetensors, which `VitsModel.from_pretrained` opens for a voice of that family; "sparse" leaves the zeros
            out (sparse_file.py) and is for `load_voice` alone.
        precision: of the stored weights.

    Raises:
        InputError: something that is not a saved voice has the name already, the folder of one holds a file that no save wrote and that
            would be lost, the disk does not take it, there is no such form or precision, or a weight is not a number or too large for fp16.
    """
    target = Path(folder)
    for what, given, known in (
        ("form", form, tuple(WEIGHTS)),
        ("precision", precision, ("fp32", "fp16")),
    ):
        if given not in known:
            raise InputError(
                f"A saved voice has the {what} {' or '.join(known)}, not {str(given)[:20]!r}."
            )
    check_save_place(target)
    with written_whole(target, MANIFEST) as beside:
        _write(voice, beside, form, precision)
    return target


def check_save_place(folder: Path) -> None:
    """Refuse the folder of an earlier save in which there is more by now: what is replaced is removed.

    Raises:
        InputError: it holds a file that no save wrote, or cannot be read.
    """
    try:
        if not (folder / MANIFEST).is_file():
            return  # `written_whole` refuses all but new and empty ones
        others = {path.name for path in folder.iterdir()} - files_of_save(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({error.strerror}): give the name of a new folder."
        ) from error
    if others:
        raise InputError(
            f"{folder} holds {min(others)[:80]!r}, which was not saved with the voice and which would be removed: give the name of a new "
            "folder, or take it out."
        )


@contextlib.contextmanager
def written_whole(target: Path, manifest: str) -> Iterator[Path]:
    """A folder to write to that takes the place of `target` when the block ends well, and is gone when it does not.

    Args:
        target: new, empty, or a folder that this wrote before.
        manifest: the file by which such a folder is known.

    Raises:
        InputError: something else has the name already, it is a link or where the program runs, or the disk does not take it.
    """
    try:
        if target.is_symlink():
            raise InputError(
                f"{target} is a link: give the folder that it leads to, or the name of a new one."
            )
        if target.exists() and target.resolve() == Path.cwd():
            raise InputError(
                f"{target} is the folder in which this runs, and cannot be replaced: give the name of a new folder in it."
            )
        if target.exists() and not (
            target.is_dir() and ((target / manifest).is_file() or not any(target.iterdir()))
        ):
            raise InputError(
                f"{target} exists and is not a saved voice: give the name of a folder that is new, empty or was saved before."
            )
        with replaced_folder(target) as beside:
            yield beside
    except (OSError, SafetensorError) as error:  # safetensors tells of a full disk in its own way
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise InputError(f"The voice could not be written to {target}: {reason}.") from error


def _write(voice: Voice, folder: Path, form: str, precision: str) -> None:
    """The files of a saved voice, the manifest last: it holds the checksums of the others."""
    config = copy.deepcopy(voice.model.config)
    for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
        setattr(config, name, float(getattr(voice.model, name)))
    tensors = {name: tensor.contiguous().cpu() for name, tensor in voice.model.state_dict().items()}
    require_finite(voice.model, voice.name)
    if precision == "fp16":
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise InputError(
                f"{voice.name} has weights beyond 65,504, more than fp16 holds: save it with precision fp32."
            )
    if form == "dense" and in_plain_layout(config):
        config, tensors = _transformers_layout(config, tensors)
    config.architectures = [type(voice.model).__name__]
    config.dtype = "float32"  # to compute in, whatever the file stores
    config.save_pretrained(folder)
    if form == "dense":
        save_file(tensors, folder / WEIGHTS[form], metadata={"format": "pt", **MARK})
        sort_metadata(folder / WEIGHTS[form])
    else:
        write_sparse(tensors, folder / WEIGHTS[form])
    voice.tokenizer.save(str(folder))
    write_manifest(folder, manifest_of(voice, form, precision))
    steps, healed = voice.recipe.get("pruned", ()), voice.recipe.get("healed")
    if steps:
        (folder / "prune_spec.json").write_text(
            json.dumps(steps[-1], indent=2) + "\n", encoding="utf-8"
        )
    if healed:
        (folder / "healing.json").write_text(
            json.dumps(healed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _transformers_layout(
    config: VitsConfig, tensors: dict[str, torch.Tensor]
) -> tuple[VitsConfig, dict[str, torch.Tensor]]:
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
            written[name] = _weight_norm_pair(tensors[f"{stem}.weight"])[
                which == "original1"
            ]  # the magnitudes stay float32
        else:
            written[name] = torch.zeros(shape) if which == "original0" else torch.ones(shape)
    return config, written


def _weight_norm_pair(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitude g [out, 1, 1] and direction v [out, in, k] with g v / ||v|| = weight.

    v is the weight itself and g its norm. A row of zeros has no direction: it gets ones and a magnitude of zero, since 0/0 is no number.
    """
    magnitude = torch.norm_except_dim(weight.float(), 2, 0)
    empty = magnitude == 0
    return magnitude, torch.where(empty, torch.ones_like(weight), weight)


def load_saved(folder: Path, speaker: int | str | None = None) -> Voice:
    """The voice that `save_voice` wrote, the same to the bit; without a speaker given, the one it had when it was saved.

    Raises:
        InputError: damaged, or written by a newer version, or it has no such speaker.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder.name} was not written by vits_prune: it has no {MANIFEST}.")
    weights = folder / WEIGHTS[form_of(manifest)]
    if not weights.is_file():
        raise DamagedFileError(
            f"{folder.name} is damaged: it has no {weights.name}. Save the voice again."
        )
    check_files(folder, manifest, weights)
    origin = Origin(
        family=manifest["family"],
        reference=str(manifest["origin"]["reference"])[:200],
        revision=_short(manifest["origin"].get("revision")),
        licence=_short(manifest["origin"].get("licence")),
    )
    model, tokenizer = _loader(folder, manifest)(folder, manifest)
    speakers = tuple(str(name) for name in manifest["speakers"])
    if len(speakers) != (model.config.num_speakers if model.config.num_speakers > 1 else 0):
        raise DamagedFileError(
            f"{folder.name} is damaged: its {MANIFEST} names other speakers than its config.json. Save the voice again."
        )
    return Voice(
        model=model,
        tokenizer=tokenizer,
        sampling_rate=model.config.sampling_rate,
        name=str(manifest["name"])[:200],
        origin=origin,
        speaker=resolve_speaker(
            manifest.get("speaker") if speaker is None else speaker, speakers, str(manifest["name"])
        ),
        speakers=speakers,
        free_cut=FreeCut(
            int(manifest["free_cut"]["parameters"]), int(manifest["free_cut"]["bytes"])
        ),
        recipe=MappingProxyType(manifest["recipe"]),
    )


def _short(value: Any) -> str | None:
    return value[:64] if isinstance(value, str) else None


def _loader(
    folder: Path, manifest: dict[str, Any]
) -> Callable[[Path, dict[str, Any]], tuple[VitsModel, Any]]:
    """What reads the model and the tokenizer of a saved voice."""
    if manifest["family"] == "piper":
        return _load_piper_family
    narrow = (
        read_json(folder / "config.json", folder.name).get("model_type")
        == NarrowVitsConfig.model_type
    )
    return (
        _load_hub_family if narrow or form_of(manifest) == "sparse" else _load_transformers_layout
    )


def _load_piper_family(folder: Path, manifest: dict[str, Any]) -> tuple[VitsModel, Any]:
    from vits_prune.voices.checkpoint import read_config
    from vits_prune.voices.piper import PiperTokenizer

    config = read_config(folder, PiperVitsConfig)
    tokenizer = PiperTokenizer.load(folder)
    if tokenizer.largest_id >= config.vocab_size:  # ids that the model has no row for
        raise _unfitting(folder)
    return _load_own_layout(folder, config, manifest), tokenizer


def _load_hub_family(folder: Path, manifest: dict[str, Any]) -> tuple[VitsModel, Any]:
    from vits_prune.voices.hf_config import read_config
    from vits_prune.voices.hf_text import HubTokenizer

    narrow = (
        read_json(folder / "config.json", folder.name).get("model_type")
        == NarrowVitsConfig.model_type
    )
    config = read_config(folder, NarrowVitsConfig if narrow else VitsConfig)
    tokenizer = HubTokenizer.load(folder, vocab_size=config.vocab_size, name=str(manifest["name"]))
    return _load_own_layout(folder, config, manifest), tokenizer


def _unfitting(folder: Path) -> DamagedFileError:
    return DamagedFileError(
        f"{folder.name} is damaged: its weights, config.json and tokenizer do not fit together. Save the voice again."
    )


def _load_own_layout(folder: Path, config: VitsConfig, manifest: dict[str, Any]) -> VitsModel:
    """The model whose tensors were written as they are."""
    model = empty_model(config)
    try:
        if form_of(manifest) == "sparse":
            tensors = {
                name: tensor.float()
                for name, tensor in _read_sparse(folder / WEIGHTS["sparse"], model).items()
            }
        else:  # a copy: safetensors maps the file, which may change under a voice that is in use
            tensors = {
                name: tensor.to(torch.float32, copy=True)
                for name, tensor in load_file(folder / WEIGHTS["dense"]).items()
            }
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise ValueError("a weight is not a number")
        model.load_state_dict(tensors, strict=True, assign=True)
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # torch's own for tensors that do not fit is a RuntimeError
        raise _unfitting(folder) from error
    return model.requires_grad_(False).eval()


def _read_sparse(path: Path, model: VitsModel) -> dict[str, torch.Tensor]:
    """The tensors of a file that may hold as many numbers as the network that its config.json describes."""
    if path.stat().st_size > _MAX_SPARSE_BYTES:
        raise ValueError("larger than any voice")
    return decode(path.read_bytes(), sum(tensor.numel() for tensor in model.state_dict().values()))


def _load_transformers_layout(folder: Path, manifest: dict[str, Any]) -> tuple[VitsModel, Any]:
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
            if torch.allclose(
                weight, names[f"{stem}.weight"], rtol=1e-4, atol=1e-8
            ):  # else trained on and saved over by others
                exact[f"{stem}.weight"] = weight
    return voice.with_weights(exact).model, voice.tokenizer
