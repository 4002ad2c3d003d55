"""The posterior encoder of a checkpoint: recorded speech to latents that the decoder speaks from.

`load_voice` leaves it out, since it never runs when a voice speaks. Source: Kim et al. 2021,
arXiv:2106.06103, section 2.1.2.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vits_prune.errors import InputError
from vits_prune.files import expanded
from vits_prune.synthesis.inference import POSTERIOR_NOISE, draw_noise
from vits_prune.synthesis.spectra import power_spectrum
from vits_prune.voices.load import EMBEDDED

if TYPE_CHECKING:
    from transformers import VitsConfig
    from transformers.models.vits.modeling_vits import VitsPosteriorEncoder

    from vits_prune.voices.voice import Voice

_MAGNITUDE_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Posterior:
    """A posterior encoder, weight norm folded, and what its input looks like."""

    encoder: VitsPosteriorEncoder
    name: str
    sampling_rate: int
    filter_length: int
    """Samples of the spectrogram's window and of its Fourier transform."""
    hop_length: int
    speaker_embeddings: torch.Tensor | None = None
    """[speakers, speaker_embedding_size] of a voice with several speakers."""

    @property
    def flow_size(self) -> int:
        """The number of channels of the latents."""
        return self.encoder.out_channels


def load_posterior(ref: str | os.PathLike[str], *, revision: str | None = None) -> Posterior:
    """Return the posterior encoder of a voice, from the reference that `load_voice` takes.

    A voice without one is refused before any weight is read. `revision` is the branch, tag or
    commit of a hub id; `voice.origin.revision` is the loaded one.

    Raises:
        InputError: the voice has no posterior encoder (every Piper voice, every folder that
            `save_voice` wrote), or a damaged one.
    """
    from transformers import VitsConfig

    from vits_prune.voices.architecture import read_config
    from vits_prune.voices.checkpoint import weight_files
    from vits_prune.voices.manifest import read_manifest

    folder, name = _locate(ref, revision)
    if saved := read_manifest(folder):
        original = saved.origin.reference
        why = f"saved voices have none: name the voice it was made from ({original}) as the teacher"
        raise _has_none(name, why)
    config = read_config(folder, VitsConfig, name=name)
    files = weight_files(folder, name)
    hop_length = math.prod(config.upsample_rates)
    filter_length = 2 * (config.spectrogram_bins - 1)
    if filter_length < max(hop_length, 2):
        raise _has_none(name, "its configuration leaves it out")
    encoder, embeddings = _read(files, config, name)
    return Posterior(encoder, name, config.sampling_rate, filter_length, hop_length, embeddings)


def require_fit(posterior: Posterior, voice: Voice) -> None:
    """Raise InputError unless a voice's decoder speaks from the latents of a posterior encoder."""
    speakers = 0 if posterior.speaker_embeddings is None else len(posterior.speaker_embeddings)
    for kind, one, other in (
        ("samples a second", posterior.sampling_rate, voice.sampling_rate),
        ("samples a frame", posterior.hop_length, voice.hop_length),
        ("latent channels", posterior.flow_size, voice.model.config.flow_size),
        ("speakers", speakers, len(voice.speakers)),
    ):
        if one != other:
            raise InputError(
                f"The posterior encoder of {posterior.name} has {one} {kind} and {voice.name} has "
                f"{other}: take that of the voice which {voice.name} was made from."
            )


def linear_spectrogram(waveform: torch.Tensor, filter_length: int, hop_length: int) -> torch.Tensor:
    """Return the spectrogram of VITS' training: sqrt(re² + im² + 1e-6), Hann window, no scaling.

    The waveform [batch, samples] is mirrored at its ends, so frame t is centred on the samples
    t hop to (t + 1) hop. It has `filter_length` samples or more.

    Returns:
        [batch, filter_length / 2 + 1, samples // hop_length], one frame less where an odd hop
        divides the samples.
    """
    margin = (filter_length - hop_length) // 2
    padded = torch.nn.functional.pad(waveform[:, None], (margin, margin), "reflect")[:, 0]
    return (power_spectrum(padded, filter_length, hop_length) + _MAGNITUDE_FLOOR).sqrt()


