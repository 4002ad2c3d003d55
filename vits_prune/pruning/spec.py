"""PruneSpec: what to prune and how, as a value."""

from __future__ import annotations

import dataclasses
import itertools
import json
import numbers
import re
from dataclasses import dataclass
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning.registry import IMPORTANCES, METHODS, SCHEDULES, SCOPES, UNGROUPED
from vits_prune.pruning.shape import Shape
from vits_prune.voices.voice import PARTS

DEFAULT_AMOUNT = 0.3
MAX_AMOUNT = 0.99
MAX_STEPS = 64
MAX_SEED = 2**32 - 1
MAX_TEXTS, MAX_TEXT = 1_000, 1_000
MAX_PROTECTED = 1_000


@dataclass(frozen=True)
class PruneSpec:
    """What to prune and how: frozen, hashable, and the same after a trip through JSON.

    Raises:
        InputError: a field is out of its range; the sentence says which and what fits.
    """

    method: str = "magnitude"
    """Which weights go first: one of METHODS."""
    scope: str = "global"
    """How the amount is shared out: "global": one ranking over all layers; "local": the same amount in each; "sensitivity": each layer's
    share from what its errors do to the speech."""
    amount: float = DEFAULT_AMOUNT
    """Share of the weights of the chosen parts to set to zero, 0 to 0.99. What is protected counts, so the others lose more. For a
    structured method the share of the channels of each chosen part that go."""
    parts: tuple[str, ...] = PARTS
    """Which parts of the voice are pruned, in the order of PARTS."""
    protect: tuple[str, ...] | None = None
    """Layers to leave alone: names, beginnings of names, "*" for one piece ("flow.flows.*.conv_pre"). None: the method's own list, and
    with a pattern where that is empty the duration predictor."""
    floor: float = 0.0
    """Share of its weights that every layer keeps at least, 0 to 1; does not apply to a pattern."""
    pattern: str = ""
    """"2:4" leaves at most 2 of every 4 neighbouring input channels, and so on; empty for no pattern. The amount is then that of the
    pattern in every layer that is not protected."""
    steps: int = 1
    """Gradual pruning: so many steps, with calibration anew before each."""
    schedule: str = "cubic"
    """How the amount grows over the steps: one of SCHEDULES."""
    amounts: tuple[float, ...] = ()
    """The amounts of the steps themselves, rising to `amount`, instead of a schedule; empty for `steps` and `schedule`."""
    seed: int = 0
    """Of what is drawn: the lot of "random", and the noise and texts of calibration."""
    texts: tuple[str, ...] = ()
    """What the voice is calibrated on; empty for built-in sentences, or where its language has none, for draws from its vocabulary."""
    shape: Shape | None = None
    """For a structured method: what stays, lever by lever; the amount and the parts then say nothing and are those of the default. None
    takes it from the amount and the parts."""
    importance: str = "sensitivity"
    """For a structured method: what a channel or layer is judged by, one of IMPORTANCES."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise InputError(
                f"There is no pruning method {str(self.method)[:40]!r}: choose one of {', '.join(METHODS)}."
            )
        if not isinstance(self.scope, str) or self.scope not in SCOPES:
            raise InputError(
                f"There is no scope {str(self.scope)[:40]!r}: choose one of {', '.join(SCOPES)}."
            )
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"There is no schedule {str(self.schedule)[:40]!r}: choose one of {', '.join(SCHEDULES)}."
            )
        object.__setattr__(self, "amount", _checked_amount(self.amount))
        object.__setattr__(self, "parts", _checked_parts(self.parts))
        object.__setattr__(self, "floor", _checked_floor(self.floor))
        object.__setattr__(
            self, "steps", _checked_whole("number of steps", self.steps, 1, MAX_STEPS)
        )
        object.__setattr__(self, "amounts", _checked_amounts(self.amounts, self.amount, self.steps))
        object.__setattr__(self, "seed", _checked_whole("seed", self.seed, 0, MAX_SEED))
        object.__setattr__(
            self, "texts", _checked_strings("texts", self.texts, MAX_TEXTS, MAX_TEXT)
        )
        if self.protect is not None:
            object.__setattr__(
                self,
                "protect",
                _checked_strings("protected layers", self.protect, MAX_PROTECTED, 200),
            )
        self._check_structured()
        self._check_pattern()

    def _check_structured(self) -> None:
        structured = METHODS[self.method].structured
        if not isinstance(self.importance, str) or self.importance not in IMPORTANCES:
            raise InputError(
                f"There is no importance {str(self.importance)[:40]!r}: choose one of {', '.join(IMPORTANCES)}."
            )
        if not structured and self.importance != "sensitivity":
            raise InputError(
                "An importance is for a structured method: leave it out, or choose the method structured."
            )
        if structured and (self.floor or self.protect):
            raise InputError(
                "A structured method takes neither a floor nor protected layers: choose parts, or give a shape."
            )
        if self.shape is not None and (self.steps > 1 or self.amounts):
            raise InputError(
                "A shape is cut in one step: leave the steps out, or give an amount instead of a shape."
            )
        if self.shape is not None and (not isinstance(self.shape, Shape) or not structured):
            raise InputError(
                "A shape is for a structured method, and is a Shape: Shape(decoder_width=0.5)."
            )
        # Equal voices have equal specs: what has no effect is as in the default.
        if structured:
            object.__setattr__(self, "scope", "global")
        if self.shape is not None:
            object.__setattr__(self, "amount", DEFAULT_AMOUNT)
            object.__setattr__(self, "parts", PARTS)

    def _check_pattern(self) -> None:
        if self.pattern == "":
            return
        found = (
            re.fullmatch(r"([1-9]\d?):([1-9]\d?)", self.pattern)
            if isinstance(self.pattern, str)
            else None
        )
        if not found or int(found[1]) >= int(found[2]):
            raise InputError(
                f"{str(self.pattern)[:40]!r} is no pattern: write how many of how many neighbours stay, such as 2:4."
            )
        if METHODS[self.method].structured or self.steps > 1 or self.amounts or self.floor:
            raise InputError(
                "A pattern goes with neither steps, nor a floor, nor a structured method: leave those out."
            )
        keep, of = map(int, found.groups())
        if abs(self.amount - (of - keep) / of) > 1e-6:
            raise InputError(
                f"The pattern {self.pattern} zeroes {of - keep} of {of}: give the amount {(of - keep) / of:g}, or no pattern."
            )

    @property
    def neighbours(self) -> tuple[int, int] | None:
        """The pattern as (how many stay, of how many)."""
        if not self.pattern:
            return None
        keep, of = map(int, self.pattern.split(":"))
        return keep, of

    @property
    def protected(self) -> tuple[str, ...]:
        """What is left alone: what was asked for, else what the method leaves alone."""
        if self.protect is not None:
            return self.protect
        return METHODS[self.method].protect or (UNGROUPED if self.pattern else ())

    def protects(self, layer: str) -> bool:
        """Whether a layer, by its name, is left alone."""
        return any(begins_with(layer, pattern) for pattern in self.protected)

    def schedule_amounts(self) -> tuple[float, ...]:
        """The amounts of the steps, rising to the amount itself; steps that round to the amount of the one before are left out."""
        if self.amounts:
            return self.amounts
        shares = [step / self.steps for step in range(1, self.steps + 1)]
        if self.schedule == "cubic":
            shares = [1 - (1 - share) ** 3 for share in shares]
        before = dict.fromkeys(round(self.amount * share, 6) for share in shares[:-1])
        return (*(amount for amount in before if amount < self.amount), self.amount)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values; of those after `parts` only what differs from the default."""
        found: dict[str, Any] = {
            "method": self.method,
            "scope": self.scope,
            "amount": self.amount,
            "parts": list(self.parts),
        }
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in found and value != field.default:
                found[field.name] = (
                    value.to_dict()
                    if isinstance(value, Shape)
                    else list(value)
                    if isinstance(value, tuple)
                    else value
                )
        return found

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, fields: Any) -> PruneSpec:
        """The PruneSpec that `to_dict` described.

        Raises:
            InputError: not such a dictionary, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or not set(fields) <= known:
            raise InputError(
                f"A PruneSpec is a JSON object with the fields {', '.join(sorted(known))} and no others."
            )
        shape = fields.get("shape")
        return cls(**{**fields, **({"shape": Shape.from_dict(shape)} if shape is not None else {})})

    @classmethod
    def from_json(cls, text: str) -> PruneSpec:
        """The PruneSpec that `to_json` wrote.

        Raises:
            InputError: not JSON, not a PruneSpec, or a value out of range.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                "This PruneSpec is not JSON: give the text that to_json() wrote."
            ) from error
        return cls.from_dict(fields)


