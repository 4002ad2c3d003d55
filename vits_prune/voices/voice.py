"""Voice: a VITS model ready to speak, its language, and the protocol of what reads text to it."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vits_prune.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import VitsModel

M = TypeVar("M", bound="nn.Module")

_WHISPER_CODES = {"nb": "no", "zlm": "ms", "jv": "jw", "fil": "tl"}
"""Languages that Whisper has under another code than the standard's."""
PARTS = ("text_encoder", "duration_predictor", "flow", "decoder")
"""The four parts of VITS that run when it speaks, in order (Kim et al. 2021, arXiv:2106.06103)."""


@dataclass(frozen=True)
class FreeCut:
    """What loading leaves out: tensors that never run at inference, weight norm's magnitudes."""

    parameters: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Origin:
    """Where a voice came from."""

    family: str
    """hugging-face or piper."""
    reference: str
    """A hub id, "joe", or the name of a folder or file."""
    revision: str | None = None
    licence: str | None = None
    """Of the weights, as their publisher states it; None where nothing is stated."""


@dataclass(frozen=True)
class Sentence:
    """One sentence as a voice reads it."""

    text: str
    ids: tuple[int, ...]
    """Token ids, blanks included; none if the voice can say nothing of it."""
    tokens: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    """Characters or phonemes that the voice has no symbol for, each once."""


def is_letter(symbol: str) -> bool:
    """Return whether a symbol is one letter or one combining mark."""
    return len(symbol) == 1 and unicodedata.category(symbol)[0] in "LM"


class Tokenizer(Protocol):
    """What the package knows of a tokenizer, whatever the family of the voice."""

    @property
    def language(self) -> str | None:
        """Language tag or espeak-ng voice, such as "deu" or "en-us"; None if nothing names one."""

    @property
    def symbols(self) -> Mapping[str, tuple[int, ...]]:
        """Every symbol of the vocabulary with its ids."""

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters, marks and phonemes, sorted, that `spell` makes a text of."""

    def spell(self, letters: str) -> str:
        """Return a text that is read as these letters and spaces."""

    def sentences(self, text: str) -> Iterator[Sentence]:
        """Yield the sentences of a text in order."""

    def save(self, folder: str) -> None:
        """Write the files from which the family's loader makes this tokenizer again."""

    def piper_settings(self) -> dict[str, Any]:
        """Return what the .json of a Piper voice says of reading; InputError if Piper cannot."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A VITS voice with weight norm folded and only what runs at inference.

    Treat it as read-only: copies share tensors.

    Args:
        sampling_rate: samples per second.
        speaker: index of the speaker, None for a voice with one speaker.
        speakers: names of the speakers, empty for a voice with one.
        recipe: what was done to the weights since they were published, as JSON-able values.
    """

    model: VitsModel
    tokenizer: Tokenizer
    sampling_rate: int
    name: str
    origin: Origin
    speaker: int | None = None
    speakers: tuple[str, ...] = ()
    free_cut: FreeCut = FreeCut()
    recipe: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def hop_length(self) -> int:
        """Samples per frame of the latent sequence."""
        return math.prod(self.model.config.upsample_rates)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.model.device

    def parts(self) -> dict[str, nn.Module]:
        """Return the modules that run at inference, by part, in the order of PARTS."""
        return {part: getattr(self.model, part) for part in PARTS}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "recipe": dict(self.recipe)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "recipe": MappingProxyType(state["recipe"])})

    def with_weights(self, weights: Mapping[str, torch.Tensor], **changes: Any) -> Voice:
        """Return a Voice with the tensors {name in `named_parameters()`: tensor} for its own.

        All others are shared. `changes` are other fields of the new Voice, such as `recipe`.
        """
        return dataclasses.replace(self, model=copy_with_weights(self.model, weights), **changes)

    def with_speaker(self, speaker: int | str | None) -> Voice:
        """Return the same voice with another speaker, by index or name; InputError without it."""
        return dataclasses.replace(self, speaker=resolve_speaker(speaker, self.speakers, self.name))

    def to(self, device: torch.device | str) -> Voice:
        """Return a copy of this voice on another device, or itself if it is there already."""
        import torch

        if self.device == torch.device(device):
            return self
        moved = {name: tensor.to(device) for name, tensor in self.model.named_parameters()}
        return self.with_weights(moved)


