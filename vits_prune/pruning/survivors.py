"""What structured pruning left of each layer, in the names and the places of the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vits_prune.errors import InputError
from vits_prune.pruning.calibration import Step
from vits_prune.pruning.couplings import BRANCHES, RESBLOCKS, groups
from vits_prune.pruning.shrink import chosen, shape_for
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structured import Choice, latents_are_flipped
from vits_prune.voices.voice import Voice


@dataclass(frozen=True)
class Survivor:
    """What stays of a layer."""

    name: str
    """Its name in the pruned voice."""
    kept: Mapping[int, tuple[int, ...]]
    """Dimension of the weight -> indices that stay, in the order in which the pruned voice has them; dimensions not named stay whole."""


def choice_for(voice: Voice, spec: PruneSpec, on_step: Step | None = None) -> Choice:
    """What stays of a voice for a structured spec; what calibration found is taken from memory where it is still there.

    Raises:
        InputError: as `prune`, or the spec is gradual: each of its steps chooses anew, among what the one before left.
    """
    if len(spec.schedule_amounts()) > 1:
        raise InputError("What stays of a voice is known for one cut only: leave the steps out, or ask for each step's voice by itself.")
    return chosen(voice, spec, spec.shape or shape_for(voice, spec), on_step)


def survivor(original: Voice, pruned: Voice, choice: Choice, layer: str) -> Survivor | None:
    """What stays of one of the original's layers, None where all of it is gone."""
    name, kept = layer, {}
    for group in groups(original):
        stays = choice.kept.get(group.name)
        if stays is None:
            continue
        if not group.blocks:
            kept |= {dimension: stays for parameter, dimension in group.slices(original.model) if parameter == f"{layer}.weight"}
            continue
        block = next((i for i, modules in enumerate(group.blocks) if any(_within(layer, module) for module in modules)), None)
        if block is None:
            continue
        if block not in stays:
            return None
        name = _renumbered(name, group.name, group.size, block, stays)
    if layer == "decoder.conv_pre" and latents_are_flipped(original, pruned):
        kept[1] = tuple(reversed(range(original.model.decoder.conv_pre.weight.shape[1])))
    now = dict(pruned.model.named_parameters())[f"{name}.weight"].shape
    before = original.model.get_parameter(f"{layer}.weight").shape
    for dimension, size in enumerate(now):  # the WaveNet layer that became the last has lost the half that fed the next
        there = kept.get(dimension, tuple(range(before[dimension])))
        if len(there) != size:
            kept[dimension] = there[-size:]
    return Survivor(name, kept)


def _within(layer: str, module: str) -> bool:
    return layer == module or layer.startswith(f"{module}.")


def _renumbered(name: str, group: str, size: int, block: int, stays: tuple[int, ...]) -> str:
    """The name with the block's new number; of groups within each other the inner one comes first, while its path is still the old."""
    new = stays.index(block)
    if group == BRANCHES:
        stage, _, rest = name.removeprefix(f"{RESBLOCKS}.").partition(".")
        return f"{RESBLOCKS}.{int(stage) // size * len(stays) + new}.{rest}"
    if group.endswith(".wavenet"):
        pieces = name.split(".")
        return ".".join([*pieces[:-1], str(new)])
    return f"{group}.{new}.{name.removeprefix(f'{group}.').partition('.')[2]}"
