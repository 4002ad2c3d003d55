"""Read a Piper voice's ONNX file as tensors and convolutions by the names they had in training.

Nothing in the file is run. torch's exporter loses some names: folded weight norm leaves anonymous
weights (`onnx::Conv_8168`), equal tensors are stored once behind Identity nodes, and the embeddings
may be called `sid`. So each convolution is found at its node, an unnamed tensor by its reader.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.voices.manifest import Facts, read_facts

if TYPE_CHECKING:
    import onnx

MAX_MODEL_BYTES = 512 << 20
MAX_NODES = 200_000
MAX_LAYERS = 64
"""Most layers of one kind (Piper's own: 6 attention layers, 12 residual blocks)."""
_INPUTS = {"input", "input_lengths", "scales", "sid"}
_QUANTISED = {"ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv"}
_FLOATS, _INT8 = (1, 10, 11), 3
"""Types of a TensorProto: FLOAT, FLOAT16, DOUBLE; INT8."""
_UNSOUND = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What reading raises if the parts of a hostile file contradict each other."""
_PARAMETER = re.compile(
    r"(?P<module>[A-Za-z_]\w*(?:\.\w+)*)\."
    r"(?:weight|bias|weight_g|weight_v|parametrizations\.weight\.original[01])"
)
_NODE = re.compile(r"/(?P<module>.+)/Conv(?:Transpose)?(?:_\d+)?")
_NORM_NAMES = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


@dataclass(frozen=True)
class Convolution:
    """A Conv or ConvTranspose node over one axis, with weight norm folded.

    `weight` is [out, in / groups, kernel], for a transposed one [in, out / groups, kernel].
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: int
    dilation: int
    padding: int
    groups: int
    transposed: bool


@dataclass
class PiperGraph:
    """What a Piper ONNX file holds, tensors as float32."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """By the name that nodes use, duplicates included."""
    convolutions: dict[str, Convolution] = field(default_factory=dict)
    """By the path of their module in training, such as "flow.flows.6.enc.in_layers.0"."""
    tables: dict[str, torch.Tensor] = field(default_factory=dict)
    """Embeddings by the graph input that picks a row: "input" (phonemes), "sid" (speakers)."""
    read: frozenset[str] = frozenset()
    """Names of the tensors that nodes read."""
    facts: Facts | None = None
    """What the file says about the voice; None for a file that this library did not write."""

    def conv(self, path: str) -> Convolution:
        """Return a convolution; InputError without the file's name if there is none."""
        require(path in self.convolutions, f"it has no layer {path!r}")
        return self.convolutions[path]

    def count(self, pattern: str, first: int = 0, stride: int = 1) -> int:
        """Return how many layers match, whose numbers begin at `first` and rise by `stride`."""
        found = (re.match(pattern, name) for name in (*self.convolutions, *self.tensors))
        indices = {match[1] for match in found if match}
        wanted = {str(first + stride * i) for i in range(len(indices))}
        usual = 0 < len(indices) <= MAX_LAYERS and indices == wanted
        require(usual, f"its layers {pattern!r} are not numbered as in VITS")
        return len(indices)

    def unused(self, weights: Iterable[torch.Tensor | None]) -> list[str]:
        """Return the tensors, but for single numbers, that nodes read and `weights` do not hold."""
        used = {one.untyped_storage().data_ptr() for one in weights if one is not None}
        ends = tuple(end for ends in _NORM_NAMES for end in ends)  # folded into others
        there = ((name, self.tensors[name]) for name in self.read if name in self.tensors)
        return sorted(
            name
            for name, tensor in there
            if tensor.numel() > 3 and not name.endswith(ends)
            if tensor.untyped_storage().data_ptr() not in used
        )

    @property
    def symbols(self) -> torch.Tensor:
        """The phonemes' embeddings, [symbols, channels]."""
        table = self.tensors.get("enc_p.emb.weight", self.tables.get("input", torch.empty(0)))
        usable = table.ndim == 2 and min(table.shape) > 0
        require(usable, "it has no table of phoneme embeddings")
        return table

    @property
    def speakers(self) -> torch.Tensor | None:
        """The speakers' embeddings, [speakers, channels]; None for a voice with one speaker."""
        return self.tensors.get("emb_g.weight", self.tables.get("sid"))


def require(fact: object, what: str) -> None:
    """Raise if a graph is not that of a Piper voice. `naming` adds the name of the file."""
    if not fact:
        raise InputError(f"{what}, give the .onnx of a Piper (VITS) voice.")


@contextlib.contextmanager
def naming(shown: str) -> Iterator[None]:
    """Turn whatever goes wrong in the block into an InputError that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{shown} cannot be used: {error}") from None
    except _UNSOUND as error:
        raise InputError(
            f"{shown} cannot be used: it is not a sound ONNX file of a Piper voice, fetch it again."
        ) from error


def read_graph(path: Path) -> PiperGraph:
    """Read a Piper ONNX file; InputError for one that is not sound, whole and in one file."""
    with naming(path.name):
        model = _parse(path)
    facts = read_facts(model, path.name)
    with naming(path.name):
        graph = _collect(model.graph)
    graph.facts = facts
    return graph


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise InputError(f"it is over {MAX_MODEL_BYTES >> 20} MiB, give a Piper voice.")
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError:
        raise InputError("it is not a file that can be read, check its name.") from None
    except DecodeError:
        raise InputError("it is not a whole ONNX file, fetch it again.") from None
    if not 0 < len(model.graph.node) <= MAX_NODES:
        raise InputError("it is not a Piper voice, give the .onnx that belongs to the .json.")
    return model


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    from onnx import numpy_helper

    if tensor.data_location == 1 or tensor.external_data:
        raise InputError("it keeps weights in other files, export the voice as a single file.")
    try:
        if len(tensor.dims) > 8 or any(size < 0 for size in tensor.dims):
            raise ValueError("no shape")
        return numpy_helper.to_array(tensor)
    except ValueError as error:
        what = f"its tensor {tensor.name[:60]!r} does not have the size it states"
        raise InputError(f"{what}, fetch it again.") from error


def _collect(graph: onnx.GraphProto) -> PiperGraph:
    found = PiperGraph()
    protos = [(tensor.name, tensor) for tensor in graph.initializer]
    aliases: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Constant":
            protos += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
        elif node.op_type in ("Identity", "Cast"):
            aliases[node.output[0]] = node.input[0]
    for name, proto in protos:
        if proto.data_type in _FLOATS:
            with np.errstate(over="ignore"):  # infinite values are refused when they are used
                found.tensors[name] = torch.from_numpy(_array(proto).astype(np.float32))
    for name in aliases:
        source = _resolve(name, aliases)
        if source in found.tensors:
            found.tensors[name] = found.tensors[source]
    _dequantise(graph, found.tensors, aliases)
    stored = {tensor.name for tensor in graph.initializer}
    inputs = {value.name for value in graph.input} - stored
    require(
        inputs <= _INPUTS,
        f"it asks for {min(inputs - _INPUTS, default='')[:60]!r}, which no Piper voice does",
    )
    rounded = {node.op_type for node in graph.node} & _QUANTISED
    require(not rounded, "it is quantised, which cannot be undone")
    for node in graph.node:
        if node.op_type in ("Conv", "FusedConv", "ConvTranspose"):
            _add_convolution(found, node)
        elif node.op_type == "Gather":
            table, index = node.input[0], _resolve(node.input[1], aliases)
            if index in inputs and table in found.tensors:
                found.tables[index] = found.tensors[table]
    if "dp.flows.0.logs" not in found.tensors:
        _add_log_scale(graph, found.tensors)
    found.read = frozenset(name for node in graph.node for name in node.input)
    return found


def _dequantise(
    graph: onnx.GraphProto, tensors: dict[str, torch.Tensor], aliases: dict[str, str]
) -> None:
    """Add the weights stored as int8 levels: a Cast and a Mul by their scales."""
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == _INT8}
    for node in graph.node:
        if node.op_type != "Mul":
            continue
        source, scales = _resolve(node.input[0], aliases), _resolve(node.input[1], aliases)
        if source not in stored or scales not in tensors:
            continue
        # Each once: a hostile file may multiply the same levels over and over.
        levels, scale = torch.from_numpy(_array(stored.pop(source)).copy()), tensors[scales]
        if scale.ndim != levels.ndim or any(
            one not in (1, size) for one, size in zip(scale.shape, levels.shape, strict=True)
        ):
            raise InputError(f"the scales of its tensor {source[:60]!r} do not fit: export again.")
        tensors[node.output[0]] = levels.float() * scale


def _resolve(name: str, aliases: dict[str, str]) -> str:
    """Return the first name behind a chain of Identity nodes; a hostile chain may be a circle."""
    for _ in range(16):
        if name not in aliases:
            break
        name = aliases[name]
    return name


def _add_convolution(found: PiperGraph, node: onnx.NodeProto) -> None:
    weight_name, bias_name = [*node.input[1:3], "", ""][:2]
    # The weight's name says best which layer it is; other layers may share the bias.
    match = _PARAMETER.fullmatch(weight_name) or _NODE.fullmatch(node.name)
    match = match or _PARAMETER.fullmatch(bias_name)
    if match is None:
        return
    path = match["module"].replace("/", ".")
    weight = found.tensors.get(weight_name)
    if weight is None:
        weight = _fold_weight_norm(found.tensors, path)
    bias = found.tensors.get(bias_name)
    if weight is None or weight.ndim != 3 or (bias_name and bias is None):
        return
    numbers = {a.name: (list(a.ints) if a.ints else [a.i]) for a in node.attribute}
    pads = numbers.get("pads", [0, 0])
    sizes = [one for name in ("strides", "dilations", "group") for one in numbers.get(name, [1])]
    automatic = any(a.name == "auto_pad" and a.s not in (b"", b"NOTSET") for a in node.attribute)
    usual = len(sizes) == 3 and len(pads) == 2 and pads[0] == pads[1] and not automatic
    usual = usual and not any(numbers.get("output_padding", [0]))
    usual = usual and all(0 <= size <= 2**20 for size in (*sizes, *pads))
    require(usual, f"its convolution {path[:60]!r} is not one of a Piper voice")
    stride, dilation, groups = sizes
    found.convolutions[path] = Convolution(
        weight, bias, stride, dilation, pads[0], groups, node.op_type == "ConvTranspose"
    )


def _fold_weight_norm(tensors: dict[str, torch.Tensor], path: str) -> torch.Tensor | None:
    """Return w = g v / ||v|| (Salimans & Kingma 2016, arXiv:1602.07868) if both are there."""
    for magnitude, direction in _NORM_NAMES:
        g, v = tensors.get(path + magnitude), tensors.get(path + direction)
        if g is not None and v is not None and v.ndim == 3 and g.shape == (v.shape[0], 1, 1):
            return torch._weight_norm(v, g, 0)
    return None


def _add_log_scale(graph: onnx.GraphProto, tensors: dict[str, torch.Tensor]) -> None:
    """Add logs of dp.flows.0, (x - m) exp(-logs): the exporter may fold the exponential."""
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type != "Mul":
            continue
        for difference, factor in (node.input, reversed(node.input)):
            source, exponential = made_by.get(difference), made_by.get(factor)
            if source is None or source.op_type != "Sub" or source.input[1] != "dp.flows.0.m":
                continue
            if factor in tensors:
                tensors["dp.flows.0.logs"] = -torch.log(tensors.pop(factor))
                return
            if exponential is None or exponential.op_type != "Exp":
                continue
            if exponential.input[0] in tensors:
                tensors["dp.flows.0.logs"] = -tensors.pop(exponential.input[0])
                return
