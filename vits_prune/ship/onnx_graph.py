"""A Voice as one ONNX graph with dynamic lengths, and Piper's names of inputs, output and weights.

Kim et al. 2021, arXiv:2106.06103: text encoder, durations, the prior stretched to them, the flow
backwards, the decoder. The graph speaks one sentence at a time, as Piper's runtimes do, so it needs
none of the masks of a batch. Activations are [1, channels, positions].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from vits_prune.errors import InputError
from vits_prune.ship.onnx_writer import GraphWriter, Value
from vits_prune.synthesis.inference import MAX_SENTENCE_SECONDS
from vits_prune.voices.piper_model import piper_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vits_prune.voices.voice import Voice

_LEAST = 1e-3
"""Least width, height and slope of a spline's bin."""
_FIRST, _ONE = np.int64(0), np.int64(1)


@dataclass(frozen=True)
class OnnxVoice:
    """A voice as the bytes of an ONNX file."""

    data: bytes
    rounded: Mapping[str, torch.Tensor]
    """The weights that the file computes with if they are not the voice's own, by name."""


def write_onnx(
    voice: Voice,
    precision: str = "fp32",
    facts: Mapping[str, str] | None = None,
    most_frames: int | None = None,
) -> OnnxVoice:
    """Write the whole voice as one graph.

    Inputs: input int64 [1, phonemes], input_lengths int64 [1], scales float32 [3] (noise, length,
    duration noise), and sid int64 [1] if there are several speakers. Output: output float32
    [1, 1, 1, samples].

    Args:
        voice: any VITS voice, on the CPU.
        precision: of the stored weights, "fp32", "fp16" or "int8"; all of them compute in float32.
        facts: for the file's metadata.
        most_frames: where a sentence whose durations run away ends, by default as in `speak`.

    Raises:
        InputError: an unknown activation function, or weights that fp16 does not hold.
    """
    network = VoiceGraph(voice.model, GraphWriter(precision))
    longest = int(MAX_SENTENCE_SECONDS * voice.sampling_rate / voice.hop_length)
    network.write(most_frames or longest)
    inputs: dict[str, tuple[int, list]] = {
        "input": (TensorProto.INT64, [1, "phonemes"]),
        "input_lengths": (TensorProto.INT64, [1]),
        "scales": (TensorProto.FLOAT, [3]),
    }
    if voice.model.config.num_speakers > 1:
        inputs["sid"] = (TensorProto.INT64, [1])
    rounded = {
        name: network.g.rounded[theirs].reshape(voice.model.get_parameter(name).shape)
        for name, theirs in network.names.items()
        if theirs in network.g.rounded
    }
    output = "output", (TensorProto.FLOAT, [1, 1, 1, "samples"])
    return OnnxVoice(network.g.model(inputs, output, facts or {}), rounded)