def _checked_amount(amount: object) -> float:
    if (
        isinstance(amount, bool)
        or not isinstance(amount, numbers.Real)
        or not 0 <= amount <= MAX_AMOUNT
    ):  # NaN fails every comparison
        raise InputError(
            f"The amount must be a number from 0 to {MAX_AMOUNT}, not {str(amount)[:40]!r}."
        )
    return float(amount)


def _checked_parts(parts: object) -> tuple[str, ...]:
    chosen = (
        (parts,)
        if isinstance(parts, str)
        else tuple(parts)
        if isinstance(parts, (list, tuple, set, frozenset))
        else ()
    )
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise InputError(
            f"There is no part {str(unknown[0])[:40]!r}: choose from {', '.join(PARTS)}."
        )
    if not chosen:
        raise InputError(f"Choose at least one part to prune: {', '.join(PARTS)}.")
    return tuple(part for part in PARTS if part in chosen)


def _checked_amounts(amounts: object, last: float, steps: int) -> tuple[float, ...]:
    """The amounts of gradual steps.

    Raises:
        InputError: they do not rise to the last, or a number of steps was given too.
    """
    if not isinstance(amounts, (list, tuple)):
        raise InputError("The amounts of the steps are a list of numbers, such as 0.3, 0.5, 0.6.")
    found = tuple(_checked_amount(one) for one in amounts)
    if found and (
        len(found) > MAX_STEPS
        or any(after <= before for before, after in itertools.pairwise(found))
    ):
        raise InputError(
            f"The amounts of the steps must rise, {MAX_STEPS} at most: not {', '.join(f'{one:g}' for one in found[:8])}."
        )
    if found and (found[-1] != last or steps != 1):
        raise InputError(
            f"The last step must have the amount itself, {last:g}, and either the steps' amounts or their number is given."
        )
    return found


