"""Which channels, branches and layers of a voice go together: what structured pruning cuts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from vits_prune.errors import InputError
from vits_prune.pruning.spec import Shape
from vits_prune.voices.architecture import VitsConfig
from vits_prune.voices.voice import Voice

ENCODER_LAYERS = "text_encoder.encoder.layers"
FLOWS = "flow.flows"
BRANCHES = "decoder.branches"
RESBLOCKS = "decoder.resblocks"

Kept = Mapping[str, tuple[int, ...]]
"""Group name -> indices that stay, ascending; a group that is not named stays whole."""
_COUNTS = {
    "branches": "residual branches a stage",
    "encoder_layers": "encoder layers",
    "flows": "coupling layers",
    "wavenet_layers": "WaveNet layers a coupling layer",
}
_FEWEST_CHOICES = 4


@dataclass(frozen=True)
class Sizes:
    """Numbers of channels and layers of a voice, as the levers of a Shape name them."""

    initial_channels: int
    """Channels that enter the decoder's first upsampling."""
    stage_channels: tuple[int, ...]
    """Of each decoder stage, half as many from one to the next."""
    inner_channels: tuple[int, ...] | None
    """Channels inside the steps of a ResBlock1, by stage; None for a voice with ResBlock2."""
    branches: int
    ffn_channels: int
    encoder_layers: int
    flows: int
    wavenet_layers: int


def sizes_of(config: VitsConfig) -> Sizes:
    """Return the sizes of the voices that a configuration describes."""
    stages = stage_channels(config.upsample_initial_channel, len(config.upsample_rates))
    narrow = getattr(config, "resblock_inner_channels", None)
    return Sizes(
        initial_channels=config.upsample_initial_channel,
        stage_channels=stages,
        inner_channels=None if getattr(config, "resblock", "1") == "2" else tuple(narrow or stages),
        branches=len(config.resblock_kernel_sizes),
        ffn_channels=config.ffn_dim,
        encoder_layers=config.num_hidden_layers,
        flows=config.prior_encoder_num_flows,
        wavenet_layers=config.prior_encoder_num_wavenet_layers,
    )


