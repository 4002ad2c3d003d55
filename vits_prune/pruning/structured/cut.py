"""Structured pruning: channels, branches and layers really removed, so that what is left is a smaller network of the same kind.

`choose` says what stays, `cut` makes the smaller voice. For a Hugging Face voice that is a plain VitsModel with a smaller VitsConfig.
"""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.pruning.shape import Shape, sizes, sizes_of, stage_channels
from vits_prune.pruning.structured.couplings import (
    BRANCHES,
    ENCODER_LAYERS,
    FLOWS,
    RESBLOCKS,
    Group,
    group_counts,
    groups,
)
from vits_prune.voices.architecture import VitsConfig, empty_model, with_inner_channels
from vits_prune.voices.voice import Voice

__all__ = ["Choice", "Group", "choose", "cut", "groups", "latents_are_flipped", "weight_norm"]

Importance = Callable[[Voice, Group], np.ndarray] | Mapping[str, np.ndarray]
"""How much each member of a group matters, float [size]: a function, or arrays by the group's name."""


@dataclass(frozen=True)
class Choice:
    """What stays of a voice, group by group."""

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Group name -> indices that stay, ascending; of a group that is not named all stays."""

    def to_dict(self) -> dict[str, list[int]]:
        """The indices as JSON-able values."""
        return {name: list(indices) for name, indices in self.kept.items()}


def weight_norm(voice: Voice, group: Group) -> np.ndarray:
    """L2 norm of all weights and biases that go with each member of a group, float64 [size] (Li et al. 2017, arXiv:1608.08710)."""
    parameters = dict(voice.model.named_parameters())
    squares = np.zeros(group.size)
    for name, dimension in group.slices(voice.model):
        squares += _channel_squares(parameters[name], dimension)
    for member, modules in enumerate(group.blocks):
        for module in modules:
            squares[member] += sum(
                float(p.detach().double().square().sum())
                for p in voice.model.get_submodule(module).parameters()
            )
    return np.sqrt(squares)


def _channel_squares(tensor: torch.Tensor, dimension: int) -> np.ndarray:
    """Sum of squares over all dimensions but one, float64 [size]."""
    return (
        tensor.detach()
        .movedim(dimension, 0)
        .reshape(tensor.shape[dimension], -1)
        .double()
        .square()
        .sum(1)
        .cpu()
        .numpy()
    )


def choose(voice: Voice, shape: Shape, importance: Importance = weight_norm) -> Choice:
    """What stays of a voice for a Shape: of every group the members that matter most, the first of equal ones.

    Args:
        voice: what is to be cut.
        shape: how much of it stays.
        importance: of the members of a group; groups that a mapping does not name go by weight norm.

    Raises:
        InputError: a lever that the voice does not have, more layers than there are, or an importance of another length or not a number.
    """
    counts = group_counts(voice, sizes(voice.model.config, shape))
    kept = {}
    for group in groups(voice):
        if counts[group.name] == group.size:
            continue
        scores = _scores(voice, group, importance)
        if group.name == FLOWS:
            kept[group.name] = _best_flows(scores, counts[group.name])
        elif group.lever == "wavenet_layers" and voice.model.config.wavenet_dilation_rate != 1:
            kept[group.name] = tuple(range(counts[group.name]))
        else:
            kept[group.name] = tuple(
                sorted(np.argsort(-scores, kind="stable")[: counts[group.name]].tolist())
            )
    return Choice(MappingProxyType(kept))


def _scores(voice: Voice, group: Group, importance: Importance) -> np.ndarray:
    if isinstance(importance, Mapping):
        given = importance.get(group.name)
        scores = weight_norm(voice, group) if given is None else given
    else:
        scores = importance(voice, group)
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (group.size,) or not np.isfinite(scores).all():
        raise InputError(f"The importance of {group.name} must be {group.size} finite numbers.")
    return scores


def _best_flows(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """The `count` coupling layers of the largest total importance among those that `_alternates` allows."""
    # best[m][top]: (total, indices) of m couplings below `top`, the highest an odd number of places below it.
    best: dict[int, tuple[float, tuple[int, ...]]] = dict.fromkeys(
        range(len(scores) + 1), (0.0, ())
    )
    for _ in range(count):
        longer = {}
        for top in range(len(scores) + 1):
            options = [
                (best[k][0] + scores[k], (*best[k][1], k))
                for k in range(top - 1, -1, -2)
                if k in best
            ]
            if options:
                longer[top] = max(options)
        best = longer
    return best[len(scores)][1]


def _alternates(kept: Sequence[int], flows: int) -> bool:
    """Whether the flow without the other couplings is again a plain one.

    Inference flips the channels before each coupling, the last coupling first. Without some of them an odd number of flips must remain
    before each, since two flips are none: then one flip does the same.
    """
    return all((above - flow) % 2 for above, flow in zip([*kept[1:], flows], kept, strict=True))


def latents_are_flipped(original: Voice, cut: Voice) -> bool:
    """Whether the cut voice's decoder reads its latents in the reverse order of channels: so where an odd number of couplings went."""
    flows = (voice.model.config.prior_encoder_num_flows for voice in (original, cut))
    return (next(flows) - next(flows)) % 2 == 1


