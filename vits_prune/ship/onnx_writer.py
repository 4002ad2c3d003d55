"""Write an ONNX graph node by node: names, constants, and weights in the precision asked for.

The graph is written by hand and not traced: torch's TorchScript exporter is on its way out, its
successor needs onnxscript, neither gives a graph without the masks of a batch, and both lose the
names by which Piper's tools find the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from vits_prune.errors import InputError
from vits_prune.voices.manifest import PRODUCER, checksum_of

OPSET = 17
"""Of onnxruntime 1.13 and later, which Piper's C++ runtime of 2023 embeds too."""
IR_VERSION = 8
_LEAST_ROUNDED = 1024
"""Smaller tensors stay float32: rounding them saves nothing."""

Operand: TypeAlias = "Value | str | int | float | tuple[int, ...] | np.integer[Any]"
"""A value, the name of one, or a constant: see `GraphWriter.constant`."""


def _node(kind: str) -> Callable[[Value, Operand], Value]:
    """An operator that adds a node of two inputs."""
    return lambda one, other: one.graph.op(kind, one, other)


@dataclass(frozen=True)
class Value:
    """A tensor in a graph; arithmetic with it adds nodes."""

    name: str
    graph: GraphWriter

    __add__, __sub__, __mul__ = _node("Add"), _node("Sub"), _node("Mul")
    __truediv__, __matmul__ = _node("Div"), _node("MatMul")
    __ge__, __le__ = _node("GreaterOrEqual"), _node("LessOrEqual")

    def __neg__(self) -> Value:
        return self.graph.op("Neg", self)

    @property
    def swapped(self) -> Value:
        """The value [a, b, c] as [a, c, b]."""
        return self.graph.op("Transpose", self, perm=[0, 2, 1])

    @property
    def as_int(self) -> Value:
        """The value as int64, rounded towards zero."""
        return self.graph.op("Cast", self, to=TensorProto.INT64)

    @property
    def flipped(self) -> Value:
        """The channels in reverse."""
        return self.graph.op("Slice", self, -1, -(2**31), 1, -1)

    @property
    def gelu(self) -> Value:
        """The exact GELU of the value."""
        erf = self.graph.op("Erf", self / math.sqrt(2))
        return self * (erf + 1.0) * 0.5

    def padded(self, before: Operand, after: Operand, axes: int) -> Value:
        """Return the value with zeros before and after, along the last of so many axes."""
        none = [(0,) * (axes - 1)] if axes > 1 else []
        sides = self.graph.op("Concat", *none, before, *none, after, axis=0)
        return self.graph.op("Pad", self, sides)

    def slice(self, begin: Operand, end: Operand, axis: Operand) -> Value:
        """Return the elements from `begin` to before `end` along an axis."""
        return self.graph.op("Slice", self, begin, end, axis)

    def split(self, *sizes: int, axis: int = 1) -> list[Value]:
        """Return pieces of these sizes along an axis."""
        return self.graph.ops("Split", self, sizes, outputs=len(sizes), axis=axis)

    def at(self, index: Operand, axis: int) -> Value:
        """Return the elements at these places along an axis, a place for each element."""
        return self.graph.op("GatherElements", self, index, axis=axis)


