"""Grid: which points a sweep visits, and Point: one of them, as values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import PARTS, Voice

MAX_POINTS = 10_000

PLAIN = PruneSpec()

"""A base with nothing in particular."""


@dataclass(frozen=True)
class Point:
    """One pruned voice: what `spec` asks for, or the same in a single layer."""

    spec: PruneSpec
    layer: str | None = None
    """Module path of the one layer that is pruned, None for all layers of the spec's parts."""

    @property
    def untouched(self) -> bool:
        """Whether this is the original itself."""
        return self.spec.amount == 0 and self.spec.shape is None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values; the same for equal points."""
        return {**self.spec.to_dict(), "layer": self.layer}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Point:
        """The Point that `to_dict` described.

        Raises:
            InputError: a field is missing or out of range.
        """
        return cls(
            PruneSpec.from_dict({key: value for key, value in fields.items() if key != "layer"}),
            fields.get("layer"),
        )

    def columns(self) -> dict[str, Any]:
        """The point as the first columns of its row."""
        layer = {"layer": self.layer} if self.layer else {}
        options = {"options": self.options()} if self.options() else {}
        return {
            "method": self.spec.method,
            "scope": self.spec.scope,
            "parts": parts_name(self.spec.parts),
            **layer,
            **options,
            "amount": self.spec.amount,
        }

    def options(self) -> str:
        """The spec's other fields as JSON, as far as they are not the usual; empty where all are. Of texts a digest."""
        found = self.spec.to_dict()
        for name in ("method", "scope", "parts", "amount"):
            del found[name]
        if self.spec.texts:
            digest = hashlib.sha256(json.dumps(self.spec.texts).encode()).hexdigest()
            found["texts"] = f"{len(self.spec.texts)}, sha256 {digest[:12]}"
        return json.dumps(found, separators=(",", ":")) if found else ""

    def apply(self, voice: Voice) -> Voice:
        """The pruned voice.

        Raises:
            InputError: the voice has no such layer, or it cannot be pruned.
        """
        from vits_prune.pruning import prune

        if self.untouched:
            return voice
        if self.layer is None:
            return prune(voice, self.spec)
        from vits_prune.pruning.layers import prunable_layers
        from vits_prune.pruning.registry import METHODS

        if METHODS[self.spec.method].structured:
            raise InputError(
                f"{self.spec.method} takes out channels that layers share, so no layer can be pruned alone: take parts."
            )
        if not any(layer.name == self.layer for layer in prunable_layers(voice, self.spec.parts)):
            raise InputError(
                f"{voice.name} has no layer {self.layer[:80]!r} that can be pruned: `layers` lists them."
            )
        pruned = prune(voice, self.spec)
        weights = {
            name: weight
            for name, weight in pruned.model.named_parameters()
            if name.startswith(f"{self.layer}.")
        }
        steps = [*voice.recipe.get("pruned", ()), self.to_dict()]
        return voice.with_weights(
            weights, recipe=MappingProxyType({**voice.recipe, "pruned": steps})
        )


