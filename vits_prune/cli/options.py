"""Options that several commands share, made of the fields of dataclasses, and their values."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError

if TYPE_CHECKING:
    from vits_prune.pruning import PruneSpec
    from vits_prune.study.evaluation import Settings
    from vits_prune.voices.voice import Voice

_REF = "joe, a hub id, a folder, or a Piper .onnx"
CHOICES = ("protect", "floor", "pattern", "steps", "schedule", "importance", "texts", "seed")
"""Fields of a PruneSpec that all points of a grid share."""
_PLACES = {"steps": "prune_steps", "texts": "calibration_texts", "seed": "prune_seed"}
"""Where argparse keeps fields of a PruneSpec whose names are those of other options."""


def add_flag(
    parser: argparse._ActionsContainer,
    flag: str,
    help: str,
    kind: Callable[[str], Any] = str,
    *,
    default: Any = None,
    **more: Any,
) -> None:
    """Add one flag; its help names the default.

    Args:
        flag: "--csv", or with what stands for its value "--json FILE".
        kind: turns what is typed into a value; bool for a flag without a value.
        more: other arguments of `add_argument`.
    """
    name, _, metavar = flag.partition(" ")
    how: dict[str, Any] = {"action": "store_true"}
    if kind is not bool:
        how = {"type": kind, "metavar": metavar or None, **more}
    help = (help + _default_words(default)).replace("%", "%%")
    parser.add_argument(name, default=default, help=help, **how)


def add_flags(
    parser: argparse._ActionsContainer, kind: Callable[[str], Any], helps: Mapping[str, str]
) -> None:
    """Add several flags of one kind: flag -> what it does."""
    for flag, help in helps.items():
        add_flag(parser, flag, help, kind)


def add_fields(
    parser: argparse._ActionsContainer,
    kind: type,
    names: Collection[str] | None = None,
    **changes: Mapping[str, Any],
) -> None:
    """Add a flag for each field that `vits_prune.fields.option` made: its help, and its choices.

    The value is None unless it is typed, so that the dataclass alone holds the default.

    Args:
        names: fields that get a flag; None for all.
        changes: for a field, other arguments of `add_argument`; "flag" is the name of the flag.
    """
    for field in dataclasses.fields(kind):
        about, change = field.metadata, dict(changes.get(field.name, {}))
        if "kind" not in about or (names is not None and field.name not in names):
            continue
        words, choices = about["help"], about["choices"]
        if choices:
            meanings = choices.items() if isinstance(choices, Mapping) else ()
            said = [f"{name}: {means}" for name, means in meanings if isinstance(means, str)]
            words += f": {'; '.join(said) or ', '.join(choices)}"
        words += _default_words(change.get("default", field.default))
        flag = change.pop("flag", f"--{field.name.replace('_', '-')}")
        how: dict[str, Any] = {"default": None, "help": words.replace("%", "%%")}
        if about["kind"] is bool:
            how["action"] = "store_true"
        else:
            metavar = "N" if about["kind"] is int else field.name.split("_")[-1].upper()
            how |= {"type": about["kind"], "metavar": metavar}
            if about["most"] is not None:
                how["nargs"] = "*" if field.default is None else "+"
        parser.add_argument(flag, **(how | change))


def _default_words(default: Any) -> str:
    if isinstance(default, tuple):
        return " (default: all)" if default else ""
    if default is None or default == "" or isinstance(default, bool) or default == []:
        return ""
    shown = " ".join(default) if isinstance(default, list) else default
    return f" (default: {shown:g})" if isinstance(shown, float) else f" (default: {shown})"


def typed_fields(
    options: argparse.Namespace, kind: type, places: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Return the fields of a dataclass that were typed; `places` has those kept elsewhere."""
    names = [field.name for field in dataclasses.fields(kind)]
    values = {name: getattr(options, places.get(name, name), None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def add_voice(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add the options that name a voice, or with `many` several."""
    if many:
        words = f"one or several of {_REF}"
        add_flag(parser, "--voice REF", words, default=["joe"], nargs="+")
    else:
        add_flag(parser, "--voice REF", _REF, default="joe")
    add_flag(parser, "--speaker", "index or name, for a voice with several")
    add_flag(parser, "--revision", "branch, tag or commit of a hub id")


def load(options: argparse.Namespace) -> Voice:
    """Load the voice that the options of `add_voice` name."""
    from vits_prune.voices.load import load_voice

    return load_voice(options.voice, options.speaker, revision=options.revision)


def add_out(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the required --out."""
    add_flag(parser, "--out DIR", help, Path, required=True)


def add_spec(
    parser: argparse.ArgumentParser,
    names: Collection[str] | None = None,
    *,
    steps: str = "--steps",
    many: Collection[str] = (),
) -> None:
    """Add the options of a PruneSpec.

    Args:
        names: fields that get a flag; None for all, and for the levers of a Shape.
        steps: the flag for the steps of gradual pruning.
        many: fields that take several values, for a grid.
    """
    from vits_prune.pruning import PruneSpec, Shape

    changes: dict[str, dict[str, Any]] = {name: {"nargs": "+"} for name in many}
    changes["steps"] = {"flag": steps, "dest": "prune_steps", "type": str}
    changes["seed"] = {"flag": "--prune-seed"}
    changes["texts"] = {
        "flag": "--calibration-texts",
        "type": Path,
        "nargs": None,
        "metavar": "FILE",
        "help": "file of sentences to calibrate on, one a line (default: built-in ones)",
    }
    if names is None:
        names = [field.name for field in dataclasses.fields(PruneSpec) if field.name != "amounts"]
        words = "steps of gradual pruning, or their amounts, such as 0.3,0.5,0.6 (default: 1)"
        changes["steps"]["help"] = words
        levers = parser.add_argument_group(
            "what stays in structured pruning, in place of --amount and --parts"
        )
        add_fields(levers, Shape)
    add_fields(parser, PruneSpec, names, **changes)


def spec_of(options: argparse.Namespace) -> PruneSpec:
    """Return the PruneSpec that was typed; raise InputError if two values do not fit together."""
    from vits_prune.pruning import PruneSpec, Shape

    fields, levers = _spec_fields(options), typed_fields(options, Shape)
    if levers:
        idle = [name for name in ("amount", "parts") if name in fields]
        if idle:
            raise InputError(
                f"Levers such as --decoder-width say all of what stays: leave --{idle[0]} out, or "
                "the levers."
            )
        fields["shape"] = Shape(**levers)
    if fields.get("parts") == ["all"]:
        del fields["parts"]
    if "amount" not in fields:
        amounts = fields.get("amounts")
        fields["amount"] = amounts[-1] if amounts else pattern_amount(options.pattern)
    return PruneSpec(**fields)


def says_how_to_prune(options: argparse.Namespace) -> str:
    """Return the first option typed that describes a PruneSpec, or "" if there is none."""
    from vits_prune.pruning import PruneSpec, Shape

    for name in (*typed_fields(options, PruneSpec, _PLACES), *typed_fields(options, Shape)):
        return f"--{_PLACES.get(name, name).replace('_', '-')}"
    return ""


def base_of(options: argparse.Namespace) -> PruneSpec:
    """Return what all points of a grid have in common; raise InputError if it is out of range."""
    from vits_prune.pruning import PruneSpec

    shared = (*CHOICES, "amounts")
    fields = {name: value for name, value in _spec_fields(options).items() if name in shared}
    if "amounts" in fields:
        raise InputError(
            "Each point has an amount of its own here: give --steps as a number, such as 4."
        )
    if fields.get("importance", PruneSpec.importance) != PruneSpec.importance:
        fields["method"] = "structured"  # which alone takes one
    return PruneSpec(**fields, amount=pattern_amount(options.pattern))


def pattern_amount(pattern: str | None) -> float:
    """Return the share that a pattern zeroes, or the default amount if there is no valid one."""
    from vits_prune.pruning import PruneSpec

    keep, colon, of = (pattern or "").partition(":")
    if colon and keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of):
        return 1 - int(keep) / int(of)
    return PruneSpec.amount


def _spec_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a PruneSpec that were typed; files of texts are read."""
    from vits_prune.pruning import PruneSpec
    from vits_prune.synthesis.texts import read_text_file

    fields = typed_fields(options, PruneSpec, _PLACES)
    if "texts" in fields:
        fields["texts"] = read_text_file(fields["texts"]).texts
    steps = fields.pop("steps", None)
    if steps is None:
        return fields
    try:
        if "," in steps or "." in steps:
            return {**fields, "amounts": tuple(map(float, steps.split(",")))}
        return {**fields, "steps": int(steps)}
    except ValueError as error:
        raise InputError(
            f"{steps[:40]!r} is not a number of steps: give one, such as 4, or the amounts of the "
            "steps, such as 0.3,0.5,0.6."
        ) from error


def add_texts(parser: argparse._ActionsContainer, help: str, default: int | None = None) -> None:
    """Add --texts and --text-file."""
    add_flag(parser, "--texts N", help, int, default=default)
    add_flag(parser, "--text-file FILE", "your own sentences, one a line", Path)


def texts_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the sentences that --texts, --text-file and --half name."""
    from vits_prune.synthesis.texts import DEFAULT_COUNT, load_texts, read_text_file

    half = getattr(options, "half", None)
    if options.text_file is None:
        count = DEFAULT_COUNT if options.texts is None else options.texts
        return load_texts(count, half or "held-out")
    if half:
        raise InputError(
            "--half chooses among the built-in sentences: leave it out with --text-file."
        )
    found = read_text_file(options.text_file, options.texts)
    for note in found.notes:
        print(note, file=sys.stderr)
    return found.texts


def add_settings(
    parser: argparse.ArgumentParser, names: Collection[str] = (), **changes: Mapping[str, Any]
) -> None:
    """Add --seed, --recogniser, --language, and the Settings of an evaluation in `names`."""
    from vits_prune.measure.recognition import DEFAULT_MODEL
    from vits_prune.study.evaluation import Settings

    add_fields(parser, Settings, ("seed", *names), **changes)
    words = f"Whisper size, hub id or folder for faster-whisper (default: {DEFAULT_MODEL})"
    add_flag(parser, "--recogniser WHISPER", words)
    add_flag(parser, "--language", "of the texts, as Whisper names it (default: the voice's)")


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the Settings that were typed; raise InputError if one is out of range."""
    from vits_prune.measure.recognition import Recogniser
    from vits_prune.study.evaluation import Settings

    named = {"model": options.recogniser, "language": options.language}
    recogniser = Recogniser(**{name: value for name, value in named.items() if value})
    return Settings(**typed_fields(options, Settings) | {"recogniser": recogniser})