def _checked_floor(floor: object) -> float:
    if isinstance(floor, bool) or not isinstance(floor, numbers.Real) or not 0 <= floor <= 1:
        raise InputError(f"The floor must be a number from 0 to 1, not {str(floor)[:40]!r}.")
    return float(floor)


def _checked_whole(what: str, value: object, least: int, most: int) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not least <= value <= most
        or value != int(value)
    ):
        raise InputError(
            f"The {what} must be a whole number from {least} to {most}, not {str(value)[:40]!r}."
        )
    return int(value)


def _checked_strings(what: str, values: object, most: int, longest: int) -> tuple[str, ...]:
    found = (
        (values,)
        if isinstance(values, str)
        else tuple(values)
        if isinstance(values, (list, tuple))
        else None
    )
    if (
        found is None
        or len(found) > most
        or not all(isinstance(one, str) and 0 < len(one.strip()) <= longest for one in found)
    ):
        raise InputError(
            f"The {what} must be at most {most:,} strings of 1 to {longest:,} characters."
        )
    return found


def begins_with(layer: str, pattern: str) -> bool:
    """Whether a layer's name begins with a pattern, piece by piece; "*" stands for any one piece."""
    pieces, wanted = layer.split("."), pattern.split(".")
    return len(wanted) <= len(pieces) and all(
        one in ("*", piece) for one, piece in zip(wanted, pieces, strict=False)
    )
