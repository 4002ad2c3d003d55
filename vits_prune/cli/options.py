"""The parser of a command, with the options that several commands share, and their values.

Flags are made of the fields of dataclasses.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from vits_prune.errors import InputError
from vits_prune.files import expanded
from vits_prune.measure.recognition import DEFAULT_MODEL, Recogniser
from vits_prune.pruning import PruneSpec, Shape
from vits_prune.pruning.spec import METHODS
from vits_prune.study.evaluation import Settings
from vits_prune.synthesis.texts import DEFAULT_COUNT, load_texts, read_text_file
from vits_prune.voices.load import EMBEDDED, load_voice
from vits_prune.voices.voice import Voice

GRID_FIELDS = (
    *("protect", "floor", "pattern", "steps", "schedule", "importance", "bits"),
    *("texts", "seed"),
)
"""Fields of a PruneSpec that all points of a grid share."""
_REF = "joe, a hub id, a folder, or a Piper .onnx"
_PLACES = {"steps": "prune_steps", "texts": "calibration_texts", "seed": "prune_seed"}
"""Where argparse keeps fields of a PruneSpec whose names are those of other options."""


class CommandParser(argparse.ArgumentParser):
    """A parser of one command; `run` is called with the options that were typed."""

    def __init__(self, run: Callable[[Namespace], None] | None = None, **more: Any) -> None:
        super().__init__(**more)
        self.set_defaults(run=run)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 2."""
        if message.endswith("expected one argument"):
            message += " (a value that begins with a hyphen is written so: --text=-hello)"
        message = message.replace("invalid float value:", "give a number such as 0.3, not")
        message = message.replace("invalid int value:", "give a whole number, not")
        super().error(message)

    def add_flag(
        self,
        flag: str,
        help: str,
        kind: Callable[[str], Any] = str,
        *,
        default: Any = None,
        group: argparse._ActionsContainer | None = None,
        **more: Any,
    ) -> None:
        """Add one flag; its help names the default.

        Args:
            flag: "--csv", or with what stands for its value "--json FILE".
            kind: turns what is typed into a value; bool for a flag without a value.
            group: of arguments, for a flag that belongs to one.
            more: other arguments of `add_argument`.
        """
        name, _, metavar = flag.partition(" ")
        how: dict[str, Any] = {"action": "store_true"}
        if kind is not bool:
            how = {"type": kind, "metavar": metavar or None, **more}
        help = (help + _default_words(default)).replace("%", "%%")
        (group or self).add_argument(name, default=default, help=help, **how)

    def add_flags(self, kind: Callable[[str], Any], helps: Mapping[str, str]) -> None:
        """Add several flags of one kind: flag -> what it does."""
        for flag, help in helps.items():
            self.add_flag(flag, help, kind)

    def add_fields(
        self,
        kind: type,
        names: Collection[str] | None = None,
        group: argparse._ActionsContainer | None = None,
        changes: Mapping[str, Mapping[str, Any]] = {},
    ) -> None:
        """Add a flag for each field that `vits_prune.fields.option` made.

        The value is None unless it is typed, so that the dataclass alone holds the default.

        Args:
            names: fields that get a flag; None for all.
            changes: for a field, other arguments of `add_argument`; "flag" is the flag's name.
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
            (group or self).add_argument(flag, **(how | change))

    def add_voice(self, many: bool = False) -> None:
        """Add the options that name a voice, or with `many` several."""
        if many:
            words = f"one or several of {_REF}"
            self.add_flag("--voice REF", words, default=[EMBEDDED], nargs="+")
        else:
            self.add_flag("--voice REF", _REF, default=EMBEDDED)
        self.add_flag("--speaker", "index or name, for a voice with several", as_typed)
        self.add_flag("--revision", "branch, tag or commit of a hub id")

    def add_out(self, help: str) -> None:
        """Add the required --out."""
        self.add_flag("--out DIR", help, typed_path, required=True)

    def add_spec(
        self,
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
        changes: dict[str, dict[str, Any]] = {name: {"nargs": "+"} for name in many}
        changes["steps"] = {"flag": steps, "dest": "prune_steps", "type": str}
        changes["seed"] = {"flag": "--prune-seed"}
        words = "file of sentences to calibrate on, one a line (default: built-in ones)"
        changes["texts"] = {"flag": "--calibration-texts", "type": typed_path, "help": words}
        changes["texts"] |= {"nargs": None, "metavar": "FILE"}
        if names is None:
            names = [one.name for one in dataclasses.fields(PruneSpec) if one.name != "amounts"]
            words = "steps of gradual pruning, or their amounts, such as 0.3,0.5,0.6 (default: 1)"
            changes["steps"]["help"] = words
            title = "what stays in structured pruning, in place of --amount and --parts"
            self.add_fields(Shape, group=self.add_argument_group(title))
        self.add_fields(PruneSpec, names, changes=changes)

    def add_texts(self, help: str, default: int | None = None) -> None:
        """Add --texts and --text-file."""
        self.add_flag("--texts N", help, int, default=default)
        self.add_flag("--text-file FILE", "your own sentences, one a line", typed_path)

    def add_settings(self, names: Collection[str] = (), **defaults: Any) -> None:
        """Add --seed, --recogniser, --language, and the evaluation's Settings in `names`."""
        changes = {name: {"default": value} for name, value in defaults.items()}
        self.add_fields(Settings, ("seed", *names), changes=changes)
        words = f"Whisper size, hub id or folder for faster-whisper (default: {DEFAULT_MODEL})"
        self.add_flag("--recogniser WHISPER", words)
        self.add_flag("--language", "of the texts, as Whisper names it (default: the voice's)")


