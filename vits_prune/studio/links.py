"""What the stage shows as an address, as Python and as a command, so that others can repeat it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from vits_prune.errors import InputError
from vits_prune.studio.request import FIRST, Request, request_of
from vits_prune.synthesis.speak import Delivery

NUMBERS = ("seed", "speaking_rate", "noise_scale", "noise_scale_duration")
"""Controls that hold a number, though some are empty at first."""


def values_of_query(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the controls' values for the query of a page's address.

    What the query leaves out has its first value.

    Raises:
        InputError: the address asks for what cannot be used. It is checked like any other input.
    """
    found = {**FIRST}
    for name in FIRST:
        if name in query:
            found[name] = _value(name, query[name][:4_000])
    request_of(found)
    return found


def _value(name: str, text: str) -> Any:
    first = FIRST[name]
    if isinstance(first, bool):
        return text == "true"
    if isinstance(first, (list, tuple)):
        return [one for one in text.split(",") if one]
    if isinstance(first, (int, float)) or name in NUMBERS:
        try:
            number = float(text)
            return int(number) if number == int(number) else number
        except (ValueError, OverflowError):
            raise InputError(f"The link is damaged: {name} is not a number.") from None
    return text


def as_python(request: Request) -> str:
    """Return the lines of Python that do what the stage shows."""
    speaker = f", speaker={request.speaker!r}" if request.speaker else ""
    spec, delivery = _call(request.spec), _call(request.delivery)
    how = [f"seed={request.seed}", f"timing={request.timing!r}"]
    if request.delivery != Delivery():
        how.append(f"delivery={delivery}")
    healed = f"heal(pruned, voice, {_call(request.healed.plan)}).voice" if request.healed else ""
    used = f"{spec}{how}{healed} compare( load_voice( prune("
    known = ("Delivery", "HealPlan", "PruneSpec", "Shape", "compare", "heal", "load_voice", "prune")
    return (
        f"from vits_prune import {', '.join(name for name in known if f'{name}(' in used)}\n\n"
        f"voice = load_voice({request.reference!r}{speaker})\n"
        f"pruned = prune(voice, {spec})\n"
        + f"pruned = {healed}\n" * bool(healed)
        + f"print(compare(voice, pruned, {request.text!r}, {', '.join(how)}))"
    )


def _call(value: Any) -> str:
    """Return the call that makes an options object, with what is not at its default."""
    given = []
    for one in dataclasses.fields(value):
        now = getattr(value, one.name)
        if now != one.default:
            given.append(f"{one.name}={_call(now) if dataclasses.is_dataclass(now) else repr(now)}")
    return f"{type(value).__name__}({', '.join(given)})"


_FLAGS = {"seed": "prune-seed", "amounts": "steps"}
"""Flags of the command line that are not named after their field."""


def as_command(request: Request) -> str:
    """Return the command that does what the stage shows."""
    plan = request.healed.plan if request.healed else None
    command = "heal" if plan else "compare"
    words = ["python", "-m", "vits_prune", command, "--voice", request.reference]
    words += ["--speaker", request.speaker] if request.speaker else []
    spec = request.spec
    some: list[Any] = [one for one in (spec, spec.shape, plan or request.delivery) if one]
    for options in some:
        for one in dataclasses.fields(options):
            value = getattr(options, one.name)
            derived = spec.shape and one.name in ("amount", "parts")
            if value == one.default or derived or one.name in ("shape", "texts"):
                continue
            flag = _FLAGS.get(one.name, one.name) if options is spec else one.name
            if flag == "steps" and options is spec and plan:
                flag = "prune-steps"  # the others are of the training
            given = list(map(str, value)) if isinstance(value, tuple) else [str(value)]
            given = [] if value is True else given
            words += [f"--{flag.replace('_', '-')}"]
            words += [",".join(given)] if one.name == "amounts" else given
    if plan:
        return shlex.join([*words, "--out", "healed"])
    words += ["--text", request.text, "--seed", str(request.seed), "--timing", request.timing]
    return shlex.join([*words, "--out", "compared"])
