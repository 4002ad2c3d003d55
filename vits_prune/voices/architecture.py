"""The network behind a Voice: transformers' VitsModel less what never runs, and the decoder blocks that VitsConfig cannot describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel

from vits_prune.voices.voice import FreeCut


class ResidualBlock2(nn.Module):
    """HiFi-GAN's ResBlock2: one convolution a step, x + conv(leaky_relu(x)) (Kong et al. 2020, arXiv:2010.05646, appendix A).

    Shapes: [batch, channels, frames] in and out.
    """

    def __init__(
        self, channels: int, kernel_size: int, dilations: tuple[int, ...], leaky_relu_slope: float
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
            hidden_states = conv(
                nn.functional.leaky_relu(hidden_states, self.leaky_relu_slope)
            ).add_(hidden_states)
        return hidden_states


@strict
class NarrowVitsConfig(VitsConfig):
    """VitsConfig with residual blocks that are narrower inside than outside, as structured pruning leaves them.

    Its own model type keeps plain transformers from opening such a voice with blocks that do not fit.
    """

    model_type = "vits_narrow"

    resblock_inner_channels: list[int] | None = None
    """Channels between the two convolutions of a ResBlock1's steps, by decoder stage; None where they are as wide as the stage."""


class NarrowVitsModel(VitsModel):
    """VitsModel with the decoder blocks that its NarrowVitsConfig asks for."""

    config_class = NarrowVitsConfig

    def __init__(self, config: NarrowVitsConfig) -> None:
        super().__init__(config)
        _narrow(self.decoder.resblocks, config)


@strict
class PiperVitsConfig(VitsConfig):
    """VitsConfig with the facts about Piper voices that it cannot say.

    Its own model type keeps plain transformers from opening such a voice with the wrong decoder blocks.
    """

    model_type = "vits_piper"

    resblock: str = "2"
    """HiFi-GAN's residual block: "1" (high quality voices) or "2" (medium, low and x-low)."""
    resblock_inner_channels: list[int] | None = None
    """As NarrowVitsConfig has it."""


class PiperVitsModel(VitsModel):
    """VitsModel with the decoder blocks that its PiperVitsConfig asks for."""

    config_class = PiperVitsConfig

    def __init__(self, config: PiperVitsConfig) -> None:
        super().__init__(config)
        if config.resblock == "2":
            self.decoder.resblocks = nn.ModuleList(
                ResidualBlock2(
                    config.upsample_initial_channel // 2 ** (stage + 1),
                    kernel_size,
                    tuple(dilations),
                    config.leaky_relu_slope,
                )
                for stage in range(len(config.upsample_rates))
                for kernel_size, dilations in zip(
                    config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
                )
            )
        else:
            _narrow(self.decoder.resblocks, config)


def _narrow(resblocks: nn.ModuleList, config: NarrowVitsConfig | PiperVitsConfig) -> None:
    """Put convolutions of fewer inner channels into HiFi-GAN's ResBlock1s, in place; their forward takes any number."""
    branches = len(config.resblock_kernel_sizes)
    for index, block in enumerate(resblocks):
        if not config.resblock_inner_channels:
            return
        inner = config.resblock_inner_channels[index // branches]
        block.convs1 = nn.ModuleList(
            _convolution(conv, conv.in_channels, inner) for conv in block.convs1
        )
        block.convs2 = nn.ModuleList(
            _convolution(conv, inner, conv.out_channels) for conv in block.convs2
        )


def _convolution(like: nn.Conv1d, inputs: int, outputs: int) -> nn.Conv1d:
    """A convolution with the kernel of another one between other numbers of channels."""
    return nn.Conv1d(
        inputs, outputs, like.kernel_size, padding=like.padding, dilation=like.dilation
    )


def with_inner_channels(config: VitsConfig, channels: Sequence[int]) -> VitsConfig:
    """A configuration whose residual blocks have these inner channels by stage, of another class where VitsConfig cannot say so."""
    if not hasattr(config, "resblock_inner_channels"):
        config = NarrowVitsConfig(
            **{
                fact.name: getattr(config, fact.name)
                for fact in dataclasses.fields(VitsConfig)
                if fact.init
            }
        )
    config.resblock_inner_channels = list(channels)
    return config


def in_plain_layout(config: VitsConfig) -> bool:
    """Whether plain transformers can open a voice of this configuration."""
    return config.model_type == VitsConfig.model_type


def _count(model: nn.Module) -> tuple[int, int]:
    """Parameters of a module and their bytes."""
    tensors = list(model.parameters())
    return sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)


def fold_and_cut(model: VitsModel) -> FreeCut:
    """Fold weight norm into plain weights and leave out what never runs at inference, in place.

    Left out are the posterior encoder (it reads recordings, in training only), the stochastic duration predictor's posterior half, and its
    second flow, which inference skips ("remove a useless vflow"). Folding writes w = g v / ||v|| once (Salimans & Kingma 2016,
    arXiv:1602.07868) with the very operation that ran at every forward, so waveforms stay the same to the bit.

    The model must not have been copied before: torch shares the class it injects for weight norm among copies.
    """
    parameters, size = _count(model)
    model.posterior_encoder = None
    predictor = model.duration_predictor
    if model.config.use_stochastic_duration_prediction:
        for name in ("post_conv_pre", "post_conv_proj", "post_conv_dds", "post_flows"):
            setattr(predictor, name, None)
        if len(predictor.flows) > 1:
            predictor.flows[1] = (
                nn.Identity()
            )  # keeps the place: the forward drops it by its position
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    model.eval().requires_grad_(False)
    left_parameters, left_size = _count(model)
    return FreeCut(parameters - left_parameters, size - left_size)


def empty_model(config: VitsConfig) -> VitsModel:
    """A folded and cut model of this configuration without memory behind its tensors (torch's meta device), to be filled.

    Filling: `model.load_state_dict(tensors, strict=True, assign=True)`.
    """
    with torch.device("meta"):
        kinds = {PiperVitsConfig: PiperVitsModel, NarrowVitsConfig: NarrowVitsModel}
        model = kinds.get(type(config), VitsModel)(config)
        fold_and_cut(model)
    return model


def copy_with_weights(model: VitsModel, weights: Mapping[str, torch.Tensor]) -> VitsModel:
    """A copy of a folded model with some parameters replaced and all others shared.

    Raises:
        KeyError: a name is not a parameter of the model.
        ValueError: a tensor has another shape.
    """
    parameters = dict(model.named_parameters())
    replaced: dict[int, nn.Parameter] = {}
    for name, tensor in weights.items():
        if tensor.shape != parameters[name].shape:
            raise ValueError(
                f"{name} is {tuple(parameters[name].shape)}, not {tuple(tensor.shape)}."
            )
        replaced[id(parameters[name])] = nn.Parameter(tensor, requires_grad=False)
    return _clone(model, replaced)


def _clone(module: nn.Module, replaced: Mapping[int, nn.Parameter]) -> nn.Module:
    """A module made anew around the same tensors, less those replaced; copy.deepcopy takes several times as long.

    Containers of the module, its hooks among them, are its own; what they hold is shared.
    """
    clone = object.__new__(type(module))
    for name, value in vars(module).items():
        clone.__dict__[name] = value.copy() if isinstance(value, (dict, list, set)) else value
    for name, parameter in module._parameters.items():
        clone._parameters[name] = replaced.get(id(parameter), parameter)
    for name, child in module._modules.items():
        clone._modules[name] = None if child is None else _clone(child, replaced)
    return clone
