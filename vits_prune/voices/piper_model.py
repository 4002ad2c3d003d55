"""A Piper graph as a VitsModel: the structure from shapes and convolution attributes, never from the name of a quality."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import nn
from transformers import VitsConfig, VitsModel

from vits_prune.errors import InputError
from vits_prune.voices.architecture import PiperVitsConfig, empty_model
from vits_prune.voices.hf_config import checked_config
from vits_prune.voices.piper_graph import UNSOUND, Convolution, PiperGraph

MAX_LAYERS = 64
"""Most layers of one kind (Piper's own: 6 attention layers, 12 residual blocks)."""
MAX_HOP_LENGTH = 4096
"""Most samples per frame (Piper's own: 256)."""
_MAX_REACH = 1024
"""Most taps or dilation of a convolution (Piper's own: 16 and 12)."""
_MAX_SPEAKERS = 100_000

# transformers' module names -> the names in Piper's training code (jaywalnut310/vits). Indices of flows count the flips between them there.
_NAMES = (
    (r"text_encoder\.encoder\.layers\.(\d+)\.attention\.([qkv])_proj", r"enc_p.encoder.attn_layers.\1.conv_\2"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.attention\.out_proj", r"enc_p.encoder.attn_layers.\1.conv_o"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.attention", r"enc_p.encoder.attn_layers.\1"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.layer_norm", r"enc_p.encoder.norm_layers_1.\1"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.final_layer_norm", r"enc_p.encoder.norm_layers_2.\1"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.feed_forward", r"enc_p.encoder.ffn_layers.\1"),
    (r"text_encoder\.project", "enc_p.proj"),
    (r"flow\.flows\.(\d+)", lambda match: f"flow.flows.{2 * int(match[1])}"),
    (r"duration_predictor\.flows\.0", "dp.flows.0"),
    (r"duration_predictor\.flows\.(\d+)", lambda match: f"dp.flows.{2 * int(match[1]) - 1}"),
    (r"duration_predictor", "dp"),
    (r"decoder\.upsampler", "dec.ups"),
    (r"decoder", "dec"),
)
_ENDINGS = {
    "conv_pre": "pre",
    "conv_post": "post",
    "conv_proj": "proj",
    "wavenet": "enc",
    "conv_dds": "convs",
    "convs_dilated": "convs_sep",
    "convs_pointwise": "convs_1x1",
}


def piper_name(module: str) -> str:
    """The name of a transformers module in Piper's training code."""
    for pattern, replacement in _NAMES:
        name, found = re.subn(f"^{pattern}(?=\\.|$)", replacement, module)
        if found:
            if name.startswith("dec."):  # the decoder's conv_pre and conv_post are called so in both
                return name
            return ".".join(_ENDINGS.get(part, part) for part in name.split("."))
    return module


def piper_config(graph: PiperGraph, scales: tuple[float, float, float], sampling_rate: int, shown: str) -> PiperVitsConfig:
    """The configuration of a Piper graph: what its facts say where this library wrote it, else read from the graph alone.

    Args:
        graph: from read_graph.
        scales: noise_scale, length_scale and noise_w of the voice's JSON file.
        sampling_rate: samples per second.
        shown: what messages call the file.

    Raises:
        InputError: the graph is not that of a Piper VITS voice.
    """
    if graph.facts is None:
        with _named(shown):
            return _Structure(graph).config(scales, sampling_rate)
    values = {"resblock": "1", **graph.facts.config, "model_type": PiperVitsConfig.model_type}  # Hugging Face voices have ResBlock1
    config = checked_config(values, PiperVitsConfig, shown)
    config.noise_scale, config.speaking_rate, config.noise_scale_duration = scales[0], 1 / scales[1], scales[2]
    config.sampling_rate = sampling_rate
    return config


def build_model(graph: PiperGraph, config: VitsConfig, shown: str) -> VitsModel:
    """The model of a graph: float32, contiguous, without gradients, in evaluation mode.

    Args:
        graph: from read_graph.
        config: of the network.
        shown: what messages call the file.

    Raises:
        InputError: a weight is missing, has the wrong size, or is not finite.
    """
    with _named(shown):
        model = empty_model(config)
        model.load_state_dict(_weights(model, graph), strict=True, assign=True)
    return model.requires_grad_(False).eval()


@contextlib.contextmanager
def _named(shown: str) -> Iterator[None]:
    """Whatever goes wrong in the block becomes an InputError that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{shown} cannot be used: {error}") from None
    except UNSOUND as error:
        raise InputError(f"{shown} is not a Piper voice that can be used: its layers do not fit together.") from error


def _need(fact: bool, what: str) -> None:
    if not fact:
        raise InputError(f"{what}, give the .onnx of a Piper (VITS) voice.")


class _Structure:
    """Reads the numbers of a VitsConfig from a graph."""

    def __init__(self, graph: PiperGraph) -> None:
        self.graph = graph

    def conv(self, path: str) -> Convolution:
        _need(path in self.graph.convolutions, f"it has no layer {path!r}")
        return self.graph.convolutions[path]

    def tensor(self, name: str, dimensions: int) -> torch.Tensor:
        _need(name in self.graph.tensors and self.graph.tensors[name].ndim == dimensions, f"it has no weight {name!r} of the expected size")
        return self.graph.tensors[name]

    def count(self, pattern: str) -> int:
        """How many layers there are of a kind, named by an index from 0 on."""
        names = [*self.graph.convolutions, *self.graph.tensors]
        indices = {match[1] for name in names if (match := re.match(pattern, name))}
        in_order = 0 < len(indices) <= MAX_LAYERS and indices == {str(index) for index in range(len(indices))}
        _need(in_order, f"its layers {pattern!r} are not numbered from 0 on")
        return len(indices)

    def flow_count(self, pattern: str, first: int) -> int:
        """How many flows there are of a kind; every second index is a flip."""
        indices = {int(match[1]) for name in self.graph.convolutions if (match := re.match(pattern, name))}
        in_order = 0 < len(indices) <= MAX_LAYERS and indices == set(range(first, first + 2 * len(indices), 2))
        _need(in_order, "its flows are not those of VITS")
        return len(indices)

    def config(self, scales: tuple[float, float, float], sampling_rate: int) -> PiperVitsConfig:
        noise_scale, length_scale, noise_w = scales
        return PiperVitsConfig(
            **self.text_encoder(), **self.durations(), **self.flow(), **self.decoder(), **self.speakers(),
            posterior_encoder_num_wavenet_layers=1, noise_scale=noise_scale, noise_scale_duration=noise_w, speaking_rate=1 / length_scale,
            sampling_rate=sampling_rate, pad_token_id=None,
        )  # fmt: skip

    def text_encoder(self) -> dict[str, object]:
        table = embedding(self.graph)
        relative = self.tensor("enc_p.encoder.attn_layers.0.emb_rel_k", 3)
        inner = self.conv("enc_p.encoder.ffn_layers.0.conv_1").weight
        hidden = table.shape[1]
        one, window, head = relative.shape
        usual = one == 1 and window % 2 == 1 and window > 1 and 0 < head <= hidden and hidden % head == 0
        _need(usual, "its attention is not that of VITS")
        return {
            "vocab_size": table.shape[0], "hidden_size": hidden, "num_attention_heads": hidden // relative.shape[2],
            "window_size": relative.shape[1] // 2, "num_hidden_layers": self.count(r"enc_p\.encoder\.attn_layers\.(\d+)\."),
            "ffn_dim": inner.shape[0], "ffn_kernel_size": inner.shape[2], "flow_size": self.conv("enc_p.proj").weight.shape[0] // 2,
        }  # fmt: skip

    def durations(self) -> dict[str, object]:
        if "dp.conv_1" in self.graph.convolutions:
            first = self.conv("dp.conv_1").weight
            return {
                "use_stochastic_duration_prediction": False,
                "duration_predictor_kernel_size": first.shape[2],
                "duration_predictor_filter_channels": first.shape[0],
            }
        return {
            "use_stochastic_duration_prediction": True,
            "duration_predictor_kernel_size": self.conv("dp.convs.convs_sep.0").weight.shape[2],
            "duration_predictor_num_flows": self.flow_count(r"dp\.flows\.(\d+)\.pre$", first=3) + 1,  # the one that inference skips counts
            "duration_predictor_flow_bins": (self.conv("dp.flows.3.proj").weight.shape[0] + 1) // 3,
            "depth_separable_num_layers": self.count(r"dp\.convs\.convs_sep\.(\d+)"),
        }

    def flow(self) -> dict[str, object]:
        layers = self.count(r"flow\.flows\.0\.enc\.in_layers\.(\d+)")
        return {
            "prior_encoder_num_flows": self.flow_count(r"flow\.flows\.(\d+)\.pre$", first=0),
            "prior_encoder_num_wavenet_layers": layers,
            "wavenet_kernel_size": self.conv("flow.flows.0.enc.in_layers.0").weight.shape[2],
            "wavenet_dilation_rate": self.conv("flow.flows.0.enc.in_layers.1").dilation if layers > 1 else 1,
        }

    def decoder(self) -> dict[str, object]:
        ups = [self.conv(f"dec.ups.{i}") for i in range(self.count(r"dec\.ups\.(\d+)"))]
        rates = [up.stride for up in ups]
        hop = 1
        for rate in rates:
            hop *= rate
        _need(0 < hop <= MAX_HOP_LENGTH and all(up.transposed for up in ups), "its upsampling is not that of a voice")
        blocks = self.count(r"dec\.resblocks\.(\d+)\.")
        _need(blocks % len(ups) == 0, "its residual blocks do not match its upsampling")
        kind = "1" if "dec.resblocks.0.convs1.0" in self.graph.convolutions else "2"
        convs = "convs1" if kind == "1" else "convs"
        steps = [
            [self.conv(f"dec.resblocks.{block}.{convs}.{step}") for step in range(self.count(rf"dec\.resblocks\.{block}\.{convs}\.(\d+)"))]
            for block in range(blocks // len(ups))
        ]
        return {
            "resblock": kind,
            "upsample_initial_channel": self.conv("dec.conv_pre").weight.shape[0],
            "upsample_rates": rates,
            "upsample_kernel_sizes": [up.weight.shape[2] for up in ups],
            "resblock_kernel_sizes": [step[0].weight.shape[2] for step in steps],
            "resblock_dilation_sizes": [[conv.dilation for conv in step] for step in steps],
        }

    def speakers(self) -> dict[str, object]:
        table = speaker_embedding(self.graph)
        if table is None:
            return {"num_speakers": 1, "speaker_embedding_size": 0}
        _need(table.ndim == 2 and 1 < table.shape[0] <= _MAX_SPEAKERS and table.shape[1] > 0, "its table of speakers has no usable size")
        return {"num_speakers": table.shape[0], "speaker_embedding_size": table.shape[1]}


def embedding(graph: PiperGraph) -> torch.Tensor:
    """The phonemes' embeddings, [symbols, channels].

    Raises:
        InputError: there are none.
    """
    table = graph.tensors.get("enc_p.emb.weight", graph.embeddings.get("input"))
    _need(table is not None and table.ndim == 2 and min(table.shape) > 0, "it has no table of phoneme embeddings")
    return table


def speaker_embedding(graph: PiperGraph) -> torch.Tensor | None:
    """The speakers' embeddings, [speakers, channels], None for a voice with one speaker."""
    return graph.tensors.get("emb_g.weight", graph.embeddings.get("sid"))


def _weights(model: VitsModel, graph: PiperGraph) -> dict[str, torch.Tensor]:
    """The model's state from the graph, every shape, attribute and value checked."""
    weights: dict[str, torch.Tensor | None] = {"text_encoder.embed_tokens.weight": embedding(graph)}
    if model.config.num_speakers > 1:
        weights["embed_speaker.weight"] = speaker_embedding(graph)
    for name, module in model.named_modules():
        path = piper_name(name)
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            _take_convolution(weights, name, module, graph.convolutions.get(path), path)
        elif isinstance(module, nn.LayerNorm):
            weights |= {f"{name}.weight": graph.tensors.get(f"{path}.gamma"), f"{name}.bias": graph.tensors.get(f"{path}.beta")}
        elif name.endswith(".attention"):
            weights |= {f"{name}.{part}": graph.tensors.get(f"{path}.{part}") for part in ("emb_rel_k", "emb_rel_v")}
    if model.config.use_stochastic_duration_prediction:
        weights["duration_predictor.flows.0.translate"] = graph.tensors.get("dp.flows.0.m")
        weights["duration_predictor.flows.0.log_scale"] = graph.tensors.get("dp.flows.0.logs")
    return {name: _checked(name, parameter, weights.get(name)) for name, parameter in model.named_parameters()}


def _take_convolution(
    weights: dict[str, torch.Tensor | None], name: str, module: nn.Module, convolution: Convolution | None, path: str
) -> None:
    _need(convolution is not None, f"it has no layer {path!r}")
    weight = convolution.weight
    if isinstance(module, nn.Linear):  # a convolution of kernel 1 there
        _need(weight.shape[2] == 1, f"its layer {path!r} is not a projection")
        expected, weight = (1, 1, 0, 1, False), weight.squeeze(-1)
    else:
        transposed = isinstance(module, nn.ConvTranspose1d)
        expected = (module.stride[0], module.dilation[0], module.padding[0], module.groups, transposed)
    found = (convolution.stride, convolution.dilation, convolution.padding, convolution.groups, convolution.transposed)
    reach = max(convolution.dilation, convolution.weight.shape[2])
    _need(found == expected and reach <= _MAX_REACH, f"its layer {path!r} is not that of VITS")
    _need((convolution.bias is None) == (module.bias is None), f"its layer {path!r} has not the bias of VITS")
    weights[f"{name}.weight"] = weight
    if convolution.bias is not None:
        weights[f"{name}.bias"] = convolution.bias


def _checked(name: str, parameter: nn.Parameter, weight: torch.Tensor | None) -> torch.Tensor:
    _need(weight is not None, f"it has no weights for {name!r}")
    _need(weight.shape == parameter.shape, f"its weights for {name!r} are {tuple(weight.shape)}, not {tuple(parameter.shape)}")
    if not torch.isfinite(weight).all():
        raise InputError(f"its weights for {name!r} hold values that are not finite numbers, fetch or export the voice again.")
    return weight.contiguous()
