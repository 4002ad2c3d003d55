"""A Voice as one ONNX graph with dynamic lengths, with the inputs, output and weight names of Piper's export.

Kim et al. 2021, arXiv:2106.06103: text encoder, durations, the prior stretched to them, the flow backwards, the decoder. The graph speaks
one sentence at a time, as Piper's runtimes do, so it needs none of the masks of a batch. Activations are [1, channels, positions].
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
from vits_prune.ship.onnx_writer import GraphWriter
from vits_prune.voices.piper_model import piper_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vits_prune.voices.voice import Voice

    pass


_ACTIVATIONS = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "gelu": "Gelu",
    "silu": "Silu",
    "swish": "Silu",
}


@dataclass(frozen=True)
class OnnxVoice:
    """A voice as the bytes of an ONNX file."""

    data: bytes
    rounded: Mapping[str, torch.Tensor]
    """The weights that the file computes with where they are not the voice's own, by the names of `model.named_parameters()`."""


def write_onnx(
    voice: Voice,
    precision: str = "fp32",
    *,
    most_frames: int,
    facts: Mapping[str, str] | None = None,
) -> OnnxVoice:
    """The whole voice as one graph.

    Inputs: input int64 [1, phonemes], input_lengths int64 [1], scales float32 [3] (noise, length, duration noise), and sid int64 [1] where
    there are several speakers. Output: output float32 [1, 1, 1, samples].

    Args:
        voice: any VITS voice, on the CPU.
        precision: of the stored weights, "fp32", "fp16" or "int8"; all of them compute in float32.
        most_frames: where a sentence whose durations run away ends.
        facts: for the file's metadata.

    Raises:
        InputError: an activation function that VITS voices do not have.
    """
    network = VoiceGraph(voice.model, GraphWriter(precision))
    several = voice.model.config.num_speakers > 1
    network.write(several, most_frames)
    inputs = {
        "input": (TensorProto.INT64, [1, "phonemes"]),
        "input_lengths": (TensorProto.INT64, [1]),
        "scales": (TensorProto.FLOAT, [3]),
    }
    if several:
        inputs["sid"] = (TensorProto.INT64, [1])
    data = network.g.model(
        inputs, {"output": (TensorProto.FLOAT, [1, 1, 1, "samples"])}, facts or {}
    )
    parameters = dict(voice.model.named_parameters())
    rounded = {
        ours: network.g.rounded[theirs]
        for ours, theirs in network.names.items()
        if theirs in network.g.rounded
    }
    return OnnxVoice(
        data, {name: tensor.reshape(parameters[name].shape) for name, tensor in rounded.items()}
    )


