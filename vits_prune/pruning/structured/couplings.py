"""Which channels, branches and layers of a voice must go together: the groups that structured pruning chooses from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from vits_prune.pruning.shape import Sizes, sizes_of
from vits_prune.voices.voice import Voice

ENCODER_LAYERS = "text_encoder.encoder.layers"
FLOWS = "flow.flows"
BRANCHES = "decoder.branches"
RESBLOCKS = "decoder.resblocks"


@dataclass(frozen=True)
class Group:
    """Things of one kind of which some stay: channels that several layers share, or blocks in a row.

    A channel goes with the rows of the layers that write it and the columns of those that read it. A block goes with all its layers.
    """

    name: str
    """For channels the layer that writes them first; for blocks the list that holds them, or "decoder.branches"."""
    lever: str
    """The field of Shape that says how many stay."""
    size: int
    """How many channels or blocks there are."""
    writers: tuple[str, ...] = ()
    """Layers whose output channels are the group's."""
    readers: tuple[str, ...] = ()
    """Layers whose input channels are the group's."""
    blocks: tuple[tuple[str, ...], ...] = ()
    """For each block the modules that make it up; empty for channels."""

    def slices(self, model: nn.Module) -> tuple[tuple[str, int], ...]:
        """(parameter, dimension) wherever the group's channels run along a dimension of a tensor."""
        found = []
        for name in self.writers:
            layer = model.get_submodule(name)
            found.append((f"{name}.weight", int(isinstance(layer, nn.ConvTranspose1d))))
            if layer.bias is not None:
                found.append((f"{name}.bias", 0))
        return (
            *found,
            *(
                (f"{name}.weight", input_dimension(model.get_submodule(name)))
                for name in self.readers
            ),
        )


def input_dimension(layer: nn.Module) -> int:
    """Where the input channels lie in a layer's weight: Conv1d and Linear are [out, in, ...], ConvTranspose1d is [in, out, k]."""
    return int(not isinstance(layer, nn.ConvTranspose1d))


def groups(voice: Voice) -> tuple[Group, ...]:
    """Every group of a voice, in the order in which they run."""
    return tuple(_walk(voice))


def group_counts(voice: Voice, sizes: Sizes) -> dict[str, int]:
    """Group name -> how many of it there are in a voice cut to these sizes."""
    return {
        group.name: _count(group, sizes, len(voice.model.config.resblock_kernel_sizes))
        for group in groups(voice)
    }


def _count(group: Group, sizes: Sizes, branches: int) -> int:
    if group.lever == "decoder_width":
        _, _, stage = group.name.partition("upsampler.")
        return sizes.stage_channels[int(stage)] if stage else sizes.initial_channels
    if group.lever == "resblock_width":
        return (sizes.inner_channels or ())[int(group.name.split(".")[2]) // branches]
    return sizes.ffn_channels if group.lever == "ffn_width" else getattr(sizes, group.lever)


def _walk(voice: Voice) -> Iterator[Group]:
    now = sizes_of(voice.model.config)
    layers = [f"{ENCODER_LAYERS}.{index}" for index in range(now.encoder_layers)]
    for layer in layers:
        feed = f"{layer}.feed_forward"
        yield Group(
            f"{feed}.conv_1",
            "ffn_width",
            now.ffn_channels,
            (f"{feed}.conv_1",),
            (f"{feed}.conv_2",),
        )
    yield Group(
        ENCODER_LAYERS,
        "encoder_layers",
        now.encoder_layers,
        blocks=tuple((layer,) for layer in layers),
    )
    flows = [f"{FLOWS}.{index}" for index in range(now.flows)]
    for flow in flows:
        net = f"{flow}.wavenet"
        steps = tuple(
            (f"{net}.in_layers.{step}", f"{net}.res_skip_layers.{step}")
            for step in range(now.wavenet_layers)
        )
        yield Group(net, "wavenet_layers", now.wavenet_layers, blocks=steps)
    yield Group(FLOWS, "flows", now.flows, blocks=tuple((flow,) for flow in flows))
    yield from _decoder(voice, now)


def _decoder(voice: Voice, now: Sizes) -> Iterator[Group]:
    """The residual stream before the first upsampling and that of each stage, what lies inside the blocks, and the branches."""
    model, stages = voice.model, len(now.stage_channels)
    writers = (
        ("decoder.conv_pre", "decoder.cond")
        if hasattr(model.decoder, "cond")
        else ("decoder.conv_pre",)
    )
    yield Group(
        "decoder.conv_pre", "decoder_width", now.initial_channels, writers, ("decoder.upsampler.0",)
    )
    for stage, channels in enumerate(now.stage_channels):
        writers, readers = [f"decoder.upsampler.{stage}"], []
        for block in range(stage * now.branches, (stage + 1) * now.branches):
            path = f"{RESBLOCKS}.{block}"
            if now.inner_channels is None:
                convs = [
                    f"{path}.convs.{step}"
                    for step in range(len(model.decoder.resblocks[block].convs))
                ]
                writers += convs
                readers += convs
                continue
            for step in range(len(model.decoder.resblocks[block].convs1)):
                first, second = f"{path}.convs1.{step}", f"{path}.convs2.{step}"
                writers.append(second)
                readers.append(first)
                yield Group(first, "resblock_width", now.inner_channels[stage], (first,), (second,))
        readers.append(
            f"decoder.upsampler.{stage + 1}" if stage + 1 < stages else "decoder.conv_post"
        )
        yield Group(
            f"decoder.upsampler.{stage}", "decoder_width", channels, tuple(writers), tuple(readers)
        )
    branches = [
        tuple(f"{RESBLOCKS}.{stage * now.branches + branch}" for stage in range(stages))
        for branch in range(now.branches)
    ]
    yield Group(BRANCHES, "branches", now.branches, blocks=tuple(branches))