def cut(voice: Voice, choice: Choice, **changes: Any) -> Voice:
    """A smaller voice of what was chosen to stay. The voice given stays as it is; tensors that did not change are shared.

    Removing a member is the same as setting what it contributes to zero: a channel's outputs, a branch's share of a stage's mean, a
    coupling's or WaveNet layer's convolution that ends it. Only an encoder layer is skipped, as in a shorter encoder.

    Args:
        voice: what is cut.
        choice: what stays, as `choose` gives it.
        changes: other fields of the new Voice, such as `recipe`.

    Raises:
        InputError: indices that are not there, or a shape that no VITS decoder, encoder or flow can have.
    """
    config, model = voice.model.config, voice.model
    there = groups(voice)
    kept = _checked(choice, there)
    smaller = _smaller_config(config, kept)
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    for group in there:
        if group.blocks or len(kept[group.name]) == group.size:
            continue
        for name, dimension in group.slices(model):
            tensors[name] = tensors[name].index_select(
                dimension, torch.tensor(kept[group.name], device=tensors[name].device)
            )
    tensors = _without_branches(tensors, kept[BRANCHES], config)
    for flow in range(config.prior_encoder_num_flows):
        tensors = _without_steps(
            tensors, f"{FLOWS}.{flow}.wavenet", kept[f"{FLOWS}.{flow}.wavenet"], config
        )
    tensors = _renumbered(tensors, ENCODER_LAYERS, kept[ENCODER_LAYERS])
    tensors = _renumbered(tensors, FLOWS, kept[FLOWS])
    if (config.prior_encoder_num_flows - len(kept[FLOWS])) % 2:
        tensors["decoder.conv_pre.weight"] = tensors["decoder.conv_pre.weight"].flip(1)
    smaller_model = empty_model(smaller)
    smaller_model.load_state_dict(tensors, strict=True, assign=True)
    for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
        setattr(smaller_model, name, getattr(model, name))
    return dataclasses.replace(voice, model=smaller_model, **changes)


def _checked(choice: Choice, there: Sequence[Group]) -> dict[str, tuple[int, ...]]:
    """The indices that stay of every group.

    Raises:
        InputError: a group or an index that is not there, or nothing left.
    """
    unknown = set(choice.kept) - {group.name for group in there}
    if unknown:
        raise InputError(f"This voice has no group {str(min(unknown, key=str))[:80]!r} to cut.")
    kept = {}
    for group in there:
        indices = tuple(choice.kept.get(group.name, range(group.size)))
        whole = all(
            isinstance(index, numbers.Integral) and not isinstance(index, bool) for index in indices
        )
        if (
            not whole
            or not indices
            or not 0 <= indices[0] <= indices[-1] < group.size
            or list(indices) != sorted(set(indices))
        ):
            raise InputError(
                f"What stays of {group.name} must be indices from 0 to {group.size - 1}, ascending, and at least one."
            )
        kept[group.name] = tuple(int(index) for index in indices)
    return kept


def _smaller_config(config: VitsConfig, kept: Mapping[str, tuple[int, ...]]) -> VitsConfig:
    """The configuration of what stays.

    Raises:
        InputError: no configuration has these numbers of channels or layers.
    """
    initial, stages = len(kept["decoder.conv_pre"]), len(config.upsample_rates)
    channels = stage_channels(initial, stages)
    uneven = initial % 2**stages and initial != config.upsample_initial_channel
    if uneven or channels != tuple(
        len(kept[f"decoder.upsampler.{stage}"]) for stage in range(stages)
    ):
        raise InputError("What stays of the decoder must halve from stage to stage, as VITS does.")
    inner = _inner_channels(config, kept)
    if not _alternates(kept[FLOWS], config.prior_encoder_num_flows):
        raise InputError(
            f"Coupling layers {', '.join(map(str, kept[FLOWS]))} alone are no flow of VITS: an odd number of places must lie "
            f"from each to the next, and from the last to {config.prior_encoder_num_flows}."
        )
    steps = [kept[f"{FLOWS}.{flow}.wavenet"] for flow in range(config.prior_encoder_num_flows)]
    if config.wavenet_dilation_rate != 1 and any(
        indices != tuple(range(len(indices))) for indices in steps
    ):
        raise InputError(
            "The WaveNet layers of this voice are dilated by their place: only the last ones can go."
        )
    result = copy.deepcopy(config)
    result.upsample_initial_channel = initial
    for name in ("resblock_kernel_sizes", "resblock_dilation_sizes"):
        setattr(result, name, [getattr(config, name)[branch] for branch in kept[BRANCHES]])
    result.num_hidden_layers = len(kept[ENCODER_LAYERS])
    result.prior_encoder_num_flows = len(kept[FLOWS])
    result.prior_encoder_num_wavenet_layers = _same(
        "WaveNet layers", [len(indices) for indices in steps]
    )
    feeds = [
        f"{ENCODER_LAYERS}.{layer}.feed_forward.conv_1" for layer in range(config.num_hidden_layers)
    ]
    result.ffn_dim = _same("feed-forward layers", [len(kept[name]) for name in feeds])
    return result if inner is None else with_inner_channels(result, inner)


