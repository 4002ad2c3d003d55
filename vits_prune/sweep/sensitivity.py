"""Sensitivity: one part, or one layer, pruned at a time - which breaks speech first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.spec import PruneSpec
from vits_prune.sweep.grid import Point
from vits_prune.voices.voice import PARTS, Voice

DEFAULT_AMOUNTS = (0.3, 0.5, 0.7)


def part_points(amounts: Iterable[float], *, scope: str = "global", method: str = "magnitude") -> tuple[Point, ...]:
    """Each part alone at each amount, for `run_sweep` or `measure_task`.

    Args:
        amounts: share of the part's weights.
        scope: "global": one ranking over the part; "local": the same amount in each of its layers.
        method: which weights go first.
    """
    amounts = tuple(amounts)
    return tuple(Point(PruneSpec(method=method, scope=scope, amount=amount, parts=(part,))) for part in PARTS for amount in amounts)


def layer_points(voice: Voice, amounts: Iterable[float], names: Sequence[str] = (), *, method: str = "magnitude") -> tuple[Point, ...]:
    """Each layer alone at each amount, in the order of the model.

    Args:
        voice: whose layers.
        amounts: share of the layer's weights.
        names: layers, or beginnings of names ("decoder.resblocks.0"); none for every layer that can be pruned.
        method: which weights go first.

    Raises:
        InputError: a name fits no layer that can be pruned.
    """
    amounts, known = tuple(amounts), prunable_layers(voice)
    for name in names:
        if not any(_fits(layer.name, name) for layer in known):
            raise InputError(f"{voice.name} has no layer {name[:80]!r} that can be pruned: `layers` lists them.")
    return tuple(
        Point(PruneSpec(method=method, scope="local", amount=amount, parts=(layer.part,)), layer.name)
        for layer in known
        if not names or any(_fits(layer.name, name) for name in names)
        for amount in amounts
    )


def subject(row: dict[str, Any]) -> str:
    """What a row of a sensitivity was about: its layer, or its part."""
    return row.get("layer") or row["parts"]


def _fits(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")
