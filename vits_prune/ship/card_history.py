"""What was done to a voice, in words, from its recipe."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.registry import IMPORTANCES, METHODS, SCOPES
from vits_prune.pruning.spec import in_words
from vits_prune.ship.reproduce import Healing, read_recipe

_MOST_LAYERS = 8


def made_words(recipe: Mapping[str, Any]) -> list[str]:
    """One paragraph for each pruning and healing, as Markdown."""
    try:
        specs, done = read_recipe(recipe)
    except InputError as error:
        return [str(error)]
    return [*map(_pruned, specs), *map(_healed, done)]


def made_in_short(recipe: Mapping[str, Any]) -> str:
    """The same in half a line, "" where nothing was done or nobody can tell."""
    try:
        specs, done = read_recipe(recipe)
    except InputError:
        return ""
    methods = list(dict.fromkeys(METHODS[spec.method].title for spec in specs))
    return ", ".join([f"pruned ({', '.join(methods)})"] * bool(specs) + ["healed"] * bool(done))


def _pruned(spec: PruneSpec) -> str:
    method = METHODS[spec.method]
    said = [f"**Pruned: {in_words(spec)}.** {method.words}"]
    if method.structured:
        said.append(f"A channel was judged by {IMPORTANCES[spec.importance]}.")
    else:
        said.append(f"Scope {spec.scope}: {SCOPES[spec.scope]}.")
        layers = [code(name) for name in spec.protected[:_MOST_LAYERS]]
        more = len(spec.protected) - _MOST_LAYERS
        if layers:
            said.append(f"Left alone: {', '.join(layers)}{f' and {more} more' * (more > 0)}.")
    if method.calibrated:
        own = (
            f"{len(spec.texts)} text{'s' * (len(spec.texts) > 1)} of its maker's, spoken by the voice"
            if spec.texts
            else "the voice itself"
        )
        said.append(f"It listened to {own}: no recordings.")
    return " ".join(said)


def _healed(one: Healing) -> str:
    parts = f" ({', '.join(part.replace('_', ' ') for part in one.trained)})" if one.trained else ""
    steps = (
        f"{one.steps:,} steps"
        if one.steps
        else f"{one.plan.steps:,} steps"
        if one.plan.steps
        else "some steps"
    )
    minutes = (
        f", {one.plan.minutes:g} minutes" if one.plan.minutes and one.plan.steps is None else ""
    )
    said = [
        f"**Healed.** What was pruned{parts} was trained on the original's own speech (self-distillation: its durations, priors, latents "
        f"and waveform for the same noise): {steps}{minutes}, {one.lessons:,} sentences, batches of {one.plan.batch}."
    ]
    if one.kept and one.steps and one.kept < one.steps:
        said.append(f"The voice of step {one.kept:,} was the best and was kept.")
    if one.plan.adversarial:
        said.append("Discriminators joined in.")
    if one.plan.precision != "no":
        said.append(f"Arithmetic in {one.plan.precision}.")
    if one.recordings:
        said.append(f"{one.recordings:,} recordings of its maker were used besides.")
    if one.stopped:
        said.append(
            "It ended early: a loss was no finite number, and the last good checkpoint was kept."
        )
    return " ".join(said)


LONGEST = 300

"""Characters that are left of a stranger's text."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~$^])")

_LINKS = (
    (re.compile("://"), ": //"),
    (re.compile(r"www\.", re.IGNORECASE), "www ."),
    (re.compile("@"), " at "),
)

"""What renderers turn into links, even where it is escaped."""

_JOINERS = "\u200c\u200d"

"""Letters of Persian and of Indic scripts are joined by these."""


def plain(words: object, longest: int = LONGEST) -> str:
    """One line without control characters, marks of direction and the like, cut to a length."""
    line = " ".join(str(words)[: 4 * longest].split())
    kept = "".join(one for one in line if one in _JOINERS or unicodedata.category(one)[0] != "C")
    return kept if len(kept) <= longest else f"{kept[: longest - 1]}…"


def text(words: object, longest: int = LONGEST) -> str:
    """As words within a line: no markup, no HTML, no link. In a table too."""
    line = plain(words, longest)
    for pattern, instead in _LINKS:
        line = pattern.sub(instead, line)
    return html.escape(_SPECIAL.sub(r"\\\1", line), quote=False)


def code(words: object, longest: int = LONGEST) -> str:
    """As code within a line, of a table too: what it cannot hold is replaced."""
    return f"`{plain(words, longest).replace('`', chr(39)).replace('|', '/') or '?'}`"


def block(lines: Iterable[str], language: str = "") -> str:
    """Lines of code. None may hold a fence: they are this library's own, and commands that were checked before."""
    body = "\n".join(lines)
    if "```" in body or "~~~" in body:
        raise ValueError("a fence within a fenced block")
    return f"```{language}\n{body}\n```"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """A table of cells that are Markdown already; with `numbers`, all but the first column are on the right."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(titles) - 1))]
    return "\n".join(
        [
            f"| {' | '.join(titles)} |",
            f"|{'|'.join(rule)}|",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )
