"""The network of a Voice: VitsModel less what never runs, and decoder blocks that it lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel

from vits_prune.voices.voice import FreeCut


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
                channels,
                channels,
                kernel_size,
                dilation=dilation,
                padding=(kernel_size - 1) * dilation // 2,
            )
            for dilation in dilations
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            activated = nn.functional.leaky_relu(hidden_states, self.leaky_relu_slope)
            hidden_states = conv(activated).add_(hidden_states)
        return hidden_states


# Both classes below have a model type of their own, so that plain transformers refuses such a
# voice instead of opening it with decoder blocks that do not fit. `resblock_inner_channels` holds,
# by decoder stage, the channels between the two convolutions of a ResBlock1 step; None where they
# are as wide as the stage.


@strict
class NarrowVitsConfig(VitsConfig):
    """VitsConfig for residual blocks that structured pruning made narrower inside than outside."""

    model_type = "vits_narrow"

    resblock_inner_channels: list[int] | None = None


class NarrowVitsModel(VitsModel):
    """VitsModel with the decoder blocks of its NarrowVitsConfig."""

    config_class = NarrowVitsConfig

    def __init__(self, config: NarrowVitsConfig) -> None:
        super().__init__(config)
        _narrow(self.decoder.resblocks, config)


@strict
class PiperVitsConfig(VitsConfig):
    """VitsConfig for Piper voices: resblock "1" (high quality) or "2" (medium, low, x-low)."""

    model_type = "vits_piper"

    resblock: str = "2"
    resblock_inner_channels: list[int] | None = None


class PiperVitsModel(VitsModel):
    """VitsModel with the decoder blocks of its PiperVitsConfig."""

    config_class = PiperVitsConfig

    def __init__(self, config: PiperVitsConfig) -> None:
        super().__init__(config)
        if config.resblock == "1":
            _narrow(self.decoder.resblocks, config)
            return
        kernels = list(
            zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        )
        self.decoder.resblocks = nn.ModuleList(
            ResidualBlock2(
                config.upsample_initial_channel // 2 ** (stage + 1),
                kernel_size,
                dilations,
                config.leaky_relu_slope,
            )
            for stage in range(len(config.upsample_rates))
            for kernel_size, dilations in kernels
        )


def _narrow(resblocks: nn.ModuleList, config: NarrowVitsConfig | PiperVitsConfig) -> None:
    """Give ResBlock1s fewer inner channels, in place; their forward takes any number."""
    if not config.resblock_inner_channels:
        return
    branches = len(config.resblock_kernel_sizes)
    for index, block in enumerate(resblocks):
        inner = config.resblock_inner_channels[index // branches]
        block.convs1 = nn.ModuleList(
            _convolution(conv, conv.in_channels, inner) for conv in block.convs1
        )
        block.convs2 = nn.ModuleList(
            _convolution(conv, inner, conv.out_channels) for conv in block.convs2
        )


def _convolution(like: nn.Conv1d, inputs: int, outputs: int) -> nn.Conv1d:
    return nn.Conv1d(
        inputs, outputs, like.kernel_size, padding=like.padding, dilation=like.dilation
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

    Left out are the posterior encoder (it reads recordings, in training only), the posterior half
    of the stochastic duration predictor, and its second flow, which inference skips ("remove a
    useless vflow"). Folding writes w = g v / ||v|| once (Salimans & Kingma 2016, arXiv:1602.07868)
    with the very operation that ran at every forward, so that waveforms stay the same to the bit.

    The model must not have been copied before: copies share the class that torch makes for weight
    norm.
    """
    parameters, size = _count(model)
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
    model.eval().requires_grad_(False)
    left_parameters, left_size = _count(model)
    return FreeCut(parameters - left_parameters, size - left_size)


def _count(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters and their bytes."""
    tensors = list(model.parameters())
    return sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)


def empty_model(config: VitsConfig) -> VitsModel:
    """Return a folded and cut model whose tensors have no memory (torch's meta device).

    Fill it with `model.load_state_dict(tensors, strict=True, assign=True)`.
    """
    models = {model.config_class: model for model in (PiperVitsModel, NarrowVitsModel)}
    with torch.device("meta"):
        model = models.get(type(config), VitsModel)(config)
        fold_and_cut(model)
    return model
