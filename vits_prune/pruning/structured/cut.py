"""Structured pruning: choose what stays by its importance, cut, and fit the rest to its work.

The result is a smaller network of the same kind: for a Hugging Face voice a plain VitsModel with a
smaller VitsConfig.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.blocks import not_finite
from vits_prune.pruning.spec import PruneSpec, Shape
from vits_prune.pruning.structured.couplings import (
    BRANCHES,
    ENCODER_LAYERS,
    FLOWS,
    RESBLOCKS,
    Group,
    Kept,
    group_counts,
    groups,
    latents_are_flipped,
    sizes,
    sizes_of,
    whole,
)
from vits_prune.pruning.structured.importance import measure_importance, weight_norm
from vits_prune.pruning.structured.refit import refit
from vits_prune.voices.architecture import VitsConfig, empty_model, with_inner_channels
from vits_prune.voices.voice import Voice


def prune_voice(
    voice: Voice,
    spec: PruneSpec,
    progress: Progress = SILENT,
    original: Voice | None = None,
    **changes: Any,
) -> Voice:
    """Return a smaller voice.

    In gradual pruning the amount counts from the original, and each cut is fitted to the voice
    before it. `changes` are other fields of the new Voice, such as `recipe`.
    """
    shape = spec.shape or shape_for(original or voice, spec)
    if original is not None and original is not voice:
        # What makes of the cut voice what the shape makes of its original.
        wanted, now = sizes(original.model.config, shape), sizes_of(voice.model.config)
        decoder = wanted.initial_channels / now.initial_channels
        ffn = wanted.ffn_channels / now.ffn_channels
        shape = dataclasses.replace(shape, decoder_width=decoder, ffn_width=ffn, multiple=1)
    kept = chosen(voice, spec, shape, progress.part(0.0, 0.4))
    smaller = cut(voice, kept, **changes)
    refit(voice, smaller, kept, spec, progress.part(0.4, 1.0))
    return smaller


def chosen(voice: Voice, spec: PruneSpec, shape: Shape, progress: Progress = SILENT) -> Kept:
    """Return what stays of a voice for a Shape, by the spec's importance."""
    counts = group_counts(voice, sizes(voice.model.config, shape))
    wanted = [group for group in groups(voice) if counts[group.name] < group.size]
    return choose(voice, shape, measure_importance(voice, spec, wanted, progress) if wanted else {})


def shape_for(voice: Voice, spec: PruneSpec) -> Shape:
    """Return the Shape that removes an amount of some parts, channels and coupling layers.

    Raises:
        InputError: none of the parts has a lever.
    """
    levers: dict[str, Any] = {}
    if "decoder" in spec.parts:
        levers["decoder_width"] = 1 - spec.amount
    if "text_encoder" in spec.parts:
        levers["ffn_width"] = 1 - spec.amount
    if "flow" in spec.parts:
        levers["flows"] = max(1, round((1 - spec.amount) * sizes_of(voice.model.config).flows))
    if not levers:
        raise InputError(
            "The duration predictor has nothing to shrink: choose decoder, text encoder or flow."
        )
    return Shape(**levers)


@dataclass(frozen=True)
class Survivor:
    """What stays of a layer."""

    name: str
    """Its name in the pruned voice."""
    kept: Mapping[int, tuple[int, ...]]
    """Dimension of the weight -> indices that stay, in their new order; others stay whole."""


def choice_for(voice: Voice, spec: PruneSpec, progress: Progress = SILENT) -> Kept:
    """Return what stays of a voice for a structured spec.

    Raises:
        InputError: the spec is gradual: each step chooses among what is left.
    """
    if len(spec.schedule_amounts()) > 1:
        raise InputError("What stays of a voice is known for one cut only: leave the steps out.")
    return chosen(voice, spec, spec.shape or shape_for(voice, spec), progress)


