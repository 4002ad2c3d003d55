"""The recipe of a voice as the commands that make it again, and what they cannot say."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from vits_prune.errors import InputError
from vits_prune.healing.plan import HealPlan
from vits_prune.pruning import PruneSpec, Shape
from vits_prune.pruning.spec import METHODS
from vits_prune.voices.hub import parse_repo_id
from vits_prune.voices.voice import PARTS, Voice

ORIGINAL = "ORIGINAL"
"""Stands for a voice that cannot be fetched by its name."""
MAX_ENTRIES = 8
"""Prunings, and healings, of one voice that are written out."""
_LAYER = re.compile(r"[A-Za-z0-9_*][A-Za-z0-9_.*]*")
_MAX_TEXTS_BYTES = 1 << 20


@dataclass(frozen=True)
class Reproduction:
    """How to make a voice again."""

    commands: tuple[tuple[str, ...], ...]
    """Arguments after `python -m vits_prune`, in order; none if the recipe cannot be repeated."""
    notes: tuple[str, ...]
    """What the commands do not say, in sentences; nothing in them is from strangers."""
    files: Mapping[str, str]
    """Text files that the commands read, by name."""

    def lines(self) -> tuple[str, ...]:
        """Return the commands as they are typed into a shell."""
        return tuple(f"python -m vits_prune {shlex.join(one)}" for one in self.commands)


def published(voice: Voice) -> tuple[str, str | None] | None:
    """Return the published original of a voice, as `load_voice` takes it, and its revision."""
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
    """Return the commands that make a voice from its original, and export it unless dense fp32.

    One command if one can say it; a voice pruned or healed several times takes one for each. The
    recipe may come from strangers: all of it is checked.
    """
    try:
        specs, healings = read_recipe(voice.recipe)
    except InputError as error:
        return Reproduction((), (str(error),), {})
    chain = _Chain(voice)
    together = _plan_of_both(specs, healings)
    if together is not None:
        chain.run("heal", *chain.spec(specs[0], "prune-steps"), *chain.plan(together, healings))
    else:
        for spec in specs:
            chain.run("prune", *chain.spec(spec, "steps"))
        for one in healings:
            chain.run("heal", *chain.plan(one.exact(), [one]), pruned=True)
        if len(specs) > 1 and healings:
            note = "The recipe does not keep in which order pruning and healing took turns."
            chain.notes.append(note)
    if (format, precision) != ("dense", "fp32"):
        chain.run("export", "--format", format, "--precision", precision)
    return Reproduction(tuple(chain.commands), tuple(dict.fromkeys(chain.notes)), chain.files)


@dataclass(frozen=True)
class HealRecord:
    """One entry of a recipe's "healed", checked: strangers may have written it."""

    plan: HealPlan
    steps: int | None
    """Training steps that its minutes came to."""
    kept: int | None
    """The training step whose voice was kept."""
    recordings: int
    sentences: int
    """Sentences that the original spoke for it."""
    stopped: bool
    trained: tuple[str, ...]
    """The parts that learnt."""

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> HealRecord:
        """Return what an entry says; InputError if it is none."""
        values = entry.get("plan", {})
        if not isinstance(values, dict):
            raise InputError("A healing's plan is a JSON object.")
        steps, kept = _count(entry.get("of")), _count(entry.get("steps"))
        recorded, spoken = (_count(entry.get(name)) or 0 for name in ("recordings", "lessons"))
        learnt = entry.get("trained")
        trained = tuple(part for part in PARTS if isinstance(learnt, list) and part in learnt)
        plan = HealPlan.from_dict(values)
        return cls(plan, steps, kept, recorded, spoken, "stopped" in entry, trained)

    @property
    def kept_early(self) -> bool:
        """Whether a checkpoint before the last was kept."""
        return bool(self.kept and self.steps and self.kept < self.steps)

    def exact(self) -> HealPlan:
        """Return the plan with the steps that its minutes came to."""
        if not self.steps:
            return self.plan
        return dataclasses.replace(self.plan, minutes=None, steps=self.steps)


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 < value <= 10_000_000 else None