def _inner_channels(config: VitsConfig, kept: Mapping[str, tuple[int, ...]]) -> list[int] | None:
    """Inner channels of the ResBlock1s by stage, None where they are as wide as their stage.

    Raises:
        InputError: the blocks of a stage differ, or are wider inside than their stage.
    """
    now = sizes_of(config)
    if now.inner_channels is None:
        return None
    inner, outer = [], []
    for stage in range(len(now.stage_channels)):
        blocks = [
            f"{RESBLOCKS}.{stage * now.branches + branch}.convs1." for branch in kept[BRANCHES]
        ]
        inner.append(
            _same(
                "residual blocks of a stage",
                [len(kept[name]) for name in kept if name.startswith(tuple(blocks))],
            )
        )
        outer.append(len(kept[f"decoder.upsampler.{stage}"]))
    if any(inside > outside for inside, outside in zip(inner, outer, strict=True)):
        raise InputError(
            "A residual block must not be wider inside than its stage: cut its inner channels too."
        )
    return (
        None if inner == outer and not getattr(config, "resblock_inner_channels", None) else inner
    )


def _same(what: str, counts: Sequence[int]) -> int:
    if len(set(counts)) > 1:
        raise InputError(
            f"The {what} must all keep the same number, not {min(counts)} here and {max(counts)} there."
        )
    return counts[0]


def _without_branches(
    tensors: dict[str, torch.Tensor], kept: tuple[int, ...], config: VitsConfig
) -> dict[str, torch.Tensor]:
    """A decoder of fewer branches.

    A stage divides the sum of its branches by their number. With fewer the quotient would grow, so the layer that reads it is scaled down;
    the leaky ReLU between the two lets a positive factor pass.
    """
    branches, stages = len(config.resblock_kernel_sizes), len(config.upsample_rates)
    if len(kept) == branches:
        return tensors
    readers = [f"decoder.upsampler.{stage}.weight" for stage in range(1, stages)] + [
        "decoder.conv_post.weight"
    ]
    scaled = {name: tensors[name] * (len(kept) / branches) for name in readers}
    return _renumbered(
        {**tensors, **scaled},
        RESBLOCKS,
        [stage * branches + branch for stage in range(stages) for branch in kept],
    )


def _without_steps(
    tensors: dict[str, torch.Tensor], net: str, kept: tuple[int, ...], config: VitsConfig
) -> dict[str, torch.Tensor]:
    """A WaveNet of fewer layers. The one that is now last only adds to the output: the half of its rows that fed the next layer goes."""
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
            rows = torch.cat(
                [torch.arange(2 * hidden * step, 2 * hidden * (step + 1)) for step in kept]
            )
            result[conditioning] = tensors[conditioning].index_select(
                0, rows.to(tensors[conditioning].device)
            )
    return _renumbered(
        _renumbered(result, f"{net}.in_layers", kept), f"{net}.res_skip_layers", kept
    )


def _renumbered(
    tensors: dict[str, torch.Tensor], blocks: str, kept: Sequence[int]
) -> dict[str, torch.Tensor]:
    """The tensors less those of the blocks that go, the blocks that stay numbered from 0."""
    places = {old: new for new, old in enumerate(kept)}
    result = {}
    for name, tensor in tensors.items():
        index, dot, rest = (
            name.removeprefix(f"{blocks}.").partition(".")
            if name.startswith(f"{blocks}.")
            else ("", "", "")
        )
        if not dot:
            result[name] = tensor
        elif int(index) in places:
            result[f"{blocks}.{places[int(index)]}.{rest}"] = tensor
    return result
