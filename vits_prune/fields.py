"""Dataclass fields that describe themselves: help, choices and limits, checked by one function."""

from __future__ import annotations

import dataclasses
import json
import numbers
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from vits_prune.errors import InputError


def option(
    default: Any,
    help: str,
    kind: type = str,
    *,
    choices: Collection[str] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    most: int | None = None,
    noun: str = "",
) -> Any:
    """Return a dataclass field whose metadata says what it accepts.

    Flags and controls are made of it: a field's `metadata` has the arguments of this function by
    their names. None is accepted where the field's type allows it.

    Args:
        default: the value that stands here and nowhere else.
        help: what the option does, in a phrase.
        kind: float, int, bool or str, of each value where there are several.
        choices: the names that are accepted; a mapping gives what each means too.
        low, high: smallest and largest value, or length of a string.
        above: in place of `low`, a value that is itself too small.
        most: how many values are accepted; None for one value that stands alone.
        noun: what messages call the option, if not by its name.
    """
    about = {name: value for name, value in locals().items() if name != "default"}
    return dataclasses.field(default=default, metadata=about)


def check_options(value: Any) -> None:
    """Check the fields of a frozen dataclass that `option` made, and give them their plain type.

    Raises:
        InputError: one has a value that it does not accept; the message says which it does.
    """
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if "kind" in field.metadata and not (given is None and str(field.type).endswith("None")):
            about = {**field.metadata, "noun": field.metadata["noun"] or field.name}
            check = _one if about["most"] is None else _several
            object.__setattr__(value, field.name, check(about, given))


def _one(about: Mapping[str, Any], given: Any) -> Any:
    noun, kind, choices = about["noun"], about["kind"], about["choices"]
    low, high, above = about["low"], about["high"], about["above"]
    if choices:
        if isinstance(given, str) and given in choices:
            return given
        known = ", ".join(choices)
        raise InputError(f"There is no {noun} {str(given)[:40]!r}: choose one of {known}.")
    if kind is bool:
        if isinstance(given, bool):
            return given
        raise InputError(f"The {noun} must be True or False, not {str(given)[:40]!r}.")
    if kind is str:
        if isinstance(given, str) and low <= len(given.strip()) and len(given) <= high:
            return given
        raise InputError(f"The {noun} must be text of {low:,} to {high:,} characters.")
    number = isinstance(given, numbers.Real) and not isinstance(given, bool)
    # NaN fails every comparison.
    fits = number and (given > above if low is None else given >= low) and given <= high
    if fits and (kind is float or given == int(given)):
        return kind(given)
    span = f"above {above}, up to {high}" if low is None else f"from {low} to {high}"
    what = "number" if kind is float else "whole number"
    raise InputError(f"The {noun} must be a {what} {span}, not {str(given)[:40]!r}.")


def _several(about: Mapping[str, Any], given: Any) -> tuple[Any, ...]:
    choices, most = about["choices"], about["most"]
    values = (given,) if isinstance(given, str) else given
    # What is chosen from has an order of its own.
    lists = (list, tuple, set, frozenset) if choices else (list, tuple)
    if not isinstance(values, lists) or len(values) > most:
        raise InputError(f"The {about['noun']} must be a list of at most {most:,} values.")
    found = tuple(_one(about, value) for value in values)
    if choices and not found:
        raise InputError(f"Choose at least one {about['noun']}: {', '.join(choices)}.")
    return tuple(choice for choice in choices if choice in found) if choices else found


T = TypeVar("T", bound="Options")


@dataclasses.dataclass(frozen=True)
class Options:
    """A value of checked fields that is the same after a trip through JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the fields as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls: type[T], fields: Any) -> T:
        """Return the value that `to_dict` described.

        Raises:
            InputError: not such a dictionary, or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or not set(fields) <= set(known):
            what = f"A {cls.__name__} is a JSON object"
            raise InputError(f"{what} with the fields {', '.join(known)} and no others.")
        return cls(**fields)

    @classmethod
    def from_json(cls: type[T], text: str) -> T:
        """Return the value that `to_json` wrote, or raise as `from_dict` does."""
        try:
            fields = json.loads(text.lstrip("\ufeff") if isinstance(text, str) else text)
        except (ValueError, RecursionError, TypeError) as error:
            what = f"This {cls.__name__} is not JSON"
            raise InputError(f"{what}: give the text that to_json() wrote.") from error
        return cls.from_dict(fields)
