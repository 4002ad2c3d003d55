"""Writing an ONNX graph node by node: names, constants, and weights in the precision asked for.

The graph is written by hand and not traced: torch's TorchScript exporter is on its way out and its successor needs onnxscript, neither
gives a graph without the masks of a batch, and both lose the names by which Piper's tools find the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from vits_prune.errors import InputError
from vits_prune.voices.onnx_facts import PRODUCER, checksum_of

OPSET = 17
"""Of onnxruntime 1.13 and later, which Piper's C++ runtime of 2023 embeds too."""
IR_VERSION = 8
PRECISIONS = ("fp32", "fp16", "int8")
_LEAST_ROUNDED = 1024
"""Smaller tensors stay float32: there is nothing to be saved in them."""


class GraphWriter:
    """A graph that grows; every method returns the name of what it made."""

    def __init__(self, precision: str = "fp32") -> None:
        self.precision = precision
        self.rounded: dict[str, torch.Tensor] = {}
        """The float32 weights that the graph computes with, by the names given to `weight`, where rounding changed them."""
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node with one output."""
        return self.ops(kind, *inputs, names=[name] if name else None, **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: str,
        outputs: int = 1,
        names: Sequence[str] | None = None,
        **attributes: Any,
    ) -> list[str]:
        """A node with several outputs."""
        self._count += 1
        names = list(
            names or [f"{kind.lower()}_{self._count}{f'_{i}' if i else ''}" for i in range(outputs)]
        )
        self._nodes.append(
            helper.make_node(kind, list(inputs), names, name=f"{kind}_{self._count}", **attributes)
        )
        return names

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        """A small constant; equal ones are stored once."""
        array = np.asarray(value, dtype=dtype)
        name = f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def integers(self, *values: int) -> str:
        """A constant list of integers, as shapes and axes are given."""
        return self.constant(values, np.int64)

    def weight(self, name: str, tensor: torch.Tensor, channels: int | None = None) -> str:
        """A weight under its own name, stored in the writer's precision and computed with in float32.

        Rounded weights are followed by the node that makes float32 of them, which onnxruntime runs once, when it loads the file: speed is
        that of float32 on every processor.

        Args:
            name: of the weight, unique.
            tensor: float32.
            channels: axis of the output channels, which have a scale each in int8; None keeps the tensor out of int8.

        Raises:
            InputError: the precision is fp16, which does not hold the weight.
        """
        if name in self.rounded or name in self._initializers:
            return name
        rounds = tensor.ndim > 1 and tensor.numel() >= _LEAST_ROUNDED
        if self.precision == "fp16" and rounds:
            half = tensor.half()
            if not bool(torch.isfinite(half).all()):
                raise InputError(
                    f"The voice has weights beyond 65,504 ({name}), more than fp16 holds: export it with precision fp32."
                )
            self._initializers[f"{name}.half"] = numpy_helper.from_array(
                half.numpy(), f"{name}.half"
            )
            self.op("Cast", f"{name}.half", name=name, to=TensorProto.FLOAT)
            self.rounded[name] = half.float()
        elif self.precision == "int8" and rounds and channels is not None:
            levels, scales = quantise(tensor, channels)
            self._initializers[f"{name}.int8"] = numpy_helper.from_array(
                levels.numpy(), f"{name}.int8"
            )
            self._initializers[f"{name}.scales"] = numpy_helper.from_array(
                scales.numpy(), f"{name}.scales"
            )
            self.op(
                "Mul",
                self.op("Cast", f"{name}.int8", to=TensorProto.FLOAT),
                f"{name}.scales",
                name=name,
            )
            self.rounded[name] = levels.float() * scales
        else:
            self._initializers[name] = numpy_helper.from_array(tensor.contiguous().numpy(), name)
        return name

    def model(
        self,
        inputs: Mapping[str, tuple[int, list]],
        outputs: Mapping[str, tuple[int, list]],
        facts: Mapping[str, str],
    ) -> bytes:
        """The finished file.

        Args:
            inputs: name -> (ONNX element type, shape with names for dynamic sides).
            outputs: the same.
            facts: what goes into the file's metadata, with a checksum where they are those of a voice (onnx_facts.py).
        """
        graph = helper.make_graph(
            self._nodes,
            "vits",
            [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
            [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
            list(self._initializers.values()),
        )
        checksum = checksum_of(graph, facts)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph,
            opset_imports=opset,
            ir_version=IR_VERSION,
            producer_name=PRODUCER if checksum else "",
        )
        helper.set_model_props(model, {**facts, **checksum})
        return model.SerializeToString()


def quantise(tensor: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 levels and float32 scales with levels x scales near the tensor: symmetric, so zeros stay zeros; one scale an output channel."""
    others = [axis for axis in range(tensor.ndim) if axis != channels]
    scales = (tensor.abs().amax(dim=others, keepdim=True) / 127).clamp_min(
        torch.finfo(torch.float32).tiny
    )
    return torch.round(tensor / scales).clamp(-127, 127).to(torch.int8), scales
