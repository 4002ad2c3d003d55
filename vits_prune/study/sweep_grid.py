"""The points that a sweep visits, as values: Grid for curves, and single parts or layers."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning import prune
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.spec import METHODS, PruneSpec, weighs_arithmetic
from vits_prune.voices.voice import PARTS, Voice

MAX_POINTS = 10_000
DEFAULT_AMOUNTS = (0.3, 0.5, 0.7)
"""Amounts at which a part or a layer is pruned alone."""


@dataclass(frozen=True)
class Point:
    """One pruned voice: what `spec` asks for, or the same in a single layer."""

    spec: PruneSpec
    layer: str | None = None
    """Module path of the only layer that is pruned; None for all layers of the spec's parts."""

    @property
    def untouched(self) -> bool:
        """Whether this is the original itself."""
        return self.spec.idle

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, the same for equal points."""
        return {**self.spec.to_dict(), "layer": self.layer}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Point:
        """Return the Point that `to_dict` described; raise InputError if it is none."""
        spec = {key: value for key, value in fields.items() if key != "layer"}
        return cls(PruneSpec.from_dict(spec), fields.get("layer"))

    def columns(self) -> dict[str, Any]:
        """Return the point as the first columns of its row."""
        found = {"method": self.spec.method, "scope": self.spec.scope}
        more = {"layer": self.layer, "options": self.options()}
        found |= {"parts": parts_name(self.spec.parts), **{k: v for k, v in more.items() if v}}
        return {**found, "amount": self.spec.amount}

    def options(self) -> str:
        """Return the spec's other fields that are not the default, as JSON; texts as a digest."""
        found = self.spec.to_dict()
        for name in ("method", "scope", "parts", "amount"):
            del found[name]
        if self.spec.texts:
            digest = hashlib.sha256(json.dumps(self.spec.texts).encode()).hexdigest()
            found["texts"] = f"{len(self.spec.texts)}, sha256 {digest[:12]}"
        return json.dumps(found, separators=(",", ":")) if found else ""

    def apply(self, voice: Voice) -> Voice:
        """Return the pruned voice; raise InputError if it has no such layer to prune."""
        if self.untouched:
            return voice
        if self.layer is None:
            return prune(voice, self.spec)
        _check_single_layers(self.spec.method)
        if not any(layer.name == self.layer for layer in prunable_layers(voice, self.spec.parts)):
            raise _no_layer(voice, self.layer)
        return self.alone(voice, prune(voice, self.spec))

    def alone(self, voice: Voice, pruned: Voice) -> Voice:
        """Return the voice with only this layer as it is in the pruned one."""
        weights = {
            name: weight
            for name, weight in pruned.model.named_parameters()
            if name.startswith(f"{self.layer}.")
        }
        done = [*voice.recipe.get("pruned", ()), self.to_dict()]
        recipe = MappingProxyType({**voice.recipe, "pruned": done})
        return voice.with_weights(weights, recipe=recipe)