def stage_channels(initial: int, stages: int) -> tuple[int, ...]:
    """Return the channels of each decoder stage: HiFi-GAN halves them at every upsampling."""
    return tuple(initial // 2 ** (stage + 1) for stage in range(stages))


def sizes(config: VitsConfig, shape: Shape) -> Sizes:
    """Return what a Shape makes of the voices that a configuration describes, widths rounded.

    The decoder's initial channels become a multiple of 2**stages x `multiple`, so that its last
    stage has a multiple too; where that leaves fewer than four widths to choose from, `multiple`
    counts half, a quarter and so on.

    Raises:
        InputError: the voice does not have a lever, or so many layers.
    """
    now = sizes_of(config)
    if shape.resblock_width < 1 and now.inner_channels is None:
        raise InputError("This voice has single convolutions (ResBlock2): keep resblock_width 1.")
    counts = {name: getattr(shape, name) or getattr(now, name) for name in _COUNTS}
    for name, count in counts.items():
        there = getattr(now, name)
        if count > there:
            raise InputError(f"This voice has {there} {_COUNTS[name]}: {name} cannot be {count}.")
    stages, full, unit = len(now.stage_channels), now.initial_channels, shape.multiple
    while unit > 1 and (full % (2**stages * unit) or full < _FEWEST_CHOICES * 2**stages * unit):
        unit //= 2
    initial = _rounded(full, shape.decoder_width, 2**stages * unit)
    after = stage_channels(initial, stages)
    if not after[-1]:
        width = shape.decoder_width
        raise InputError(f"A decoder_width of {width:g} leaves no channel at the end: raise it.")
    inner = None
    if now.inner_channels is not None:  # they shrink with their stage, and by resblock_width on top
        shares = [
            one / stage * shape.resblock_width
            for one, stage in zip(now.inner_channels, now.stage_channels, strict=True)
        ]
        inner = tuple(
            _rounded(stage, share, shape.multiple) if share < 1 else stage
            for stage, share in zip(after, shares, strict=True)
        )
    return Sizes(
        initial_channels=initial,
        stage_channels=after,
        inner_channels=inner,
        ffn_channels=_rounded(now.ffn_channels, shape.ffn_width, shape.multiple),
        **counts,
    )


def _rounded(full: int, width: float, multiple: int) -> int:
    """The multiple nearest to width x full, at least one and at most all."""
    if width == 1:
        return full
    return min(full, multiple * max(1, math.floor(full * width / multiple + 0.5)))


@dataclass(frozen=True)
class Group:
    """Members of one kind of which some stay: channels that layers share, or blocks in a row."""

    name: str
    """For channels the layer that writes them first; for blocks their list, or BRANCHES."""
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
        """Return (parameter, dimension) wherever the channels run along a tensor's dimension."""
        found = []
        for name in self.writers:
            layer = model.get_submodule(name)
            found.append((f"{name}.weight", 1 - input_dimension(layer)))
            if layer.bias is not None:
                found.append((f"{name}.bias", 0))
        for name in self.readers:
            found.append((f"{name}.weight", input_dimension(model.get_submodule(name))))
        return tuple(found)


def input_dimension(layer: nn.Module) -> int:
    """Return where the input channels lie in a layer's weight; 0 for ConvTranspose1d alone."""
    return int(not isinstance(layer, nn.ConvTranspose1d))


def group_counts(voice: Voice, sizes: Sizes) -> dict[str, int]:
    """Return, by group name, how many members stay in a voice cut to these sizes."""
    branches = len(voice.model.config.resblock_kernel_sizes)

    def count(group: Group) -> int:
        if group.lever == "decoder_width":
            _, _, stage = group.name.partition("upsampler.")
            return sizes.stage_channels[int(stage)] if stage else sizes.initial_channels
        if group.lever == "resblock_width":
            return (sizes.inner_channels or ())[int(group.name.split(".")[2]) // branches]
        return sizes.ffn_channels if group.lever == "ffn_width" else getattr(sizes, group.lever)

    return {group.name: count(group) for group in groups(voice)}


def groups(voice: Voice) -> tuple[Group, ...]:
    """Return every group of a voice, in the order in which they run."""
    return tuple(_walk(voice))


def whole(voice: Voice, kept: Kept) -> dict[str, tuple[int, ...]]:
    """Return what stays of every group, also of those that stay whole."""
    return {one.name: kept.get(one.name, tuple(range(one.size))) for one in groups(voice)}


def _walk(voice: Voice) -> Iterator[Group]:
    now = sizes_of(voice.model.config)
    layers = [f"{ENCODER_LAYERS}.{index}" for index in range(now.encoder_layers)]
    for layer in layers:
        first, second = (f"{layer}.feed_forward.conv_{index}" for index in (1, 2))
        yield Group(first, "ffn_width", now.ffn_channels, (first,), (second,))
    yield _blocks(ENCODER_LAYERS, "encoder_layers", [(layer,) for layer in layers])
    flows = [f"{FLOWS}.{index}" for index in range(now.flows)]
    for flow in flows:
        net, steps = f"{flow}.wavenet", range(now.wavenet_layers)
        kinds = ("in_layers", "res_skip_layers")
        modules = [tuple(f"{net}.{kind}.{step}" for kind in kinds) for step in steps]
        yield _blocks(net, "wavenet_layers", modules)
    yield _blocks(FLOWS, "flows", [(flow,) for flow in flows])
    yield from _decoder(voice, now)


def _blocks(name: str, lever: str, blocks: list[tuple[str, ...]]) -> Group:
    return Group(name, lever, len(blocks), blocks=tuple(blocks))


def _decoder(voice: Voice, now: Sizes) -> Iterator[Group]:
    """The streams before the first upsampling and of each stage, the insides, the branches."""
    decoder, stages = voice.model.decoder, len(now.stage_channels)
    entry = ["decoder.conv_pre", "decoder.cond"][: 1 + hasattr(decoder, "cond")]
    width, first = "decoder_width", ("decoder.upsampler.0",)
    yield Group("decoder.conv_pre", width, now.initial_channels, tuple(entry), first)
    for stage, channels in enumerate(now.stage_channels):
        writers, readers = [f"decoder.upsampler.{stage}"], []
        for block in range(stage * now.branches, (stage + 1) * now.branches):
            path, module = f"{RESBLOCKS}.{block}", decoder.resblocks[block]
            if now.inner_channels is None:
                convs = [f"{path}.convs.{step}" for step in range(len(module.convs))]
                writers += convs
                readers += convs
                continue
            for step in range(len(module.convs1)):
                reader, writer = f"{path}.convs1.{step}", f"{path}.convs2.{step}"
                writers.append(writer)
                readers.append(reader)
                inner = now.inner_channels[stage]
                yield Group(reader, "resblock_width", inner, (reader,), (writer,))
        last = stage + 1 == stages
        readers.append("decoder.conv_post" if last else f"decoder.upsampler.{stage + 1}")
        yield Group(writers[0], width, channels, tuple(writers), tuple(readers))
    branches = [
        tuple(f"{RESBLOCKS}.{stage * now.branches + branch}" for stage in range(stages))
        for branch in range(now.branches)
    ]
    yield _blocks(BRANCHES, "branches", branches)


def latents_are_flipped(original: Voice, cut: Voice) -> bool:
    """Return whether the cut voice's decoder reads its latents in reverse order of channels.

    That is so if an odd number of couplings was removed.
    """
    flows = [voice.model.config.prior_encoder_num_flows for voice in (original, cut)]
    return (flows[0] - flows[1]) % 2 == 1