@dataclass(frozen=True)
class Grid:
    """Every combination of methods, scopes, groups of parts and amounts.

    Raises:
        InputError: a value is out of range, one is missing, or there are too many.
    """

    methods: tuple[str, ...] = ("magnitude",)
    scopes: tuple[str, ...] = ("global",)
    parts_groups: tuple[tuple[str, ...], ...] = (PARTS,)
    """Sets of parts that are pruned together, one curve each."""
    amounts: tuple[float, ...] = tuple(i / 10 for i in range(10))
    """Of a structured method the shares of channels that go."""
    base: PruneSpec = PLAIN
    """The fields that all points have in common: what to protect, the floor, a pattern, steps, the seed, calibration texts."""

    def __post_init__(self) -> None:
        if not isinstance(self.base, PruneSpec) or self.base.shape or self.base.amounts:
            raise InputError(
                "The points of a grid differ in their amounts: its base is a PruneSpec with neither a shape nor amounts."
            )
        for name in ("methods", "scopes", "parts_groups", "amounts"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise InputError(f"The grid has no {name.replace('_', ' of ')}: give at least one.")
            object.__setattr__(self, name, values)
        object.__setattr__(self, "amounts", tuple(sorted(self.amounts)))
        size = len(self.methods) * len(self.scopes) * len(self.parts_groups) * len(self.amounts)
        if size > MAX_POINTS:
            raise InputError(
                f"The grid has {size:,} points and the limit is {MAX_POINTS:,}: take fewer amounts or groups."
            )
        object.__setattr__(
            self, "parts_groups", tuple(dict.fromkeys(spec.parts for spec in self.specs()))
        )

    def specs(self) -> tuple[PruneSpec, ...]:
        """The points in order: curve by curve, each from the smallest amount to the largest."""
        found = (
            dataclasses.replace(self.base, method=method, scope=scope, amount=amount, parts=parts)
            for method in self.methods
            for parts in self.parts_groups
            for scope in self.scopes
            for amount in self.amounts
        )
        return tuple(dict.fromkeys(found))

    def points(self) -> tuple[Point, ...]:
        return tuple(Point(spec) for spec in self.specs())


def parse_amounts(texts: Sequence[str]) -> tuple[float, ...]:
    """Amounts as they are typed: "0:0.9:0.1" (start, end inclusive, step; in exact decimals), "0.1,0.3", or several of these.

    Raises:
        InputError: not such a list, or an amount out of range.
    """
    found: list[Decimal] = []
    for text in ",".join(texts).split(","):
        numbers = [_decimal(one, text) for one in text.split(":")]
        if len(numbers) == 1:
            found += numbers
            continue
        if len(numbers) != 3 or numbers[2] <= 0 or numbers[1] < numbers[0]:
            raise InputError(
                f"{text[:40]!r} is no range of amounts: write start:end:step, such as 0:0.9:0.1."
            )
        start, end, step = numbers
        if (end - start) / step > MAX_POINTS:
            raise InputError(
                f"{text[:40]!r} has more than {MAX_POINTS:,} amounts: take a larger step."
            )
        found += [start + i * step for i in range(int((end - start) / step) + 1)]
    return tuple(
        sorted({PruneSpec(amount=float(amount)).amount for amount in found})
    )  # the spec says what is out of range


def parse_parts(text: str) -> tuple[str, ...]:
    """One group of parts as it is typed: "all", "decoder", or "flow+decoder".

    Raises:
        InputError: there is no such part.
    """
    return PARTS if text == "all" else PruneSpec(parts=tuple(text.split("+"))).parts


def parts_name(parts: Iterable[str]) -> str:
    """What `parse_parts` reads."""
    parts = tuple(parts)
    return "all" if parts == PARTS else "+".join(parts)


def _decimal(text: str, whole: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or abs(number.adjusted()) > 20:
        raise InputError(
            f"{whole[:40]!r} is no amount: write a number such as 0.3, a list such as 0.1,0.3 or a range such as 0:0.9:0.1."
        )
    return number


DEFAULT_AMOUNTS = (0.3, 0.5, 0.7)


def part_points(
    amounts: Iterable[float],
    *,
    scope: str = "global",
    method: str = "magnitude",
    base: PruneSpec = PLAIN,
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
        specs = (
            replace(base, method=method, scope=scope, amount=amount, parts=(part,), **bare)
            for amount in amounts
        )
        found += [Point(spec) for spec in specs]
    return tuple(found)


def layer_points(
    voice: Voice,
    amounts: Iterable[float],
    names: Sequence[str] = (),
    *,
    method: str = "magnitude",
    base: PruneSpec = PLAIN,
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
        raise InputError(
            f"{method} takes out channels that layers share, so no layer can be pruned alone: leave --layers out."
        )
    for name in names:
        if not any(_fits(layer.name, name) for layer in known):
            raise InputError(
                f"{voice.name} has no layer {name[:80]!r} that can be pruned: `layers` lists them."
            )
    base = (
        replace(base, protect=())
        if method in METHODS and METHODS[method].protect and base.protect is None
        else base
    )
    return tuple(
        Point(
            replace(base, method=method, scope="local", amount=amount, parts=(layer.part,)),
            layer.name,
        )
        for layer in known
        if not names or any(_fits(layer.name, name) for name in names)
        for amount in amounts
    )


def subject(row: dict[str, Any]) -> str:
    """What a row of a sensitivity was about: its layer, or its part."""
    return row.get("layer") or row["parts"]


def _fits(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")
