"""reproduce: the recipe of a voice as the commands that make it again, and what they cannot say."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from vits_prune.errors import InputError
from vits_prune.healing.plan import HealPlan
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.shape import Shape
from vits_prune.voices.hub import parse_repo_id
from vits_prune.voices.voice import PARTS, Voice

PROGRAM = ("python", "-m", "vits_prune")
ORIGINAL = "ORIGINAL"
"""Stands for a voice that cannot be fetched by its name."""
MAX_STEPS = 8
"""Prunings, and healings, of one voice that are written out."""
_LAYER = re.compile(r"[A-Za-z0-9_*][A-Za-z0-9_.*]*")
Arguments = tuple[str, ...]


@dataclass(frozen=True)
class Reproduction:
    """How to make a voice again."""

    commands: tuple[Arguments, ...]
    """The arguments behind `python -m vits_prune`, one command after the other; empty where the recipe cannot be said."""
    notes: tuple[str, ...]
    """What the commands do not say, in sentences; nothing in them is from strangers."""
    files: Mapping[str, str]
    """Text files that the commands read, by name."""

    def lines(self) -> tuple[str, ...]:
        """The commands as they are typed into a shell."""
        return tuple(shlex.join((*PROGRAM, *arguments)) for arguments in self.commands)


def published(voice: Voice) -> tuple[str, str | None] | None:
    """What `load_voice` takes to fetch the original of a voice, and its revision; None where it was a file or folder of somebody's."""
    origin = voice.origin
    if origin.family == "piper":
        return ("joe", None) if origin.reference == "joe" else None
    try:
        repo_id, named = parse_repo_id(origin.reference)
        if origin.revision:
            parse_repo_id(f"{repo_id}@{origin.revision}")
    except InputError:
        return None
    return repo_id, origin.revision or named


def reproduce(voice: Voice, format: str = "dense", precision: str = "fp32") -> Reproduction:
    """The commands that make a voice from its original, and export it.

    One command where one can say it; a voice pruned or healed several times takes one for each.

    Args:
        voice: whose recipe to read. It may come from strangers: nothing of it is believed before it was checked.
        format: of the export at the end, dense fp32 for none.
        precision: of the same.
    """
    source = published(voice)
    notes = (
        []
        if source
        else [
            f"The original is not one that can be fetched by name: put its folder or file in the place of {ORIGINAL}."
        ]
    )
    try:
        specs, done = read_recipe(voice.recipe)
    except InputError as error:
        return Reproduction((), (str(error),), {})
    chain = _Chain(_original(voice, source), notes)
    together = _gradual(specs, done)
    if together is not None:
        chain.run("heal", *chain.spec(specs[0], "prune-steps"), *chain.plan(together, done))
    else:
        for spec in specs:
            chain.run("prune", *chain.spec(spec, "steps"))
        for one in done:
            chain.run("heal", *chain.plan(one.exact(), [one]), pruned=True)
        if len(specs) > 1 and done:
            notes.append("The recipe does not keep in which order pruning and healing took turns.")
    if (format, precision) != ("dense", "fp32"):
        chain.run("export", "--format", format, "--precision", precision)
    return Reproduction(tuple(chain.commands), tuple(dict.fromkeys(notes)), chain.files)


@dataclass(frozen=True)
class Healing:
    """One entry of a recipe's "healed"."""

    plan: HealPlan
    steps: int | None
    """The number of steps that its minutes came to."""
    kept: int | None
    """The step whose voice was kept."""
    recordings: int
    stopped: bool
    lessons: int
    """Sentences that the original spoke for it."""
    trained: tuple[str, ...]
    """The parts that learned."""

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Healing:
        """An entry that strangers may have written.

        Raises:
            InputError: it is none.
        """
        values = entry.get("plan", {})
        if not isinstance(values, dict):
            raise InputError("A healing's plan is a JSON object.")
        steps, kept, clips, lessons = (
            _count(entry.get(name)) for name in ("of", "steps", "recordings", "lessons")
        )
        learned = entry.get("trained")
        trained = tuple(part for part in PARTS if isinstance(learned, list) and part in learned)
        return cls(
            HealPlan.from_dict(values),
            steps,
            kept,
            clips or 0,
            "stopped" in entry,
            lessons or 0,
            trained,
        )

    def exact(self) -> HealPlan:
        """The plan with the steps that its minutes came to."""
        return (
            dataclasses.replace(self.plan, minutes=None, steps=self.steps)
            if self.steps
            else self.plan
        )


