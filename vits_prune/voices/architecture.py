"""The network of a Voice, and the bounds of the config.json that it is made from.

The network is VitsModel without what never runs, with decoder blocks that it lacks. A config.json
may come from a stranger: every value is checked before a network is made from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel
from transformers.activations import ACT2FN

from vits_prune.errors import InputError
from vits_prune.files import read_json, shown_name
from vits_prune.voices.voice import FreeCut

Config = TypeVar("Config", bound=VitsConfig)
Check = tuple[Callable[[Any], bool], str]
"""Whether a value is accepted, and the words for what is."""

_WHOLE = {
    (1, 100_000): ("vocab_size", "num_speakers"),
    (0, 100_000): ("pad_token_id",),
    (2, 4096): ("hidden_size", "flow_size"),
    (1, 64): ("num_hidden_layers", "num_attention_heads"),
    (0, 64): ("window_size",),
    (1, 16_384): ("ffn_dim", "spectrogram_bins"),
    (1, 31): ("ffn_kernel_size", "duration_predictor_kernel_size", "wavenet_kernel_size"),
    (0, 4096): ("speaker_embedding_size",),
    (2, 8192): ("upsample_initial_channel",),
    (2, 2): ("depth_separable_channels",),  # transformers' forward always draws two of noise
    (1, 8): ("depth_separable_num_layers", "wavenet_dilation_rate"),
    (1, 256): ("duration_predictor_flow_bins",),
    (1, 16): ("duration_predictor_num_flows", "prior_encoder_num_flows"),
    (1, 4096): ("duration_predictor_filter_channels",),
    (1, 32): ("prior_encoder_num_wavenet_layers",),
    (0, 32): ("posterior_encoder_num_wavenet_layers",),
    (4000, 192_000): ("sampling_rate",),
}
_UNIT = (
    *("hidden_dropout", "attention_dropout", "activation_dropout", "wavenet_dropout"),
    *("duration_predictor_dropout", "layerdrop", "layer_norm_eps", "leaky_relu_slope"),
)
_FRACTIONS = {
    (0.0, 1.0): _UNIT,
    (0.0, 10.0): ("initializer_range", "noise_scale", "noise_scale_duration"),
    (0.1, 1000.0): ("duration_predictor_tail_bound",),
    (0.05, 20.0): ("speaking_rate",),
}
_MAY_BE_NULL = ("pad_token_id", "resblock_inner_channels")


class ResidualBlock2(nn.Module):
    """HiFi-GAN's ResBlock2: x + conv(leaky_relu(x)) for each dilation, [batch, channels, frames].

    Source: Kong et al. 2020, arXiv:2010.05646, appendix A.
    """

    def __init__(
        self, channels: int, kernel_size: int, dilations: Sequence[int], leaky_relu_slope: float
    ) -> None:
        super().__init__()
        self.leaky_relu_slope = leaky_relu_slope
        self.convs = nn.ModuleList(
            nn.Conv1d(
                channels, channels, kernel_size, dilation=d, padding=(kernel_size - 1) * d // 2
            )
            for d in dilations
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return [batch, channels, samples] for the same."""
        for conv in self.convs:
            activated = nn.functional.leaky_relu(hidden_states, self.leaky_relu_slope)
            hidden_states = conv(activated).add_(hidden_states)
        return hidden_states


@strict
class NarrowVitsConfig(VitsConfig):
    """VitsConfig for residual blocks that structured pruning made narrower inside than outside.

    `resblock_inner_channels` holds, by decoder stage, the channels inside; None for as wide as the
    stage. Plain transformers refuses this model type.
    """

    model_type = "vits_narrow"

    resblock_inner_channels: list[int] | None = None


