"""PruneSpec: what to prune and how, as a value."""

from __future__ import annotations

import dataclasses
import json
import numbers
from dataclasses import dataclass
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning.registry import METHODS, SCOPES
from vits_prune.voices.voice import PARTS

MAX_AMOUNT = 0.99


@dataclass(frozen=True)
class PruneSpec:
    """What to prune and how: frozen, hashable, and the same after a trip through JSON.

    Raises:
        InputError: a field is out of its range; the sentence says which and what fits.
    """

    method: str = "magnitude"
    """Which weights go first: "magnitude" (smallest absolute value, L1)."""
    scope: str = "global"
    """"global": one ranking over all chosen layers; "local": the same amount in each layer."""
    amount: float = 0.3
    """Share of the weights of the chosen parts to set to zero, 0 to 0.99."""
    parts: tuple[str, ...] = PARTS
    """Which parts of the voice are pruned, in the order of PARTS."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise InputError(f"There is no pruning method {str(self.method)[:40]!r}: choose one of {', '.join(METHODS)}.")
        if self.scope not in SCOPES:
            raise InputError(f"There is no scope {str(self.scope)[:40]!r}: choose one of {', '.join(SCOPES)}.")
        object.__setattr__(self, "amount", _checked_amount(self.amount))
        object.__setattr__(self, "parts", _checked_parts(self.parts))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return {**dataclasses.asdict(self), "parts": list(self.parts)}

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
            raise InputError(f"A PruneSpec is a JSON object with the fields {', '.join(sorted(known))} and no others.")
        return cls(**fields)

    @classmethod
    def from_json(cls, text: str) -> PruneSpec:
        """The PruneSpec that `to_json` wrote.

        Raises:
            InputError: not JSON, not a PruneSpec, or a value out of range.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("This PruneSpec is not JSON: give the text that to_json() wrote.") from error
        return cls.from_dict(fields)


def _checked_amount(amount: object) -> float:
    if isinstance(amount, bool) or not isinstance(amount, numbers.Real) or not 0 <= amount <= MAX_AMOUNT:  # NaN fails every comparison
        raise InputError(f"The amount must be a number from 0 to {MAX_AMOUNT}, not {str(amount)[:40]!r}.")
    return float(amount)


def _checked_parts(parts: object) -> tuple[str, ...]:
    chosen = (parts,) if isinstance(parts, str) else tuple(parts) if isinstance(parts, (list, tuple, set, frozenset)) else ()
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise InputError(f"There is no part {str(unknown[0])[:40]!r}: choose from {', '.join(PARTS)}.")
    if not chosen:
        raise InputError(f"Choose at least one part to prune: {', '.join(PARTS)}.")
    return tuple(part for part in PARTS if part in chosen)
