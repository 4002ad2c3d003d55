"""A layer's weight as a matrix: times the windows of its input it is the layer's output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vits_prune.pruning.layers import LayerMatrix


def seeded(make):
    torch.manual_seed(3)
    return make().requires_grad_(False)


LAYERS = {
    "linear": lambda: nn.Linear(5, 7),
    "pointwise": lambda: nn.Conv1d(5, 7, 1),
    "padded": lambda: nn.Conv1d(5, 7, 3, padding=1),
    "dilated": lambda: nn.Conv1d(5, 7, 5, dilation=3, padding=6),
    "unpadded": lambda: nn.Conv1d(5, 7, 4),
    "upsampling 16:8": lambda: nn.ConvTranspose1d(5, 7, 16, 8, padding=4),
    "upsampling 8:4": lambda: nn.ConvTranspose1d(5, 7, 8, 4, padding=2),
    "upsampling 8:2": lambda: nn.ConvTranspose1d(5, 7, 8, 2, padding=3),
    "upsampling 4:4": lambda: nn.ConvTranspose1d(5, 7, 4, 4),
    "upsampling 12:3": lambda: nn.ConvTranspose1d(5, 7, 12, 3, padding=4),
    "upsampling 10:5": lambda: nn.ConvTranspose1d(5, 7, 10, 5, padding=2),
    "upsampling 3:1": lambda: nn.ConvTranspose1d(5, 7, 3, 1, padding=1),
}
UNEVEN = {
    "depthwise": lambda: nn.Conv1d(6, 6, 3, groups=6, padding=1),
    "grouped": lambda: nn.Conv1d(6, 4, 3, groups=2, padding=1),
    "upsampling 7:4": lambda: nn.ConvTranspose1d(5, 7, 7, 4, padding=1),
}


@pytest.mark.parametrize("kind", [*LAYERS, *UNEVEN])
def test_there_and_back(kind):
    module = seeded({**LAYERS, **UNEVEN}[kind])
    matrix = LayerMatrix(module)
    table = matrix.of(module.weight)
    assert tuple(table.shape) == matrix.shape
    assert torch.equal(matrix.back(table), module.weight)
    assert matrix.back(table).is_contiguous()
    assert matrix.dense == (kind in LAYERS)
    inputs = module.in_features if kind == "linear" else module.in_channels // module.groups
    assert matrix.channels(table).shape[:2] == (matrix.shape[0], inputs)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("positions", [6, 17])
def test_windows_times_the_matrix_are_the_output(kind, positions):
    module = seeded(LAYERS[kind])
    matrix = LayerMatrix(module)
    inputs = torch.randn(2, positions, 5) if kind == "linear" else torch.randn(2, 5, positions)
    found = module(inputs)
    usable = matrix.usable(inputs, None).nonzero()
    windows = matrix.windows(inputs, usable[:, 0], usable[:, 1])
    bias = module.bias.repeat_interleave(matrix.shape[0] // len(module.bias))
    wanted = matrix.outputs(found, usable[:, 0], usable[:, 1])
    assert windows.shape == (len(usable), matrix.shape[1])
    assert torch.allclose(windows @ matrix.of(module.weight).T + bias, wanted, atol=1e-5)
    whole = found.numel()  # all positions are used, but for those in a block that the padding cuts
    stride, pad = (module.stride[0], module.padding[0]) if kind.startswith("up") else (1, 0)
    lost = 2 * 2 * len(module.bias) * (-(-pad // stride) * stride - pad)
    assert wanted.numel() == whole - lost


def test_padding_is_left_out():
    module, valid = seeded(LAYERS["padded"]), torch.tensor([[True] * 4, [True, True, False, False]])
    assert LayerMatrix(module).usable(torch.zeros(2, 5, 4), valid).sum() == 6
    assert torch.equal(
        LayerMatrix(seeded(LAYERS["linear"])).usable(torch.zeros(2, 4, 5), valid), valid
    )


def test_neighbours_are_input_channels():
    module = seeded(LAYERS["upsampling 8:4"])
    matrix = LayerMatrix(module)
    marked = torch.zeros_like(module.weight)
    marked[3] = 1
    cube = matrix.channels(matrix.of(marked))
    assert bool((cube[:, 3] == 1).all())
    assert int(cube.sum()) == marked[3].numel()
