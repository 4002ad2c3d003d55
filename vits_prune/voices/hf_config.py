"""config.json of a VITS checkpoint -> VitsConfig, every value within bounds: the file may come from a stranger."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, TypeVar

from transformers import VitsConfig
from transformers.activations import ACT2FN

from vits_prune.errors import InputError
from vits_prune.files import read_json

_INTEGERS = {
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
    "depth_separable_channels": (
        2,
        2,
    ),  # transformers' forward draws two channels of noise, whatever this says
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
}
_NUMBERS = {
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
_FLAGS = ("use_bias", "use_stochastic_duration_prediction")
_LISTS = {
    "upsample_rates": (8, 4096),
    "upsample_kernel_sizes": (8, 8192),
    "resblock_kernel_sizes": (8, 63),
}
"""List -> most entries, largest entry."""
_ODD = ("duration_predictor_kernel_size", "wavenet_kernel_size")

Config = TypeVar("Config", bound=VitsConfig)


def require_model_type(values: dict[str, Any], wanted: str, name: str) -> None:
    """Refuse a config.json of another architecture.

    Raises:
        InputError: its model_type is not `wanted`.
    """
    found = values.get("model_type")
    if found == wanted:
        return
    what = (
        f"a {found[:40]} checkpoint"
        if isinstance(found, str) and found
        else "a checkpoint of no stated kind"
    )
    raise InputError(
        f"{name} is {what}, not {wanted}: choose a VITS text-to-speech checkpoint such as facebook/mms-tts-eng."
    )


def read_config(
    folder: Path, config_class: type[Config] = VitsConfig, *, name: str | None = None
) -> Config:
    """The configuration in a folder's config.json, every value within bounds; keys that the class does not know are left out.

    Raises:
        InputError: it is missing, is not JSON, is of another architecture, or asks for a network that is refused.
    """
    name = name or Path(folder).name
    return checked_config(read_json(Path(folder) / "config.json", name), config_class, name)


def checked_config(values: dict[str, Any], config_class: type[Config], name: str) -> Config:
    """The configuration that the contents of a config.json describe, every value within bounds.

    Raises:
        InputError: it is of another architecture, or asks for a network that is refused.
    """
    require_model_type(values, config_class.model_type, name)
    known: dict[str, Any] = {}
    for key, (low, high) in _INTEGERS.items():
        if key in values:
            known[key] = _integer(values[key], key, low, high, name)
    for key, (low, high) in _NUMBERS.items():
        if key in values:
            known[key] = _number(values[key], key, low, high, name)
    for key in _FLAGS:
        if key in values:
            known[key] = _one_of(values[key], key, (True, False), name)
    for key, (entries, high) in _LISTS.items():
        if key in values:
            known[key] = _integers(values[key], key, entries, high, name)
    if "resblock_dilation_sizes" in values:
        rows = values["resblock_dilation_sizes"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= 8:
            raise _refusal(name, "resblock_dilation_sizes", rows, "a list of 1 to 8 lists")
        known["resblock_dilation_sizes"] = [
            _integers(row, "resblock_dilation_sizes", 8, 64, name) for row in rows
        ]
    if "hidden_act" in values:
        known["hidden_act"] = _one_of(values["hidden_act"], "hidden_act", tuple(ACT2FN), name)
    if values.get("pad_token_id") is not None:
        known["pad_token_id"] = _integer(
            values["pad_token_id"],
            "pad_token_id",
            0,
            values.get("vocab_size", VitsConfig.vocab_size) - 1,
            name,
        )
    ours = {field.name for field in dataclasses.fields(config_class)}
    if "resblock" in ours and "resblock" in values:
        known["resblock"] = _one_of(values["resblock"], "resblock", ("1", "2"), name)
    if "resblock_inner_channels" in ours and values.get("resblock_inner_channels") is not None:
        known["resblock_inner_channels"] = _integers(
            values["resblock_inner_channels"], "resblock_inner_channels", 8, 4096, name
        )
    try:
        config = config_class(**known)
    except Exception as error:  # transformers validates with its own kinds of error
        raise InputError(
            f"{name} has a config.json that transformers refuses: check the checkpoint."
        ) from error
    _check_together(config, name)
    return config


def _refusal(name: str, key: str, value: object, wanted: str) -> InputError:
    return InputError(
        f"{name} says {key} = {repr(value)[:40]} in its config.json where {wanted} is needed: check the checkpoint."
    )


def _integer(value: object, key: str, low: int, high: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _refusal(
            name, key, value, f"a whole number from {low} to {high}" if low != high else str(low)
        )
    return value


def _number(value: object, key: str, low: float, high: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _refusal(name, key, value, f"a number from {low:g} to {high:g}")
    return float(value)


def _integers(value: object, key: str, entries: int, high: int, name: str) -> list[int]:
    if not isinstance(value, list) or not 1 <= len(value) <= entries:
        raise _refusal(name, key, value, f"a list of 1 to {entries} whole numbers")
    return [_integer(entry, key, 1, high, name) for entry in value]


def _one_of(value: object, key: str, choices: tuple, name: str) -> Any:
    if not isinstance(value, type(choices[0])) or value not in choices:
        raise _refusal(name, key, value, "one of " + ", ".join(map(str, choices[:6])))
    return value


def _check_together(config: VitsConfig, name: str) -> None:
    """What must hold between the values for the network to run.

    Raises:
        InputError: naming the first that does not.
    """
    stages = len(config.upsample_rates)
    inner = getattr(config, "resblock_inner_channels", None)
    longest_dilation = max(
        config.wavenet_dilation_rate
        ** max(
            config.prior_encoder_num_wavenet_layers - 1,
            config.posterior_encoder_num_wavenet_layers - 1,
            0,
        ),
        config.duration_predictor_kernel_size ** (config.depth_separable_num_layers - 1),
    )
    rules = {
        "hidden_size must be a multiple of num_attention_heads": config.hidden_size
        % config.num_attention_heads
        == 0,
        "hidden_size and flow_size must be even": config.hidden_size % 2 == 0
        and config.flow_size % 2 == 0,
        "no upsample kernel may be smaller than its rate": all(
            kernel >= rate
            for kernel, rate in zip(
                config.upsample_kernel_sizes, config.upsample_rates, strict=True
            )
        ),
        "the product of upsample_rates must be 4096 at most": math.prod(config.upsample_rates)
        <= 4096,
        f"upsample_initial_channel must be a multiple of {2**stages}": config.upsample_initial_channel
        % 2**stages
        == 0,
        "resblock_dilation_sizes must have one entry for each of resblock_kernel_sizes": len(
            config.resblock_dilation_sizes
        )
        == len(config.resblock_kernel_sizes),
        "resblock_inner_channels must have one entry a stage of ResBlock1, none above the channels of its stage": inner
        is None
        or (
            getattr(config, "resblock", "1") == "1"
            and len(inner) == stages
            and all(
                channels <= config.upsample_initial_channel // 2 ** (stage + 1)
                for stage, channels in enumerate(inner)
            )
        ),
        "kernel sizes must be odd": all(
            k % 2 for k in (*config.resblock_kernel_sizes, *(getattr(config, key) for key in _ODD))
        ),
        "its dilations must be 65536 at most": longest_dilation <= 65_536,
        "speaker_embedding_size must be above 0 where there are several speakers": config.num_speakers
        == 1
        or config.speaker_embedding_size > 0,
    }
    for rule, holds in rules.items():
        if not holds:
            raise InputError(
                f"{name} has a config.json that cannot be run ({rule}): check the checkpoint."
            )
