"""Voice: a VITS model ready to speak, with what is needed to read text to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from vits_prune.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import VitsModel

    pass


PARTS = ("text_encoder", "duration_predictor", "flow", "decoder")

"""The four parts of VITS that run when it speaks, in the order in which they run (Kim et al. 2021, arXiv:2106.06103)."""


@dataclass(frozen=True)
class FreeCut:
    """What loading alone saved: tensors that never run at inference, and weight norm's second copy of its magnitudes."""

    parameters: int = 0
    """Parameters left out."""
    bytes: int = 0
    """Their size in memory, in bytes."""


@dataclass(frozen=True)
class Origin:
    """Where a voice came from."""

    family: str
    """"hugging-face" or "piper"."""
    reference: str
    """What was given to load_voice: a hub id, "joe", or a name of a folder or file."""
    revision: str | None = None
    """Commit of the hub repository that was loaded."""
    licence: str | None = None
    """Licence of the weights as their publisher states it, None where nothing is stated."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A VITS voice: weight norm folded, only what runs at inference. Treat it as read-only: copies share tensors."""

    model: VitsModel
    tokenizer: Tokenizer
    sampling_rate: int
    """Samples per second."""
    name: str
    origin: Origin
    speaker: int | None = None
    """Index of the speaker that speaks, None for a voice with one speaker."""
    speakers: tuple[str, ...] = ()
    """Names of the speakers, empty for a voice with one."""
    free_cut: FreeCut = FreeCut()
    recipe: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What was done to the weights since they were published, as JSON-able values; empty for an original."""

    @property
    def hop_length(self) -> int:
        """Samples per frame of the latent sequence."""
        product = 1
        for rate in self.model.config.upsample_rates:
            product *= rate
        return product

    @property
    def device(self) -> torch.device:
        return self.model.device

    def parts(self) -> dict[str, nn.Module]:
        """The modules that run at inference, by part, in the order of PARTS."""
        return {part: getattr(self.model, part) for part in PARTS}

    def with_weights(self, weights: Mapping[str, torch.Tensor], **changes: Any) -> Voice:
        """A Voice like this one with some tensors replaced; all others are shared, not copied.

        Args:
            weights: parameter name (as in `model.named_parameters()`) -> tensor of the same shape.
            changes: other fields of the new Voice, such as `recipe`.
        """
        from vits_prune.voices.architecture import copy_with_weights

        return dataclasses.replace(self, model=copy_with_weights(self.model, weights), **changes)

    def with_speaker(self, speaker: int | str | None) -> Voice:
        """The same voice spoken by another of its speakers, by index or by name.

        Raises:
            InputError: the voice has no such speaker.
        """
        return dataclasses.replace(self, speaker=resolve_speaker(speaker, self.speakers, self.name))

    def to(self, device: torch.device | str) -> Voice:
        """A copy of this voice on another device (itself where it is there already)."""
        import torch

        if self.device == torch.device(device):
            return self
        moved = {name: tensor.to(device) for name, tensor in self.model.named_parameters()}
        return self.with_weights(moved)


def resolve_speaker(speaker: int | str | None, speakers: tuple[str, ...], name: str) -> int | None:
    """The index of a speaker given by index, name or not at all (then the first).

    Raises:
        InputError: there is no such speaker.
    """
    if not speakers:
        if speaker in (None, 0, "0", ""):
            return None
        raise InputError(f"{name} has one speaker only: leave the speaker out.")
    if speaker is None or speaker == "":
        return 0
    if isinstance(speaker, str) and speaker in speakers:
        return speakers.index(speaker)
    try:
        index = int(speaker)
    except (TypeError, ValueError, OverflowError):
        index = -1
    if (
        isinstance(speaker, bool)
        or (isinstance(speaker, float) and speaker != index)
        or not 0 <= index < len(speakers)
    ):
        raise InputError(
            f"{name} has no speaker {str(speaker)[:40]!r}: choose 0 to {len(speakers) - 1} or one of its speaker names."
        )
    return index


@dataclass(frozen=True)
class Sentence:
    """One sentence as a voice reads it."""

    text: str
    ids: tuple[int, ...]
    """Token ids, blanks included."""
    tokens: tuple[str, ...]
    """The symbol behind each id, as long as `ids`."""
    dropped: tuple[str, ...] = ()
    """Characters or phonemes that the voice has no symbol for, in order of appearance, each once."""


class Tokenizer(Protocol):
    """What every family's tokenizer offers: this protocol is all that the rest of the house knows of it."""

    def sentences(self, text: str) -> Iterator[Sentence]:
        """The sentences of a text in order. A sentence of which nothing can be said has no ids."""
        ...

    def save(self, folder: str) -> None:
        """Write the files from which the family's loader makes this tokenizer again."""
        ...