class NarrowVitsModel(VitsModel):
    """VitsModel with the decoder blocks of its configuration."""

    config_class = NarrowVitsConfig

    def __init__(self, config: NarrowVitsConfig) -> None:
        super().__init__(config)
        channels = config.resblock_inner_channels or []
        branches = len(config.resblock_kernel_sizes)
        for index, block in enumerate(self.decoder.resblocks if channels else ()):
            inner = channels[index // branches]
            block.convs1 = _resized(block.convs1, outputs=inner)
            block.convs2 = _resized(block.convs2, inputs=inner)


@strict
class PiperVitsConfig(NarrowVitsConfig):
    """VitsConfig for Piper voices: resblock "1" (high quality) or "2" (medium, low, x-low)."""

    model_type = "vits_piper"

    resblock: str = "2"


class PiperVitsModel(NarrowVitsModel):
    """VitsModel with the decoder blocks of its PiperVitsConfig."""

    config_class = PiperVitsConfig

    def __init__(self, config: PiperVitsConfig) -> None:
        super().__init__(config)
        if config.resblock == "1":
            return
        first, slope = config.upsample_initial_channel, config.leaky_relu_slope
        kernels, dilations = config.resblock_kernel_sizes, config.resblock_dilation_sizes
        self.decoder.resblocks = nn.ModuleList(
            ResidualBlock2(first // 2 ** (stage + 1), kernel, dilated, slope)
            for stage in range(len(config.upsample_rates))
            for kernel, dilated in zip(kernels, dilations, strict=True)
        )


def _resized(convs: nn.ModuleList, inputs: int = 0, outputs: int = 0) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Conv1d(
            *(inputs or one.in_channels, outputs or one.out_channels, one.kernel_size),
            **{"padding": one.padding, "dilation": one.dilation},
        )
        for one in convs
    )


def with_inner_channels(config: VitsConfig, channels: Sequence[int]) -> VitsConfig:
    """Return a configuration whose residual blocks have these inner channels, by stage."""
    if not hasattr(config, "resblock_inner_channels"):
        names = (field.name for field in dataclasses.fields(VitsConfig) if field.init)
        config = NarrowVitsConfig(**{name: getattr(config, name) for name in names})
    config.resblock_inner_channels = list(channels)
    return config


def in_plain_layout(config: VitsConfig) -> bool:
    """Return whether plain transformers can open a voice of this configuration."""
    return config.model_type == VitsConfig.model_type


def fold_and_cut(model: VitsModel) -> FreeCut:
    """Fold weight norm into plain weights and leave out what never runs at inference, in place.

    Left out are the posterior encoder, the posterior half of the stochastic duration predictor, and
    its second flow, which inference skips. Folding writes w = g v / ||v|| once (Salimans & Kingma
    2016, arXiv:1602.07868) with the operation that ran at every forward, so that waveforms stay the
    same to the bit. Copies of a model share torch's class for weight norm: fold before copying.
    """
    before = list(model.parameters())
    model.posterior_encoder = None
    predictor = model.duration_predictor
    if model.config.use_stochastic_duration_prediction:
        for name in ("post_conv_pre", "post_conv_proj", "post_conv_dds", "post_flows"):
            setattr(predictor, name, None)
        if len(predictor.flows) > 1:
            predictor.flows[1] = nn.Identity()  # the forward drops whatever has this position
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            module._load_state_dict_pre_hooks.clear()  # weight norm's own, which nothing can pickle
    model.eval().requires_grad_(False)
    after = list(model.parameters())
    return FreeCut(
        sum(one.numel() for one in before) - sum(one.numel() for one in after),
        sum(one.nbytes for one in before) - sum(one.nbytes for one in after),
    )


def empty_model(config: VitsConfig) -> VitsModel:
    """Return a folded and cut model on torch's meta device, for `load_state_dict(assign=True)`."""
    models = {model.config_class: model for model in (PiperVitsModel, NarrowVitsModel)}
    with torch.device("meta"):
        model = models.get(type(config), VitsModel)(config)
        fold_and_cut(model)
    return model


def _number(low: float, high: float, kinds: tuple[type, ...] = (int,)) -> Check:
    words = f"a {'' if float in kinds else 'whole '}number from {low:.6g} to {high:.6g}"
    return lambda value: type(value) in kinds and low <= value <= high, words


def _one_of(*choices: object) -> Check:
    words = "one of " + ", ".join(map(str, choices[:6]))
    kind = type(choices[0])
    return lambda value: isinstance(value, kind) and value in choices, words


def _list(of: Check, words: str) -> Check:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and 1 <= len(value) <= 8 and all(map(of[0], value))

    return holds, f"a list of 1 to 8 {words}"


def _whole_list(high: int) -> Check:
    return _list(_number(1, high), f"whole numbers from 1 to {high}")


_CHECKS: dict[str, Check] = {
    **{key: _number(*bounds) for bounds, keys in _WHOLE.items() for key in keys},
    **{key: _number(*bounds, (int, float)) for bounds, keys in _FRACTIONS.items() for key in keys},
    "use_bias": _one_of(True, False),
    "use_stochastic_duration_prediction": _one_of(True, False),
    "upsample_rates": _whole_list(4096),
    "upsample_kernel_sizes": _whole_list(8192),
    "resblock_kernel_sizes": _whole_list(63),
    "resblock_dilation_sizes": _list(_whole_list(64), "lists of up to 8 whole numbers"),
    "resblock_inner_channels": _whole_list(4096),
    "resblock": _one_of("1", "2"),
    "hidden_act": _one_of(*ACT2FN),
}


def require_model_type(values: dict[str, Any], wanted: str, name: str) -> None:
    """Raise InputError if a config.json is of another architecture."""
    found = values.get("model_type")
    if found != wanted:
        known = isinstance(found, str) and found
        what = f"a {str(found)[:40]} checkpoint" if known else "a checkpoint of no stated kind"
        raise InputError(f"{name} is {what}, not {wanted}: choose facebook/mms-tts-eng.")


def read_config(folder: Path, config_class: type[Config], *, name: str | None = None) -> Config:
    """Return the configuration in a folder's config.json, as `checked_config` does."""
    name = name or shown_name(folder)
    return checked_config(read_json(folder / "config.json", name), config_class, name)


def checked_config(values: dict[str, Any], config_class: type[Config], name: str) -> Config:
    """Return the configuration in a config.json; InputError if a value is out of bounds.

    Keys that the class does not know are left out.
    """
    require_model_type(values, config_class.model_type, name)
    known: dict[str, Any] = {}
    floats = {key for keys in _FRACTIONS.values() for key in keys}
    names = {field.name for field in dataclasses.fields(config_class)}
    for key, (holds, wanted) in _CHECKS.items():
        value: Any = values.get(key)
        if key not in names & values.keys() or (value is None and key in _MAY_BE_NULL):
            continue
        if not holds(value):
            said = f"{key} = {repr(value)[:40]} in its config.json"
            raise InputError(f"{name} says {said} where {wanted} is needed.")
        known[key] = float(value) if key in floats else value
    try:
        config = config_class(**known)
    except Exception as error:  # transformers validates with its own kinds of error
        raise InputError(
            f"{name} has a config.json that transformers refuses: check the checkpoint."
        ) from error
    if broken := next((rule for rule, holds in _rules(config).items() if not holds), None):
        raise InputError(f"{name} has a config.json that cannot be run: {broken}.")
    return config


def _rules(config: VitsConfig) -> dict[str, bool]:
    """What must hold between the values for the network to run."""
    rates, channels = config.upsample_rates, config.upsample_initial_channel
    stages, inner = len(rates), getattr(config, "resblock_inner_channels", None)
    prior, posterior = (
        getattr(config, f"{which}_encoder_num_wavenet_layers") for which in ("prior", "posterior")
    )
    dp_kernel, wavenet_kernel = config.duration_predictor_kernel_size, config.wavenet_kernel_size
    longest_dilation = max(
        config.wavenet_dilation_rate ** (max(prior, posterior, 1) - 1),
        dp_kernel ** (config.depth_separable_num_layers - 1),
    )
    kernels = (*config.resblock_kernel_sizes, dp_kernel, wavenet_kernel)
    fits = inner is None or (
        getattr(config, "resblock", "1") == "1"
        and len(inner) == stages
        and all(width <= channels // 2 ** (i + 1) for i, width in enumerate(inner))
    )
    pairs = zip(config.upsample_kernel_sizes, rates, strict=True)
    hidden = config.hidden_size
    return {
        "hidden_size must be a multiple of num_attention_heads": (
            hidden % config.num_attention_heads == 0
        ),
        "hidden_size and flow_size must be even": hidden % 2 == config.flow_size % 2 == 0,
        "pad_token_id must be below vocab_size": (config.pad_token_id or 0) < config.vocab_size,
        "no upsample kernel may be smaller than its rate": all(k >= rate for k, rate in pairs),
        "the product of upsample_rates must be 4096 at most": math.prod(rates) <= 4096,
        f"upsample_initial_channel must be a multiple of {2**stages}": channels % 2**stages == 0,
        "resblock_dilation_sizes must have one entry for each of resblock_kernel_sizes": (
            len(config.resblock_dilation_sizes) == len(config.resblock_kernel_sizes)
        ),
        "resblock_inner_channels must have one entry a stage of ResBlock1, none above the channels "
        "of its stage": fits,
        "kernel sizes must be odd": all(kernel % 2 for kernel in kernels),
        "its dilations must be 65536 at most": longest_dilation <= 65_536,
        "speaker_embedding_size must be above 0 where there are several speakers": (
            config.num_speakers == 1 or config.speaker_embedding_size > 0
        ),
    }
