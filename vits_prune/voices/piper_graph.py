"""A Piper voice's ONNX file as tensors and convolutions by the names they had in training. It may be hostile: nothing in it is run.

torch's exporter keeps most names (`enc_p.`, `dp.`, `flow.`, `dec.`) and loses some: folded weight norm leaves anonymous weights
(`onnx::Conv_8168`), equal tensors are stored once and reached through Identity nodes, and the table of embeddings has been seen as `sid`.
So each convolution is found at its node, and what has no name of its own is found by what reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.voices.onnx_facts import Facts, read_facts

if TYPE_CHECKING:
    import onnx

MAX_MODEL_BYTES = 512 * 2**20
MAX_NODES = 200_000
_NUMPY_TYPES = {1: np.float32, 10: np.float16, 11: np.float64}
"""TensorProto's FLOAT, FLOAT16 and DOUBLE."""
UNSOUND = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What reading a hostile file raises where its parts contradict each other: in more ways than can be checked one by one."""
_INT8 = 3
"""TensorProto's INT8."""
_PARAMETER = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.\w+)*)\.(?:weight|bias|weight_g|weight_v|parametrizations\.weight\.original[01])")
_NODE = re.compile(r"/(?P<module>.+)/Conv(?:Transpose)?(?:_\d+)?")
_NORM_NAMES = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))


class _Unusable(Exception):
    """Says what is wrong with the file, for the InputError that names it."""


@dataclass(frozen=True)
class Convolution:
    """A Conv or ConvTranspose node over one axis."""

    weight: torch.Tensor
    """[out, in / groups, kernel], for a transposed one [in, out / groups, kernel]; weight norm folded."""
    bias: torch.Tensor | None
    stride: int
    dilation: int
    padding: int
    """On either side."""
    groups: int
    transposed: bool


@dataclass
class PiperGraph:
    """What a Piper ONNX file holds, tensors as float32."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """By the name that nodes use, duplicates included."""
    convolutions: dict[str, Convolution] = field(default_factory=dict)
    """By the path of their module in training, such as "flow.flows.6.enc.in_layers.0"."""
    embeddings: dict[str, torch.Tensor] = field(default_factory=dict)
    """Tables by the graph input that picks their rows: "input" for the phonemes, "sid" for the speakers."""
    facts: Facts | None = None
    """What the file says of the voice, None for a file that was not written by this library."""


def read_graph(path: str, shown: str) -> PiperGraph:
    """Read a Piper ONNX file.

    Args:
        path: the file.
        shown: what messages call it.

    Raises:
        InputError: it cannot be read, is not ONNX, keeps weights in other files, its tensors contradict themselves, or it was written by
            this library and is not as it was written.
    """
    try:
        model = _parse(path)
        facts = read_facts(model, shown)
        found = _collect(model.graph)
        found.facts = facts
        return found
    except _Unusable as error:
        raise InputError(f"{shown} cannot be used: {error}") from None
    except InputError:
        raise
    except UNSOUND as error:
        raise InputError(f"{shown} cannot be used: it is not a sound ONNX file, fetch it again.") from error


def _parse(path: str) -> onnx.ModelProto:
    import os

    import onnx
    from google.protobuf.message import DecodeError

    try:
        if os.path.getsize(path) > MAX_MODEL_BYTES:
            raise _Unusable(f"it is larger than {MAX_MODEL_BYTES // 2**20} MiB, give a Piper voice as its trainer exported it.")
        with open(path, "rb") as file:
            model = onnx.ModelProto.FromString(file.read())
    except OSError:
        raise _Unusable("it is not a file that can be read, check its name.") from None
    except (DecodeError, ValueError, RecursionError):
        raise _Unusable("it is not a whole ONNX file, fetch it again.") from None
    if not model.graph.node or len(model.graph.node) > MAX_NODES:
        raise _Unusable("it is not the ONNX file of a Piper voice, give the .onnx that belongs to the .json.")
    return model


def _to_torch(tensor: onnx.TensorProto) -> torch.Tensor | None:
    """A floating-point tensor as float32, None for any other."""
    if tensor.data_location == 1 or tensor.external_data:
        raise _Unusable("it keeps weights in other files, export the voice as a single file.")
    if tensor.data_type not in _NUMPY_TYPES:
        return None
    dtype = _NUMPY_TYPES[tensor.data_type]
    if tensor.raw_data:
        data = np.frombuffer(tensor.raw_data, dtype) if len(tensor.raw_data) % np.dtype(dtype).itemsize == 0 else np.empty(0, dtype)
    elif dtype is np.float16:  # ONNX keeps the bits of half floats in its integer field
        data = np.asarray(tensor.int32_data, np.int64).astype(np.uint16).view(np.float16)
    else:
        data = np.asarray(tensor.float_data if dtype is np.float32 else tensor.double_data, dtype)
    with np.errstate(over="ignore"):  # what overflows is caught as not finite where it is used
        return torch.from_numpy(_shaped(tensor, data).astype(np.float32))


def _levels(tensor: onnx.TensorProto) -> torch.Tensor:
    """The whole numbers of an int8 tensor."""
    data = np.frombuffer(tensor.raw_data, np.int8) if tensor.raw_data else np.asarray(tensor.int32_data, np.int64).astype(np.int8)
    return torch.from_numpy(_shaped(tensor, data).copy())


def _shaped(tensor: onnx.TensorProto, data: np.ndarray) -> np.ndarray:
    """A tensor's numbers in the shape that it states."""
    shape, count = tuple(tensor.dims), 1
    for size in shape:
        count *= size
    if len(shape) > 8 or any(size < 0 for size in shape) or count != data.size:
        raise _Unusable(f"its tensor {tensor.name[:60]!r} does not have the size it states, fetch the file again.")
    return data.reshape(shape)