class VoiceGraph:
    """Writes the modules of a VitsModel into a graph."""

    def __init__(self, model: nn.Module, writer: GraphWriter) -> None:
        self.model = model
        self.config = model.config
        self.g = writer
        self.names: dict[str, str] = {}
        """Names of parameters in the model -> in the graph."""

    def write(self, several: bool, most_frames: int) -> None:
        """All of it, from "input" to "output"."""
        g = self.g
        noise, length, duration_noise = g.ops(
            "Split", "scales", g.integers(1, 1, 1), outputs=3, axis=0
        )
        ids = g.op("Slice", "input", g.integers(0), "input_lengths", g.integers(1))
        speaker = None
        if several:
            table = self.parameter("embed_speaker.weight", "emb_g.weight", channels=0)
            speaker = g.op("Unsqueeze", g.op("Gather", table, "sid"), g.integers(2))
        tokens = g.op("Shape", ids, start=1, end=2)
        hidden = self.text_encoder(ids, tokens)
        means, log_variances = self.split(
            self.conv("text_encoder.project", hidden), [self.config.flow_size] * 2
        )
        logarithms = log_durations(self, hidden, speaker, duration_noise)
        source = self.token_of_frame(
            g.op("Mul", g.op("Exp", logarithms), length), tokens, most_frames
        )
        means, log_variances = (
            g.op("Gather", each, source, axis=2) for each in (means, log_variances)
        )
        deviation = g.op("Mul", g.op("Exp", log_variances), noise)
        latents = g.op("Add", means, g.op("Mul", g.op("RandomNormalLike", means), deviation))
        latents = self.flow(latents, speaker)
        g.op("Unsqueeze", self.decoder(latents, speaker), g.integers(1), name="output")

    def parameter(
        self,
        name: str,
        theirs: str,
        channels: int | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> str:
        """A parameter of the model under its name in Piper's export."""
        tensor = self.model.get_parameter(name).detach().float().cpu()
        self.names[name] = theirs
        return self.g.weight(theirs, tensor if shape is None else tensor.reshape(shape), channels)

    def conv(self, name: str, x: str) -> str:
        """A Conv1d, ConvTranspose1d or Linear, all of them convolutions in Piper's export."""
        module, path = self.model.get_submodule(name), piper_name(name)
        transposed = isinstance(module, nn.ConvTranspose1d)
        shape = (*module.weight.shape, 1) if isinstance(module, nn.Linear) else None
        inputs = [x, self.parameter(f"{name}.weight", f"{path}.weight", int(transposed), shape)]
        if module.bias is not None:
            inputs.append(self.parameter(f"{name}.bias", f"{path}.bias"))
        if isinstance(module, nn.Linear):
            return self.g.op("Conv", *inputs, kernel_shape=[1])
        numbers = {
            "kernel_shape": list(module.kernel_size),
            "strides": list(module.stride),
            "dilations": list(module.dilation),
        }
        pads = [module.padding[0]] * 2
        return self.g.op(
            "ConvTranspose" if transposed else "Conv",
            *inputs,
            **numbers,
            group=module.groups,
            pads=pads,
        )

    def norm(self, name: str, x: str) -> str:
        """A LayerNorm over channels."""
        module, path = self.model.get_submodule(name), piper_name(name)
        gain, shift = (
            self.parameter(f"{name}.{ours}", f"{path}.{theirs}")
            for ours, theirs in (("weight", "gamma"), ("bias", "beta"))
        )
        turned = self.g.op("Transpose", x, perm=[0, 2, 1])
        return self.g.op(
            "Transpose",
            self.g.op("LayerNormalization", turned, gain, shift, axis=-1, epsilon=module.eps),
            perm=[0, 2, 1],
        )

    def split(self, x: str, sizes: list[int], axis: int = 1) -> list[str]:
        return self.g.ops("Split", x, self.g.integers(*sizes), outputs=len(sizes), axis=axis)

    def flip(self, x: str) -> str:
        """The channels in reverse."""
        i = self.g.integers
        return self.g.op("Slice", x, i(-1), i(-(2**31)), i(1), i(-1))

    def gelu(self, x: str) -> str:
        g = self.g
        erf = g.op("Erf", g.op("Div", x, g.constant(math.sqrt(2))))
        return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.constant(1.0))), g.constant(0.5))

    def text_encoder(self, ids: str, tokens: str) -> str:
        """Hidden states [1, hidden, tokens] of ids [1, tokens]."""
        g = self.g
        rows = g.op(
            "Gather",
            self.parameter("text_encoder.embed_tokens.weight", "enc_p.emb.weight", channels=0),
            ids,
        )
        x = g.op(
            "Transpose",
            g.op("Mul", rows, g.constant(math.sqrt(self.config.hidden_size))),
            perm=[0, 2, 1],
        )
        twice = g.op("Mul", tokens, g.integers(2))
        for index in range(self.config.num_hidden_layers):
            layer = f"text_encoder.encoder.layers.{index}"
            x = self.norm(
                f"{layer}.layer_norm",
                g.op("Add", x, self.attention(f"{layer}.attention", x, tokens, twice)),
            )
            x = self.norm(
                f"{layer}.final_layer_norm",
                g.op("Add", x, self.feed_forward(f"{layer}.feed_forward", x)),
            )
        return x

    def attention(self, name: str, x: str, tokens: str, twice: str) -> str:
        """Attention with relative positions (Shaw et al. 2018, arXiv:1803.02155): H heads of d channels on T tokens."""
        g, module = self.g, self.model.get_submodule(name)
        heads = g.integers(module.num_heads, module.head_dim, -1)
        query, key, value = (
            g.op("Reshape", self.conv(f"{name}.{part}_proj", x), heads) for part in "qkv"
        )  # [H, d, T]
        query = g.op("Transpose", g.op("Mul", query, g.constant(module.scaling)), perm=[0, 2, 1])
        scores = g.op("MatMul", query, key)  # [H, T, T]
        if hasattr(module, "emb_rel_k"):
            keys, values = (
                self.parameter(f"{name}.{one}", f"{piper_name(name)}.{one}")
                for one in ("emb_rel_k", "emb_rel_v")
            )
            near = g.op(
                "MatMul", query, g.op("Transpose", keys, perm=[0, 2, 1])
            )  # [H, T, 2 window + 1]
            scores = g.op("Add", scores, self.by_position(near, module.window_size, tokens, twice))
        shares = g.op("Softmax", scores, axis=-1)
        mixed = g.op("MatMul", shares, g.op("Transpose", value, perm=[0, 2, 1]))  # [H, T, d]
        if hasattr(module, "emb_rel_v"):
            mixed = g.op(
                "Add",
                mixed,
                g.op("MatMul", self.by_distance(shares, module.window_size, tokens, twice), values),
            )
        mixed = g.op(
            "Reshape", g.op("Transpose", mixed, perm=[0, 2, 1]), g.integers(1, module.embed_dim, -1)
        )
        return self.conv(f"{name}.out_proj", mixed)

    def pad(self, x: str, before: str, after: str, axes: int) -> str:
        """Zeros before and after along the last of so many axes."""
        i = self.g.integers
        none = [i(*[0] * (axes - 1))] if axes > 1 else []
        return self.g.op("Pad", x, self.g.op("Concat", *none, before, *none, after, axis=0))

    def by_position(self, x: str, window: int, tokens: str, twice: str) -> str:
        """[H, T, 2 window + 1] by distance of the other token -> [H, T, T] by its position, zero where it is further away.

        Rows of 2T written without a gap and read again as rows of 2T - 1 move one step from each row to the next.
        """
        g, i = self.g, self.g.integers
        one, less = i(1), g.op("Sub", tokens, i(1))
        wide = self.pad(x, tokens, tokens, 3)
        wide = g.op(
            "Slice", wide, i(window + 1), g.op("Add", twice, i(window + 1)), i(2)
        )  # [H, T, 2T]
        flat = self.pad(g.op("Reshape", wide, i(0, -1)), i(0), less, 2)
        rows = g.op(
            "Reshape", flat, g.op("Concat", i(0, -1), g.op("Sub", twice, one), axis=0)
        )  # [H, T + 1, 2T - 1]
        return g.op(
            "Slice",
            rows,
            g.op("Concat", i(0), less, axis=0),
            g.op("Concat", tokens, i(2**31), axis=0),
            i(1, 2),
        )

    def by_distance(self, x: str, window: int, tokens: str, twice: str) -> str:
        """[H, T, T] by position of the other token -> [H, T, 2 window + 1] by its distance: the way back."""
        g, i = self.g, self.g.integers
        wide = self.pad(x, i(0), g.op("Sub", tokens, i(1)), 3)
        flat = self.pad(g.op("Reshape", wide, i(0, -1)), tokens, i(0), 2)
        rows = g.op(
            "Reshape", flat, g.op("Concat", i(0, -1), twice, axis=0)
        )  # [H, T, 2T], distance 0 at T
        rows = self.pad(rows, i(window), i(window), 3)
        return g.op("Slice", rows, tokens, g.op("Add", tokens, i(2 * window + 1)), i(2))

    def feed_forward(self, name: str, x: str) -> str:
        module = self.model.get_submodule(name)
        before, after = (self.g.integers(side) for side in (module.padding or (0, 0))[:2])
        x = self.activation(self.conv(f"{name}.conv_1", self.pad(x, before, after, 3)))
        return self.conv(f"{name}.conv_2", self.pad(x, before, after, 3))

    def activation(self, x: str) -> str:
        kind = _ACTIVATIONS.get(str(self.config.hidden_act))
        if kind is None:
            raise InputError(
                f"This voice has the activation {str(self.config.hidden_act)[:20]!r}, which the ONNX export does not write."
            )
        if kind == "Gelu":
            return self.gelu(x)
        return (
            self.g.op("Mul", x, self.g.op("Sigmoid", x)) if kind == "Silu" else self.g.op(kind, x)
        )

    def token_of_frame(self, durations: str, tokens: str, most_frames: int) -> str:
        """The token that each frame belongs to, int64 [frames], of durations [1, 1, tokens]; what is no number counts as one frame."""
        g = self.g
        durations = g.op(
            "Where", g.op("IsNaN", durations), g.constant(1.0), g.op("Ceil", durations)
        )
        durations = g.op("Clip", durations, g.constant(0.0), g.constant(float(most_frames)))
        ends = g.op(
            "CumSum",
            g.op("Cast", g.op("Reshape", durations, g.integers(-1)), to=TensorProto.INT64),
            g.constant(0, np.int64),
        )
        frames = g.op("ReduceMax", ends, axes=[0], keepdims=0)
        frames = g.op(
            "Min", g.op("Max", frames, g.constant(1, np.int64)), g.constant(most_frames, np.int64)
        )
        places = g.op("Range", g.constant(0, np.int64), frames, g.constant(1, np.int64))
        passed = g.op(
            "LessOrEqual",
            g.op("Unsqueeze", ends, g.integers(0)),
            g.op("Unsqueeze", places, g.integers(1)),
        )
        count = g.op(
            "ReduceSum", g.op("Cast", passed, to=TensorProto.INT64), g.integers(1), keepdims=0
        )
        return g.op("Min", count, g.op("Sub", tokens, g.integers(1)))

    def flow(self, x: str, speaker: str | None) -> str:
        """The coupling layers backwards: latents [1, flow, frames] of the decoder from those of the prior."""
        g, half = self.g, self.config.flow_size // 2
        for index in reversed(range(self.config.prior_encoder_num_flows)):
            name = f"flow.flows.{index}"
            first, second = self.split(self.flip(x), [half, half])
            mean = self.conv(
                f"{name}.conv_post",
                self.wavenet(f"{name}.wavenet", self.conv(f"{name}.conv_pre", first), speaker),
            )
            x = g.op("Concat", first, g.op("Sub", second, mean), axis=1)
        return x

    def wavenet(self, name: str, x: str, speaker: str | None) -> str:
        g, module = self.g, self.model.get_submodule(name)
        size, outputs = module.hidden_size, None
        shifts = (
            None
            if speaker is None
            else self.split(
                self.conv(f"{name}.cond_layer", speaker), [2 * size] * module.num_layers
            )
        )
        for index in range(module.num_layers):
            gates = self.conv(f"{name}.in_layers.{index}", x)
            if shifts is not None:
                gates = g.op("Add", gates, shifts[index])
            content, gate = self.split(gates, [size, size])
            skip = self.conv(
                f"{name}.res_skip_layers.{index}",
                g.op("Mul", g.op("Tanh", content), g.op("Sigmoid", gate)),
            )
            if index < module.num_layers - 1:
                residual, skip = self.split(skip, [size, size])
                x = g.op("Add", x, residual)
            outputs = skip if outputs is None else g.op("Add", outputs, skip)
        return outputs

    def decoder(self, x: str, speaker: str | None) -> str:
        """HiFi-GAN: waveform [1, 1, samples] of latents [1, flow, frames]."""
        g, slope, branches = (
            self.g,
            self.config.leaky_relu_slope,
            len(self.config.resblock_kernel_sizes),
        )
        x = self.conv("decoder.conv_pre", x)
        if speaker is not None:
            x = g.op("Add", x, self.conv("decoder.cond", speaker))
        for stage in range(len(self.config.upsample_rates)):
            x = self.conv(f"decoder.upsampler.{stage}", g.op("LeakyRelu", x, alpha=slope))
            total = self.residual_block(f"decoder.resblocks.{stage * branches}", x)
            for branch in range(1, branches):
                total = g.op(
                    "Add",
                    total,
                    self.residual_block(f"decoder.resblocks.{stage * branches + branch}", x),
                )
            x = g.op("Div", total, g.constant(float(branches)))
        return g.op("Tanh", self.conv("decoder.conv_post", g.op("LeakyRelu", x, alpha=0.01)))

    def residual_block(self, name: str, x: str) -> str:
        g, module = self.g, self.model.get_submodule(name)
        steps = (
            [("convs",)] * len(module.convs)
            if hasattr(module, "convs")
            else [("convs1", "convs2")] * len(module.convs1)
        )
        for index, step in enumerate(steps):
            change = x
            for convs in step:
                change = self.conv(
                    f"{name}.{convs}.{index}",
                    g.op("LeakyRelu", change, alpha=module.leaky_relu_slope),
                )
            x = g.op("Add", x, change)
        return x


