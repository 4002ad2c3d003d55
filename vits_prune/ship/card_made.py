"""What was done to a voice, in words, from its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.registry import IMPORTANCES, METHODS, SCOPES
from vits_prune.pruning.structure import Shape
from vits_prune.ship.markdown import code
from vits_prune.ship.reproduce import Healing, read_recipe
from vits_prune.voices.voice import PARTS

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
    said = [f"**Pruned, {method.title}.** {method.words}", _amount(spec)]
    if method.structured:
        said.append(f"A channel was judged by {IMPORTANCES[spec.importance]}.")
    elif spec.protected:
        layers = [code(name) for name in spec.protected[:_MOST_LAYERS]]
        more = f" and {len(spec.protected) - _MOST_LAYERS} more" if len(spec.protected) > _MOST_LAYERS else ""
        said.append(f"Left alone: {', '.join(layers)}{more}.")
    if spec.floor:
        said.append(f"Every layer kept {spec.floor:.2%} of its weights at least.")
    count = len(spec.schedule_amounts())
    if count > 1:
        said.append(
            f"It was done in {count} steps, calibrated anew before each." if method.calibrated else f"It was done in {count} steps."
        )
    if method.calibrated:
        own = (
            f"{len(spec.texts)} text{'s' * (len(spec.texts) > 1)} of its maker's, spoken by the voice" if spec.texts else "the voice itself"
        )
        said.append(f"It listened to {own}: no recordings.")
    return " ".join(filter(None, said))


def _amount(spec: PruneSpec) -> str:
    if spec.shape is not None:
        usual = Shape()
        levers = [
            f"{field.name.replace('_', ' ')} {getattr(spec.shape, field.name)}"
            for field in dataclasses.fields(Shape)
            if getattr(spec.shape, field.name) != getattr(usual, field.name)
        ]
        return f"What stays (widths as shares, layers in numbers): {', '.join(levers) or 'everything'}."
    where = "" if spec.parts == PARTS else f" of {', '.join(part.replace('_', ' ') for part in spec.parts)}"
    if METHODS[spec.method].structured:
        return f"Amount: {spec.amount:.4g} of the channels{where}."
    pattern = f", {spec.pattern} of neighbouring input channels stay" if spec.pattern else ""
    return f"Amount: {spec.amount:.4g} of the weights{where}{pattern}; scope {spec.scope}: {SCOPES[spec.scope]}."


def _healed(one: Healing) -> str:
    parts = f" ({', '.join(part.replace('_', ' ') for part in one.trained)})" if one.trained else ""
    steps = f"{one.steps:,} steps" if one.steps else f"{one.plan.steps:,} steps" if one.plan.steps else "some steps"
    minutes = f", {one.plan.minutes:g} minutes" if one.plan.minutes and one.plan.steps is None else ""
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
        said.append("It ended early: a loss was no finite number, and the last good checkpoint was kept.")
    return " ".join(said)