def survivor(original: Voice, pruned: Voice, choice: Kept, layer: str) -> Survivor | None:
    """Return what stays of one of the original's layers, None if all of it is removed."""
    name = layer
    kept: dict[int, tuple[int, ...]] = {}
    for group in groups(original):
        stays = choice.get(group.name)
        if stays is None:
            continue
        for parameter, dimension in group.slices(original.model):
            if parameter == f"{layer}.weight":
                kept[dimension] = stays
        for block, modules in enumerate(group.blocks):
            if f"{layer}.".startswith(tuple(f"{module}." for module in modules)):
                if block not in stays:
                    return None
                name = _renamed(name, group, stays.index(block), len(stays))
                break
    if layer == "decoder.conv_pre" and latents_are_flipped(original, pruned):
        kept[1] = tuple(reversed(range(original.model.decoder.conv_pre.weight.shape[1])))
    before = original.model.get_parameter(f"{layer}.weight").shape
    for dimension, size in enumerate(pruned.model.get_parameter(f"{name}.weight").shape):
        # The WaveNet layer that is now last has lost the half that fed the next.
        there = kept.get(dimension, tuple(range(before[dimension])))
        if len(there) != size:
            kept[dimension] = there[-size:]
    return Survivor(name, kept)


def _renamed(name: str, group: Group, new: int, left: int) -> str:
    """The name with the block's new number, where so many blocks are left.

    Of groups within each other the inner one comes first, while its path is still the old one.
    """
    if group.name == BRANCHES:
        stage, _, rest = name.removeprefix(f"{RESBLOCKS}.").partition(".")
        return f"{RESBLOCKS}.{int(stage) // group.size * left + new}.{rest}"
    if group.name.endswith(".wavenet"):
        return f"{name.rpartition('.')[0]}.{new}"
    return f"{group.name}.{new}.{name.removeprefix(f'{group.name}.').partition('.')[2]}"


def choose(voice: Voice, shape: Shape, scores: Mapping[str, np.ndarray] | None = None) -> Kept:
    """Return what stays of a voice for a Shape: of every group the members that matter most.

    Groups that stay whole are left out. `scores` has an importance of each member by group name;
    groups that it lacks go by weight norm.

    Raises:
        InputError: the voice does not have a lever or so many layers, or is damaged.
    """
    counts, scores = group_counts(voice, sizes(voice.model.config, shape)), scores or {}
    kept = {}
    for group in groups(voice):
        count = counts[group.name]
        if count == group.size:
            continue
        known = scores.get(group.name)
        found = weight_norm(voice, group) if known is None else known
        if not np.isfinite(found).all():
            raise not_finite(voice, f"the importance of {group.name}")
        if group.name == FLOWS:
            kept[group.name] = _best_flows(found, count)
        elif group.lever == "wavenet_layers" and voice.model.config.wavenet_dilation_rate != 1:
            kept[group.name] = tuple(range(count))  # the dilation depends on the place
        else:
            kept[group.name] = tuple(sorted(np.argsort(-found, kind="stable")[:count].tolist()))
    return kept


