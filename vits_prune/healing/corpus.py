"""What a teacher is made to say: built-in or a user's sentences, new ones of their words, or draws from the vocabulary."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np

from vits_prune.errors import InputError
from vits_prune.synthesis.texts import load_calibration_texts
from vits_prune.voices.language import draw_texts, spoken_language
from vits_prune.voices.voice import Voice

_WORDS = (4, 10)
"""Fewest words of a sentence made of others' words, and one more than the most: about what a Harvard sentence has."""
_ENOUGH_WORDS = 20
_UNSPACED = re.compile(
    r"\[\[|[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""What shows that blanks do not part words: phonemes in [[ ]], and Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese letters."""
_ELSEWHERE = 1_000_003
"""Added to a seed for other draws."""

log = logging.getLogger(__name__)


def corpus(voice: Voice, texts: Sequence[str] | None, count: int, seed: int) -> tuple[str, ...]:
    """Texts to learn from, in the order in which they are to be used.

    Words in new orders are as good to learn sounds from as sentences with a meaning, and there is no end to them.

    Args:
        voice: who is to say them.
        texts: a user's; None for built-in English sentences or, for other languages, draws from the vocabulary.
        count: how many at most; a user's own texts are all kept as far as that goes.
        seed: of the order and of the words.

    Raises:
        InputError: there are none, or the voice has nothing to draw from.
    """
    asked = texts is not None
    if texts is not None and not any(text.strip() for text in texts):
        raise InputError(
            "There are no texts to learn from: give some, or leave them out for built-in ones."
        )
    if texts is None:
        if spoken_language(voice) != "en":
            return draw_texts(voice, count, seed)
        texts = load_calibration_texts()
    random = np.random.default_rng((seed, 0xC0))
    given = [text for text in texts if text.strip()]
    chosen = [given[i] for i in random.permutation(len(given))[:count]]
    if asked and len(chosen) < len(given):
        log.warning(
            "%d of %d texts are left out: there are to be %d lessons, ask for more.",
            len(given) - count,
            len(given),
            count,
        )
    mixed = [*chosen, *_made(given, count - len(chosen), random)]
    return (
        tuple(mixed[i] for i in random.permutation(len(mixed)))
        if len(mixed) > len(chosen)
        else tuple(chosen)
    )


def other_texts(
    voice: Voice, texts: Sequence[str] | None, count: int, seed: int
) -> tuple[str, ...]:
    """Texts like those of `corpus` that are not among them, to see how a voice does with what it did not learn from.

    Where no others can be made of a user's, they are those themselves. Arguments and errors are those of `corpus`.
    """
    if texts is None and spoken_language(voice) != "en":
        return draw_texts(voice, count, seed + _ELSEWHERE)
    given = [
        text for text in (load_calibration_texts() if texts is None else texts) if text.strip()
    ]
    return _made(given, count, np.random.default_rng((seed, 0xC1))) or tuple(given[:count])


def _made(given: Sequence[str], count: int, random: np.random.Generator) -> tuple[str, ...]:
    """Sentences of the words of others; none where there are too few words."""
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
