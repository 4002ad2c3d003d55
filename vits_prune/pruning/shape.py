"""Shape: how much of a voice's structure stays, as a value, and the sizes that result."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError
from vits_prune.fields import Options, check_options, option

if TYPE_CHECKING:
    from vits_prune.voices.architecture import VitsConfig

_COUNTS = {
    "branches": "residual branches a stage",
    "encoder_layers": "encoder layers",
    "flows": "coupling layers",
    "wavenet_layers": "WaveNet layers a coupling layer",
}
_FEWEST_CHOICES = 4


def _width(help: str) -> Any:
    return option(1.0, help, float, above=0, high=1)


def _count(default: int | None, help: str) -> Any:
    return option(default, help, int, low=1, high=1024)


@dataclass(frozen=True)
class Shape(Options):
    """What stays of a voice's structure: frozen, hashable, the same after a trip through JSON.

    By default everything stays.

    Raises:
        InputError: a field is out of its range; the message says which and what fits.
    """

    decoder_width: float = _width("share of the decoder's channels, the same in every stage")
    branches: int | None = _count(None, "residual branches (kernel sizes) of each decoder stage")
    resblock_width: float = _width(
        "share, of what decoder_width leaves, of the channels inside each step of a ResBlock1"
    )
    ffn_width: float = _width("share of the inner channels of the encoder's feed-forward layers")
    encoder_layers: int | None = _count(None, "layers of the text encoder")
    flows: int | None = _count(None, "coupling layers of the flow")
    wavenet_layers: int | None = _count(None, "WaveNet layers in each coupling layer")
    multiple: int = _count(8, "widths are rounded to a multiple of this many channels")

    def __post_init__(self) -> None:
        check_options(self)

    def in_words(self) -> list[str]:
        """Return the levers that are set, such as ["decoder width 50%", "flows 2"]."""
        found = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                shown = f"{100 * value:.4g}%" if isinstance(value, float) else value
                found.append(f"{field.name.replace('_', ' ')} {shown}")
        return found


@dataclass(frozen=True)
class Sizes:
    """Numbers of channels and layers of a voice."""

    initial_channels: int
    """Channels that enter the decoder's first upsampling."""
    stage_channels: tuple[int, ...]
    """Channels of each decoder stage, half as many from one to the next."""
    inner_channels: tuple[int, ...] | None
    """Channels inside the steps of a ResBlock1, by stage; None for a voice with ResBlock2."""
    branches: int
    """Residual branches of each decoder stage."""
    ffn_channels: int
    """Inner channels of each feed-forward layer of the encoder."""
    encoder_layers: int
    flows: int
    """Coupling layers."""
    wavenet_layers: int
    """WaveNet layers in each coupling layer."""


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
        raise InputError(
            "This voice has single convolutions in its residual blocks (ResBlock2): leave "
            "resblock_width at 1."
        )
    counts = {name: getattr(shape, name) or getattr(now, name) for name in _COUNTS}
    for name, count in counts.items():
        there = getattr(now, name)
        if count > there:
            raise InputError(f"This voice has {there} {_COUNTS[name]}: {name} cannot be {count}.")
    stages, full = len(now.stage_channels), now.initial_channels
    unit = _decoder_unit(full, stages, shape.multiple)
    initial = _rounded(full, shape.decoder_width, unit)
    after = stage_channels(initial, stages)
    if not after[-1]:
        raise InputError(
            f"A decoder_width of {shape.decoder_width:g} leaves no channel in the last stage: give "
            "a larger one."
        )
    return Sizes(
        initial_channels=initial,
        stage_channels=after,
        inner_channels=None if now.inner_channels is None else _inner(now, after, shape),
        ffn_channels=_rounded(now.ffn_channels, shape.ffn_width, shape.multiple),
        **counts,
    )


def _inner(now: Sizes, stages: tuple[int, ...], shape: Shape) -> tuple[int, ...]:
    """Inner channels by stage: they shrink with their stage, and by resblock_width on top."""
    inner = zip(now.inner_channels or (), now.stage_channels, strict=True)
    shares = [one / stage * shape.resblock_width for one, stage in inner]
    return tuple(
        _rounded(stage, share, shape.multiple) if share < 1 else stage
        for stage, share in zip(stages, shares, strict=True)
    )


def _rounded(full: int, width: float, multiple: int) -> int:
    """The multiple nearest to width x full, at least one and at most all."""
    if width == 1:
        return full
    return min(full, multiple * max(1, math.floor(full * width / multiple + 0.5)))


def _decoder_unit(initial: int, stages: int, multiple: int) -> int:
    """What the decoder's initial channels are a multiple of."""
    while multiple > 1 and (
        initial % (2**stages * multiple) or initial < _FEWEST_CHOICES * 2**stages * multiple
    ):
        multiple //= 2
    return 2**stages * multiple