class VoiceGraph:
    """Writes the modules of a VitsModel into a graph."""

    def __init__(self, model: nn.Module, writer: GraphWriter) -> None:
        self.model, self.config, self.g = model, model.config, writer
        self.names: dict[str, str] = {}
        """Names of parameters in the model -> in the graph."""

    def write(self, most_frames: int) -> None:
        """Write all of it, from "input" to "output"."""
        g = self.g
        noise, length, duration_noise = g.ops("Split", "scales", (1, 1, 1), outputs=3, axis=0)
        ids = g.op("Slice", "input", 0, "input_lengths", 1)
        speaker = None
        if self.config.num_speakers > 1:
            table = self.parameter("embed_speaker.weight", "emb_g.weight", channels=0)
            speaker = g.op("Unsqueeze", g.op("Gather", table, "sid"), 2)
        tokens = g.op("Shape", ids, start=1, end=2)
        hidden = self.text_encoder(ids, tokens)
        prior = self.conv("text_encoder.project", hidden).split(*[self.config.flow_size] * 2)
        if self.config.use_stochastic_duration_prediction:
            logarithms = self.stochastic_durations(hidden, speaker, duration_noise)
        else:
            logarithms = self.plain_durations(hidden, speaker)
        source = self.token_of_frame(g.op("Exp", logarithms) * length, tokens, most_frames)
        means, log_variances = (g.op("Gather", each, source, axis=2) for each in prior)
        deviation = g.op("Exp", log_variances) * noise
        latents = means + g.op("RandomNormalLike", means) * deviation
        g.op("Unsqueeze", self.decoder(self.flow(latents, speaker), speaker), 1, name="output")

    def parameter(
        self, name: str, theirs: str, channels: int | None = None, linear: bool = False
    ) -> Value:
        """Add a parameter of the model under its name in Piper's export."""
        tensor = self.model.get_parameter(name).detach().float().cpu()
        self.names[name] = theirs
        return self.g.weight(theirs, tensor[..., None] if linear else tensor, channels)

    def conv(self, name: str, x: Value) -> Value:
        """Add a Conv1d, ConvTranspose1d or Linear, all of them convolutions in Piper's export."""
        module, path = self.model.get_submodule(name), piper_name(name)
        transposed, linear = (isinstance(module, kind) for kind in (nn.ConvTranspose1d, nn.Linear))
        inputs = [x, self.parameter(f"{name}.weight", f"{path}.weight", int(transposed), linear)]
        if module.bias is not None:
            inputs.append(self.parameter(f"{name}.bias", f"{path}.bias"))
        if linear:
            return self.g.op("Conv", *inputs, kernel_shape=[1])
        return self.g.op(
            "ConvTranspose" if transposed else "Conv",
            *inputs,
            kernel_shape=list(module.kernel_size),
            strides=list(module.stride),
            dilations=list(module.dilation),
            group=module.groups,
            pads=[module.padding[0]] * 2,
        )

    def norm(self, name: str, x: Value) -> Value:
        """Add a LayerNorm over channels."""
        epsilon, path = self.model.get_submodule(name).eps, piper_name(name)
        gain = self.parameter(f"{name}.weight", f"{path}.gamma")
        shift = self.parameter(f"{name}.bias", f"{path}.beta")
        normed = self.g.op("LayerNormalization", x.swapped, gain, shift, axis=-1, epsilon=epsilon)
        return normed.swapped

    def text_encoder(self, ids: Value, tokens: Value) -> Value:
        """Add the text encoder: hidden states [1, hidden, tokens] of ids [1, tokens]."""
        table = self.parameter("text_encoder.embed_tokens.weight", "enc_p.emb.weight", channels=0)
        x = (self.g.op("Gather", table, ids) * math.sqrt(self.config.hidden_size)).swapped
        twice = tokens * 2
        for index in range(self.config.num_hidden_layers):
            layer = f"text_encoder.encoder.layers.{index}"
            attended = self.attention(f"{layer}.attention", x, tokens, twice)
            x = self.norm(f"{layer}.layer_norm", x + attended)
            x = self.norm(f"{layer}.final_layer_norm", x + self.feed_forward(layer, x))
        return x

    def attention(self, name: str, x: Value, tokens: Value, twice: Value) -> Value:
        """Add relative attention (Shaw et al. 2018, arXiv:1803.02155), H heads of d channels."""
        g, module = self.g, self.model.get_submodule(name)
        heads = g.constant((module.num_heads, module.head_dim, -1))
        query, key, value = (
            g.op("Reshape", self.conv(f"{name}.{part}_proj", x), heads) for part in "qkv"
        )  # [H, d, T]
        query = (query * float(module.scaling)).swapped
        scores = query @ key  # [H, T, T]
        relative = hasattr(module, "emb_rel_k")
        if relative:
            path, window = piper_name(name), module.window_size
            keys = self.parameter(f"{name}.emb_rel_k", f"{path}.emb_rel_k")
            values = self.parameter(f"{name}.emb_rel_v", f"{path}.emb_rel_v")
            near = query @ keys.swapped  # [H, T, 2 window + 1]
            scores = scores + self.by_position(near, window, tokens, twice)
        shares = g.op("Softmax", scores, axis=-1)
        mixed = shares @ value.swapped  # [H, T, d]
        if relative:
            mixed = mixed + self.by_distance(shares, window, tokens, twice) @ values
        mixed = g.op("Reshape", mixed.swapped, (1, module.embed_dim, -1))
        return self.conv(f"{name}.out_proj", mixed)

    def by_position(self, x: Value, window: int, tokens: Value, twice: Value) -> Value:
        """Turn [H, T, 2 window + 1] by distance of the other token into [H, T, T] by its position.

        Rows of 2T written without a gap and read as rows of 2T - 1 shift by one place each.
        """
        g, last = self.g, tokens - 1
        wide = x.padded(tokens, tokens, 3)
        wide = wide.slice(window + 1, twice + (window + 1), 2)  # [H, T, 2T]
        flat = g.op("Reshape", wide, (0, -1)).padded(0, last, 2)
        shape = g.op("Concat", (0, -1), twice - 1, axis=0)
        rows = g.op("Reshape", flat, shape)  # [H, T + 1, 2T - 1]
        begin, end = g.op("Concat", 0, last, axis=0), g.op("Concat", tokens, 2**31, axis=0)
        return rows.slice(begin, end, (1, 2))

    def by_distance(self, x: Value, window: int, tokens: Value, twice: Value) -> Value:
        """Turn [H, T, T] by position of the other token into [H, T, 2 window + 1] by distance."""
        g = self.g
        wide = x.padded(0, tokens - 1, 3)
        flat = g.op("Reshape", wide, (0, -1)).padded(tokens, 0, 2)
        shape = g.op("Concat", (0, -1), twice, axis=0)
        rows = g.op("Reshape", flat, shape).padded(window, window, 3)  # distance 0 at T + window
        return rows.slice(tokens, tokens + (2 * window + 1), 2)

    def feed_forward(self, layer: str, x: Value) -> Value:
        """Add a feed-forward block: [1, hidden, tokens] to the same."""
        name = f"{layer}.feed_forward"
        before, after = (self.model.get_submodule(name).padding or (0, 0))[:2]
        x = self.activation(self.conv(f"{name}.conv_1", x.padded(before, after, 3)))
        return self.conv(f"{name}.conv_2", x.padded(before, after, 3))

    def activation(self, x: Value) -> Value:
        """Add the activation of the feed-forward blocks."""
        kind = str(self.config.hidden_act)
        if kind == "gelu":
            return x.gelu
        if kind in ("silu", "swish"):
            return x * self.g.op("Sigmoid", x)
        if kind in ("relu", "sigmoid", "tanh"):
            return self.g.op(kind.capitalize(), x)
        what = f"This voice has the activation {kind[:20]!r}, which the ONNX export cannot write"
        raise InputError(f"{what}: export it dense or sparse.")

    def token_of_frame(self, durations: Value, tokens: Value, most_frames: int) -> Value:
        """Return each frame's token, int64 [frames]; durations [1, 1, tokens]; NaN is a frame."""
        g = self.g
        durations = g.op("Where", g.op("IsNaN", durations), 1.0, g.op("Ceil", durations))
        durations = g.op("Clip", durations, 0.0, float(most_frames))
        ends = g.op("CumSum", g.op("Reshape", durations, -1).as_int, _FIRST)
        frames = g.op("ReduceMax", ends, axes=[0], keepdims=0)
        frames = g.op("Min", g.op("Max", frames, _ONE), np.int64(most_frames))
        places = g.op("Range", _FIRST, frames, _ONE)
        passed = g.op("Unsqueeze", ends, 0) <= g.op("Unsqueeze", places, 1)
        return g.op("Min", g.op("ReduceSum", passed.as_int, 1, keepdims=0), tokens - 1)

    def stochastic_durations(self, x: Value, speaker: Value | None, noise: Value) -> Value:
        """Return logarithms of frames [1, 1, tokens] of hidden states [1, hidden, tokens]."""
        g, name = self.g, "duration_predictor"
        x = self.conv(f"{name}.conv_pre", x)
        if speaker is not None:
            x = x + self.conv(f"{name}.cond", speaker)
        states = self.conv(f"{name}.conv_proj", self.separable(f"{name}.conv_dds", x))
        like = states.slice(0, 2, 1)  # of the shape that is wanted, [1, 2, tokens]
        z = g.op("RandomNormalLike", like) * noise
        # The first spline flow is skipped at inference.
        for index in range(self.config.duration_predictor_num_flows, 1, -1):
            z = self.spline_flow(f"{name}.flows.{index}", z.flipped, states)
        mean = self.parameter(f"{name}.flows.0.translate", "dp.flows.0.m")
        log_scale = self.parameter(f"{name}.flows.0.log_scale", "dp.flows.0.logs")
        z = (z.flipped - mean) * g.op("Exp", -log_scale)
        return z.split(1, 1)[0]

    def plain_durations(self, x: Value, speaker: Value | None) -> Value:
        """Add the deterministic predictor: logarithms of frames [1, 1, tokens]."""
        name = "duration_predictor"
        if speaker is not None:
            x = x + self.conv(f"{name}.cond", speaker)
        for layer in "12":
            x = self.g.op("Relu", self.conv(f"{name}.conv_{layer}", x))
            x = self.norm(f"{name}.norm_{layer}", x)
        return self.conv(f"{name}.proj", x)

    def separable(self, name: str, x: Value) -> Value:
        """Add dilated depth-separable convolutions."""
        for index in range(self.config.depth_separable_num_layers):
            y = self.conv(f"{name}.convs_dilated.{index}", x)
            y = self.norm(f"{name}.norms_1.{index}", y).gelu
            y = self.conv(f"{name}.convs_pointwise.{index}", y)
            x = x + self.norm(f"{name}.norms_2.{index}", y).gelu
        return x

    def spline_flow(self, name: str, z: Value, states: Value) -> Value:
        """Add one coupling backwards: [1, 2, tokens] to the same."""
        bins = self.config.duration_predictor_flow_bins
        first, second = z.split(1, 1)
        x = self.separable(f"{name}.conv_dds", self.conv(f"{name}.conv_pre", first) + states)
        x = self.conv(f"{name}.conv_proj", x).swapped  # [1, tokens, 3 bins - 1]
        widths, heights, slopes = x.split(bins, bins, bins - 1, axis=2)
        scale = math.sqrt(self.config.hidden_size)
        bound = float(self.config.duration_predictor_tail_bound)
        found = inverse_spline(second, widths / scale, heights / scale, slopes, bins, bound)
        return self.g.op("Concat", first, found, axis=1)

    def flow(self, x: Value, speaker: Value | None) -> Value:
        """Add the coupling layers backwards: latents [1, flow, frames] of the decoder."""
        half = self.config.flow_size // 2
        for index in reversed(range(self.config.prior_encoder_num_flows)):
            name = f"flow.flows.{index}"
            first, second = x.flipped.split(half, half)
            y = self.wavenet(f"{name}.wavenet", self.conv(f"{name}.conv_pre", first), speaker)
            second = second - self.conv(f"{name}.conv_post", y)
            x = self.g.op("Concat", first, second, axis=1)
        return x

    def wavenet(self, name: str, x: Value, speaker: Value | None) -> Value:
        """Add a WaveNet: [1, hidden, frames] to the same."""
        g, module = self.g, self.model.get_submodule(name)
        size, layers, outputs = module.hidden_size, module.num_layers, x
        if speaker is not None:
            shifts = self.conv(f"{name}.cond_layer", speaker).split(*[2 * size] * layers)
        for index in range(layers):
            gates = self.conv(f"{name}.in_layers.{index}", x)
            if speaker is not None:
                gates = gates + shifts[index]
            content, gate = gates.split(size, size)
            gated = g.op("Tanh", content) * g.op("Sigmoid", gate)
            skip = self.conv(f"{name}.res_skip_layers.{index}", gated)
            if index < layers - 1:
                residual, skip = skip.split(size, size)
                x = x + residual
            outputs = outputs + skip if index else skip
        return outputs

    def decoder(self, x: Value, speaker: Value | None) -> Value:
        """Add HiFi-GAN: waveform [1, 1, samples] of latents [1, flow, frames]."""
        g, branches = self.g, len(self.config.resblock_kernel_sizes)
        x = self.conv("decoder.conv_pre", x)
        if speaker is not None:
            x = x + self.conv("decoder.cond", speaker)
        for stage in range(len(self.config.upsample_rates)):
            x = g.op("LeakyRelu", x, alpha=self.config.leaky_relu_slope)
            x = self.conv(f"decoder.upsampler.{stage}", x)
            blocks = range(stage * branches, (stage + 1) * branches)
            total = self.residual_block(f"decoder.resblocks.{blocks[0]}", x)
            for block in blocks[1:]:
                total = total + self.residual_block(f"decoder.resblocks.{block}", x)
            x = total / float(branches)
        return g.op("Tanh", self.conv("decoder.conv_post", g.op("LeakyRelu", x, alpha=0.01)))

    def residual_block(self, name: str, x: Value) -> Value:
        """Add a residual block of the decoder: [1, channels, samples] to the same."""
        module = self.model.get_submodule(name)
        lists = ("convs",) if hasattr(module, "convs") else ("convs1", "convs2")
        for index in range(len(getattr(module, lists[0]))):
            change = x
            for convs in lists:
                change = self.g.op("LeakyRelu", change, alpha=module.leaky_relu_slope)
                change = self.conv(f"{name}.{convs}.{index}", change)
            x = x + change
        return x