def _count(value: Any) -> int | None:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 10_000_000
        else None
    )


class _Chain:
    """Commands, each of which begins with what the one before has written."""

    def __init__(self, original: Arguments, notes: list[str]) -> None:
        self.commands: list[Arguments] = []
        self.files: dict[str, str] = {}
        self._original, self._notes = original, notes
        self._last = ""

    def run(self, command: str, *options: str, pruned: bool = False) -> None:
        """Add a command; with `pruned` it heals what was made, beside the original."""
        if not self._last and pruned:
            self._last = "PRUNED"
            self._notes.append(
                "The recipe does not say how the voice was pruned: put its folder in the place of PRUNED."
            )
        named = ("--voice", self._last) if self._last and not pruned else self._original
        given = ("--pruned", self._last) if pruned else ()
        past = {"prune": "pruned", "heal": "healed", "export": "exported"}[command]
        count = sum(one[0] == command for one in self.commands)
        out = f"{past}-{count + 1}" if count else past
        self.commands.append((command, *named, *given, *options, "--out", out))
        self._last = out

    def spec(self, spec: PruneSpec, steps: str) -> list[str]:
        """Return the options of a PruneSpec."""
        found = ["--method", spec.method]
        structured = METHODS[spec.method].structured
        found += [] if structured else ["--scope", spec.scope]
        if spec.shape is not None:
            found += _levers(spec.shape)
        else:
            found += ["--amount", _number(spec.amount)]
            found += [] if spec.parts == PARTS else ["--parts", *spec.parts]
        if spec.protect is not None:
            found += ["--protect", *spec.protect]
        found += ["--floor", _number(spec.floor)] if spec.floor else []
        found += ["--pattern", spec.pattern] if spec.pattern else []
        if spec.amounts:
            found += [f"--{steps}", ",".join(map(_number, spec.amounts))]
        elif spec.steps > 1:
            found += [f"--{steps}", str(spec.steps)]
        found += [] if spec.schedule == "cubic" else ["--schedule", spec.schedule]
        found += [] if spec.importance == "sensitivity" else ["--importance", spec.importance]
        found += ["--prune-seed", str(spec.seed)] if spec.seed else []
        return found + self._texts(spec.texts)

    def _texts(self, texts: Sequence[str]) -> list[str]:
        if not texts:
            return []
        content = "".join(f"{one}\n" for one in texts)
        if (
            tuple(line.strip() for line in content.splitlines()) != tuple(texts)
            or "\0" in content
            or len(content.encode()) > 1 << 20
        ):
            self._notes.append(
                "It was calibrated on texts of its maker's own that are not one line each: they are in the recipe, in its files."
            )
            return []
        name = f"calibration-texts{f'-{len(self.files) + 1}' if self.files else ''}.txt"
        self.files[name] = content
        self._notes.append(f"{name} is among the files here.")
        return ["--calibration-texts", name]

    def plan(self, plan: HealPlan, done: Sequence[Healing]) -> list[str]:
        """Return the options of `heal` for a HealPlan, and note what they leave out."""
        usual = HealPlan()
        found = (
            ["--steps", str(plan.steps)]
            if plan.steps is not None
            else ["--minutes", _number(plan.minutes or 0.05)]
        )
        for field in dataclasses.fields(HealPlan):
            name, value = field.name, getattr(plan, field.name)
            if name in ("minutes", "steps") or value == getattr(usual, name):
                continue
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                found.append(flag)
            else:
                found += [flag, _number(value) if isinstance(value, float) else str(value)]
        if plan.steps is not None and done[0].plan.steps is None:
            self._notes.append(
                f"The {plan.steps} steps are what {sum(one.plan.minutes or 0 for one in done):g} minutes came to."
            )
        if any(one.kept and one.steps and one.kept < one.steps for one in done):
            self._notes.append(
                "The best checkpoint was kept, not the last; which one that is depends on when quality was measured."
            )
        if any(one.stopped for one in done):
            self._notes.append("A healing was stopped by a loss that was no finite number.")
        clips = sum(one.recordings for one in done)
        if clips:
            self._notes.append(
                f"It was healed on {clips} recordings of its maker's own besides, which are not published."
            )
        self._notes.append(
            "Where its maker gave sentences of their own to learn from (`--texts`), the recipe does not keep them."
        )
        return found


