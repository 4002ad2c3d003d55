"""Texts to learn from: built-in or a user's sentences, new ones of their words, or random ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np

from vits_prune.errors import InputError
from vits_prune.synthesis.texts import load_calibration_texts
from vits_prune.voices.voice import Voice, draw_texts, spoken_language

_WORDS = (4, 10)
"""Fewest words of a new sentence, and one more than the most: the length of a Harvard sentence."""
_ENOUGH_WORDS = 20
_UNSPACED = re.compile(
    r"\[\[|[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""Where blanks do not separate words: phonemes in [[ ]], Thai, Lao, Tibetan, Burmese, Khmer,
Japanese and Chinese."""
_OTHER_SEED = 1_000_003

log = logging.getLogger(__name__)


def training_texts(
    voice: Voice, texts: Sequence[str] | None, count: int, seed: int
) -> tuple[str, ...]:
    """Return texts to learn from, in the order in which they are used.

    New sentences of the same words follow the given ones. Words in new orders teach sounds as well
    as meaningful sentences, and there is no end to them.

    Args:
        voice: the teacher.
        texts: a user's; None for built-in English sentences or, in other languages, random ones.
        count: how many at most.
        seed: of the order and of the words.

    Raises:
        InputError: there are none, or the voice has no symbols to draw from.
    """
    if texts is not None and not any(text.strip() for text in texts):
        raise InputError(
            "There are no texts to learn from: give some, or leave them out for built-in ones."
        )
    if texts is None and spoken_language(voice) != "en":
        return draw_texts(voice, count, seed)
    given = _given(texts)
    random = np.random.default_rng((seed, 0xC0))
    chosen = [given[i] for i in random.permutation(len(given))[:count]]
    if texts is not None and len(chosen) < len(given):
        log.warning(
            "%d of %d texts are left out, for the plan has %d lessons: ask for more lessons.",
            len(given) - count, len(given), count,
        )  # fmt: skip
    new = _new_sentences(given, count - len(chosen), random)
    if not new:
        return tuple(chosen)
    mixed = [*chosen, *new]
    return tuple(mixed[i] for i in random.permutation(len(mixed)))


def other_texts(
    voice: Voice, texts: Sequence[str] | None, count: int, seed: int
) -> tuple[str, ...]:
    """Return texts like those of `training_texts` that are not among them.

    They show how a voice does on what it did not learn from. Where a user's texts have too few
    words to make others of, they are returned themselves.
    """
    if texts is None and spoken_language(voice) != "en":
        return draw_texts(voice, count, seed + _OTHER_SEED)
    given = _given(texts)
    new = _new_sentences(given, count, np.random.default_rng((seed, 0xC1)))
    return new or tuple(given[:count])


def _given(texts: Sequence[str] | None) -> list[str]:
    return [text for text in (load_calibration_texts() if texts is None else texts) if text.strip()]


def _new_sentences(
    given: Sequence[str], count: int, random: np.random.Generator
) -> tuple[str, ...]:
    """Return sentences of the words of others; none if they have too few words."""
    words = [
        word.strip(".,;:!?\"'()«»“”…。！？")
        for text in given
        if not _UNSPACED.search(text)
        for word in text.split()
    ]
    words = [word for word in words if word]
    if len(set(words)) < _ENOUGH_WORDS:
        return ()
    return tuple(
        " ".join(words[i] for i in random.integers(len(words), size=random.integers(*_WORDS))) + "."
        for _ in range(count)
    )
