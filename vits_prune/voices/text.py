"""Text to the ids that a voice reads, sentence by sentence, and what had to be dropped on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


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