class GraphWriter:
    """A graph that grows, with weights in a precision: "fp32", "fp16" or "int8"."""

    def __init__(self, precision: str = "fp32") -> None:
        self.precision = precision
        self.rounded: dict[str, torch.Tensor] = {}
        """The float32 weights that the graph computes with, where rounding changed them."""
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: Operand, name: str = "", **attributes: Any) -> Value:
        """Add a node with one output."""
        return self.ops(kind, *inputs, name=name, **attributes)[0]

    def ops(
        self, kind: str, *inputs: Operand, outputs: int = 1, name: str = "", **attributes: Any
    ) -> list[Value]:
        """Add a node with several outputs; `name` is that of the first."""
        names = [self._name(one) for one in inputs]
        number = len(self._nodes) + 1
        found = [name or f"{kind.lower()}_{number}"]
        found += [f"{kind.lower()}_{number}_{index}" for index in range(1, outputs)]
        node = helper.make_node(kind, names, found, name=f"{kind}_{number}", **attributes)
        self._nodes.append(node)
        return [Value(each, self) for each in found]

    def _name(self, operand: Operand) -> str:
        if isinstance(operand, str):
            return operand
        return (operand if isinstance(operand, Value) else self.constant(operand)).name

    def constant(self, value: int | float | tuple[int, ...] | np.integer[Any]) -> Value:
        """Return a float32, a list of int64 or, of numpy's integers, one int64; stored once."""
        if isinstance(value, (int, tuple)):
            array = np.atleast_1d(np.asarray(value, np.int64))
        else:
            array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
        shape = "x".join(map(str, array.shape))
        name = f"constant_{array.dtype}_{shape}_{array.tobytes().hex()}"
        if name not in self._initializers:
            self._store(name, array)
        return Value(name, self)

    def _store(self, name: str, array: np.ndarray) -> None:
        self._initializers[name] = numpy_helper.from_array(array, name)

    def weight(self, name: str, tensor: torch.Tensor, channels: int | None = None) -> Value:
        """Add a float32 weight, stored in the writer's precision; InputError if fp16 is too small.

        Rounded weights are followed by the node that makes float32 of them, which onnxruntime runs
        once, when it loads the file: speed is that of float32 on every processor. `channels` is the
        axis of the output channels, each with a scale in int8; None keeps the tensor out of int8.
        """
        if name in self.rounded or name in self._initializers:
            return Value(name, self)
        rounds = tensor.ndim > 1 and tensor.numel() >= _LEAST_ROUNDED
        if self.precision == "fp16" and rounds:
            half = tensor.half()
            if not bool(torch.isfinite(half).all()):
                what = f"The voice has weights beyond 65,504 ({name}), more than fp16 holds"
                raise InputError(f"{what}: export it with precision fp32.")
            self._store(f"{name}.half", half.numpy())
            self.rounded[name] = half.float()
            return self.op("Cast", f"{name}.half", name=name, to=TensorProto.FLOAT)
        if self.precision == "int8" and rounds and channels is not None:
            levels, scales = quantise(tensor, channels)
            self._store(f"{name}.int8", levels.numpy())
            self._store(f"{name}.scales", scales.numpy())
            self.rounded[name] = levels.float() * scales
            as_float = self.op("Cast", f"{name}.int8", to=TensorProto.FLOAT)
            return self.op("Mul", as_float, f"{name}.scales", name=name)
        self._store(name, tensor.contiguous().numpy())
        return Value(name, self)

    def model(
        self,
        inputs: Mapping[str, tuple[int, list]],
        output: tuple[str, tuple[int, list]],
        facts: Mapping[str, str],
    ) -> bytes:
        """Return the finished file.

        Inputs and output are name -> (ONNX element type, shape with names for dynamic sides). A
        checksum is added to the metadata, `facts`, if they are those of a voice.
        """
        given = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
        made = [helper.make_tensor_value_info(output[0], *output[1])]
        weights = list(self._initializers.values())
        graph = helper.make_graph(self._nodes, "vits", given, made, weights)
        checksum = checksum_of(graph, facts)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name=PRODUCER if checksum else "",
        )
        helper.set_model_props(model, {**facts, **checksum})
        return model.SerializeToString()


def quantise(tensor: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 levels and float32 scales whose product is near the tensor.

    Symmetric, so zeros stay zeros; one scale for each output channel, along the axis `channels`.
    """
    others = [axis for axis in range(tensor.ndim) if axis != channels]
    largest = tensor.abs().amax(dim=others, keepdim=True)
    scales = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.round(tensor / scales).clamp(-127, 127).to(torch.int8), scales
