"""config.json of a VITS checkpoint -> VitsConfig, with every value within bounds.

The file may come from a stranger.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import VitsConfig
from transformers.activations import ACT2FN

from vits_prune.errors import InputError
from vits_prune.files import read_json

Config = TypeVar("Config", bound=VitsConfig)
Check = tuple[Callable[[Any], bool], str]
"""Whether a value is accepted, and the words for what is."""

_WHOLE = {
    "vocab_size": (1, 100_000),
    "hidden_size": (2, 4096),
    "num_hidden_layers": (1, 64),
    "num_attention_heads": (1, 64),
    "window_size": (0, 64),
    "ffn_dim": (1, 16_384),
    "ffn_kernel_size": (1, 31),
    "flow_size": (2, 4096),
    "spectrogram_bins": (1, 16_384),
    "num_speakers": (1, 100_000),
    "speaker_embedding_size": (0, 4096),
    "upsample_initial_channel": (2, 8192),
    "depth_separable_channels": (2, 2),  # transformers' forward always draws two channels of noise
    "depth_separable_num_layers": (1, 8),
    "duration_predictor_flow_bins": (1, 256),
    "duration_predictor_kernel_size": (1, 31),
    "duration_predictor_num_flows": (1, 16),
    "duration_predictor_filter_channels": (1, 4096),
    "prior_encoder_num_flows": (1, 16),
    "prior_encoder_num_wavenet_layers": (1, 32),
    "posterior_encoder_num_wavenet_layers": (0, 32),
    "wavenet_kernel_size": (1, 31),
    "wavenet_dilation_rate": (1, 8),
    "sampling_rate": (4000, 192_000),
    "pad_token_id": (0, 100_000),
}
_FRACTIONS = {
    "layerdrop": (0.0, 1.0),
    "hidden_dropout": (0.0, 1.0),
    "attention_dropout": (0.0, 1.0),
    "activation_dropout": (0.0, 1.0),
    "duration_predictor_dropout": (0.0, 1.0),
    "wavenet_dropout": (0.0, 1.0),
    "initializer_range": (0.0, 10.0),
    "layer_norm_eps": (0.0, 1.0),
    "leaky_relu_slope": (0.0, 1.0),
    "duration_predictor_tail_bound": (0.1, 1000.0),
    "speaking_rate": (0.05, 20.0),
    "noise_scale": (0.0, 10.0),
    "noise_scale_duration": (0.0, 10.0),
}
_MAY_BE_NULL = ("pad_token_id", "resblock_inner_channels")


def _whole(low: int, high: int) -> Check:
    words = f"a whole number from {low} to {high}" if low != high else str(low)
    return lambda value: type(value) is int and low <= value <= high, words


def _fraction(low: float, high: float) -> Check:
    words = f"a number from {low:g} to {high:g}"
    return lambda value: type(value) in (int, float) and low <= value <= high, words


def _one_of(*choices: object) -> Check:
    words = "one of " + ", ".join(map(str, choices[:6]))
    kind = type(choices[0])
    return lambda value: isinstance(value, kind) and value in choices, words


def _list(most: int, of: Check, words: str) -> Check:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and 1 <= len(value) <= most and all(map(of[0], value))

    return holds, f"a list of 1 to {most} {words}"


def _whole_list(most: int, high: int) -> Check:
    return _list(most, _whole(1, high), f"whole numbers from 1 to {high}")


_CHECKS: dict[str, Check] = {
    **{key: _whole(*bounds) for key, bounds in _WHOLE.items()},
    **{key: _fraction(*bounds) for key, bounds in _FRACTIONS.items()},
    "use_bias": _one_of(True, False),
    "use_stochastic_duration_prediction": _one_of(True, False),
    "upsample_rates": _whole_list(8, 4096),
    "upsample_kernel_sizes": _whole_list(8, 8192),
    "resblock_kernel_sizes": _whole_list(8, 63),
    "resblock_dilation_sizes": _list(8, _whole_list(8, 64), "lists of up to 8 whole numbers"),
    "resblock_inner_channels": _whole_list(8, 4096),
    "resblock": _one_of("1", "2"),
    "hidden_act": _one_of(*ACT2FN),
}


def require_model_type(values: dict[str, Any], wanted: str, name: str) -> None:
    """Raise InputError if a config.json is of another architecture."""
    found = values.get("model_type")
    if found == wanted:
        return
    known = isinstance(found, str) and found
    what = f"a {str(found)[:40]} checkpoint" if known else "a checkpoint of no stated kind"
    raise InputError(
        f"{name} is {what}, not {wanted}: choose a VITS text-to-speech checkpoint such as "
        "facebook/mms-tts-eng."
    )


def read_config(folder: Path, config_class: type[Config], *, name: str | None = None) -> Config:
    """Return the configuration in a folder's config.json, every value within bounds.

    Keys that the class does not know are left out.

    Raises:
        InputError: it is missing, is not JSON, is of another architecture, or asks for a network
            that is refused.
    """
    name = name or Path(folder).name
    return checked_config(read_json(Path(folder) / "config.json", name), config_class, name)


def checked_config(values: dict[str, Any], config_class: type[Config], name: str) -> Config:
    """Return the configuration in the contents of a config.json, as `read_config` does."""
    require_model_type(values, config_class.model_type, name)
    known: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        key = field.name
        if key not in _CHECKS or key not in values:
            continue
        value = values[key]
        if value is None and key in _MAY_BE_NULL:
            continue
        holds, wanted = _CHECKS[key]
        if not holds(value):
            raise InputError(
                f"{name} says {key} = {repr(value)[:40]} in its config.json where {wanted} is "
                "needed: check the checkpoint."
            )
        known[key] = float(value) if key in _FRACTIONS else value
    try:
        config = config_class(**known)
    except Exception as error:  # transformers validates with its own kinds of error
        raise InputError(
            f"{name} has a config.json that transformers refuses: check the checkpoint."
        ) from error
    broken = next((rule for rule, holds in _rules(config).items() if not holds), None)
    if broken:
        raise InputError(
            f"{name} has a config.json that cannot be run ({broken}): check the checkpoint."
        )
    return config


def _rules(config: VitsConfig) -> dict[str, bool]:
    """What must hold between the values for the network to run."""
    rates, channels = config.upsample_rates, config.upsample_initial_channel
    stages, inner = len(rates), getattr(config, "resblock_inner_channels", None)
    wavenet_layers = max(
        config.prior_encoder_num_wavenet_layers, config.posterior_encoder_num_wavenet_layers, 1
    )
    longest_dilation = max(
        config.wavenet_dilation_rate ** (wavenet_layers - 1),
        config.duration_predictor_kernel_size ** (config.depth_separable_num_layers - 1),
    )
    kernels = (
        *config.resblock_kernel_sizes,
        config.duration_predictor_kernel_size,
        config.wavenet_kernel_size,
    )
    fits = inner is None or (
        getattr(config, "resblock", "1") == "1"
        and len(inner) == stages
        and all(width <= channels // 2 ** (i + 1) for i, width in enumerate(inner))
    )
    pairs = zip(config.upsample_kernel_sizes, rates, strict=True)
    return {
        "hidden_size must be a multiple of num_attention_heads": (
            config.hidden_size % config.num_attention_heads == 0
        ),
        "hidden_size and flow_size must be even": (
            config.hidden_size % 2 == config.flow_size % 2 == 0
        ),
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
