"""The duration predictor as ONNX nodes, the stochastic one (arXiv:2106.06103, section 2.2.2) and the plain one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

if TYPE_CHECKING:
    from vits_prune.voices.onnx_graph import VoiceGraph

_LEAST = 1e-3
"""Least width, height and slope of a spline's bin."""


def log_durations(v: VoiceGraph, hidden: str, speaker: str | None, noise: str) -> str:
    """Logarithms of frames [1, 1, tokens] of hidden states [1, hidden, tokens]; `noise` is the noise's scale [1]."""
    return _stochastic(v, hidden, speaker, noise) if v.config.use_stochastic_duration_prediction else _plain(v, hidden, speaker)


def _plain(v: VoiceGraph, x: str, speaker: str | None) -> str:
    if speaker is not None:
        x = v.g.op("Add", x, v.conv("duration_predictor.cond", speaker))
    for layer in ("1", "2"):
        x = v.norm(f"duration_predictor.norm_{layer}", v.g.op("Relu", v.conv(f"duration_predictor.conv_{layer}", x)))
    return v.conv("duration_predictor.proj", x)


def _stochastic(v: VoiceGraph, x: str, speaker: str | None, noise: str) -> str:
    g = v.g
    x = v.conv("duration_predictor.conv_pre", x)
    if speaker is not None:
        x = g.op("Add", x, v.conv("duration_predictor.cond", speaker))
    states = v.conv("duration_predictor.conv_proj", _separable(v, "duration_predictor.conv_dds", x))
    like = g.op("Slice", states, g.integers(0), g.integers(2), g.integers(1))  # of the shape that is wanted, [1, 2, tokens]
    z = g.op("Mul", g.op("RandomNormalLike", like), noise)
    for index in range(v.config.duration_predictor_num_flows, 1, -1):  # the first spline flow is skipped at inference
        z = _spline_flow(v, f"duration_predictor.flows.{index}", v.flip(z), states)
    name = "duration_predictor.flows.0"
    mean, log_scale = (
        v.parameter(f"{name}.{ours}", f"dp.flows.0.{theirs}") for ours, theirs in (("translate", "m"), ("log_scale", "logs"))
    )
    z = g.op("Mul", g.op("Sub", v.flip(z), mean), g.op("Exp", g.op("Neg", log_scale)))
    return v.split(z, [1, 1])[0]


def _separable(v: VoiceGraph, name: str, x: str) -> str:
    """Dilated depth-separable convolutions."""
    for index in range(v.config.depth_separable_num_layers):
        y = v.gelu(v.norm(f"{name}.norms_1.{index}", v.conv(f"{name}.convs_dilated.{index}", x)))
        y = v.gelu(v.norm(f"{name}.norms_2.{index}", v.conv(f"{name}.convs_pointwise.{index}", y)))
        x = v.g.op("Add", x, y)
    return x


def _spline_flow(v: VoiceGraph, name: str, z: str, states: str) -> str:
    """One coupling backwards: [1, 2, tokens] to the same."""
    g, bins = v.g, v.config.duration_predictor_flow_bins
    first, second = v.split(z, [1, 1])
    x = _separable(v, f"{name}.conv_dds", g.op("Add", v.conv(f"{name}.conv_pre", first), states))
    x = g.op("Transpose", v.conv(f"{name}.conv_proj", x), perm=[0, 2, 1])  # [1, tokens, 3 bins - 1]
    widths, heights, slopes = v.split(x, [bins, bins, bins - 1], axis=2)
    scale = g.constant(math.sqrt(v.config.hidden_size))
    spline = _Spline(v, bins, v.config.duration_predictor_tail_bound)
    return g.op("Concat", first, spline.inverse(second, g.op("Div", widths, scale), g.op("Div", heights, scale), slopes), axis=1)


