"""Sensitivity: one part, or one layer, pruned at a time - which breaks speech first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import PruneSpec
from vits_prune.sweep.grid import PLAIN, Point
from vits_prune.voices.voice import PARTS, Voice

DEFAULT_AMOUNTS = (0.3, 0.5, 0.7)


def part_points(
    amounts: Iterable[float], *, scope: str = "global", method: str = "magnitude", base: PruneSpec = PLAIN
) -> tuple[Point, ...]:
    """Each part alone at each amount, for `run_sweep` or `measure_task`.

    A part that the method protects as a whole is pruned all the same; one that a structured method has no lever for is left out.

    Args:
        amounts: share of the part's weights; for a structured method of its channels.
        scope: how the amount is shared out within a part.
        method: which weights go first.
        base: the other fields of every PruneSpec.
    """
    amounts, about = tuple(amounts), METHODS.get(method)
    found = []
    for part in PARTS:
        if about and about.structured and part == "duration_predictor":
            continue
        bare = {"protect": ()} if about and part in about.protect and base.protect is None else {}
        specs = (replace(base, method=method, scope=scope, amount=amount, parts=(part,), **bare) for amount in amounts)
        found += [Point(spec) for spec in specs]
    return tuple(found)


def layer_points(
    voice: Voice, amounts: Iterable[float], names: Sequence[str] = (), *, method: str = "magnitude", base: PruneSpec = PLAIN
) -> tuple[Point, ...]:
    """Each layer alone at each amount, in the order of the model; those that a method protects too.

    Args:
        voice: whose layers.
        amounts: share of the layer's weights.
        names: layers, or beginnings of names ("decoder.resblocks.0"); none for every layer that can be pruned.
        method: which weights go first.
        base: the other fields of every PruneSpec.

    Raises:
        InputError: a name fits no layer that can be pruned, or the method takes out what layers share.
    """
    amounts, known = tuple(amounts), prunable_layers(voice)
    if method in METHODS and METHODS[method].structured:
        raise InputError(f"{method} takes out channels that layers share, so no layer can be pruned alone: leave --layers out.")
    for name in names:
        if not any(_fits(layer.name, name) for layer in known):
            raise InputError(f"{voice.name} has no layer {name[:80]!r} that can be pruned: `layers` lists them.")
    base = replace(base, protect=()) if method in METHODS and METHODS[method].protect and base.protect is None else base
    return tuple(
        Point(replace(base, method=method, scope="local", amount=amount, parts=(layer.part,)), layer.name)
        for layer in known
        if not names or any(_fits(layer.name, name) for name in names)
        for amount in amounts
    )


def subject(row: dict[str, Any]) -> str:
    """What a row of a sensitivity was about: its layer, or its part."""
    return row.get("layer") or row["parts"]


def _fits(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")
