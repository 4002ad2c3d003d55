"""A Piper graph as a VitsModel.

The structure is read from shapes and convolution attributes, never from the name of a quality.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import VitsConfig, VitsModel

from vits_prune.errors import InputError
from vits_prune.voices.architecture import PiperVitsConfig, checked_config, empty_model
from vits_prune.voices.piper_graph import PiperGraph, naming, require

MAX_HOP_LENGTH = 4096
"""Most samples per frame (Piper's own: 256)."""
_MAX_REACH = 1024
"""Most taps or dilation of a convolution (Piper's own: 16 and 12)."""
_MAX_SPEAKERS = 100_000

# transformers' names -> those of Piper's training code (jaywalnut310/vits), applied in order.
# Indices of flows count the flips between them there.
_LAYER, _ENCODER = r"text_encoder\.encoder\.layers\.(\d+)", "enc_p.encoder"
_NAMES: tuple[tuple[str, Any], ...] = (
    (rf"{_LAYER}\.attention\.([qkv])_proj", rf"{_ENCODER}.attn_layers.\1.conv_\2"),
    (rf"{_LAYER}\.attention\.out_proj", rf"{_ENCODER}.attn_layers.\1.conv_o"),
    (rf"{_LAYER}\.attention", rf"{_ENCODER}.attn_layers.\1"),
    (rf"{_LAYER}\.layer_norm", rf"{_ENCODER}.norm_layers_1.\1"),
    (rf"{_LAYER}\.final_layer_norm", rf"{_ENCODER}.norm_layers_2.\1"),
    (rf"{_LAYER}\.feed_forward", rf"{_ENCODER}.ffn_layers.\1"),
    (r"text_encoder\.project", "enc_p.proj"),
    (r"flow\.flows\.(\d+)", lambda match: f"flow.flows.{2 * int(match[1])}"),
    (r"duration_predictor\.flows\.0", "dp.flows.0"),
    (r"duration_predictor\.flows\.(\d+)", lambda match: f"dp.flows.{2 * int(match[1]) - 1}"),
    (r"duration_predictor", "dp"),
    (r"decoder\.upsampler", "dec.ups"),
    (r"decoder", "dec"),
)
_ENDINGS = {
    **{"conv_pre": "pre", "conv_post": "post", "conv_proj": "proj", "wavenet": "enc"},
    **{"conv_dds": "convs", "convs_dilated": "convs_sep", "convs_pointwise": "convs_1x1"},
}


def piper_name(module: str) -> str:
    """Return the name of a transformers module in Piper's training code."""
    for pattern, replacement in _NAMES:
        name, found = re.subn(f"^{pattern}(?=\\.|$)", replacement, module)
        if found:
            if name.startswith("dec."):  # both call the decoder's conv_pre and conv_post so
                return name
            return ".".join(_ENDINGS.get(part, part) for part in name.split("."))
    return module


def piper_config(
    graph: PiperGraph, scales: dict[str, float], sampling_rate: int, shown: str
) -> PiperVitsConfig:
    """Return the configuration of a Piper graph: its facts if it has any, else read from shapes.

    `scales` are noise_scale, length_scale and noise_w of the voice's JSON file.
    """
    given = {
        "noise_scale": scales["noise_scale"],
        "speaking_rate": 1 / scales["length_scale"],
        "noise_scale_duration": scales["noise_w"],
        "sampling_rate": sampling_rate,
    }
    if graph.facts is None:
        with naming(shown):
            structure = {**_text_encoder(graph), **_durations(graph), **_flow(graph)}
            structure |= {**_decoder(graph), **_speakers(graph)}
            return PiperVitsConfig(
                **structure, **given, posterior_encoder_num_wavenet_layers=1, pad_token_id=None
            )
    # Voices of the Hugging Face family have ResBlock1.
    values = {"resblock": "1", **graph.facts.config, "model_type": PiperVitsConfig.model_type}
    config = checked_config(values, PiperVitsConfig, shown)
    for name, value in given.items():
        setattr(config, name, value)
    return config


def build_model(graph: PiperGraph, config: VitsConfig, shown: str) -> VitsModel:
    """Return the model of a graph in float32; InputError if a weight is missing or unfit."""
    with naming(shown):
        model = empty_model(config)
        found = dict(_weights(model, graph))
        weights = {
            name: _checked(name, parameter, found.get(name))
            for name, parameter in model.named_parameters()
        }
        layers = {piper_name(name) for name, _ in model.named_modules()}
        spare = sorted(set(graph.convolutions) - layers)
        require(not spare, f"it has a layer {spare[:1]} that VITS has not")
        others = [] if graph.facts else graph.unused(found.values())
        require(not others, f"it has the weights {others[:1]}, which VITS does not use")
        model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def _text_encoder(graph: PiperGraph) -> dict[str, object]:
    symbols, hidden = graph.symbols.shape
    relative = graph.tensors.get("enc_p.encoder.attn_layers.0.emb_rel_k", torch.empty(0))
    one, window, head = relative.shape if relative.ndim == 3 else (0, 0, 0)
    usual = one == 1 and window > 1 and window % 2 == 1 and head > 0 and hidden % head == 0
    require(usual, "its attention is not that of VITS")
    inner = graph.conv("enc_p.encoder.ffn_layers.0.conv_1").weight
    return {
        "vocab_size": symbols,
        "hidden_size": hidden,
        "num_attention_heads": hidden // head,
        "window_size": window // 2,
        "num_hidden_layers": graph.count(r"enc_p\.encoder\.attn_layers\.(\d+)\."),
        "ffn_dim": inner.shape[0],
        "ffn_kernel_size": inner.shape[2],
        "flow_size": graph.conv("enc_p.proj").weight.shape[0] // 2,
    }


def _durations(graph: PiperGraph) -> dict[str, object]:
    if "dp.conv_1" in graph.convolutions:
        first = graph.conv("dp.conv_1").weight
        return {
            "use_stochastic_duration_prediction": False,
            "duration_predictor_kernel_size": first.shape[2],
            "duration_predictor_filter_channels": first.shape[0],
        }
    flows = graph.count(r"dp\.flows\.(\d+)\.pre$", first=3, stride=2)
    return {
        "use_stochastic_duration_prediction": True,
        "duration_predictor_kernel_size": graph.conv("dp.convs.convs_sep.0").weight.shape[2],
        "duration_predictor_num_flows": flows + 1,  # inference skips one
        "duration_predictor_flow_bins": (graph.conv("dp.flows.3.proj").weight.shape[0] + 1) // 3,
        "depth_separable_num_layers": graph.count(r"dp\.convs\.convs_sep\.(\d+)"),
    }


def _flow(graph: PiperGraph) -> dict[str, object]:
    wavenet = "flow.flows.0.enc.in_layers"
    layers = graph.count(rf"{re.escape(wavenet)}\.(\d+)")
    return {
        "prior_encoder_num_flows": graph.count(r"flow\.flows\.(\d+)\.pre$", stride=2),
        "prior_encoder_num_wavenet_layers": layers,
        "wavenet_kernel_size": graph.conv(f"{wavenet}.0").weight.shape[2],
        "wavenet_dilation_rate": graph.conv(f"{wavenet}.1").dilation if layers > 1 else 1,
    }


def _decoder(graph: PiperGraph) -> dict[str, object]:
    ups = [graph.conv(f"dec.ups.{i}") for i in range(graph.count(r"dec\.ups\.(\d+)"))]
    require(
        0 < math.prod(up.stride for up in ups) <= MAX_HOP_LENGTH
        and all(up.transposed for up in ups),
        "its upsampling is not that of a voice",
    )
    blocks = graph.count(r"dec\.resblocks\.(\d+)\.")
    require(blocks % len(ups) == 0, "its residual blocks do not match its upsampling")
    kind = "1" if "dec.resblocks.0.convs1.0" in graph.convolutions else "2"
    paths = (
        f"dec.resblocks.{block}.convs{'1' if kind == '1' else ''}"
        for block in range(blocks // len(ups))
    )
    convs = [
        [graph.conv(f"{path}.{i}") for i in range(graph.count(rf"{re.escape(path)}\.(\d+)"))]
        for path in paths
    ]
    return {
        "resblock": kind,
        "upsample_initial_channel": graph.conv("dec.conv_pre").weight.shape[0],
        "upsample_rates": [up.stride for up in ups],
        "upsample_kernel_sizes": [up.weight.shape[2] for up in ups],
        "resblock_kernel_sizes": [block[0].weight.shape[2] for block in convs],
        "resblock_dilation_sizes": [[conv.dilation for conv in block] for block in convs],
    }


def _speakers(graph: PiperGraph) -> dict[str, object]:
    table = graph.speakers
    if table is None:
        return {"num_speakers": 1, "speaker_embedding_size": 0}
    require(
        table.ndim == 2 and 1 < table.shape[0] <= _MAX_SPEAKERS and table.shape[1] > 0,
        "its table of speakers has no usable size",
    )
    return {"num_speakers": table.shape[0], "speaker_embedding_size": table.shape[1]}


def _weights(model: VitsModel, graph: PiperGraph) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Yield the model's state from the graph; attributes of convolutions are checked."""
    yield "text_encoder.embed_tokens.weight", graph.symbols
    yield "embed_speaker.weight", graph.speakers
    for ours, theirs in (("translate", "m"), ("log_scale", "logs")):
        yield f"duration_predictor.flows.0.{ours}", graph.tensors.get(f"dp.flows.0.{theirs}")
    for name, module in model.named_modules():
        path = piper_name(name)
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            yield from _convolution(name, module, graph, path)
        elif isinstance(module, nn.LayerNorm):
            yield f"{name}.weight", graph.tensors.get(f"{path}.gamma")
            yield f"{name}.bias", graph.tensors.get(f"{path}.beta")
        elif name.endswith(".attention"):
            for part in ("emb_rel_k", "emb_rel_v"):
                yield f"{name}.{part}", graph.tensors.get(f"{path}.{part}")


def _convolution(
    name: str, module: nn.Conv1d | nn.ConvTranspose1d | nn.Linear, graph: PiperGraph, path: str
) -> Iterator[tuple[str, torch.Tensor | None]]:
    found = graph.conv(path)
    weight = found.weight
    if isinstance(module, nn.Linear):  # a convolution of kernel 1 there
        require(weight.shape[2] == 1, f"its layer {path!r} is not a projection")
        expected, weight = (1, 1, 0, 1, False), weight.squeeze(-1)
    else:
        numbers = (module.stride[0], module.dilation[0], module.padding[0], module.groups)
        expected = (*numbers, isinstance(module, nn.ConvTranspose1d))
    require(
        expected == (found.stride, found.dilation, found.padding, found.groups, found.transposed)
        and max(found.dilation, found.weight.shape[2]) <= _MAX_REACH
        and (found.bias is None) == (module.bias is None),
        f"its layer {path!r} is not that of VITS",
    )
    yield f"{name}.weight", weight
    yield f"{name}.bias", found.bias


def _checked(name: str, parameter: nn.Parameter, weight: torch.Tensor | None) -> torch.Tensor:
    require(weight is not None, f"it has no weights for {name!r}")
    assert weight is not None
    if [one for one in weight.shape if one != 1] == [one for one in parameter.shape if one != 1]:
        weight = weight.reshape(parameter.shape)  # onnxruntime's optimiser adds sides of 1
    sizes = f"{tuple(weight.shape)}, not {tuple(parameter.shape)}"
    require(weight.shape == parameter.shape, f"its weights for {name!r} are {sizes}")
    if not torch.isfinite(weight).all():
        raise InputError(f"its weights for {name!r} are not finite, fetch or export it again.")
    return weight.contiguous()