def _best_flows(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """The `count` couplings of the largest total importance among those that alternate."""
    # best[top]: (total, indices) of the couplings below `top`, an odd number of places apart.
    tops = range(len(scores) + 1)
    best: dict[int, tuple[float, tuple[int, ...]]] = dict.fromkeys(tops, (0.0, ()))
    for _ in range(count):
        longer = {
            top: [(best[k][0] + scores[k], (*best[k][1], k)) for k in below if k in best]
            for top, below in ((top, range(top - 1, -1, -2)) for top in tops)
        }
        best = {top: max(options) for top, options in longer.items() if options}
    return best[len(scores)][1]


def cut(voice: Voice, kept: Kept, **changes: Any) -> Voice:
    """Return a smaller voice of what `choose` let stay; the voice given stays as it is.

    Removing a member is the same as setting what it contributes to zero: a channel's outputs, a
    branch's share of a stage's mean, the last convolution of a coupling or WaveNet layer. Only an
    encoder layer is skipped, as in a shorter encoder. Tensors that do not change are shared.

    `changes` are other fields of the new Voice, such as `recipe`.
    """
    config, model = voice.model.config, voice.model
    kept = whole(voice, kept)
    smaller_model = empty_model(_smaller_config(config, kept))
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    for group in groups(voice):
        if group.blocks or len(kept[group.name]) == group.size:
            continue
        for name, dimension in group.slices(model):
            indices = torch.tensor(kept[group.name], device=tensors[name].device)
            tensors[name] = tensors[name].index_select(dimension, indices)
    tensors = _without_branches(tensors, kept[BRANCHES], config)
    for net in (f"{FLOWS}.{flow}.wavenet" for flow in range(config.prior_encoder_num_flows)):
        tensors = _without_steps(tensors, net, kept[net], config)
    tensors = _renumbered(tensors, ENCODER_LAYERS, kept[ENCODER_LAYERS])
    tensors = _renumbered(tensors, FLOWS, kept[FLOWS])
    if (config.prior_encoder_num_flows - len(kept[FLOWS])) % 2:
        tensors["decoder.conv_pre.weight"] = tensors["decoder.conv_pre.weight"].flip(1)
    smaller_model.load_state_dict(tensors, strict=True, assign=True)
    for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
        setattr(smaller_model, name, getattr(model, name))
    return dataclasses.replace(voice, model=smaller_model, **changes)


def _smaller_config(config: VitsConfig, kept: Kept) -> VitsConfig:
    """The configuration of what stays."""
    result, now = copy.deepcopy(config), sizes_of(config)
    result.upsample_initial_channel = len(kept["decoder.conv_pre"])
    for name in ("resblock_kernel_sizes", "resblock_dilation_sizes"):
        setattr(result, name, [getattr(config, name)[branch] for branch in kept[BRANCHES]])
    result.num_hidden_layers = len(kept[ENCODER_LAYERS])
    result.ffn_dim = len(kept[f"{ENCODER_LAYERS}.0.feed_forward.conv_1"])
    result.prior_encoder_num_flows = len(kept[FLOWS])
    result.prior_encoder_num_wavenet_layers = len(kept[f"{FLOWS}.0.wavenet"])
    if now.inner_channels is None:
        return result
    stages = range(len(now.stage_channels))
    first = [f"{RESBLOCKS}.{stage * now.branches}.convs1.0" for stage in stages]
    inner = [len(kept[name]) for name in first]
    outer = [len(kept[f"decoder.upsampler.{stage}"]) for stage in stages]
    plain = inner == outer and not getattr(config, "resblock_inner_channels", None)
    return result if plain else with_inner_channels(result, inner)


def _without_branches(
    tensors: dict[str, torch.Tensor], kept: tuple[int, ...], config: VitsConfig
) -> dict[str, torch.Tensor]:
    """A decoder of fewer branches.

    A stage divides the sum of its branches by their number. With fewer the quotient would grow, so
    the layer that reads it is scaled down; the leaky ReLU between lets a positive factor pass.
    """
    branches, stages = len(config.resblock_kernel_sizes), len(config.upsample_rates)
    if len(kept) == branches:
        return tensors
    readers = [f"decoder.upsampler.{stage}.weight" for stage in range(1, stages)]
    for name in [*readers, "decoder.conv_post.weight"]:
        tensors = {**tensors, name: tensors[name] * (len(kept) / branches)}
    blocks = [stage * branches + branch for stage in range(stages) for branch in kept]
    return _renumbered(tensors, RESBLOCKS, blocks)


def _without_steps(
    tensors: dict[str, torch.Tensor], net: str, kept: tuple[int, ...], config: VitsConfig
) -> dict[str, torch.Tensor]:
    """A WaveNet of fewer layers. The last one loses the half of its rows that fed the next."""
    layers, hidden = config.prior_encoder_num_wavenet_layers, config.hidden_size
    if len(kept) == layers:
        return tensors
    result = dict(tensors)
    for kind in ("weight", "bias"):
        last = f"{net}.res_skip_layers.{kept[-1]}.{kind}"
        if kept[-1] < layers - 1:
            result[last] = tensors[last][hidden:].clone()
        conditioning = f"{net}.cond_layer.{kind}"
        if conditioning in tensors:
            pieces = tensors[conditioning].split(2 * hidden)
            result[conditioning] = torch.cat([pieces[step] for step in kept])
    result = _renumbered(result, f"{net}.in_layers", kept)
    return _renumbered(result, f"{net}.res_skip_layers", kept)


def _renumbered(
    tensors: dict[str, torch.Tensor], blocks: str, kept: Sequence[int]
) -> dict[str, torch.Tensor]:
    """The tensors less those of the blocks that go, the blocks that stay numbered from 0."""
    result, prefix = {}, f"{blocks}."
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            result[name] = tensor
            continue
        index, _, rest = name.removeprefix(prefix).partition(".")
        if int(index) in kept:
            result[f"{prefix}{kept.index(int(index))}.{rest}"] = tensor
    return result