class _Chain:
    """Commands, each of which begins with what the one before has written."""

    def __init__(self, voice: Voice) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.files: dict[str, str] = {}
        self.notes: list[str] = []
        self._last = ""
        source = published(voice)
        name, revision = source or (ORIGINAL, None)
        self._original = ["--voice", name, *(["--revision", revision] if revision else [])]
        self._original += ["--speaker", str(voice.speaker)] if voice.speaker else []
        if not source:
            self.notes.append(
                f"The original cannot be fetched by name: put its folder or file for {ORIGINAL}."
            )

    def run(self, command: str, *options: str, pruned: bool = False) -> None:
        """Add a command; with `pruned` it heals what was made, next to the original."""
        if not self._last and pruned:
            self._last = "PRUNED"
            self.notes.append(
                "The recipe does not say how the voice was pruned: put its folder for PRUNED."
            )
        named = ["--voice", self._last] if self._last and not pruned else self._original
        given = ["--pruned", self._last] if pruned else []
        out = {"prune": "pruned", "heal": "healed", "export": "exported"}[command]
        count = sum(one[0] == command for one in self.commands)
        self._last = f"{out}-{count + 1}" if count else out
        self.commands.append((command, *named, *given, *options, "--out", self._last))

    def spec(self, spec: PruneSpec, steps: str) -> list[str]:
        """The options of a PruneSpec; `steps` is the name of the one for its steps."""
        found = ["--method", spec.method]
        if not METHODS[spec.method].structured:
            found += ["--scope", spec.scope]
        if spec.shape is not None:
            # One lever at least, by which the command line knows a Shape.
            found += _changed(spec.shape, Shape()) or ["--decoder-width", "1.0"]
        else:
            found += ["--amount", _shown(spec.amount)]
            found += [] if spec.parts == PARTS else ["--parts", *spec.parts]
        if spec.protect is not None:
            found += ["--protect", *spec.protect]
        if spec.amounts or spec.steps > 1:
            amounts = ",".join(map(_shown, spec.amounts or ()))
            found += [f"--{steps}", amounts or str(spec.steps)]
        found += _changed(spec, PruneSpec(), ("floor", "pattern", "schedule", "importance"))
        found += ["--prune-seed", str(spec.seed)] if spec.seed else []
        return found + self._texts(spec.texts)

    def _texts(self, texts: Sequence[str]) -> list[str]:
        if not texts:
            return []
        content = "".join(f"{one}\n" for one in texts)
        lines = tuple(line.strip() for line in content.splitlines())
        if lines != tuple(texts) or "\0" in content or len(content.encode()) > _MAX_TEXTS_BYTES:
            note = "It was calibrated on texts that are not one line each: they are in its recipe."
            self.notes.append(note)
            return []
        name = f"calibration-texts{f'-{len(self.files) + 1}' if self.files else ''}.txt"
        self.files[name] = content
        self.notes.append(f"{name} is among the files here.")
        return ["--calibration-texts", name]

    def plan(self, plan: HealPlan, healings: Sequence[HealRecord]) -> list[str]:
        """The options of `heal` for a HealPlan; what they leave out is noted."""
        if plan.steps is None:
            found = ["--minutes", _shown(plan.minutes or 0.05)]
        else:
            found = ["--steps", str(plan.steps)]
        found += _changed(dataclasses.replace(plan, minutes=1.0, steps=None), HealPlan(minutes=1.0))
        minutes = sum(one.plan.minutes or 0 for one in healings)
        recordings = sum(one.recordings for one in healings)
        timed = plan.steps is not None and healings[0].plan.steps is None
        early = any(one.kept_early for one in healings)
        stopped = any(one.stopped for one in healings)
        notes = {
            f"The {plan.steps} steps are what {minutes:g} minutes came to.": timed,
            "The best checkpoint was kept, not the last; which one that is depends on when quality "
            "was measured.": early,
            "A healing was stopped by a loss that was not a finite number.": stopped,
            f"It was also healed on {recordings} recordings of its maker's own, which are not "
            "published.": recordings,
            "If its maker gave sentences of their own to learn from (`--texts`), the recipe does "
            "not keep them.": True,
        }
        self.notes += [note for note, holds in notes.items() if holds]
        return found


def _changed(one: Any, usual: Any, names: Sequence[str] = ()) -> list[str]:
    """Options for the fields of a dataclass that differ from the usual ones."""
    found = []
    for name in names or [field.name for field in dataclasses.fields(one)]:
        value = getattr(one, name)
        if value != getattr(usual, name):
            flag = f"--{name.replace('_', '-')}"
            found += [flag] if isinstance(value, bool) else [flag, _shown(value)]
    return found


def _shown(value: Any) -> str:
    """A value that is read back as the same, without an exponent."""
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)


def _plan_of_both(specs: Sequence[PruneSpec], healings: Sequence[HealRecord]) -> HealPlan | None:
    """The plan of a `heal` that pruned as well, None if the two were done apart."""
    count = len(healings)
    if len(specs) != 1 or not count or len(specs[0].schedule_amounts()) != count:
        return None
    if any(one.recordings for one in healings):
        return None
    for plans in ([one.exact() for one in healings], [one.plan for one in healings]):
        steps = [one.steps for one in plans if one.steps is not None]
        whole: dict[str, Any] = {"steps": sum(steps), "minutes": None}
        if len(steps) < count:
            whole = {"minutes": round(sum(one.minutes or 0 for one in plans), 6)}
        try:
            total = dataclasses.replace(plans[-1], **whole)
        except InputError:
            continue
        if all(_same(total.share(index, count), one) for index, one in enumerate(plans)):
            return total
    return None


def _same(one: HealPlan, other: HealPlan) -> bool:
    """Whether two plans are the same but for rounding of the minutes."""
    if dataclasses.replace(one, minutes=1.0) != dataclasses.replace(other, minutes=1.0):
        return False
    return math.isclose(one.minutes or 0, other.minutes or 0, rel_tol=1e-3)


def read_recipe(recipe: Mapping[str, Any]) -> tuple[list[PruneSpec], list[HealRecord]]:
    """Return what was done to a voice; InputError if it cannot be read or is too long."""
    try:
        specs = [PruneSpec.from_dict(one) for one in _entries(recipe.get("pruned", ()))]
        healings = [HealRecord.read(one) for one in _entries(recipe.get("healed", ()))]
        names = [name for spec in specs for name in spec.protect or ()]
        if all(len(name) <= 200 and _LAYER.fullmatch(name) for name in names):
            return specs, healings
        why: Exception | None = None
    except (InputError, TypeError, ValueError, OverflowError) as error:
        why = error
    what = "The recipe that came with the voice is not one that this version can repeat."
    raise InputError(what) from why


def _entries(entries: Any) -> list[dict[str, Any]]:
    listed = isinstance(entries, (list, tuple)) and len(entries) <= MAX_ENTRIES
    if not listed or not all(isinstance(one, dict) for one in entries):
        raise ValueError("not the list of a recipe")
    return list(entries)
