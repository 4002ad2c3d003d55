"""How many frames on each side of a frame a part of the network looks at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vits_prune.voices.architecture import VitsConfig

_MOST = 64
"""A context beyond this is cut off: it costs more than the last few percent of exactness are worth."""


def decoder_reach(config: VitsConfig) -> int:
    """Frames that a sample depends on, beyond its own, on each side (HiFi-GAN's generator)."""
    plain = getattr(config, "resblock", "1") == "2"  # one convolution a step, not two
    frames, rate = 3.0, 1
    for stride, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        frames += math.ceil(kernel / stride / 2) / rate
        rate *= stride
        frames += (
            max(
                sum((size - 1) // 2 * (dilation + (0 if plain else 1)) for dilation in dilations)
                for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            )
            / rate
        )
    return min(_MOST, math.ceil(frames + 3 / rate))


def flow_reach(config: VitsConfig) -> int:
    """Frames that a frame of the latents depends on, beyond its own, on each side."""
    side = (config.wavenet_kernel_size - 1) // 2
    one = sum(side * config.wavenet_dilation_rate**layer for layer in range(config.prior_encoder_num_wavenet_layers))
    return min(_MOST, one * config.prior_encoder_num_flows)