_LEAST = 1e-3

"""Least width, height and slope of a spline's bin."""


def log_durations(v: VoiceGraph, hidden: str, speaker: str | None, noise: str) -> str:
    """Logarithms of frames [1, 1, tokens] of hidden states [1, hidden, tokens]; `noise` is the noise's scale [1]."""
    return (
        _stochastic(v, hidden, speaker, noise)
        if v.config.use_stochastic_duration_prediction
        else _plain(v, hidden, speaker)
    )


def _plain(v: VoiceGraph, x: str, speaker: str | None) -> str:
    if speaker is not None:
        x = v.g.op("Add", x, v.conv("duration_predictor.cond", speaker))
    for layer in ("1", "2"):
        x = v.norm(
            f"duration_predictor.norm_{layer}",
            v.g.op("Relu", v.conv(f"duration_predictor.conv_{layer}", x)),
        )
    return v.conv("duration_predictor.proj", x)


def _stochastic(v: VoiceGraph, x: str, speaker: str | None, noise: str) -> str:
    g = v.g
    x = v.conv("duration_predictor.conv_pre", x)
    if speaker is not None:
        x = g.op("Add", x, v.conv("duration_predictor.cond", speaker))
    states = v.conv("duration_predictor.conv_proj", _separable(v, "duration_predictor.conv_dds", x))
    like = g.op(
        "Slice", states, g.integers(0), g.integers(2), g.integers(1)
    )  # of the shape that is wanted, [1, 2, tokens]
    z = g.op("Mul", g.op("RandomNormalLike", like), noise)
    for index in range(
        v.config.duration_predictor_num_flows, 1, -1
    ):  # the first spline flow is skipped at inference
        z = _spline_flow(v, f"duration_predictor.flows.{index}", v.flip(z), states)
    name = "duration_predictor.flows.0"
    mean, log_scale = (
        v.parameter(f"{name}.{ours}", f"dp.flows.0.{theirs}")
        for ours, theirs in (("translate", "m"), ("log_scale", "logs"))
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
    return g.op(
        "Concat",
        first,
        spline.inverse(second, g.op("Div", widths, scale), g.op("Div", heights, scale), slopes),
        axis=1,
    )


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
        inside = g.op(
            "And", g.op("GreaterOrEqual", x, limits[0]), g.op("LessOrEqual", x, limits[1])
        )
        y = g.op("Transpose", g.op("Clip", x, *limits), perm=[0, 2, 1])  # [1, tokens, 1]
        knots_x, widths = self._knots(widths)
        knots_y, heights = self._knots(heights)
        # The slope at both ends is 1: softplus of this constant, and _LEAST more.
        edge = g.op("Expand", g.constant(math.log(math.exp(1 - _LEAST) - 1)), g.op("Shape", y))
        slopes = g.op(
            "Add", g.op("Softplus", g.op("Concat", edge, slopes, edge, axis=2)), g.constant(_LEAST)
        )
        passed = g.op(
            "GreaterOrEqual", y, self._slice(knots_y, 1, self.bins)
        )  # the inner knots below y
        index = g.op(
            "ReduceSum", g.op("Cast", passed, to=TensorProto.INT64), g.integers(2), keepdims=1
        )
        after = g.op("Add", index, g.constant(1, np.int64))
        left, width, bottom, height = (
            g.op("GatherElements", t, index, axis=2) for t in (knots_x, widths, knots_y, heights)
        )
        slope, next_slope = (g.op("GatherElements", slopes, at, axis=2) for at in (index, after))
        root = self._root(
            g.op("Sub", y, bottom), height, g.op("Div", height, width), slope, next_slope
        )
        found = g.op("Transpose", g.op("Add", g.op("Mul", root, width), left), perm=[0, 2, 1])
        return g.op("Where", inside, found, x)

    def _slice(self, x: str, begin: int, end: int) -> str:
        i = self.g.integers
        return self.g.op("Slice", x, i(begin), i(end), i(2))

    def _knots(self, sizes: str) -> tuple[str, str]:
        """Knots from -bound to bound, [1, tokens, bins + 1], and the sizes of the bins between them."""
        g, bound = self.g, self.bound
        shares = g.op("Softmax", sizes, axis=2)
        shares = g.op(
            "Add", g.op("Mul", shares, g.constant(1 - _LEAST * self.bins)), g.constant(_LEAST)
        )
        sums = g.op("CumSum", shares, g.constant(2, np.int64))
        inner = g.op(
            "Add",
            g.op("Mul", self._slice(sums, 0, self.bins - 1), g.constant(2 * bound)),
            g.constant(-bound),
        )
        one = g.op("Shape", self._slice(sums, 0, 1))
        ends = [g.op("Expand", g.constant(end), one) for end in (-bound, bound)]
        knots = g.op("Concat", ends[0], inner, ends[1], axis=2)
        return knots, g.op(
            "Sub", self._slice(knots, 1, self.bins + 1), self._slice(knots, 0, self.bins)
        )

    def _root(self, above: str, height: str, delta: str, slope: str, next_slope: str) -> str:
        """Where in its bin, from 0 to 1, the spline is so far above the bin's lower knot: the root of a quadratic equation."""
        g = self.g
        bend = g.op("Sub", g.op("Add", slope, next_slope), g.op("Mul", delta, g.constant(2.0)))
        bent = g.op("Mul", above, bend)
        a = g.op("Add", g.op("Mul", height, g.op("Sub", delta, slope)), bent)
        b = g.op("Sub", g.op("Mul", height, slope), bent)
        c = g.op("Neg", g.op("Mul", delta, above))
        discriminant = g.op(
            "Sub", g.op("Mul", b, b), g.op("Mul", g.op("Mul", a, c), g.constant(4.0))
        )
        below = g.op("Sub", g.op("Neg", b), g.op("Sqrt", g.op("Relu", discriminant)))
        return g.op("Div", g.op("Mul", c, g.constant(2.0)), below)