class _Spline:
    """Monotonic rational-quadratic splines with linear tails (Durkan et al. 2019, arXiv:1906.04032)."""

    def __init__(self, v: VoiceGraph, bins: int, bound: float) -> None:
        self.g, self.bins, self.bound = v.g, bins, bound

    def inverse(self, x: str, widths: str, heights: str, slopes: str) -> str:
        """The input of the spline whose output is x [1, 1, tokens]; beyond the bound the spline is the identity.

        Args:
            x: what the spline gave.
            widths, heights: of the bins, before normalisation, [1, tokens, bins].
            slopes: at the inner knots, before normalisation, [1, tokens, bins - 1].
        """
        g = self.g
        limits = g.constant(-self.bound), g.constant(self.bound)
        inside = g.op("And", g.op("GreaterOrEqual", x, limits[0]), g.op("LessOrEqual", x, limits[1]))
        y = g.op("Transpose", g.op("Clip", x, *limits), perm=[0, 2, 1])  # [1, tokens, 1]
        knots_x, widths = self._knots(widths)
        knots_y, heights = self._knots(heights)
        # The slope at both ends is 1: softplus of this constant, and _LEAST more.
        edge = g.op("Expand", g.constant(math.log(math.exp(1 - _LEAST) - 1)), g.op("Shape", y))
        slopes = g.op("Add", g.op("Softplus", g.op("Concat", edge, slopes, edge, axis=2)), g.constant(_LEAST))
        passed = g.op("GreaterOrEqual", y, self._slice(knots_y, 1, self.bins))  # the inner knots below y
        index = g.op("ReduceSum", g.op("Cast", passed, to=TensorProto.INT64), g.integers(2), keepdims=1)
        after = g.op("Add", index, g.constant(1, np.int64))
        left, width, bottom, height = (g.op("GatherElements", t, index, axis=2) for t in (knots_x, widths, knots_y, heights))
        slope, next_slope = (g.op("GatherElements", slopes, at, axis=2) for at in (index, after))
        root = self._root(g.op("Sub", y, bottom), height, g.op("Div", height, width), slope, next_slope)
        found = g.op("Transpose", g.op("Add", g.op("Mul", root, width), left), perm=[0, 2, 1])
        return g.op("Where", inside, found, x)

    def _slice(self, x: str, begin: int, end: int) -> str:
        i = self.g.integers
        return self.g.op("Slice", x, i(begin), i(end), i(2))

    def _knots(self, sizes: str) -> tuple[str, str]:
        """Knots from -bound to bound, [1, tokens, bins + 1], and the sizes of the bins between them."""
        g, bound = self.g, self.bound
        shares = g.op("Softmax", sizes, axis=2)
        shares = g.op("Add", g.op("Mul", shares, g.constant(1 - _LEAST * self.bins)), g.constant(_LEAST))
        sums = g.op("CumSum", shares, g.constant(2, np.int64))
        inner = g.op("Add", g.op("Mul", self._slice(sums, 0, self.bins - 1), g.constant(2 * bound)), g.constant(-bound))
        one = g.op("Shape", self._slice(sums, 0, 1))
        ends = [g.op("Expand", g.constant(end), one) for end in (-bound, bound)]
        knots = g.op("Concat", ends[0], inner, ends[1], axis=2)
        return knots, g.op("Sub", self._slice(knots, 1, self.bins + 1), self._slice(knots, 0, self.bins))

    def _root(self, above: str, height: str, delta: str, slope: str, next_slope: str) -> str:
        """Where in its bin, from 0 to 1, the spline is so far above the bin's lower knot: the root of a quadratic equation."""
        g = self.g
        bend = g.op("Sub", g.op("Add", slope, next_slope), g.op("Mul", delta, g.constant(2.0)))
        bent = g.op("Mul", above, bend)
        a = g.op("Add", g.op("Mul", height, g.op("Sub", delta, slope)), bent)
        b = g.op("Sub", g.op("Mul", height, slope), bent)
        c = g.op("Neg", g.op("Mul", delta, above))
        discriminant = g.op("Sub", g.op("Mul", b, b), g.op("Mul", g.op("Mul", a, c), g.constant(4.0)))
        below = g.op("Sub", g.op("Neg", b), g.op("Sqrt", g.op("Relu", discriminant)))
        return g.op("Div", g.op("Mul", c, g.constant(2.0)), below)
