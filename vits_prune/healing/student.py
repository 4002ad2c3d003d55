"""best: the voice that a healing's folder holds, whether the healing came to its end or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vits_prune.errors import InputError
from vits_prune.healing.storage import Checkpoints
from vits_prune.pruning.layers import prunable_layers
from vits_prune.voices.voice import PARTS, Voice


def best(folder: str | Path, pruned: Voice, *, stopped: str = "") -> Voice | None:
    """The voice of the best checkpoint in a folder, of the newest where none was measured; None where there is none.

    Its recipe says which: `voice.recipe["healed"][-1]["steps"]`.

    Args:
        folder: that `heal` was given.
        pruned: the voice that `heal` was given.
        stopped: why the healing ended early, for the recipe; empty if it did not.

    Raises:
        InputError: the checkpoints are of another voice.
    """
    found = Checkpoints(Path(folder) / "checkpoints").kept()
    if found is None:
        return None
    weights, facts = found
    shapes = {name: tensor.shape for name, tensor in pruned.model.named_parameters()}
    if any(shapes.get(name) != tensor.shape for name, tensor in weights.items()):
        raise InputError(
            f"The checkpoints in {folder} belong to another voice than {pruned.name}: give the pruned voice that was healed."
        )
    done = {
        **facts.get("healed", {}),
        "steps": facts["step"],
        **({"stopped": stopped} if stopped else {}),
    }
    weights = restored({name: tensor.to(pruned.device) for name, tensor in weights.items()}, pruned)
    return pruned.with_weights(weights, recipe=healed_recipe(pruned, done))


def healed_recipe(pruned: Voice, done: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe of a healed voice: that of the pruned one, and behind earlier healings what was done now."""
    return MappingProxyType(
        {**pruned.recipe, "healed": [*pruned.recipe.get("healed", ()), dict(done)]}
    )


def masks(voice: Voice) -> dict[str, torch.Tensor]:
    """Parameter name -> 1 where a weight may learn and 0 where it is an exact zero, for prunable layers that have any.

    Weights are float32; so are the masks, since torch multiplies lists of tensors of one kind at once.
    """
    weights = dict(voice.model.named_parameters())
    found = {
        layer.parameter: (weights[layer.parameter] != 0).to(weights[layer.parameter])
        for layer in prunable_layers(voice)
    }
    return {name: mask for name, mask in found.items() if not bool(mask.all())}


def restored(weights: Mapping[str, torch.Tensor], pruned: Voice) -> dict[str, torch.Tensor]:
    """Weights with the pruned voice's zeros in place, to the bit."""
    before = dict(pruned.model.named_parameters())
    held = masks(pruned)
    return {
        name: torch.where(held[name].bool(), weight, before[name].to(weight))
        if name in held
        else weight
        for name, weight in weights.items()
    }


_SAME = {
    "vocab_size": "vocabulary",
    "flow_size": "size of the flow",
    "hidden_size": "size of the hidden states",
    "num_speakers": "number of speakers",
    "speaker_embedding_size": "size of the speakers' embeddings",
    "use_stochastic_duration_prediction": "kind of duration predictor",
}

_UNLIKE = 0.05

"""Embeddings of two voices differ by more than this share of their size."""


def check_pair(pruned: Voice, teacher: Voice) -> None:
    """Whether the teacher can teach: parts may have been removed, but what goes in and comes out must be the same.

    Raises:
        InputError: it is not.
    """
    ours, theirs = pruned.model.config, teacher.model.config
    facts = {words: (getattr(ours, name), getattr(theirs, name)) for name, words in _SAME.items()}
    facts |= {
        "sampling rate": (pruned.sampling_rate, teacher.sampling_rate),
        "hop length": (pruned.hop_length, teacher.hop_length),
    }
    for what, (mine, other) in facts.items():
        if mine != other:
            raise InputError(
                f"{teacher.name} cannot teach this voice: its {what} is {other}, the pruned voice's is {mine}. "
                "Give the voice it was pruned from."
            )
    if pruned.tokenizer.symbols != teacher.tokenizer.symbols:
        raise InputError(
            f"{teacher.name} cannot teach this voice: its vocabulary has other symbols. Give the voice it was pruned from."
        )
    if _is_another(pruned, teacher):
        raise InputError(
            f"{teacher.name} ({teacher.origin.reference}) is not the voice that this one was pruned from, which is "
            f"{pruned.origin.reference}: give that one."
        )


def _is_another(pruned: Voice, teacher: Voice) -> bool:
    """Whether the teacher is certainly not what the voice was made of. A copy of it under another name or path is as good.

    Pruning leaves the embeddings of the symbols alone; healing does not, and then only two ids of the hub that differ tell.
    """
    ours, theirs = (
        voice.model.text_encoder.embed_tokens.weight.detach().cpu().float()
        for voice in (pruned, teacher)
    )
    if ours.shape != theirs.shape:
        return True
    unlike = bool(
        (ours - theirs).abs().mean() > _UNLIKE * theirs.abs().mean()
    )  # a voice saved with fewer bits is still itself
    if not unlike or "pruned" not in pruned.recipe:
        return False
    published = all(voice.origin.revision for voice in (pruned, teacher))
    named = published and pruned.origin.reference.lower() != teacher.origin.reference.lower()
    return named or "healed" not in pruned.recipe


def parts_to_train(pruned: Voice, teacher: Voice) -> tuple[str, ...]:
    """The parts that differ from the teacher's; with the text encoder the durations, which are read off what it makes.

    Raises:
        InputError: none does, or the two do not belong together.
    """
    check_pair(pruned, teacher)
    differing = {part for part in PARTS if not _equal(pruned.parts()[part], teacher.parts()[part])}
    if not differing:
        raise InputError(
            f"{pruned.name} has the very weights of the voice that is to teach it: there is nothing to heal. Prune it first."
        )
    if "text_encoder" in differing:
        differing.add("duration_predictor")
    return tuple(part for part in PARTS if part in differing)


def check_recordings(trained: Collection[str]) -> None:
    """Whether recordings can be learnt from by these parts.

    Raises:
        InputError: the decoder, which alone learns from them, is not among them.
    """
    if "decoder" not in trained:
        raise InputError(
            "Recordings teach the decoder, and this voice's decoder has nothing to learn, for it is the original's: "
            "heal without recordings, or prune the decoder too."
        )


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].shape == theirs[name].shape and torch.equal(mine[name].cpu(), theirs[name].cpu())
        for name in mine
    )