def _gradual(specs: Sequence[PruneSpec], done: Sequence[Healing]) -> HealPlan | None:
    """The plan of a `heal` that pruned as well, None where the two were done apart."""
    if (
        len(specs) != 1
        or not done
        or len(specs[0].schedule_amounts()) != len(done)
        or any(one.recordings for one in done)
    ):
        return None
    count = len(done)
    for plans in ([one.exact() for one in done], [one.plan for one in done]):
        steps, minutes = [one.steps for one in plans], [one.minutes for one in plans]
        whole = (
            {"steps": sum(steps), "minutes": None}
            if None not in steps
            else {"minutes": round(sum(filter(None, minutes)), 6)}
        )
        try:
            total = dataclasses.replace(plans[-1], **whole)
        except InputError:
            continue
        if all(_same(total.share(index, count), one) for index, one in enumerate(plans)):
            return total
    return None


def _same(one: HealPlan, other: HealPlan) -> bool:
    """Whether two plans are the same but for rounding."""
    first, second = one.to_dict(), other.to_dict()
    minutes = [plan.pop("minutes") for plan in (first, second)]
    return first == second and (None in minutes or abs(minutes[0] - minutes[1]) < 1e-3 * minutes[1])


def read_recipe(recipe: Mapping[str, Any]) -> tuple[list[PruneSpec], list[Healing]]:
    """What was done to a voice, checked: a recipe may come from strangers.

    Raises:
        InputError: it is none, or of more than MAX_STEPS prunings or healings.
    """
    unreadable = InputError(
        "The recipe that came with the voice is not one that this version can repeat."
    )
    try:
        specs = [PruneSpec.from_dict(step) for step in _steps(recipe.get("pruned", ()))]
        done = [Healing.read(one) for one in _steps(recipe.get("healed", ()))]
    except (InputError, TypeError, ValueError, OverflowError) as error:
        raise unreadable from error
    if not all(
        len(name) <= 200 and _LAYER.fullmatch(name) for spec in specs for name in spec.protect or ()
    ):
        raise unreadable
    return specs, done


def _steps(entries: Any) -> list[Mapping[str, Any]]:
    found = list(entries) if isinstance(entries, (list, tuple)) else [None]
    if len(found) > MAX_STEPS or not all(isinstance(one, dict) for one in found):
        raise ValueError("not the list of a recipe")
    return found


def _original(voice: Voice, source: tuple[str, str | None] | None) -> Arguments:
    name, revision = source or (ORIGINAL, None)
    found = ["--voice", name] + (["--revision", revision] if revision else [])
    return tuple(found + (["--speaker", str(voice.speaker)] if voice.speaker else []))


def _levers(shape: Shape) -> list[str]:
    """What differs from the whole voice; one lever at least, by which the command line knows a Shape."""
    usual, found = Shape(), []
    for field in dataclasses.fields(Shape):
        value = getattr(shape, field.name)
        if value != getattr(usual, field.name):
            found += [
                f"--{field.name.replace('_', '-')}",
                _number(value) if isinstance(value, float) else str(value),
            ]
    return found or ["--decoder-width", "1.0"]


def _number(value: float) -> str:
    """A number that reads back as the same, without an exponent: "0.00001" is an amount, "1e-05" would be a number of steps."""
    return format(Decimal(repr(float(value))), "f")