def _default_words(default: Any) -> str:
    if isinstance(default, tuple):
        return " (default: all)" if default else ""
    if default is None or default == "" or isinstance(default, bool) or default == []:
        return ""
    shown = " ".join(default) if isinstance(default, list) else default
    return f" (default: {shown:g})" if isinstance(shown, float) else f" (default: {shown})"


def typed_fields(options: Namespace, kind: type, places: Mapping[str, str] = {}) -> dict[str, Any]:
    """Return the fields of a dataclass that were typed; `places` has those kept elsewhere."""
    names = [field.name for field in dataclasses.fields(kind)]
    values = {name: getattr(options, places.get(name, name), None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def typed_path(text: str) -> Path:
    """Return a path with its home folder, as argparse's type of an option."""
    try:
        return expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def as_typed(text: str) -> str:
    """Return an argument as it was typed in UTF-8, which Python does not know in the locale C."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


def load(options: Namespace) -> Voice:
    """Load the voice that the options of `add_voice` name."""
    return load_voice(options.voice, options.speaker, revision=options.revision)


def spec_of(options: Namespace) -> PruneSpec:
    """Return the PruneSpec that was typed; raise InputError if two values do not fit together."""
    fields, levers = _spec_fields(options), typed_fields(options, Shape)
    if levers:
        if list(levers) == ["multiple"]:
            what = "--multiple rounds what other levers leave"
            raise InputError(f"{what}: give one, such as --decoder-width 0.5.")
        idle = [name for name in ("amount", "parts") if name in fields]
        if idle:
            raise InputError(f"Levers such as --decoder-width replace --{idle[0]}: leave out one.")
        fields["shape"] = Shape(**levers)
    if levers or "importance" in fields:
        method = METHODS.get(fields.setdefault("method", "structured"))
        if method and not method.structured:
            flag = f"--{next(iter(levers), 'importance').replace('_', '-')}"
            raise InputError(f"{flag} goes with --method structured, not {fields['method']}.")
    if fields.get("parts") == ["all"]:
        del fields["parts"]
    if "amount" not in fields:
        amounts = fields.get("amounts")
        fields["amount"] = amounts[-1] if amounts else pattern_amount(options.pattern)
    return PruneSpec(**fields)


def says_how_to_prune(options: Namespace) -> str:
    """Return the first option typed that describes a PruneSpec, or "" if there is none."""
    for name in (*typed_fields(options, PruneSpec, _PLACES), *typed_fields(options, Shape)):
        return f"--{_PLACES.get(name, name).replace('_', '-')}"
    return ""


def base_of(options: Namespace) -> PruneSpec:
    """Return what all points of a grid have in common; raise InputError if it is out of range."""
    shared = (*GRID_FIELDS, "amounts")
    fields = {name: value for name, value in _spec_fields(options).items() if name in shared}
    if "amounts" in fields:
        raise InputError("Each point has an amount of its own: give --steps as a number.")
    if fields.get("importance", PruneSpec.importance) != PruneSpec.importance:
        fields["method"] = "structured"  # which alone takes one
    return PruneSpec(**fields, amount=pattern_amount(options.pattern))


def pattern_amount(pattern: str | None) -> float:
    """Return the share that a pattern zeroes, or the default amount if there is no valid one."""
    keep, colon, of = (pattern or "").partition(":")
    if colon and keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of):
        return 1 - int(keep) / int(of)
    return PruneSpec.amount


def _spec_fields(options: Namespace) -> dict[str, Any]:
    """Return the fields of a PruneSpec that were typed; files of texts are read."""
    fields = typed_fields(options, PruneSpec, _PLACES)
    if "texts" in fields:
        fields["texts"] = texts_in(fields["texts"])
    steps = fields.pop("steps", None)
    if steps is None:
        return fields
    try:
        if "," in steps or "." in steps:
            return {**fields, "amounts": tuple(map(float, steps.split(",")))}
        return {**fields, "steps": int(steps)}
    except ValueError as error:
        raise InputError(f"{steps[:40]!r} is not a number of steps or amounts.") from error


def texts_of(options: Namespace) -> tuple[str, ...]:
    """Return the sentences that --texts, --text-file and --half name."""
    half = getattr(options, "half", None)
    if options.text_file is None:
        count = DEFAULT_COUNT if options.texts is None else options.texts
        return load_texts(count, half or "held-out")
    if half:
        raise InputError("--half chooses built-in sentences: leave it out with --text-file.")
    return texts_in(options.text_file, options.texts)


def texts_in(path: Path, count: int | None = None) -> tuple[str, ...]:
    """Return the sentences of a user's file, and print the notes about how it was read."""
    found = read_text_file(path, count)
    for note in found.notes:
        print(note, file=sys.stderr)
    return found.texts


def settings_of(options: Namespace) -> Settings:
    """Return the Settings that were typed; raise InputError if one is out of range."""
    named = {"model": options.recogniser, "language": options.language}
    recogniser = Recogniser(**{name: value for name, value in named.items() if value})
    return Settings(**typed_fields(options, Settings) | {"recogniser": recogniser})