@dataclass(frozen=True)
class Grid:
    """Every combination of methods, scopes, groups of parts and amounts.

    Raises:
        InputError: a value is out of range, one is missing, or there are too many.
    """

    methods: tuple[str, ...] = ("magnitude",)
    scopes: tuple[str, ...] = ("global",)
    parts_groups: tuple[tuple[str, ...], ...] = (PARTS,)
    """Sets of parts that are pruned together, one curve for each."""
    amounts: tuple[float, ...] = tuple(i / 10 for i in range(10))
    """Shares of the weights, or for a structured method of the channels, that are removed."""
    base: PruneSpec = PruneSpec()
    """The fields that all points share, such as protected layers, the floor or the seed."""

    def __post_init__(self) -> None:
        if not isinstance(self.base, PruneSpec) or self.base.shape or self.base.amounts:
            raise InputError("A grid's base is a PruneSpec without a shape or amounts of steps.")
        size = 1
        for name in ("methods", "scopes", "parts_groups", "amounts"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise InputError(f"The grid has no {name.replace('_', ' of ')}: give at least one.")
            object.__setattr__(self, name, tuple(sorted(values)) if name == "amounts" else values)
            size *= len(values)
        if size > MAX_POINTS:
            raise InputError(f"The grid has {size:,} points, more than {MAX_POINTS:,}.")
        groups = tuple(dict.fromkeys(spec.parts for spec in self.specs()))
        object.__setattr__(self, "parts_groups", groups)

    def specs(self) -> tuple[PruneSpec, ...]:
        """Return the points in order: curve by curve, each from the smallest amount up."""
        values = itertools.product(self.methods, self.parts_groups, self.scopes, self.amounts)
        found = []
        for method, parts, scope, amount in values:
            cost = self.base.cost if weighs_arithmetic(method, scope) else PruneSpec.cost
            own: dict[str, Any] = {"method": method, "parts": parts, "scope": scope, "cost": cost}
            found.append(replace(self.base, amount=amount, **own))
        return tuple(dict.fromkeys(found))

    def points(self) -> tuple[Point, ...]:
        """Return the same as points of a sweep."""
        return tuple(map(Point, self.specs()))


def part_points(amounts: Iterable[float], base: PruneSpec = PruneSpec()) -> tuple[Point, ...]:
    """Return a point for each part alone at each amount; `base` has the other fields.

    A part that the method protects as a whole is pruned too. A part that a structured method cannot
    shrink is left out.
    """
    amounts, method = tuple(amounts), METHODS[base.method]
    found = []
    for part in PARTS:
        if not (method.structured and part == "duration_predictor"):
            bare = _unprotected(base) if part in method.protect else base
            found += [Point(replace(bare, amount=amount, parts=(part,))) for amount in amounts]
    return tuple(found)


def _unprotected(base: PruneSpec) -> PruneSpec:
    """Drop what the method protects of itself; keep what the user protects."""
    return replace(base, protect=()) if base.protect is None else base


def layer_points(
    voice: Voice, amounts: Iterable[float], names: Sequence[str] = (), base: PruneSpec = PruneSpec()
) -> tuple[Point, ...]:
    """Return a point for each layer alone at each amount, protected layers included.

    `names` are layers, or beginnings of names ("decoder.resblocks.0"); empty for all layers. `base`
    has the other fields.

    Raises:
        InputError: no layer has such a name, or the method removes what layers share.
    """
    _check_single_layers(base.method)
    amounts, layers = tuple(amounts), prunable_layers(voice)
    for name in names:
        if not any(_begins(layer.name, name) for layer in layers):
            raise _no_layer(voice, name)
    base = replace(base, scope="local", cost=PruneSpec.cost)
    if METHODS[base.method].protect:
        base = _unprotected(base)
    return tuple(
        Point(replace(base, amount=amount, parts=(layer.part,)), layer.name)
        for layer in layers
        if not names or any(_begins(layer.name, name) for name in names)
        for amount in amounts
    )


def subject(row: Mapping[str, Any]) -> str:
    """Return what a row of a sensitivity is about: its layer, or its part."""
    return row.get("layer") or row["parts"]


def parse_amounts(texts: Sequence[str]) -> tuple[float, ...]:
    """Return typed amounts: "0:0.9:0.1" (start:end:step, end included), "0.1,0.3", or several."""
    found: list[Decimal] = []  # exact: 3 * 0.1 is not 0.3 in binary
    for text in ",".join(texts).split(","):
        numbers = [_decimal(one, text) for one in text.split(":")]
        if len(numbers) == 1:
            found += numbers
            continue
        if len(numbers) != 3 or numbers[2] <= 0 or numbers[1] < numbers[0]:
            raise InputError(f"{text[:40]!r} is not start:end:step, such as 0:0.9:0.1.")
        start, end, step = numbers
        if (end - start) / step > MAX_POINTS:
            raise InputError(f"{text[:40]!r} has too many amounts: take a larger step.")
        found += [start + i * step for i in range(int((end - start) / step) + 1)]
    # PruneSpec refuses what is out of range.
    return tuple(sorted({PruneSpec(amount=float(amount)).amount for amount in found}))


def parse_parts(text: str) -> tuple[str, ...]:
    """Return a typed group of parts: "all", "decoder", or "flow+decoder"."""
    return PARTS if text == "all" else PruneSpec(parts=tuple(text.split("+"))).parts


def parts_name(parts: Iterable[str]) -> str:
    """Return the text that `parse_parts` reads."""
    parts = tuple(parts)
    return "all" if parts == PARTS else "+".join(parts)


def _decimal(text: str, whole: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or abs(number.adjusted()) > 20:
        words = "write a number, a list such as 0.1,0.3 or a range such as 0:0.9:0.1"
        raise InputError(f"{whole[:40]!r} is not an amount: {words}.")
    return number


def _begins(layer: str, name: str) -> bool:
    return f"{layer}.".startswith(f"{name}.")


def _check_single_layers(method: str) -> None:
    if METHODS[method].structured:
        raise InputError(f"{method} removes what layers share: no layer can be pruned alone.")


def _no_layer(voice: Voice, name: str) -> InputError:
    return InputError(f"{voice.name} has no layer {name[:80]!r} to prune: `layers` lists them.")
