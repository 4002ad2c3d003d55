"""PruneSpec: what to prune and how, as a value, and in words; the methods that it chooses among.

A method is a function in some module and an entry in METHODS.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from typing import Any

from vits_prune.errors import InputError
from vits_prune.fields import Options, check_options, option
from vits_prune.voices.voice import PARTS

MAX_AMOUNT = 0.99
MAX_SCHEDULE = 64

_DURATIONS = ("duration_predictor", "decoder.conv_post")
_SPEAKERS = ("decoder.cond", "flow.flows.*.wavenet.cond_layer")
DELICATE = (*_DURATIONS, *_SPEAKERS)
"""Layers whose errors are heard most, and which hold few weights."""


@dataclass(frozen=True)
class Method:
    """A way of choosing what is removed."""

    module: str
    """Has `prune_weights(voice, spec, progress) -> {parameter name: new tensor}`, or
    `prune_voice` if structured."""
    title: str
    words: str
    """What it does, in two sentences."""
    calibrated: bool = False
    """Whether the voice speaks first."""
    protect: tuple[str, ...] = ()
    """Layers that it leaves alone where the PruneSpec does not say."""
    recovers: bool = False
    """Whether it changes what survives, and so aims at an `original` in gradual pruning."""
    structured: bool = False
    """Whether it removes whole channels and layers, and so changes shapes."""


METHODS: dict[str, Method] = {
    "magnitude": Method(
        "vits_prune.pruning.scores",
        "magnitude (L1)",
        "The weights with the smallest absolute values become zero. The method looks at nothing "
        "but the weights, so it does not know which of them matter.",
    ),
    "random": Method(
        "vits_prune.pruning.scores",
        "random",
        "Random weights become zero. This is the baseline: a method that does not beat it has "
        "learned nothing.",
    ),
    "activation": Method(
        "vits_prune.pruning.scores",
        "activation (Wanda)",
        "The importance of a weight is its size times the strength of its input while the voice "
        "speaks a few sentences. The least important weights become zero; the others keep their "
        "values.",
        calibrated=True,
        protect=DELICATE,
    ),
    "second_order": Method(
        "vits_prune.pruning.second_order",
        "second order",
        "The inputs of each layer, recorded while the voice speaks, show which weights the others "
        "can replace. Those become zero, and the others are adjusted so that the output of each "
        "layer stays as close to the original's as possible.",
        calibrated=True,
        protect=DELICATE,
        recovers=True,
    ),
    "structured": Method(
        "vits_prune.pruning.structured.cut",
        "structured",
        "Whole channels and layers are removed, those that matter least to the speech first, and "
        "the rest is fitted to do their work. The network becomes smaller: it needs less "
        "arithmetic on any hardware.",
        calibrated=True,
        structured=True,
    ),
}

SCOPES: dict[str, str] = {
    "global": "one ranking over all layers",
    "local": "the same amount in each layer",
    "sensitivity": "each layer's share depends on what its errors do to the speech",
}

COSTS: dict[str, str] = {
    "weights": "weights: bytes",
    "macs": "multiply-accumulates: time, with sparse kernels",
}
"""What an amount is a share of, and what damage is weighed against."""

BITS = (8, 6, 5, 4, 3)
"""Of rounded weights."""

IMPORTANCES: dict[str, str] = {
    "sensitivity": "what its errors do to the speech",
    "second_order": "what the layers that read it lose even if the other channels replace it",
    "activation": "the energy it brings while the voice speaks",
    "weight_norm": "the size of its weights alone",
}

UNGROUPED = ("duration_predictor",)
"""What a pattern leaves alone where the method leaves nothing alone: some of its layers have one
input channel, which no pattern can group."""

SCHEDULES = ("linear", "cubic")
"""How the amount grows over the steps; cubic is Zhu & Gupta 2017, arXiv:1710.01878."""


def _width(help: str) -> Any:
    return option(1.0, help, float, above=0, high=1)


def _count(default: int | None, help: str) -> Any:
    return option(default, help, int, low=1, high=1024)


@dataclass(frozen=True)
class Shape(Options):
    """What stays of a voice's structure: frozen, hashable, the same after a trip through JSON.

    By default everything stays. A field out of its range raises InputError.
    """

    decoder_width: float = _width("share of the decoder's channels, the same in every stage")
    branches: int | None = _count(None, "residual branches (kernel sizes) of each decoder stage")
    resblock_width: float = _width(
        "share, of what decoder_width leaves, of the channels inside each step of a ResBlock1"
    )
    ffn_width: float = _width("share of the inner channels of the encoder's feed-forward layers")
    encoder_layers: int | None = _count(None, "layers of the text encoder")
    flows: int | None = _count(None, "coupling layers of the flow")
    wavenet_layers: int | None = _count(None, "WaveNet layers in each coupling layer")
    multiple: int = _count(8, "widths are rounded to a multiple of this many channels")

    def __post_init__(self) -> None:
        check_options(self)

    def in_words(self) -> list[str]:
        """Return the levers that are set, such as ["decoder width 50%", "flows 2"]."""
        found = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                shown = f"{100 * value:.4g}%" if isinstance(value, float) else value
                found.append(f"{field.name.replace('_', ' ')} {shown}")
        return found


@dataclass(frozen=True)
class PruneSpec(Options):
    """What to prune and how: frozen, hashable, and the same after a trip through JSON.

    Each field's `metadata` has its help, choices and limits (see `fields.option`). A field out of
    its range raises InputError.
    """

    method: str = option(
        "magnitude", "which weights go first", choices=METHODS, noun="pruning method"
    )
    scope: str = option("global", "how the amount is shared out among the layers", choices=SCOPES)
    amount: float = option(
        0.3,
        "share of the weights of the chosen parts that become zero, protected ones counted; for a "
        "structured method the share of the channels that are removed",
        float,
        low=0,
        high=MAX_AMOUNT,
    )
    parts: tuple[str, ...] = option(
        PARTS, "parts of the voice that are pruned", choices=PARTS, most=1_000, noun="part"
    )
    protect: tuple[str, ...] | None = option(
        None,
        'layers that are left alone: names, beginnings of names, "*" for one piece of a name; an '
        "empty list for no layer, by default the method's own list",
        low=1,
        high=200,
        most=1_000,
        noun="protected layers",
    )
    floor: float = option(
        0.0,
        "share of its weights that every layer keeps at least; does not apply to a pattern",
        float,
        low=0,
        high=1,
    )
    pattern: str = option(
        "",
        "N:M leaves at most N of every M neighbouring input channels in every layer that is not "
        "protected, and sets the amount; empty for no pattern",
        low=0,
        high=5,
    )
    steps: int = option(
        1,
        "steps of gradual pruning, each calibrated anew",
        int,
        low=1,
        high=MAX_SCHEDULE,
        noun="number of steps",
    )
    schedule: str = option("cubic", "how the amount grows over the steps", choices=SCHEDULES)
    amounts: tuple[float, ...] = option(
        (),
        "amounts of the steps, rising to the amount itself; they replace steps and schedule",
        float,
        low=0,
        high=MAX_AMOUNT,
        most=MAX_SCHEDULE,
        noun="amounts of the steps",
    )
    seed: int = option(
        0, "seed of the method random and of calibration", int, low=0, high=2**32 - 1
    )
    texts: tuple[str, ...] = option(
        (),
        "sentences to calibrate on; empty for built-in ones, or for draws from the vocabulary of "
        "a voice whose language has none",
        low=1,
        high=1_000,
        most=1_000,
    )
    shape: Shape | None = dataclasses.field(
        default=None,
        metadata={
            "help": "for a structured method: what remains, lever by lever, in place of an amount"
        },
    )
    importance: str = option(
        "sensitivity", "how a structured method judges a channel", choices=IMPORTANCES
    )
    cost: str = option(
        "weights",
        "what the amount is a share of, and what damage is weighed against; macs goes with the "
        "methods activation and second_order, and not with the scope local",
        choices=COSTS,
    )
    bits: int = option(
        0,
        "bits of each weight that stays, on a grid of its output channel: 8, 6, 5, 4 or 3 (8 in "
        "decoder and durations); 0 for all of float32",
        int,
        low=0,
        high=max(BITS),
        noun="number of bits",
    )

    def __post_init__(self) -> None:
        check_options(self)
        self._check_amounts()
        self._check_structured()
        if self.pattern:
            self._check_pattern()
        weighs = weighs_arithmetic(self.method, self.scope) and not self.pattern
        if self.cost != PruneSpec.cost and not weighs:
            what = (
                "Only activation and second_order, global or by sensitivity and without a pattern"
            )
            raise InputError(f"{what}, weigh multiply-accumulates: give cost weights.")
        if self.bits and self.bits not in BITS:
            raise InputError(f"Weights have 8, 6, 5, 4, 3 or all (0) bits, not {self.bits}.")

    def _check_amounts(self) -> None:
        if any(after <= before for before, after in itertools.pairwise(self.amounts)):
            shown = ", ".join(f"{amount:g}" for amount in self.amounts[:8])
            raise InputError(f"The amounts of the steps must rise: not {shown}.")
        if self.amounts and (self.amounts[-1] != self.amount or self.steps != 1):
            what = f"The last step must have the amount itself, {self.amount:g}"
            raise InputError(f"{what}: give either the amounts of the steps or their number.")

    def _check_structured(self) -> None:
        structured = METHODS[self.method].structured
        if not structured and self.importance != PruneSpec.importance:
            raise InputError("Only a structured method takes an importance: leave it out.")
        if structured and (self.floor or self.protect):
            what = "A structured method takes neither a floor nor protected layers"
            raise InputError(f"{what}: choose parts, or give a shape.")
        shaped = self.shape is not None
        if shaped and (self.steps > 1 or self.amounts):
            raise InputError("A shape is cut in one step: leave the steps out, or give an amount.")
        if shaped and not (structured and isinstance(self.shape, Shape)):
            what = "A shape goes with the method structured"
            raise InputError(f"{what}: PruneSpec('structured', shape=Shape(decoder_width=0.5)).")
        # Equal voices have equal specs: a field without effect has its default.
        idle = ["scope"] * structured + ["amount", "parts"] * shaped
        for name in idle:
            object.__setattr__(self, name, getattr(PruneSpec, name))

    def _check_pattern(self) -> None:
        found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", self.pattern)
        if not found or int(found[1]) >= int(found[2]):
            what = f"{self.pattern!r} is not a pattern"
            raise InputError(f"{what}: write how many of how many neighbours stay, such as 2:4.")
        if METHODS[self.method].structured or self.steps > 1 or self.amounts or self.floor:
            what = "A pattern goes with neither steps, nor a floor, nor a structured method"
            raise InputError(f"{what}: leave those out.")
        keep, of = map(int, found.groups())
        if abs(self.amount - (of - keep) / of) > 1e-6:
            share = f"{of - keep} of {of}: give the amount {(of - keep) / of:g}, or no pattern."
            raise InputError(f"The pattern {self.pattern} zeroes {share}")

    @property
    def idle(self) -> bool:
        """Whether a voice stays as it is."""
        return not (self.amount or self.shape or self.pattern or self.bits)

    @property
    def neighbours(self) -> tuple[int, int] | None:
        """The pattern as (how many stay, of how many)."""
        keep, _, of = self.pattern.partition(":")
        return (int(keep), int(of)) if of else None

    @property
    def protected(self) -> tuple[str, ...]:
        """What is left alone: what was asked for, else what the method leaves alone."""
        if self.protect is not None:
            return self.protect
        return METHODS[self.method].protect or (UNGROUPED if self.pattern else ())

    def protects(self, layer: str) -> bool:
        """Return whether a layer, by its name, is left alone."""
        return any(begins_with(layer, pattern) for pattern in self.protected)

    def schedule_amounts(self) -> tuple[float, ...]:
        """Return the amounts of the steps, rising to the amount itself.

        Steps that round to the amount of the one before are left out.
        """
        if self.amounts:
            return self.amounts
        shares = [step / self.steps for step in range(1, self.steps + 1)]
        if self.schedule == "cubic":
            shares = [1 - (1 - share) ** 3 for share in shares]
        before = dict.fromkeys(round(self.amount * share, 6) for share in shares[:-1])
        return (*(amount for amount in before if amount < self.amount), self.amount)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values; after `parts` only what is not the default."""
        found = super().to_dict()
        for field in dataclasses.fields(self)[4:]:
            if getattr(self, field.name) == field.default:
                del found[field.name]
        return {name: list(one) if isinstance(one, tuple) else one for name, one in found.items()}

    @classmethod
    def from_dict(cls, fields: Any) -> PruneSpec:
        """Return the PruneSpec that `to_dict` described, or raise InputError."""
        if isinstance(fields, dict) and fields.get("shape") is not None:
            fields = {**fields, "shape": Shape.from_dict(fields["shape"])}
        return super().from_dict(fields)


