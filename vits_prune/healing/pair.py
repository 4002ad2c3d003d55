"""A pruned voice and its teacher: whether they belong together, and what there is to learn."""

from __future__ import annotations

import torch

from vits_prune.errors import InputError
from vits_prune.voices.voice import PARTS, Voice

_SAME = {
    "vocab_size": "vocabulary",
    "flow_size": "size of the flow",
    "hidden_size": "size of the hidden states",
    "num_speakers": "number of speakers",
    "speaker_embedding_size": "size of the speakers' embeddings",
    "use_stochastic_duration_prediction": "kind of duration predictor",
}


def check_pair(pruned: Voice, teacher: Voice) -> None:
    """Whether the teacher can teach: parts may have been removed, but what goes in and comes out must be the same.

    Raises:
        InputError: it is not.
    """
    ours, theirs = pruned.model.config, teacher.model.config
    facts = {words: (getattr(ours, name), getattr(theirs, name)) for name, words in _SAME.items()}
    facts |= {"sampling rate": (pruned.sampling_rate, teacher.sampling_rate), "hop length": (pruned.hop_length, teacher.hop_length)}
    for what, (mine, other) in facts.items():
        if mine != other:
            raise InputError(
                f"{teacher.name} cannot teach this voice: its {what} is {other}, the pruned voice's is {mine}. "
                "Give the voice it was pruned from."
            )


def parts_to_train(pruned: Voice, teacher: Voice) -> tuple[str, ...]:
    """The parts that differ from the teacher's; with the text encoder the durations, which are read off what it makes.

    Raises:
        InputError: none does, or the two do not belong together.
    """
    check_pair(pruned, teacher)
    differing = {part for part in PARTS if not _equal(pruned.parts()[part], teacher.parts()[part])}
    if not differing:
        raise InputError(f"{pruned.name} has the very weights of the voice that is to teach it: there is nothing to heal. Prune it first.")
    if "text_encoder" in differing:
        differing.add("duration_predictor")
    return tuple(part for part in PARTS if part in differing)


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].shape == theirs[name].shape and torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine
    )