def inverse_spline(
    x: Value, widths: Value, heights: Value, slopes: Value, bins: int, bound: float
) -> Value:
    """Return the input [1, 1, tokens] of a spline whose output is x.

    Monotonic rational-quadratic splines with linear tails (Durkan et al. 2019, arXiv:1906.04032),
    the identity beyond -bound and bound. All are before normalisation: widths and heights of the
    bins [1, tokens, bins], slopes at the inner knots [1, tokens, bins - 1].
    """
    g = x.graph
    low, high = g.constant(-bound), g.constant(bound)
    inside = g.op("And", x >= low, x <= high)
    y = g.op("Clip", x, low, high).swapped  # [1, tokens, 1]
    knots_x, widths = _knots(widths, bins, bound)
    knots_y, heights = _knots(heights, bins, bound)
    # The slope at both ends is 1: softplus of this constant, and _LEAST more.
    edge = g.op("Expand", math.log(math.exp(1 - _LEAST) - 1), g.op("Shape", y))
    slopes = g.op("Softplus", g.op("Concat", edge, slopes, edge, axis=2)) + _LEAST
    passed = y >= knots_y.slice(1, bins, 2)  # the inner knots below y
    index = g.op("ReduceSum", passed.as_int, 2, keepdims=1)
    after = index + _ONE
    left, width, bottom, height = (
        each.at(index, 2) for each in (knots_x, widths, knots_y, heights)
    )
    slope, next_slope = slopes.at(index, 2), slopes.at(after, 2)
    # Where in its bin, 0 to 1, the spline is so far above the lower knot: a quadratic equation.
    above, delta = y - bottom, height / width
    bend = slope + next_slope - delta * 2.0
    bent = above * bend
    a = height * (delta - slope) + bent
    b = height * slope - bent
    c = -(delta * above)
    discriminant = b * b - a * c * 4.0
    below = -b - g.op("Sqrt", g.op("Relu", discriminant))
    found = (c * 2.0 / below * width + left).swapped
    return g.op("Where", inside, found, x)


def _knots(sizes: Value, bins: int, bound: float) -> tuple[Value, Value]:
    """Knots from -bound to bound, [1, tokens, bins + 1], and the sizes of the bins between them."""
    g = sizes.graph
    shares = g.op("Softmax", sizes, axis=2) * (1 - _LEAST * bins) + _LEAST
    sums = g.op("CumSum", shares, np.int64(2))
    inner = sums.slice(0, bins - 1, 2) * (2 * bound) + -bound
    one = g.op("Shape", sums.slice(0, 1, 2))
    first, last = g.op("Expand", -bound, one), g.op("Expand", bound, one)
    knots = g.op("Concat", first, inner, last, axis=2)
    return knots, knots.slice(1, bins + 1, 2) - knots.slice(0, bins, 2)