def weighs_arithmetic(method: str, scope: str) -> bool:
    """Return whether a method can share its amount out by multiply-accumulates in a scope."""
    chosen = METHODS.get(method, METHODS["magnitude"])
    return chosen.calibrated and not chosen.structured and scope != "local"


def in_words(spec: PruneSpec, *, amount: bool = True) -> str:
    """Return a spec in words for people, such as "second order, 75%, by sensitivity".

    Texts, seed and protected layers are left out, and without `amount` the amount.
    """
    method = METHODS[spec.method]
    pieces = [method.title]
    if spec.shape is not None:
        pieces += spec.shape.in_words() or ["everything stays"]
    elif spec.pattern:
        pieces.append(f"pattern {spec.pattern}")
    elif amount:
        pieces.append(f"{100 * spec.amount:.4g}%" + " of the arithmetic" * (spec.cost == "macs"))
    if not method.structured and not spec.pattern:
        pieces.append("by sensitivity" if spec.scope == "sensitivity" else spec.scope)
    if spec.bits:
        pieces.append(f"{spec.bits} bits")
    if spec.importance != PruneSpec.importance:
        pieces.append(f"by {spec.importance.replace('_', ' ')}")
    if spec.parts != PARTS:
        pieces.append(f"{' and '.join(part.replace('_', ' ') for part in spec.parts)} only")
    if spec.floor:
        pieces.append(f"floor {100 * spec.floor:.4g}%")
    steps = len(spec.schedule_amounts())
    if steps > 1:
        usual = spec.amounts or spec.schedule == PruneSpec.schedule
        pieces.append(f"{steps} steps" if usual else f"{steps} {spec.schedule} steps")
    return ", ".join(pieces)


def begins_with(layer: str, pattern: str) -> bool:
    """Return whether a layer's name begins with a pattern; "*" stands for one piece."""
    pieces, wanted = layer.split("."), pattern.split(".")
    return len(wanted) <= len(pieces) and all(
        one in ("*", piece) for one, piece in zip(wanted, pieces, strict=False)
    )
