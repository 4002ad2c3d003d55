"""Units: what of a voice can run sparse, each with its sparse program and its dense twin.

A unit is a coupling layer of the flow, the decoder's first convolution, or one of its stages (a
transposed convolution with its residual blocks). Units pass activations [rows, frames] on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vits_prune.kernels import tiles
from vits_prune.kernels.programs import Program, ProgramBuilder

FINAL_SLOPE = 0.01
"""Of the leaky ReLU before the decoder's last convolution: torch's default."""
_OTHER = {"one": "two", "two": "one"}
"""The buffer to write to while the other is read."""
Conditioning = torch.Tensor | None


@dataclass(eq=False)
class Unit:
    """A part of a voice that runs as a whole.

    Args:
        name: such as "decoder stage 2".
        inputs, rows: of the input and the output.
        rate: frames of the output for one of the input; `tail` more at the end.
        dense: torch's computation, [1, rows, frames] to the same.
        make: packs the sparse program, with True as if no weight were zero; None: too large.
        shift: given the conditioning, what it adds to the program's bias; None without.
        in_place: whether the output is the input with some rows changed.
    """

    name: str
    inputs: int
    rows: int
    rate: int
    layers: tuple[nn.Module, ...]
    dense: Callable[[torch.Tensor, Conditioning], torch.Tensor]
    make: Callable[[bool], Program | None]
    shift: Callable[[torch.Tensor], np.ndarray] | None = None
    in_place: bool = False
    tail: int = 0

    @property
    def shape(self) -> str:
        """What the time depends on besides the density: kinds and shapes of the layers."""
        sizes = [(*one.weight.shape, *one.stride, *one.dilation) for one in self.layers]
        return f"{self.name} {sizes}" if self.rate > 1 else f"{self.name.partition(' ')[0]} {sizes}"

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        weights = [layer.weight for layer in self.layers]
        return sum(int(one.count_nonzero()) for one in weights) / sum(
            one.numel() for one in weights
        )


def decoder_units(decoder: nn.Module, slope: float) -> Iterator[Unit]:
    """Yield the units of HiFi-GAN's generator, in the order in which they run."""
    yield _first(decoder, slope)
    count, branches = len(decoder.upsampler), decoder.num_kernels
    for index, upsample in enumerate(decoder.upsampler):
        blocks = list(decoder.resblocks[index * branches : (index + 1) * branches])
        post = decoder.conv_post if index + 1 == count else None
        yield stage_unit(f"decoder stage {index + 1}", upsample, blocks, post, slope)