def resolve_speaker(speaker: int | str | None, speakers: tuple[str, ...], name: str) -> int | None:
    """Return the index of a speaker given by index, by name, or not at all (then the first)."""
    if not speakers:
        if speaker in (None, 0, "0", ""):
            return None
        raise InputError(f"{name} has one speaker only: leave the speaker out.")
    if speaker is None or speaker == "":
        return 0
    if isinstance(speaker, str) and speaker in speakers:
        return speakers.index(speaker)
    try:
        index = -1 if isinstance(speaker, bool) else int(speaker)
    except (TypeError, ValueError, OverflowError):
        index = -1
    if not 0 <= index < len(speakers) or (isinstance(speaker, float) and speaker != index):
        raise InputError(
            f"{name} has no speaker {str(speaker)[:40]!r}: "
            f"choose 0 to {len(speakers) - 1} or one of its speaker names."
        )
    return index


def copy_with_weights(model: M, weights: Mapping[str, torch.Tensor]) -> M:
    """Return a copy of a model with some parameters replaced and all others shared."""
    from torch import nn

    parameters = dict(model.named_parameters())
    replaced: dict[int, nn.Parameter] = {}
    for name, tensor in weights.items():
        if tensor.shape != parameters[name].shape:
            raise ValueError(f"{name} is of shape {tuple(parameters[name].shape)}.")
        replaced[id(parameters[name])] = nn.Parameter(tensor, requires_grad=False)
    return _clone(model, replaced)


def without_masks(voice: Voice) -> Voice:
    """Return a voice whose weights are what the masks of `torch.nn.utils.prune` leave of them.

    A voice that has no such masks is returned itself.

    Raises:
        InputError: a layer's weights are made of others, as by weight norm.
    """
    from torch import nn
    from torch.nn.utils import prune
    from torch.nn.utils.parametrize import is_parametrized

    for name, module in voice.model.named_modules():
        hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
        if is_parametrized(module) or {"WeightNorm", "SpectralNorm"} & {*hooks}:
            what = f"Its layer {name} is parametrised by torch"
            raise InputError(f"{what}: make that permanent first (remove_parametrizations).")
    if not prune.is_pruned(voice.model):
        return voice
    copy = dataclasses.replace(voice, model=_clone(voice.model, {}))
    for module in copy.model.modules():
        for hook in [*module._forward_pre_hooks.values()]:
            if isinstance(hook, prune.BasePruningMethod):
                name = f"{hook._tensor_name}_orig"
                mine = nn.Parameter(module._parameters[name].detach().clone(), requires_grad=False)
                module._parameters[name] = mine  # `remove` writes to it
                prune.remove(module, hook._tensor_name)
    return copy


def _clone(module: M, replaced: Mapping[int, nn.Parameter]) -> M:
    """Make a module anew around the same tensors; copy.deepcopy takes several times as long."""
    clone = object.__new__(type(module))
    for name, value in vars(module).items():
        clone.__dict__[name] = value.copy() if isinstance(value, (dict, list, set)) else value
    for name, parameter in module._parameters.items():
        clone._parameters[name] = replaced.get(id(parameter), parameter)
    for name, child in module._modules.items():
        clone._modules[name] = None if child is None else _clone(child, replaced)
    return clone


def spoken_language(voice: Voice) -> str | None:
    """Return the language of a voice as Whisper names it ("en"), None if its tokenizer names none.

    Piper voices name their espeak-ng voice ("en-us"), hub checkpoints a language (MMS: ISO 639-3).
    """
    return language_of(voice.tokenizer.language) if voice.tokenizer.language else None


def language_of(tag: str) -> str | None:
    """Return the language of a tag as Whisper names it, None for one that is no tag.

    "azj-script_latin", "en-gb-x-rp" and "cmn" become "az", "en" and "zh".
    """
    import langcodes

    tag = tag.split("_")[0].split("-script")[0]
    try:
        found = langcodes.Language.get(langcodes.standardize_tag(tag, macro=True)).language
    except langcodes.LanguageTagError:
        return None
    return _WHISPER_CODES.get(found, found) if found else None


def draw_texts(voice: Voice, count: int, seed: int) -> tuple[str, ...]:
    """Return sentences of random words, all letters of the voice being equally likely."""
    import numpy as np

    letters = voice.tokenizer.letters
    if not letters:
        raise InputError(f"{voice.name} has no letters to draw from: give texts to calibrate on.")
    random = np.random.default_rng(seed)

    def word() -> str:
        picked = random.integers(len(letters), size=random.integers(2, 8))
        return "".join(letters[i] for i in picked)

    return tuple(
        voice.tokenizer.spell(" ".join(word() for _ in range(random.integers(5, 12))))
        for _ in range(count)
    )