def _collect(graph: onnx.GraphProto) -> PiperGraph:
    found = PiperGraph()
    for tensor in graph.initializer:
        _add(found.tensors, tensor.name, tensor)
    aliases: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    _add(found.tensors, node.output[0], attribute.t)
        elif node.op_type in ("Identity", "Cast") and node.input and node.output:
            aliases[node.output[0]] = node.input[0]
    for name in aliases:
        source = _resolve(name, aliases)
        if source in found.tensors:
            found.tensors[name] = found.tensors[source]
    _dequantise(graph, found.tensors, aliases)
    inputs = {value.name for value in graph.input} - set(found.tensors)
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            _add_convolution(found, node)
        elif node.op_type == "Gather" and len(node.input) == 2:
            index = _resolve(node.input[1], aliases)
            if index in inputs and node.input[0] in found.tensors:
                found.embeddings[index] = found.tensors[node.input[0]]
    if "dp.flows.0.logs" not in found.tensors:
        log_scale = _find_duration_log_scale(graph, found.tensors)
        if log_scale is not None:
            found.tensors["dp.flows.0.logs"] = log_scale
    return found


def _add(tensors: dict[str, torch.Tensor], name: str, proto: onnx.TensorProto) -> None:
    tensor = _to_torch(proto)
    if tensor is not None:
        tensors[name] = tensor


def _dequantise(graph: onnx.GraphProto, tensors: dict[str, torch.Tensor], aliases: dict[str, str]) -> None:
    """Add the weights that are stored as int8 levels: a Cast and a Mul by their scales, as onnxruntime computes them."""
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == _INT8 and not tensor.external_data}
    for node in graph.node:
        if node.op_type != "Mul" or len(node.input) != 2 or not node.output:
            continue
        source, scales = _resolve(node.input[0], aliases), tensors.get(_resolve(node.input[1], aliases))
        if source not in stored or scales is None:
            continue
        levels = _levels(stored.pop(source))  # once each: a hostile file may multiply the same ones over and over
        if scales.ndim != levels.ndim or any(one not in (1, size) for one, size in zip(scales.shape, levels.shape, strict=True)):
            raise _Unusable(f"the scales of its tensor {source[:60]!r} do not fit it, export the voice again.")
        tensors[node.output[0]] = levels.float() * scales


def _resolve(name: str, aliases: dict[str, str]) -> str:
    """The first name behind a chain of Identity nodes; a hostile chain may be a circle."""
    for _ in range(16):
        if name not in aliases:
            break
        name = aliases[name]
    return name


def _module_path(node: onnx.NodeProto) -> str | None:
    """The training path of a convolution: its weight's name says it best, then the node's own, then its bias's, which others may share."""
    weight, bias = [*node.input[1:3], "", ""][:2]
    match = _PARAMETER.fullmatch(weight) or _NODE.fullmatch(node.name) or _PARAMETER.fullmatch(bias)
    return match["module"].replace("/", ".") if match else None


def _add_convolution(found: PiperGraph, node: onnx.NodeProto) -> None:
    path = _module_path(node)
    if path is None or len(node.input) < 2:
        return
    weight = found.tensors[node.input[1]] if node.input[1] in found.tensors else _fold_weight_norm(found.tensors, path)
    if weight is None or weight.ndim != 3:
        return
    bias = found.tensors.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if len(node.input) > 2 and node.input[2] and bias is None:
        return
    numbers = {a.name: (list(a.ints) if a.ints else [a.i]) for a in node.attribute}
    pads = numbers.get("pads", [0, 0])
    sizes = [*numbers.get("strides", [1]), *numbers.get("dilations", [1]), *numbers.get("group", [1]), *pads]
    odd = any(numbers.get("output_padding", [0])) or any(a.name == "auto_pad" and a.s not in (b"", b"NOTSET") for a in node.attribute)
    if odd or len(sizes) != 5 or pads[0] != pads[1] or any(not 0 <= size <= 2**20 for size in sizes):
        raise _Unusable(f"its convolution {path[:60]!r} is not one of a Piper voice, give a voice exported by Piper.")
    found.convolutions[path] = Convolution(weight, bias, sizes[0], sizes[1], pads[0], sizes[2], node.op_type == "ConvTranspose")


def _fold_weight_norm(tensors: dict[str, torch.Tensor], path: str) -> torch.Tensor | None:
    """w = g v / ||v|| (Salimans & Kingma 2016, arXiv:1602.07868), for an export that kept the two apart."""
    for magnitude, direction in _NORM_NAMES:
        g, v = tensors.get(path + magnitude), tensors.get(path + direction)
        if g is not None and v is not None and v.ndim == 3 and g.shape == (v.shape[0], 1, 1):
            return torch._weight_norm(v, g, 0)
    return None


def _find_duration_log_scale(graph: onnx.GraphProto, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """logs from dp.flows.0, (x - m) exp(-logs): folded with its sign, with its exponential, or not at all."""
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type != "Mul" or len(node.input) != 2:
            continue
        for difference, factor in (node.input, reversed(node.input)):
            source = made_by.get(difference)
            if source is not None and source.op_type == "Sub" and list(source.input[1:]) == ["dp.flows.0.m"]:
                if factor in tensors:
                    return -torch.log(tensors[factor])
                exponential = made_by.get(factor)
                if exponential is not None and exponential.op_type == "Exp" and exponential.input and exponential.input[0] in tensors:
                    return -tensors[exponential.input[0]]
    return None