def _first(decoder: nn.Module, slope: float) -> Unit:
    layer = decoder.conv_pre

    def dense(x: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        hidden = layer(x)
        if conditioning is not None:
            hidden = hidden + decoder.cond(conditioning)
        return functional.leaky_relu(hidden, slope)

    def make(full: bool = False) -> Program | None:
        builder = ProgramBuilder(full, slope)
        builder.load("x", layer.in_channels)
        builder.convolve(layer, "x", "y", mode=tiles.ACTIVATED)
        builder.store("y", layer.out_channels)
        return builder.build()

    def shift(conditioning: torch.Tensor) -> np.ndarray:
        return decoder.cond(conditioning)[0, :, 0].numpy()

    sizes = layer.in_channels, layer.out_channels
    return Unit("decoder input", *sizes, 1, (layer,), dense, make, shift)


def _convolutions(block: nn.Module) -> list[tuple[nn.Conv1d, ...]]:
    """Return the convolutions of each step of a residual block: two (ResBlock1) or one."""
    if hasattr(block, "convs1"):
        return list(zip(block.convs1, block.convs2, strict=True))
    return [(one,) for one in block.convs]


def stage_unit(
    name: str,
    upsample: nn.ConvTranspose1d,
    blocks: list[nn.Module],
    post: nn.Conv1d | None,
    slope: float,
) -> Unit:
    """Return a stage of the decoder; with `post`, the last one, it ends in the waveform."""
    last_slope = slope if post is None else FINAL_SLOPE
    rows = upsample.out_channels
    inside = [one for block in blocks for step in _convolutions(block) for one in step]

    def dense(x: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        x = upsample(x)
        total = blocks[0](x)
        for block in blocks[1:]:
            total += block(x)
        x = functional.leaky_relu(total / len(blocks), last_slope)
        return x if post is None else torch.tanh(post(x))

    def make(full: bool = False) -> Program | None:
        builder = ProgramBuilder(full, slope, last_slope, 1 / len(blocks))
        builder.upsample(upsample, "x")
        builder.add(tiles.LEAKY, "x", "active", rows)
        for index, block in enumerate(blocks):
            source, spare, residual = "active", "one", "x"
            steps = _convolutions(block)
            for step in steps:
                for layer in step[:-1]:
                    builder.convolve(layer, source, spare, mode=tiles.ACTIVATED)
                    source, spare = spare, _OTHER[spare]
                how: dict[str, Any] = {"mode": tiles.RESIDUAL_ACTIVATED, "kept": "branch"}
                if step is steps[-1]:
                    how, spare = {"mode": tiles.SUM}, "sum"
                    if index == 0:
                        how, spare = {"mode": tiles.RESIDUAL, "kept": "sum"}, ""
                builder.convolve(step[-1], source, spare, residual=residual, **how)
                source, spare, residual = spare, _OTHER.get(spare, ""), "branch"
        if post is None:
            builder.store("sum", rows, how=tiles.STORE_LEAKY)
        else:
            builder.add(tiles.LEAKY, "sum", "one", rows, extra=1)
            weight = post.weight.detach().float().numpy() / len(blocks)
            shift = np.zeros(1, np.float32) if post.bias is None else post.bias.detach().numpy()
            builder.convolve(post, "one", "two", weight=weight, bias=shift)
            builder.store("two", 1, how=tiles.STORE_TANH)
        return builder.build()

    layers = (upsample, *inside, *([] if post is None else [post]))
    outputs = rows if post is None else post.out_channels
    rate = upsample.stride[0]
    tail = upsample.kernel_size[0] - 2 * upsample.padding[0] - rate
    return Unit(name, upsample.in_channels, outputs, rate, layers, dense, make, tail=tail)


def flow_units(flow: nn.Module) -> Iterator[Unit]:
    """Yield the coupling layers in the order in which they run backwards.

    The flow turns the channels round before each layer. Here they stay where they are, and the
    weights of every second layer are turned round instead (see `turned_at_end`).
    """
    for index, layer in enumerate(reversed(flow.flows)):
        yield coupling_unit(f"flow {index + 1}", layer, turned=index % 2 == 0)


def turned_at_end(flow: nn.Module) -> bool:
    """Return whether the channels are the other way round after the units of `flow_units`."""
    return len(flow.flows) % 2 == 1


def _added_to(buffer: str) -> dict[str, Any]:
    return {"mode": tiles.RESIDUAL, "residual": buffer, "kept": buffer}


def coupling_unit(name: str, layer: nn.Module, turned: bool) -> Unit:
    """Return a coupling layer run backwards; `turned`: its channels are the other way round."""
    half, net = layer.half_channels, layer.wavenet
    hidden = net.hidden_size
    read, written = (half, 0) if turned else (0, half)

    def dense(x: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        if turned:
            x = x.flip(1)
        out, _ = layer(x, torch.ones_like(x[:, :1]), conditioning, reverse=True)
        return out.flip(1) if turned else out

    def make(full: bool = False) -> Program | None:
        builder = ProgramBuilder(full)
        weight, bias = (
            one.detach().float().numpy() for one in (layer.conv_pre.weight, layer.conv_pre.bias)
        )
        builder.load("half", half, first=read)
        weight = weight[:, ::-1] if turned else weight
        builder.convolve(layer.conv_pre, "half", "x", weight=weight, bias=bias)
        for index, (inner, outer) in enumerate(
            zip(net.in_layers, net.res_skip_layers, strict=True)
        ):
            builder.convolve(inner, "x", "gates")
            builder.add(tiles.GATE, "gates", "acts", hidden)
            weight, bias = (
                outer.weight.detach().float().numpy(),
                outer.bias.detach().float().numpy(),
            )
            if index + 1 < net.num_layers:
                first, second = (weight[:hidden], bias[:hidden]), (weight[hidden:], bias[hidden:])
                builder.convolve(outer, "acts", weight=first[0], bias=first[1], **_added_to("x"))
                weight, bias = second
            skip = _added_to("skip") if index else {"target": "skip"}
            builder.convolve(outer, "acts", weight=weight, bias=bias, **skip)
        builder.load("rest", half, first=written)
        weight, bias = (
            -one.detach().float().numpy() for one in (layer.conv_post.weight, layer.conv_post.bias)
        )
        if turned:
            weight, bias = weight[::-1], bias[::-1]
        builder.convolve(layer.conv_post, "skip", weight=weight, bias=bias, **_added_to("rest"))
        builder.store("rest", half, first=written)
        return builder.build()

    def shift(conditioning: torch.Tensor) -> np.ndarray:
        parts = net.cond_layer(conditioning)[0, :, 0].numpy().reshape(net.num_layers, 2 * hidden)
        pieces = [np.zeros(hidden, np.float32)]
        for index, outer in enumerate(net.res_skip_layers):
            pieces += [parts[index], np.zeros(outer.out_channels, np.float32)]
        return np.concatenate([*pieces, np.zeros(half, np.float32)])

    layers = (layer.conv_pre, *net.in_layers, *net.res_skip_layers, layer.conv_post)
    return Unit(name, 2 * half, 2 * half, 1, layers, dense, make, shift, in_place=True)
