"""The pruned voice as a student: whether a teacher fits it, which parts learn, what stays zero."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.files import expanded
from vits_prune.healing.plan import HealResult
from vits_prune.healing.storage import Checkpoints
from vits_prune.healing.teacher import MAX_TOKENS
from vits_prune.pruning.layers import prunable_layers
from vits_prune.synthesis.inference import encode, log_durations, speaker_embedding
from vits_prune.synthesis.speak import Delivery
from vits_prune.voices.voice import PARTS, Voice

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
_FURTHEST = 0.2
"""Logarithms of durations are moved by this much at most."""
_HALVINGS = 24


def best(folder: str | Path, pruned: Voice, *, stopped: str = "") -> HealResult | None:
    """Return the best checkpoint in a folder, or the newest where none has a score; None for none.

    `folder` and `pruned` are what `heal` was given; `stopped` says in the recipe why the healing
    ended early.

    Raises:
        InputError: the checkpoints are of another voice.
        DamagedFileError: none of them can be read.
    """
    found = Checkpoints(expanded(folder) / "checkpoints").kept()
    if found is None:
        return None
    weights, facts = found
    shapes = {name: tensor.shape for name, tensor in pruned.model.named_parameters()}
    if any(shapes.get(name) != tensor.shape for name, tensor in weights.items()):
        raise InputError(
            f"The checkpoints in {folder} belong to another voice than {pruned.name}: give the "
            "pruned voice that was healed."
        )
    entry = {**facts.get("healed", {}), "steps": facts["step"]}
    if stopped:
        entry["stopped"] = stopped
    weights = {name: tensor.to(pruned.device) for name, tensor in weights.items()}
    voice = pruned.with_weights(restored(weights, pruned))
    return HealResult.from_entry(voice, entry, facts.get("score"), facts.get("seconds", 0.0))


def masks(voice: Voice) -> dict[str, torch.Tensor]:
    """Return for each prunable layer with zeros a float32 mask: 0 at a zero, 1 elsewhere."""
    weights = dict(voice.model.named_parameters())
    names = [layer.parameter for layer in prunable_layers(voice)]
    found = {name: (weights[name] != 0).to(weights[name]) for name in names}
    return {name: mask for name, mask in found.items() if not bool(mask.all())}


def restored(weights: Mapping[str, torch.Tensor], pruned: Voice) -> dict[str, torch.Tensor]:
    """Return weights with the zeros of the pruned voice in place, to the bit."""
    before, found = dict(pruned.model.named_parameters()), dict(weights)
    for name, mask in masks(pruned).items():
        if name in found:
            found[name] = torch.where(mask.bool(), found[name], before[name].to(found[name]))
    return found


def parts_to_train(pruned: Voice, teacher: Voice) -> tuple[str, ...]:
    """Return the parts that differ from the teacher's.

    Durations are predicted from the text encoder's states, so they learn whenever it does.

    Raises:
        InputError: no part differs, or the two voices do not belong together.
    """
    check_pair(pruned, teacher)
    differing = {part for part in PARTS if not _equal(pruned.parts()[part], teacher.parts()[part])}
    if not differing:
        raise InputError(
            f"{pruned.name} has the same weights as its teacher, so there is nothing to heal: "
            "prune it first."
        )
    if "text_encoder" in differing:
        differing.add("duration_predictor")
    return tuple(part for part in PARTS if part in differing)


def check_recordings(trained: Collection[str]) -> None:
    """Raise InputError if the decoder, which alone learns from recordings, is not trained."""
    if "decoder" not in trained:
        raise InputError(
            "Recordings teach the decoder, and this voice's decoder is the original's: heal "
            "without recordings, or prune the decoder too."
        )


def check_pair(pruned: Voice, teacher: Voice) -> None:
    """Raise InputError unless the teacher can teach the pruned voice.

    Parts may have been removed, but inputs and outputs must be the same.
    """
    ours, theirs = pruned.model.config, teacher.model.config
    facts = {words: (getattr(ours, name), getattr(theirs, name)) for name, words in _SAME.items()}
    facts |= {
        "sampling rate": (pruned.sampling_rate, teacher.sampling_rate),
        "hop length": (pruned.hop_length, teacher.hop_length),
    }
    wrong = [
        f"its {what} is {other}, the pruned voice's is {mine}"
        for what, (mine, other) in facts.items()
        if mine != other
    ]
    if pruned.tokenizer.symbols != teacher.tokenizer.symbols:
        wrong.append("its vocabulary has other symbols")
    if wrong:
        raise InputError(
            f"{teacher.name} cannot teach this voice: {wrong[0]}. Give the one it was pruned from."
        )
    if _is_another(pruned, teacher):
        raise InputError(
            f"{teacher.name} ({teacher.origin.reference}) is not the voice that this one was "
            f"pruned from, which is {pruned.origin.reference}: give that one."
        )


def _is_another(pruned: Voice, teacher: Voice) -> bool:
    """Return whether the teacher is certainly not the original; copies under other names are fine.

    Pruning leaves the embeddings of the symbols alone. Healing changes them; after it only two
    published names that differ prove anything.
    """
    tables = (voice.model.text_encoder.embed_tokens.weight for voice in (pruned, teacher))
    ours, theirs = (table.detach().cpu().float() for table in tables)
    if ours.shape != theirs.shape:
        return True
    # A voice that was saved with fewer bits differs a little and is still itself.
    unlike = bool((ours - theirs).abs().mean() > _UNLIKE * theirs.abs().mean())
    if not unlike or "pruned" not in pruned.recipe:
        return False
    published = all(voice.origin.revision for voice in (pruned, teacher))
    named = published and pruned.origin.reference.lower() != teacher.origin.reference.lower()
    return named or "healed" not in pruned.recipe


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(tensor.cpu(), theirs[name].cpu()) for name, tensor in mine.items()
    )


class LengthMatcher:
    """Makes a healed voice take as long as its teacher on sentences that nobody learnt from.

    Durations learnt from some hundred sentences are too even on others, and so too short. The
    speakers take turns.
    """

    def __init__(self, teacher: Voice, sentences: Sequence[tuple[int, ...]], seed: int) -> None:
        self._sentences = tuple(ids for ids in sentences if len(ids) <= MAX_TOKENS)
        self._seed = seed
        self._pace = Delivery().for_voice(teacher)
        self._wanted = self._frames(self._log_durations(teacher), 0.0)

    def match(self, voice: Voice) -> Voice:
        """Return the voice with the length of the teacher's sentences, as far as that can be told.

        The predictor's last layer is affine, so that all logarithms move alike.
        """
        if not self._sentences:
            return voice
        try:
            ours = self._log_durations(voice)
        except ValueError:  # the spline of a stochastic predictor refuses infinite inputs
            return voice
        if not np.isfinite(ours).all():
            return voice
        low, high = -_FURTHEST, _FURTHEST
        for _ in range(_HALVINGS):  # frames, rounded up token by token, grow with what is added
            middle = (low + high) / 2
            short = self._frames(ours, middle) < self._wanted
            low, high = (middle, high) if short else (low, middle)
        return voice.with_weights(_with_longer_tokens(voice, (low + high) / 2))

    def _log_durations(self, voice: Voice) -> np.ndarray:
        """Return the logarithms of the frames of all tokens, one sentence after the other."""
        found = [np.zeros(0)]
        for number, ids in enumerate(self._sentences):
            one = voice.with_speaker(number % len(voice.speakers)) if voice.speakers else voice
            with torch.inference_mode():
                hidden, key = encode(one, ids)[0], (self._seed, number)
                embedding = speaker_embedding(one)
                logarithms = log_durations(voice.model, hidden, embedding, key, self._pace)
            found.append(logarithms.flatten().double().cpu().numpy())
        return np.concatenate(found)

    def _frames(self, logarithms: np.ndarray, added: float) -> float:
        frames = np.exp(np.minimum(logarithms + added, 6.0)) / self._pace.speaking_rate
        return float(np.ceil(frames).sum())


def _with_longer_tokens(voice: Voice, added: float) -> dict[str, torch.Tensor]:
    """Return the tensor, by name, that adds a number to the logarithm of every duration."""
    predictor = voice.model.duration_predictor
    if voice.model.config.use_stochastic_duration_prediction:
        affine = predictor.flows[0]  # inverted: (logarithms - translate) / exp(log_scale)
        changed = affine.translate.detach().clone()
        changed[0] -= added * torch.exp(affine.log_scale[0].detach())
        return {"duration_predictor.flows.0.translate": changed}
    return {"duration_predictor.proj.bias": predictor.proj.bias.detach() + added}