def posterior_statistics(
    posterior: Posterior, waveform: torch.Tensor, speaker: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and standard deviations [1, flow_size, frames] of the latents of speech.

    The waveform is [samples] in [-1, 1], `filter_length` or more. Without a speaker the first of
    several is meant.

    Raises:
        InputError: the waveform is too short, or the voice has no such speaker.
    """
    least = posterior.filter_length
    if waveform.dim() != 1 or len(waveform) < least:
        raise InputError(f"A recording for {posterior.name} must have {least} samples or more.")
    encoder, embeddings = posterior.encoder, posterior.speaker_embeddings
    index, count = speaker or 0, 1 if embeddings is None else len(embeddings)
    if not 0 <= index < count:
        raise InputError(f"{posterior.name} has no speaker {index}: choose 0 to {count - 1}.")
    conditioning = None if embeddings is None else embeddings[index][None, :, None]
    with torch.no_grad():
        spectrogram = linear_spectrogram(waveform.float()[None], least, posterior.hop_length)
        mask = torch.ones(1, 1, spectrogram.shape[2])
        hidden = encoder.wavenet(encoder.conv_pre(spectrogram), mask, conditioning)
        means, log_deviations = encoder.conv_proj(hidden).chunk(2, dim=1)
        return means, torch.exp(log_deviations)


def draw_latents(
    means: torch.Tensor, deviations: torch.Tensor, seed: int | tuple[int, ...] = 0
) -> torch.Tensor:
    """Draw latents [1, flow_size, frames] from what `posterior_statistics` returns."""
    drawn = draw_noise(seed, POSTERIOR_NOISE, means.shape[2], means.shape[1])
    return means + torch.from_numpy(drawn).T[None].to(means) * deviations


def _has_none(name: str, why: str) -> InputError:
    return InputError(
        f"{name[:100]} has no posterior encoder, without which recordings cannot be used ({why}): "
        "heal without recordings."
    )


def _locate(ref: str | os.PathLike[str], revision: str | None) -> tuple[Path, str]:
    """Return folder and name of a checkpoint. A folder wins over a hub id, as in `load_voice`."""
    from vits_prune.voices.hub import fetch_snapshot, parse_repo_id

    text = os.fspath(ref)
    with contextlib.suppress(OSError, ValueError):  # too long, or with a NUL byte
        path = expanded(text)
        if text != EMBEDDED and path.is_dir():
            return path, path.resolve().name
    if text == EMBEDDED or text.endswith(".onnx"):
        raise _has_none(Path(text).stem, "Piper's exports leave it out")
    repo_id, named = parse_repo_id(text)
    return fetch_snapshot(repo_id, revision or named).folder, repo_id.partition("/")[2]


def _read(
    files: list[Path], config: VitsConfig, name: str
) -> tuple[VitsPosteriorEncoder, torch.Tensor | None]:
    """Return the encoder in fp32 with weight norm folded, and the speakers' embeddings."""
    from safetensors import SafetensorError, safe_open
    from torch.nn.utils import parametrize
    from transformers.models.vits.modeling_vits import VitsPosteriorEncoder

    from vits_prune.voices.checkpoint import read_tensors, require_finite

    parts, several = torch.nn.ModuleDict(), config.num_speakers > 1
    with torch.device("meta"):
        parts["posterior_encoder"] = VitsPosteriorEncoder(config)
        if several:
            size = config.speaker_embedding_size
            parts["embed_speaker"] = torch.nn.Embedding(config.num_speakers, size)
    shapes = {key: tensor.shape for key, tensor in parts.state_dict().items()}
    try:
        keys: list[str] = []
        for file in files:
            with safe_open(file, "pt") as handle:
                keys += handle.keys()
        if not any(key.removeprefix("vits.").startswith("posterior_encoder.") for key in keys):
            raise _has_none(name, "its checkpoint was saved without")
        tensors = read_tensors(files, shapes, name)
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} has damaged weights: download or save them again.") from error
    parts.load_state_dict(tensors, assign=True)
    for module in list(parts.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    require_finite(parts, name)
    parts.eval().requires_grad_(False)
    return parts["posterior_encoder"], parts["embed_speaker"].weight if several else None
